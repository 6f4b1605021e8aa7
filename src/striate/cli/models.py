"""``striate models``: which networks there are and how to name them."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["models"]


def models(
    words: Annotated[
        list[str] | None, typer.Argument(help="List timm's networks with these words in their name.")
    ] = None,
) -> None:
    """List the embedded networks and every way of naming another.

    Example: striate models vit tiny
    """
    from rich.console import Console
    from rich.table import Table

    from striate.engine.load import EMBEDDED
    from striate.engine.packages import PACKAGES, find

    console = Console(highlight=False)
    if words:
        import timm

        found = [name for name in timm.list_models() if all(word in name for word in words)]
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
