"""Occlusion: how much the score falls when a window of the image is covered.

Paper: Zeiler and Fergus 2013 (arXiv 1311.2901). They cover with grey and look at the probability; here it is the score
(the logit; give a callable target for anything else) and any baseline. A pixel's value is the mean fall over the
windows that cover it, as in captum, which agrees to rounding (see the tests) and covers one window a call by default.
On a CPU the lower layers run on crops around the windows (:mod:`striate.explain.windowed`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.state import full_precision
from striate.errors import InputError
from striate.explain.base import Explainer, RawMap, Target
from striate.explain.batching import Baseline, Copies, as_baseline, pairs
from striate.explain.windowed import Windowed

__all__ = ["Occlusion"]


class Occlusion(Explainer):
    """Mean fall of the score over all windows that cover a pixel; signed: negative where covering helps.

    The check covers, in each image, the tenth of the pixels that the map ranks highest, then the tenth it ranks lowest:
    the first must cost more score.

    Args:
        model: see :class:`Explainer`.
        window: (height, width) in pixels, or one number for both; None is a seventh of each side, rounded up.
        stride: step of the window, likewise; None is half the window, rounded up. No larger than the window, so that
            every pixel is covered. The last window of a row or column is cut at the border.
        baseline: what covers, see :data:`striate.explain.batching.Baseline`.
        batch_size: covered copies in one call of the model, twice as many where only its upper layers run; None chooses
            by image size and device.
    """

    name = "occlusion"
    family = "perturbation"

    def __init__(
        self,
        model: nn.Module,
        *,
        window: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        baseline: Baseline = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        self.window, self.stride = window, stride
        self.baseline = baseline
        self.batch_size = batch_size

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        size = (inputs.shape[-2], inputs.shape[-1])
        window, stride = self._geometry(size)
        baseline = as_baseline(self.baseline, inputs, "Occlusion", self.model).expand_as(inputs)
        rows = _spans(size[0], window[0], stride[0], inputs.device)  # (R, H)
        columns = _spans(size[1], window[1], stride[1], inputs.device)  # (K, W)
        tops, lefts = torch.arange(len(rows)) * stride[0], torch.arange(len(columns)) * stride[1]
        corners = torch.cartesian_prod(tops, lefts)
        each = len(corners)
        copies = Copies.of(self.model, inputs, target, "Occlusion", self.batch_size, backward=False, each=each)
        covered = Windowed(copies, baseline, window, corners)
        own = copies.own_scores()
        falls = torch.zeros(each, inputs.shape[0], dtype=own.dtype, device=own.device)
        for image, position in pairs(inputs.shape[0], each, covered.batch, inputs.device):
            falls[position, image] = own[image] - covered.scores(image, corners[position.cpu()])
        # Windows are products of spans, so the sum over those that cover a pixel is two small matrix products.
        falls = falls.T.view(-1, len(rows), len(columns))
        down, across = rows.to(falls.dtype), columns.to(falls.dtype)
        count = down.sum(dim=0)[:, None] * across.sum(dim=0)[None, :]
        with full_precision(falls.device):
            maps = torch.einsum("rh,nrk,kw->nhw", down, falls, across) / count
        notes = {
            "window": list(window),
            "stride": list(stride),
            "windows": falls[0].numel(),
            "crops_up_to": covered.layers,
        }
        return RawMap(maps, copies.target, _order_check(copies, maps, baseline), notes=notes)

    def _geometry(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        window = _two(self.window) or (-(-size[0] // 7), -(-size[1] // 7))
        stride = _two(self.stride) or (-(-window[0] // 2), -(-window[1] // 2))
        if not all(1 <= w <= s for w, s in zip(window, size, strict=True)):
            raise InputError("window", "Occlusion", allowed=f"from 1 to the image's {size}", got=window)
        if not all(1 <= s <= w or w == full for s, w, full in zip(stride, window, size, strict=True)):
            raise InputError("stride", "Occlusion", allowed=f"from 1 to the window's {window}", got=stride)
        return window, stride


def _two(value: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (value, value) if isinstance(value, int) else value


def _spans(length: int, window: int, stride: int, device: torch.device) -> Tensor:
    """Return which positions each window covers along one side, (windows, length) bool."""
    count = -(-(length - window) // stride) + 1
    start = torch.arange(count, device=device)[:, None] * stride
    place = torch.arange(length, device=device)[None, :]
    return (place >= start) & (place < start + window)


def _order_check(copies: Copies, maps: Tensor, baseline: Tensor) -> Check:
    name = "order"
    n, h, w = maps.shape
    tenth = max(1, h * w // 10)
    order = maps.flatten(1).argsort(dim=1, stable=True)
    altered = []
    for chosen in (order[:, -tenth:], order[:, :tenth]):
        covered = torch.zeros(n, h * w, dtype=torch.bool, device=maps.device).scatter_(1, chosen, True)
        altered.append(torch.where(covered.view(n, 1, h, w), baseline, copies.inputs))
    falls = copies.own_scores() - copies.scores(torch.cat(altered), copies.every.repeat(2)).view(2, n)
    margin = float((falls[0] - falls[1]).min())
    statement = (
        f"Covering the tenth of the pixels ranked highest lowers the score by {float(falls[0].mean()):.3g}, the tenth "
        f"ranked lowest by {float(falls[1].mean()):.3g} (means); the smallest margin in an image is {margin:.3g} "
        "(wanted: above 0)."
    )
    return Check(name, margin > 0, statement, margin, 0.0)
