"""What is frozen is bitwise still, what is asked for is trained, and every layer's kind is known."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from striate.engine.load import load_model
from striate.engine.train import Recipe, fit
from striate.errors import InputError, LayerError
from striate.learn.freezing import KINDS, freeze_except, freeze_spatial, parameter_roles
from striate.models.cifar_resnet import cifar_resnet

RECIPE = Recipe(2, batch_size=8, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.1)


def small() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(8, 4, in_chans=1)


def train(model: nn.Module) -> None:
    images = torch.rand(24, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    fit(model, images, torch.arange(24) % 10, RECIPE)


def moved(model: nn.Module) -> set[str]:
    """Names of the tensors that training changes."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model)
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def statistics(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_buffers()}


@pytest.mark.parametrize(
    "kinds", [("bn",), ("bn", "output"), ("bn", "shortcut"), ("output",), ("conv", "linear"), ("pointwise",)]
)
def test_training_moves_what_was_asked_for_and_nothing_else(kinds: tuple[str, ...]) -> None:
    """Weight decay 0.1 and momentum 0.9 leave the frozen tensors bitwise alone; running statistics go on."""
    model = small()
    report = freeze_except(model, kinds)
    assert moved(model) - statistics(model) == set(report.names)
    assert set(report.names) | set(report.frozen_names) == {name for name, _ in model.named_parameters()}
    assert report.trainable + report.frozen == sum(p.numel() for p in model.parameters())


def test_batch_norms_stay_in_train_mode_and_their_statistics_move() -> None:
    model = small().train()
    freeze_except(model, "output")
    assert all(module.training for module in model.modules())
    assert {"bn.running_mean", "blocks.2.bn2.running_var"} <= moved(model)


def test_frozen_weights_cost_no_gradient() -> None:
    model = small()
    freeze_except(model)
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(freeze_except(model).names)


def test_paper_counts() -> None:
    with torch.device("meta"):
        model = cifar_resnet(110)
        assert freeze_except(model).trainable == 8_288
        assert freeze_except(model, {"bn", "output"}).trainable == 8_288 + 650
        assert freeze_except(model, ["bn", "shortcut"]).trainable == 8_288 + 2_752 - 192
        assert freeze_except(model, "output").trainable == 650
        assert freeze_except(model, lambda role: "bn" not in role.kinds).trainable == 1_730_714 - 8_288
        assert freeze_except(model, lambda role: True).frozen == 0


@pytest.mark.parametrize(
    ("name", "total", "of_norms"),
    [
        ("resnet18", 11_689_512, 9_600),
        ("resnet34", 21_797_672, 17_024),
        ("resnet50", 25_557_032, 53_120),
        ("resnet101", 44_549_160, 105_344),
        ("resnet152", 60_192_808, 151_424),
    ],
)
def test_imagenet_resnets_have_the_published_counts(name: str, total: int, of_norms: int) -> None:
    with torch.device("meta"):
        report = freeze_except(getattr(torchvision.models, name)(), "bn")
    assert (report.trainable + report.frozen, report.trainable) == (total, of_norms)


@pytest.mark.parametrize(
    ("name", "spatial", "pointwise"),
    [
        ("resnet18", 10_994_880, 172_032),
        ("resnet50", 11_326_656, 12_128_256),
        ("mobilenet_v2", 65_088, 2_124_672),
        ("densenet121", 2_147_520, 4_722_688),
        ("resnext50_32x4d", 1_424_064, 21_487_616),
        ("convnext_tiny", 1_877_472, 0),
    ],
)
def test_spatial_and_pointwise_weights_have_the_published_counts(name: str, spatial: int, pointwise: int) -> None:
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    weights = [role for role in parameter_roles(model) if role.parameter.dim() == 4]
    counted = {kind: sum(r.parameter.numel() for r in weights if kind in r.kinds) for kind in ("spatial", "pointwise")}
    assert counted == {"spatial": spatial, "pointwise": pointwise}
    report = freeze_spatial(model)
    frozen = {role.name for role in parameter_roles(model) if not role.parameter.requires_grad}
    assert frozen == set(report.frozen_names) == {r.name for r in parameter_roles(model) if "spatial" in r.kinds}


