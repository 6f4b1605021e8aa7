"""Rings: seeded, disjoint, balanced, and the label is in the disc and nowhere else."""

from __future__ import annotations

import pytest
import torch

from striate.data.salient_ring import salient_rings
from striate.errors import InputError


def test_seeded_and_in_range() -> None:
    first, again, other = salient_rings(64, 0), salient_rings(64, 0), salient_rings(64, 1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (64, 3, 48, 48)
    assert first.images.min() >= 0
    assert first.images.max() <= 1
    assert len(first.class_names) == len(set(first.class_names)) == 8


def test_disc_and_decoy() -> None:
    data = salient_rings(1000, 0)
    assert not (data.masks & data.decoys).any()
    share = data.masks.float().mean(dim=(1, 2))
    assert share.min() > 0.03
    assert share.max() < 0.08
    assert (data.decoys.float().mean(dim=(1, 2)) > 0.03).all()
    assert torch.bincount(data.labels, minlength=8).min() > 90
    mean = data.masks.float().mean(dim=0)
    assert mean[24, 24] < 3 * mean[12, 12] + 0.05  # anywhere on the canvas


def test_the_discs_colours_tell_the_pair_and_the_decoys_do_not() -> None:
    data = salient_rings(400, 3)
    green = data.images[:, 1] - data.images[:, 2]

    def inside(masks: torch.Tensor) -> torch.Tensor:
        return ((green * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2)) > 0).long()

    pair = data.labels // 4
    assert (inside(data.masks) == pair).float().mean() > 0.9
    assert (inside(data.decoys) == pair).float().mean() < 0.6


def test_refusal() -> None:
    with pytest.raises(InputError, match="'n'"):
        salient_rings(0, 0)
