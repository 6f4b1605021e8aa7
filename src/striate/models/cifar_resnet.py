"""ResNet for 32 x 32 pixels: three stages of basic blocks, 6 D + 2 layers deep, with projection shortcuts.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv 1512.03385, section 4.2, in the form
that Frankle, Schwab, Morcos (2021, arXiv 2003.00152) train: where a stage begins, the shortcut is a 1 x 1 convolution
of stride 2 with batch norm (He et al. pad with zeros there, and so have fewer weights: 269,722 at depth 20 instead of
272,474; that is ``shortcut="pad"``). Tensors have the names of the authors' open_lth, whose checkpoints load:

    striate.load_model("model_ep160_it0.pth", architecture="striate.models.cifar_resnet:cifar_resnet20")
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.recompute import recomputed
from striate.models.mini import BasicBlock

__all__ = [
    "CifarResNet",
    "cifar_resnet",
    "cifar_resnet8",
    "cifar_resnet14",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_resnet218",
    "cifar_resnet434",
    "cifar_resnet866",
]


class CifarResNet(nn.Module):
    """A 3 x 3 convolution, then ``depth // 6`` basic blocks in each of three stages, global average, one linear layer.

    It starts with PyTorch's default weights. Takes images of any size.

    Args:
        depth: 8, 14, 20, …: 6 D + 2 layers of convolution and linear layers, shortcuts not counted.
        width: channels of the first stage; 2 and 4 times as many in the others.
        in_chans: channels of the image.
        num_classes: outputs.
        kernel_size: side of the convolutions, odd; more than 3 as Gavrikov and Keuper (2023, arXiv 2301.11360) study.
        shortcut: where a stage begins: ``"projection"``, or ``"pad"`` as He et al. have it.

    Raises:
        InputError: a depth that is not 6 D + 2, a width below 1, or an even kernel.
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        in_chans: int = 3,
        num_classes: int = 10,
        kernel_size: int = 3,
        shortcut: Literal["projection", "pad"] = "projection",
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise InputError("depth", "CifarResNet", allowed="6 D + 2 for D >= 1: 8, 14, 20, …", got=depth)
        if width < 1:
            raise InputError("width", "CifarResNet", allowed=">= 1", got=width)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError("kernel_size", "CifarResNet", allowed="odd", got=kernel_size)
        self.num_classes, self.num_features = num_classes, 4 * width
        # What open_lth's networks were trained on; striate.load_model and timm's users read it.
        self.pretrained_cfg = {
            "input_size": (in_chans, 32, 32),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "classifier": "fc",
        }
        self.conv = nn.Conv2d(in_chans, width, kernel_size, 1, kernel_size // 2, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        blocks, channels = [], width
        for stage in range(3):
            for i in range(depth // 6):
                stride = 2 if stage and i == 0 else 1
                blocks.append(BasicBlock(channels, width * 2**stage, stride, kernel_size, shortcut))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for (N, in_chans, H, W)."""
        x = self.relu(self.bn(self.conv(x)))
        x = self._recomputed(x) if self.grad_checkpointing and self.training else self.blocks(x)
        return self.fc(x.mean(dim=(2, 3)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the features of about √depth blocks only and compute the others again in the backward pass.

        Running statistics are updated once a step all the same.
        """
        self.grad_checkpointing = enable

    def _recomputed(self, x: Tensor) -> Tensor:
        size = math.ceil(math.sqrt(len(self.blocks)))
        for start in range(0, len(self.blocks), size):
            part = self.blocks[start : start + size]
            x = recomputed(part, x)
        return x


def cifar_resnet(
    depth: int = 20, width: int = 16, in_chans: int = 3, num_classes: int = 10, kernel_size: int = 3
) -> CifarResNet:
    """Return a :class:`CifarResNet`: ResNet-``depth`` of ``width`` channels, with PyTorch's default weights.

    >>> sum(parameter.numel() for parameter in cifar_resnet(20).parameters())
    272474
    """
    return CifarResNet(depth, width, in_chans, num_classes, kernel_size)


def cifar_resnet8() -> CifarResNet:
    """Return the smallest: one block a stage."""
    return CifarResNet(8)


def cifar_resnet14() -> CifarResNet:
    """Return ResNet-14 for 3 channels and 10 classes: 175,258 weights, 1,120 of them of batch norms."""
    return CifarResNet(14)


def cifar_resnet20() -> CifarResNet:
    """Return ResNet-20 for 3 channels and 10 classes: 272,474 weights, 1,568 of them of batch norms."""
    return CifarResNet(20)


def cifar_resnet32() -> CifarResNet:
    """Return ResNet-32 for 3 channels and 10 classes: 466,906 weights, 2,464 of them of batch norms."""
    return CifarResNet(32)


def cifar_resnet56() -> CifarResNet:
    """Return ResNet-56 for 3 channels and 10 classes: 855,770 weights, 4,256 of them of batch norms."""
    return CifarResNet(56)


def cifar_resnet110() -> CifarResNet:
    """Return ResNet-110 for 3 channels and 10 classes: 1,730,714 weights, 8,288 of them of batch norms."""
    return CifarResNet(110)


def cifar_resnet218() -> CifarResNet:
    """Return ResNet-218 for 3 channels and 10 classes: 3,480,602 weights, 16,352 of them of batch norms."""
    return CifarResNet(218)


def cifar_resnet434() -> CifarResNet:
    """Return ResNet-434 for 3 channels and 10 classes: 6,980,378 weights, 32,480 of them of batch norms."""
    return CifarResNet(434)


def cifar_resnet866() -> CifarResNet:
    """Return ResNet-866 for 3 channels and 10 classes: 13,979,930 weights, 64,736 of them of batch norms."""
    return CifarResNet(866)
