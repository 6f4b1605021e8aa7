"""VGG for 32 x 32 pixels with batch norm and one linear layer, under the names of open_lth, whose checkpoints load.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014, arXiv 1409.1556, as
Frankle, Schwab, Morcos (2021, arXiv 2003.00152) take it to CIFAR: four poolings, no hidden fully connected layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from striate.errors import InputError

__all__ = ["CifarVGG", "cifar_vgg", "cifar_vgg11", "cifar_vgg13", "cifar_vgg16", "cifar_vgg19"]

_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class CifarVGG(nn.Module):
    """Five groups of 3 x 3 convolutions (64, 128, 256, 512, 512 channels), max-pooling between, one linear layer.

    Args:
        depth: 11, 13, 16 or 19.
        in_chans: channels of the image; at least 16 x 16 pixels.
        num_classes: outputs.
    """

    def __init__(self, depth: int = 16, in_chans: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        if depth not in _CONVOLUTIONS:
            raise InputError("depth", "CifarVGG", allowed="11, 13, 16 or 19", got=depth)
        self.num_classes, self.num_features = num_classes, 512
        self.pretrained_cfg = {
            "input_size": (in_chans, 32, 32),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "classifier": "fc",
        }
        self.layers = nn.Sequential(*_layers(in_chans, _CONVOLUTIONS[depth]))
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for (N, in_chans, H, W)."""
        return self.fc(self.layers(x).mean(dim=(2, 3)))


class _Conv(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.bn, self.relu = nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def _layers(channels: int, convolutions: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for group, (count, width) in enumerate(zip(convolutions, (64, 128, 256, 512, 512), strict=True)):
        if group:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers.append(_Conv(channels, width))
            channels = width
    return layers


def cifar_vgg(depth: int = 16, in_chans: int = 3, num_classes: int = 10) -> CifarVGG:
    """Return a :class:`CifarVGG` with PyTorch's default weights."""
    return CifarVGG(depth, in_chans, num_classes)


def cifar_vgg11() -> CifarVGG:
    """Return VGG-11 for 3 channels and 10 classes."""
    return CifarVGG(11)


def cifar_vgg13() -> CifarVGG:
    """Return VGG-13 for 3 channels and 10 classes."""
    return CifarVGG(13)


def cifar_vgg16() -> CifarVGG:
    """Return VGG-16 for 3 channels and 10 classes."""
    return CifarVGG(16)


def cifar_vgg19() -> CifarVGG:
    """Return VGG-19 for 3 channels and 10 classes."""
    return CifarVGG(19)
