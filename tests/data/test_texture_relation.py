"""Both factors are where they should be and alone give nothing away; a movement backwards is its neighbour."""

from __future__ import annotations

import pytest
import torch

from striate.data.moving_blob import MOVES, moving_blob
from striate.data.texture_relation import texture_relation
from striate.errors import InputError


def test_texture_and_relation() -> None:
    data = texture_relation(600, seed=3, noise=0.0)
    assert torch.bincount(data.labels).tolist() == [100] * 6
    bright = data.images[:, 0] > 200
    for image, same in zip(bright, data.labels % 2, strict=True):
        columns = image.nonzero()[:, 1]
        left = float((columns < 24).float().mean())
        assert left in ({0.0, 1.0} if same else {0.5})
    for kind in range(3):  # neither the mean nor the deviation of the pixels tells the texture
        chosen = data.images[data.labels // 2 == kind].float()
        assert chosen.mean() == pytest.approx(float(data.images.float().mean()), abs=0.5)
        assert chosen.std() == pytest.approx(float(data.images.float().std()), abs=0.5)
    assert torch.equal(texture_relation(6, seed=1).images, texture_relation(6, seed=1).images)
    assert not torch.equal(texture_relation(6, seed=1).images, texture_relation(6, seed=2).images)


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
