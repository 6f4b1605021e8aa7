"""Multi-head relation aggregators: a learned static affinity in a small window, or attention over the whole map.

Li, Wang, Zhang, Gao, Song, Liu, Li, Qiao, "UniFormer: Unifying Convolution and Self-attention for Visual Recognition",
TPAMI 2023, arXiv 2201.09450, section 3. Both, and the position embedding, work on images and on video (``ndim``).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from striate.errors import InputError

__all__ = ["MLP", "DynamicPositionEmbedding", "GlobalMHRA", "LocalMHRA", "PatchEmbed", "batch_norm", "conv"]

NDim = Literal[2, 3]


def conv(ndim: NDim) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """Return the convolution over images or video."""
    return nn.Conv2d if ndim == 2 else nn.Conv3d


def batch_norm(dim: int, ndim: NDim) -> nn.Module:
    """Return the batch norm over images or video."""
    return nn.BatchNorm2d(dim) if ndim == 2 else nn.BatchNorm3d(dim)


class DynamicPositionEmbedding(nn.Module):
    """Add a depthwise 3 x 3 convolution of the map to it; its zero padding tells where the border is (Eq. 4).

    Args:
        dim: channels; (N, C, [T,] H, W) stays.
        ndim: 2 for images, 3 for video.
    """

    def __init__(self, dim: int, ndim: NDim = 2) -> None:
        super().__init__()
        self.proj = conv(ndim)(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return x + self.proj(x)


class LocalMHRA(nn.Module):
    """Affinity is a parameter for each relative position in a window, one for each channel (Eq. 5 and 6).

    So the aggregator is a linear layer, a depthwise convolution and a linear layer, with nothing between them.

    Args:
        dim: channels; (N, C, [T,] H, W) stays.
        kernel_size: side of the window, odd.
        ndim: 2 for images, 3 for video.
    """

    def __init__(self, dim: int, kernel_size: int = 5, ndim: NDim = 2) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError("kernel_size", "LocalMHRA", allowed="odd and >= 1", got=kernel_size)
        layer = conv(ndim)
        self.conv1 = layer(dim, dim, 1)
        self.affinity = layer(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.conv2 = layer(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return self.conv2(self.affinity(self.conv1(x)))


class GlobalMHRA(nn.Module):
    """Affinity is softmax attention over all tokens, or over those of the same window (Eq. 7).

    Args:
        dim: width of a token.
        num_heads: divides ``dim``.
        window: side of the windows that a map is cut into; None for the whole map. Maps are padded with zeros to
            whole windows, as in the authors' detectors.
        qkv_bias: with a bias in queries, keys and values.
    """

    def __init__(self, dim: int, num_heads: int, window: int | None = None, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError("num_heads", "GlobalMHRA", allowed=f"a divisor of dim ({dim})", got=num_heads)
        if window is not None and window < 1:
            raise InputError("window", "GlobalMHRA", allowed=">= 1, or None", got=window)
        self.num_heads, self.window = num_heads, window
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, …, C) -> (N, …, C): every token sees every other; with a window the input has to be (N, H, W, C)."""
        if self.window is None:
            return self._attend(x.flatten(1, -2)).view(x.shape)
        if x.dim() != 4:
            raise InputError("x", "GlobalMHRA", allowed="(N, H, W, C) with a window", got=tuple(x.shape))
        _, height, width, _ = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        windows = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)  # (N, h, w, side, side, C)
        seen = self._attend(windows.flatten(0, 2).flatten(1, 2)).view(windows.shape)
        return seen.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """The perceptron of a block: two linear layers, or 1 x 1 convolutions, with a GELU between.

    Args:
        fc1, fc2: the layers.
    """

    def __init__(self, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = fc1, nn.GELU(), fc2

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layers make of ``x``."""
        return self.fc2(self.act(self.fc1(x)))


class PatchEmbed(nn.Module):
    """Separate patches by a strided convolution, then a layer norm over channels; or convolutions and batch norms.

    Args:
        proj: (N, C, …) to a smaller map.
        norm: over the last axis of (N, …, C); None for none.
    """

    def __init__(self, proj: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.proj, self.norm = proj, norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map, channels first."""
        x = self.proj(x)
        return x if self.norm is None else self.norm(x.movedim(1, -1)).movedim(-1, 1)
