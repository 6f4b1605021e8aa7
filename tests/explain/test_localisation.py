"""Closed forms and invariants of the localisation metrics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from striate.errors import InputError
from striate.explain.localisation import ALPHAS, energy_in_box, energy_in_mask, pointing_game, tune_alpha, wsl


def boxes_and_indicators(n: int, height: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.stack([torch.randint(limit, (n,), generator=generator) for limit in (width, height)], 1)
    room = torch.tensor([width, height]) - corner
    side = 1 + (torch.rand(n, 2, generator=generator) * room).long()
    boxes = torch.cat([corner, corner + side], dim=1)
    maps = torch.zeros(n, height, width)
    for image, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        maps[image, y0:y1, x0:x1] = 1
    return maps, boxes


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 17), st.integers(2, 17), st.integers(0, 10_000))
def test_the_indicator_of_a_box_scores_perfectly(n: int, height: int, width: int, seed: int) -> None:
    maps, boxes = boxes_and_indicators(n, height, width, seed)
    assert pointing_game(maps, boxes).all()
    assert (energy_in_box(maps, boxes) == 1).all()
    assert (energy_in_mask(maps, maps > 0) == 1).all()
    for alpha in (0.0, 0.05, 0.5, 0.999):
        result = wsl(maps, boxes, alpha)
        assert torch.equal(result.boxes, boxes)
        assert (result.iou == 1).all()
        assert result.hit.all()


def test_random_pixels_hit_as_often_as_the_boxes_are_large() -> None:
    generator = torch.Generator().manual_seed(0)
    _, boxes = boxes_and_indicators(20_000, 9, 12, seed=1)
    hits = pointing_game(torch.rand(20_000, 9, 12, generator=generator), boxes).double().mean()
    area = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) / (9 * 12)).double().mean()
    assert abs(hits - area) < 3 * 0.5 / 20_000**0.5  # three standard errors of a proportion


def test_equal_maxima_are_drawn_by_the_seed_not_in_reading_order() -> None:
    box = torch.tensor([[0, 0, 4, 8]])  # the left half: reading order would always hit
    hits = [bool(pointing_game(torch.zeros(1, 8, 8), box, seed=seed)) for seed in range(200)]
    assert 70 < sum(hits) < 130
    tied = torch.zeros(3, 8, 8)
    tied[:, 2:4, 3:7] = 5
    batch = pointing_game(tied, box.expand(3, 4), seed=7)
    assert torch.equal(batch[:1], pointing_game(tied[:1], box, seed=7))


def test_tolerance_is_a_distance_to_the_box() -> None:
    peak = torch.zeros(1, 20, 20)
    peak[0, 10 + 4, 9 + 3] = 1  # three columns and four rows beyond the last pixel (9, 10) of the box
    box = torch.tensor([[2, 2, 10, 11]])
    assert [bool(pointing_game(peak, box, tolerance)) for tolerance in (0, 4.9, 5)] == [False, False, True]


def test_energy_by_hand() -> None:
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    boxes = torch.tensor([[0, 0, 1, 2], [1, 1, 2, 2]])
    assert energy_in_box(maps, boxes).tolist() == [0.4, 0.25]
    mask = torch.tensor([[[True, False], [False, True]]]).expand(2, 2, 2)
    assert energy_in_mask(maps, mask).tolist() == [0.5, 0.5]


def test_wsl_boxes_the_largest_part_alone() -> None:
    maps = torch.zeros(2, 6, 8)
    maps[0, 0, 0] = 1.0  # the highest, but one pixel
    maps[0, 2:5, 3:6] = 0.6
    maps[1, 1, 1] = maps[1, 2, 2] = 1.0  # touch at a corner: one part
    result = wsl(maps, torch.tensor([[3, 2, 6, 5], [1, 1, 3, 3]]), alpha=0.5)
    assert result.boxes.tolist() == [[3, 2, 6, 5], [1, 1, 3, 3]]
    assert wsl(maps, torch.tensor([[3, 2, 6, 5], [1, 1, 3, 3]]), alpha=0.7).boxes[0].tolist() == [0, 0, 1, 1]


def test_iou_by_hand() -> None:
    maps, _ = boxes_and_indicators(1, 10, 10, seed=0)
    maps.zero_()
    maps[0, 0:4, 0:4] = 1
    result = wsl(maps, torch.tensor([[2, 0, 6, 4]]), alpha=0.5)
    assert result.iou.item() == pytest.approx(8 / 24)
    assert not result.hit
    assert wsl(maps, torch.tensor([[2, 0, 6, 4]]), alpha=0.5, threshold=1 / 3).hit


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_map_gives_the_whole_image(value: float) -> None:
    result = wsl(torch.full((1, 5, 7), value), torch.tensor([[0, 0, 7, 4]]), alpha=0.95)
    assert result.boxes.tolist() == [[0, 0, 7, 5]]
    assert result.iou.item() == pytest.approx(4 / 5)


def test_the_batched_labelling_equals_one_image_at_a_time() -> None:
    maps = torch.rand(16, 11, 13, generator=torch.Generator().manual_seed(3))
    _, boxes = boxes_and_indicators(16, 11, 13, seed=4)
    result = wsl(maps, boxes, 0.6)
    for image in range(16):
        labels, _ = ndimage.label(maps[image].numpy() > 0.6 * maps[image].max().item(), structure=[[1] * 3] * 3)
        parts = [(int((labels == 1 + i).sum()), place) for i, place in enumerate(ndimage.find_objects(labels))]
        _, (rows, columns) = max(parts, key=lambda part: part[0])
        assert result.boxes[image].tolist() == [columns.start, rows.start, columns.stop, rows.stop]


def test_tuning_finds_the_threshold_that_uncovers_the_object() -> None:
    maps, boxes = boxes_and_indicators(12, 20, 20, seed=5)
    # A halo of 0.42 around the object: only thresholds above it give the box.
    alpha = tune_alpha(maps.clamp_min(0.42), boxes)
    assert alpha == 0.45
    assert wsl(maps.clamp_min(0.42), boxes, alpha).iou.min() == 1
    assert ALPHAS[0] == 0.05
    assert ALPHAS[-1] == 0.95
    assert len(ALPHAS) == 19


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_empty_gradients(dtype: torch.dtype) -> None:
    maps, boxes = boxes_and_indicators(2, 6, 6, seed=6)
    maps = maps.to(dtype).requires_grad_()
    assert wsl(maps, boxes, 0.5).hit.all()
    assert energy_in_box(maps.detach(), boxes).dtype == torch.float64


@pytest.mark.parametrize(
    ("maps", "boxes", "match"),
    [
        (torch.rand(1, 4, 4), [[0, 0, 5, 4]], "inside the 4 x 4 image"),
        (torch.rand(1, 4, 4), [[-1, 0, 2, 2]], "inside"),
        (torch.rand(1, 4, 4), [[2, 1, 2, 3]], "x0 < x1"),
        (torch.rand(2, 4, 4), [[0, 0, 1, 1]], r"\(2, 4\)"),
        (torch.rand(1, 4, 4), [[0.0, 0.0, 1.0, 1.0]], "whole numbers"),
        (torch.full((1, 4, 4), torch.nan), [[0, 0, 1, 1]], "finite"),
        (torch.rand(4, 4), [[0, 0, 1, 1]], r"\(N, H, W\)"),
    ],
)
def test_wrong_input_is_refused(maps: torch.Tensor, boxes: list[list[float]], match: str) -> None:
    for metric in (pointing_game, energy_in_box, lambda m, b: wsl(m, b, 0.5)):
        with pytest.raises(InputError, match=match):
            metric(maps, torch.tensor(boxes))


def test_other_refusals() -> None:
    maps, boxes = boxes_and_indicators(1, 4, 4, seed=0)
    with pytest.raises(InputError, match="normalized"):
        wsl(maps - 0.5, boxes, 0.5)
    with pytest.raises(InputError, match="alpha"):
        wsl(maps, boxes, 1.0)
    with pytest.raises(InputError, match="threshold"):
        wsl(maps, boxes, 0.5, threshold=0)
    with pytest.raises(InputError, match="tolerance"):
        pointing_game(maps, boxes, -1)
    with pytest.raises(InputError, match="empty mask"):
        energy_in_mask(maps, torch.zeros(1, 4, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="masks"):
        energy_in_mask(maps, maps)
