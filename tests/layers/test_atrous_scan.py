"""The atrous scan: routes by hand, merge and scan as inverses, one route a pixel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.errors import InputError
from striate.layers.atrous_scan import atrous_merge, atrous_scan


def test_routes_by_hand() -> None:
    """Two orders and no reversal; the numbers are also what the authors' EfficientScan gives (commit 0bc5ee2)."""
    routes = atrous_scan(torch.arange(24.0).view(1, 1, 4, 6))
    expected = [[0, 2, 4, 12, 14, 16], [6, 18, 8, 20, 10, 22], [1, 3, 5, 13, 15, 17], [7, 19, 9, 21, 11, 23]]
    assert routes[0, :, 0].tolist() == expected
    turned = atrous_scan(torch.arange(24.0).view(1, 1, 4, 6), reverse=True)
    assert turned[0, :, 0].tolist() == [*expected[:2], expected[2][::-1], expected[3][::-1]]


def test_padding_stands_at_the_bottom_and_on_the_right() -> None:
    routes = atrous_scan(torch.arange(1.0, 10.0).view(1, 1, 3, 3))
    assert routes[0, :, 0].tolist() == [[1, 3, 7, 9], [4, 0, 6, 0], [2, 0, 8, 0], [5, 0, 0, 0]]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("height", range(1, 10))
@pytest.mark.parametrize("width", range(1, 10))
def test_merge_undoes_scan_at_every_size(height: int, width: int, reverse: bool) -> None:
    x = torch.randn(2, 3, height, width)
    assert torch.equal(atrous_merge(atrous_scan(x, reverse=reverse), height, width, reverse=reverse), x)


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_all_phases_at_any_step(batch: int, channels: int, height: int, width: int, step: int, reverse: bool) -> None:
    options = {"step": step, "phases": "all", "reverse": reverse}
    x = torch.arange(1.0, batch * channels * height * width + 1).view(batch, channels, height, width)
    routes = atrous_scan(x, **options)
    assert routes.shape == (batch, step**2, channels, -(-height // step) * -(-width // step))
    assert torch.equal(atrous_merge(routes, height, width, **options), x)
    # Every pixel is in exactly one route; what is left is padding.
    assert torch.equal(routes[routes > 0].sort().values, x.flatten())


def test_scan_undoes_merge_where_nothing_is_padded() -> None:
    for height, width in ((2, 2), (4, 6), (8, 2)):
        ys = torch.randn(2, 4, 3, height * width // 4)
        assert torch.equal(atrous_scan(atrous_merge(ys, height, width)), ys)


def test_merge_is_the_adjoint_of_scan() -> None:
    """<scan(x), y> = <x, merge(y)>, padding included: nothing is summed twice and nothing leaks."""
    x = torch.randn(2, 3, 5, 7, dtype=torch.double, requires_grad=True)
    routes = atrous_scan(x)
    ys = torch.randn_like(routes)
    torch.testing.assert_close((routes * ys).sum(), (x * atrous_merge(ys, 5, 7)).sum())
    (gradient,) = torch.autograd.grad(routes, x, ys)
    assert torch.equal(gradient, atrous_merge(ys, 5, 7))
    assert torch.autograd.gradcheck(atrous_scan, x)


def test_what_cannot_be_unrolled_is_refused() -> None:
    x = torch.randn(1, 1, 6, 6)
    for step in (0, 1, 3):
        with pytest.raises(InputError, match="phases"):
            atrous_scan(x, step=step)
    with pytest.raises(InputError, match="four or all"):
        atrous_scan(x, phases="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(B, C, H, W\)"):
        atrous_scan(x[0])
    with pytest.raises(InputError, match="ys"):
        atrous_merge(atrous_scan(x), 8, 6)
    with pytest.raises(InputError, match="step"):
        atrous_merge(atrous_scan(x), 6, 6, step=3)
