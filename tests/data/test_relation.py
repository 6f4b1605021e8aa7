"""Relation images: half are alike, no window sees both marks, and no sum over windows gives the answer away."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.data.relation import relation_images
from striate.errors import InputError


def corners(image: Tensor) -> list[tuple[int, int]]:
    """Return the first pixel of each mark of an image without noise."""
    left, found = image != 128, []
    mark = math.isqrt(int(left.sum()) // 2)
    while left.any():
        row, column = left.nonzero()[0].tolist()
        assert left[row : row + mark, column : column + mark].all()
        left[row : row + mark, column : column + mark] = False
        found.append((row, column))
    return found


@pytest.mark.parametrize("options", [{}, {"size": 30, "gap": 20, "mark": 5}, {"size": 64, "gap": 40, "mark": 8}])
def test_two_marks_far_apart_are_what_the_label_says(options: dict[str, int]) -> None:
    found = relation_images(100, 3, noise=0.0, **options)
    size, gap, mark = ({"size": 48, "gap": 32, "mark": 4} | options).values()
    assert found.images.shape == (100, 1, size, size)
    assert found.labels.sum() == 50
    axes = set()
    for image, label in zip(found.images[:, 0], found.labels, strict=True):
        a, b = corners(image)
        assert (image[a] == image[b]) == bool(label)
        apart = [abs(x - y) - mark for x, y in zip(a, b, strict=True)]
        assert max(apart) >= gap  # so that no window of gap + 1 pixels touches both
        axes.add(apart[0] >= gap)
    assert axes == {False, True}


@pytest.mark.parametrize(("size", "axis"), [((20, 64), 1), ((64, 20), 0)])
def test_an_oblong_has_its_marks_along_its_longer_side(size: tuple[int, int], axis: int) -> None:
    found = relation_images(40, 3, size=size, gap=40, mark=8, noise=0.0)
    assert found.images.shape == (40, 1, *size)
    for image, label in zip(found.images[:, 0], found.labels, strict=True):
        a, b = corners(image)
        assert (image[a] == image[b]) == bool(label)
        assert abs(a[axis] - b[axis]) - 8 >= 40


def test_each_mark_is_a_fair_coin_under_either_label() -> None:
    found = relation_images(2_000, 0, noise=0.0)
    for label in (0, 1):
        chosen = found.images[found.labels == label, 0]
        first = torch.tensor([float(image[corners(image)[0]] == 208) for image in chosen])
        assert abs(float(first.mean()) - 0.5) < 4 * 0.5 / math.sqrt(1_000)


@torch.no_grad()
def test_a_sum_over_windows_is_no_better_than_a_coin() -> None:
    """Whatever the weights: over the four cases of one picture its cross entropy is log 2 at least."""
    found = relation_images(8, 1, noise=0.0)
    for seed, (image, label) in enumerate(zip(found.images[:, 0], found.labels, strict=True)):
        torch.manual_seed(seed)
        # 33 pixels, which is gap + 1, and then a mean over places.
        local = nn.Sequential(nn.Conv2d(1, 8, 33, padding=16), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.SiLU()).double()
        cases, labels = four_cases(image, int(label))
        outputs = nn.Linear(8, 2).double()(local(cases.double() / 255).mean(dim=(2, 3)))
        difference = outputs[:, 1] - outputs[:, 0]
        assert abs(float(((2 * labels - 1) * difference).sum())) < 1e-12
        assert difference.std() > 1e-6  # it does see the marks
        assert F.cross_entropy(outputs, labels) >= math.log(2)


def four_cases(image: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Return an image with none, one, the other or both of its marks turned to their negatives, and the labels."""
    mark = math.isqrt(int((image != 128).sum()) // 2)
    cases = image.repeat(4, 1, 1)
    for bit, (row, column) in enumerate(corners(image)):
        for case in range(4):
            if case >> bit & 1:
                window = cases[case, row : row + mark, column : column + mark]
                window.copy_(-window)  # 256 - x, in bytes
    return cases[:, None], torch.tensor([label, 1 - label, 1 - label, label])


def test_seeds_fix_everything() -> None:
    assert torch.equal(relation_images(5, 1).images, relation_images(5, 1).images)
    assert not torch.equal(relation_images(5, 1).images, relation_images(5, 2).images)


@pytest.mark.parametrize(
    "options",
    [{"n": 0}, {"mark": 0}, {"gap": 41}, {"gap": -1}, {"noise": -1.0}, {"size": (8, 64), "mark": 9}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        relation_images(**{"n": 4, "seed": 0, **options})
