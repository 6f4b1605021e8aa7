"""The tiny networks: sizes, shapes, what they are meant to have and to lack."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.models.tiny import TinyAlex, TinyMobile, TinyRes

PARAMETERS = {TinyAlex: 206_858, TinyRes: 78_042, TinyMobile: 37_162}


@pytest.mark.parametrize("build", PARAMETERS)
def test_parameters_shapes_and_gradients(build: type[nn.Module]) -> None:
    model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[build]
    for size in ((40, 40), (28, 28), (17, 33), (16, 16)):
        assert model(torch.rand(2, 3, *size)).shape == (2, 10)
    logits = build(in_chans=1, num_classes=4)(torch.rand(3, 1, 28, 28).to(memory_format=torch.channels_last))
    assert logits.shape == (3, 4)
    model(torch.rand(2, 3, 40, 40)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_each_stands_for() -> None:
    norms = {build: sum(isinstance(module, nn.BatchNorm2d) for module in build().modules()) for build in PARAMETERS}
    assert norms[TinyAlex] == 0
    assert norms[TinyRes] > 0
    assert norms[TinyMobile] > 0
    # Global average pooling and one linear layer on top: a shift by the whole stride leaves the logits as they are.
    assert isinstance(TinyRes().pool, nn.AdaptiveAvgPool2d)
    assert TinyRes().fc.in_features == 64
    assert any(conv.groups == conv.in_channels > 1 for conv in TinyMobile().modules() if isinstance(conv, nn.Conv2d))


@pytest.mark.parametrize("build", PARAMETERS)
def test_a_batch_is_its_images(build: type[nn.Module]) -> None:
    model, x = build().double().eval(), torch.rand(3, 3, 40, 40).double()
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
