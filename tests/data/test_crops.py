"""The crop stays inside the image, takes at least the asked share, and mirrors half of the images."""

from __future__ import annotations

import pytest
import torch

from striate.data.crops import RandomResizedCrop
from striate.errors import InputError


def ramps(n: int) -> torch.Tensor:
    """(n, 2, 32, 32): x and y in [0, 1] at the pixels' centres."""
    place = (torch.arange(32) + 0.5) / 32
    return torch.stack(torch.meshgrid(place, place, indexing="xy")).expand(n, 2, 32, 32)


def test_crops_lie_inside_and_have_the_area_and_ratio_asked_for() -> None:
    out = RandomResizedCrop(0.25, 4 / 3)(ramps(500), torch.Generator().manual_seed(0))
    assert out.shape == (500, 2, 32, 32)
    assert float(out.min()) >= 1 / 64 - 1e-6
    assert float(out.max()) <= 63 / 64 + 1e-6
    slopes = (out[:, 0, 8, 24] - out[:, 0, 8, 8]) * 2, (out[:, 1, 24, 8] - out[:, 1, 8, 8]) * 2
    width, height = slopes[0].abs(), slopes[1]
    assert 0.4 < float((slopes[0] < 0).float().mean()) < 0.6
    assert float((width * height).min()) > 0.25 * 0.75 - 0.01  # the widest is cut to the image's side
    assert float((width / height).max()) < 4 / 3 + 0.02
    assert float((width * height).mean()) == pytest.approx(0.61, abs=0.03)


def test_nothing_to_do_gives_the_image_itself() -> None:
    x = torch.rand(3, 1, 20, 14)
    torch.testing.assert_close(RandomResizedCrop(1.0, 1.0, 0.0)(x, torch.Generator()), x)
    torch.testing.assert_close(RandomResizedCrop(1.0, 1.0, 1.0)(x, torch.Generator()), x.flip(3))


def test_impossible_options_are_refused() -> None:
    with pytest.raises(InputError, match="least"):
        RandomResizedCrop(least=0.0)
