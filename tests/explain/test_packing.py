"""Packed convolutions: the same numbers, gradients where they are asked for, the network as it came."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.explain.batching import Copies
from striate.explain.folding import FoldedNorms
from striate.explain.gradient import IntegratedGradients
from striate.explain.packing import PackedConvolutions, can_pack
from striate.explain.rise import RISE

pytestmark = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN")


def network() -> nn.Module:
    """Every kind of convolution: grouped, dilated, with and without bias, with other paddings, computed weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 5, stride=2, padding=(2, 1), groups=8),
        nn.Conv2d(8, 12, (1, 3), dilation=2, groups=2),
        nn.Conv2d(12, 12, 3, padding="same"),
        nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 6, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()


def pictures(n: int = 3, size: tuple[int, int] = (19, 26)) -> torch.Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("n", "size"), [(1, (19, 26)), (3, (19, 26)), (2, (33, 17))])
def test_the_numbers_are_those_of_the_network(layout, n, size):
    model, images = network(), pictures(n, size).contiguous(memory_format=layout)
    with torch.no_grad():
        own = model(images)
        with PackedConvolutions(model, FoldedNorms(model, layout)):
            packed = [module for module in model if "forward" in module.__dict__ and isinstance(module, nn.Conv2d)]
            answer = model(images)
    assert len(packed) == 3
    torch.testing.assert_close(answer, own, rtol=1e-5, atol=1e-6)


def test_the_network_leaves_as_it_came_also_after_an_error():
    model = network()
    before = {name: (id(module), dict(module.__dict__)) for name, module in model.named_modules()}
    packed = PackedConvolutions(model, FoldedNorms(model))
    with pytest.raises(RuntimeError), packed:
        model(torch.rand(1, 5, 8, 8))
    after = {name: (id(module), dict(module.__dict__)) for name, module in model.named_modules()}
    assert before.keys() == after.keys()
    for name, (identity, attributes) in before.items():
        assert after[name][0] == identity
        assert after[name][1].keys() == attributes.keys()
    assert torch.equal(model(pictures()), network()(pictures()))


@settings(max_examples=150, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 6]),
    widths=st.sampled_from([(6, 6), (6, 12), (12, 6)]),
    size=st.tuples(st.integers(10, 15), st.integers(10, 15)),
    n=st.integers(1, 3),
    classical=st.booleans(),
)
def test_any_geometry_gives_the_gradient_of_the_convolution(
    kernel, stride, padding, dilation, groups, widths, size, n, classical
):
    torch.manual_seed(0)
    convolution = nn.Conv2d(*widths, kernel, stride, padding, dilation, groups).requires_grad_(False)
    images = torch.randn(n, widths[0], *size).requires_grad_()
    own = convolution(images)
    weights = torch.randn_like(own)
    weights = weights if classical else weights.contiguous(memory_format=torch.channels_last)
    (expected,) = torch.autograd.grad(own, images, weights)
    with PackedConvolutions(convolution, FoldedNorms(convolution)):
        response = convolution(images)
        assert "Convolution" in type(response.grad_fn).__name__
        assert type(response.grad_fn) is not type(own.grad_fn)
        (gradient,) = torch.autograd.grad(response, images, weights)
    torch.testing.assert_close(response, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_that_is_the_same_everywhere_is_taken():
    model, images = network().requires_grad_(False), pictures().requires_grad_()
    (own,) = torch.autograd.grad(model[:6](images).sum(), images)
    with PackedConvolutions(model, FoldedNorms(model)):
        (within,) = torch.autograd.grad(model[:6](images).sum(), images)
    torch.testing.assert_close(within, own, rtol=1e-4, atol=1e-6)


def test_weights_that_are_to_be_trained_get_their_gradient():
    model = network()
    with PackedConvolutions(model, FoldedNorms(model)):
        model(pictures()).sum().backward()
    assert model[3].weight.grad is not None


@pytest.mark.parametrize("backward", [False, True])
def test_copies_are_run_packed_where_there_are_many(backward):
    model, images = network().requires_grad_(False), pictures()

    def norms(each: int) -> object:
        return Copies.of(model, images, 1, "test", None, backward=backward, each=each).norms

    assert isinstance(norms(64), PackedConvolutions)
    assert not isinstance(norms(2), PackedConvolutions)


class Sensitive(nn.Module):
    """Adds to its scores how much they change with the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(3, 8, 3, 2),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ]
        self.net = nn.Sequential(*layers, nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            logits = self.net(x)
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return logits + 100 * slope.square().sum(dim=(1, 2, 3))[:, None]


def test_a_network_that_uses_a_gradient_of_its_own_keeps_that_term():
    model, images = Sensitive().eval().requires_grad_(False), pictures().requires_grad_()
    (own,) = torch.autograd.grad(model(images)[:, 1].sum(), images)
    (without,) = torch.autograd.grad(model.net(images)[:, 1].sum(), images)
    assert (own - without).abs().max() > 0.1 * own.abs().max()
    with PackedConvolutions(model, FoldedNorms(model)):
        (within,) = torch.autograd.grad(model(images)[:, 1].sum(), images)
    torch.testing.assert_close(within, own, rtol=1e-4, atol=1e-5 * float(own.abs().max()))


class Mapped(nn.Module):
    """A convolution under a transform, which the packed operator has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.vmap(self.first, in_dims=1)(x[:, :, None]).amax(dim=(0, 3, 4)))


@pytest.mark.parametrize("explainer", [IntegratedGradients(Mapped().eval(), n_steps=32), RISE(Mapped().eval())])
def test_a_network_with_transforms_of_its_own_is_run_as_it_is(explainer):
    images = pictures()
    assert explainer.attribute(images, 1).map.shape == (3, 19, 26)


class Several(nn.Module):
    """Convolutions that are given one image at a time, float64, and bfloat16 by an autocast of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3).double()
        self.mixed, self.third, self.head = nn.Linear(8, 8), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.stack([self.first(image) for image in x]).relu()
        x = self.second(x.double()).relu().float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.third(self.mixed(x.movedim(1, -1)).movedim(-1, 1))
        return self.head(x.float().mean(dim=(2, 3)))


def test_what_the_packed_operator_does_not_take_is_run_by_the_convolution():
    torch.manual_seed(0)
    model, images = Several().eval(), pictures()
    with torch.no_grad():
        own = model(images)
        with PackedConvolutions(model, FoldedNorms(model)):
            assert torch.equal(model(images), own)


def test_norms_are_folded_where_no_convolution_can_be_packed():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
    model = nn.Sequential(first, nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    norms = Copies.of(model, pictures(), 1, "test", None, backward=False, each=64).norms
    assert isinstance(norms, PackedConvolutions)
    with norms:
        assert "forward" in model[1].__dict__


def test_who_turned_onednn_off_gets_no_packed_weights(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not can_pack()
