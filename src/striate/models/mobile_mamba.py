"""MobileMamba: three stages from stride 16 on, each block a mix of wavelet scan, convolution and identity.

He, Zhang, Chen, Hu, Gan, Wang, Wang, Wu, Xie, "MobileMamba: Lightweight Multi-Receptive Visual Mamba Network", CVPR
2025, arXiv 2411.15941. The authors' code and weights are MIT. As in their code, and not in the paper's figure, a block
has one more skip around all of its own residuals, so that a fresh block doubles its input. The authors' plain PyTorch
merging of the two routes mixes the images of a batch; here it does not, and it equals theirs for single images.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath, SqueezeExcite
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.conv_bn import BNLinear, ConvBN, Residual, fold
from striate.layers.mrffi import MRFFI
from striate.layers.recompute import recomputed
from striate.models.head import PooledClassifier, check_least
from striate.models.variant import Variant, build, unwrap_weights

__all__ = [
    "FFN",
    "VARIANTS",
    "Downsample",
    "MobileMamba",
    "MobileMambaBlock",
    "checkpoint_filter_fn",
    "mobile_mamba_b1",
    "mobile_mamba_b2",
    "mobile_mamba_b4",
    "mobile_mamba_s6",
    "mobile_mamba_t2",
    "mobile_mamba_t4",
]

_SMALLEST = 64  # pixels a side: the last stage then has one


class FFN(nn.Module):
    """Two pointwise convolutions, twice as wide in between, ReLU; (N, dim, H, W) stays."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pw1, self.act, self.pw2 = ConvBN(dim, 2 * dim), nn.ReLU(), ConvBN(2 * dim, dim, bn_weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return self.pw2(self.act(self.pw1(x)))


