"""Relation aggregators against PyTorch's own attention and convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.errors import InputError
from striate.layers.mhra import DynamicPositionEmbedding, GlobalMHRA, LocalMHRA
from striate.testing import check_layer


@pytest.mark.parametrize("ndim", [2, 3])
def test_contracts(ndim: int) -> None:
    x = torch.randn(2, 4, *(3, 5, 4)[-ndim:])
    check_layer(LocalMHRA(4, 3, ndim), x)
    check_layer(DynamicPositionEmbedding(4, ndim), x)
    check_layer(GlobalMHRA(4, 2), x.movedim(1, -1).contiguous())
    if ndim == 2:
        check_layer(GlobalMHRA(4, 2, window=2), x.movedim(1, -1).contiguous())


@pytest.mark.parametrize("ndim", [2, 3])
def test_local_with_identities_and_a_delta_is_the_identity(ndim: int) -> None:
    layer = LocalMHRA(4, 5, ndim)
    for convolution in (layer.conv1, layer.conv2):
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    nn.init.dirac_(layer.affinity.weight, groups=4)
    nn.init.zeros_(layer.affinity.bias)
    x = torch.randn(2, 4, *(6,) * ndim)
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize("ndim", [2, 3])
def test_local_has_nothing_between_its_three_layers(ndim: int) -> None:
    """It is affine: differences add."""
    layer, shape = LocalMHRA(4, 5, ndim).double(), (1, 4, *(6,) * ndim)
    x, y, zero = (torch.randn(shape).double(), torch.randn(shape).double(), torch.zeros(shape).double())
    torch.testing.assert_close(layer(x + y) - layer(y), layer(x) - layer(zero))


@given(
    heads=st.sampled_from([1, 2, 4]), n=st.integers(1, 3), h=st.integers(1, 6), w=st.integers(1, 6), bias=st.booleans()
)
@settings(max_examples=20, deadline=None)
def test_global_is_softmax_attention(heads: int, n: int, h: int, w: int, bias: bool) -> None:
    layer, x = GlobalMHRA(8, heads, qkv_bias=bias).double(), torch.randn(n, h, w, 8).double()
    q, k, v = (part.view(n, h * w, heads, -1) for part in layer.qkv(x.view(n, h * w, 8)).chunk(3, dim=-1))
    affinity = torch.einsum("nqhc,nkhc->nhqk", q, k).div((8 / heads) ** 0.5).softmax(dim=-1)
    expected = layer.proj(torch.einsum("nhqk,nkhc->nqhc", affinity, v).flatten(2)).view(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-9)


def test_windows_are_attention_of_each_crop_of_the_padded_map() -> None:
    layer, whole = GlobalMHRA(8, 2, window=3), GlobalMHRA(8, 2)
    whole.load_state_dict(layer.state_dict())
    x = torch.randn(2, 7, 5, 8)
    padded = F.pad(x, (0, 0, 0, 1, 0, 2))
    expected = torch.empty_like(padded)
    for i in range(0, 9, 3):
        for j in range(0, 6, 3):
            expected[:, i : i + 3, j : j + 3] = whole(padded[:, i : i + 3, j : j + 3])
    torch.testing.assert_close(layer(x), expected[:, :7, :5])
    covering = GlobalMHRA(8, 2, window=4)
    covering.load_state_dict(layer.state_dict())
    torch.testing.assert_close(covering(x[:, :4, :4]), whole(x[:, :4, :4]))


def test_errors() -> None:
    with pytest.raises(InputError, match="kernel_size"):
        LocalMHRA(4, 4)
    with pytest.raises(InputError, match="num_heads"):
        GlobalMHRA(8, 3)
    with pytest.raises(InputError, match="window"):
        GlobalMHRA(8, 2, window=0)
    with pytest.raises(InputError, match="N, H, W, C"):
        GlobalMHRA(8, 2, window=2)(torch.rand(1, 16, 8))
