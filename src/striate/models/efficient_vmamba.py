"""EfficientVMamba: atrous scans beside a convolution in the first two stages, inverted residuals in the last two.

Pei, Huang, Xu, "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", AAAI 2025, arXiv 2403.09977.
Sizes and details follow the authors' code, which differs from the paper's figure in the scan routes (none runs
backwards). Their repository and its weights came without a licence.

Two published figures mislead. The small variant's released yaml says 96 channels (24.8 M parameters, 2.8 G
multiplications); paper and training log say 11 M and 1.3 G, which are 64 channels: so it stands here. And "VMamba-T" in
the paper's Table 5 (2.4 M parameters, 0.9 G, 72.1 %) is not VMamba's own tiny network but a vanilla VMamba that the
authors shrank to the size of theirs: 32 to 256 channels, depths 2, 2, 4, 2 (issue 13 of their repository), which has
exactly that size.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.atrous_scan import ES2D
from striate.layers.channel_first import Linear2d, PatchMerging
from striate.layers.cross_scan import ScanMode
from striate.layers.init import init_linear
from striate.layers.recompute import recomputed
from striate.layers.ss2d import SS2D
from striate.models.head import PooledClassifier, check_least
from striate.models.variant import Variant, build, rename_weights, unwrap_weights

__all__ = [
    "VARIANTS",
    "ChannelGate",
    "EVSSBlock",
    "EfficientVMamba",
    "InvertedResidual",
    "checkpoint_filter_fn",
    "efficient_vmamba_b",
    "efficient_vmamba_s",
    "efficient_vmamba_t",
]


class ChannelGate(nn.Module):
    """A weight in (0, 1) for every channel, from the mean of the normalised map; (N, C, H, W) stays.

    Args:
        dim: channels.
        ratio: width of the bottleneck, in units of ``dim``.
    """

    def __init__(self, dim: int, ratio: float = 0.125) -> None:
        super().__init__()
        hidden = max(1, int(dim * ratio))
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.global_reduce, self.channel_select = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` times its gate."""
        mean = self.norm(x).mean(dim=(2, 3))
        gate = torch.sigmoid(self.channel_select(F.gelu(self.global_reduce(mean))))
        return x * gate[:, :, None, None]


class EVSSBlock(nn.Module):
    """The efficient visual state-space block: scan and convolution side by side, one gate for both (section 3.3).

    Args:
        dim: channels; (N, C, H, W) stays.
        drop_path: share of samples whose branches are dropped in training.
        d_state: N, states a channel.
        ssm_ratio: width of the scan, in units of ``dim``.
        mlp_ratio: width of a perceptron after the branches, in units of ``dim``; 0, as published, for none.
        scan: ``"atrous"``; a mode of :class:`~striate.layers.ss2d.SS2D` for routes through the whole map; or
            ``"none"`` for the convolution alone.
        conv_branch: with the convolution.
        gate: with the gate.
        **options: of :class:`~striate.layers.atrous_scan.ES2D` (``step``, ``phases``, ``reverse``) or SS2D.
    """

    def __init__(
        self,
        dim: int,
        drop_path: float = 0.0,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 0.0,
        scan: ScanMode | Literal["atrous", "cascade", "none"] = "atrous",
        conv_branch: bool = True,
        gate: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-5)
        if scan == "none" and not conv_branch:
            raise InputError("conv_branch", "EVSSBlock", allowed="True where there is no scan", got=conv_branch)
        self.op: SS2D | None = None
        if scan == "atrous":
            self.op = ES2D(dim, d_state, ssm_ratio, **options)
        elif scan != "none":
            self.op = SS2D(dim, d_state, ssm_ratio, conv_bias=True, gate=True, scan=scan, **options)
        self.conv_branch = None
        if conv_branch:
            depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
            self.conv_branch = nn.Sequential(depthwise, nn.BatchNorm2d(dim), nn.GELU(), nn.Conv2d(dim, dim, 1))
        self.se = ChannelGate(dim) if gate else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.mlp = None
        if mlp_ratio > 0:
            hidden = int(dim * mlp_ratio)
            layers = {"fc1": Linear2d(dim, hidden), "act": nn.GELU(), "fc2": Linear2d(hidden, dim)}
            self.norm2, self.mlp = LayerNorm2d(dim, eps=1e-5), nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        y = self.norm(x)
        branches = [self.se(branch(y)) for branch in (self.op, self.conv_branch) if branch is not None]
        x = x + self.drop_path(sum(branches))
        if self.mlp is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, squeeze and excite, project, add; ReLU throughout.

    Args:
        dim: channels; (N, C, H, W) stays.
        drop_path: share of samples whose branch is dropped in training.
        expand: width inside, in units of ``dim``.
        se_ratio: width of the squeeze, in units of the width inside; 0 for none.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, expand: float = 4.0, se_ratio: float = 0.125) -> None:
        super().__init__()
        hidden = int(dim * expand)

        def conv(channels: int, out: int, kernel: int, groups: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False)
            return [layer, nn.BatchNorm2d(out)]

        self.conv_pw = nn.Sequential(*conv(dim, hidden, 1), nn.ReLU(inplace=True))
        self.conv_dw = nn.Sequential(*conv(hidden, hidden, 3, groups=hidden), nn.ReLU(inplace=True))
        self.se = SqueezeExcite(hidden, rd_channels=max(1, int(hidden * se_ratio))) if se_ratio else nn.Identity()
        self.conv_pw2 = nn.Sequential(*conv(hidden, dim, 1))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return x + self.drop_path(self.conv_pw2(self.se(self.conv_dw(self.conv_pw(x)))))


