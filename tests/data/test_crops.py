"""Crops stay inside, have the size that was asked for, and half of the images are mirrored."""

from __future__ import annotations

import pytest
import torch

from striate.data.crops import PaddedCrop, RandomResizedCrop
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


def test_a_shift_is_a_shift_with_black_coming_in() -> None:
    x = torch.arange(1.0, 7 * 5 * 2 + 1).view(1, 2, 5, 7).expand(400, 2, 5, 7)
    out = PaddedCrop(2, flip=0.5)(x, torch.Generator().manual_seed(0))
    assert out.shape == x.shape
    padded = torch.nn.functional.pad(x[:1], [2] * 4)
    places = {}
    for top in range(5):
        for left in range(5):
            crop = padded[0, :, top : top + 5, left : left + 7]
            places[tuple(crop.flatten().tolist())] = (top, left, False)
            places[tuple(crop.flip(2).flatten().tolist())] = (top, left, True)
    found = [places[tuple(image.flatten().tolist())] for image in out]
    assert len({place[:2] for place in found}) == 25
    assert 0.4 < sum(place[2] for place in found) / 400 < 0.6


def test_no_padding_and_no_flip_change_nothing() -> None:
    x = torch.rand(3, 1, 5, 4)
    assert torch.equal(PaddedCrop(0, 0.0)(x, torch.Generator()), x)
    assert torch.equal(PaddedCrop(0, 1.0)(x, torch.Generator()), x.flip(3))
    with pytest.raises(InputError, match="padding"):
        PaddedCrop(-1)
