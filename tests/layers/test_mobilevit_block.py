"""Unfolding, the transformer's independence across pixel positions, and the reach of one pixel (the paper's figure)."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.mobilevit_block import EncoderLayer, MobileViTBlock, fold_patches, unfold_patches
from striate.testing import check_layer


def block(**options: object) -> MobileViTBlock:
    torch.manual_seed(0)
    return MobileViTBlock(6, 8, **{"num_layers": 2, "num_heads": 2, **options}).eval()


def reach(layer: nn.Module, size: int, at: tuple[int, int], channels: int = 6) -> Tensor:
    """(size, size) bool: which input pixels one output pixel's gradient reaches."""
    x = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(copy.deepcopy(layer).double()(x)[0, :, at[0], at[1]].sum(), x)
    return gradient[0].abs().sum(dim=0) > 0


def test_tokens_are_the_pixels_of_one_position_across_patches() -> None:
    tokens, grid = unfold_patches(torch.arange(16.0).view(1, 1, 4, 4), (2, 2))
    assert tokens[..., 0].tolist() == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]
    assert grid == (1, (4, 4), 2, 2, (2, 2))


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, 4)] * 6)
def test_fold_undoes_unfold(batch: int, dim: int, rows: int, columns: int, ph: int, pw: int) -> None:
    x = torch.randn(batch, dim, rows * ph, columns * pw)
    tokens, grid = unfold_patches(x, (ph, pw))
    assert tokens.shape == (batch * ph * pw, rows * columns, dim)
    assert torch.equal(fold_patches(tokens, grid), x)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 9), st.integers(3, 9))
def test_maps_that_cannot_be_divided_are_resized_and_not_padded(height: int, width: int) -> None:
    x = torch.ones(2, 3, height, width)
    tokens, grid = unfold_patches(x, (2, 3))
    torch.testing.assert_close(tokens, torch.ones_like(tokens))  # a padded map would have zeros
    torch.testing.assert_close(fold_patches(tokens, grid), x)


def test_positions_inside_a_patch_are_independent_of_each_other() -> None:
    layers = nn.Sequential(EncoderLayer(8, 2), EncoderLayer(8, 2)).eval()
    x = torch.randn(1, 8, 6, 6)
    changed = x.clone()
    changed[:, :, 1::2, 0::2] += 1  # position 2 of every patch
    before, after = (layers(unfold_patches(y, (2, 2))[0]) for y in (x, changed))
    assert torch.equal(before[[0, 1, 3]], after[[0, 1, 3]])
    assert not torch.allclose(before[2], after[2])


def test_there_is_no_position_encoding() -> None:
    layers, tokens = nn.Sequential(EncoderLayer(8, 2), EncoderLayer(8, 2)).eval(), torch.randn(4, 9, 8)
    order = torch.randperm(9)
    torch.testing.assert_close(layers(tokens[:, order]), layers(tokens)[:, order])


@pytest.mark.parametrize("at", [(0, 0), (5, 2), (7, 7)])
def test_every_pixel_sees_the_whole_map(at: tuple[int, int]) -> None:
    assert reach(block(), 8, at).all()


def test_a_patch_larger_than_the_kernel_leaves_pixels_unseen() -> None:
    seen = reach(block(patch_size=4, kernel_size=1), 16, (5, 6))
    assert seen.float().mean() == 1 / 16
    assert bool(seen[1::4, 2::4].all())
    assert reach(block(patch_size=4, kernel_size=3), 16, (5, 6)).float().mean() > 9 / 16 - 1e-6
    assert not reach(block(patch_size=8, kernel_size=3), 16, (4, 4)).all()


def test_without_attention_a_pixel_sees_its_neighbourhood_alone() -> None:
    seen = reach(block(attention=False), 16, (8, 8))
    assert seen.sum() == 25  # a 3 x 3 convolution, then another
    sizes = [sum(p.numel() for p in block(attention=attention).parameters()) for attention in (True, False)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": False},
        {"patch_size": (2, 3), "kernel_size": 5, "dilation": 2, "ffn_dim": 12},
        {"attention": False},
        {"num_layers": 0},
    ],
)
def test_the_contract(options: dict[str, object]) -> None:
    check_layer(block(**options), torch.randn(2, 6, 7, 6))


def test_the_block_is_what_the_paper_writes() -> None:
    """Steps 1 to 5 written out: one norm and SiLU after the local convolution, none after the 1 x 1, input first."""
    layer, x = block(), torch.randn(2, 6, 8, 8)
    y = layer.conv_1x1(torch.nn.functional.silu(layer.conv_kxk.bn(layer.conv_kxk.conv(x))))
    assert layer.conv_1x1.bias is None
    tokens, grid = unfold_patches(y, (2, 2))
    for part in layer.transformer:
        z = part.norm1(tokens)
        q, k, v = part.attn.qkv(z).view(*z.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-2, -1)) * 4**-0.5).softmax(dim=-1) @ v
        tokens = tokens + part.attn.proj(mixed.transpose(1, 2).reshape(z.shape))
        tokens = tokens + part.mlp.fc2(torch.nn.functional.silu(part.mlp.fc1(part.norm2(tokens))))
    y = layer.conv_proj(fold_patches(layer.norm(tokens), grid))
    torch.testing.assert_close(layer(x), layer.conv_fusion(torch.cat((x, y), dim=1)))


def test_dropout_and_stochastic_depth_act_in_training_alone() -> None:
    x = torch.randn(2, 6, 8, 8)
    for option in ("dropout", "attn_dropout", "ffn_dropout", "drop_path"):
        layer = block(**{"dropout": 0.0, option: 0.5})
        assert torch.equal(layer(x), layer(x))
        for module in layer.modules():
            module.training = not isinstance(module, nn.BatchNorm2d)
        assert not torch.equal(layer(x), layer(x)), option


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "divisor of transformer_dim 8"),
        ({"kernel_size": 2}, "odd"),
        ({"patch_size": 0}, ">= 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        block(**options)


def test_a_patch_larger_than_the_map_is_refused() -> None:
    with pytest.raises(InputError, match="no larger than the map"):
        block(patch_size=4)(torch.randn(1, 6, 3, 8))
    with pytest.raises(InputError, match="no larger than the map"):
        unfold_patches(torch.randn(1, 6, 3, 8), (0, 2))
    with pytest.raises(InputError, match="B, d, H, W"):
        unfold_patches(torch.randn(6, 3, 8), (2, 2))
