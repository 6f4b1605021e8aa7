"""MobileViT: a MobileNetV2-like network, three of whose stages end in a transformer across patches.

Mehta and Rastegari, "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer", ICLR 2022,
arXiv 2110.02178. timm has the same network as ``mobilevit_xxs``, ``_xs`` and ``_s``; ours is registered as
``striate_mobilevit_xxs``, …, keeps timm's names of weights, and adds what timm leaves out: ``output_stride`` for
segmentation, dropout as published (0.1 in transformer and head), and the authors' own checkpoints by their names.

The authors' weights are under Apple's sample code licence. They take RGB in [0, 1] without mean and standard
deviation; those of the first release (with the paper) take BGR: see ``channel_order`` of :func:`load_official`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.layers import make_divisible
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from striate.engine.load import load_state_dict, read_weights
from striate.errors import InputError, WeightsError
from striate.layers.mobilevit_block import MobileViTBlock, conv_norm_act
from striate.layers.recompute import recomputed
from striate.models.head import PooledClassifier
from striate.models.variant import Variant, build, rename_weights, unwrap_weights

__all__ = [
    "CONFIGS",
    "InvertedResidual",
    "MobileViT",
    "MobileViTConfig",
    "checkpoint_filter_fn",
    "convert_weights",
    "load_official",
    "striate_mobilevit_s",
    "striate_mobilevit_xs",
    "striate_mobilevit_xxs",
]

ChannelOrder = Literal["rgb", "bgr"]
Source = Literal["auto", "cvnets", "transformers", "timm"]


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018, arXiv 1801.04381) with SiLU: widen, depthwise 3 x 3, narrow.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: 1 or 2. At stride 1 and equal channels the input is added.
        expand: width inside in units of ``in_channels``, rounded to a multiple of 8; 1 leaves the first part out.
        dilation: of the depthwise convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, expand: float = 4.0, dilation: int = 1
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise InputError("stride", "InvertedResidual", allowed="1 or 2", got=stride)
        hidden = make_divisible(round(in_channels * expand), 8)
        self.conv1_1x1 = conv_norm_act(in_channels, hidden, 1) if expand != 1 else nn.Identity()
        self.conv2_kxk = conv_norm_act(hidden, hidden, 3, stride, dilation=dilation, groups=hidden)
        self.conv3_1x1 = conv_norm_act(hidden, out_channels, 1, act=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride), rounded up."""
        y = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + y if self.residual else y


