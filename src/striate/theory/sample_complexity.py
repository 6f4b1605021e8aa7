"""How many samples does it take? For any learner, on any task that can be sampled.

n* is the least n at which the mean score over repeats reaches a target: n doubles until it does, then the gap is halved
in the logarithm until its ends are within 15 %. Repeat r sees the first n of the same samples whatever n is (common
random numbers), so that the score moves with n and not with the draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.data.local_signal import SignalTask
from striate.engine.state import find_device
from striate.engine.stats import Interval
from striate.errors import InputError
from striate.theory.learners import Learner, NetworkLearner, Samples
from striate.theory.two_step import TwoStepGD

__all__ = ["METRICS", "Metric", "Point", "SampleComplexity", "sample_complexity"]

Metric = Callable[[nn.Module, SignalTask, Tensor, Tensor], Tensor]
"""``metric(model, task, x, y)`` with x (R, m, k, d) and y (R, m): one score a repeat, (R,); the higher the better."""

MEMORY = 256 * 2**20
"""Bytes of training samples that are held at once: repeats run side by side as far as that goes."""


def accuracy(model: nn.Module, task: SignalTask, x: Tensor, y: Tensor) -> Tensor:
    """Share of right signs; an output of exactly 0 is wrong."""
    return (model(x).sign() == y).double().mean(dim=-1)


def negative_squared_error(model: nn.Module, task: SignalTask, x: Tensor, y: Tensor) -> Tensor:
    """Minus the mean of (clip(f, -1, 1) - y)^2: 0 at best, -1 for an output of 0."""
    return -(model(x).clamp(-1, 1) - y).double().square().mean(dim=-1)


def cosine(model: nn.Module, task: SignalTask, x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine of a CNN's or LCN's filters and the signal w*; test samples are not looked at."""
    find = getattr(model, "cosine", None)
    if find is None or task.w is None:
        what = "a PatchNet" if find is None else "a task with one signal w"
        raise InputError("metric", "sample_complexity", allowed=f"'accuracy' here: 'cosine' needs {what}", got="cosine")
    return find(task.w).double().mean(dim=-1)


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "cosine": cosine,
    "negative squared error": negative_squared_error,
}
"""Scores by name."""


