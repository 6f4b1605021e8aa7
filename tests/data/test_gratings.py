"""Gratings: balance, seeds, and that each factor stands where it is said to."""

from __future__ import annotations

import pytest
import torch

from striate.data.gratings import PERIODS, gratings
from striate.errors import InputError


def test_what_is_generated() -> None:
    data = gratings(160, seed=3)
    assert data.images.shape == (160, 1, 64, 64)
    assert 0 <= data.images.min() <= data.images.max() <= 1
    assert data.labels.bincount().tolist() == [20] * 8
    assert torch.equal(4 * data.orientations + data.carriers, data.labels)
    assert torch.equal(gratings(160, seed=3).images, data.images)
    assert not torch.equal(gratings(160, seed=4).images, data.images)


def test_both_factors_can_be_read_off_the_spectrum() -> None:
    data = gratings(200, seed=1)
    spectrum = torch.fft.fft2(data.images[:, 0] - data.images[:, 0].mean((1, 2), keepdim=True)).abs()
    fy, fx = torch.meshgrid(torch.fft.fftfreq(64), torch.fft.fftfreq(64), indexing="ij")
    radius = (fx**2 + fy**2).sqrt()
    horizontal, vertical = spectrum[:, 0, 1:3].amax(1), spectrum[:, 1:3, 0].amax(1)
    assert torch.equal((vertical > horizontal).long(), data.orientations)
    fine = torch.where(radius > 0.25, spectrum, 0).flatten(1).argmax(1)
    periods = 1 / radius.flatten()[fine]
    nearest = (periods[:, None] - torch.tensor(PERIODS)).abs().argmin(1)
    assert (nearest == data.carriers).float().mean() > 0.95


def test_no_mean_tells_the_class() -> None:
    data = gratings(400, seed=2)
    means = data.images.mean((1, 2, 3))
    by_class = torch.stack([means[data.labels == label].mean() for label in range(8)])
    assert by_class.std() < means.std()


def test_refusals() -> None:
    with pytest.raises(InputError):
        gratings(0)
    with pytest.raises(InputError):
        gratings(4, side=4)
