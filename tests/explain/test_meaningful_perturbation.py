"""Meaningful Perturbation: the objective by a slow twin, the start, what it finds, invariances."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.errors import InputError
from striate.explain.meaningful_perturbation import MeaningfulPerturbation, blurred


class Texture(nn.Module):
    """Class 0 is as sure as the centre is rough; a blur takes it away."""

    def forward(self, x):
        h, w = x.shape[-2:]
        centre = x[:, :, h // 4 : h - h // 4, w // 4 : w - w // 4]
        rough = (centre[..., 1:] - centre[..., :-1]).abs().mean(dim=(1, 2, 3))
        return torch.stack([20 * rough, torch.full_like(rough, 2.0)], dim=1)


def images(n=2, channels=3, size=(24, 28), dtype=torch.float32):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def explain(**options):
    return MeaningfulPerturbation(Texture().eval(), **{"sigma": 2.0, "iterations": 30, **options})


def test_blurs_what_counts_and_leaves_the_rest():
    # Where only l1 and l2 act, the cheapest edge climbs from 0 to 1 over 1.3 (3 l2 / l1)^(1/3) cells: here 1.5.
    result = explain(mask_size=12, iterations=80, l2=0.005).attribute(images(), 0)
    assert result.map.shape == (2, 12, 12)
    inside = result.map[:, 4:8, 4:8].mean()
    outside = torch.cat([result.map[:, :2].flatten(), result.map[:, -2:].flatten()]).mean()
    assert inside > 0.8
    assert outside < 0.3
    assert result.check.passed
    assert result.check.value > 0.9


def test_is_the_papers_objective_under_adam():
    x, net = images(1, dtype=torch.float64), Texture().eval()
    options = {"mask_size": 8, "l1": 0.05, "l2": 0.3, "power": 2.0, "lr": 0.07, "iterations": 15}
    blur = blurred(x, 2.0)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([mask], lr=0.07)
    for _ in range(15):
        large = F.interpolate(mask, size=(24, 28), mode="bilinear", align_corners=False)
        down, across = mask[:, :, 1:] - mask[:, :, :-1], mask[..., 1:] - mask[..., :-1]
        loss = net(x * large + blur * (1 - large)).softmax(1)[0, 0]
        loss = loss + 0.05 * (1 - mask).abs().mean() + 0.3 * ((down**2).mean() + (across**2).mean())
        adam.zero_grad()
        loss.backward()
        adam.step()
        mask.data.clamp_(0, 1)
    torch.testing.assert_close(explain(**options).attribute(x, 0).map, 1 - mask.detach()[:, 0])


def test_the_circle_is_the_smallest_central_one_that_does():
    start = explain(mask_size=20, iterations=1, lr=1e-9, start="circle").attribute(images(), 0)
    for found in start.map:
        assert set(found.round(decimals=6).unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(found, found.flip(0))
        torch.testing.assert_close(found, found.flip(1))
        assert found[10, 10] == 1
        assert found[0, 0] == 0
    assert start.check.value >= 0.99
    assert all(0.15 < area < 0.8 for area in start.notes["area"])


def test_the_notes_hold_the_probabilities_behind_the_check():
    x = images()
    result = explain().attribute(x, 0)
    net = Texture().eval()
    torch.testing.assert_close(torch.tensor(result.notes["before"]), net(x).softmax(1)[:, 0])
    torch.testing.assert_close(torch.tensor(result.notes["blurred"]), net(blurred(x, 2.0)).softmax(1)[:, 0])
    large = F.interpolate(1 - result.map[:, None], size=(24, 28), mode="bilinear", align_corners=False)
    mixed = x * large + blurred(x, 2.0) * (1 - large)
    torch.testing.assert_close(torch.tensor(result.notes["masked"]), net(mixed).softmax(1)[:, 0])


def test_the_blur_is_a_gaussian():
    impulse = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    impulse[..., 20, 20] = 1
    found = blurred(impulse, 3.0)[0, 0]
    line = torch.exp(-((torch.arange(41, dtype=torch.float64) - 20) ** 2) / 18)
    line[(torch.arange(41) - 20).abs() > 9] = 0
    torch.testing.assert_close(found, torch.outer(line, line) / line.sum() ** 2)
    assert torch.equal(blurred(impulse, 0.0), impulse)


@pytest.mark.parametrize("start", ["ones", "circle"])
@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_a_batch_gives_what_single_images_give(start, batch_size):
    x, target = images(3), [0, 1, 0]
    options = {"mask_size": 8, "iterations": 12, "start": start}
    together = explain(batch_size=batch_size, **options).attribute(x, target).map
    alone = torch.cat([explain(**options).attribute(x[i : i + 1], target[i]).map for i in range(3)])
    # Adam divides by the gradient's own size, which makes rounding where it is all but zero visible
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(1, 2),
    channels=st.sampled_from([1, 3]),
    height=st.integers(5, 31),
    width=st.integers(5, 31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape_and_precision(n, channels, height, width, dtype):
    explainer = MeaningfulPerturbation(Texture().eval(), iterations=2)
    result = explainer.attribute(images(n, channels, (height, width), dtype))
    assert result.map.shape == (n, min(28, height), min(28, width))
    assert result.map.dtype == dtype
    assert torch.isfinite(result.map).all()
    assert result.normalized.shape == (n, height, width)


def test_bf16_autocast_no_grad_and_channels_last():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    explainer = MeaningfulPerturbation(net, iterations=3)
    x = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(explainer.attribute(x, 0).map).all()
    plain = explainer.attribute(x, 0).map
    with torch.no_grad():
        last = explainer.attribute(x.to(memory_format=torch.channels_last), 0).map
    torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-3)


def test_the_model_is_left_as_it_came():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    net.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    MeaningfulPerturbation(net, iterations=2).attribute(images(), 0)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_a_class_that_a_blur_does_not_lower_fails_the_check():
    result = explain(iterations=2).attribute(images(), 1)
    assert result.check.passed is False
    assert "does not lower" in result.check.statement


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mask_size": 0}, "mask_size"),
        ({"iterations": 0}, "iterations"),
        ({"lr": 0.0}, "lr"),
        ({"l1": -1.0}, "l1"),
        ({"sigma": -1.0}, "sigma"),
        ({"start": "square"}, "start"),
    ],
)
def test_what_is_not_allowed_is_named(options, word):
    with pytest.raises(InputError, match=f"'{word}'"):
        explain(**options)
