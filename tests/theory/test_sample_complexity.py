"""The search for n*, its interval, and how it grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from striate.data.local_signal import DSD, DigitSignal
from striate.errors import InputError
from striate.theory import sample_complexity as module
from striate.theory.learners import RidgeLearner
from striate.theory.projected import ProjectedGD
from striate.theory.sample_complexity import Point, SampleComplexity, sample_complexity
from striate.theory.scaling import fit_law, scaling_fit
from striate.theory.two_step import TwoStepGD

TASK = DSD(3, 4, 0.4)


class NeedsExactly(nn.Module):
    """A learner whose score is 1 from n samples on, else 0; it remembers what it was asked."""

    def __init__(self, need: int) -> None:
        super().__init__()
        self.need = need
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def fit(self, x: Tensor, y: Tensor, *, seeds: Sequence[int], validation: object = None) -> nn.Module:
        self.asked.append((x.shape[1], tuple(seeds)))
        self.enough = x.shape[1] >= self.need
        return self


def reached(model: nn.Module, task: DSD, x: Tensor, y: Tensor) -> Tensor:
    return torch.full((len(x),), float(model.enough))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 1_000))
def test_n_is_found_to_within_the_ratio(need: int) -> None:
    found = sample_complexity(
        NeedsExactly(need), TASK, target=0.5, metric=reached, repeats=2, n_max=1_024, test_samples=4
    )
    assert need <= found.n <= max(need + 1, 1.15 * need)
    assert [point.n for point in found.curve] == sorted({point.n for point in found.curve})
    assert {point.mean for point in found.curve if point.n < need} <= {0.0}


def test_what_is_never_reached_is_infinite_and_keeps_its_curve() -> None:
    found = sample_complexity(NeedsExactly(99), TASK, target=0.5, metric=reached, n_max=50, test_samples=4)
    assert math.isinf(found.n)
    assert str(found) == "> 50"
    assert [point.n for point in found.curve] == [2, 4, 8, 16, 32, 50]
    assert math.isinf(found.interval().high)
    assert SampleComplexity.from_dict(found.to_dict()) == found


def test_what_is_reached_at_once_says_at_most() -> None:
    found = sample_complexity(NeedsExactly(1), TASK, target=0.5, metric=reached, n_min=8, test_samples=4)
    assert (found.n, str(found)) == (8.0, "<= 8")


def test_repeats_run_side_by_side_as_far_as_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY", 2 * 4 * 3 * 4 * 64)
    learner = NeedsExactly(64)
    sample_complexity(
        learner, TASK, target=0.5, metric=reached, repeats=[1, 2, 3, 7, 9], n_min=64, n_max=64, test_samples=4
    )
    assert learner.asked == [(64, (1, 2)), (64, (3, 7)), (64, (9,))]


def test_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> SampleComplexity:
        return sample_complexity(
            ProjectedGD("lcn", steps=30), TASK, target=0.9, repeats=3, n_max=64, test_samples=100, validation_samples=50
        )

    whole = find()
    monkeypatch.setattr(module, "MEMORY", 1)
    alone = find()
    assert [point.n for point in alone.curve] == [point.n for point in whole.curve]
    for one, other in zip(alone.curve, whole.curve, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=0.011)  # a sign may turn on the last bit


def test_samples_beyond_memory_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    task = DSD(4, 6, 0.25)
    whole = sample_complexity(TwoStepGD("cnn"), task, target=0.9, metric="cosine", repeats=10)
    monkeypatch.setattr(module, "MEMORY", 1)
    streamed = sample_complexity(TwoStepGD("cnn"), task, target=0.9, metric="cosine", repeats=10)
    assert streamed.curve[-1].scores != whole.curve[-1].scores  # other samples in the second half
    assert 0.4 < streamed.n / whole.n < 2.5


def test_the_cnn_needs_about_what_theory_says() -> None:
    found = sample_complexity(TwoStepGD("cnn"), DSD(10, 20, 0.25), target=0.9, metric="cosine", repeats=10)
    assert 80 < found.n < 150
    assert found.interval().low <= found.n <= found.interval().high


def test_metrics() -> None:
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return torch.full(x.shape[:2], self.value)

    y = torch.tensor([[1.0, 1.0, -1.0, 1.0]])
    x = torch.zeros(1, 4, 3, 4)
    scores = {name: metric(Constant(5.0), TASK, x, y) for name, metric in module.METRICS.items() if name != "cosine"}
    assert scores["accuracy"].tolist() == [0.75]
    assert scores["negative squared error"].tolist() == [-1.0]
    assert module.METRICS["accuracy"](Constant(0.0), TASK, x, y).tolist() == [0.0]


def test_squared_error_can_be_the_target() -> None:
    found = sample_complexity(
        RidgeLearner(), TASK, target=-0.6, metric="negative squared error", n_max=4_096, repeats=2
    )
    assert 2 <= found.n < 4_096


def test_a_network_of_ones_own_is_enough() -> None:
    """Trained as it stands: 600 steps of Adam at each of nine sizes, about 5 seconds."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 1))

    found = sample_complexity(make, DSD(3, 4, 0.2), target=0.9, repeats=1, n_min=8, n_max=512, test_samples=500)
    assert 8 <= found.n <= 256


