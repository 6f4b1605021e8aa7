"""The fast gradient sign method: one gradient step of a fixed size in every pixel.

Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", 2015, arXiv 1412.6572; as an impact
study of ImageNet classifiers: Sen, Dasgupta, 2023, arXiv 2307.02055. What differs, and why:

* eps is in pixel units and the result is clipped to real pixels. The impact study adds eps in *normalised* space
  without clipping, which is 1/std ≈ 4.4 times less in pixels; ``space="normalized"`` does the same.
* without labels the predicted class is attacked, so that no true label leaks into the attack.
* where the softmax is saturated, cross entropy has no usable gradient in float32 and a plain implementation leaves
  the image as it is; here its logit form is used, whose direction is the same
  (:func:`striate.stress.objective.objective`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.model import VisionModel
from striate.errors import InputError
from striate.stress.objective import Bounds, Loss, attacked, check_images, check_labels, input_gradient

__all__ = ["FGSM", "Space", "fgsm", "fgsm_report", "gradient_check"]

Space = Literal["pixel", "normalized"]


@dataclass(frozen=True)
class FGSM:
    """Attacked images with what there is to know about the attack.

    Attributes:
        images: like the input.
        direction: like the input, -1, 0 or 1: one gradient serves every eps.
        labels: (N,) classes that were left (or, targeted, approached).
        predictions: (N,) clean predictions, from the same forward pass.
        saturated: (N,) bool, images whose softmax was saturated, so that the logit form was climbed.
        unmoved: (N,) bool, images whose gradient was exactly zero: the attack could do nothing.
        space: ``"pixel"`` or ``"normalized"``.
        check: passed if every image had a gradient to follow.
    """

    images: Tensor
    direction: Tensor
    labels: Tensor
    predictions: Tensor
    saturated: Tensor
    unmoved: Tensor
    space: Space
    check: Check

    def to_dict(self) -> dict[str, Any]:
        """Return all but the images, JSON-ready."""
        return {
            "labels": self.labels.tolist(),
            "predictions": self.predictions.tolist(),
            "saturated": int(self.saturated.sum()),
            "unmoved": int(self.unmoved.sum()),
            "space": self.space,
            "check": self.check.to_dict(),
        }


def fgsm(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor | None = None,
    eps: float | Tensor = 8 / 255,
    *,
    targeted: bool = False,
    bounds: Bounds | None = (0.0, 1.0),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    space: Space = "pixel",
    loss: Loss = "ce",
) -> Tensor:
    """Return ``x + eps * sign(∇ J(x, y))``: one forward and one backward pass, labels or not.

    Args:
        model: a module or callable that returns (N, classes); evaluated in eval mode, it leaves as it came.
        x: (N, C, H, W). Pixel space: within ``bounds``. Normalised space: for a :class:`striate.VisionModel` pixels too
            (it normalises inside), for any other model its normalised input. Moved to where the model is.
        y: (N,) classes to leave; None takes the clean prediction. With ``targeted``: classes to reach.
        eps: step in each pixel, >= 0; a number, or a tensor that broadcasts to ``x`` (a per-channel step is (C, 1, 1)).
            In normalised space it is in units of ``std``.
        targeted: step towards ``y`` instead of away.
        bounds: range of real pixels; None does not clip.
        mean, std: per channel, for a model that does not normalise inside. Pixel space: the model sees
            ``(x - mean) / std``. Normalised space: the result is clipped to the image of ``bounds``; without
            them it is not clipped, as published.
        space: where eps is measured.
        loss: ``"ce"``, or ``"margin"`` (max_{j≠y} z_j − z_y).

    Returns:
        Like ``x`` in shape and dtype, detached; within eps of ``x`` up to the rounding of one addition.

    Raises:
        InputError: eps < 0, x outside bounds, targeted without y, a label that is no class, or mean and std for a
            model that normalises inside.
        ModelError: no (N, classes) scores, or a gradient that is not finite.

    >>> linear = torch.nn.Linear(3, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, -1.0]]))
    >>> fgsm(linear, torch.tensor([[0.2, 0.5, 0.9]]), torch.tensor([0]), eps=0.1)
    tensor([[0.1000, 0.6000, 0.8000]])
    """
    return fgsm_report(
        model, x, y, eps, targeted=targeted, bounds=bounds, mean=mean, std=std, space=space, loss=loss
    ).images


@torch.inference_mode(False)
def fgsm_report(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor | None = None,
    eps: float | Tensor = 8 / 255,
    *,
    targeted: bool = False,
    bounds: Bounds | None = (0.0, 1.0),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    space: Space = "pixel",
    loss: Loss = "ce",
) -> FGSM:
    """Attack as :func:`fgsm` does and return the images together with the figures; same arguments."""
    if space not in {"pixel", "normalized"}:
        raise InputError("space", "fgsm", allowed="'pixel' or 'normalized'", got=space)
    if targeted and y is None:
        raise InputError("y", "fgsm", allowed="given for a targeted attack", got=None)
    if bounds is not None and bounds[0] >= bounds[1]:
        raise InputError("bounds", "fgsm", allowed="(low, high) with low < high, or None", got=bounds)
    x = check_images(x, "fgsm", bounds if space == "pixel" else None, model)
    statistics = _statistics(model, x, mean, std)
    wide = torch.float32 if x.dtype in {torch.float16, torch.bfloat16} else x.dtype
    step = _step(eps, x, wide)
    limits: tuple[Any, Any] | None = bounds
    if space == "normalized" and isinstance(model, VisionModel):
        step = step * model.std.to(x.device, wide)  # x is in pixels here, eps in units of std
        limits = None
    elif space == "normalized":
        limits = None if statistics is None or bounds is None else _normalized(bounds, *statistics)
    labels = None if y is None else check_labels(y, x, "fgsm")

    with attacked(model) as ready:
        forward = ready
        if space == "pixel" and statistics is not None:
            centre, spread = (value.to(x.dtype) for value in statistics)

            def forward(images: Tensor) -> Tensor:
                return ready((images - centre) / spread)

        found = input_gradient(forward, x, labels, loss, targeted=targeted, owner="fgsm")

    direction = found.grad.sign()
    images = x.to(wide) + step * direction
    if limits is not None:
        images = images.clamp(*limits)
    predictions = found.logits.argmax(dim=1)
    unmoved = found.peak == 0
    return FGSM(
        images=images.to(x.dtype),
        direction=direction.to(x.dtype),
        labels=predictions if labels is None else labels,
        predictions=predictions,
        saturated=found.saturated,
        unmoved=unmoved,
        space=space,
        check=gradient_check(unmoved, found.saturated),
    )


def gradient_check(unmoved: Tensor, saturated: Tensor) -> Check:
    """Return the check that no image's gradient was exactly zero; (N,) bool each, as in :class:`FGSM`."""
    n, still, sure = len(unmoved), int(unmoved.sum()), int(saturated.sum())
    statement = f"{still} of {n} images have a gradient of exactly zero"
    statement += f"; {sure} were saturated and attacked through their logits." if sure else "."
    return Check("gradient", still == 0, statement, still / n, 0.0)


