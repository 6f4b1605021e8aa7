"""Routes through an image for a one-dimensional scan, and the way back.

Liu, Tian, Zhao, Yu, Xie, Wang, Ye, Jiao, Liu, "VMamba: Visual State Space Model", NeurIPS 2024, arXiv 2401.10166,
section 4.2; the one- and two-directional routes are those of its ablation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["ScanMode", "cross_merge", "cross_scan"]

ScanMode = Literal["cross2d", "bidi", "unidi"]


def cross_scan(x: Tensor, mode: ScanMode = "cross2d") -> Tensor:
    """Unroll a map into four sequences.

    Args:
        x: (B, C, H, W).
        mode: ``"cross2d"``: row by row, column by column, and both from their end; ``"bidi"``: row by row twice, and
            twice from the end; ``"unidi"``: row by row four times.

    Returns:
        (B, 4, C, H * W).

    >>> cross_scan(torch.arange(6).view(1, 1, 2, 3))[0, :, 0].tolist()
    [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]
    """
    _check(mode, "cross_scan")
    if x.dim() != 4:
        raise InputError("x", "cross_scan", allowed="(B, C, H, W)", got=tuple(x.shape))
    rows = x.flatten(2)
    if mode == "unidi":
        return torch.stack([rows] * 4, dim=1)
    forth = torch.stack([rows, x.mT.flatten(2) if mode == "cross2d" else rows], dim=1)
    return torch.cat([forth, forth.flip(-1)], dim=1)


def cross_merge(ys: Tensor, height: int, width: int, mode: ScanMode = "cross2d") -> Tensor:
    """Put four sequences back on the map and add them: the adjoint of :func:`cross_scan`.

    Args:
        ys: (B, 4, C, height * width).
        height, width: of the map.
        mode: as they were unrolled.

    Returns:
        (B, C, height, width).
    """
    _check(mode, "cross_merge")
    if ys.dim() != 4 or ys.shape[1] != 4 or ys.shape[3] != height * width:
        allowed = f"(B, 4, C, {height * width}) for a map of {height} x {width}"
        raise InputError("ys", "cross_merge", allowed=allowed, got=tuple(ys.shape))
    if mode == "unidi":
        return ys.sum(dim=1).unflatten(-1, (height, width))
    both = ys[:, :2] + ys[:, 2:].flip(-1)
    if mode == "bidi":
        return both.sum(dim=1).unflatten(-1, (height, width))
    return both[:, 0].unflatten(-1, (height, width)) + both[:, 1].unflatten(-1, (width, height)).mT


def _check(mode: str, owner: str) -> None:
    if mode not in {"cross2d", "bidi", "unidi"}:
        raise InputError("mode", owner, allowed="cross2d, bidi or unidi", got=mode)
