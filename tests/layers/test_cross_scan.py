"""Routes and their way back: the published order, adjointness, and no mix-up of height and width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.errors import InputError
from striate.layers.cross_scan import cross_merge, cross_scan

MODES = ["cross2d", "bidi", "unidi"]
SIDES = st.integers(1, 7)


def test_the_published_order() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    rows, columns = [0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]
    assert cross_scan(x)[0, :, 0].tolist() == [rows, columns, rows[::-1], columns[::-1]]
    assert cross_scan(x, "bidi")[0, :, 0].tolist() == [rows, rows, rows[::-1], rows[::-1]]
    assert cross_scan(x, "unidi")[0, :, 0].tolist() == [rows] * 4


@given(h=SIDES, w=SIDES, mode=st.sampled_from(MODES), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_merge_is_the_adjoint_and_scan_then_merge_is_four_times(h: int, w: int, mode: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, h, w, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 4, 3, h * w, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(cross_merge(cross_scan(x, mode), h, w, mode), 4 * x)
    inner = (cross_scan(x, mode) * y).sum(), (x * cross_merge(y, h, w, mode)).sum()
    torch.testing.assert_close(*inner)


def test_refusals() -> None:
    with pytest.raises(InputError, match="cross2d, bidi or unidi"):
        cross_scan(torch.zeros(1, 1, 2, 2), "spiral")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(B, C, H, W\)"):
        cross_scan(torch.zeros(3, 4, 4))
    with pytest.raises(InputError, match="3 x 4"):
        cross_merge(torch.zeros(1, 4, 2, 11), 3, 4)
