"""Losses, masks and reports of ``learn`` on networks that stand on the GPU."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.train import Recipe, fit
from striate.layers.dual_bn import drop_aux_bn
from striate.layers.to_lc import to_lc
from striate.learn.adversarial import AdversarialLoss, AdversarialTrainer, AdvPropTrainer
from striate.learn.dead_channels import dead_channels
from striate.learn.distillation import DistillationLoss
from striate.learn.filter_statistics import filter_report, spatial_variance
from striate.learn.freezing import freeze_except
from striate.learn.gamma import gamma_report, prune_gamma_
from striate.learn.grad_mask import random_parameter_mask
from striate.learn.random_init import init_bn, init_weights
from striate.models.cifar_resnet import cifar_resnet

RECIPE = Recipe(2, 16, "sgd", lr=0.05, momentum=0.9, weight_decay=0.01)


def network() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(8, 4, in_chans=1)


def data(n: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 4
    return 0.2 * torch.rand(n, 1, 8, 8, generator=generator) + 0.2 * labels.view(-1, 1, 1, 1), labels


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("crafting", ["eval", "train"])
def test_crafted_images(device, same, norm, crafting) -> None:
    here, (images, labels) = network().train(), data()
    there, eps = copy.deepcopy(here).to(device), {"l2": 0.5, "linf": 0.05}[norm]
    loss = AdversarialLoss(norm, eps, steps=2, step_size=eps / 2, crafting=crafting)
    found = loss.craft(there, images.to(device), labels.to(device), torch.Generator(device))
    wanted = loss.craft(here, images, labels, torch.Generator())
    moved = (found.cpu() - images).flatten(1)
    assert float((moved.norm(dim=1) if norm == "l2" else moved.abs().amax(dim=1)).max()) <= eps + 1e-6
    assert float(((found.cpu() - wanted).abs() > 1e-3).double().mean()) < 0.03
    assert there.training


def test_adversarial_training_and_advprop(device) -> None:
    images, labels = data()
    trainer = AdversarialTrainer(network().to(device), "linf", 0.02, 2, 0.01, random_start=True)
    records = trainer.fit(images, labels, RECIPE)
    assert records[-1]["loss"] < records[0]["loss"]
    double = AdvPropTrainer(network().to(device), eps=0.02, step_size=0.02)
    records = double.fit(images, labels, RECIPE)
    assert records[-1]["loss"] < records[0]["loss"]
    plain = drop_aux_bn(double.model).eval()
    assert {p.device for p in plain.parameters()} == {device}
    assert plain(images.to(device)).isfinite().all()


@pytest.mark.parametrize("teacher_here", [False, True])
def test_distillation(device, teacher_here) -> None:
    (images, labels), teacher, student = data(8), network().eval(), network().eval()
    nn.init.normal_(student.get_parameter(next(name for name, _ in student.named_parameters())))
    wanted = DistillationLoss(teacher, temperature=2.0, teacher_size=16)(student, images, labels, torch.Generator())
    far = copy.deepcopy(teacher) if teacher_here else copy.deepcopy(teacher).to(device)
    loss = DistillationLoss(far, temperature=2.0, teacher_size=16)
    there = copy.deepcopy(student).to(device)
    found = loss(there, images.to(device), labels.to(device), torch.Generator(device))
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-3)
    assert fit(there, images, labels, replace(RECIPE, batch_size=4, epochs=1), loss=loss)[-1]["loss"] > 0


def test_masked_entries_stay(device) -> None:
    model, plain = network().to(device), network()
    mask, own = random_parameter_mask(model, seed=3), random_parameter_mask(plain, seed=3)
    assert all(torch.equal(m.cpu(), own.masks[name]) for name, m in mask.masks.items())  # on any device the same
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, *data(), RECIPE)
    for name, parameter in model.named_parameters():
        changed = parameter.detach() != before[name]
        assert not (changed & ~mask.masks[name].to(device)).any() if name in mask.masks else not changed.any()
    assert any((p.detach() != before[name]).any() for name, p in model.named_parameters())


def test_freezing(device) -> None:
    model = network().to(device)
    assert freeze_except(model).trainable == freeze_except(network()).trainable
    start = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    fit(model, *data(), RECIPE)
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in start.items())


def test_reports_are_the_cpus(device) -> None:
    here = network()
    init_bn(here, "symmetric", generator=torch.Generator().manual_seed(0))
    there = copy.deepcopy(here).to(device)
    assert gamma_report(there, (0.05, 0.3)).to_dict() == gamma_report(here, (0.05, 0.3)).to_dict()
    assert gamma_report(there).histogram() == gamma_report(here).histogram()
    assert prune_gamma_(there, 0.3) == prune_gamma_(here, 0.3)
    for layer, own in zip(filter_report(there).layers, filter_report(here).layers, strict=True):
        assert layer.entropy == pytest.approx(own.entropy, abs=1e-6)
        assert layer.orthogonality == pytest.approx(own.orthogonality, abs=1e-6)
    assert torch.allclose(spatial_variance(there).cpu(), spatial_variance(here))
    mixed = to_lc(here, 2, seed=0)
    assert filter_report(copy.deepcopy(mixed).to(device)).mean("entropy") == pytest.approx(
        filter_report(mixed).mean("entropy"), abs=1e-4
    )
    relu = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
    relu[0].bias.data[:2] = -9
    wanted = dead_channels(relu, data()[0])
    for images in (data()[0], data()[0].to(device)):
        found = dead_channels(copy.deepcopy(relu).to(device), images)
        assert found.to_dict() == wanted.to_dict()
    assert wanted.share == pytest.approx(1 / 3)


@pytest.mark.parametrize("weights", ["kaiming-normal", "kaiming-uniform", "orthogonal", "binary"])
def test_drawing_weights_there(device, weights) -> None:
    model = network().to(device)
    assert init_weights(model, weights, generator=torch.Generator(device).manual_seed(0)) > 0
    assert init_bn(model, generator=torch.Generator(device).manual_seed(0)) > 0
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 8)
    fan_in = conv.weight[0].numel()
    if weights != "orthogonal":
        assert float(conv.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
    again = network().to(device)
    init_weights(again, weights, generator=torch.Generator(device).manual_seed(0))
    assert torch.equal(next(again.parameters()), next(model.parameters()))
    assert F.cross_entropy(model(data()[0].to(device)), data()[1].to(device)).isfinite()
