from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.errors import InputError
from striate.stress.grid import PatchGrid


def test_cells_are_numbered_along_the_rows() -> None:
    grid = PatchGrid(224, 16)
    assert (grid.shape, grid.cells, grid.pixels_per_cell) == ((14, 14), 196, 256)
    mask = grid.mask([15])
    assert mask.shape == (1, 224, 224)
    assert mask.dtype == torch.bool
    assert mask[0, 16:32, 16:32].all()
    assert mask.sum() == 256


def test_all_cells_cover_the_image_once() -> None:
    grid = PatchGrid((12, 20), (4, 5))
    assert grid.shape == (3, 4)
    assert grid.mask(range(12)).all()
    assert sum(grid.mask([cell]).int() for cell in range(12)).eq(1).all()


def test_a_row_of_cells_for_each_image() -> None:
    grid = PatchGrid(8, 4)
    mask = grid.mask(torch.tensor([[0, 3], [1, 2]]))
    assert mask.shape == (2, 1, 8, 8)
    assert torch.equal(mask[0], grid.mask([0, 3]))
    assert torch.equal(mask[0], ~mask[1])


def test_offset_moves_right_and_down_by_exactly_so_many_pixels() -> None:
    grid = PatchGrid(12, 4)
    moved = grid.mask([4], offset=(3, -1))[0]  # dx right, dy up
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[3:7, 7:11] = True
    assert torch.equal(moved, expected)


def test_pixels_name_the_masks_places_in_reading_order() -> None:
    grid = PatchGrid((6, 8), (2, 4))
    pixels = grid.pixels([3, 0])[0]
    assert pixels[:8].tolist() == [20, 21, 22, 23, 28, 29, 30, 31]
    assert set(pixels.tolist()) == set(grid.mask([0, 3]).flatten().nonzero()[:, 0].tolist())


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), st.data())
def test_draws_are_uniform_without_replacement_and_nested(
    rows: int, columns: int, batch: int, seed: int, data: st.DataObject
) -> None:
    grid = PatchGrid((rows * 3, columns * 2), (3, 2))
    n = data.draw(st.integers(1, grid.cells))
    more = grid.sample(grid.cells, batch, torch.Generator().manual_seed(seed))
    fewer = grid.sample(n, batch, torch.Generator().manual_seed(seed))
    assert torch.equal(fewer, more[:, :n])
    assert torch.equal(more.sort(dim=1).values, torch.arange(grid.cells).expand(batch, -1))


def test_every_cell_is_drawn_equally_often() -> None:
    drawn = PatchGrid(8, 2).sample(1, 16_000).flatten().bincount(minlength=16)
    assert (drawn - 1000).abs().max() < 5 * 1000**0.5


def test_with_an_offset_only_cells_that_stay_inside_are_drawn() -> None:
    grid = PatchGrid(12, 4)
    drawn = grid.sample(4, 50, offset=(2, 1))
    assert set(drawn.flatten().tolist()) == {0, 1, 3, 4}
    grid.mask(drawn, offset=(2, 1))
    assert set(grid.sample(6, 50, offset=(0, -2)).flatten().tolist()) == {3, 4, 5, 6, 7, 8}


def test_global_randomness_is_left_alone() -> None:
    state = torch.get_rng_state()
    PatchGrid(8, 4).sample(2, 3)
    assert torch.equal(state, torch.get_rng_state())


def test_cells_that_need_not_cover_leave_a_strip_at_the_bottom_and_the_right() -> None:
    grid = PatchGrid((7, 11), 3, cover=False)
    assert (grid.shape, grid.cells) == ((2, 3), 6)
    mask = grid.mask(list(range(6)))
    assert mask[0, :6, :9].all()
    assert int(mask.sum()) == 54
    assert "1 px at the bottom and 2 px at the right" in grid.left_over
    assert PatchGrid(6, 3, cover=False).left_over == ""
    with pytest.raises(InputError, match="divisor"):
        PatchGrid((7, 11), 3)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"divisor of the image's 224 x 224.*Near: 14 x 14|Near: 16 x 16"):
        PatchGrid(224, 15)
    with pytest.raises(InputError, match="patch_size"):
        PatchGrid(8, 0)
    grid = PatchGrid(12, 4)
    for cells, message in (([9], "from 0 to 8"), ([-1], "from 0 to 8"), ([1, 1], "each cell once"), ([], "cells")):
        with pytest.raises(InputError, match=message):
            grid.mask(cells)
    with pytest.raises(InputError, match="stays within"):
        grid.mask([2], offset=(1, 0))
    with pytest.raises(InputError, match="1 to the 9 cells"):
        grid.sample(10, 1)
    with pytest.raises(InputError, match="1 to the 4 cells that can be moved"):
        grid.sample(5, 1, offset=(1, 1))
