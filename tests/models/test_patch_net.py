"""CNN, LCN and FCN on patches: hand values, containment, closed-form gradients, copies side by side."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.errors import InputError
from striate.models.patch_net import PatchNet, soft_threshold

ARCHS = ("cnn", "lcn", "fcn")


def made(arch: str, k: int, d: int, **options) -> PatchNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PatchNet(arch, k, d, **options).double()


@given(st.floats(-5, 5), st.floats(0, 3))
def test_the_threshold_is_odd_and_linear_at_0(z: float, b: float) -> None:
    one = torch.tensor(z, dtype=torch.float64)
    assert soft_threshold(-one, b) == -soft_threshold(one, b)
    assert soft_threshold(one, 0.0) == one
    assert soft_threshold(one, b).abs() == pytest.approx(max(0.0, abs(z) - b))


def test_its_slope_is_one_outside_the_threshold() -> None:
    z = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_threshold(z, 0.55).sum(), z)
    assert torch.equal(slope, (z.detach().abs() > 0.55).double())


def test_hand_value() -> None:
    x = (torch.arange(6.0, dtype=torch.float64) / 5 - 0.5).reshape(1, 3, 2)
    net = PatchNet("lcn", 3, 2, bias=0.1).double()
    net.weight = nn.Parameter(torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=torch.float64))
    assert net.products(x)[0].tolist() == pytest.approx([-0.5, 0.02, 0.5])
    assert net(x).item() == pytest.approx(0, abs=1e-12)
    net.bias.zero_()
    assert net(x).item() == pytest.approx(0.02)


@pytest.mark.parametrize("copies", [None, 3])
@pytest.mark.parametrize(("narrow", "wide"), list(itertools.combinations(ARCHS, 2)))
def test_each_network_is_a_case_of_the_next(narrow: str, wide: str, copies: int | None) -> None:
    """CNN = LCN with tied rows; LCN = FCN with block-diagonal rows."""
    net = made(narrow, 4, 3, bias=0.2, copies=copies)
    x = torch.randn(*(() if copies is None else (copies,)), 7, 4, 3, dtype=torch.float64)
    assert torch.allclose(net.widened(wide)(x), net(x), atol=1e-14)


def test_widening_keeps_a_network_of_the_same_kind_and_never_narrows() -> None:
    net, x = made("fcn", 3, 2, hidden=5), torch.randn(4, 3, 2, dtype=torch.float64)
    assert torch.equal(net.widened("fcn")(x), net(x))
    with pytest.raises(InputError, match="fcn or what contains it"):
        net.widened("lcn")


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ARCHS), st.integers(1, 5), st.integers(1, 6), st.integers(1, 9), st.sampled_from([None, 1, 3]))
def test_the_gradient_is_autograds(arch: str, k: int, d: int, n: int, copies: int | None) -> None:
    net = made(arch, k, d, bias=0.3, copies=copies)
    many = () if copies is None else (copies,)
    generator = torch.Generator().manual_seed(k + 7 * d + 50 * n)
    x = torch.randn(*many, n, k, d, generator=generator, dtype=torch.float64)
    c = torch.randn(*many, n, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad((c * net(x)).sum(), net.weight)
    assert torch.allclose(net.gradient(x, c), expected, atol=1e-12)


@pytest.mark.parametrize("arch", ARCHS)
def test_gradcheck(arch: str) -> None:
    net = made(arch, 3, 2, bias=0.05)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,))


@pytest.mark.parametrize("arch", ARCHS)
def test_copies_share_nothing_but_common_images(arch: str) -> None:
    net = made(arch, 4, 3, bias=0.1, copies=2)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    alone = made(arch, 4, 3, bias=0.1)
    for copy in range(2):
        alone.weight = nn.Parameter(net.weight[copy].detach())
        assert torch.allclose(net(x)[copy], alone(x[copy]))
        assert torch.allclose(net(x[0])[copy], alone(x[0]))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_answer_to_an_image_does_not_depend_on_its_batch(arch: str) -> None:
    net, x = made(arch, 4, 3, bias=0.1), torch.randn(6, 4, 3, dtype=torch.float64)
    assert torch.allclose(torch.cat([net(one[None]) for one in x]), net(x))
    assert net(x[:0]).shape == (0,)
    assert net.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_projection_gives_unit_filters_and_leaves_zeros() -> None:
    net = made("lcn", 4, 3)
    with torch.no_grad():
        net.weight[1] = 0
    norms = net.project_().weight.norm(dim=-1)
    assert norms.tolist() == pytest.approx([1, 0, 1, 1])


def test_cosine_is_of_every_filter() -> None:
    net, w = made("lcn", 4, 3, copies=2), torch.tensor([1.0, 2.0, 2.0]) / 3
    with torch.no_grad():
        net.weight[1, 2] = 5 * w
    assert net.cosine(w).shape == (2, 4)
    assert net.cosine(w)[1, 2].item() == pytest.approx(1)
    with pytest.raises(InputError, match="FCN"):
        made("fcn", 4, 3).cosine(w)


def test_the_threshold_is_no_parameter() -> None:
    assert [name for name, _ in PatchNet("fcn", 3, 2).named_parameters()] == ["weight"]


def test_refusals() -> None:
    for call in (
        lambda: PatchNet("mlp", 3, 2),
        lambda: PatchNet("cnn", 0, 2),
        lambda: PatchNet("cnn", 3, 2, bias=-1),
        lambda: PatchNet("lcn", 3, 2, hidden=4),
        lambda: PatchNet("cnn", 3, 2)(torch.zeros(3, 2)),
        lambda: PatchNet("cnn", 3, 2)(torch.zeros(5, 3, 2, 1)),
        lambda: PatchNet("cnn", 3, 2, copies=2)(torch.zeros(3, 5, 3, 2)),
    ):
        with pytest.raises(InputError):
            call()
