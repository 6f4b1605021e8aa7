"""DSD and SSD: what is drawn, where the signal is, and that a larger draw begins with the smaller one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.data.local_signal import DSD, SSD, DigitSignal, patches_to_images
from striate.errors import InputError, StriateWarning

TASKS = {
    "DSD": DSD(6, 5, 0.25),
    "SSD": SSD(6, 5, 0.25, patch=2),
    "one digit": DigitSignal(4, 0.2),
    "two digits": DigitSignal(4, 0.2, (3, 8)),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_is_drawn(task: DSD) -> None:
    x, y = task.sample(301, seed=4)
    assert x.shape == (301, task.k, task.d)
    assert x.dtype == y.dtype == torch.float32
    assert set(y.tolist()) == {-1.0, 1.0}
    assert abs(y.mean()) < 0.2


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**31))
def test_a_larger_draw_begins_with_the_smaller_one(few: int, many: int, seed: int) -> None:
    few, many = sorted((few, many))
    task = DSD(3, 4, 0.5)
    x, y = task.sample(few, seed)
    longer = task.sample(many, seed)
    assert torch.equal(longer[0][:few], x)
    assert torch.equal(longer[1][:few], y)


def test_seeds_and_parts_are_different_draws() -> None:
    task = DSD(3, 4, 0.5)
    draws = [task.sample(8, 0)[0], task.sample(8, 1)[0], task.sample(8, 0, train=False)[0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_a_stream_is_the_sample_in_pieces() -> None:
    task = DSD(3, 4, 0.5)
    pieces = list(task.stream(600, seed=2))
    assert [len(y) for _, y in pieces] == [256, 256, 88]
    assert torch.equal(torch.cat([x for x, _ in pieces]), task.sample(600, seed=2)[0])


def test_first_moments() -> None:
    """E[y x_j] = w* / k and E[sum_j y x_j] = w*, within five standard errors."""
    task = DSD(5, 6, 0.3)
    x, y = task.sample(40_000)
    by_patch = (y[:, None, None] * x).mean(dim=0)
    error = (0.3**2 + task.w.square().max() * 0.2).sqrt() / 200
    assert (by_patch - task.w / 5).abs().max() < 5 * error
    assert (by_patch.sum(dim=0) - task.w).abs().max() < 5 * 0.3 * 5**0.5 / 200


def test_the_noise_has_the_deviation_asked_for_in_the_signals_patch_too() -> None:
    task = SSD(2, 50, 0.4, patch=1)
    x, y = task.sample(4_000)
    noise = x.clone()
    noise[:, 1] -= y[:, None] * task.w
    assert noise.std(dim=(0, 2)).tolist() == pytest.approx([0.4, 0.4], rel=0.02)


def test_where_the_signal_is() -> None:
    strong, fixed = DSD(4, 9, 1e-3), SSD(4, 9, 1e-3, patch=3)
    places = (strong.sample(2_000)[0] @ strong.w).abs().argmax(dim=1).bincount(minlength=4)
    assert (places - 500).abs().max() < 100
    assert (fixed.sample(50)[0] @ fixed.w).abs().argmax(dim=1).unique().tolist() == [3]


def test_the_signal_is_no_axis_and_follows_its_seed() -> None:
    first, again, other = DSD(2, 8, 1, seed=3), DSD(5, 8, 2, seed=3), DSD(2, 8, 1, seed=4)
    assert torch.equal(first.w, again.w)
    assert not torch.equal(first.w, other.w)
    assert first.w.norm().item() == pytest.approx(1, abs=1e-6)
    assert first.w.abs().max() < 0.99


def test_digits_are_real_and_the_parts_share_none() -> None:
    task = DigitSignal(2, 1e-6, (7,))
    shown = {}
    for train in (True, False):
        x, y = task.sample(500, train=train)
        patch = x[torch.arange(500), x.norm(dim=2).argmax(dim=1)] * y[:, None]
        assert patch.norm(dim=1).sub(1).abs().max() < 1e-3
        shown[train] = torch.unique(patch.mul(500).round(), dim=0)
    assert torch.cdist(shown[True], shown[False]).min() > 1
    assert len(shown[True]) > 50


def test_patches_lie_along_the_rows() -> None:
    x = torch.arange(2 * 6 * 4.0).reshape(2, 6, 4)
    image = patches_to_images(x, (2, 3), (2, 2))
    assert image.shape == (2, 1, 4, 6)
    assert torch.equal(image[1, 0, 2:4, 2:4].flatten(), x[1, 4])
    assert patches_to_images(x[None], (2, 3), (2, 2)).shape == (1, 2, 1, 4, 6)
    with pytest.raises(InputError, match="6, 4"):
        patches_to_images(x, (2, 2), (2, 2))


def test_refusals() -> None:
    for call in (
        lambda: DSD(3, 4, 0),
        lambda: DSD(3, 4, float("nan")),
        lambda: DSD(0, 4, 1),
        lambda: DSD(3, 4, 1, torch.zeros(4)),
        lambda: DSD(3, 4, 1, torch.ones(5)),
        lambda: SSD(3, 4, 1, patch=3),
        lambda: DigitSignal(3, 1, (3, 3)),
        lambda: DSD(3, 4, 1).sample(0),
    ):
        with pytest.raises(InputError):
            call()


def test_a_signal_that_is_no_unit_vector_is_scaled_and_said() -> None:
    with pytest.warns(StriateWarning, match="norm 5"):
        task = DSD(3, 2, 1, torch.tensor([3.0, 4.0]))
    assert task.w.tolist() == pytest.approx([0.6, 0.8])
