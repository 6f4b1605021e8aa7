"""Insertion and deletion: anchors, closed forms, order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from striate.engine.model import Preprocessing, VisionModel
from striate.errors import InputError
from striate.explain.curves import deletion, insertion


def small_net(classes: int = 4, channels: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, classes),
        ).eval()


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.3, 0.7], dtype=x.dtype).log().expand(len(x), 2)


class Brightness(nn.Module):
    """The probability of class 1 is the mean brightness."""

    def forward(self, x: Tensor) -> Tensor:
        p = x.double().mean(dim=(1, 2, 3)).clamp(1e-12, 1 - 1e-12)
        return torch.stack([1 - p, p], dim=1).log()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(3, 12), st.integers(3, 12), st.integers(1, 9), st.integers(0, 999))
def test_the_ends_of_the_curves(n: int, height: int, width: int, step: int, seed: int) -> None:
    model, generator = small_net(), torch.Generator().manual_seed(seed)
    x, maps = torch.rand(n, 3, height, width, generator=generator), torch.rand(n, height, width, generator=generator)
    target = torch.randint(4, (n,), generator=generator)
    whole = model(x).softmax(1).gather(1, target[:, None])[:, 0]
    grey = model(torch.zeros_like(x)).softmax(1).gather(1, target[:, None])[:, 0]
    step = min(step, height * width)
    off, on = deletion(model, x, target, maps, step=step), insertion(model, x, target, maps, step=step)
    torch.testing.assert_close(off.curve[:, 0].float(), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(off.curve[:, -1].float(), grey, atol=1e-6, rtol=0)
    torch.testing.assert_close(on.curve[:, -1].float(), whole, atol=1e-6, rtol=0)
    steps = -(-height * width // step)
    assert on.curve.shape == off.curve.shape == (n, steps + 1)
    assert (on.fractions[0], on.fractions[-1]) == (0, 1)
    assert on.check.passed
    assert off.check.passed


def test_a_constant_model_has_its_probability_as_area() -> None:
    x, maps = torch.rand(2, 1, 7, 9), torch.rand(2, 7, 9)
    for metric in (insertion, deletion):
        torch.testing.assert_close(
            metric(Constant().eval(), x, [0, 1], maps, step=4).auc, torch.tensor([0.3, 0.7]).double()
        )


def test_areas_in_closed_form() -> None:
    # White image, uniform map: brightness falls linearly from 1 to 0, whatever the order, even with a short last step.
    x, maps = torch.ones(1, 1, 5, 5), torch.zeros(1, 5, 5)
    assert deletion(Brightness().eval(), x, 1, maps, step=7).auc.item() == pytest.approx(0.5, abs=1e-6)
    # Left half white: deleting it first gives the smallest area, deleting it last the largest.
    x = torch.zeros(1, 1, 4, 4)
    x[..., :2] = 1
    best, worst = (deletion(Brightness().eval(), x, 1, m, step=1).auc.item() for m in (x[:, 0], 1 - x[:, 0]))
    assert best == pytest.approx(0.125, abs=1e-6)  # triangle: 0.5 * 0.5 / 2
    assert worst == pytest.approx(0.375, abs=1e-6)


def test_equal_pixels_go_in_a_seeded_order_that_ignores_the_batch() -> None:
    model, x, maps = small_net(), torch.rand(3, 3, 8, 8), torch.zeros(3, 8, 8)
    maps[:, :4] = 1
    first = deletion(model, x, [0, 1, 2], maps)
    again = deletion(model, x, [0, 1, 2], maps, batch_size=5)
    torch.testing.assert_close(first.curve, again.curve)
    alone = deletion(model, x[1:2], [1], maps[1:2])
    torch.testing.assert_close(alone.curve, first.curve[1:2])
    assert not torch.equal(first.curve, deletion(model, x, [0, 1, 2], maps, seed=1).curve)


def test_a_scaled_map_gives_the_same_curve() -> None:
    model, x, maps = small_net(), torch.rand(2, 3, 6, 6), torch.rand(2, 6, 6)
    assert torch.equal(deletion(model, x, 0, maps).curve, deletion(model, x, 0, 3 * maps - 1).curve)


def test_deleted_pixels_become_the_preprocessing_mean() -> None:
    network = small_net()
    model = VisionModel(network, Preprocessing((3, 6, 6), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)))
    x, maps = torch.rand(1, 3, 6, 6), torch.rand(1, 6, 6)
    grey = network(torch.zeros(1, 3, 6, 6)).softmax(1)[0, 2].item()
    assert deletion(model, x, 2, maps).curve[0, -1].item() == pytest.approx(grey, abs=1e-6)
    black = model(torch.zeros(1, 3, 6, 6)).softmax(1)[0, 2].item()
    assert deletion(model, x, 2, maps, baseline=0.0).curve[0, -1].item() == pytest.approx(black, abs=1e-6)


def test_insertion_starts_from_a_gaussian_blur() -> None:
    from torchvision.transforms.functional import gaussian_blur

    model = small_net()
    x = torch.rand(1, 3, 224, 16)
    start = insertion(model, x, 1, torch.rand(1, 224, 16)).curve[0, 0].item()
    # Same kernel, other border: compare on an image that is constant near its border.
    x[..., :6], x[..., -6:], x[..., :6, :], x[..., -6:, :] = 0.5, 0.5, 0.5, 0.5
    start = insertion(model, x, 1, torch.rand(1, 224, 16)).curve[0, 0].item()
    assert start == pytest.approx(model(gaussian_blur(x, 11, 5.0)).softmax(1)[0, 1].item(), abs=1e-6)
    given = insertion(model, x, 1, torch.rand(1, 224, 16), blur=(5, 2.0)).curve[0, 0].item()
    assert given == pytest.approx(model(gaussian_blur(x, 5, 2.0)).softmax(1)[0, 1].item(), abs=1e-6)


def test_default_target_and_step() -> None:
    model, x = small_net(), torch.rand(2, 3, 10, 7)
    curve = deletion(model, x, None, torch.rand(2, 10, 7))
    assert torch.equal(curve.target, model(x).argmax(1))
    assert curve.curve.shape == (2, 11)  # 1/H of the pixels a step
    assert curve.to_dict()["metric"] == "deletion"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_and_channels_last(dtype: torch.dtype) -> None:
    x = torch.rand(2, 3, 6, 6, dtype=dtype).to(memory_format=torch.channels_last)
    result = insertion(small_net().to(dtype), x, 0, torch.rand(2, 6, 6, dtype=dtype))
    assert result.auc.dtype == torch.float64
    assert result.check.passed


def test_a_model_in_training_mode_is_judged_in_eval_mode_and_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(48, 2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="training mode"):
        result = deletion(model, torch.rand(2, 3, 4, 4), 0, torch.rand(2, 4, 4))
    assert result.check.passed
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_that_mixes_its_batch_fails_the_check() -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :2]
            return logits - logits.mean(dim=0)

    result = deletion(Mixing().eval(), torch.rand(4, 1, 4, 4) * 5, 0, torch.rand(4, 4, 4))
    assert result.check.passed is False


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"maps": torch.rand(1, 5, 4)}, "one value a pixel"),
        ({"maps": torch.full((1, 4, 4), torch.inf)}, "finite"),
        ({"target": 9}, "class index"),
        ({"target": lambda logits: logits[:, 0]}, "callable"),
        ({"step": 0}, "pixels"),
        ({"batch_size": 0}, "batch_size"),
        ({"inputs": torch.rand(3, 4, 4)}, "N, C, H, W"),
    ],
)
def test_wrong_input_is_refused(options: dict[str, object], match: str) -> None:
    arguments = {"inputs": torch.rand(1, 3, 4, 4), "target": 0, "maps": torch.rand(1, 4, 4)} | options
    for metric in (insertion, deletion):
        with pytest.raises(InputError, match=match):
            metric(small_net(), **arguments)


def test_wrong_blur_and_baseline_are_refused() -> None:
    x, maps = torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4)
    with pytest.raises(InputError, match="odd kernel"):
        insertion(small_net(), x, 0, maps, blur=(4, 1.0))
    with pytest.raises(InputError, match="baseline"):
        deletion(small_net(), x, 0, maps, baseline=torch.zeros(2))
