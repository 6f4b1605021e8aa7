"""The MobileViT block: a convolution sees the neighbourhood, a transformer across patches sees the rest of the map.

Mehta and Rastegari, "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer", ICLR 2022,
arXiv 2110.02178, section 3.1. The map is cut into small patches; attention runs across patches, for each pixel
position inside a patch apart. Every pixel has seen its neighbourhood by the convolution before, so that it sees the
whole map after, and needs no position embedding: the order of the pixels is never lost.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from striate.errors import InputError

__all__ = ["EncoderLayer", "MobileViTBlock", "PatchGrid", "conv_norm_act", "fold_patches", "unfold_patches"]


class PatchGrid(NamedTuple):
    """How a map was cut: what :func:`fold_patches` needs to put it together again.

    Attributes:
        batch: maps.
        size: (H, W) of the map before it was resized.
        rows, columns: of patches.
        patch: (height, width) in pixels.
    """

    batch: int
    size: tuple[int, int]
    rows: int
    columns: int
    patch: tuple[int, int]


def unfold_patches(x: Tensor, patch: tuple[int, int]) -> tuple[Tensor, PatchGrid]:
    """Cut a map into patches and bring together the pixels that stand at the same place of every patch.

    A map whose sides are not multiples of the patch's is resized (bilinear) up to the next multiples first, as in
    the authors' code: with zeros added, attention would see pixels that do not exist.

    Args:
        x: (B, d, H, W).
        patch: (height, width) in pixels, neither above the map's.

    Returns:
        Tokens (B P, N, d), P = height x width pixels of a patch, N patches, both in rows from the top left; and the
        grid that undoes it.

    >>> tokens, grid = unfold_patches(torch.arange(16.0).view(1, 1, 4, 4), (2, 2))
    >>> tokens[..., 0].int().tolist()
    [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]
    """
    if x.dim() != 4:
        raise InputError("x", "unfold_patches", allowed="(B, d, H, W)", got=tuple(x.shape))
    batch, dim, height, width = x.shape
    ph, pw = patch
    if not (1 <= ph <= height and 1 <= pw <= width):
        allowed = f">= 1 and no larger than the map ({height} x {width})"
        raise InputError("patch", "unfold_patches", allowed=allowed, got=patch)
    rows, columns = math.ceil(height / ph), math.ceil(width / pw)
    if (rows * ph, columns * pw) != (height, width):
        x = F.interpolate(x, size=(rows * ph, columns * pw), mode="bilinear", align_corners=False)
    x = x.reshape(batch, dim, rows, ph, columns, pw).permute(0, 3, 5, 2, 4, 1)
    return x.reshape(batch * ph * pw, rows * columns, dim), PatchGrid(batch, (height, width), rows, columns, patch)


def fold_patches(tokens: Tensor, grid: PatchGrid) -> Tensor:
    """Undo :func:`unfold_patches`: (B P, N, d) to (B, d, H, W), resized back where it was resized."""
    ph, pw = grid.patch
    dim = tokens.shape[-1]
    x = tokens.reshape(grid.batch, ph, pw, grid.rows, grid.columns, dim).permute(0, 5, 3, 1, 4, 2)
    x = x.reshape(grid.batch, dim, grid.rows * ph, grid.columns * pw)
    if (grid.rows * ph, grid.columns * pw) != grid.size:
        x = F.interpolate(x, size=grid.size, mode="bilinear", align_corners=False)
    return x


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
    act: bool = True,
) -> nn.Sequential:
    """Return a convolution without bias, batch norm and, unless ``act`` is False, SiLU; sides are kept at stride 1."""
    padding = dilation * (kernel_size - 1) // 2
    parts: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)),
        ("bn", nn.BatchNorm2d(out_channels)),
    ]
    return nn.Sequential(OrderedDict([*parts, ("act", nn.SiLU())] if act else parts))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer with SiLU in its feed-forward part, on (B, N, dim).

    Args:
        dim: width of a token.
        num_heads: divides ``dim``.
        ffn_dim: width inside the feed-forward part; default ``2 * dim``.
        dropout: after the attention's and the feed-forward part's output.
        attn_dropout: on the attention's weights.
        ffn_dropout: inside the feed-forward part.
        drop_path: stochastic depth, of each of the two branches.
        attention: False puts a second feed-forward part of (nearly) the attention's size in its place, so that
            tokens no longer see each other: what the attention is to be compared with at equal parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        ffn_dim: int | None = None,
        *,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        drop_path: float = 0.0,
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _Attention(dim, num_heads, attn_dropout) if attention else _FeedForward(dim, 2 * dim, ffn_dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _FeedForward(dim, ffn_dim or 2 * dim, ffn_dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        x = x + self.drop_path(self.dropout(self.attn(self.norm1(x))))
        return x + self.drop_path(self.dropout(self.mlp(self.norm2(x))))


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(
                "num_heads", "MobileViTBlock", allowed=f"a divisor of transformer_dim {dim}", got=num_heads
            )
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = (
            self.qkv(x).reshape(n, tokens, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, dim))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.SiLU()
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.act(self.fc1(x))))


class MobileViTBlock(nn.Module):
    """Local by a convolution, global by a transformer across patches, then both fused; shapes stay as they are.

    There is no addition around the block: the input comes back by concatenation in the fusion (section 3.1). Put it
    into any network, behind a layer of ``in_channels`` outputs.

    Args:
        in_channels: C of the map.
        transformer_dim: d, width of the tokens; a multiple of ``num_heads``.
        ffn_dim: width inside the transformer's feed-forward part; default ``2 * transformer_dim``.
        num_layers: of the transformer.
        num_heads: of its attention.
        patch_size: (height, width) of a patch, or one number for both. With patches larger than ``kernel_size`` some
            pixels of the map reach no pixel of other patches (section 3.1).
        kernel_size: odd, of the local and of the fusing convolution.
        dilation: of the local convolution.
        dropout, attn_dropout, ffn_dropout, drop_path, attention: see :class:`EncoderLayer`.
        fusion: False returns the projected map alone, without the input.

    Raises:
        InputError: ``transformer_dim`` is not a multiple of ``num_heads``, an even ``kernel_size``, or (on a forward
            pass) a patch larger than the map.
    """

    def __init__(
        self,
        in_channels: int,
        transformer_dim: int,
        ffn_dim: int | None = None,
        num_layers: int = 2,
        num_heads: int = 4,
        patch_size: int | tuple[int, int] = 2,
        kernel_size: int = 3,
        dropout: float = 0.1,
        attn_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        drop_path: float = 0.0,
        dilation: int = 1,
        fusion: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        if min(height, width) < 1:
            raise InputError("patch_size", "MobileViTBlock", allowed=">= 1", got=patch_size)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError("kernel_size", "MobileViTBlock", allowed="odd and >= 1", got=kernel_size)
        self.patch_size = (height, width)
        self.conv_kxk = conv_norm_act(in_channels, in_channels, kernel_size, dilation=dilation)
        self.conv_1x1 = nn.Conv2d(in_channels, transformer_dim, 1, bias=False)
        self.transformer = nn.Sequential(
            *[
                EncoderLayer(
                    transformer_dim,
                    num_heads,
                    ffn_dim,
                    dropout=dropout,
                    attn_dropout=attn_dropout,
                    ffn_dropout=ffn_dropout,
                    drop_path=drop_path,
                    attention=attention,
                )
                for _ in range(num_layers)
            ]
        )
        self.norm = nn.LayerNorm(transformer_dim)
        self.conv_proj = conv_norm_act(transformer_dim, in_channels, 1)
        self.conv_fusion = conv_norm_act(2 * in_channels, in_channels, kernel_size) if fusion else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) for (N, C, H, W)."""
        tokens, grid = unfold_patches(self.conv_1x1(self.conv_kxk(x)), self.patch_size)
        y = self.conv_proj(fold_patches(self.norm(self.transformer(tokens)), grid))
        return y if self.conv_fusion is None else self.conv_fusion(torch.cat((x, y), dim=1))
