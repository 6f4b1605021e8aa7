"""Soft distillation: a network learns from labels and from the whole answer of a trained teacher.

- Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531: tau^2 times the
  divergence of the softened answers beside the cross entropy.
- The distilled weights of MobileMamba (He et al. 2024, arXiv 2411.15941) are trained so, with weight 5 and tau 1, from
  a TResNet-L that sees the same images, mixed up and all, resized to its own 224 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.state import device_of, inspected
from striate.errors import InputError, ModelError

__all__ = ["DistillationLoss"]


@dataclass(frozen=True)
class DistillationLoss:
    """``loss(model, images, labels, generator)`` for :func:`striate.engine.train.fit`: labels and a teacher.

    CE(student, labels) + weight * tau^2 * KL(teacher || student), the divergence a mean over images, both answers at
    temperature tau. A student with a second head for it (:class:`~striate.models.mobile_mamba.MobileMamba` with
    ``distillation=True`` returns a pair of logits in training) learns the labels with the first and the teacher with
    the second.

    Attributes:
        teacher: trained, of the same classes; it leaves as it came, in eval mode while it is asked.
        weight: of the divergence, >= 0.
        temperature: tau > 0.
        teacher_size: side in pixels that the teacher sees, bicubically resized; None for the images as they are.
        label_smoothing: of the cross entropy.

    The key of :func:`striate.engine.train.trained` sees these options but not the teacher's weights: name them there.
    """

    teacher: nn.Module = field(repr=False)
    weight: float = 5.0
    temperature: float = 1.0
    teacher_size: int | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        owner = type(self).__name__
        if not 0 <= self.weight < float("inf"):
            raise InputError("weight", owner, allowed=">= 0 and finite", got=self.weight)
        if not 0 < self.temperature < float("inf"):
            raise InputError("temperature", owner, allowed="> 0 and finite", got=self.temperature)
        if self.teacher_size is not None and self.teacher_size < 1:
            raise InputError("teacher_size", owner, allowed=">= 1, or None", got=self.teacher_size)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of this batch, a scalar; labels are (N,) classes or, after mixup, (N, C) shares."""
        answer = model(images)
        if not isinstance(answer, Tensor) and not (type(answer) is tuple and len(answer) == 2):
            kind = type(answer).__name__  # a named tuple holds auxiliary heads, which are not for the teacher
            raise ModelError(f"The student answers {kind}; DistillationLoss needs logits, or a pair of logits.")
        first, second = (answer, answer) if isinstance(answer, Tensor) else answer
        by_labels = F.cross_entropy(first, labels, label_smoothing=self.label_smoothing)
        return by_labels + self.weight * self.divergence(second, images)

    def divergence(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return tau^2 KL(teacher || student), a mean over images, for the student's ``logits`` (N, C)."""
        wanted = self._ask(images)
        if wanted.shape != logits.shape:
            raise ModelError(f"The teacher answers {tuple(wanted.shape)} and the student {tuple(logits.shape)}.")
        tau = self.temperature
        student, teacher = (F.log_softmax(values.float() / tau, dim=1) for values in (logits, wanted))
        return tau**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    @torch.no_grad()
    def _ask(self, images: Tensor) -> Tensor:
        size = self.teacher_size
        if size is not None and tuple(images.shape[-2:]) != (size, size):
            images = F.interpolate(images, (size, size), mode="bicubic", align_corners=False)
        with inspected(self.teacher, warn=False, exact=False):
            return self.teacher(images.to(device_of(self.teacher))).to(images.device)
