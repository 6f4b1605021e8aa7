"""Networks of ImageNet keep a quarter more resolution on small images, and the person's own stays as it was."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from striate.errors import LayerError
from striate.models.low_resolution import low_resolution


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.resnet50(num_classes=10),
        lambda: torchvision.models.resnext50_32x4d(num_classes=10),
        lambda: torchvision.models.mobilenet_v2(num_classes=10),
        lambda: timm.create_model("resnet18", num_classes=10),
    ],
)
def test_features_are_four_times_as_large(make) -> None:
    with torch.device("meta"):
        model = make()
        strides = [m.stride for m in model.modules() if isinstance(m, nn.Conv2d)]
        small = low_resolution(model)
        sides = []
        for network in (model, small):
            name = "layer4" if hasattr(network, "layer4") else "features"
            hook = network.get_submodule(name).register_forward_hook(lambda m, i, o: sides.append(o.shape[-1]))
            assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
            hook.remove()
    assert sides == [2, 8]
    assert [m.stride for m in model.modules() if isinstance(m, nn.Conv2d)] == strides


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(LayerError, match="no conv1"):
        low_resolution(nn.Sequential(nn.Conv2d(3, 4, 3, 2)))
