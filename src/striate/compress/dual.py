"""Two small classifiers in place of a large one: the second is asked only where the first is unsure."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from striate.compress.perceptual_memory import PerceptualMemory
from striate.compress.threshold import ConfidenceKind, confidence
from striate.engine.state import device_of
from striate.errors import InputError, ModelError

__all__ = ["DualAnswer", "DualCNN"]


class DualAnswer(NamedTuple):
    """Answers to a batch, on the CPU.

    Attributes:
        label: (N,) class, long.
        score: (N,) confidence of the answer given, in [0, 1].
        used_b: (N,) whether the second classifier was run on the image.
        remembered: (N,) whether neither was.
    """

    label: Tensor
    score: Tensor
    used_b: Tensor
    remembered: Tensor


class DualCNN:
    """A pair of classifiers that answers as one (Kinnas et al. 2025, arXiv 2412.01039, section 3).

    The first answers every image. Where its confidence is under the threshold the second runs too, on those images
    alone, and the surer answer is given. With a memory, images seen before reach neither.

    Args:
        a: runs first: takes images, returns logits (N, C). Both must be in eval mode and stay so.
        b: the second, of the same classes; may be on another device.
        threshold: in [0, 1], see :func:`~striate.compress.threshold.search_threshold`.
        kind: of confidence, see :func:`~striate.compress.threshold.confidence`.
        postcheck: False takes the second's answer wherever it was asked.
        memory: of past images; they must come as uint8 then.

    Raises:
        InputError: ``threshold`` is outside [0, 1], or ``kind`` is unknown.
        ModelError: a network is in training mode.

    >>> sure, unsure = nn.Linear(2, 2).eval(), nn.Linear(2, 2).eval()
    >>> answer = DualCNN(sure, unsure, threshold=0.0).predict(torch.rand(3, 2))
    >>> int(answer.used_b.sum())
    0
    """

    def __init__(
        self,
        a: nn.Module,
        b: nn.Module,
        threshold: float,
        kind: ConfidenceKind = "difference",
        *,
        postcheck: bool = True,
        memory: PerceptualMemory | None = None,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise InputError("threshold", "DualCNN", allowed="in [0, 1]", got=threshold)
        confidence(torch.zeros(0, 2), kind)  # an unknown kind is refused now, not at first use
        self.a, self.b = a, b
        self.threshold, self.kind, self.postcheck, self.memory = threshold, kind, postcheck, memory
        self._check_modes()

    def __repr__(self) -> str:
        names = ", ".join(str(getattr(network, "name", type(network).__name__)) for network in (self.a, self.b))
        rule = f"{self.kind} under {self.threshold:.4g}{'' if self.postcheck else ', no postcheck'}"
        return f"DualCNN({names}; second asked at {rule}; {'no memory' if self.memory is None else repr(self.memory)})"

    def predict(self, images: Tensor) -> DualAnswer:
        """Answer a batch of images.

        Args:
            images: whatever ``a`` and ``b`` take; uint8 pixels are handed to them as float32 in [0, 1], which is what
                the models of :func:`striate.load_model` take.

        Raises:
            ModelError: a network is in training mode or returns no logits, or they know different numbers of classes.
            InputError: there is a memory and the images are not uint8, or the logits are NaN.
        """
        self._check_modes()
        used_b = torch.zeros(len(images), dtype=torch.bool)
        if self.memory is None:
            label, score, used_b = self._cascade(images)
            return DualAnswer(label, score, used_b, torch.zeros_like(used_b))

        def classify(rows: Tensor) -> tuple[Tensor, Tensor]:
            label, score, used_b[rows] = self._cascade(images[rows.to(images.device)])
            return label, score

        label, score, remembered = self.memory.answer(images, classify)
        return DualAnswer(label, score, used_b, remembered)

    def identity(self) -> str:
        """Return a hash of both networks' weights and of the rule, to keep memories of different pairs apart."""
        digest = hashlib.sha256(f"{self.threshold!r} {self.kind} {self.postcheck}".encode())
        for network in (self.a, self.b):
            for name, value in network.state_dict().items():
                digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def _cascade(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self._run(self.a, images)
        # Decided on the CPU in double precision, as the threshold was searched.
        label, score = logits.argmax(1).cpu(), confidence(logits, self.kind).cpu().double()
        used_b = score < self.threshold
        rows = used_b.nonzero().squeeze(1)
        if len(rows):
            second = self._run(self.b, images[rows.to(images.device)])
            if second.shape[1] != logits.shape[1]:
                classes = f"{logits.shape[1]} and {second.shape[1]}"
                raise ModelError(f"The two networks of DualCNN know {classes} classes; both must know the same.")
            label_b, score_b = second.argmax(1).cpu(), confidence(second, self.kind).cpu().double()
            taken = score_b > score[rows] if self.postcheck else torch.ones_like(rows, dtype=torch.bool)
            label[rows[taken]], score[rows[taken]] = label_b[taken], score_b[taken]
        return label, score, used_b

    def _run(self, network: nn.Module, images: Tensor) -> Tensor:
        x = images.to(device_of(network))
        logits = network(x.float() / 255 if x.dtype is torch.uint8 else x)
        if not isinstance(logits, Tensor):
            raise ModelError(f"A network of DualCNN returns {type(logits).__name__}; it must return logits (N, C).")
        return logits

    def _check_modes(self) -> None:
        for name, network in (("a", self.a), ("b", self.b)):
            if network.training:
                raise ModelError(f"Network {name} of DualCNN is in training mode; call its eval() first.")
