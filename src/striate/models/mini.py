"""Three small classifiers, one from each family of the ImageNet era: residual, inception, densely connected.

Small enough to train in seconds on a laptop core, deep enough to behave like their families. They are the stand-ins of
reproductions whose published networks are ResNet-34 (He et al., 2015, arXiv 1512.03385), GoogLeNet (Szegedy et al.,
2014, arXiv 1409.4842, here with batch normalisation) and DenseNet-161 (Huang et al., 2016, arXiv 1608.06993). All take
images from about 8 x 8 upwards and keep the full resolution in their stem, as networks for small images do.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "BasicBlock",
    "DenseNetMini",
    "InceptionMini",
    "PadShortcut",
    "ResNetMini",
    "densenet_mini",
    "inception_mini",
    "resnet_mini",
]


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut.

    Args:
        in_channels, channels: of its input and output.
        stride: of the first convolution.
        kernel_size: of both, odd.
        shortcut: where the shape changes: ``"projection"``, a 1 x 1 convolution (He et al. 2015, option B), or
            ``"pad"``, every stride-th pixel and zeros for the channels that are missing (option A: no parameters).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        kernel_size: int = 3,
        shortcut: Literal["projection", "pad"] = "projection",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size, 1, kernel_size // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if (stride != 1 or in_channels != channels) and shortcut == "pad":
            self.shortcut = PadShortcut(channels, stride)
        elif stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H/stride, W/stride)."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


class PadShortcut(nn.Module):
    """Every ``stride``-th pixel, and zero channels on both sides up to ``out_channels``: a shortcut without weights.

    Args:
        out_channels: of its output; of wider inputs the middle channels are kept.
        stride: of the pixels.
    """

    def __init__(self, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H/stride, W/stride)."""
        missing = self.out_channels - x.shape[1]
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, missing // 2, missing - missing // 2))


class ResNetMini(nn.Module):
    """Stem of 16 channels, then basic blocks of 16, 32 (stride 2) and 64 (stride 2) channels."""

    def __init__(self, in_chans: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = _conv_bn(in_chans, 16, 3)
        self.layer1 = BasicBlock(16, 16)
        self.layer2 = BasicBlock(16, 32, stride=2)
        self.layer3 = BasicBlock(32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.fc(x.mean(dim=(2, 3)))


class InceptionModule(nn.Module):
    """1x1:8 | 1x1:8 → 3x3:16 | 1x1:4 → 5x5:8 | max-pool → 1x1:8, concatenated to 40 channels."""

    channels = 40

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1 = _conv_bn(in_channels, 8, 1)
        self.branch2 = nn.Sequential(_conv_bn(in_channels, 8, 1), _conv_bn(8, 16, 3))
        self.branch3 = nn.Sequential(_conv_bn(in_channels, 4, 1), _conv_bn(4, 8, 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv_bn(in_channels, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 40, H, W)."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class InceptionMini(nn.Module):
    """Stem of 16 channels and two inception modules with a stride-2 max-pool between them."""

    def __init__(self, in_chans: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = _conv_bn(in_chans, 16, 3)
        self.inception1 = InceptionModule(16)
        self.pool = nn.MaxPool2d(2)
        self.inception2 = InceptionModule(InceptionModule.channels)
        self.fc = nn.Linear(InceptionModule.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        x = self.inception2(self.pool(self.inception1(self.stem(x))))
        return self.fc(x.mean(dim=(2, 3)))


class DenseLayer(nn.Module):
    """BN, ReLU and a 3 x 3 convolution whose ``growth`` channels are appended to the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, in_channels + growth, H, W)."""
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], dim=1)


class DenseNetMini(nn.Module):
    """Stem of 16 channels, dense blocks of 4 and 4 layers with growth 8, compression 0.5 between them."""

    def __init__(self, in_chans: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        self.block1 = nn.Sequential(*[DenseLayer(16 + 8 * i, 8) for i in range(4)])  # -> 48 channels
        self.transition = nn.Sequential(
            nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 24, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.Sequential(*[DenseLayer(24 + 8 * i, 8) for i in range(4)])  # -> 56 channels
        self.norm = nn.BatchNorm2d(56)
        self.fc = nn.Linear(56, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        x = self.block2(self.transition(self.block1(self.stem(x))))
        return self.fc(F.relu(self.norm(x)).mean(dim=(2, 3)))


def resnet_mini(in_chans: int = 1, num_classes: int = 10) -> ResNetMini:
    """Return a :class:`ResNetMini` with random weights: 77,754 parameters at 1 channel and 10 classes.

    >>> sum(parameter.numel() for parameter in resnet_mini().parameters())
    77754
    """
    return ResNetMini(in_chans, num_classes)


def inception_mini(in_chans: int = 1, num_classes: int = 10) -> InceptionMini:
    """Return an :class:`InceptionMini` with random weights."""
    return InceptionMini(in_chans, num_classes)


def densenet_mini(in_chans: int = 1, num_classes: int = 10) -> DenseNetMini:
    """Return a :class:`DenseNetMini` with random weights."""
    return DenseNetMini(in_chans, num_classes)


def _conv_bn(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, 1, kernel // 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )
