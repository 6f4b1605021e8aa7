"""Occlusion: closed form, parity with captum 0.9, geometry, invariances."""

from __future__ import annotations

import pytest
import torch
from captum import attr as captum_attr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.errors import InputError
from striate.explain.occlusion import Occlusion


def small_net(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)
    ).eval()


def images(n=2, channels=3, size=(11, 14), dtype=torch.float32):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_single_pixels_of_a_linear_network_give_input_times_weight():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 2)).double().eval()
    x = images(2, size=(4, 5), dtype=torch.float64)
    result = Occlusion(linear, window=1, stride=1).attribute(x, 1)
    torch.testing.assert_close(result.map, (x * linear[1].weight[1].detach().view(3, 4, 5)).sum(1))
    assert result.check.passed


@pytest.mark.parametrize(
    ("window", "stride"), [((3, 3), (2, 2)), ((4, 5), (3, 2)), ((11, 14), (1, 1)), ((2, 14), (2, 3)), ((5, 5), (5, 5))]
)
@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_agrees_with_captum_also_where_the_last_window_is_cut(window, stride, baseline):
    net, x, target = small_net(), images(), torch.tensor([3, 1])
    theirs = captum_attr.Occlusion(net).attribute(
        x, sliding_window_shapes=(3, *window), strides=(3, *stride), baselines=baseline, target=target
    )
    ours = Occlusion(net, window=window, stride=stride, baseline=baseline).attribute(x, target)
    torch.testing.assert_close(ours.map, theirs[:, 0], rtol=1e-5, atol=1e-6)


def test_a_tensor_baseline_equal_to_the_image_changes_nothing():
    x = images()
    result = Occlusion(small_net(), window=4, baseline=x).attribute(x, 0)
    assert (result.map.abs() < 1e-6).all()
    assert not result.check.passed


def test_a_batch_gives_what_single_images_give_at_any_inner_batch():
    net, x, target = small_net(), images(3), [3, 0, 1]
    together = Occlusion(net, window=4).attribute(x, target).map
    for batch_size in (1, 5, None):
        one = Occlusion(net, window=4, batch_size=batch_size)
        alone = torch.cat([one.attribute(x[i : i + 1], target[i]).map for i in range(3)])
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 2),
    channels=st.sampled_from([1, 3]),
    height=st.integers(3, 17),
    width=st.integers(3, 17),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_defaults_fit_any_size(n, channels, height, width, dtype):
    result = Occlusion(small_net(channels).to(dtype)).attribute(images(n, channels, (height, width), dtype))
    assert result.map.shape == (n, height, width)
    assert result.map.dtype == dtype
    assert torch.isfinite(result.map).all()


def test_channels_last_and_bf16_autocast():
    net, x = small_net(), images()
    plain = Occlusion(net, window=4).attribute(x, 1).map
    last = Occlusion(net, window=4).attribute(x.to(memory_format=torch.channels_last), 1).map
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = Occlusion(net, window=4).attribute(x, 1).map
    assert low.dtype == torch.float32
    assert torch.isfinite(low).all()


def test_the_order_check_fails_when_the_map_points_the_wrong_way():
    class Backwards(nn.Module):
        """Single windows raise the score, many together lower it: the single drops mislead."""

        def forward(self, x):
            hidden = (x == 0).flatten(1).double().mean(1)
            value = torch.where(hidden > 0.08, -hidden, torch.zeros_like(hidden))
            return torch.stack([value, torch.zeros_like(value)], 1).to(x.dtype)

    x = images(1, size=(20, 20)) + 0.1
    assert Occlusion(Backwards().eval(), window=2).attribute(x, 0).check.passed is False


def test_the_model_may_be_trained_after_it_was_explained():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.kept = small_net(), None

        def forward(self, x):
            if self.kept is None:
                self.kept = torch.ones(1)
            return self.net(x * self.kept)

    net = Keeps().eval()
    Occlusion(net, window=4).attribute(images(), 1)
    net(images().requires_grad_()).sum().backward()
    assert net.net[0].weight.grad is not None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"window": 12}, "window"),
        ({"window": 0}, "window"),
        ({"window": 3, "stride": 4}, "stride"),
        ({"window": 3, "stride": 0}, "stride"),
        ({"baseline": torch.zeros(2, 2)}, "baseline"),
    ],
)
def test_what_is_not_allowed_is_named(options, word):
    with pytest.raises(InputError, match=f"'{word}'"):
        Occlusion(small_net(), **options).attribute(images())
