"""Cluttered canvases: seeded, and the whole object is there."""

from __future__ import annotations

import pytest
import torch

from striate.data.cluttered import cluttered_canvases
from striate.errors import InputError


@pytest.mark.parametrize("train", [True, False])
def test_canvases(train) -> None:
    first, again = (cluttered_canvases(40, 0, train=train, source="digits") for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.images.shape == (40, 1, 56, 56)
    assert first.images.dtype == torch.uint8
    assert first.labels.unique().numel() > 5
    assert not torch.equal(first.images, cluttered_canvases(40, 1, train=train, source="digits").images)
    assert first.images.float().mean() > 10
    with pytest.raises(InputError, match="'n'"):
        cluttered_canvases(0, 0)
