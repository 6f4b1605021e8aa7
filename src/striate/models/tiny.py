"""Three tiny classifiers after AlexNet, ResNet and MobileNet, for experiments that train many networks on a laptop.

They stand for Krizhevsky et al. 2012 (a network without batch norm, with fully connected layers on top), He et al. 2015
(arXiv 1512.03385: residual, batch norm, global average pooling) and Howard et al. 2017 (arXiv 1704.04861: depthwise
separable convolutions, batch norm, global average pooling). All halve the resolution at once, end at an eighth of it,
and take images from 16 x 16 upwards; one forward pass on 40 x 40 pixels takes 4 to 7 million multiplications.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from striate.models.mini import BasicBlock

__all__ = ["TinyAlex", "TinyMobile", "TinyRes"]


class TinyAlex(nn.Module):
    """Three convolutions, max pooling, three fully connected layers; no normalisation, so no AdvProp and no CAM."""

    def __init__(self, in_chans: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 32, 5, 2, 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1, 1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(
            nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, num_classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # He et al. 2015: without batch norm, PyTorch's smaller weights leave the logits of all images alike.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


class TinyRes(nn.Module):
    """A stem of stride 2, residual blocks of 16, 32 and 64 channels, global average pooling, one linear layer."""

    def __init__(self, in_chans: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.layer1 = BasicBlock(16, 16)
        self.layer2 = BasicBlock(16, 32, stride=2)
        self.layer3 = BasicBlock(32, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.fc(self.pool(x).flatten(1))


class TinyMobile(nn.Module):
    """A stem of stride 2, depthwise separable blocks up to 128 channels, global average pooling, one linear layer."""

    def __init__(self, in_chans: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(
            SeparableBlock(16, 32),
            SeparableBlock(32, 64, stride=2),
            SeparableBlock(64, 64),
            SeparableBlock(64, 128, stride=2),
            SeparableBlock(128, 128),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


class SeparableBlock(nn.Module):
    """A 3 x 3 convolution of each channel by itself, then 1 x 1 across them; batch norm and ReLU after each."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H/stride, W/stride)."""
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))
