"""Insertion and deletion: how the class probability moves as the most salient pixels come or go.

Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", 2018, arXiv 1806.07421.

Both areas follow the network's confidence as much as the map (Nourelahi et al. 2022, arXiv 2205.13042): never compare
two networks by them without :func:`striate.explain.bench.confidence_confound`.

Fixed here, because the answer depends on it: the probability is that of the class asked for, in every step, not of the
class then predicted. Equally salient pixels, of which superpixel maps are full, go in a random order drawn by a seed
and shared by all images. The blur is RISE's (kernel 11, sigma 5 at 224 pixels), scaled with the height of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.model import VisionModel
from striate.engine.state import device_of, inspected
from striate.errors import InputError
from striate.explain.base import Target, resolve_target

__all__ = ["Curve", "deletion", "insertion"]

_PIXELS_PER_BATCH = 2**20  # values in one forward: 7 images of 3 x 224 x 224, 218 of 3 x 40 x 40


@dataclass(frozen=True)
class Curve:
    """Class probability against the share of pixels changed.

    Attributes:
        metric: ``"insertion"`` (higher is better) or ``"deletion"`` (lower is better).
        auc: (N,) area under each curve in [0, 1], by the trapezoid rule, float64.
        curve: (N, S + 1) class probability after each of S steps, the untouched start first, float64.
        fractions: (S + 1,) share of pixels changed, from 0 to 1.
        target: (N,) long, the class whose probability it is.
        check: the end of the curve that shows the whole image must equal the network's own probability.
    """

    metric: Literal["insertion", "deletion"]
    auc: Tensor
    curve: Tensor
    fractions: Tensor
    target: Tensor
    check: Check

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "metric": self.metric,
            "auc": self.auc.tolist(),
            "curve": self.curve.tolist(),
            "fractions": self.fractions.tolist(),
            "target": self.target.tolist(),
            "check": self.check.to_dict(),
        }

    def __repr__(self) -> str:
        mean, steps = self.auc.mean().item(), len(self.fractions) - 1
        return f"<{self.metric} of {len(self.auc)}: mean AUC {mean:.3f} in {steps} steps>"


def insertion(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    maps: Tensor,
    *,
    step: int | None = None,
    blur: tuple[int, float] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Curve:
    """Start from the blurred image and put the original pixels back, most salient first.

    Args:
        model: classifier (N, classes); evaluated in eval mode, leaves as it came.
        inputs: (N, C, H, W), in the space that the model takes ([0, 1] for a VisionModel); moved to where it is.
        target: class, (N,) classes, or None for the predicted class.
        maps: (N, H, W), finite; only their order counts.
        step: pixels changed in a step; default W, that is 1/H of all pixels.
        blur: (kernel size, sigma) in pixels; default (11, 5) scaled by H / 224, the kernel odd and at least 3.
        seed: of the order among equally salient pixels.
        batch_size: images in one forward; default by their size.

    Raises:
        InputError: maps not finite or of another size, target out of range or a callable, step or blur out of range.
    """
    inputs, maps = _checked(model, inputs, maps, "insertion")
    kernel, sigma = _default_blur(inputs.shape[2]) if blur is None else blur
    if kernel < 1 or kernel % 2 == 0 or sigma <= 0:
        raise InputError("blur", "insertion", allowed="(odd kernel size >= 1, sigma > 0)", got=blur)
    start = _blurred(inputs, kernel, sigma)
    return _curve(
        "insertion", model, inputs, target, maps, start=start, end=inputs, step=step, seed=seed, batch_size=batch_size
    )


def deletion(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    maps: Tensor,
    *,
    step: int | None = None,
    baseline: float | Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Curve:
    """Start from the image and grey its pixels out, most salient first.

    Args:
        model, inputs, target, maps, step, seed, batch_size: see :func:`insertion`.
        baseline: what a deleted pixel becomes, one value or (C,). Default: the zero of the normalised input, which is
            the preprocessing's mean for a :class:`striate.VisionModel` and 0 for a bare module.

    Raises:
        InputError: as :func:`insertion`; a baseline of another length.
    """
    inputs, maps = _checked(model, inputs, maps, "deletion")
    if baseline is None:
        baseline = model.mean if isinstance(model, VisionModel) else 0.0
    grey = torch.as_tensor(baseline, dtype=inputs.dtype, device=inputs.device).flatten()
    if grey.numel() not in {1, inputs.shape[1]} or not torch.isfinite(grey).all():
        allowed = f"one finite value or {inputs.shape[1]}"
        raise InputError("baseline", "deletion", allowed=allowed, got=grey.tolist())
    end = grey.view(1, -1, 1, 1).expand_as(inputs)
    return _curve(
        "deletion", model, inputs, target, maps, start=inputs, end=end, step=step, seed=seed, batch_size=batch_size
    )


def _curve(
    metric: Literal["insertion", "deletion"],
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    maps: Tensor,
    *,
    start: Tensor,
    end: Tensor,
    step: int | None,
    seed: int,
    batch_size: int | None,
) -> Curve:
    """Walk from ``start`` to ``end`` in the order of the maps, all (image, step) pairs in as few forwards as fit."""
    n, _, height, width = inputs.shape
    pixels = height * width
    step = width if step is None else step
    if not 1 <= step <= pixels:
        raise InputError("step", metric, allowed=f"from 1 to {pixels} pixels", got=step)
    if batch_size is not None and batch_size < 1:
        raise InputError("batch_size", metric, allowed=">= 1", got=batch_size)
    batch_size = max(1, _PIXELS_PER_BATCH // inputs[0].numel()) if batch_size is None else batch_size
    changed = torch.arange(0, pixels + step, step, device=inputs.device).clamp_max(pixels)  # (S + 1,)
    rank = _ranks(maps, seed)
    with inspected(model), torch.no_grad():
        logits = torch.cat([model(chunk) for chunk in inputs.split(batch_size)])
        classes = resolve_target(logits, target, metric)
        if not isinstance(classes, Tensor):
            raise InputError("target", metric, allowed="classes: a callable has no probability", got="a callable")
        whole = _probability(logits, classes)
        image, at = torch.meshgrid(
            torch.arange(n, device=inputs.device), torch.arange(len(changed), device=inputs.device), indexing="ij"
        )
        values = []
        for who, when in zip(image.flatten().split(batch_size), at.flatten().split(batch_size), strict=True):
            moved = (rank[who] < changed[when].view(-1, 1, 1))[:, None]  # (B, 1, H, W)
            values.append(_probability(model(torch.where(moved, end[who], start[who])), classes[who]))
    curve = torch.cat(values).view(n, len(changed))
    fractions = changed.double() / pixels
    shown = curve[:, 0] if metric == "deletion" else curve[:, -1]
    gap = (shown - whole).abs().max().item()
    # The same image in a batch of another size: equal up to the rounding of another summation order.
    bound = 1e-6 if inputs.dtype == torch.float64 else max(1e-5, 16 * torch.finfo(inputs.dtype).eps)
    ends = "first" if metric == "deletion" else "last"
    statement = f"The curve's {ends} value differs from the network's own probability by at most {gap:.1e}."
    check = Check("anchor", gap <= bound, statement, gap, bound)
    return Curve(metric, torch.trapezoid(curve, fractions), curve, fractions, classes, check)


def _ranks(maps: Tensor, seed: int) -> Tensor:
    """Return (N, H, W) long: 0 for the most salient pixel; equal pixels in one seeded random order."""
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(maps.device)
    order = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(flat.shape[1], device=maps.device).expand_as(order))
    return ranks.view(maps.shape)


def _probability(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.double().softmax(dim=1).gather(1, classes[:, None])[:, 0]


def _default_blur(height: int) -> tuple[int, float]:
    half = max(1, round((11 * height / 224 - 1) / 2))
    return 2 * half + 1, 5 * height / 224


def _blurred(inputs: Tensor, kernel: int, sigma: float) -> Tensor:
    """Blur each channel by a separable Gaussian; borders repeat their last pixel."""
    half, channels = kernel // 2, inputs.shape[1]
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).to(inputs)
    padded = F.pad(inputs, (half, half, half, half), mode="replicate")
    rows = F.conv2d(padded, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def _checked(model: nn.Module, inputs: Tensor, maps: Tensor, owner: str) -> tuple[Tensor, Tensor]:
    if inputs.dim() != 4 or not inputs.is_floating_point() or inputs.shape[0] == 0:
        got = f"{inputs.dtype} {tuple(inputs.shape)}"
        raise InputError("inputs", owner, allowed="a float tensor (N, C, H, W)", got=got)
    if maps.shape != (inputs.shape[0], *inputs.shape[2:]):
        allowed = f"{(inputs.shape[0], *inputs.shape[2:])}, one value a pixel"
        raise InputError("maps", owner, allowed=allowed, got=tuple(maps.shape), hint="Take Attribution.normalized.")
    if not torch.isfinite(maps).all():
        raise InputError("maps", owner, allowed="finite", got="NaN or infinity")
    inputs = inputs.detach().to(device_of(model, inputs.device))
    return inputs, maps.detach().to(inputs.device)
