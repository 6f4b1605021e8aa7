"""Adversarial training and AdvProp as losses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from striate.engine.model import Preprocessing, VisionModel
from striate.engine.train import Recipe, fit
from striate.errors import InputError, LayerError
from striate.layers.dual_bn import bn_branch, convert_dual_bn, drop_aux_bn
from striate.learn.adversarial import AdversarialLoss, AdversarialTrainer, AdvPropLoss, AdvPropTrainer


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 2),
        )


def two_classes(n: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Class 1 is bright on the left: visible, but a perturbation of L2 length 0.4 can blur it."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (n,), generator=generator)
    images = 0.45 + 0.1 * torch.rand(n, 1, 8, 8, generator=generator)
    images[..., :4] += (labels * 0.2).view(-1, 1, 1, 1)
    return images, labels


GENERATOR = torch.Generator()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("crafting", ["eval", "train"])
def test_crafted_images_lie_in_the_ball_and_raise_the_loss(norm: str, crafting: str) -> None:
    images, labels = two_classes()
    model, eps = network().train(), {"l2": 0.5, "linf": 0.05}[norm]
    loss = AdversarialLoss(norm, eps, steps=4, step_size=eps / 2, crafting=crafting)
    crafted = loss.craft(model, images, labels, GENERATOR)
    moved = (crafted - images).flatten(1)
    length = moved.norm(dim=1) if norm == "l2" else moved.abs().amax(dim=1)
    assert length.max() <= eps + 1e-6
    assert crafted.min() >= 0
    assert crafted.max() <= 1
    model.eval()
    assert F.cross_entropy(model(crafted), labels) > F.cross_entropy(model(images), labels)


@pytest.mark.parametrize("crafting", ["eval", "train"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_crafting_leaves_statistics_modes_and_gradients_alone(crafting: str, momentum: float | None) -> None:
    images, labels = two_classes()
    model = network().train()
    model[1].momentum = momentum
    model[2].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    AdversarialLoss("linf", 0.1, 2, 0.1, crafting=crafting).craft(model, images, labels, GENERATOR)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.children()] == [True, True, False, True, True, True]
    assert model[1].momentum == momentum
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_modes_of_crafting_differ_by_the_statistics_used() -> None:
    images, labels = two_classes()
    model = network().train()
    model[1].running_mean.fill_(3.0)  # far from the batch's own
    first, second = (
        AdversarialLoss("l2", 0.5, 3, 0.2, crafting=mode).craft(model, images, labels, GENERATOR)
        for mode in ("eval", "train")
    )
    assert not torch.allclose(first, second)


def test_eps_zero_is_standard_training() -> None:
    images, labels = two_classes()
    plain, robust = network(), network()
    recipe = Recipe(epochs=2, batch_size=32)
    fit(plain, images, labels, recipe)
    AdversarialTrainer(robust, "l2", eps=0.0, steps=1, step_size=0.1).fit(images, labels, recipe)
    for first, second in zip(plain.state_dict().values(), robust.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second)


def test_training_on_attacks_resists_them() -> None:
    from striate.stress.pgd import pgd

    # A brittle cue of 0.02 in every pixel beside a robust one: standard training leans on both, robust on one.
    images, labels = two_classes(512)
    pattern = torch.randint(0, 2, (1, 1, 8, 8), generator=torch.Generator().manual_seed(2)) * 2.0 - 1
    images = (images + 0.04 * pattern * (labels * 2.0 - 1).view(-1, 1, 1, 1)).clamp(0, 1)
    recipe = Recipe(epochs=6, batch_size=64, lr=5e-3)
    accuracy = {}
    for name, steps in (("plain", 0), ("robust", 3)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        nn.init.zeros_(model[1].weight)
        nn.init.zeros_(model[1].bias)
        if steps:
            AdversarialTrainer(model, "linf", 0.06, steps, 0.036).fit(images, labels, recipe)
        else:
            fit(model, images, labels, recipe)
        attacked = pgd(model.eval(), images, labels, 0.06, norm="linf", steps=10)
        accuracy[name] = (model(attacked).argmax(1) == labels).double().mean().item()
    assert accuracy["robust"] > accuracy["plain"] + 0.1


def test_advprop_loss_is_the_sum_of_two_branches() -> None:
    images, labels = two_classes(32)
    model = convert_dual_bn(network()).train()
    loss = AdvPropLoss("linf", 0.05, 2, 0.03)
    with bn_branch(model, "aux"):
        adversarial = loss.craft(model, images, labels, GENERATOR)
        expected = F.cross_entropy(copy.deepcopy(model)(adversarial), labels)
    expected = expected + F.cross_entropy(copy.deepcopy(model)(images), labels)
    torch.testing.assert_close(loss(model, images, labels, GENERATOR), expected)


def test_advprop_trains_both_sets_and_deploys_one() -> None:
    images, labels = two_classes()
    original = network()
    trainer = AdvPropTrainer(original, eps=0.05, steps=2, step_size=0.03)
    records = trainer.fit(images, labels, Recipe(epochs=12, batch_size=32, lr=1e-2))
    assert records[-1]["loss"] < records[0]["loss"]
    state = trainer.model.state_dict()
    assert not torch.equal(state["1.running_mean"], state["1.aux.running_mean"])
    assert "1.aux.weight" not in original.state_dict()
    deployed = drop_aux_bn(trainer.model).eval()
    assert torch.equal(deployed(images), trainer.model.eval()(images))
    assert (deployed(images).argmax(1) == labels).double().mean() > 0.9
    again = AdvPropTrainer(trainer.model)  # an already converted network is trained as it is
    assert again.model is trainer.model


def test_a_killed_run_continues_to_the_same_bytes(tmp_path) -> None:
    images, labels = two_classes()
    finals = []
    for name in ("a", "b"):
        trainer = AdvPropTrainer(network(), eps=0.05, random_start=True)
        trainer.fit(images, labels, Recipe(epochs=2, batch_size=32), checkpoint=tmp_path / name)
        finals.append((tmp_path / name / "model.safetensors").read_bytes())
    assert finals[0] == finals[1]


def test_the_normaliser_stands_inside() -> None:
    images, labels = two_classes(16)
    model = VisionModel(network(), Preprocessing((1, 8, 8), (0.5,), (0.25,))).train()
    crafted = AdversarialLoss("linf", 0.1, 3, 0.1).craft(model, images, labels, GENERATOR)
    assert (crafted - images).abs().max() == pytest.approx(0.1, abs=1e-6)  # pixels, not normalised units


def test_refusals() -> None:
    images, labels = two_classes(4)
    with pytest.raises(LayerError, match="no batch norm"):
        AdvPropTrainer(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    with pytest.raises(LayerError, match="convert_dual_bn"):
        AdvPropLoss()(network(), images, labels, GENERATOR)
    with pytest.raises(InputError, match=r"0\.03137"):
        AdversarialLoss("linf", 8)
    with pytest.raises(InputError, match="pixels"):
        AdversarialLoss()(network(), images * 255, labels, GENERATOR)
    for wrong in ({"norm": "l1"}, {"eps": -1.0}, {"steps": 0}, {"step_size": 0.0}, {"crafting": "both"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            AdversarialTrainer(network(), **wrong)


@pytest.mark.parametrize("size", [0.0, float("nan"), float("inf")])
def test_a_step_must_have_a_length(size):
    with pytest.raises(InputError, match="'step_size' of AdversarialLoss must be > 0 and finite"):
        AdversarialLoss(step_size=size)
