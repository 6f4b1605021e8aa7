"""A theory's curve and the measured curve in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from striate.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Curve", "draw_curves"]


@dataclass(frozen=True)
class Curve:
    """What was measured, and what theory says of it.

    Attributes:
        name: in the legend.
        x: positions.
        measured: values, one a position; None or infinity where there is none.
        low, high: ends of the intervals, or empty.
        theory: values at the same positions, or empty where no theory says anything.
        control: drawn in grey.
    """

    name: str
    x: Sequence[float]
    measured: Sequence[float | None]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    theory: Sequence[float] = ()
    control: bool = False

    def __post_init__(self) -> None:
        for name in ("measured", "low", "high", "theory"):
            values = getattr(self, name)
            if len(values) != len(self.x) and (name == "measured" or len(values)):
                raise InputError(name, "Curve", allowed=f"{len(self.x)} values, one a position", got=len(values))


def draw_curves(axes: Axes, curves: Sequence[Curve], *, x_label: str, y_label: str, log: bool = True) -> None:
    """Draw measured points with intervals, joined by a line, and theory dashed in the same colour.

    Args:
        axes: matplotlib's.
        curves: what to draw.
        x_label, y_label: with units.
        log: both axes logarithmic.
    """
    colours = iter(f"C{i}" for i in range(10))
    for curve in curves:
        colour = "0.55" if curve.control else next(colours)
        known = [i for i, value in enumerate(curve.measured) if value is not None and value < float("inf")]
        x, y = [curve.x[i] for i in known], [float(curve.measured[i] or 0.0) for i in known]
        below = [max(0.0, value - curve.low[i]) for i, value in zip(known, y, strict=True)] if curve.low else None
        above = [max(0.0, curve.high[i] - value) for i, value in zip(known, y, strict=True)] if curve.high else None
        above = above and [value if value < float("inf") else 0.0 for value in above]
        spread = None if below is None or above is None else [below, above]
        axes.errorbar(x, y, yerr=spread, fmt="o-", color=colour, markersize=4, capsize=2, label=curve.name)
        if len(curve.theory):
            axes.plot(curve.x, curve.theory, "--", color=colour, linewidth=1, label=f"{curve.name}, theory")
    if log:
        axes.set(xscale="log", yscale="log")
        ticks = sorted({value for curve in curves for value in curve.x})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.minorticks_off()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
