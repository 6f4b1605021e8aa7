"""Networks for 224 x 224 pixels, made fit for 32 x 32: a small stem that keeps the resolution.

Usual in studies on CIFAR; here as Gavrikov and Keuper (2023, arXiv 2301.11360) do it.
"""

from __future__ import annotations

import copy

from torch import nn

from striate.errors import LayerError

__all__ = ["low_resolution"]


def low_resolution(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` that reduces images by a quarter of its factor.

    ResNets of torchvision and timm (``conv1``, ``maxpool``) get a new 3 x 3 stem of stride 1 and lose their pooling;
    in torchvision's MobileNetV2 the first two convolutions of stride 2 get stride 1 and keep their weights.

    Raises:
        LayerError: neither of these.

    >>> import torch, torchvision
    >>> low_resolution(torchvision.models.resnet18()).conv1
    Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    copied = copy.deepcopy(model)
    stem, pool = getattr(copied, "conv1", None), getattr(copied, "maxpool", None)
    if isinstance(stem, nn.Conv2d) and pool is not None:
        conv = nn.Conv2d(stem.in_channels, stem.out_channels, 3, 1, 1, bias=stem.bias is not None)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        copied.conv1 = conv.to(stem.weight.device, stem.weight.dtype)
        copied.maxpool = nn.Identity()
        return copied
    strided = [module for module in copied.modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)]
    if hasattr(copied, "features") and len(strided) >= 2:
        for conv in strided[:2]:
            conv.stride = (1, 1)
        return copied
    raise LayerError(
        f"How to make {type(model).__name__} fit for small images is not known: it has no conv1 with a maxpool, and no "
        "features with two convolutions of stride 2. Change its first strides by hand."
    )
