"""How a sample complexity grows: the slope in log-log, and which of two laws fits better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from striate.engine.stats import Interval
from striate.errors import InputError
from striate.theory.sample_complexity import SampleComplexity

__all__ = ["LawFit", "ScalingFit", "fit_law", "scaling_fit"]


@dataclass(frozen=True)
class ScalingFit:
    """n ~ factor x^slope.

    Attributes:
        slope: in log-log, with its interval.
        factor: n at x = 1.
    """

    slope: Interval
    factor: float

    def at(self, x: float) -> float:
        """Return n by the fit."""
        return self.factor * x**self.slope.value

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"slope": self.slope.to_dict(), "factor": self.factor}


@dataclass(frozen=True)
class LawFit:
    """n ~ factor law(...), the factor fitted, the law's shape given.

    Attributes:
        factor: the geometric mean of n / law.
        error: root mean square of the logarithm of what is left over; 0.1 is about 10 %.
    """

    factor: float
    error: float


def scaling_fit(
    ns: Sequence[float | SampleComplexity],
    xs: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> ScalingFit:
    """Fit a straight line to log n against log x by least squares.

    Args:
        ns: sample complexities as measured, whose repeats give a bootstrap interval; or bare numbers, or such of a
            single repeat, for which the interval is Student's, from how well they lie on the line (infinite for two).
        xs: what n depends on, such as k; at least two different values.
        level: coverage.
        resamples, seed: of the bootstrap.

    Raises:
        InputError: a sample complexity was not reached, so that there is no number to fit.

    >>> scaling_fit([10, 40, 160], [1, 2, 4]).slope.value
    2.0
    """
    if len(ns) != len(xs) or len(set(xs)) < 2 or not all(0 < x < math.inf for x in xs):
        raise InputError("xs", "scaling_fit", allowed=f"{len(ns)} numbers > 0, two different at least", got=list(xs))
    values = [n.n if isinstance(n, SampleComplexity) else float(n) for n in ns]
    for x, value in zip(xs, values, strict=True):
        if not 0 < value < math.inf:
            hint = "Leave the point out and say so, or raise n_max."
            raise InputError("ns", "scaling_fit", allowed="finite and > 0", got=f"{value} at x = {x:g}", hint=hint)
    log_x, log_n = np.log(np.asarray(xs, dtype=float)), np.log(values)
    slope, intercept = np.polyfit(log_x, log_n, 1)
    if all(isinstance(n, SampleComplexity) and len(n.curve[0].scores) > 1 for n in ns):
        drawn = np.log([n.draws(resamples, seed + i) for i, n in enumerate(ns) if isinstance(n, SampleComplexity)])
        drawn = drawn[:, np.isfinite(drawn).all(axis=0)]  # a resample that never reaches the target has no slope
        centred = log_x - log_x.mean()
        slopes = centred @ drawn / (centred @ centred) if drawn.size else np.array([slope])
        low, high = np.quantile(slopes, [(1 - level) / 2, (1 + level) / 2])
    else:
        half = _half_width(log_x, log_n - (slope * log_x + intercept), level)
        low, high = slope - half, slope + half
    value = float(round(slope, 12))
    interval = Interval(value, float(min(low, value)), float(max(high, value)), len(ns), level)
    return ScalingFit(interval, float(np.exp(intercept)))


def fit_law(ns: Sequence[float], law: Callable[..., float], *xs: Sequence[float]) -> LawFit:
    """Fit the factor of a given law, and return how well it then fits.

    Args:
        ns: finite sample complexities.
        law: of one value from each of ``xs``.
        xs: as many values each as ``ns``.

    >>> fit_law([30.0, 60.0], lambda k, d: k + d, [5, 10], [10, 20])
    LawFit(factor=2.0, error=0.0)
    """
    if not ns or any(not 0 < n < math.inf for n in ns):
        raise InputError("ns", "fit_law", allowed="finite and > 0", got=list(ns))
    if not xs or any(len(x) != len(ns) for x in xs):
        raise InputError("xs", "fit_law", allowed=f"{len(ns)} values each", got=[len(x) for x in xs])
    given = [law(*values) for values in zip(*xs, strict=True)]
    if any(not 0 < value < math.inf for value in given):
        raise InputError("law", "fit_law", allowed="finite and > 0 at every point", got=given)
    left = np.log(ns) - np.log(given)
    factor, error = math.exp(left.mean()), float(left.std())
    return LawFit(round(factor, 12), round(error, 12))


def _half_width(log_x: np.ndarray, residuals: np.ndarray, level: float) -> float:
    freedom = len(log_x) - 2
    if freedom < 1:
        return math.inf
    error = math.sqrt(float(residuals @ residuals) / freedom / float(((log_x - log_x.mean()) ** 2).sum()))
    return float(scipy_stats.t.ppf((1 + level) / 2, freedom)) * error
