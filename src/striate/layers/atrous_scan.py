"""The atrous selective scan of EfficientVMamba: interleaved tiles of the map, one scan route each, every pixel once.

Pei, Huang, Xu, "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", AAAI 2025, arXiv 2403.09977.
A tile holds every ``step``-th row and column, so its route is ``step``² times shorter than the map. The routes are
those of the authors' code (no route runs backwards); the paper's figure draws four directions: ``reverse=True``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.errors import InputError
from striate.layers.ss2d import SS2D

__all__ = ["ES2D", "Phases", "atrous_merge", "atrous_scan"]

Phases = Literal["four", "all"]


def atrous_scan(x: Tensor, step: int = 2, phases: Phases = "four", reverse: bool = False) -> Tensor:
    """Unroll a map into its interleaved tiles (section 3.2).

    Tile k = i + step * j holds rows i, i + step, … and columns j, j + step, …; even tiles are read row by row, odd
    ones column by column. Sizes that ``step`` does not divide are padded with zeros at the bottom and on the right.

    Args:
        x: (B, C, H, W).
        step: distance of neighbours in a tile.
        phases: ``"four"`` as published, for a step of 2; ``"all"``: step² tiles for any step.
        reverse: read tiles 2, 3, 6, 7, … from their end.

    Returns:
        (B, K, C, h * w) with K = step², h = ceil(H / step), w = ceil(W / step).

    >>> atrous_scan(torch.arange(24).view(1, 1, 4, 6))[0, :, 0].tolist()[:2]
    [[0, 2, 4, 12, 14, 16], [6, 18, 8, 20, 10, 22]]
    """
    _check(step, phases, "atrous_scan")
    if x.dim() != 4:
        raise InputError("x", "atrous_scan", allowed="(B, C, H, W)", got=tuple(x.shape))
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % step, 0, -height % step))
    tiles = x.unflatten(3, (-1, step)).unflatten(2, (-1, step))  # (B, C, h, i, w, j)
    tiles = tiles.permute(5, 3, 0, 1, 2, 4).flatten(0, 1)  # (K, B, C, h, w)
    routes = [(tile.mT if k % 2 else tile).flatten(2) for k, tile in enumerate(tiles.unbind())]
    return torch.stack(_turned(routes, reverse), dim=1)


def atrous_merge(
    ys: Tensor, height: int, width: int, step: int = 2, phases: Phases = "four", reverse: bool = False
) -> Tensor:
    """Put routes back where :func:`atrous_scan` took them from, without the padding: its exact inverse.

    Args:
        ys: (B, K, C, h * w).
        height, width: of the map.
        step, phases, reverse: as they were unrolled.

    Returns:
        (B, C, H, W).
    """
    _check(step, phases, "atrous_merge")
    h, w = -(-height // step), -(-width // step)
    if ys.dim() != 4 or ys.shape[1] != step * step or ys.shape[3] != h * w:
        allowed = f"(B, {step * step}, C, {h * w}) for a map of {height} x {width}"
        raise InputError("ys", "atrous_merge", allowed=allowed, got=tuple(ys.shape))
    routes = _turned(list(ys.unbind(1)), reverse)
    tiles = [y.unflatten(2, (w, h)).mT if k % 2 else y.unflatten(2, (h, w)) for k, y in enumerate(routes)]
    x = torch.stack(tiles).unflatten(0, (step, step))  # (j, i, B, C, h, w)
    return x.permute(2, 3, 4, 1, 5, 0).flatten(4).flatten(2, 3)[..., :height, :width]


class ES2D(SS2D):
    """Efficient 2-D scan: the vanilla SS2D (gate, bias in the convolution) along atrous routes.

    Every token is scanned once, in a sequence ``step``² times shorter than the map, and sees only earlier tokens of its
    own tile: the convolutions around the scan have to carry information from tile to tile.

    Args:
        dim: channels; (N, C, H, W) stays.
        d_state: N, states a channel.
        ssm_ratio: width of the scan, in units of ``dim``.
        step, phases, reverse: see :func:`atrous_scan`.
        **options: others of :class:`~striate.layers.ss2d.SS2D`.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        step: int = 2,
        phases: Phases = "four",
        reverse: bool = False,
        **options: Any,
    ) -> None:
        _check(step, phases, "ES2D")
        super().__init__(dim, d_state, ssm_ratio, n_routes=step * step, **{"conv_bias": True, "gate": True, **options})
        self.atrous: dict[str, Any] = {"step": step, "phases": phases, "reverse": reverse}

    def unroll(self, x: Tensor) -> Tensor:
        """Return routes (B, K, d_inner, h * w) of a map (B, d_inner, H, W)."""
        return atrous_scan(x, **self.atrous)

    def merge(self, ys: Tensor, height: int, width: int) -> Tensor:
        """Return the map (B, d_inner, H, W) of routes."""
        return atrous_merge(ys, height, width, **self.atrous)


def _turned(routes: list[Tensor], reverse: bool) -> list[Tensor]:
    return [route.flip(-1) if reverse and k % 4 >= 2 else route for k, route in enumerate(routes)]


def _check(step: int, phases: Phases, owner: str) -> None:
    if phases not in {"four", "all"}:
        raise InputError("phases", owner, allowed="four or all", got=phases)
    if step < 1 or (step != 2 and phases == "four"):
        hint = 'Four tiles cover the map at a step of 2 only; phases="all" takes step² tiles.'
        raise InputError("step", owner, allowed="2, or >= 1 with all phases", got=step, hint=hint)
