"""Every registered method is held to the public contracts, and the contracts catch what they promise to catch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from striate.errors import CheckError
from striate.explain.base import RawMap, Target, resolve_target
from striate.explain.gradient import Gradient
from striate.explain.registry import METHODS
from striate.layers.dual_bn import DualBatchNorm
from striate.models.mini import densenet_mini, inception_mini, resnet_mini
from striate.models.tiny import TinyAlex, TinyMobile, TinyRes
from striate.stress.fgsm import fgsm
from striate.stress.pgd import pgd
from striate.testing import Sample, check_attack, check_explainer, check_layer, check_model, sample_network

FEW = {
    "gradient-shap": {"n_samples": 6},
    "smoothgrad": {"n_samples": 6},
    "integrated-gradients": {"n_steps": 6},
    "rise": {"n_masks": 24},
    "lime": {"n_segments": 8, "n_samples": 30},
    "meaningful-perturbation": {"iterations": 4, "mask_size": 6},
    "occlusion": {"window": 6, "stride": 3},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_explainer_keeps_the_contract(name: str) -> None:
    check_explainer(METHODS[name].factory, model=sample_network(), **FEW.get(name, {}))


@pytest.mark.parametrize(
    ("attack", "eps"),
    [
        (partial(fgsm, eps=4 / 255), 4 / 255),
        (partial(pgd, eps=4 / 255, steps=3), 4 / 255),
        (partial(pgd, eps=0.5, norm="l2", steps=3), None),
    ],
    ids=["fgsm", "pgd-linf", "pgd-l2"],
)
def test_every_attack_keeps_the_contract(attack: partial[Tensor], eps: float | None) -> None:
    check_attack(attack, eps=eps)


@pytest.mark.parametrize("make", [resnet_mini, inception_mini, densenet_mini])
def test_every_mini_network_keeps_the_contract(make: type[nn.Module]) -> None:
    check_model(make(), torch.rand(2, 1, 28, 28), classes=10)


@pytest.mark.parametrize("make", [TinyAlex, TinyRes, TinyMobile])
def test_every_tiny_network_keeps_the_contract(make: type[nn.Module]) -> None:
    check_model(make(), torch.rand(2, 3, 40, 40), classes=10)


def test_a_layer_keeps_the_contract() -> None:
    check_layer(DualBatchNorm(nn.BatchNorm2d(3)), torch.rand(2, 3, 4, 4))


class Careless(Gradient):
    """A method that breaks one promise, named by ``fault``."""

    fault = ""

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        raw = super()._explain(inputs, target)
        if self.fault == "mode":
            self.model.training = True
            next(self.model.children()).register_forward_hook(lambda *_: None)
        if self.fault == "random":
            return RawMap(raw.map + torch.rand(()) * id(object()) % 7, raw.target, raw.check)
        if self.fault == "batch":
            return RawMap(raw.map / raw.map.mean(), raw.target, raw.check)
        if self.fault == "target":
            return RawMap(raw.map, resolve_target(self.model(inputs), None), raw.check)
        return raw


@pytest.mark.parametrize(
    ("fault", "promise"), [("mode", "hooks"), ("batch", "alone and in a batch"), ("target", "class asked for")]
)
def test_the_contract_catches_a_careless_explainer(fault: str, promise: str) -> None:
    broken = type("Broken", (Careless,), {"fault": fault})
    with pytest.raises(CheckError, match=promise):
        check_explainer(broken)


def test_the_contract_catches_a_careless_attack() -> None:
    with pytest.raises(CheckError, match=r"pixels in \[0, 1\]"):
        check_attack(lambda model, x, y: x + 1)
    with pytest.raises(CheckError, match="within eps"):
        check_attack(lambda model, x, y: fgsm(model, x, y, 0.1), eps=0.05)
    with pytest.raises(CheckError, match="untouched"):
        check_attack(lambda model, x, y: x.mul_(0.5))
    with pytest.raises(CheckError, match="loss not lower"):
        check_attack(lambda model, x, y: fgsm(model, x, y, 0.1, targeted=True))


def test_the_contract_catches_a_careless_network() -> None:
    class Mixing(Sample):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(dim=0, keepdim=True))

    with pytest.raises(CheckError, match="alone and in a batch"):
        check_model(Mixing(), torch.rand(2, 3, 16, 16))


def compiled(how: str) -> nn.Module:
    model = sample_network()
    if how == "wrapped":
        return torch.compile(model, backend="eager")  # type: ignore[return-value]
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_network_is_explained_and_attacked_as_the_plain_one(how: str) -> None:
    plain, model, x = sample_network(), compiled(how), torch.rand(2, 3, 32, 32)
    same = model(x)
    torch.testing.assert_close(same, plain(x))
    for name in ("gradient", "grad-cam", "ablation-cam", "guided-backprop", "rise"):
        ours = METHODS[name].factory(model, **FEW.get(name, {})).attribute(x, 1)
        theirs = METHODS[name].factory(plain, **FEW.get(name, {})).attribute(x, 1)
        torch.testing.assert_close(ours.map, theirs.map)
        assert ours.layer == theirs.layer
    torch.testing.assert_close(pgd(model, x, steps=2), pgd(plain, x, steps=2))
    torch.testing.assert_close(model(x), same)
