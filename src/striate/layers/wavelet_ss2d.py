"""A bidirectional scan of a map, and beside it a convolution of its wavelet bands: MobileMamba's global mixer.

He, Zhang, Chen, Hu, Gan, Wang, Wang, Wu, Xie, "MobileMamba: Lightweight Multi-Receptive Visual Mamba Network", CVPR
2025, arXiv 2411.15941, section 3.3; the wavelet branch is WTConv's (Finder et al., 2024, arXiv 2407.05848). Parameters
have the names of the authors' checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.conv_bn import ConvBN
from striate.layers.haar import haar_dwt2d, haar_filters, haar_idwt2d
from striate.layers.ss2d import SS2D

__all__ = ["BidirectionalSS2D", "Scale", "WaveletSS2D"]


class BidirectionalSS2D(SS2D):
    """SS2D with two routes, row by row and back, a gate, and batch norm in its projections; (N, dim, H, W) stays.

    Args:
        dim: channels.
        ssm_ratio: width of the scan, in units of ``dim``.
        d_state: states a channel.
    """

    in_proj: ConvBN  # type: ignore[assignment]
    out_proj: ConvBN  # type: ignore[assignment]

    def __init__(self, dim: int, ssm_ratio: float = 2.0, d_state: int = 1) -> None:
        super().__init__(dim, d_state, ssm_ratio, conv_bias=True, gate=True, ssm_init="v2", n_routes=2)
        self.in_proj, self.out_proj = ConvBN(dim, 2 * self.d_inner), ConvBN(self.d_inner, dim)

    def unroll(self, x: Tensor) -> Tensor:
        """Return the routes (N, 2, d_inner, H * W) through a map (N, d_inner, H, W)."""
        rows = x.flatten(2)
        return torch.stack([rows, rows.flip(-1)], dim=1)

    def merge(self, ys: Tensor, height: int, width: int) -> Tensor:
        """Return the sum of both routes as a map (N, d_inner, H, W)."""
        return (ys[:, 0] + ys[:, 1].flip(-1)).unflatten(-1, (height, width))


class Scale(nn.Module):
    """One weight a channel; (N, channels, H, W) stays."""

    def __init__(self, channels: int, initial: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, channels, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` times the weights."""
        return self.weight * x


class WaveletSS2D(nn.Module):
    """``base_scale * scan(x) + wavelet(x)``; (N, dim, H, W) stays.

    The wavelet branch takes the Haar transform, convolves every band by itself, scales it (by 0.1 at first) and
    transforms it back; the low band, as it was, goes down to the next level.

    Args:
        dim: channels.
        kernel_size: side of the convolution of the bands, odd.
        ssm_ratio: width of the scan, in units of ``dim``.
        levels: of the wavelet transform; 0 for the scan alone.
        scan: False passes ``x`` where the scan would stand.
    """

    def __init__(
        self, dim: int, kernel_size: int = 3, ssm_ratio: float = 2.0, levels: int = 1, scan: bool = True
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError("kernel_size", "WaveletSS2D", allowed="odd and >= 1", got=kernel_size)
        if levels < 0:
            raise InputError("levels", "WaveletSS2D", allowed=">= 0", got=levels)
        self.levels = levels
        if levels:
            # Not read: the transform is done by slicing. They are in the authors' checkpoints as parameters.
            self.wt_filter = nn.Parameter(haar_filters(dim), requires_grad=False)
            self.iwt_filter = nn.Parameter(haar_filters(dim), requires_grad=False)
        self.global_atten = BidirectionalSS2D(dim, ssm_ratio) if scan else nn.Identity()
        self.base_scale = Scale(dim)
        self.wavelet_convs = nn.ModuleList(
            nn.Conv2d(4 * dim, 4 * dim, kernel_size, padding=kernel_size // 2, groups=4 * dim, bias=False)
            for _ in range(levels)
        )
        self.wavelet_scale = nn.ModuleList(Scale(4 * dim, 0.1) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        y = self.base_scale(self.global_atten(x))
        return y + self.wavelet(x) if self.levels else y

    def wavelet(self, x: Tensor) -> Tensor:
        """Return what the wavelet branch adds, of the shape of ``x``.

        Raises:
            InputError: after some level a single pixel is left, and there are more levels.
        """
        if self.levels > 1 and max(x.shape[-2:]) <= 2 ** (self.levels - 1):
            allowed = f"maps of more than {2 ** (self.levels - 1)} pixels a side for {self.levels} levels"
            raise InputError("x", "WaveletSS2D", allowed=allowed, got=tuple(x.shape))
        sizes, mixed = [], []
        for conv, scale in zip(self.wavelet_convs, self.wavelet_scale, strict=True):
            sizes.append((x.shape[-2], x.shape[-1]))
            bands = haar_dwt2d(x)
            mixed.append(scale(conv(bands.flatten(1, 2))).unflatten(1, (-1, 4)))
            x = bands[:, :, 0]
        added = haar_idwt2d(mixed.pop(), sizes.pop())
        while mixed:
            bands = mixed.pop()
            bands = torch.cat([bands[:, :, :1] + added[:, :, None], bands[:, :, 1:]], dim=2)
            added = haar_idwt2d(bands, sizes.pop())
        return added

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        for name in ("wt_filter", "iwt_filter"):
            found = state_dict.get(prefix + name)
            if found is not None and self.levels:
                ours = haar_filters(found.shape[0] // 4).to(found)
                if found.is_meta or found.shape != ours.shape or not torch.allclose(found, ours, atol=1e-3):
                    lists[-1].append(f"{prefix}{name} is not the Haar wavelet, the only one that is supported.")
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)