class EfficientVMamba(PooledClassifier):
    """The network: a stem of non-overlapping patches, stages of blocks with patch merging between, a linear head.

    Args:
        dims: channels of the first stage, doubled from stage to stage; or one number a stage.
        depths: blocks of each stage.
        ssm_stages: stages of :class:`EVSSBlock`, from 0; the others are of :class:`InvertedResidual`.
        patch_size: side of the stem's patches.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none.
        global_pool: ``"avg"``; ``""``, with 0 classes, for the last map.
        drop_rate: dropout before the head.
        drop_path_rate: of the last block, rising linearly from 0 at the first.
        **block: ``d_state``, ``ssm_ratio``, ``mlp_ratio``, ``scan``, ``conv_branch``, ``gate``, ``step``, ``phases``,
            ``reverse`` of :class:`EVSSBlock`.
    """

    head_name = "classifier.head"

    def __init__(
        self,
        dims: int | Sequence[int] = 48,
        depths: Sequence[int] = (2, 2, 4, 2),
        ssm_stages: Sequence[int] = (0, 1),
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **block: Any,
    ) -> None:
        super().__init__()
        dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        if len(dims) != len(depths):
            raise InputError(
                "dims", "EfficientVMamba", allowed=f"one number for each of {len(depths)} stages", got=dims
            )
        self._set_head(num_classes, global_pool)
        self.num_features, self.least = dims[-1], patch_size
        self.patch_embed = nn.Sequential(
            OrderedDict(
                [("0", nn.Conv2d(in_chans, dims[0], patch_size, patch_size)), ("2", LayerNorm2d(dims[0], eps=1e-5))]
            )
        )
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            rates_here = [rates.pop(0) for _ in range(depth)]
            blocks: list[nn.Module] = [
                EVSSBlock(dim, rate, **block) if i in ssm_stages else InvertedResidual(dim, rate) for rate in rates_here
            ]
            downsample = PatchMerging(dim, dims[i + 1]) if i + 1 < len(dims) else nn.Identity()
            self.layers.append(
                nn.Sequential(OrderedDict([("blocks", nn.Sequential(*blocks)), ("downsample", downsample)]))
            )
            self.feature_info.append({"num_chs": dim, "reduction": patch_size * 2**i, "module": f"layers.{i}.blocks"})
        self.drop = nn.Dropout(drop_rate)
        head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.classifier = nn.ModuleDict({"norm": LayerNorm2d(dims[-1], eps=1e-5), "head": head})
        self.apply(init_linear)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map (N, C, H / 32, W / 32), normalised.

        Raises:
            InputError: the image is smaller than a patch.
        """
        check_least(x, self.least, "EfficientVMamba")
        x = self.patch_embed(x)
        for stage in self.layers:
            x = recomputed(stage, x) if self.grad_checkpointing and self.training else stage(x)
        return self.classifier["norm"](x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or the pooled features (N, C), of :meth:`forward_features`'s map."""
        x = self.drop(self.pooled(x))
        return x if pre_logits else self.classifier["head"](x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns for a learning rate by depth; with ``coarse`` a stage is one depth, else a block is."""
        fine = [(r"^layers\.(\d+)\.blocks\.(\d+)", None), (r"^layers\.(\d+)\.downsample", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else fine}


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Map an authors' checkpoint to our names.

    Taken are the classification checkpoints, wrapped (``state_dict``, ``model``, ``model_ema``) or not, saved from a
    distributed or averaged network (``module.``) or not, under the old names of VMamba's blocks as well. In stages 3
    and 4 the authors count blocks from 1 in one flat sequence that ends with the patch merging.
    """
    named = rename_weights(unwrap_weights(state_dict), _RENAMED)
    return {_counted_from_zero(name): value for name, value in named.items()}


def _counted_from_zero(name: str) -> str:
    return re.sub(
        r"^layers\.(\d+)\.(\d+)\.(conv_pw|conv_dw|se|conv_pw2)\.",
        lambda found: f"layers.{found[1]}.blocks.{int(found[2]) - 1}.{found[3]}.",
        name,
    )


_RENAMED = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^layers\.(\d+)\.\d+\.(reduction|norm)\.", r"layers.\1.downsample.\2."),
)


VARIANTS = {
    "efficient_vmamba_t": Variant("efficient-vmamba", 6_493_660, 0.788, 76.5, "unstated", options={"dims": 48}),
    "efficient_vmamba_s": Variant("efficient-vmamba", 11_273_688, 1.318, 78.7, "unstated", options={"dims": 64}),
    "efficient_vmamba_b": Variant(
        "efficient-vmamba", 33_717_136, 3.951, 81.8, "unstated", options={"dims": 96, "depths": (2, 2, 9, 2)}
    ),
}
default_cfgs = generate_default_cfgs(
    {
        name: variant.config(first_conv="patch_embed.0", classifier="classifier.head")
        for name, variant in VARIANTS.items()
    }
)


def _build(name: str, pretrained: bool, **options: Any) -> nn.Module:
    return build(EfficientVMamba, name, VARIANTS[name], checkpoint_filter_fn, pretrained, **options)


@register_model
def efficient_vmamba_t(pretrained: bool = False, **options: Any) -> nn.Module:
    """EfficientVMamba-T: 6.5 M parameters, 0.8 G."""
    return _build("efficient_vmamba_t", pretrained, **options)


@register_model
def efficient_vmamba_s(pretrained: bool = False, **options: Any) -> nn.Module:
    """EfficientVMamba-S: 11.3 M parameters, 1.3 G."""
    return _build("efficient_vmamba_s", pretrained, **options)


@register_model
def efficient_vmamba_b(pretrained: bool = False, **options: Any) -> nn.Module:
    """EfficientVMamba-B: 33.7 M parameters, 4.0 G."""
    return _build("efficient_vmamba_b", pretrained, **options)
