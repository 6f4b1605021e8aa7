"""What is computed again counts once, also in compiled code."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from striate.layers.recompute import recomputed


class Checkpointed(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return recomputed(self.part, x)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_and_statistics_are_those_of_plain_training(compiled: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).train()
    part = copy.deepcopy(plain)
    again = Checkpointed(part)
    x = torch.rand(2, 3, 8, 8)
    plain(x).square().mean().backward()
    (torch.compile(again, fullgraph=True, backend="aot_eager") if compiled else again)(x).square().mean().backward()
    torch.compiler.reset()
    for first, second in zip(plain.parameters(), part.parameters(), strict=True):
        torch.testing.assert_close(second.grad, first.grad)
    for (name, first), (_, second) in zip(plain.named_buffers(), part.named_buffers(), strict=True):
        torch.testing.assert_close(second, first, msg=name)
