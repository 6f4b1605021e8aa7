"""The two-dimensional Haar wavelet transform and its inverse, by slicing and adding.

The four bands of a 2 x 2 patch [[a, b], [c, d]] are, each times 1/2: a + b + c + d (low), a + b - c - d (the difference
between rows), a - b + c - d (between columns), a - b - c + d (diagonal). The transform is orthonormal. Order and signs
are those of WTConv (Finder et al., 2024, arXiv 2407.05848) and of MobileMamba (He et al., 2025, arXiv 2411.15941), on
which their checkpoints depend.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.errors import InputError

__all__ = ["haar_dwt2d", "haar_filters", "haar_idwt2d"]


def haar_dwt2d(x: Tensor) -> Tensor:
    """Split a map into four bands of half its size.

    Args:
        x: (N, C, H, W); odd sizes are padded with zeros at the bottom and on the right.

    Returns:
        (N, C, 4, ceil(H / 2), ceil(W / 2)): low, between rows, between columns, diagonal.

    >>> haar_dwt2d(torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]]])).flatten().tolist()
    [0.0, 2.0, 0.0, 0.0]
    """
    if x.dim() != 4:
        raise InputError("x", "haar_dwt2d", allowed="(N, C, H, W)", got=tuple(x.shape))
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
    x = 0.5 * x
    left, right = x[..., ::2], x[..., 1::2]
    sums, differences = left + right, left - right
    above, below = sums[..., ::2, :], sums[..., 1::2, :]
    d_above, d_below = differences[..., ::2, :], differences[..., 1::2, :]
    return torch.stack([above + below, above - below, d_above + d_below, d_above - d_below], dim=2)


def haar_idwt2d(bands: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Put four bands together again: the inverse, and the adjoint, of :func:`haar_dwt2d`.

    Args:
        bands: (N, C, 4, h, w).
        size: (H, W) to crop to, for maps of odd size; default (2 h, 2 w).

    Returns:
        (N, C, H, W).
    """
    if bands.dim() != 5 or bands.shape[2] != 4:
        raise InputError("bands", "haar_idwt2d", allowed="(N, C, 4, h, w)", got=tuple(bands.shape))
    if size is not None and any(not 0 <= side <= 2 * half for side, half in zip(size, bands.shape[3:], strict=True)):
        allowed = f"at most {tuple(2 * half for half in bands.shape[3:])}"
        raise InputError("size", "haar_idwt2d", allowed=allowed, got=size)
    low, rows, columns, diagonal = (0.5 * bands).unbind(2)
    sums = torch.stack([low + rows, low - rows], dim=-2).flatten(-3, -2)  # (N, C, 2 h, w)
    differences = torch.stack([columns + diagonal, columns - diagonal], dim=-2).flatten(-3, -2)
    x = torch.stack([sums + differences, sums - differences], dim=-1).flatten(-2)
    return x if size is None else x[..., : size[0], : size[1]]


def haar_filters(channels: int) -> Tensor:
    """Return the four filters for every channel as a grouped convolution has them, (4 * channels, 1, 2, 2).

    Checkpoints carry them; :func:`haar_dwt2d` does not need them.
    """
    one = haar_idwt2d(torch.eye(4).view(4, 1, 4, 1, 1))  # each band alone, put together
    return one.repeat(channels, 1, 1, 1)
