"""The scoreboard: claim, published, measured, control, verdict, seconds; on a terminal and in Markdown."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from striate.papers.base import VERDICTS

if TYPE_CHECKING:
    from rich.table import Table

    from striate.papers.runner import Row, VerifiedRow

__all__ = [
    "TABLE_WIDTH",
    "markdown_table",
    "reasons",
    "rich_table",
    "summary",
    "text_blocks",
    "verdict_table",
    "verification_table",
]

TABLE_WIDTH = 110
"""Columns below which :func:`text_blocks` reads better than :func:`rich_table`."""

_HEADS = ("paper", "claim", "published", "measured", "control", "verdict", "seconds")
_STYLES = {
    "reproduced": "green",
    "direction only": "yellow",
    "not reproduced": "red",
    "inconclusive": "magenta",
    "not testable here": "dim",
    "not judged": "dim",
}
_NONE = "–"


def rich_table(rows: Sequence[Row]) -> Table:
    """Return the scoreboard for a terminal that is wide enough (:data:`TABLE_WIDTH`), with a heading for each paper."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in _HEADS[1:]:
        fixed = head in {"verdict", "seconds"}
        table.add_column(head, justify="right" if head == "seconds" else "left", no_wrap=fixed)
    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1].paper != row.paper:
            table.add_section()
            table.add_row(Text(row.paper, style="bold"))
        _, *cells, verdict, seconds = _cells(row)
        # Text, not markup: an interval in square brackets would be taken for a style.
        table.add_row(*(Text(cell) for cell in cells), Text(verdict, style=_STYLES.get(verdict, "")), seconds)
    return table


def text_blocks(rows: Iterable[Row], width: int) -> str:
    """Return the scoreboard for a narrow terminal: one block a row, reasons included."""
    lines = []
    for row in rows:
        paper, name, published, measured, control, verdict, seconds = _cells(row)
        lines.append(f"{paper} {name}: {verdict} ({seconds} s)")
        facts = {"published": published, "measured": measured, "control": control, "why": row.reason or _NONE}
        for head, fact in facts.items():
            if fact != _NONE:
                indent = " " * 13
                lines += textwrap.wrap(fact, width, initial_indent=f"  {head + ':':<11}", subsequent_indent=indent)
    return "\n".join(lines)


def markdown_table(rows: Iterable[Row]) -> str:
    """Return the scoreboard as a GitHub table, the claim in words and the reason of each verdict included."""
    lines = ["| " + " | ".join((*_HEADS, "why")) + " |", "|" + "---|" * (len(_HEADS) + 1)]
    for row in rows:
        paper, _, *rest = _cells(row)
        cells = (paper, f"{row.name}: {row.text}", *rest, row.reason or _NONE)
        lines.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def verdict_table(rows: Iterable[Row]) -> str:
    """Return a GitHub table with a line for each paper: which of its claims got which verdict."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        found.setdefault(row.paper, {}).setdefault(row.verdict, []).append(row.name)
    verdicts = [verdict for verdict in VERDICTS if any(verdict in judged for judged in found.values())]
    lines = [f"| paper | {' | '.join(verdicts)} |", "|" + "---|" * (len(verdicts) + 1)]
    for paper, judged in found.items():
        cells = (_escaped("; ".join(judged.get(verdict, [_NONE]))) for verdict in verdicts)
        lines.append(f"| {paper} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def reasons(rows: Iterable[Row]) -> list[str]:
    """Return one line for each verdict that has a reason."""
    return [f"{row.paper} {row.name}, {row.verdict}: {row.reason}" for row in rows if row.reason]


def summary(rows: Iterable[Row]) -> str:
    """Return the count of each verdict in words, the good ones first.

    >>> summary([])
    'no verdicts'
    """
    counts = Counter(row.verdict for row in rows)
    order = [*VERDICTS, *sorted(counts.keys() - set(VERDICTS))]
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in order if counts[verdict]) or "no verdicts"


def verification_table(rows: Sequence[VerifiedRow]) -> Table:
    """Return stored against recomputed verdicts for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("paper", "scale", "claim", "stored", "recomputed", "same", "note"):
        table.add_column(head, overflow="fold")
    for row in rows:
        same = Text("yes", style="green") if row.same else Text("NO", style="red")
        cells = (row.paper, row.scale, row.claim or _NONE, row.stored or _NONE, row.recomputed or _NONE)
        table.add_row(*(Text(cell) for cell in cells), same, Text(row.note))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.paper,
        row.name,
        row.published or _NONE,
        row.measured or _NONE,
        row.control or _NONE,
        row.verdict,
        f"{row.seconds:.1f}",
    )


def _escaped(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
