"""VMamba: four stages of visual state-space blocks, a backbone with linear cost in pixels and a global view.

Liu, Tian, Zhao, Yu, Xie, Wang, Ye, Jiao, Liu, "VMamba: Visual State Space Model", NeurIPS 2024, arXiv 2401.10166.
``vmamba_*`` are the networks of the final version, ``vanilla_vmamba_*`` those of the first (gate, 16 states, no
perceptron). The authors' checkpoints (MIT) load under both generations of names. Everything is channel-first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.channel_first import Linear2d, PatchMerging
from striate.layers.init import init_linear
from striate.layers.recompute import recomputed
from striate.layers.ss2d import SS2D
from striate.models.head import PooledClassifier, check_least
from striate.models.variant import Variant, build, rename_weights, unwrap_weights

__all__ = [
    "VARIANTS",
    "VMamba",
    "VSSBlock",
    "checkpoint_filter_fn",
    "vanilla_vmamba_base",
    "vanilla_vmamba_small",
    "vanilla_vmamba_tiny",
    "vmamba_base",
    "vmamba_base_s1l20",
    "vmamba_micro",
    "vmamba_small",
    "vmamba_small_s1l20",
    "vmamba_tiny",
    "vmamba_tiny_s2l5",
]


class VSSBlock(nn.Module):
    """Normalise, SS2D, add; then normalise, a perceptron, add (section 4.2).

    Args:
        dim: channels; (N, C, H, W) stays.
        drop_path: share of samples whose branches are dropped in training.
        mlp_ratio: width of the perceptron, in units of ``dim``; 0 for none, as in the vanilla block.
        **ssm: of :class:`~striate.layers.ss2d.SS2D`.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, mlp_ratio: float = 4.0, **ssm: Any) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.op = SS2D(dim, **ssm)
        self.drop_path = DropPath(drop_path)
        self.mlp = None
        if mlp_ratio > 0:
            self.norm2 = LayerNorm2d(dim, eps=1e-5)
            hidden = int(dim * mlp_ratio)
            layers = [("fc1", Linear2d(dim, hidden)), ("act", nn.GELU()), ("fc2", Linear2d(hidden, dim))]
            self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x = x + self.drop_path(self.op(self.norm(x)))
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.norm2(x)))


