"""SS2D: a map mixed by selective scans along routes through it, the token mixer of VMamba and its kin.

Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv 2401.10166: the final design (no gate, no bias in
the convolution) and the vanilla one of its first version (both). Parameters have the names of the official
checkpoints.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.channel_first import Linear2d
from striate.layers.cross_scan import ScanMode, cross_merge, cross_scan
from striate.layers.scan_routes import ScanRoutes, SSMInit

__all__ = ["SS2D"]


class SS2D(ScanRoutes):
    """Project, convolve each channel, scan along routes, add, normalise, project back.

    Args:
        dim: channels; (N, C, H, W) stays.
        d_state: N, states a channel.
        ssm_ratio: width of the scan, in units of ``dim``.
        dt_rank: rank of the step sizes' projection; ``"auto"``: dim / 16, rounded up.
        d_conv: side of the depthwise convolution; 1 for none.
        conv_bias: with a bias in it.
        gate: multiply what was scanned by SiLU of a second projection.
        scan: ``"cross2d"``, ``"bidi"`` or ``"unidi"`` of :func:`~striate.layers.cross_scan.cross_scan`, or
            ``"cascade"``: every row by itself in both directions, then every column of the result.
        ssm_init: see :class:`~striate.layers.scan_routes.ScanRoutes`.
        n_routes: for subclasses with routes of their own.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        dt_rank: int | Literal["auto"] = "auto",
        d_conv: int = 3,
        conv_bias: bool = False,
        gate: bool = False,
        scan: ScanMode | Literal["cascade"] = "cross2d",
        ssm_init: SSMInit = "v0",
        n_routes: int = 4,
    ) -> None:
        d_inner = int(ssm_ratio * dim)
        super().__init__(d_inner, n_routes, d_state, math.ceil(dim / 16) if dt_rank == "auto" else dt_rank, ssm_init)
        if scan not in {"cross2d", "bidi", "unidi", "cascade"}:
            raise InputError("scan", "SS2D", allowed="cross2d, bidi, unidi or cascade", got=scan)
        if d_conv < 1 or d_conv % 2 == 0:
            raise InputError("d_conv", "SS2D", allowed="odd and >= 1", got=d_conv)
        self.gate, self.scan_mode = gate, scan
        self.in_proj = Linear2d(dim, 2 * d_inner if gate else d_inner, bias=False)
        self.conv2d = (
            nn.Conv2d(d_inner, d_inner, d_conv, padding=d_conv // 2, groups=d_inner, bias=conv_bias)
            if d_conv > 1
            else None
        )
        self.out_norm = LayerNorm2d(d_inner, eps=1e-5)
        self.out_proj = Linear2d(d_inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        y = self.in_proj(x)
        if self.gate:
            y, z = y.chunk(2, dim=1)
        if self.conv2d is not None:
            y = self.conv2d(y)
        y = F.silu(y)
        height, width = y.shape[-2:]
        y = self._cascade(y) if self.scan_mode == "cascade" else self.merge(self.scan(self.unroll(y)), height, width)
        y = self.out_norm(y)
        if self.gate:
            y = y * F.silu(z)
        return self.out_proj(y)

    def unroll(self, x: Tensor) -> Tensor:
        """Return the routes (N, K, d_inner, L) through a map (N, d_inner, H, W)."""
        return cross_scan(x, cast(ScanMode, self.scan_mode))

    def merge(self, ys: Tensor, height: int, width: int) -> Tensor:
        """Return the map (N, d_inner, H, W) of what was scanned along the routes."""
        return cross_merge(ys, height, width, cast(ScanMode, self.scan_mode))

    def _cascade(self, x: Tensor) -> Tensor:
        for first in (0, 2):  # rows, then columns, each with two of the four routes' parameters
            lines = x.permute(0, 2, 1, 3)  # (N, H, D, W)
            both = torch.stack([lines, lines.flip(-1)], dim=2).flatten(0, 1)  # (N * H, 2, D, W)
            both = self.scan(both, slice(first, first + 2))
            x = (both[:, 0] + both[:, 1].flip(-1)).unflatten(0, lines.shape[:2]).permute(0, 2, 3, 1)  # (N, D, W, H)
        return x
