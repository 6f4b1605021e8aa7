"""Line charts as SVG that take the page's colours, light or dark."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from striate.examine.finding import Chart

__all__ = ["svg"]

# matplotlib writes fixed colours; these stand-ins become CSS variables in the finished SVG.
_INK, _GRID = "#010203", "#040506"
_SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}


def svg(chart: Chart, *, identifier: str) -> str:
    """Draw a chart as an inline ``<svg>``; text stays text.

    Args:
        chart: the points, see :class:`striate.examine.finding.Chart`.
        identifier: unique on the page; keeps the ids of several charts apart.
    """
    options: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": identifier,
        "font.family": "sans-serif",
        "font.size": 10,
    }
    options["text.parse_math"] = False  # a class called "$x" is a name, not a formula
    with matplotlib.rc_context(options):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for number, series in enumerate(chart.series):
            paint = _INK if series.control else _SERIES[number % len(_SERIES)]
            style = "--" if series.control else "-"
            axes.plot(series.x, series.y, style, marker="o", markersize=3.5, color=paint, label=series.name)
            if series.low is not None and series.high is not None:
                axes.fill_between(series.x, series.low, series.high, color=paint, alpha=0.15, linewidth=0)
        if chart.diagonal:
            axes.plot([0, 1], [0, 1], ":", color=_INK, linewidth=1)
        if chart.x_ticks is not None:
            axes.set_xticks(chart.series[0].x, chart.x_ticks)
        if chart.y_range is not None:
            axes.set_ylim(*chart.y_range)
        axes.set_xlabel(chart.x_label, color=_INK)
        axes.set_ylabel(chart.y_label, color=_INK)
        axes.grid(True, color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK, which="both", length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        if len(chart.series) > 1:
            columns = min(3, len(chart.series))  # below the axes, where no line can run through it
            figure.legend(loc="outside lower center", ncols=columns, frameon=False, labelcolor=_INK, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'id="([^"]+)"', rf'id="{identifier}-\1"', drawn)
    drawn = re.sub(r'(href="#|url\(#)', rf"\1{identifier}-", drawn)
    # Presentation attributes do not take CSS variables; style declarations do, and matplotlib writes those.
    for colour, variable in _VARIABLES.items():
        drawn = drawn.replace(colour, variable)
    return drawn
