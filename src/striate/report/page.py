"""``report.html`` from ``report.json``: one file, no network, no script needed to read it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from striate.engine.files import write_text
from striate.report.charts import svg
from striate.report.heatmap import colour, png_base64, scale_bar

if TYPE_CHECKING:
    from striate.examine.finding import Chart, Figure, MapPicture, Report

__all__ = ["render", "templates", "write_report"]

_LEVELS = {"good": "fine", "attention": "look here", "problem": "mend this", "info": "for information"}


def render(report: Report) -> str:
    """Return the report as one self-contained HTML page; every text from outside is escaped."""
    environment = templates()
    counter = iter(range(10_000))

    def chart(item: Chart) -> Markup:
        # Drawn by matplotlib from data that its SVG writer escapes.
        return Markup(svg(item, identifier=f"c{next(counter)}"))

    environment.filters |= {
        "figure": _figure,
        "heat": _heat,
        "chart": chart,
        "number": _number,
        "rows": _rows,
    }
    template = environment.get_template("report.html.j2")
    return template.render(report=report, scale=png_base64(scale_bar()), levels=_LEVELS)


def templates() -> Environment:
    """Return the pages' templates: everything is escaped, and a name that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("striate.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = _seconds
    return environment


def write_report(report: Report, folder: str | Path) -> Path:
    """Write ``report.json`` and ``report.html`` into ``folder``; return the page's path."""
    folder = Path(folder)
    write_text(folder / "report.json", report.model_dump_json(indent=1) + "\n")
    return write_text(folder / "report.html", render(report))


def _rows(maps: list[MapPicture]) -> list[tuple[int | None, list[MapPicture]]]:
    """Group maps by the photograph under them, in order of appearance."""
    grouped: dict[int | None, list[MapPicture]] = {}
    for picture in maps:
        grouped.setdefault(picture.photo, []).append(picture)
    return list(grouped.items())


def _heat(picture: MapPicture) -> str:
    data = np.frombuffer(base64.b64decode(picture.base64), dtype=np.uint8)
    return png_base64(colour(data.reshape(picture.height, picture.width) / 255.0))


def _number(value: Any) -> str:
    """Format a table cell: text as it is, numbers to three significant digits."""
    if value is None:
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    if size >= 0.001:
        return f"{value:.3f}"
    return f"{value:.1e}"


def _figure(item: Figure) -> str:
    """Format a figure with its interval: ``85 % (64 to 95)``, ``41.2 ms (40.8 to 44.0)``."""

    def show(value: float) -> str:
        return f"{100 * value:.0f}" if item.unit == "%" else _number(value)

    if item.value is None:
        return "–"
    text = f"{show(item.value)} {item.unit}".rstrip()
    if item.low is not None and item.high is not None:
        text += f" ({show(item.low)} to {show(item.high)})"
    return text


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {value % 60:02.0f} s"
