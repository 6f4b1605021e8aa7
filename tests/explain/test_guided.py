"""Guided backprop at ReLU operations, wherever and however they are called."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.errors import ModelError
from striate.explain.cam import XGradCAM
from striate.explain.guided import GuidedBackprop, GuidedGradCAM, GuidedXGradCAM, guided_gradients

SPELLINGS = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "functional": F.relu,
    "functional in place": lambda x: F.relu(x, inplace=True),
    "method": lambda x: x.relu_(),
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
}


class Closed(nn.Module):
    """Score 1: relu(x1 + 2 x2) - 2 relu(3 x1 - x2). At (2, 1) both units are on."""

    def __init__(self, relu: object, again: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
        self.first.weight.data = torch.tensor([[1.0, 2], [3, -1]])[:, :, None, None]
        self.last.weight.data = torch.tensor([[1.0, -2]])[:, :, None, None]
        self.relu, self.again = relu, again

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        if self.again:
            x = self.relu(x * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1) + torch.tensor([0.0, 9.0]).view(1, 2, 1, 1))
        return self.last(x).flatten(1)


POINT = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_closed_form_in_every_spelling(spelling: str) -> None:
    # Plain gradient: (1, 2) - 2 (3, -1) = (-5, 4). Guided: the second unit's gradient -2 is cut, (1, 2) is left.
    guided = guided_gradients(Closed(SPELLINGS[spelling]), POINT, 0)
    assert guided.gradients.flatten().tolist() == [1.0, 2.0]
    assert guided.relus == 1
    assert guided.lowest == 0


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_closed_form_of_a_reused_relu(spelling: str) -> None:
    # The second call cuts the gradient -2 of the second unit; without that cut it would come to the first call as +2.
    guided = guided_gradients(Closed(SPELLINGS[spelling], again=True), POINT, 0)
    assert guided.gradients.flatten().tolist() == [1.0, 2.0]
    assert guided.relus == 2


def test_captum_is_silently_wrong_where_ours_is_right() -> None:
    captum = pytest.importorskip("captum.attr")
    module, functional = Closed(nn.ReLU()), Closed(F.relu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum announces its hooks each time, right or wrong
        right = captum.GuidedBackprop(module).attribute(POINT.clone().requires_grad_(), target=0)
        wrong = captum.GuidedBackprop(functional).attribute(POINT.clone().requires_grad_(), target=0)
    assert right.flatten().tolist() == [1.0, 2.0]
    assert wrong.flatten().tolist() == [-5.0, 4.0]  # the plain gradient, under the name of the guided one
    assert guided_gradients(functional, POINT, 0).gradients.flatten().tolist() == [1.0, 2.0]


def test_equals_captum_on_plain_modules() -> None:
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4)
    ).eval()  # fmt: skip
    images = torch.rand(3, 3, 10, 10)
    with pytest.warns(UserWarning, match="backward hooks"):
        theirs = captum.GuidedBackprop(model).attribute(images.clone().requires_grad_(), target=torch.tensor([1, 0, 3]))
    ours = guided_gradients(model, images, [1, 0, 3])
    torch.testing.assert_close(ours.gradients, theirs)
    result = GuidedBackprop(model).attribute(images, [1, 0, 3])
    torch.testing.assert_close(result.map, theirs.abs().amax(dim=1).detach())
    assert result.check.passed


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Tanh(), nn.LeakyReLU(0.1)])
def test_a_network_without_relus_is_refused(activation: nn.Module) -> None:
    with pytest.raises(ModelError, match="has none"):
        GuidedBackprop(Closed(activation).eval()).attribute(POINT, 0)


def test_other_nonlinearities_are_named() -> None:
    model = Closed(lambda x: F.silu(F.relu(x))).eval()
    check = GuidedBackprop(model).attribute(POINT, 0).check
    assert check.passed
    assert "says nothing of Silu" in check.statement


def test_guided_cams_are_the_product() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(180, 4),
    ).eval()  # fmt: skip
    images = torch.rand(2, 3, 16, 16)
    result = GuidedXGradCAM(model, "4", eps=1e-5).attribute(images, [2, 0])
    cam = XGradCAM(model, "4", eps=1e-5).attribute(images, [2, 0]).upsampled()
    guided = guided_gradients(model, images, [2, 0]).gradients
    torch.testing.assert_close(result.map, (cam[:, None] * guided).abs().amax(dim=1))
    assert result.layer == "4"
    assert result.map.shape == (2, 16, 16)
    assert GuidedGradCAM(model).attribute(images).map.shape == (2, 16, 16)


def test_hooks_do_not_outlive_the_call() -> None:
    model = Closed(nn.ReLU())
    guided_gradients(model, POINT, 0)
    images = POINT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    assert gradient.flatten().tolist() == [-5.0, 4.0]
