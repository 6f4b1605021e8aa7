"""Timing leaves networks alone and runs them in turns; memory is counted, not guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.engine.latency import compare_latency, latency
from striate.engine.memory import activation_bytes
from striate.errors import InputError
from striate.models.micro import ResNetMicro
from striate.testing import left_as_it_came


class Counting(nn.Module):
    def __init__(self, log: list[str], name: str) -> None:
        super().__init__()
        self.fc, self.log, self.name = nn.Linear(4, 4), log, name

    def forward(self, x):
        self.log.append(f"{self.name} {'train' if self.training else 'eval'} {torch.is_grad_enabled()}")
        return self.fc(x)

    def __deepcopy__(self, memo):
        return Counting(self.log, self.name)


def test_single_passes_after_a_warm_up():
    log: list[str] = []
    model = Counting(log, "one").train()
    with left_as_it_came(model):
        seconds = latency(model, torch.zeros(1, 4), repeats=5, warmup=2)
    assert seconds.shape == (5,)
    assert (seconds > 0).all()
    assert log == ["one eval False"] * 7


@pytest.mark.parametrize("training", [False, True])
def test_two_networks_take_turns(training):
    log: list[str] = []
    first, second = Counting(log, "a").train(), Counting(log, "b").eval()
    with left_as_it_came(first), left_as_it_came(second):
        found = compare_latency(first, second, torch.zeros(2, 4), repeats=4, warmup=1, training=training)
    mode = "train True" if training else "eval False"
    assert log == [f"{name} {mode}" for name in ("a", "b", "b", "a", "a", "b", "b", "a", "a", "b")]
    assert found.ratio == pytest.approx(found.first / found.second)
    assert found.low <= found.high
    assert found.to_dict()["training"] is training
    with pytest.raises(InputError):
        compare_latency(first, second, torch.zeros(2, 4), repeats=1)


def test_memory_of_a_step_counts_each_tensor_once():
    x = torch.zeros(2, 3, 4, 4)
    conv, image = nn.Conv2d(3, 5, 1), 4 * x.numel()
    assert activation_bytes(conv, x) == image
    assert activation_bytes(nn.Sequential(conv, nn.ReLU()), x) == image + 4 * 2 * 5 * 16
    assert activation_bytes(nn.Sequential(conv, nn.ReLU(inplace=True)), x) == image + 4 * 2 * 5 * 16
    model = ResNetMicro((4, 8)).eval()
    with left_as_it_came(model):
        one, two = (activation_bytes(model, torch.zeros(n, 3, 8, 8)) for n in (2, 4))
    assert 1.9 < two / one < 2.1