def _statistics(
    model: object, x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor, Tensor] | None:
    """Mean and std as (C, 1, ...) tensors, or None where the caller gave none."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("mean, std", "fgsm", allowed="given together or not at all", got=(mean, std))
    if isinstance(model, VisionModel):
        raise InputError(
            "mean, std",
            "fgsm",
            allowed="left out for a VisionModel",
            got=(mean, std),
            hint="It normalises inside; giving them again would normalise twice.",
        )
    if len(mean) != x.shape[1] or len(std) != x.shape[1] or min(std) <= 0:
        raise InputError("mean, std", "fgsm", allowed=f"{x.shape[1]} numbers each, std > 0", got=(mean, std))
    shape = (-1, *[1] * (x.dim() - 2))
    wide = torch.float32 if x.dtype in {torch.float16, torch.bfloat16} else x.dtype
    return (
        torch.tensor(mean, device=x.device, dtype=wide).view(shape),
        torch.tensor(std, device=x.device, dtype=wide).view(shape),
    )


def _normalized(bounds: Bounds, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    return (bounds[0] - mean) / std, (bounds[1] - mean) / std


def _step(eps: float | Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    step = torch.as_tensor(eps, device=x.device, dtype=dtype)
    if not torch.isfinite(step).all() or (step < 0).any():
        raise InputError("eps", "fgsm", allowed=">= 0 and finite", got=eps)
    try:
        fits = torch.broadcast_shapes(step.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError("eps", "fgsm", allowed=f"broadcastable to {tuple(x.shape)}", got=tuple(step.shape))
    return step
