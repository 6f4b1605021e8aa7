"""Both factors are where they should be and alone give nothing away; a movement backwards is its neighbour."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from striate.data.moving_blob import MOVES, moving_blob
from striate.data.texture_relation import texture_relation
from striate.errors import InputError


def test_texture_and_relation() -> None:
    data = texture_relation(600, seed=3, noise=0.0)
    assert torch.bincount(data.labels).tolist() == [100] * 6
    pictures = data.images[:, 0].float() - 128
    left, right = pictures[..., :33].sum(dim=(1, 2)).sign(), pictures[..., 511:].sum(dim=(1, 2)).sign()
    assert torch.equal(left == right, data.labels % 2 == 1)
    for kind in range(6):  # under every label a mark is bright or dark by a fair coin
        for mark in (left, right):
            bright = float((mark[data.labels == kind] > 0).float().mean())
            assert abs(bright - 0.5) < 4 * 0.5 / math.sqrt(100)
    middle = pictures[..., 33:511]
    assert (middle.flatten(1).count_nonzero(dim=1) == 24 * 24).all()
    for kind in range(3):  # neither the mean nor the deviation of the pixels tells the texture
        chosen = middle[data.labels // 2 == kind]
        assert float(chosen.mean()) == pytest.approx(0, abs=0.02)
        assert float(chosen.std()) == pytest.approx(float(middle.std()), abs=0.05)


def test_seeds_fix_everything_and_other_sizes_go() -> None:
    assert torch.equal(texture_relation(6, seed=1).images, texture_relation(6, seed=1).images)
    assert not torch.equal(texture_relation(6, seed=1).images, texture_relation(6, seed=2).images)
    small = texture_relation(12, seed=0, size=(24, 64), gap=40, mark=8)
    assert small.images.shape == (12, 1, 24, 64)
    assert torch.bincount(small.labels).tolist() == [2] * 6


@pytest.mark.parametrize("options", [{"size": (544, 32)}, {"size": (16, 544)}, {"gap": 200}, {"gap": 540}])
def test_impossible_sizes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        texture_relation(**{"n": 4, "seed": 0, **options})


def test_pairs_of_movements_are_each_other_backwards() -> None:
    data = moving_blob(300, seed=0, noise=0.0)
    assert torch.bincount(data.labels).tolist() == [50] * len(MOVES)
    place = data.clips[:, 0].flatten(2).argmax(dim=2)
    column, row = place % 32, place // 32
    for label, (axis, sign) in enumerate([(column, 1), (column, -1), (row, 1), (row, -1)]):
        chosen = axis[data.labels == label]
        assert (sign * (chosen[:, -1] - chosen[:, 0]) > 8).all()
    turning = {}
    for label in (4, 5):
        chosen = torch.stack([column, row], dim=2)[data.labels == label].float()
        step = chosen.diff(dim=1)
        cross = step[:, :-1, 0] * step[:, 1:, 1] - step[:, :-1, 1] * step[:, 1:, 0]
        turning[label] = cross.sum(dim=1)
    assert (turning[4] > 0).all()  # rows grow downwards, so that this is clockwise
    assert (turning[5] < 0).all()


def test_refusals() -> None:
    for make in (texture_relation, moving_blob):
        with pytest.raises(InputError, match=">= 1"):
            make(0, 0)
        with pytest.raises(InputError, match=">= 0"):
            make(1, 0, noise=-1.0)
