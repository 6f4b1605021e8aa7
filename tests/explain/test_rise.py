"""RISE: closed forms, the paper's masks by a slow twin, invariances."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.errors import InputError
from striate.explain.rise import RISE, Masks


class Constant(nn.Module):
    """Gives class 0 the probability 0.3 whatever it sees."""

    def forward(self, x):
        return torch.tensor([0.3, 0.5, 0.2], dtype=x.dtype).log().expand(len(x), 3)


class Window(nn.Module):
    """Class 0 is as sure as the pixels in the upper left quarter are bright."""

    def forward(self, x):
        seen = x[:, :, : x.shape[2] // 2, : x.shape[3] // 2].mean(dim=(1, 2, 3))
        return torch.stack([8 * seen, torch.full_like(seen, 4.0)], dim=1)


def images(n=2, channels=3, size=(20, 23), dtype=torch.float32):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_a_constant_network_gives_its_probability_times_the_mean_mask():
    explainer = RISE(Constant().eval(), n_masks=64, grid=4)
    masks = explainer.masks((20, 23)).enlarged(range(64))
    result = explainer.attribute(images(), 0)
    torch.testing.assert_close(result.map, (0.3 * masks.mean(0) / 0.5).expand(2, -1, -1))


def test_a_constant_network_gives_its_probability_everywhere_with_many_masks():
    result = RISE(Constant().eval(), n_masks=4000, grid=4).attribute(images(1), 0)
    # standard error of a mask's mean: at most 0.5 / sqrt(4000); four of them, over p, times c
    assert (result.map - 0.3).abs().max() < 4 * 0.3 * (0.5 / 4000**0.5) / 0.5


def test_masks_of_ones_give_the_probability_exactly():
    net = Window().eval()
    x = images()
    result = RISE(net, n_masks=10, p=1.0).attribute(x, 0)
    torch.testing.assert_close(result.map, net(x).softmax(1)[:, :1, None].expand(-1, 20, 23))


def test_finds_the_window_that_counts():
    result = RISE(Window().eval(), n_masks=600, grid=5).attribute(images(2, size=(24, 24)), 0)
    inside = torch.zeros(24, 24, dtype=torch.bool)
    inside[:12, :12] = True
    for found in result.map:
        assert found[inside].mean() > found[~inside].mean()
    assert inside.flatten()[result.map.flatten(1).argmax(1)].all()
    assert result.check.passed


def test_masks_are_the_papers_enlarged_one_by_one():
    size, grid = (13, 22), 5
    masks = Masks.draw(40, grid, 0.5, size, seed=3)
    fast = masks.enlarged(range(7, 31))
    assert fast.shape == (24, 13, 22)
    cell = [math.ceil(side / grid) for side in size]
    for row, k in enumerate(range(7, 31)):
        large = F.interpolate(
            masks.cells[k].float()[None, None],
            size=[(grid + 1) * c for c in cell],
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        top, left = masks.shifts[k].tolist()
        assert 0 <= top < cell[0]
        assert 0 <= left < cell[1]
        torch.testing.assert_close(fast[row], large[top : top + 13, left : left + 22])
    assert masks.shifts.amax(0).tolist() == [c - 1 for c in cell]


def test_the_map_is_the_papers_sum():
    net, x = Window().eval(), images(2)
    explainer = RISE(net, n_masks=30, grid=4, p=0.4, batch_size=7)
    masks = explainer.masks((20, 23)).enlarged(range(30))
    slow = sum(net(x * mask).softmax(1)[:, 1, None, None] * mask for mask in masks) / (30 * 0.4)
    torch.testing.assert_close(explainer.attribute(x, 1).map, slow)


def test_a_baseline_shows_where_the_mask_hides():
    net, x = Window().eval(), images(1)
    grey = torch.tensor([0.2, 0.5, 0.7]).view(3, 1, 1)
    explainer = RISE(net, n_masks=12, grid=4, baseline=grey)
    masks = explainer.masks((20, 23)).enlarged(range(12))
    slow = sum(net(x * m + (1 - m) * grey).softmax(1)[:, 0, None, None] * m for m in masks) / 6
    torch.testing.assert_close(explainer.attribute(x, 0).map, slow)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100, None])
def test_a_batch_gives_what_single_images_give_at_any_inner_batch(batch_size):
    net, x, target = Window().eval(), images(3), [0, 1, 0]
    together = RISE(net, n_masks=25, grid=4, batch_size=batch_size).attribute(x, target)
    alone = [RISE(net, n_masks=25, grid=4).attribute(x[i : i + 1], target[i]) for i in range(3)]
    torch.testing.assert_close(together.map, torch.cat([one.map for one in alone]))
    assert together.check.value == pytest.approx(min(one.check.value for one in alone), abs=1e-5)


def test_no_call_is_larger_than_the_batch():
    sizes = []
    net = Window().eval()
    net.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    RISE(net, n_masks=9, grid=4, batch_size=4).attribute(images(6))
    assert max(sizes) <= 4
    assert sum(sizes) == 9 * 6 + 6


def test_the_seed_fixes_the_masks():
    first, same, other = (RISE(Constant(), n_masks=8, seed=seed).masks((20, 20)).cells for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    height=st.integers(4, 15),
    width=st.integers(4, 15),
    grid=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape_and_precision(n, channels, height, width, grid, dtype):
    result = RISE(Window().eval(), n_masks=6, grid=grid).attribute(images(n, channels, (height, width), dtype))
    assert result.map.shape == (n, height, width)
    assert result.map.dtype == dtype
    assert torch.isfinite(result.map).all()


def test_bf16_autocast():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    plain = RISE(net, n_masks=20, grid=4).attribute(images(), 0).map
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = RISE(net, n_masks=20, grid=4).attribute(images(), 0).map
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, plain, rtol=0.02, atol=0.0)


def test_a_constant_map_fails_its_check_rather_than_giving_nan():
    result = RISE(Constant().eval(), n_masks=10, p=1.0).attribute(images(), 0)
    assert result.check.passed is False
    assert (result.normalized == 0).all()


@pytest.mark.parametrize(
    ("options", "word"), [({"n_masks": 1}, "n_masks"), ({"p": 0.0}, "p"), ({"p": 1.5}, "p"), ({"grid": 21}, "grid")]
)
def test_what_is_not_allowed_is_named(options, word):
    with pytest.raises(InputError, match=f"'{word}'"):
        RISE(Constant().eval(), **options).attribute(images())
