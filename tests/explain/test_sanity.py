"""The model-randomisation check: it fails what ignores the network and passes what reads it."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.check import Check
from striate.errors import InputError, ModelError
from striate.explain.base import Explainer, RawMap, Target, resolve_target, score
from striate.explain.sanity import randomization_check


class PlainGradient(Explainer):
    name, family = "plain gradient", "gradient"

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        x = inputs.requires_grad_()
        logits = self.model(x)
        picked = resolve_target(logits, target)
        (grad,) = torch.autograd.grad(score(logits, picked).sum(), x)
        return RawMap(grad.abs().amax(dim=1), picked, Check("none", None, "none"))


class Edges(Explainer):
    """Looks like an explanation, and never asks the network."""

    name, family = "edges", "gradient"

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        grey = inputs.mean(dim=1)
        edges = (grey[:, 1:, 1:] - grey[:, :-1, :-1]).abs()
        return RawMap(
            F.pad(edges, (1, 0, 1, 0)), resolve_target(self.model(inputs), target), Check("none", None, "none")
        )


class Blank(Explainer):
    name, family = "blank", "gradient"

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        zeros = torch.zeros_like(inputs[:, 0])
        return RawMap(zeros, resolve_target(self.model(inputs), target), Check("none", None, "none"))


class TinyTransformer(nn.Module):
    """Class token, position table, torch's own attention (its projection is called by function), layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.place = nn.Parameter(torch.randn(1, 17, 16) * 0.1)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1) + self.place
        return self.head(self.block(tokens)[:, 0])


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def seeded_net(build: type | object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()  # type: ignore[operator]


IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", [cnn, TinyTransformer])
def test_a_gradient_passes_and_edges_fail(build: object) -> None:
    model = seeded_net(build)
    passed = randomization_check(model, IMAGES, PlainGradient)
    failed = randomization_check(model, IMAGES, Edges)
    assert passed.check.passed
    assert failed.check.passed is False
    assert "hardly depends" in failed.check.statement
    torch.testing.assert_close(failed.spearman, torch.ones_like(failed.spearman))
    torch.testing.assert_close(failed.ssim, torch.ones_like(failed.ssim))
    assert passed.spearman.shape == (len(passed.stages), 4)
    assert passed.to_dict()["stages"] == list(passed.stages)


def test_the_cascade_goes_from_the_logits_to_the_input() -> None:
    assert randomization_check(seeded_net(cnn), IMAGES, Edges).stages == ("8", "4", "3", "1", "0")
    assert randomization_check(seeded_net(cnn), IMAGES, Edges, stages=2).stages == ("8", "0")
    assert randomization_check(seeded_net(cnn), IMAGES, Edges, stages=1).stages == ("0",)
    stages = randomization_check(seeded_net(TinyTransformer), IMAGES, Edges, stages=99).stages
    assert stages[0] == "head"
    assert stages[-1] == "(the network's own parameters)"  # class token and position table
    assert stages.index("block.self_attn.out_proj") < stages.index("block.self_attn") < stages.index("patch")


def test_layers_are_ordered_as_they_run_not_as_they_are_written() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 5)
            self.trunk = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.trunk(x).mean(dim=(2, 3)))

    assert randomization_check(seeded_net(Backwards), IMAGES, Edges).stages == ("head", "trunk")


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = seeded_net(cnn).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="training mode"):
        randomization_check(model, IMAGES, PlainGradient)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_seed_fixes_it_and_the_class_stays_the_trained_networks() -> None:
    model = seeded_net(cnn)
    first, again = (randomization_check(model, IMAGES, PlainGradient, seed=3) for _ in range(2))
    assert torch.equal(first.spearman, again.spearman)
    assert not torch.equal(first.spearman, randomization_check(model, IMAGES, PlainGradient, seed=4).spearman)
    assert torch.equal(first.target, model(IMAGES).argmax(dim=1))
    assert randomization_check(model, IMAGES, PlainGradient, target=2).target.tolist() == [2] * 4


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_deep_networks_keep_a_signal_when_randomised(name: str) -> None:
    options = {"img_size": 32, "patch_size": 8} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=5, **options).eval()
    result = randomization_check(model, torch.rand(2, 3, 32, 32), PlainGradient, stages=3)
    assert result.check.passed
    assert torch.isfinite(result.spearman).all()
    assert (result.spearman[-1] != 0).all()  # a signal that faded out would give constant maps


def test_a_blank_map_is_not_judged() -> None:
    check = randomization_check(seeded_net(cnn), IMAGES, Blank).check
    assert check.passed is None
    assert "constant" in check.statement


def test_refusals() -> None:
    with pytest.raises(ModelError, match="no weights"):
        randomization_check(nn.Flatten(), IMAGES, Edges)
    with pytest.raises(InputError, match="stages"):
        randomization_check(seeded_net(cnn), IMAGES, Edges, stages=0)
    with pytest.raises(InputError, match="bound"):
        randomization_check(seeded_net(cnn), IMAGES, Edges, bound=2)
    with pytest.raises(InputError, match="class index"):
        randomization_check(seeded_net(cnn), IMAGES, Edges, target=7)
