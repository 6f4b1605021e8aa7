"""Two-object canvases: boxes, classes, sources."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.data.mosaic import CANVAS, PATCH, single_object_canvas, two_object_mosaic
from striate.data.small import digits
from striate.errors import InputError


@given(st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_every_canvas_is_as_described(n: int, seed: int) -> None:
    mosaic = two_object_mosaic(n, seed, "digits")
    assert mosaic.images.shape == (n, 1, CANVAS, CANVAS)
    assert mosaic.images.min() >= 0
    assert mosaic.images.max() <= 1
    assert mosaic.labels.shape == (n, 2)
    assert (mosaic.labels[:, 0] != mosaic.labels[:, 1]).all()
    x1, y1, x2, y2 = mosaic.boxes.unbind(-1)
    assert ((x2 - x1 == PATCH) & (y2 - y1 == PATCH)).all()
    assert (mosaic.boxes >= 0).all()
    assert (mosaic.boxes <= CANVAS).all()
    # Each object stays inside one cell of the 2 x 2 grid, and the two cells differ.
    cells = (x1 // 32) + 2 * (y1 // 32)
    assert torch.equal(cells, ((x2 - 1) // 32) + 2 * ((y2 - 1) // 32))
    assert (cells[:, 0] != cells[:, 1]).all()
    assert mosaic.multi_hot.sum(1).tolist() == [2.0] * n


@pytest.mark.parametrize("train", [True, False])
def test_each_box_holds_a_source_image_of_its_class_and_part(train: bool) -> None:
    mosaic = two_object_mosaic(20, 3, "digits", train=train)
    source = digits(train)
    patches = F.interpolate(source.images.float() / 255, size=(PATCH, PATCH), mode="bilinear", antialias=True)[:, 0]
    for i in range(20):
        for k in range(2):
            x1, y1, x2, y2 = mosaic.boxes[i, k].tolist()
            distance = (patches - mosaic.images[i, 0, y1:y2, x1:x2]).abs().amax((1, 2))
            assert distance.min() < 1e-6
            assert source.labels[distance.argmin()] == mosaic.labels[i, k]


def test_the_background_is_smooth_and_dim_outside_the_boxes() -> None:
    mosaic = two_object_mosaic(50, 0, "digits")
    outside = torch.ones(50, CANVAS, CANVAS, dtype=torch.bool)
    for i, boxes in enumerate(mosaic.boxes.tolist()):
        for x1, y1, x2, y2 in boxes:
            outside[i, y1:y2, x1:x2] = False
    assert mosaic.images[:, 0][outside].max() <= 0.5
    step = mosaic.images[:, 0].diff(dim=-1).abs()
    both = outside[..., 1:] & outside[..., :-1]
    assert step[both].max() <= 0.5 / 8 + 1e-6  # bilinear between grid points 8 pixels apart


def test_the_seed_decides_everything_and_global_state_is_untouched() -> None:
    before = torch.get_rng_state()
    first, again, other = (two_object_mosaic(5, seed, "digits") for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(before, torch.get_rng_state())


def test_all_classes_pairs_and_cells_occur_about_equally() -> None:
    mosaic = two_object_mosaic(4000, 0, "digits")
    counts = mosaic.labels.flatten().bincount()
    assert (counts - 800).abs().max() < 120  # 4 standard deviations
    pairs = (mosaic.labels[:, 0] * 10 + mosaic.labels[:, 1]).bincount(minlength=100).view(10, 10)
    assert pairs.diag().sum() == 0
    assert (pairs + torch.eye(10) > 0).all()
    cells = (mosaic.boxes[..., 0] // 32 + 2 * (mosaic.boxes[..., 1] // 32)).flatten().bincount()
    assert (cells - 2000).abs().max() < 200


def test_single_object_canvases() -> None:
    single = single_object_canvas(7, 0, "digits")
    assert single.labels.shape == (7, 1)
    assert single.boxes.shape == (7, 1, 4)
    assert single.multi_hot.sum(1).tolist() == [1.0] * 7


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match="'n'"):
        two_object_mosaic(0, 0, "digits")
    with pytest.raises(InputError, match="source"):
        two_object_mosaic(1, 0, "cifar")