class MobileMambaBlock(nn.Module):
    """Depthwise convolution, FFN, mixer, depthwise convolution, FFN, each a residual; a skip around them all.

    Args:
        dim: channels; (N, dim, H, W) stays.
        drop_path: share of samples for which the whole block is skipped in training.
        has_skip: with the skip around the block.
        **mixer: ``global_ratio``, ``local_ratio``, ``kernel_size``, ``ssm_ratio``, ``levels``, ``scan`` of
            :class:`~striate.layers.mrffi.MRFFI`.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, has_skip: bool = True, **mixer: Any) -> None:
        super().__init__()
        self.has_skip = has_skip
        self.dw0 = Residual(ConvBN(dim, dim, 3, groups=dim, bn_weight=0.0))
        self.ffn0 = Residual(FFN(dim))
        self.mixer = Residual(nn.Sequential(OrderedDict(attn=MRFFI(dim, **mixer))))
        self.dw1 = Residual(ConvBN(dim, dim, 3, groups=dim, bn_weight=0.0))
        self.ffn1 = Residual(FFN(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        y = self.ffn1(self.dw1(self.mixer(self.ffn0(self.dw0(x)))))
        return x + self.drop_path(y) if self.has_skip else y


class Downsample(nn.Module):
    """An inverted residual of stride 2 with squeeze-and-excitation; (N, dim, H, W) -> (N, out_dim, H / 2, W / 2)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        hidden = 4 * dim
        self.conv1, self.act = ConvBN(dim, hidden), nn.ReLU()
        self.conv2 = ConvBN(hidden, hidden, 3, 2, groups=hidden)
        self.se = SqueezeExcite(hidden, 0.25)
        self.conv3 = ConvBN(hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map."""
        return self.conv3(self.se(self.act(self.conv2(self.act(self.conv1(x))))))


class MobileMamba(PooledClassifier):
    """The network: a stem of stride 16, three stages of blocks, batch norm and a linear head.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        global_ratio, local_ratio: shares of the channels, for each stage.
        kernels: sides of the mixer's convolutions, for each stage.
        ssm_ratio: width of the scans, in units of their channels.
        levels: of the wavelet transform; 0 for none.
        scan: with the scans.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none.
        global_pool: ``"avg"``; ``""``, with 0 classes, for the last map.
        drop_rate: dropout before the head.
        drop_path_rate: of the last block, rising linearly from 0 at the first.
        distillation: with a second head for a teacher's labels. In training the network then returns the pair
            (logits, logits of the second head); else their mean.
    """

    blocks1: nn.Sequential
    blocks2: nn.Sequential
    blocks3: nn.Sequential
    head: nn.Module
    head_dist: nn.Module

    def __init__(
        self,
        dims: Sequence[int] = (192, 384, 448),
        depths: Sequence[int] = (1, 2, 2),
        global_ratio: Sequence[float] = (0.8, 0.7, 0.6),
        local_ratio: Sequence[float] = (0.2, 0.2, 0.3),
        kernels: Sequence[int] = (7, 5, 3),
        ssm_ratio: float = 2.0,
        levels: int = 1,
        scan: bool = True,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        distillation: bool = False,
    ) -> None:
        super().__init__()
        stages = {"depths": depths, "global_ratio": global_ratio, "local_ratio": local_ratio, "kernels": kernels}
        for name, values in {"dims": dims, **stages}.items():
            if len(values) != 3:
                raise InputError(name, "MobileMamba", allowed="three numbers, one a stage", got=values)
        if dims[0] % 8:
            raise InputError("dims", "MobileMamba", allowed="a multiple of 8 in the first stage", got=dims)
        self.num_features, self.distillation = dims[-1], distillation
        widths = [in_chans, dims[0] // 8, dims[0] // 4, dims[0] // 2, dims[0]]
        stem: list[nn.Module] = []
        for before, after in pairwise(widths):
            stem += [ConvBN(before, after, 3, 2), nn.ReLU()]
        self.patch_embed = nn.Sequential(*stem[:-1])
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.feature_info: list[dict[str, Any]] = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks: list[nn.Module] = []
            if i:
                blocks += [_sandwich(dims[i - 1]), Downsample(dims[i - 1], dim), _sandwich(dim)]
            mixer: dict[str, Any] = {
                "global_ratio": global_ratio[i],
                "local_ratio": local_ratio[i],
                "kernel_size": kernels[i],
            }
            for _ in range(depth):
                blocks.append(
                    MobileMambaBlock(dim, rates.pop(0), **mixer, ssm_ratio=ssm_ratio, levels=levels, scan=scan)
                )
            self.add_module(f"blocks{i + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": dim, "reduction": 16 * 2**i, "module": f"blocks{i + 1}"})
        self.drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map (N, C, H / 64, W / 64).

        Raises:
            InputError: the image is smaller than 64 x 64.
        """
        check_least(x, _SMALLEST, "MobileMamba")
        x = self.patch_embed(x)
        for stage in (self.blocks1, self.blocks2, self.blocks3):
            x = recomputed(stage, x) if self.grad_checkpointing and self.training else stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Return logits, or the pooled features (N, C), of :meth:`forward_features`'s map."""
        x = self.drop(self.pooled(x))
        if pre_logits or not self.distillation:
            return x if pre_logits else self.head(x)
        both = self.head(x), self.head_dist(x)
        return both if self.training else (both[0] + both[1]) / 2

    def forward(self, x: Tensor) -> Any:
        """Return logits (N, num_classes); with ``distillation``, in training, a pair of them."""
        return self.forward_head(self.forward_features(x))

    def fuse(self) -> MobileMamba:
        """Return a copy for inference with every batch norm, and depthwise skips, folded into the convolutions.

        It gives the same logits in eval mode and cannot be trained further as this network would be.
        """
        fused = fold(copy.deepcopy(self).eval())
        assert isinstance(fused, MobileMamba)
        return fused

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns for a learning rate by depth; with ``coarse`` a stage is one depth, else a block is."""
        return {"stem": r"^patch_embed", "blocks": r"^blocks(\d)" if coarse else r"^blocks(\d)\.(\d+)"}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network another head, or two of them with ``distillation``, freshly drawn; 0 for none."""
        self._set_head(num_classes, global_pool)
        for name in ("head", "head_dist") if self.distillation else ("head",):
            self._replace(name, self._new_head())

    def _new_head(self) -> nn.Module:
        return BNLinear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()


def _sandwich(dim: int) -> nn.Sequential:
    return nn.Sequential(Residual(ConvBN(dim, dim, 3, groups=dim)), Residual(FFN(dim)))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Map an authors' checkpoint to our names, which are theirs.

    Taken are checkpoints wrapped (``net_E``: the averaged weights, ``net``, ``state_dict``, ``model_ema``, ``model``)
    or not, saved from a distributed or averaged network (``module.``) or from a detector (``backbone.``) or not.
    """
    named = unwrap_weights(state_dict)
    if any(name.startswith("backbone.") for name in named):
        named = {name.removeprefix("backbone."): v for name, v in named.items() if name.startswith("backbone.")}
    return named


def _variant(parameters: int, macs: float, top1: float, side: int, **options: Any) -> Variant:
    return Variant("mobile-mamba", parameters, macs, top1, "MIT", (3, side, side), options=options)


_B: dict[str, Any] = {"dims": (200, 376, 448), "depths": (2, 3, 2), "drop_path_rate": 0.03}
VARIANTS = {
    "mobile_mamba_t2": _variant(8_836_890, 0.255, 71.5, 192, dims=(144, 272, 368)),
    "mobile_mamba_t4": _variant(14_176_090, 0.413, 76.1, 192, dims=(176, 368, 448)),
    "mobile_mamba_s6": _variant(15_036_632, 0.652, 78.0, 224, dims=(192, 384, 448)),
    "mobile_mamba_b1": _variant(17_122_849, 1.080, 79.9, 256, **_B),
    "mobile_mamba_b2": _variant(17_122_849, 2.427, 81.6, 384, **_B),
    "mobile_mamba_b4": _variant(17_122_849, 4.313, 82.5, 512, **_B),
}
default_cfgs = generate_default_cfgs(
    {name: variant.config(first_conv="patch_embed.0.c", classifier="head.l") for name, variant in VARIANTS.items()}
)


def _build(name: str, pretrained: bool, **options: Any) -> nn.Module:
    if options.get("features_only"):
        options.setdefault("out_indices", (0, 1, 2))
    return build(MobileMamba, name, VARIANTS[name], checkpoint_filter_fn, pretrained, **options)


@register_model
def mobile_mamba_t2(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileMamba-T2: 8.8 M parameters, 0.26 G at 192 x 192."""
    return _build("mobile_mamba_t2", pretrained, **options)


@register_model
def mobile_mamba_t4(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileMamba-T4: 14.2 M parameters, 0.41 G at 192 x 192."""
    return _build("mobile_mamba_t4", pretrained, **options)


@register_model
def mobile_mamba_s6(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileMamba-S6: 15.0 M parameters, 0.65 G at 224 x 224."""
    return _build("mobile_mamba_s6", pretrained, **options)


@register_model
def mobile_mamba_b1(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileMamba-B1: 17.1 M parameters, 1.1 G at 256 x 256."""
    return _build("mobile_mamba_b1", pretrained, **options)


@register_model
def mobile_mamba_b2(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileMamba-B2: B1 at 384 x 384, 2.4 G."""
    return _build("mobile_mamba_b2", pretrained, **options)


@register_model
def mobile_mamba_b4(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileMamba-B4: B1 at 512 x 512, 4.3 G."""
    return _build("mobile_mamba_b4", pretrained, **options)