@dataclass(frozen=True)
class Point:
    """Scores at one sample size.

    Attributes:
        n: samples.
        scores: one a repeat.
    """

    n: int
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over repeats."""
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class SampleComplexity:
    """How many samples a learner needs.

    Attributes:
        n: the least number of samples that was found to be enough; infinity where the target was never reached.
        target: of the mean score.
        metric: its name.
        n_min, n_max: the range that was searched.
        curve: all that was measured, by rising n.
    """

    n: float
    target: float
    metric: str
    n_min: int
    n_max: int
    curve: tuple[Point, ...]

    def draws(self, resamples: int = 2_000, seed: int = 0) -> np.ndarray:
        """Return n* of resampled repeats, (resamples,): the least measured n at which their mean reaches the target.

        Infinity where it never does. With a handful of repeats this is a rough guide.
        """
        scores = np.array([point.scores for point in self.curve])  # (points, repeats)
        repeats = scores.shape[1]
        chosen = np.random.default_rng(seed).integers(0, repeats, (resamples, repeats))
        reached = scores[:, chosen].mean(axis=2) >= self.target  # (points, resamples)
        sizes = np.array([point.n for point in self.curve], dtype=float)
        return np.where(reached.any(axis=0), sizes[reached.argmax(axis=0)], math.inf)

    def interval(self, level: float = 0.95, *, resamples: int = 2_000, seed: int = 0) -> Interval:
        """Return n* with its percentile bootstrap interval over repeats; a single one tells nothing: 0 to infinity."""
        repeats = len(self.curve[0].scores)
        if repeats == 1:
            return Interval(self.n, 0.0, math.inf, 1, level)
        ordered = np.sort(self.draws(resamples, seed))
        low, high = (float(ordered[round(share * (resamples - 1))]) for share in ((1 - level) / 2, (1 + level) / 2))
        return Interval(self.n, min(low, self.n), max(high, self.n), repeats, level)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; an infinite n is None."""
        return {
            "n": None if math.isinf(self.n) else self.n,
            "target": self.target,
            "metric": self.metric,
            "n_min": self.n_min,
            "n_max": self.n_max,
            "curve": [{"n": point.n, "scores": list(point.scores)} for point in self.curve],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> SampleComplexity:
        """Read back what :meth:`to_dict` gave."""
        curve = tuple(Point(point["n"], tuple(point["scores"])) for point in record["curve"])
        n = math.inf if record["n"] is None else float(record["n"])
        return cls(n, record["target"], record["metric"], record["n_min"], record["n_max"], curve)

    def __str__(self) -> str:
        if math.isinf(self.n):
            return f"> {self.n_max}"
        return f"<= {self.n:.0f}" if self.n <= self.n_min else f"{self.n:.0f}"


def sample_complexity(
    learner: Learner | Callable[[], nn.Module],
    task: SignalTask,
    *,
    target: float,
    metric: str | Metric = "accuracy",
    repeats: int | Sequence[int] = 5,
    n_min: int = 2,
    n_max: int = 2**14,
    ratio: float = 1.15,
    test_samples: int = 2_000,
    validation_samples: int = 1_000,
    device: str | torch.device = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> SampleComplexity:
    """Find the least number of training samples at which ``learner`` reaches ``target`` on ``task``.

    Args:
        learner: a :class:`striate.theory.learners.Learner`, or a function that returns a fresh network of yours, which
            is then trained by :class:`striate.theory.learners.NetworkLearner` as that stands.
        task: what to learn.
        target: of the score's mean over repeats.
        metric: a name in :data:`METRICS`, or a :data:`Metric`.
        repeats: how many, or their seeds. A repeat has its own training, validation and test samples and start.
        n_min, n_max: where to begin, and where to give up.
        ratio: how near the ends of the last gap are to each other; the answer is the upper end.
        test_samples, validation_samples: a repeat. Validation samples go to learners that stop or choose by them, and
            do not count; 0 gives none.
        device: where to train.
        report: called with each sample size and its score.

    Returns:
        n* and the whole curve; n* is infinite where ``n_max`` samples are not enough.

    >>> from striate.data.local_signal import DSD
    >>> found = sample_complexity(TwoStepGD("cnn"), DSD(5, 5, 0.25), target=0.9, metric="cosine", repeats=3)
    >>> 4 <= found.n <= 64
    True
    """
    seeds = tuple(range(repeats)) if isinstance(repeats, int) else tuple(repeats)
    _check(seeds, n_min, n_max, ratio, target)
    if not hasattr(learner, "fit"):
        learner = NetworkLearner(learner)
    name, score = _metric(metric)
    if name in {"accuracy", "cosine"} and target > 1:
        raise InputError("target", "sample_complexity", allowed=f"at most 1, the highest {name}", got=target)
    place = find_device(device, "sample_complexity")
    trial = _Trial(learner, task, score, seeds, test_samples, validation_samples, place, name)
    measured: dict[int, Point] = {}

    def enough(n: int) -> bool:
        measured[n] = Point(n, trial(n))
        report(f"n = {n}: {name} {measured[n].mean:.4f}")
        return measured[n].mean >= target

    low, high = 0, n_min
    while not enough(high):
        if high == n_max:
            return SampleComplexity(math.inf, target, name, n_min, n_max, _by_size(measured))
        low, high = high, min(2 * high, n_max)
    while low and high / low > ratio and high - low > 1:
        middle = min(max(round(math.sqrt(low * high)), low + 1), high - 1)
        low, high = (low, middle) if enough(middle) else (middle, high)
    for above in (ratio**2, ratio**4):  # so that resampled repeats find their n* on either side
        if high * above <= n_max and math.ceil(high * above) not in measured:
            enough(math.ceil(high * above))
    return SampleComplexity(float(high), target, name, n_min, n_max, _by_size(measured))


@dataclass(frozen=True)
class _Trial:
    """Scores of all repeats at one sample size."""

    learner: Learner
    task: SignalTask
    score: Metric
    seeds: tuple[int, ...]
    test_samples: int
    validation_samples: int
    device: torch.device
    name: str

    def __call__(self, n: int) -> tuple[float, ...]:
        bytes_each = 4 * max(n, self.test_samples) * self.task.k * self.task.d
        together = max(1, MEMORY // bytes_each)
        if bytes_each > MEMORY and isinstance(self.learner, TwoStepGD) and self.learner.split == "halves":
            return tuple(self._streamed(self.learner, n, seed) for seed in self.seeds)
        scores: list[float] = []
        for start in range(0, len(self.seeds), together):
            scores += self._scores(n, self.seeds[start : start + together])
        return tuple(scores)

    def _scores(self, n: int, seeds: tuple[int, ...]) -> list[float]:
        x, y = self._samples(n, seeds, train=True)
        validation = None
        if self.validation_samples:  # their seeds are far from those of training samples
            validation = self._samples(self.validation_samples, tuple(seed + _APART for seed in seeds), train=True)
        model = self.learner.fit(x, y, seeds=seeds, validation=validation)
        return self._judged(model, seeds)

    def _streamed(self, learner: TwoStepGD, n: int, seed: int) -> float:
        first = self.task.stream(n - n // 2, seed)
        second = self.task.stream(n // 2, seed + _APART)
        model = learner.fit_stream(first, second, seed=seed).to(self.device)
        with torch.no_grad():
            x, y = (part[0] for part in self._samples(self.test_samples, (seed,), train=False))
            return float(self.score(model, self.task, x, y))

    def _judged(self, model: nn.Module, seeds: tuple[int, ...]) -> list[float]:
        with torch.no_grad():
            scores = self.score(model, self.task, *self._samples(self.test_samples, seeds, train=False))
        if scores.shape != (len(seeds),):
            raise InputError("metric", "sample_complexity", allowed=f"one score a repeat, ({len(seeds)},)", got=scores)
        return [float(value) for value in scores]

    def _samples(self, n: int, seeds: tuple[int, ...], *, train: bool) -> Samples:
        xs, ys = zip(*(self.task.sample(n, seed, train=train) for seed in seeds), strict=True)
        return torch.stack(xs).to(self.device), torch.stack(ys).to(self.device)


_APART = 1_000_003


def _metric(metric: str | Metric) -> tuple[str, Metric]:
    if callable(metric):
        return getattr(metric, "__name__", "score"), metric
    if metric not in METRICS:
        raise InputError("metric", "sample_complexity", allowed=f"one of {', '.join(METRICS)}", got=metric)
    return metric, METRICS[metric]


def _by_size(measured: Mapping[int, Point]) -> tuple[Point, ...]:
    return tuple(measured[n] for n in sorted(measured))


def _check(seeds: Sequence[int], n_min: int, n_max: int, ratio: float, target: float) -> None:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError("repeats", "sample_complexity", allowed=">= 1, or different seeds >= 0", got=list(seeds))
    if not 2 <= n_min <= n_max:
        raise InputError("n_min, n_max", "sample_complexity", allowed="2 <= n_min <= n_max", got=(n_min, n_max))
    if ratio <= 1 or not math.isfinite(target):
        raise InputError(
            "ratio, target", "sample_complexity", allowed="ratio > 1, a finite target", got=(ratio, target)
        )
