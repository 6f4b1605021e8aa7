"""Packed convolutions: the same numbers, gradients where they are asked for, the network as it came."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.explain.batching import Copies
from striate.explain.folding import FoldedNorms
from striate.explain.packing import PackedConvolutions, can_pack

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


def test_a_gradient_goes_through_the_convolutions_themselves():
    model, images = network().requires_grad_(False), pictures().requires_grad_()
    (own,) = torch.autograd.grad(model(images).sum(), images)
    with PackedConvolutions(model, FoldedNorms(model)):
        (within,) = torch.autograd.grad(model(images).sum(), images)
    torch.testing.assert_close(within, own, rtol=1e-4, atol=1e-6)


def test_copies_without_a_gradient_are_run_packed_where_there_are_many():
    model, images = network(), pictures()

    def norms(each: int, backward: bool) -> object:
        return Copies.of(model, images, 1, "test", None, backward=backward, each=each).norms

    assert isinstance(norms(64, False), PackedConvolutions)
    assert not isinstance(norms(2, False), PackedConvolutions)
    assert not isinstance(norms(64, True), PackedConvolutions)


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