def test_freezing_spatial_leaves_pointwise_shortcuts_and_biases_of_other_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, (1, 5)), nn.Flatten(), nn.Linear(4, 2)
    )
    assert freeze_spatial(model).names == ("1.weight", "1.bias", "4.weight", "4.bias")
    assert freeze_spatial(model, min_area=9).frozen_names == ("0.weight", "0.bias")
    assert "blocks.1.shortcut.0.weight" in freeze_spatial(small()).names
    with pytest.raises(LayerError, match="50 taps"):
        freeze_spatial(model, 50)
    with pytest.raises(InputError, match="min_area"):
        freeze_spatial(model, 1)


def kinds_of(model: nn.Module) -> dict[str, frozenset[str]]:
    return {role.name: role.kinds for role in parameter_roles(model)}


def test_kinds_of_well_known_networks() -> None:
    with torch.device("meta"):
        resnet, vit = kinds_of(torchvision.models.resnet50()), kinds_of(torchvision.models.vit_b_16())
        convnext, squeeze = kinds_of(timm.create_model("convnext_tiny")), kinds_of(torchvision.models.squeezenet1_0())
    regnet = kinds_of(timm.create_model("regnety_004"))  # counts its widths, which older PyTorch cannot without numbers
    assert resnet["layer1.0.downsample.0.weight"] == {"conv", "pointwise", "shortcut"}
    assert resnet["layer1.0.downsample.1.weight"] == {"bn"}
    assert resnet["fc.bias"] == {"linear", "output", "bias"}
    assert vit["class_token"] == {"other"}
    attention = "encoder.layers.encoder_layer_0.self_attention."
    assert vit[f"{attention}in_proj_weight"] == {"linear"}
    assert vit[f"{attention}in_proj_bias"] == vit[f"{attention}out_proj.bias"] == {"linear", "bias"}
    assert vit["encoder.ln.weight"] == {"norm"}
    assert convnext["stages.1.downsample.1.weight"] == {"conv", "spatial"}  # on the way, not on a shortcut
    assert convnext["stages.0.blocks.0.gamma"] == {"other"}
    assert regnet["s1.b1.downsample.conv.weight"] == {"conv", "pointwise", "shortcut"}
    assert squeeze["classifier.1.weight"] == {"conv", "pointwise", "output"}
    assert set().union(*resnet.values(), *vit.values()) == set(KINDS)


def test_a_wrapped_model_and_declared_classifiers_are_understood() -> None:
    wrapped = load_model(timm.create_model("efficientnet_lite0", num_classes=3))
    assert freeze_except(wrapped, "output").names == ("network.classifier.weight", "network.classifier.bias")


def test_a_tied_parameter_has_the_kinds_of_all_its_places() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    assert [(role.name, role.kinds) for role in parameter_roles(model)] == [("0.weight", {"linear", "output"})]


def test_freezing_again_starts_anew() -> None:
    model = small()
    freeze_except(model, "output")
    assert freeze_except(model, "bn") == freeze_except(small(), "bn")
    assert "trainable in" in repr(freeze_except(model))
    assert freeze_except(model).to_dict()["trainable"] == freeze_except(model).trainable


def test_what_is_not_there_is_named_and_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))
    for kinds, words in (
        ("bn", r"no batch norm\. It has GroupNorm"),
        (["norm", "shortcut"], "'shortcut'.*It has norm"),
    ):
        with pytest.raises(LayerError, match=words):
            freeze_except(model, kinds)
    with pytest.raises(LayerError, match="picks no parameter"):
        freeze_except(model, lambda role: False)
    with pytest.raises(LayerError, match="affine=False"):
        freeze_except(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False)))
    with pytest.raises(InputError, match="'output'"):
        freeze_except(model, "ouptut")
    with pytest.raises(InputError, match="one kind"):
        freeze_except(model, [])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert freeze_except(model, "norm").names == ("1.weight", "1.bias")


def test_what_a_weight_is_computed_from_is_of_its_layer():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    report = freeze_spatial(model)
    assert report.frozen == 4 * 27 + 4 + 4
    assert not any(parameter.requires_grad for parameter in conv.parameters())
    assert freeze_except(model, "conv").trainable == 4 * 27 + 4 + 4
    assert freeze_spatial(conv).frozen == 4 * 27 + 4 + 4


def test_both_heads_of_a_distilled_network_are_its_output_and_without_classes_there_is_none():
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, depth=1)
    assert freeze_except(model, "output").names == ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    with pytest.raises(LayerError, match="'output'"):
        freeze_except(timm.create_model("resnet10t", num_classes=0), "output")
