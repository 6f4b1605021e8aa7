"""The crop stays inside the image, takes at least the asked share, and mirrors half of the images."""

from __future__ import annotations

import pytest
import torch

from striate.data.crops import RandomResizedCrop, ShiftedCrop
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


def test_shifted_crops_move_by_whole_pixels_and_mirror_half() -> None:
    images = 1 + torch.arange(64.0).view(1, 1, 8, 8).expand(400, 2, 8, 8)
    out = ShiftedCrop(2)(images, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    places = set()
    for image in out:
        assert torch.equal(image[0], image[1])
        found = next(
            (y, x, mirrored)
            for mirrored in (False, True)
            for y in range(5)
            for x in range(5)
            if torch.equal(
                torch.nn.functional.pad(images[0, :1], (2,) * 4)[0, y : y + 8, x : x + 8],
                image[0].flip(1) if mirrored else image[0],
            )
        )
        places.add(found)
    assert len(places) == 50
    assert torch.equal(ShiftedCrop(0, 0.0)(images, torch.Generator()), images)
    again = ShiftedCrop(2)(images, torch.Generator().manual_seed(0))
    assert torch.equal(again, out)


def test_shifted_crops_refuse_what_makes_no_sense() -> None:
    for options in ({"pad": -1}, {"flip": 2.0}):
        with pytest.raises(InputError):
            ShiftedCrop(**options)