@dataclass(frozen=True)
class MobileViTConfig:
    """Widths and depths of a MobileViT. The stem and every stage but the first halve the map.

    Attributes:
        widths: channels of each stage.
        depths: inverted residuals of each stage.
        dims: width of each stage's transformer; 0 where there is none.
        layers: of each stage's transformer.
        expand: of the inverted residuals.
        num_features: channels before the classifier.
        stem: channels of the first convolution.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    layers: tuple[int, ...]
    expand: float
    num_features: int
    stem: int = 16

    def __post_init__(self) -> None:
        if len({len(self.widths), len(self.depths), len(self.dims), len(self.layers)}) > 1 or min(self.depths) < 1:
            raise InputError("config", "MobileViT", allowed="one value >= 1 a stage in each list", got=self)


_BLOCKS: dict[str, Any] = {"depths": (1, 3, 1, 1, 1), "layers": (0, 0, 2, 4, 3)}
CONFIGS: dict[str, MobileViTConfig] = {
    "xxs": MobileViTConfig((16, 24, 48, 64, 80), dims=(0, 0, 64, 80, 96), expand=2, num_features=320, **_BLOCKS),
    "xs": MobileViTConfig((32, 48, 64, 80, 96), dims=(0, 0, 96, 120, 144), expand=4, num_features=384, **_BLOCKS),
    "s": MobileViTConfig((32, 64, 96, 128, 160), dims=(0, 0, 144, 192, 240), expand=4, num_features=640, **_BLOCKS),
}
"""The published networks (appendix A), by their size."""


class MobileViT(PooledClassifier):
    """The network, for images of any size whose last map is at least as large as a patch (33 pixels as published).

    Args:
        config: ``"xxs"``, ``"xs"``, ``"s"`` or your own.
        num_classes: outputs; 0 for the pooled features.
        global_pool: ``"avg"``; ``""``, with 0 classes, for the last map.
        in_chans: channels of the image.
        output_stride: 32, or 16 or 8 for dense prediction: the last one or two stages keep their map's size, and
            what comes after the first of them is dilated (as in the authors' code: by 1, then 2).
        drop_rate: dropout before the classifier.
        dropout, attn_dropout, ffn_dropout: of the transformers.
        drop_path_rate: stochastic depth of the transformers' branches; the authors use either it or ``dropout``.
        patch_size, kernel_size, num_heads, fusion, attention: of every :class:`MobileViTBlock`.
    """

    head_name = "head.fc"

    def __init__(
        self,
        config: MobileViTConfig | str = "s",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.1,
        dropout: float = 0.1,
        attn_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_size: int = 2,
        kernel_size: int = 3,
        num_heads: int = 4,
        fusion: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(config, str):
            if config not in CONFIGS:
                raise InputError("config", "MobileViT", allowed=f"one of {', '.join(CONFIGS)}, or a config", got=config)
            config = CONFIGS[config]
        if output_stride not in (8, 16, 32):
            raise InputError("output_stride", "MobileViT", allowed="8, 16 or 32", got=output_stride)
        self._set_head(num_classes, global_pool)
        self.in_chans, self.drop_path_rate, self.num_features = in_chans, drop_path_rate, config.num_features
        self.patch_size = patch_size
        self.stem = conv_norm_act(in_chans, config.stem, 3, stride=2)
        self.feature_info: list[dict[str, Any]] = []
        stages, reduction, dilation, channels = [], 2, 1, config.stem
        for i, width in enumerate(config.widths):
            stride, own_dilation = (2 if i else 1), dilation
            if stride == 2 and reduction == output_stride:
                stride, dilation = 1, 2 * dilation
            reduction *= stride
            blocks: list[nn.Module] = []
            for j in range(config.depths[i]):
                first = j == 0
                blocks.append(
                    InvertedResidual(
                        channels, width, stride if first else 1, config.expand, own_dilation if first else dilation
                    )
                )
                channels = width
            if config.dims[i]:
                blocks.append(
                    MobileViTBlock(
                        width,
                        config.dims[i],
                        num_layers=config.layers[i],
                        num_heads=num_heads,
                        patch_size=patch_size,
                        kernel_size=kernel_size,
                        dropout=dropout,
                        attn_dropout=attn_dropout,
                        ffn_dropout=ffn_dropout,
                        drop_path=drop_path_rate,
                        fusion=fusion,
                        attention=attention,
                    )
                )
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        self.final_conv = conv_norm_act(channels, config.num_features, 1)
        self.feature_info[-1].update(num_chs=config.num_features, module="final_conv")
        self.output_stride = reduction
        last = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = nn.Sequential(OrderedDict([("drop", nn.Dropout(drop_rate)), ("fc", last)]))
        self.apply(_initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (N, num_features, H / output_stride, W / output_stride) for images (N, in_chans, H, W)."""
        least = (self.patch_size - 1) * self.output_stride + 1
        if min(x.shape[-2:]) < least:
            allowed = f"at least {least} x {least} pixels at output_stride {self.output_stride}"
            raise InputError("x", "MobileViT", allowed=allowed, got=tuple(x.shape))
        x = self.stem(x)
        for stage in self.stages:
            recompute = self.grad_checkpointing and self.training
            x = recomputed(stage, x) if recompute else stage(x)
        return self.final_conv(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, num_classes), or pooled features (N, num_features), for ``forward_features``' map."""
        x = self.pooled(x)
        return self.head[0](x) if pre_logits else self.head(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns for a learning rate by depth; with ``coarse`` a stage is one depth, else a block is."""
        stages = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(stages, None), (r"^final_conv", (99999,))]}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


# ------------------------------------------------------------------------------------------------- checkpoints

_CVNETS: tuple[tuple[str, str], ...] = (
    (r"\.block\.conv\.", ".conv."),
    (r"\.block\.norm\.", ".bn."),
    (r"^conv_1\.", "stem."),
    (r"^conv_1x1_exp\.", "final_conv."),
    (r"^classifier\.fc\.", "head.fc."),
    *((rf"^layer_{i + 1}\.", f"stages.{i}.") for i in range(5)),
    (r"\.block\.exp_1x1\.", ".conv1_1x1."),
    (r"\.block\.conv_3x3\.", ".conv2_kxk."),
    (r"\.block\.red_1x1\.", ".conv3_1x1."),
    (r"\.local_rep\.conv_3x3\.", ".conv_kxk."),
    (r"\.local_rep\.conv_1x1\.conv\.", ".conv_1x1."),
    (r"\.fusion\.", ".conv_fusion."),
    (r"\.global_rep\.(\d+)\.pre_norm_", r".transformer.\1.pre_norm_"),
    (r"\.global_rep\.\d+\.", ".norm."),
    (r"\.pre_norm_mha\.0\.", ".norm1."),
    (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attn.qkv."),
    (r"\.pre_norm_mha\.1\.out_proj\.", ".attn.proj."),
    (r"\.pre_norm_ffn\.0\.", ".norm2."),
    (r"\.pre_norm_ffn\.1\.", ".mlp.fc1."),
    (r"\.pre_norm_ffn\.4\.", ".mlp.fc2."),
)
_TRANSFORMERS: tuple[tuple[str, str], ...] = (
    (r"^mobilevit\.", ""),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"^conv_stem\.", "stem."),
    (r"^conv_1x1_exp\.", "final_conv."),
    (r"^classifier\.", "head.fc."),
    (r"^encoder\.layer\.(\d)\.(?:layer\.)?", r"stages.\1."),
    (r"^(stages\.\d)\.downsampling_layer\.", r"\1.0."),
    (r"^(stages\.\d)\.(?=conv_|transformer|layernorm|fusion)", r"\1.1."),
    (r"\.expand_1x1\.", ".conv1_1x1."),
    (r"\.conv_3x3\.", ".conv2_kxk."),
    (r"\.reduce_1x1\.", ".conv3_1x1."),
    (r"\.conv_1x1\.conv\.", ".conv_1x1."),
    (r"\.conv_projection\.", ".conv_proj."),
    (r"\.fusion\.", ".conv_fusion."),
    (r"\.transformer\.layer\.", ".transformer."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layernorm\.", ".norm."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def convert_weights(
    state_dict: dict[str, Any],
    source: Source = "auto",
    channel_order: ChannelOrder = "rgb",
) -> dict[str, Tensor]:
    """Return a checkpoint's weights under our names, which are timm's.

    Args:
        state_dict: as saved by the authors' CVNets, by Hugging Face's transformers or by timm, also inside
            ``model_ema``, ``state_dict``, ``model`` and the like. Of a CVNets detector or segmenter the encoder is
            taken, which has neither the last convolution nor the classifier: load it with ``strict=False``.
        source: whose names they are; ``"auto"`` looks.
        channel_order: in which the checkpoint was trained; with ``"bgr"`` the first convolution is turned round, so
            that the network takes RGB. Nothing in a file says which it is: the first release's ImageNet weights
            (2021) are BGR, and so are those that transformers offers.

    Raises:
        InputError: another ``source`` or ``channel_order``.
        WeightsError: not a MobileViT.
    """
    if source not in ("auto", "cvnets", "transformers", "timm"):
        allowed = "auto, cvnets, transformers or timm"
        raise InputError("source", "convert_weights", allowed=allowed, got=source)
    if channel_order not in ("rgb", "bgr"):
        raise InputError("channel_order", "convert_weights", allowed="rgb or bgr", got=channel_order)
    weights = unwrap_weights(state_dict)
    if any(key.startswith("encoder.conv_1.") for key in weights):
        weights = {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}
    if source == "cvnets" or (source == "auto" and "conv_1.block.conv.weight" in weights):
        weights = rename_weights(weights, _CVNETS)
    elif source == "transformers" or any("conv_stem.convolution." in key for key in weights if source == "auto"):
        weights = _with_joint_projections(rename_weights(weights, _TRANSFORMERS))
    if "stem.conv.weight" not in weights:
        raise WeightsError(
            f"No MobileViT under {'CVNets, transformers or timm' if source == 'auto' else source} names: "
            f"there is no first convolution among {', '.join(list(weights)[:3])}, …"
        )
    if channel_order == "bgr":
        weights["stem.conv.weight"] = weights["stem.conv.weight"].flip(1)
    return weights


def _with_joint_projections(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor for queries, keys and values, where there are three."""
    joint = {key: value for key, value in weights.items() if not re.search(r"\.attn\.(query|key|value)\.", key)}
    for key in (key for key in weights if ".attn.query." in key):
        parts = [weights[key.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
        joint[key.replace(".query.", ".qkv.")] = torch.cat(parts)
    return joint


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return :func:`convert_weights` of an RGB checkpoint, whoever's names it has (timm's calling convention)."""
    return convert_weights(state_dict)


def load_official(
    path: str | Path,
    source: Source = "auto",
    channel_order: ChannelOrder = "rgb",
    **options: Any,
) -> MobileViT:
    """Return the network of a published checkpoint in eval mode; its size and classes are read from the weights.

    Args:
        path: ``.safetensors`` or ``.pt``.
        source, channel_order: see :func:`convert_weights`.
        **options: of :class:`MobileViT`, such as ``output_stride``.

    Raises:
        WeightsError: not a published MobileViT, or weights that do not fit.
    """
    weights = convert_weights(read_weights(path), source, channel_order)
    features = weights["final_conv.conv.weight"].shape[0] if "final_conv.conv.weight" in weights else 0
    name = next((name for name, config in CONFIGS.items() if config.num_features == features), None)
    if name is None:
        raise WeightsError(f"{Path(path).name} is none of the published MobileViTs ({', '.join(CONFIGS)}).")
    classes = weights["head.fc.bias"].shape[0] if "head.fc.bias" in weights else 0
    model = MobileViT(name, **{"num_classes": classes, **options})
    load_state_dict(model, weights, origin=Path(path).name)
    return model.eval()


# ----------------------------------------------------------------------------------------------------- registry


def _published(config: str, parameters: int, macs: float, top1: float) -> Variant:
    return Variant(
        paper="mobilevit",
        parameters=parameters,
        macs=macs,
        top1=top1,
        licence="cvnets-license",
        input_size=(3, 256, 256),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bilinear",
        crop_pct=256 / 288,
        options={"config": config},
    )


VARIANTS: dict[str, Variant] = {
    "striate_mobilevit_xxs": _published("xxs", 1_272_024, 0.407, 69.0),
    "striate_mobilevit_xs": _published("xs", 2_317_848, 1.026, 74.8),
    "striate_mobilevit_s": _published("s", 5_578_632, 2.001, 78.4),
}

default_cfgs = generate_default_cfgs(
    {name: variant.config(first_conv="stem.conv", classifier="head.fc") for name, variant in VARIANTS.items()}
)


def _build(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if options.get("features_only"):
        options = {"out_indices": tuple(range(5)), **options}  # five maps, where most families have four
    return build(MobileViT, name, VARIANTS[name], checkpoint_filter_fn, pretrained, **options)


@register_model
def striate_mobilevit_xxs(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileViT-XXS: 1.3 M parameters."""
    return _build("striate_mobilevit_xxs", pretrained, options)


@register_model
def striate_mobilevit_xs(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileViT-XS: 2.3 M parameters."""
    return _build("striate_mobilevit_xs", pretrained, options)


@register_model
def striate_mobilevit_s(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileViT-S: 5.6 M parameters."""
    return _build("striate_mobilevit_s", pretrained, options)
