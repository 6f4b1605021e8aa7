"""Intervals and rank statistics: how sure a measured figure is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from striate.errors import InputError

__all__ = ["Interval", "bootstrap_mean", "paired_bootstrap", "spearman", "wilson", "wilson_mean"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        value: the estimate.
        low, high: ends of the interval.
        n: number of observations behind it.
        level: coverage, 0.95 unless asked otherwise.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def excludes(self, null: float = 0.0) -> bool:
        """Whether the interval lies wholly on one side of ``null``."""
        return self.low > null or self.high < null

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "level": self.level}

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap_mean(values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean, seeded.

    Args:
        values: (n,) observations; one gives a point interval.
        level: coverage in (0, 1).
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise InputError("values", "bootstrap_mean", allowed="a non-empty list of finite numbers", got=values)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            data[generator.integers(0, data.size, (count, data.size))].mean(axis=1)
            for count in _chunks(resamples, max(1, 4_000_000 // data.size))
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(low), float(high), int(data.size), level)


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of ``mean(first - second)`` over pairs."""
    if len(first) != len(second):
        raise InputError("second", "paired_bootstrap", allowed=f"as long as first ({len(first)})", got=len(second))
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_mean(difference.tolist(), level=level, resamples=resamples, seed=seed)


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion.

    >>> wilson(8, 10).low > 0.44
    True
    """
    if n <= 0 or not 0 <= successes <= n:
        raise InputError("successes, n", "wilson", allowed="0 <= successes <= n, n > 0", got=(successes, n))
    z = float(scipy_stats.norm.ppf((1 + level) / 2))
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / scale
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n, level)


def wilson_mean(shares: Sequence[float], *, level: float = 0.95) -> Interval:
    """Wilson interval of the mean of per-image shares in [0, 1], each itself a mean over trials on that image.

    Trials on one image are not independent, so the interval counts images; a fractional total is widened to the
    whole numbers around it.

    >>> wilson_mean([1.0, 0.0, 0.5]).n
    3
    """
    n, total = len(shares), float(sum(shares))
    if n == 0 or min(shares) < 0 or max(shares) > 1:
        raise InputError("shares", "wilson_mean", allowed="a non-empty list of numbers in [0, 1]", got=list(shares))
    low, high = wilson(math.floor(total + 1e-9), n, level=level), wilson(math.ceil(total - 1e-9), n, level=level)
    return Interval(total / n, low.low, high.high, n, level)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman rank correlation in [-1, 1]; NaN where either side is constant."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(scipy_stats.spearmanr(a, b).statistic)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
