"""Small networks of well-known kinds that new architectures are compared with at equal size on a laptop.

A residual CNN (He et al. 2015, arXiv 1512.03385), a plain vision transformer (Touvron et al. 2020, DeiT, arXiv
2012.12877, without distillation) and a mobile CNN with squeeze-and-excitation and h-swish (Howard et al. 2019,
MobileNetV3, arXiv 1905.02244). Widths and depths are arguments, so that parameters or multiplications can be matched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from striate.models.mini import BasicBlock

__all__ = ["Attention2d", "MobileMicro", "ResNetMicro", "vit_micro"]


class ResNetMicro(nn.Module):
    """A stem, then stages of basic blocks, each but the first of stride 2; ``layer1``, ``layer2``, … are the stages.

    Args:
        widths: channels of each stage.
        depths: blocks of each stage; default one each.
        stem_stride: 1, 2 or 4.
        in_chans: channels of the image.
        num_classes: outputs.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128),
        depths: Sequence[int] | None = None,
        stem_stride: int = 1,
        in_chans: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, widths[0], max(3, stem_stride), stem_stride, 1 if stem_stride < 4 else 0, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.stages = len(widths)
        channels = widths[0]
        for i, width in enumerate(widths):
            blocks = []
            for j in range(depths[i] if depths else 1):
                blocks.append(BasicBlock(channels, width, stride=2 if i and j == 0 else 1))
                channels = width
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        x = self.stem(x)
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.fc(x.mean(dim=(2, 3)))


class MobileMicro(nn.Module):
    """A stem of stride 2, then inverted residuals with squeeze-and-excitation and h-swish.

    Args:
        widths: channels of each stage; every stage but the first starts with stride 2.
        depth: blocks a stage.
        expand: width inside a block, in units of its input's.
        in_chans: channels of the image.
        num_classes: outputs.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 24, 40, 64),
        depth: int = 2,
        expand: float = 3.0,
        in_chans: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.Hardswish()
        )
        blocks: list[nn.Module] = []
        channels = widths[0]
        for i, width in enumerate(widths):
            for j in range(depth):
                blocks.append(_SEBlock(channels, width, round(channels * expand), 2 if i and j == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        return self.fc(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class _SEBlock(nn.Module):
    def __init__(self, channels: int, out: int, hidden: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish()
        )
        squeezed = max(4, hidden // 4)
        self.reduce, self.restore = nn.Conv2d(hidden, squeezed, 1), nn.Conv2d(squeezed, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        gate = F.hardsigmoid(self.restore(F.relu(self.reduce(y.mean(dim=(2, 3), keepdim=True)))))
        y = self.project(y * gate)
        return x + y if self.residual else y


def vit_micro(
    image_size: int,
    patch_size: int,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    in_chans: int = 3,
    num_classes: int = 10,
) -> nn.Module:
    """Return a plain vision transformer that takes other image sizes too: its positions are interpolated."""
    from timm.models import VisionTransformer

    return VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        dynamic_img_size=True,
    )


class Attention2d(nn.Module):
    """Plain softmax attention of every pixel to every pixel, its matrix in memory: the quadratic twin of a scan.

    Args:
        dim: channels; (N, C, H, W) stays.
        heads: of the attention.
    """

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)  # (N, heads, C / heads, L)
        weights = (q.mT @ k * q.shape[2] ** -0.5).softmax(dim=-1)
        return self.proj((v @ weights.mT).flatten(1, 2).unflatten(-1, x.shape[-2:]))
