"""Masked entries train, all others are bitwise still, whatever the optimizer carries with it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from striate.engine.train import Recipe, fit
from striate.errors import InputError, LayerError
from striate.learn.freezing import freeze_except
from striate.learn.grad_mask import GradMask, random_parameter_mask
from striate.models.cifar_resnet import cifar_resnet

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
}


def small() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(8, 4, in_chans=1)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int = 3) -> None:
    for i in range(n):
        optimizer.zero_grad()
        model(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(i))).square().sum().backward()
        optimizer.step()


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exactly_two_entries_a_channel_move(name: str) -> None:
    model = small()
    mask = random_parameter_mask(model, seed=3)
    assert mask.trainable == freeze_except(small()).trainable  # as many as batch norms have
    before = copies(model)
    kind, options = OPTIMIZERS[name]
    steps(model, kind(model.parameters(), **options))
    for key, value in model.named_parameters():
        changed = value.detach() != before[key]
        if key in mask.masks:
            assert torch.equal(changed, mask.masks[key])
            assert (changed.flatten(1).sum(dim=1) == 2).all()
        else:
            assert not changed.any()


def test_momentum_gathered_before_the_mask_moves_nothing_else() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps(model, optimizer)
    mask = random_parameter_mask(model)
    before = copies(model)
    steps(model, optimizer)
    for key, chosen in mask.masks.items():
        assert torch.equal(dict(model.named_parameters())[key].detach() != before[key], chosen)


def test_it_works_inside_the_training_loop_and_trains() -> None:
    model = small()
    mask = random_parameter_mask(model)
    before = copies(model)
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = images.mean((1, 2, 3)).gt(0.5).long()
    recipe = Recipe(6, 20, "sgd", lr=0.1, momentum=0.9, weight_decay=0.01)
    records = fit(model, images, labels, recipe)
    assert records[-1]["loss"] < records[0]["loss"]
    assert sum(int((p.detach() != before[n]).sum()) for n, p in model.named_parameters()) == mask.trainable


def test_weights_loaded_later_are_the_ones_that_are_held() -> None:
    model = small()
    mask = random_parameter_mask(model)
    model.load_state_dict(cifar_resnet(8, 4, in_chans=1).state_dict())
    before = copies(model)
    steps(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
    name = "blocks.0.conv1.weight"
    assert torch.equal(model.get_parameter(name).detach() != before[name], mask.masks[name])


def test_gradients_that_are_not_finite_stay_where_they_are() -> None:
    layer = nn.Linear(2, 1, bias=False)
    GradMask(layer, {"weight": torch.tensor([[True, False]])})
    layer(torch.tensor([[1.0, float("nan")]])).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0, 0.0]]


def test_removed_it_lets_go_and_leaves_no_hook_behind() -> None:
    before = len(_global_optimizer_post_hooks), len(_global_optimizer_pre_hooks)
    layer = nn.Linear(2, 1, bias=False)
    start = layer.weight.detach().clone()
    with GradMask(layer, {"weight": torch.tensor([[False, False]])}):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=1.0)
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert torch.equal(layer.weight, start)
    optimizer.zero_grad()
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert (layer.weight != start).all()
    assert (len(_global_optimizer_post_hooks), len(_global_optimizer_pre_hooks)) == before


def test_it_dies_with_the_model() -> None:
    before = len(_global_optimizer_post_hooks)
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    mask = random_parameter_mask(model)
    assert len(_global_optimizer_post_hooks) == before + 1
    del model
    gc.collect()
    assert len(_global_optimizer_post_hooks) == before
    mask.remove()


@given(
    st.sampled_from([nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.integers(1, 3),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_each_output_channel_has_its_share(kind: Any, a: int, b: int, groups: int, per_channel: int, seed: int) -> None:
    conv = kind(groups * a, groups * b, 3, groups=groups)
    mask = random_parameter_mask(nn.Sequential(conv), per_channel, seed).masks["0.weight"]
    if conv.transposed:
        mask = mask.view(groups, a, b, -1).transpose(1, 2).reshape(groups * b, -1)
    assert mask.flatten(1).sum(dim=1).tolist() == [per_channel] * conv.out_channels


def test_the_seed_decides_and_the_global_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, second, third = (random_parameter_mask(small(), seed=seed).masks for seed in (1, 1, 2))
    torch.manual_seed(0)
    small()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv.weight"], third["conv.weight"])
    torch.set_rng_state(before)
    random_parameter_mask(nn.Sequential(nn.Conv2d(1, 1, 3)), seed=5)
    chosen = torch.stack([random_parameter_mask(nn.Conv2d(1, 400, 3), seed=s).masks["weight"] for s in range(3)])
    assert chosen.float().mean(dim=(0, 1)).sub(2 / 9).abs().max() < 0.05  # every place alike


def test_wrong_masks_are_refused() -> None:
    layer = nn.Linear(2, 1)
    for masks, words in (
        ({"weights": torch.ones(1, 2, dtype=torch.bool)}, "by names"),
        ({"weight": torch.ones(2, 1, dtype=torch.bool)}, r"\(1, 2\)"),
        ({"weight": torch.ones(1, 2)}, "float32"),
    ):
        with pytest.raises(InputError, match=words):
            GradMask(layer, masks)
    layer.weight.requires_grad_(False)
    with pytest.raises(InputError, match="require grad"):
        GradMask(layer, {"weight": torch.ones(1, 2, dtype=torch.bool)})
    with pytest.raises(LayerError, match="no convolution"):
        random_parameter_mask(layer)
    with pytest.raises(InputError, match="at most 1"):
        random_parameter_mask(nn.Sequential(nn.Conv2d(1, 2, 1)))
    with pytest.raises(InputError, match=">= 1"):
        random_parameter_mask(layer, 0)


def test_its_face() -> None:
    assert repr(random_parameter_mask(nn.Sequential(nn.Conv2d(1, 2, 3)))) == "<GradMask: 4 of 18 entries of 1 tensors>"


def test_a_weight_that_is_computed_is_refused():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    with pytest.raises(LayerError, match="weight of '0' is computed"):
        random_parameter_mask(model)
