"""``striate scoreboard``: all that was reproduced so far, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["scoreboard"]


def scoreboard(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with evidence, at any depth.")] = Path(
        "reproductions"
    ),
    out: Annotated[Path | None, typer.Option(help="The page. Default: scoreboard.html in DIR.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables instead; no page.")] = False,
) -> None:
    """Draw the evidence of every reproduction into one HTML page.

    Nothing is measured; every verdict is recomputed from its evidence.

    \b
    striate reproduce --all && striate scoreboard
    striate scoreboard evidence --out scoreboard.html
    """
    from striate.engine.files import write_text
    from striate.papers.scoreboard import markdown_table, summary, verdict_table
    from striate.report.scoreboard import read_entries, render_scoreboard

    entries = read_entries(folder)
    if markdown:
        rows = [row for entry in entries for row in entry.rows]
        typer.echo(f"{verdict_table(rows)}\n{markdown_table(rows)}", nl=False)
        return
    page = write_text(out or folder / "scoreboard.html", render_scoreboard(entries))
    typer.echo(summary(row for entry in entries for row in entry.rows))
    typer.echo(f"{page} ({page.stat().st_size / 2**20:.1f} MB)")
