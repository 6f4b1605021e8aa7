"""Random starts have the deviations and ranges that the paper states."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.errors import InputError, LayerError
from striate.learn.random_init import init_bn, init_weights
from striate.models.cifar_resnet import cifar_resnet


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["kaiming-normal", "kaiming-uniform", "binary"])
def test_weights_have_kaimings_deviation(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Linear(500, 400))
    bias = model[0].bias.clone()
    assert init_weights(model, kind, generator=generator()) == 2
    for layer, fan_in in ((model[0], 288), (model[1], 500)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        assert layer.weight.mean().abs().item() < 0.01
    assert torch.equal(model[0].bias, bias)
    if kind == "binary":
        assert len(model[0].weight.abs().unique()) == 1
    if kind == "kaiming-uniform":
        assert model[1].weight.abs().max().item() <= math.sqrt(6 / 500)


def test_it_is_pytorchs_kaiming_normal() -> None:
    layer, other = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    init_weights(layer, generator=generator())
    nn.init.kaiming_normal_(other.weight, generator=generator())
    torch.testing.assert_close(layer.weight, other.weight)


def test_orthogonal_rows_are_orthonormal() -> None:
    conv = nn.Conv2d(8, 16, 3)
    init_weights(conv, "orthogonal", generator=generator())
    rows = conv.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16), atol=1e-5, rtol=0)


@given(st.sampled_from(["uniform", "ones", "symmetric"]), st.floats(-2, 2), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_gammas_are_in_their_range_and_betas_are_set(gamma: str, beta: float, seed: int) -> None:
    model = cifar_resnet(8, 4)
    means = model.bn.running_mean.clone()
    assert init_bn(model, gamma, beta, generator=generator(seed)) == 9
    values = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]).detach()
    low, high = {"uniform": (0, 1), "ones": (1, 1), "symmetric": (-1, 1)}[gamma]
    assert low <= values.min() <= values.max() <= high
    assert (values.min() < 0) == (gamma == "symmetric")
    assert torch.equal(model.blocks[0].bn1.bias, torch.full((4,), beta))
    assert torch.equal(model.bn.running_mean, means)


def test_norms_of_other_kinds_by_option() -> None:
    model = nn.Sequential(nn.GroupNorm(1, 4), nn.BatchNorm1d(4), nn.LayerNorm(4, bias=False), nn.RMSNorm(4))
    assert init_bn(model) == 1
    assert init_bn(model, norms="all") == 4
    assert (model[3].weight < 1).all()


def test_one_generator_one_result() -> None:
    first, second = cifar_resnet(8, 4), cifar_resnet(8, 4)
    before = torch.get_rng_state()
    for model in (first, second):
        source = generator(3)
        init_weights(model, generator=source)
        init_bn(model, generator=source)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True) if a.dim() != 1)
    assert torch.equal(first.bn.weight, second.bn.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="kaiming-normal"):
        init_weights(nn.Linear(1, 1), "xavier")
    with pytest.raises(LayerError, match="no convolution"):
        init_weights(nn.ReLU())
    with pytest.raises(InputError, match="symmetric"):
        init_bn(nn.BatchNorm2d(2), "normal")
    with pytest.raises(InputError, match="finite"):
        init_bn(nn.BatchNorm2d(2), beta=math.nan)
    with pytest.raises(InputError, match="'bn' or 'all'"):
        init_bn(nn.BatchNorm2d(2), norms="group")
    with pytest.raises(LayerError, match="has no batch norm"):
        init_bn(nn.Linear(1, 1))
    with pytest.raises(LayerError, match="affine=False"):
        init_bn(nn.Sequential(nn.BatchNorm2d(2, affine=False)))


def test_a_weight_that_is_computed_is_refused_before_anything_is_drawn():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)))
    start = model[0].weight.detach().clone()
    with pytest.raises(LayerError, match="weight of '1' is computed"):
        init_weights(model)
    assert torch.equal(model[0].weight, start)
