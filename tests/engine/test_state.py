"""A person's model leaves as it came."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from striate.engine.state import StillStatistics, device_of, inspected, seeded
from striate.errors import TrainModeWarning


def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2))
    model.train()
    model[1].eval()  # frozen BatchNorm inside a network in training mode must come back frozen
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("fails", [False, True])
def test_modes_gradients_and_requires_grad_come_back(fails: bool) -> None:
    model = network()
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    grads = [parameter.grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    wants = [parameter.requires_grad for parameter in model.parameters()]

    def look() -> None:
        with inspected(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            if fails:
                raise KeyError("inside")

    with pytest.warns(TrainModeWarning, match="training mode"), suppress(KeyError):
        look()
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wants
    assert all(a.grad is b for a, b in zip(model.parameters(), grads, strict=True))


def test_seeded_fixes_the_numbers_and_puts_the_state_back() -> None:
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(4)
    with seeded(3):
        second = torch.rand(4)
    with seeded(4):
        third = torch.rand(4)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(before, torch.get_rng_state())


def test_device_of_a_module_without_parameters() -> None:
    assert device_of(nn.Flatten()) == torch.device("cpu")
    assert device_of(nn.BatchNorm1d(2, affine=False)) == torch.device("cpu")


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_stand_still_and_move_again_after(momentum: float | None) -> None:
    norm = nn.BatchNorm2d(2, momentum=momentum)
    norm(torch.rand(4, 2, 3, 3))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    still = StillStatistics(norm)
    for _ in range(2):  # the same object, entered again
        with suppress(KeyError), still:
            norm(torch.rand(4, 2, 3, 3))
            raise KeyError
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norm.momentum == momentum
    norm(torch.rand(4, 2, 3, 3))
    assert norm.num_batches_tracked == 2
    assert not torch.equal(norm.running_mean, before["running_mean"])
