"""Random kernels are diverse and even, repeated ones are not, and the authors' figures come out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.errors import InputError, LayerError
from striate.layers.lc_conv import LCConv2d
from striate.layers.to_lc import collapse_model, to_lc
from striate.learn.filter_statistics import (
    centre_to_border,
    filter_orthogonality,
    filter_report,
    filter_sparsity,
    filter_variance_entropy,
    random_entropy,
    spatial_kernels,
    spatial_variance,
)
from striate.models.cifar_resnet import cifar_resnet
from striate.testing import left_as_it_came


def uniform(*shape: int) -> torch.Tensor:
    return torch.empty(shape).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))


def test_the_authors_fit() -> None:
    assert random_entropy(32) == pytest.approx(0.845659, abs=1e-6)
    assert random_entropy(256) == pytest.approx(0.943307, abs=1e-6)
    with pytest.raises(InputError, match=">= 2"):
        random_entropy(1)


def test_random_kernels_have_all_the_entropy_there_is() -> None:
    assert filter_variance_entropy(uniform(64, 64, 3, 3)) == pytest.approx(math.log10(9), rel=0.02)
    assert filter_variance_entropy(uniform(16, 16, 3, 3), relative=True) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    "kernels", [torch.ones(8, 4, 3, 3), torch.zeros(8, 4, 3, 3), uniform(1, 1, 3, 3).expand(8, 4, 3, 3)]
)
def test_one_repeated_pattern_has_none(kernels: torch.Tensor) -> None:
    assert filter_variance_entropy(kernels) == 0


def test_two_directions_of_equal_variance_have_log_2() -> None:
    kernels = torch.zeros(4, 1, 3, 3)
    kernels[0, 0, 0, 0], kernels[1, 0, 0, 0], kernels[2, 0, 2, 1], kernels[3, 0, 2, 1] = 1, -1, 1, -1
    assert filter_variance_entropy(kernels) == pytest.approx(math.log10(2))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_entropy_is_bounded_and_does_not_depend_on_scale(a: int, b: int, h: int, w: int, scale: float) -> None:
    kernels = uniform(a, b, h, w)
    entropy = filter_variance_entropy(kernels)
    assert 0 <= entropy <= math.log10(h * w) + 1e-9
    assert filter_variance_entropy(scale * kernels) == pytest.approx(entropy, abs=1e-6)
    assert filter_variance_entropy(kernels.flatten(0, 1)) == pytest.approx(entropy)


def test_sparsity_counts_kernels_that_are_nothing_beside_the_largest() -> None:
    kernels = torch.ones(2, 2, 3, 3)
    kernels[0, 1] = 0.009
    kernels[1, 1, 1:] = 0
    assert filter_sparsity(kernels) == 0.25


def test_orthogonality_of_known_filters() -> None:
    assert filter_orthogonality(torch.eye(9).view(9, 1, 3, 3)) == pytest.approx(1)
    assert filter_orthogonality(torch.ones(3, 1, 3, 3) * torch.tensor([1.0, -2, 3]).view(3, 1, 1, 1)) == pytest.approx(
        0
    )
    half = torch.tensor([[1.0, 0], [1, 1], [0, 0]]).view(3, 1, 1, 2)
    assert filter_orthogonality(half) == pytest.approx(1 - 2 * 0.5**0.5 / 6)
    assert filter_orthogonality(torch.ones(1, 4, 3, 3)) == 1


def test_combined_kernels_are_looked_at_and_filters_inside_are_not() -> None:
    torch.manual_seed(0)
    model = to_lc(cifar_resnet(8, 4), 2)
    with left_as_it_came(model):
        kernels = spatial_kernels(model)
        report = filter_report(model)
    collapsed = collapse_model(model)
    assert list(kernels) == list(spatial_kernels(collapsed)) == [layer.name for layer in report.layers]
    assert all(torch.equal(kernels[name], weight) for name, weight in spatial_kernels(collapsed).items())
    assert report.layers[1].kernels == 16
    assert report.layers[1].relative_entropy == pytest.approx(report.layers[1].entropy / random_entropy(16))
    assert report.mean("orthogonality") == pytest.approx(sum(x.orthogonality for x in report.layers) / 7)
    assert report.to_dict()["layers"][0]["name"] == "conv"
    assert str(report).splitlines()[1].startswith("conv ")
    assert repr(report).startswith("<FilterReport: ")
    with pytest.raises(LayerError, match="none has 3 x 3 kernels"):
        filter_report(nn.Conv2d(2, 2, 5)).mean("relative_entropy")
    nonlinear = nn.Sequential(LCConv2d(1, 2, 5, between="relu"))
    assert spatial_kernels(nonlinear)["0"].shape == (2, 1, 5, 5)
    assert filter_report(nonlinear).layers[0].relative_entropy is None


def test_spatial_variance_is_even_for_random_kernels_and_sees_a_strong_centre() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 64, 7), nn.Conv2d(64, 64, 1), nn.Conv2d(2, 3, 3))
    even = spatial_variance(model)
    assert even.shape == (7, 7)
    assert even.sub(1).abs().max() < 0.2
    assert centre_to_border(even) == pytest.approx(1, abs=0.15)
    with torch.no_grad():
        model[0].weight[:, :, 3, 3] *= 2
    assert centre_to_border(spatial_variance(model)) == pytest.approx(4, rel=0.15)
    assert spatial_variance(model, (3, 3)).shape == (3, 3)
    with pytest.raises(LayerError, match="7 x 7, 3 x 3"):
        spatial_variance(model, (5, 5))


def test_layers_of_another_scale_count_alike() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    before = spatial_variance(model)
    with torch.no_grad():
        model[1].weight.mul_(100)
    torch.testing.assert_close(spatial_variance(model), before)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(LayerError, match="more than one tap"):
        filter_report(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(InputError, match="c_out"):
        filter_variance_entropy(torch.ones(3, 3))
    with pytest.raises(InputError, match="3 x 3"):
        filter_variance_entropy(torch.ones(2, 2, 5, 5), relative=True)
    for shape in ((2, 3), (1, 1), (4, 4), (3,)):
        with pytest.raises(InputError, match="odd"):
            centre_to_border(torch.ones(shape))


def test_a_layer_of_zeros_does_not_spoil_the_map_and_one_of_nan_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    alone = spatial_variance(model[:1])
    model[1].weight.data.zero_()
    assert torch.equal(spatial_variance(model), alone)
    with pytest.raises(LayerError, match="do not vary"):
        spatial_variance(model[1])
    model[1].weight.data.fill_(float("nan"))
    with pytest.raises(LayerError, match="'1' has weights that are not finite"):
        filter_report(model)