class VMamba(PooledClassifier):
    """The network: a stem of stride 4, stages of blocks that each halve the map, a linear head on the mean.

    Args:
        dims: channels of the first stage, doubled from stage to stage; or one number a stage.
        depths: blocks of each stage.
        ssm_ratio, d_state, scan, gate, conv_bias, ssm_init: of :class:`~striate.layers.ss2d.SS2D`.
        mlp_ratio: of :class:`VSSBlock`.
        vanilla: stem of one 4 x 4 convolution and Swin's patch merging, instead of overlapping convolutions.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none.
        global_pool: ``"avg"``; ``""``, with 0 classes, for the last map.
        drop_rate: dropout before the head.
        drop_path_rate: of the last block, rising linearly from 0 at the first.
    """

    head_name = "classifier.head"

    def __init__(
        self,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 8, 2),
        ssm_ratio: float = 1.0,
        d_state: int = 1,
        mlp_ratio: float = 4.0,
        vanilla: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **ssm: Any,
    ) -> None:
        super().__init__()
        dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        if len(dims) != len(depths):
            raise InputError("dims", "VMamba", allowed=f"one number for each of {len(depths)} stages", got=dims)
        self._set_head(num_classes, global_pool)
        self.num_features = dims[-1]
        self.least = 4 if vanilla else 1
        self.patch_embed = _stem(in_chans, dims[0], vanilla)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.layers = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            options = {"mlp_ratio": mlp_ratio, "ssm_ratio": ssm_ratio, "d_state": d_state, **ssm}
            blocks = nn.Sequential(*[VSSBlock(dim, next(rates), **options) for _ in range(depth)])
            halve = _downsample(dim, dims[i + 1], vanilla) if i + 1 < len(dims) else nn.Identity()
            self.layers.append(nn.Sequential(OrderedDict([("blocks", blocks), ("downsample", halve)])))
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**i, "module": f"layers.{i}.blocks"})
        self.classifier = nn.Sequential(
            OrderedDict(
                [
                    ("norm", LayerNorm2d(dims[-1], eps=1e-5)),
                    ("drop", nn.Dropout(drop_rate)),
                    ("head", nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()),
                ]
            )
        )
        self.apply(init_linear)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map (N, C, H / 32, W / 32), normalised.

        Raises:
            InputError: the image is smaller than a patch of the vanilla stem, 4 x 4.
        """
        check_least(x, self.least, "VMamba")
        x = self.patch_embed(x)
        for stage in self.layers:
            x = recomputed(stage, x) if self.grad_checkpointing and self.training else stage(x)
        return self.classifier[0](x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or the pooled features (N, C), of :meth:`forward_features`'s map."""
        _, drop, head = self.classifier
        x = drop(self.pooled(x))
        return x if pre_logits else head(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns for a learning rate by depth; with ``coarse`` a stage is one depth, else a block is."""
        fine = [(r"^layers\.(\d+)\.blocks\.(\d+)", None), (r"^layers\.(\d+)\.downsample", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else fine}


def _stem(in_chans: int, dim: int, vanilla: bool) -> nn.Sequential:
    """The indices are those of the authors' stems, which have permutations in between."""
    if vanilla:
        layers: list[tuple[str, nn.Module]] = [
            ("0", nn.Conv2d(in_chans, dim, 4, 4)),
            ("2", LayerNorm2d(dim, eps=1e-5)),
        ]
    else:
        layers = [
            ("0", nn.Conv2d(in_chans, dim // 2, 3, 2, 1)),
            ("2", LayerNorm2d(dim // 2, eps=1e-5)),
            ("4", nn.GELU()),
            ("5", nn.Conv2d(dim // 2, dim, 3, 2, 1)),
            ("7", LayerNorm2d(dim, eps=1e-5)),
        ]
    return nn.Sequential(OrderedDict(layers))


def _downsample(dim: int, out: int, vanilla: bool) -> nn.Module:
    if vanilla:
        return PatchMerging(dim, out)
    return nn.Sequential(OrderedDict([("1", nn.Conv2d(dim, out, 3, 2, 1)), ("3", LayerNorm2d(out, eps=1e-5))]))


_RENAMED = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    (r"\.ln_1\.", ".norm."),
    (r"\.ln_2\.", ".norm2."),
    (r"\.self_attention\.", ".op."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Map an authors' checkpoint of either generation to our names.

    Wrapped (``model``, ``model_ema``, ``state_dict``) or not, from a distributed or averaged network (``module.``) or
    not; ``ln_1`` and ``self_attention`` are the first version's names of ``norm`` and ``op``.
    """
    renamed = rename_weights(unwrap_weights(state_dict), _RENAMED)
    for name, own in model.state_dict().items():
        if name in renamed and renamed[name].dim() == 4 and own.dim() == 2:  # a linear layer saved as a convolution
            renamed[name] = renamed[name].flatten(1)
    return renamed


_VANILLA: dict[str, Any] = {
    "vanilla": True,
    "ssm_ratio": 2.0,
    "d_state": 16,
    "mlp_ratio": 0.0,
    "gate": True,
    "conv_bias": True,
}


def _variant(parameters: int, macs: float, top1: float, **options: Any) -> Variant:
    return Variant("vmamba", parameters, macs, top1, "MIT", options=options)


VARIANTS = {
    "vmamba_tiny": _variant(30_249_064, 4.876, 82.6),
    "vmamba_tiny_s2l5": _variant(30_705_832, 4.825, 82.5, ssm_ratio=2.0, depths=(2, 2, 5, 2)),
    "vmamba_small": _variant(50_147_752, 8.668, 83.6, ssm_ratio=2.0, depths=(2, 2, 15, 2)),
    "vmamba_small_s1l20": _variant(49_012_840, 8.6, 83.3, depths=(2, 2, 20, 2)),
    "vmamba_base": _variant(88_557_800, 15.295, 83.9, dims=128, ssm_ratio=2.0, depths=(2, 2, 15, 2)),
    "vmamba_base_s1l20": _variant(86_614_504, 15.2, 83.8, dims=128, depths=(2, 2, 20, 2)),
    "vanilla_vmamba_tiny": _variant(22_893_448, 5.598, 82.2, depths=(2, 2, 9, 2), **_VANILLA),
    "vanilla_vmamba_small": _variant(44_417_416, 11.2, 83.5, depths=(2, 2, 27, 2), **_VANILLA),
    "vanilla_vmamba_base": _variant(76_254_056, 18.0, 83.7, dims=128, depths=(2, 2, 27, 2), **_VANILLA),
}
default_cfgs = generate_default_cfgs(
    {
        name: variant.config(first_conv="patch_embed.0", classifier="classifier.head")
        for name, variant in VARIANTS.items()
    }
)


def _build(name: str, pretrained: bool, **options: Any) -> nn.Module:
    return build(VMamba, name, VARIANTS[name], checkpoint_filter_fn, pretrained, **options)


@register_model
def vmamba_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """VMamba-T (s1l8): 30.2 M parameters, 4.9 G."""
    return _build("vmamba_tiny", pretrained, **options)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **options: Any) -> nn.Module:
    """VMamba-T (s2l5): 30.7 M parameters, 4.8 G."""
    return _build("vmamba_tiny_s2l5", pretrained, **options)


@register_model
def vmamba_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """VMamba-S (s2l15): 50.1 M parameters, 8.7 G."""
    return _build("vmamba_small", pretrained, **options)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **options: Any) -> nn.Module:
    """VMamba-S (s1l20): 49.0 M parameters, 8.6 G."""
    return _build("vmamba_small_s1l20", pretrained, **options)


@register_model
def vmamba_base(pretrained: bool = False, **options: Any) -> nn.Module:
    """VMamba-B (s2l15): 88.6 M parameters, 15.3 G."""
    return _build("vmamba_base", pretrained, **options)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **options: Any) -> nn.Module:
    """VMamba-B (s1l20): 86.6 M parameters, 15.2 G."""
    return _build("vmamba_base_s1l20", pretrained, **options)


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """The first version's T: 22.9 M parameters, 5.6 G."""
    return _build("vanilla_vmamba_tiny", pretrained, **options)


@register_model
def vanilla_vmamba_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """The first version's S: 44.4 M parameters, 11.2 G."""
    return _build("vanilla_vmamba_small", pretrained, **options)


@register_model
def vanilla_vmamba_base(pretrained: bool = False, **options: Any) -> nn.Module:
    """The first version's B: 76.3 M parameters, 18.0 G."""
    return _build("vanilla_vmamba_base", pretrained, **options)


def vmamba_micro(in_chans: int = 1, num_classes: int = 10, **options: Any) -> VMamba:
    """Return VMamba's small sibling for laptops: 32 to 256 channels, depths 1, 1, 2, 1, ssm_ratio 1."""
    return VMamba(**{"dims": 32, "depths": (1, 1, 2, 1), "in_chans": in_chans, "num_classes": num_classes, **options})
