"""What predicates read and write alike: records of one kind of step, figures by seed, verdicts that nothing decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from striate.papers.base import Judgement

__all__ = [
    "accuracies",
    "differences",
    "find_records",
    "group_records",
    "never_testable",
    "not_testable",
    "percent",
    "shares",
    "show_range",
    "show_signed",
    "standard_error",
]

Record = Mapping[str, Any]


def find_records(steps: Mapping[str, Any], group: str) -> list[Record]:
    """Return what the steps ``GROUP/…`` measured, in the order of their names; for one arm, of its seeds.

    >>> find_records({"looks/das/seed1": {"n": 2}, "looks/das/seed0": {"n": 1}, "cost": {}}, "looks/das")
    [{'n': 1}, {'n': 2}]
    """
    return [steps[name] for name in sorted(steps) if name.startswith(f"{group}/")]


def group_records(steps: Mapping[str, Any], group: str) -> dict[str, list[Record]]:
    """Return what the steps ``GROUP/ARM/SEED`` measured: arm (which may hold slashes) -> one record a seed.

    >>> group_records({"fit/dense/1.0/seed0": {"n": 1}, "fit/mask/0.2/seed0": {"n": 2}}, "fit")
    {'dense/1.0': [{'n': 1}], 'mask/0.2': [{'n': 2}]}
    """
    found: dict[str, list[Record]] = {}
    for name in sorted(steps):
        if name.startswith(f"{group}/"):
            found.setdefault(name.removeprefix(f"{group}/").rpartition("/")[0], []).append(steps[name])
    return found


def percent(record: Record, part: str = "correct", of: str = "n") -> float:
    """Return ``record[part]`` as per cent of ``record[of]``."""
    return 100 * record[part] / record[of]


def shares(steps: Mapping[str, Any], arm: str, part: str = "correct") -> list[float]:
    """Return ``part`` as a share of ``n``, in [0, 1], of each seed, from the steps ``ARM/SEED``."""
    return [record[part] / record["n"] for record in find_records(steps, arm)]


def accuracies(steps: Mapping[str, Any], group: str) -> dict[str, list[float]]:
    """Return arm -> per cent ``correct`` of each seed, from the steps ``GROUP/ARM/SEED``."""
    return {arm: [percent(record) for record in records] for arm, records in group_records(steps, group).items()}


def differences(first: Iterable[float], second: Iterable[float]) -> list[float]:
    """Return ``first - second`` pair by pair, as for two arms of the same seeds.

    Raises:
        ValueError: one has more values than the other.
    """
    return [a - b for a, b in zip(first, second, strict=True)]


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; 0 for one value."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def show_range(values: Sequence[float], digits: int = 1, scale: float = 1) -> str:
    """Return mean, least and largest value in per cent; ``scale`` is 100 for shares.

    >>> show_range([0.5, 0.7], scale=100)
    '60.0 % [50.0, 70.0]'
    """
    mean, low, high = (f"{scale * value:.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return f"{mean} % [{low}, {high}]"


def show_signed(values: Iterable[float], digits: int = 1) -> str:
    """Return values with their signs.

    >>> show_signed([1, -0.25], 2)
    '+1.00, -0.25'
    """
    return ", ".join(f"{value:+.{digits}f}" for value in values)


def not_testable(reason: str, figure: str = "") -> Judgement:
    """Return the verdict where something was not measured; ``figure`` stands for what was measured and the control."""
    return Judgement("not testable here", figure, figure, reason)


def never_testable(reason: str, figure: str = "") -> Callable[[Mapping[str, Any]], Judgement]:
    """Return the ``judge`` of a predicate that no scale can test: whatever the steps, :func:`not_testable`."""
    return lambda steps: not_testable(reason, figure)
