"""The first convolution taken out of a path: the same attributions, and only where the network allows it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from striate.engine.model import Preprocessing, VisionModel
from striate.engine.state import inspected
from striate.explain import gradient
from striate.explain.batching import Copies
from striate.explain.gradient import IntegratedGradients
from striate.explain.stem import Stem


def network(*below: nn.Module, stride: int = 2) -> nn.Sequential:
    """Smooth, so that two routes agree to rounding."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, stride, 1)
    above = [nn.BatchNorm2d(8), nn.Softplus(), nn.Conv2d(8, 8, 3, padding=1), nn.Softplus()]
    return nn.Sequential(*below, first, *above, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 4)).eval()


class Around(nn.Module):
    """A network with something beside its convolutions, or around them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.network = kind, network()
        self.spare = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "shortcut":
            return self.network(x) + x.square().mean(dim=(1, 2, 3))[:, None]
        if self.kind == "twice":
            return self.network(x) + self.network(x.flip(3))
        if self.kind == "one by one":
            return torch.cat([self.network(image[None]) for image in x])
        if self.kind == "checkpoint":
            return checkpoint(self.network, x, use_reentrant=False)
        return self.network(x)


class Change(nn.Module):
    """Something that is done to the image first."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "clip":
            return x.clamp(0.2, 0.8)
        if self.kind == "round":
            return x + ((255 * x).round() / 255 - x).detach()
        if self.kind == "gamma":
            return x.clamp_min(1e-6) ** 0.5
        if self.kind == "own scale":
            return x / (x.mean(dim=(1, 2, 3), keepdim=True) + 0.1)
        return 2 * x.flip(1) - 1


def pictures(n: int, size: tuple[int, int] = (21, 26)) -> Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


def stems(model: nn.Module, images: Tensor) -> Stem:
    with inspected(model):
        copies = Copies.of(model, images, 1, "test", None, backward=True, each=32)
        with torch.no_grad():
            answers = copies.answers(torch.zeros_like(images))
        return Stem(copies, copies.every, torch.zeros_like(images)).below(answers)


def both_routes(model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    explainer = IntegratedGradients(model, n_steps=16)
    fast = explainer.input_attribution(images, 1)
    monkeypatch.setattr(gradient, "_MANY", 10**9)
    return fast, explainer.input_attribution(images, 1)


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("kind", ["plain", "linear", "checkpoint", "shortcut", "twice", "one by one", "clip", "round"])
def test_attributions_are_those_taken_at_the_pixels(kind, n, monkeypatch):
    model = network(Change(kind)) if kind in {"linear", "clip", "round"} else Around(kind).eval()
    fast, slow = both_routes(model, pictures(n), monkeypatch)
    assert fast.shape == (n, 3, 21, 26)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6 * float(slow.abs().max()) + 1e-7)


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        (network(), True),
        (network(Change("linear")), True),
        (nn.Sequential(nn.Identity(), network(stride=1)).eval(), True),
        (Around("checkpoint").eval(), True),
        *((network(Change(kind)), False) for kind in ("clip", "round", "gamma", "own scale")),
        *((Around(kind).eval(), False) for kind in ("shortcut", "twice", "one by one")),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 21 * 26, 4)).eval(), False),
    ],
    ids=lambda value: None if isinstance(value, nn.Module) else str(value),
)
def test_it_is_taken_out_where_that_holds_and_nowhere_else(model, taken):
    assert [stems(model, pictures(n)).layer is not None for n in (1, 2)] == [taken, taken]


def test_a_convolution_that_is_registered_first_and_called_late_or_never_is_left():
    class Late(nn.Module):
        def __init__(self, called: bool) -> None:
            super().__init__()
            self.late, self.rest, self.called = nn.Conv2d(4, 4, 1), network(), called

        def forward(self, x: Tensor) -> Tensor:
            logits = self.rest(x)
            return self.late(logits.tanh()[:, :, None, None])[:, :, 0, 0] if self.called else logits

    assert stems(Late(called=True).eval(), pictures(2)).layer is None
    assert stems(Late(called=False).eval(), pictures(2)).layer is None


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0"])
def test_networks_of_timm_have_one_also_behind_a_preprocessing(name):
    torch.manual_seed(0)
    size = (224, 224) if name.startswith("vit") else (96, 80)
    model = VisionModel(timm.create_model(name).eval(), Preprocessing((3, *size), (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)))
    assert stems(model, pictures(1, size)).layer is not None


def test_float64_goes_the_same_way(monkeypatch):
    fast, slow = both_routes(network().double(), pictures(2).double(), monkeypatch)
    assert fast.dtype == torch.float64
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)


def test_an_in_place_activation_above_is_no_obstacle(monkeypatch):
    model = network()
    model[1], model[2] = nn.Identity(), nn.ELU(inplace=True)
    fast, slow = both_routes(model, pictures(2), monkeypatch)
    assert stems(model, pictures(2)).layer is not None
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-7)


def test_a_network_that_takes_only_the_classical_layout(monkeypatch):
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 19 * 24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x).tanh().view(len(x), -1))

    model = Viewing().eval()
    fast, slow = both_routes(model, pictures(2), monkeypatch)
    assert stems(model, pictures(2)).layer is model.first
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-7)


def test_the_network_leaves_as_it_came():
    model = network()
    before = {name: set(module.__dict__) for name, module in model.named_modules()}
    IntegratedGradients(model, n_steps=16).attribute(pictures(2), 1)
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
