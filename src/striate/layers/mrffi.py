"""Channels in three parts with three receptive fields: the whole map, a neighbourhood, a pixel.

He et al., "MobileMamba: Lightweight Multi-Receptive Visual Mamba Network", CVPR 2025, arXiv 2411.15941, section 3.3
(multi-receptive field feature interaction).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from striate.errors import InputError
from striate.layers.conv_bn import ConvBN
from striate.layers.wavelet_ss2d import WaveletSS2D

__all__ = ["MRFFI", "LocalConv", "split_channels"]


def split_channels(dim: int, global_ratio: float, local_ratio: float) -> tuple[int, int, int]:
    """Return the channels of the global, the local and the identity part.

    The global part is int(global_ratio * dim) to the nearest multiple of 16, ties up; the local one is
    int(local_ratio * dim), or what is left if that is less.

    >>> split_channels(144, 0.8, 0.2)
    (112, 28, 4)
    """
    for name, ratio in (("global_ratio", global_ratio), ("local_ratio", local_ratio)):
        if not 0 <= ratio <= 1:
            raise InputError(name, "split_channels", allowed="in [0, 1]", got=ratio)
    whole = (int(global_ratio * dim) + 8) // 16 * 16
    if whole > dim:
        hint = "The global part is rounded to a multiple of 16."
        raise InputError("dim", "split_channels", allowed=f"at least {whole} here", got=dim, hint=hint)
    local = min(int(local_ratio * dim), dim - whole)
    return whole, local, dim - whole - local


class LocalConv(nn.Sequential):
    """A depthwise convolution, batch norm, ReLU, one weight a channel, batch norm; (N, dim, H, W) stays."""

    dwconv3x3: nn.Conv2d
    bn1: nn.BatchNorm2d
    dwconv1x1: nn.Conv2d
    bn2: nn.BatchNorm2d

    def __init__(self, dim: int, kernel_size: int) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError("kernel_size", "LocalConv", allowed="odd and >= 1", got=kernel_size)
        depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
        pointwise = nn.Conv2d(dim, dim, 1, groups=dim, bias=False)
        layers = {"dwconv3x3": depthwise, "bn1": nn.BatchNorm2d(dim), "relu": nn.ReLU(inplace=True)}
        super().__init__(OrderedDict(layers, dwconv1x1=pointwise, bn2=nn.BatchNorm2d(dim)))

    def fuse(self) -> nn.Sequential:
        """Return two convolutions with a ReLU between, which do the same in eval mode."""
        first, second = fuse_conv_bn_eval(self.dwconv3x3, self.bn1), fuse_conv_bn_eval(self.dwconv1x1, self.bn2)
        return nn.Sequential(first, nn.ReLU(inplace=True), second)


class MRFFI(nn.Module):
    """Global, local and identity parts side by side, then ReLU and one projection over all; (N, dim, H, W) stays.

    Args:
        dim: channels.
        global_ratio, local_ratio: see :func:`split_channels`.
        kernel_size: of the local convolution and of the one on the wavelet's bands; odd.
        ssm_ratio, levels, scan: of :class:`~striate.layers.wavelet_ss2d.WaveletSS2D`.
    """

    def __init__(
        self,
        dim: int,
        global_ratio: float = 0.8,
        local_ratio: float = 0.2,
        kernel_size: int = 3,
        ssm_ratio: float = 2.0,
        levels: int = 1,
        scan: bool = True,
    ) -> None:
        super().__init__()
        self.parts = split_channels(dim, global_ratio, local_ratio)
        whole, local, _ = self.parts
        self.global_op = WaveletSS2D(whole, kernel_size, ssm_ratio, levels, scan) if whole else nn.Identity()
        self.local_op = LocalConv(local, kernel_size) if local else nn.Identity()
        self.proj = nn.Sequential(nn.ReLU(), ConvBN(dim, dim, bn_weight=0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        whole, local, rest = x.split(self.parts, dim=1)
        return self.proj(torch.cat([self.global_op(whole), self.local_op(local), rest], dim=1))
