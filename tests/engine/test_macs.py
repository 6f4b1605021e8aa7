"""Counts against those of published networks, and of operations by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from striate.engine.macs import count_macs


def test_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert count_macs(model, torch.zeros(2, 3, 4, 4)) == 2 * (16 * 27 * 8 + 8 * 16 * 5)
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    assert count_macs(depthwise, torch.zeros(1, 6, 4, 4)) == 6 * 9 * 16
    assert not any(parameter.is_meta for parameter in depthwise.parameters())


@pytest.mark.parametrize(("name", "size", "published"), [("resnet50", 224, 4.089), ("mobilevit_s", 256, 2.001)])
def test_published(name: str, size: int, published: float) -> None:
    macs = count_macs(timm.create_model(name), torch.zeros(1, 3, size, size))
    assert macs / 1e9 == pytest.approx(published, abs=1e-3)
