"""UniFormer: convolution-like relations in the shallow stages, attention in the deep ones, for images and video.

Li, Wang, Zhang, Gao, Song, Liu, Li, Qiao, "UniFormer: Unifying Convolution and Self-attention for Visual Recognition",
TPAMI 2023, arXiv 2201.09450; its video networks: ICLR 2022, arXiv 2201.04676. One definition serves both (``ndim``).
The authors' weights are under Apache-2.0 (MIT for the video repository's older files). Any image size is taken; the
official code fixes it. L is counted at 19.7 G multiplications, which does not fit the published 12.6 G.

The light networks, which prune tokens on the way, are in :mod:`striate.models.uniformer_light`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.init import init_linear
from striate.layers.mhra import (
    MLP,
    DynamicPositionEmbedding,
    GlobalMHRA,
    LocalMHRA,
    NDim,
    PatchEmbed,
    batch_norm,
    conv,
)
from striate.layers.recompute import recomputed
from striate.models.head import PooledClassifier, check_least
from striate.models.variant import Variant, build, rename_weights, unwrap_weights

__all__ = [
    "VARIANTS",
    "GlobalBlock",
    "LocalBlock",
    "SplitBlock",
    "UniFormer",
    "checkpoint_filter_fn",
    "uniformer_base",
    "uniformer_base_ls",
    "uniformer_large_ls",
    "uniformer_micro",
    "uniformer_small",
    "uniformer_small_plus",
    "uniformer_small_plus_dim64",
]


class LocalBlock(nn.Module):
    """Position embedding, local aggregator, perceptron of 1 x 1 convolutions; batch norms.

    Args:
        dim: channels; (N, C, [T,] H, W) stays.
        mlp_ratio: width of the perceptron, in units of ``dim``.
        drop_path: share of samples whose branches are dropped in training.
        kernel_size: of the aggregator.
        ndim: 2 for images, 3 for video.
    """

    def __init__(
        self, dim: int, mlp_ratio: float = 4.0, drop_path: float = 0.0, kernel_size: int = 5, ndim: NDim = 2
    ) -> None:
        super().__init__()
        hidden, layer = int(dim * mlp_ratio), conv(ndim)
        self.pos_embed = DynamicPositionEmbedding(dim, ndim)
        self.norm1, self.attn = batch_norm(dim, ndim), LocalMHRA(dim, kernel_size, ndim)
        self.norm2, self.mlp = batch_norm(dim, ndim), MLP(layer(dim, hidden, 1), layer(hidden, dim, 1))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x = self.pos_embed(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class GlobalBlock(nn.Module):
    """Position embedding, attention, perceptron; layer norms.

    Args:
        dim: channels; (N, C, [T,] H, W) stays.
        num_heads: of the attention.
        mlp_ratio: width of the perceptron, in units of ``dim``.
        drop_path: share of samples whose branches are dropped in training.
        window: of the attention; images only.
        layer_scale: start of a factor for each channel of both branches; None for none.
        ndim: 2 for images, 3 for video.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        window: int | None = None,
        layer_scale: float | None = None,
        ndim: NDim = 2,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.pos_embed = DynamicPositionEmbedding(dim, ndim)
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), GlobalMHRA(dim, num_heads, window)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), MLP(nn.Linear(dim, hidden), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x = self.pos_embed(x).movedim(1, -1)
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        x = x + self.drop_path(y if self.gamma_2 is None else self.gamma_2 * y)
        return x.movedim(-1, 1)


class SplitBlock(nn.Module):
    """The video block with attention over time first, then over each frame; (N, C, T, H, W) stays.

    The second residual is the block's input, not what attention over time made of it: as in the authors' code. At
    the start attention over time gives zero.

    Args:
        dim, num_heads, mlp_ratio, drop_path: as in :class:`GlobalBlock`.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.pos_embed = DynamicPositionEmbedding(dim, 3)
        self.t_norm, self.t_attn = nn.LayerNorm(dim, eps=1e-6), GlobalMHRA(dim, num_heads)
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), GlobalMHRA(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), MLP(nn.Linear(dim, hidden), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return a video of the same shape."""
        x = self.pos_embed(x).movedim(1, -1)  # (N, T, H, W, C)
        frames = x.shape[1]
        y = x.movedim(1, 3).flatten(0, 2)  # (N H W, T, C)
        y = y + self.drop_path(self.t_attn(self.t_norm(y)))
        y = y.unflatten(0, (x.shape[0], *x.shape[2:4])).movedim(3, 1).flatten(0, 1)  # (N T, H, W, C)
        x = x + self.drop_path(self.attn(self.norm1(y)).unflatten(0, (-1, frames)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.movedim(-1, 1)


class UniFormer(PooledClassifier):
    """The network: four stages, each a patch embedding and blocks, then batch norm, mean and a linear head.

    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        head_dim: channels of an attention head.
        mlp_ratio: of every block.
        conv_stem: overlapping convolutions instead of separate patches.
        layer_scale: of the attention blocks; None for none.
        placement: a letter a stage, ``"L"`` for local blocks or ``"G"`` for attention.
        kernel_size: of the local blocks.
        window: for dense tasks: attention of the third stage in windows of this side.
        hybrid: with a window: every fourth block of the third stage sees the whole map.
        split: for video: attention over time and space apart.
        time_embed: for video: patch embeddings 2 to 4 look at three frames instead of one.
        ndim: 2 for images (N, C, H, W), 3 for video (N, C, T, H, W), whose stem keeps (T + 1) // 2 frames.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none.
        global_pool: ``"avg"``; ``""``, with 0 classes, for the last map.
        drop_rate: dropout before the head.
        drop_path_rate: of the last block, rising linearly from 0 at the first.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 8, 3),
        dims: Sequence[int] = (64, 128, 320, 512),
        head_dim: int = 64,
        mlp_ratio: float = 4.0,
        conv_stem: bool = False,
        layer_scale: float | None = None,
        placement: str = "LLGG",
        kernel_size: int = 5,
        window: int | None = None,
        hybrid: bool = False,
        split: bool = False,
        time_embed: bool = False,
        ndim: NDim = 2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(depths) == len(dims) == len(placement) or set(placement) - set("LG"):
            allowed = f"L or G for each of {len(depths)} stages, as many dims"
            raise InputError("placement", "UniFormer", allowed=allowed, got=(placement, tuple(dims)))
        if ndim not in {2, 3} or (ndim == 2 and (split or time_embed)) or (ndim == 3 and (window or conv_stem)):
            allowed = "2, or 3 without window and conv_stem; split and time_embed go with 3"
            raise InputError("ndim", "UniFormer", allowed=allowed, got=ndim)
        wrong = [dim for dim, letter in zip(dims, placement, strict=True) if letter == "G" and dim % head_dim]
        if wrong:
            raise InputError("dims", "UniFormer", allowed=f"multiples of head_dim ({head_dim}) in G stages", got=wrong)
        self._set_head(num_classes, global_pool)
        self.num_features = dims[-1]
        self.stages, self.least = len(depths), 1 if conv_stem else 4 * 2 ** (len(depths) - 1)
        self.feature_info: list[dict[str, Any]] = []
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        channels = in_chans
        for i, (depth, dim, letter) in enumerate(zip(depths, dims, placement, strict=True)):
            embed = _embed(channels, dim, first=i == 0, conv_stem=conv_stem, time=time_embed, ndim=ndim)
            self.add_module(f"patch_embed{i + 1}", embed)
            blocks: list[nn.Module] = []
            for j in range(depth):
                rate = next(rates)
                if letter == "L":
                    blocks.append(LocalBlock(dim, mlp_ratio, rate, kernel_size, ndim))
                elif split:
                    blocks.append(SplitBlock(dim, dim // head_dim, mlp_ratio, rate))
                else:
                    here = window if i == 2 and not (hybrid and j % 4 == 3) else None
                    blocks.append(GlobalBlock(dim, dim // head_dim, mlp_ratio, rate, here, layer_scale, ndim))
            self.add_module(f"blocks{i + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**i, "module": f"blocks{i + 1}.{depth - 1}"})
            channels = dim
        self.norm = batch_norm(dims[-1], ndim)
        self.drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(init_linear)
        for module in self.modules():
            if isinstance(module, SplitBlock):
                nn.init.zeros_(module.t_attn.qkv.weight)
                nn.init.ones_(module.t_attn.proj.weight)  # with zeros on both sides neither would ever move

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map (N, C, [T / 2,] H / 32, W / 32), normalised.

        Raises:
            InputError: the image is smaller than a patch of the last stage, 32 x 32 as published.
        """
        check_least(x, self.least, type(self).__name__)
        for i in range(self.stages):
            x = self.get_submodule(f"patch_embed{i + 1}")(x)
            for block in self.get_submodule(f"blocks{i + 1}").children():
                again = self.grad_checkpointing and self.training
                x = recomputed(block, x) if again else block(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or the pooled features (N, C), of :meth:`forward_features`'s map."""
        x = self.drop(self.pooled(x))
        return x if pre_logits else self.head(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns for a learning rate by depth; with ``coarse`` a stage is one depth, else a block is."""
        fine = [(r"^patch_embed(\d)", (0,)), (r"^blocks(\d)\.(\d+)", None)]
        return {"stem": r"^patch_embed1", "blocks": r"^(?:patch_embed|blocks)(\d)" if coarse else fine}


def _embed(channels: int, dim: int, *, first: bool, conv_stem: bool, time: bool, ndim: NDim) -> PatchEmbed:
    if conv_stem:
        half = dim // 2
        layers: list[nn.Module] = [nn.Conv2d(channels, dim, 3, 2, 1), nn.BatchNorm2d(dim)]
        if first:
            layers = [nn.Conv2d(channels, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU()]
            layers += [nn.Conv2d(half, dim, 3, 2, 1), nn.BatchNorm2d(dim)]
        return PatchEmbed(nn.Sequential(*layers))
    side = 4 if first else 2
    if ndim == 2:
        return PatchEmbed(nn.Conv2d(channels, dim, side, side), nn.LayerNorm(dim))
    frames, padding = (3, 1) if first or time else (1, 0)
    stride = (2 if first else 1, side, side)
    return PatchEmbed(nn.Conv3d(channels, dim, (frames, side, side), stride, (padding, 0, 0)), nn.LayerNorm(dim))


_RENAMED = (
    (r"\.pos_embed\.(weight|bias)$", r".pos_embed.proj.\1"),
    (r"^(blocks\d\.\d+)\.(conv[12])\.", r"\1.attn.\2."),
    (r"\.attn\.(weight|bias)$", r".attn.affinity.\1"),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Map an authors' checkpoint to our names.

    Wrapped (``model``, ``model_state``, ``state_dict``) or not; the auxiliary head of token labelling is dropped.
    """
    weights = unwrap_weights(state_dict)
    return rename_weights({name: w for name, w in weights.items() if not name.startswith("aux_head.")}, _RENAMED)


_PLUS: dict[str, Any] = {"depths": (3, 5, 9, 3), "conv_stem": True}
_BASE: dict[str, Any] = {"depths": (5, 8, 20, 7)}
_LARGE: dict[str, Any] = {"depths": (5, 10, 24, 7), "dims": (128, 192, 448, 640), "layer_scale": 1e-6}


def _variant(parameters: int, macs: float, top1: float | None, **options: Any) -> Variant:
    return Variant("uniformer", parameters, macs, top1, "Apache-2.0", crop_pct=0.9, options=options)


VARIANTS = {
    "uniformer_small": _variant(21_545_256, 3.632, 82.9),
    "uniformer_small_plus": _variant(24_032_552, 4.201, 83.4, head_dim=32, **_PLUS),
    "uniformer_small_plus_dim64": _variant(24_032_552, 4.201, 83.4, **_PLUS),
    "uniformer_base": _variant(49_776_552, 8.249, 83.8, **_BASE),
    "uniformer_base_ls": _variant(49_796_520, 8.249, 83.9, layer_scale=1e-6, **_BASE),
    "uniformer_large_ls": _variant(99_457_768, 19.683, 85.6, **_LARGE),
}
default_cfgs = generate_default_cfgs(
    {
        name: variant.config(first_conv=f"patch_embed1.proj{'.0' if 'plus' in name else ''}", classifier="head")
        for name, variant in VARIANTS.items()
    }
)


def _build(name: str, pretrained: bool, **options: Any) -> nn.Module:
    return build(UniFormer, name, VARIANTS[name], checkpoint_filter_fn, pretrained, **options)


@register_model
def uniformer_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """UniFormer-S: 21.5 M parameters, 3.6 G."""
    return _build("uniformer_small", pretrained, **options)


@register_model
def uniformer_small_plus(pretrained: bool = False, **options: Any) -> nn.Module:
    """UniFormer-S+: overlapping convolutions, heads of 32 channels; 24.0 M parameters, 4.2 G."""
    return _build("uniformer_small_plus", pretrained, **options)


@register_model
def uniformer_small_plus_dim64(pretrained: bool = False, **options: Any) -> nn.Module:
    """UniFormer-S+ of the re-release, heads of 64 channels: 24.0 M parameters, 4.2 G."""
    return _build("uniformer_small_plus_dim64", pretrained, **options)


@register_model
def uniformer_base(pretrained: bool = False, **options: Any) -> nn.Module:
    """UniFormer-B: 49.8 M parameters, 8.2 G."""
    return _build("uniformer_base", pretrained, **options)


@register_model
def uniformer_base_ls(pretrained: bool = False, **options: Any) -> nn.Module:
    """UniFormer-B with layer scale: 49.8 M parameters, 8.2 G."""
    return _build("uniformer_base_ls", pretrained, **options)


@register_model
def uniformer_large_ls(pretrained: bool = False, **options: Any) -> nn.Module:
    """UniFormer-L with layer scale: 99.5 M parameters, 19.7 G."""
    return _build("uniformer_large_ls", pretrained, **options)


def uniformer_micro(in_chans: int = 3, num_classes: int = 10, **options: Any) -> UniFormer:
    """Return a UniFormer for laptops: depths 1, 1, 2, 1, 16 to 96 channels, heads of 16 channels."""
    small = {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 96), "head_dim": 16}
    return UniFormer(**{**small, "in_chans": in_chans, "num_classes": num_classes, **options})
