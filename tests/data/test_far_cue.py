"""Far-cue images: what stands where, and that places are uniform."""

from __future__ import annotations

import pytest
import torch

from striate.data.far_cue import far_cue
from striate.errors import InputError


def test_one_patch_decides_every_pixel() -> None:
    found = far_cue(200, seed=3)
    assert found.images.shape == (200, 3, 24, 24)
    assert found.targets.shape == (200, 24, 24)
    assert torch.equal(found.targets.amin((1, 2)), found.targets.amax((1, 2)))
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    for image, target, (row, column) in zip(found.images, found.targets, found.places.tolist(), strict=True):
        patch = image[:, row : row + 3, column : column + 3]
        assert torch.equal(patch, colours[target[0, 0]][:, None, None].expand(3, 3, 3))
        assert int((image > 0.8).any(0).sum()) == 9  # and nowhere else


def test_seeded_and_uniform() -> None:
    first, again, other = far_cue(2_000, seed=0), far_cue(2_000, seed=0), far_cue(2_000, seed=1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.places, other.places)
    assert first.targets[:, 0, 0].bincount().min() > 400
    for axis in (0, 1):
        assert first.places[:, axis].bincount(minlength=22).min() > 50
    assert far_cue(3, side=8).images.shape == (3, 3, 8, 8)
    with pytest.raises(InputError, match="side"):
        far_cue(1, side=2)
