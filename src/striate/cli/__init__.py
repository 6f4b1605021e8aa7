"""The command line: thin, and light to import, so that help answers before PyTorch could even be loaded."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Annotated

import typer

from striate import __version__
from striate.cli import data, papers, tag
from striate.cli._groups import ErrorGroup
from striate.cli.reproduce import reproduce, verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="striate",
    cls=ErrorGroup,
    help="What a vision network sees, what breaks it, and whether a paper about one holds.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_ELSEWHERE = ("examine", "explain", "attack", "compress", "pair", "models", "scoreboard")
"""Commands that are found as ``striate.cli.NAME:NAME``."""


def main() -> None:
    """Run the command line."""
    app(prog_name="striate")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"striate {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error arose.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Declare the options of the root; :class:`ErrorGroup` reads them."""


def _register() -> None:
    for name in _ELSEWHERE:
        if importlib.util.find_spec(f"striate.cli.{name}") is not None:
            app.command(name)(getattr(importlib.import_module(f"striate.cli.{name}"), name))
    app.command("reproduce")(reproduce)
    app.command("verify")(verify)
    app.add_typer(papers.app, name="papers")
    app.add_typer(data.app, name="data")
    app.add_typer(tag.app, name="tag")


_register()
