"""``striate papers``: the catalogue."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from striate.cli._groups import DefaultGroup

if TYPE_CHECKING:
    from striate.papers.base import Predicate
    from striate.papers.catalogue import Paper

__all__ = ["app"]

_HELP = """List the papers, or show one.

\b
striate papers
striate papers visual mamba
striate papers show xgrad-cam
"""

app = typer.Typer(cls=DefaultGroup, help=_HELP, rich_markup_mode=None)


@app.command("list")
def _list(
    words: Annotated[list[str] | None, typer.Argument(help="Only papers in which all these words occur.")] = None,
    implemented: Annotated[
        bool, typer.Option("--implemented", help="Only papers that can be reproduced here.")
    ] = False,
) -> None:
    """List the papers; with words, those that match.

    \b
    striate papers
    striate papers visual mamba
    striate papers --implemented
    """
    from striate.papers.catalogue import papers, search

    found = [paper for paper in (search(words) if words else papers()) if paper.implemented or not implemented]
    if not found:
        typer.echo("No paper matches. List them all with: striate papers")
        return
    width = max(len(paper.key) for paper in found)
    for paper in found:
        mark = "*" if paper.implemented else " "
        head = f"{paper.number:>2} {mark} {paper.key:<{width}}  "
        room = max(20, shutil.get_terminal_size().columns - len(head))
        typer.echo(head + textwrap.shorten(f"{paper.title} ({paper.year})", room, placeholder=" …"))
    ready = sum(paper.implemented for paper in found)
    typer.echo(f"\n{len(found)} papers, {ready} marked * can be reproduced here. More: striate papers show KEY")


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="Key or number.")],
    predicates: Annotated[
        bool, typer.Option("--predicates", help="Also show the rule that judges each claim (imports the experiment).")
    ] = False,
) -> None:
    """Show a paper and its claims.

    \b
    striate papers show xgrad-cam
    striate papers show 24 --predicates
    """
    from striate.papers.catalogue import find_paper, load_reproduction

    paper = find_paper(key)
    rules = load_reproduction(paper.key).predicates if predicates else ()
    for line in _page(paper, rules):
        typer.echo(line)


def _page(paper: Paper, rules: Sequence[Predicate]) -> Iterator[str]:
    width = min(100, shutil.get_terminal_size().columns)

    def block(text: str, indent: str = "", first: str = "") -> list[str]:
        return textwrap.wrap(text, width, initial_indent=first or indent, subsequent_indent=indent)

    yield from block(f"{paper.number}. {paper.title}")
    yield from block(", ".join(paper.authors))
    yield from block(f"{paper.venue or 'arXiv'}, {paper.year} · https://arxiv.org/abs/{paper.arxiv}")
    for what, address in paper.links.items():
        yield f"{what}: {address}"
    yield ""
    yield from block(paper.summary)
    yield ""
    for claim in paper.claims:
        yield from block(claim.text, indent="    ", first=f"{claim.id:<4}")
        if claim.published:
            yield from block(f"published: {claim.published}", indent="    ")
        for rule in rules:
            if rule.claim == claim.id:
                yield from block(f"judged by{f' ({rule.part})' if rule.part else ''}: {rule.statement}", indent="    ")
    yield ""
    if paper.implemented:
        yield f"Check it: striate reproduce {paper.key}"
    else:
        yield "Not implemented yet: its claims cannot be checked here."
