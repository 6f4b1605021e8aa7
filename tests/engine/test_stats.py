"""Intervals and rank correlation against closed forms, scipy and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from striate.engine.stats import Interval, bootstrap_mean, paired_bootstrap, spearman, wilson
from striate.errors import InputError

numbers = st.floats(-1e3, 1e3, allow_nan=False)


def test_bootstrap_of_a_constant_and_of_one_value_is_a_point() -> None:
    for values in ([2.5] * 7, [2.5]):
        interval = bootstrap_mean(values)
        assert (interval.value, interval.low, interval.high) == (2.5, 2.5, 2.5)
    assert bootstrap_mean([2.5] * 7).n == 7


def test_bootstrap_is_close_to_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = bootstrap_mean(values.tolist())
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_agrees_with_scipys_percentile_method() -> None:
    values = np.random.default_rng(1).exponential(1, 60)
    ours = bootstrap_mean(values.tolist(), level=0.9, resamples=20_000)
    peer = scipy_stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((peer.low, peer.high), abs=0.01)  # two Monte Carlo runs


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        interval = bootstrap_mean(generator.normal(0, 1, 40).tolist(), resamples=400, seed=i)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.98  # 0.95 less the known shortfall at n = 40, within 3 standard errors


@given(st.lists(numbers, min_size=1, max_size=20), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_bootstrap_is_seeded_ordered_and_inside_the_data(values: list[float], seed: int) -> None:
    interval = bootstrap_mean(values, resamples=200, seed=seed)
    assert interval == bootstrap_mean(values, resamples=200, seed=seed)
    assert interval.low <= interval.high
    assert min(values) - 1e-9 <= interval.low
    assert interval.high <= max(values) + 1e-9


def test_chunks_do_not_change_the_answer() -> None:
    big = list(range(3000))  # 10,000 resamples of it are drawn in several chunks
    interval = bootstrap_mean([float(value) for value in big])
    spread = 1.96 * np.std(big) / math.sqrt(3000)
    assert interval.high - interval.low == pytest.approx(2 * spread, rel=0.05)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], [[1.0], [2.0]]])
def test_bootstrap_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(InputError, match="finite"):
        bootstrap_mean(values)


def test_pairs_cancel_what_they_share() -> None:
    shared = np.random.default_rng(0).normal(0, 100, 50)
    interval = paired_bootstrap((shared + 1).tolist(), shared.tolist())
    assert interval.low == pytest.approx(1)
    assert interval.excludes(0)
    assert not interval.excludes(1 + 1e-12) or interval.low > 1 - 1e-9
    with pytest.raises(InputError, match="second"):
        paired_bootstrap([1.0, 2.0], [1.0])


def test_wilson_is_the_published_one() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3.
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson(successes, n)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
        assert interval.value == successes / n


@given(st.integers(1, 500), st.data())
@settings(max_examples=60, deadline=None)
def test_wilson_is_symmetric_and_inside_zero_and_one(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    interval, mirror = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirror.high, abs=1e-9)
    peer = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((peer.low, peer.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(InputError, match="successes"):
        wilson(successes, n)


def test_spearman_closed_forms() -> None:
    assert spearman([1, 2, 3, 4], [10, 100, 1000, 10_000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # No ties: 1 - 6 sum d^2 / (n (n^2 - 1)) with d = (0, 1, -1, 0): 1 - 12 / 60.
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    # Ties get mean ranks: ranks (1, 2.5, 2.5, 4) against (1, 2, 3, 4).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1])


def test_spearman_of_a_constant_is_nan_without_a_warning() -> None:
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_an_interval_says_itself() -> None:
    interval = Interval(0.5, 0.25, 0.75, 8)
    assert str(interval) == "0.5 [0.25, 0.75]"
    assert interval.to_dict() == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8, "level": 0.95}
    assert interval.excludes()
    assert not interval.excludes(0.3)
    assert interval.excludes(0.75 + 1e-9)