def curve(*points: tuple[int, tuple[float, ...]], n: float = 8.0) -> SampleComplexity:
    return SampleComplexity(n, 0.5, "accuracy", 2, 64, tuple(Point(*point) for point in points))


def test_an_interval_is_of_resampled_repeats() -> None:
    sure = curve((4, (0.1, 0.1)), (8, (0.9, 0.9)))
    assert (sure.interval().low, sure.interval().high) == (8, 8)
    split = curve((4, (0.0, 0.9)), (8, (0.4, 0.9)), (16, (0.9, 0.9)))
    assert (split.interval().low, split.interval().high) == (4, 16)


def test_a_single_repeat_is_not_taken_for_certainty() -> None:
    single = [curve((n // 2, (0.1,)), (n, (0.9,)), n=float(n)) for n in (8, 20, 32)]
    assert (single[0].interval().low, single[0].interval().high) == (0, math.inf)
    assert scaling_fit(single, [1, 2, 4]).slope == scaling_fit([8, 20, 32], [1, 2, 4]).slope
    assert scaling_fit(single[:2], [1, 2]).slope.high == math.inf


def test_slopes() -> None:
    exact = scaling_fit([3.0 * k**1.7 for k in (5, 10, 20)], [5, 10, 20])
    assert exact.slope.value == pytest.approx(1.7)
    assert exact.factor == pytest.approx(3)
    assert exact.slope.high - exact.slope.low == pytest.approx(0, abs=1e-6)
    assert exact.at(10) == pytest.approx(3 * 10**1.7)
    doubled = scaling_fit([10, 40, 160], [1, 2, 4]).slope
    assert doubled.low <= doubled.value <= doubled.high
    noisy = scaling_fit([10, 45, 150], [1, 2, 4])
    assert noisy.slope.low < noisy.slope.value < noisy.slope.high
    assert math.isinf(scaling_fit([10, 45], [1, 2]).slope.high)


def test_the_interval_of_a_slope_comes_from_the_repeats() -> None:
    first = curve((4, (0.0, 0.9)), (8, (0.4, 0.9)), (16, (0.9, 0.9)))
    second = curve((16, (0.0, 0.0)), (32, (0.9, 0.9)), n=32.0)
    fit = scaling_fit([first, second], [1, 2])
    assert (fit.slope.low, fit.slope.value, fit.slope.high) == pytest.approx((1, 2, 3))


def test_laws() -> None:
    ks, ds = [5, 10, 20, 10, 10], [20, 20, 20, 10, 40]
    ns = [7.0 * (k + d) for k, d in zip(ks, ds, strict=True)]
    assert fit_law(ns, lambda k, d: k + d, ks, ds).error == 0
    assert fit_law(ns, lambda k, d: k * d, ks, ds).error > 0.2


def test_refusals() -> None:
    learner = TwoStepGD("cnn")
    for call in (
        lambda: sample_complexity(learner, TASK, target=0.9, metric="loss"),
        lambda: sample_complexity(learner, TASK, target=0.9, repeats=[1, 1]),
        lambda: sample_complexity(learner, TASK, target=0.9, repeats=0),
        lambda: sample_complexity(learner, TASK, target=0.9, n_min=1),
        lambda: sample_complexity(learner, TASK, target=0.9, n_min=8, n_max=4),
        lambda: sample_complexity(learner, TASK, target=0.9, ratio=1.0),
        lambda: sample_complexity(learner, TASK, target=float("nan")),
        lambda: sample_complexity(learner, TASK, target=90),
        lambda: sample_complexity("cnn", TASK, target=0.9),  # type: ignore[arg-type]
        lambda: sample_complexity(learner, DigitSignal(2, 1.0), target=0.9, metric="cosine"),
        lambda: sample_complexity(ProjectedGD("fcn", steps=1), TASK, target=0.9, metric="cosine"),
        lambda: sample_complexity(learner, TASK, target=0.9, metric=lambda *_: torch.zeros(3, 3)),
        lambda: scaling_fit([1.0, math.inf], [1, 2]),
        lambda: scaling_fit([1.0, 2.0], [1, 1]),
        lambda: scaling_fit([1.0, 2.0], [1, math.nan]),
        lambda: fit_law([], lambda k: k, []),
        lambda: fit_law([1.0, 2.0], lambda k: k, [1]),
        lambda: fit_law([1.0], lambda k: 0.0, [1]),
        lambda: sample_complexity(learner, TASK, target=0.9, device="nowhere"),
    ):
        with pytest.raises(InputError):
            call()
