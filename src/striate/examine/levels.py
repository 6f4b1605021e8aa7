"""How bad it is that a share of the answers breaks, and whether the images were enough to say so."""

from __future__ import annotations

from striate.engine.stats import Interval
from striate.examine.finding import Level

__all__ = ["judge_share"]


def judge_share(broken: Interval, *, attention: float, problem: float) -> tuple[Level, list[str]]:
    """Return the level of a share of broken answers, and what to say where the images were too few for "good".

    Args:
        broken: the share in [0, 1], with its interval.
        attention, problem: above the first the level is at least "attention", from the second on it is "problem".

    >>> judge_share(Interval(0.0, 0.0, 0.66, 2), attention=0.1, problem=0.5)[0]
    'info'
    """
    if broken.value >= problem:
        return "problem", []
    if broken.value > attention:
        return "attention", []
    if broken.high < problem:
        return "good", []
    few = f"{broken.n} image{'s are' if broken.n > 1 else ' is'} too few to call this good: the interval reaches"
    return "info", [f"{few} {100 * broken.high:.0f} %, which would be a problem."]
