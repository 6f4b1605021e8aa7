"""The Haar transform: reconstruction, energy, order and signs, adjointness, odd sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.errors import InputError
from striate.layers.haar import haar_dwt2d, haar_filters, haar_idwt2d


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_there_and_back(n: int, c: int, h: int, w: int, seed: int) -> None:
    x = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    bands = haar_dwt2d(x)
    assert bands.shape == (n, c, 4, (h + 1) // 2, (w + 1) // 2)
    torch.testing.assert_close(haar_idwt2d(bands, (h, w)), x)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())  # orthonormal, also with zeros added
    y = torch.randn_like(bands)
    padded = F.pad(x, (0, w % 2, 0, h % 2))
    torch.testing.assert_close((haar_dwt2d(padded) * y).sum(), (padded * haar_idwt2d(y)).sum())


def test_bands_and_signs() -> None:
    assert haar_dwt2d(torch.full((1, 1, 2, 2), 3.0)).flatten().tolist() == [6, 0, 0, 0]
    assert haar_dwt2d(torch.tensor([[[[1.0, 1], [-1, -1]]]])).flatten().tolist() == [0, 2, 0, 0]
    assert haar_dwt2d(torch.tensor([[[[1.0, -1], [1, -1]]]])).flatten().tolist() == [0, 0, 2, 0]
    assert haar_dwt2d(torch.tensor([[[[1.0, -1], [-1, 1]]]])).flatten().tolist() == [0, 0, 0, 2]


def test_equal_to_the_grouped_convolution_whose_filters_checkpoints_carry() -> None:
    x = torch.randn(2, 3, 6, 8)
    filters = haar_filters(3)
    half = [
        [[0.5, 0.5], [0.5, 0.5]],
        [[0.5, 0.5], [-0.5, -0.5]],
        [[0.5, -0.5], [0.5, -0.5]],
        [[0.5, -0.5], [-0.5, 0.5]],
    ]
    assert filters[4:8, 0].tolist() == half
    bands = F.conv2d(x, filters, stride=2, groups=3)
    torch.testing.assert_close(haar_dwt2d(x).flatten(1, 2), bands)
    torch.testing.assert_close(
        haar_idwt2d(bands.unflatten(1, (3, 4))), F.conv_transpose2d(bands, filters, stride=2, groups=3)
    )


def test_gradients_and_refusals() -> None:
    x = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(haar_dwt2d, (x,))
    assert torch.autograd.gradcheck(haar_idwt2d, (torch.randn(1, 2, 4, 2, 1, dtype=torch.double, requires_grad=True),))
    with pytest.raises(InputError, match="N, C, H, W"):
        haar_dwt2d(torch.zeros(3, 4, 4))
    with pytest.raises(InputError, match="N, C, 4"):
        haar_idwt2d(torch.zeros(1, 2, 3, 4, 4))
    with pytest.raises(InputError, match=r"at most \(8, 6\)"):
        haar_idwt2d(torch.zeros(1, 2, 4, 4, 3), (8, 7))
