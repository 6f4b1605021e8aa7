"""``striate examine``: one network, its images, one report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["examine"]


def examine(
    model: Annotated[
        str,
        typer.Argument(
            help="lite0 (embedded), a timm name, torchvision:NAME, hf_hub:OWNER/NAME, package.module:factory, "
            "or a checkpoint file with --architecture."
        ),
    ] = "lite0",
    images: Annotated[
        str, typer.Argument(help="A folder or a file; 'embedded' for the photographs that come along.")
    ] = "embedded",
    labels: Annotated[Path | None, typer.Option(help="CSV of file and label; class folders need none.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("striate-report"),
    quick: Annotated[bool, typer.Option("--quick", help="Measure less: under a minute for a small network.")] = False,
    probe: Annotated[list[str] | None, typer.Option(help="Only this probe; repeat for several.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many images, a seeded sample.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
    architecture: Annotated[str | None, typer.Option(help="Which network a checkpoint file belongs to.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Let timm, torchvision or a hub download weights.")
    ] = False,
    input_size: Annotated[str | None, typer.Option(help="CxHxW, e.g. 1x28x28, where the network does not say.")] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel for pixels in [0, 1], e.g. 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, like --mean.")] = None,
    class_names: Annotated[Path | None, typer.Option(help="Text file with one class name per line.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
) -> None:
    """Examine a network on images and write one HTML report.

    What it predicts and how sure it is, where it looks and whether that can be trusted, what breaks it, how fast it
    is. With no arguments: the embedded ImageNet network on the embedded photographs.
    """
    from rich.console import Console

    from striate.cli.options import model_options, output_folder
    from striate.examine.run import examine as run
    from striate.report.page import write_report

    output_folder(out, "striate examine")
    console = Console(stderr=True, highlight=False)
    with console.status("examining …") as status:

        def say(line: str) -> None:
            status.update(line)
            if not console.is_terminal:
                console.print(line)

        report = run(
            model,
            images,
            labels=labels,
            quick=quick,
            probes=probe,
            limit=limit,
            seed=seed,
            command=shlex.join(["striate", *sys.argv[1:]]),
            say=say,
            **model_options(architecture, pretrained, input_size, mean, std, class_names, device),
        )
    page = write_report(report, out)
    for finding in report.findings:
        mark = finding.level if finding.status == "done" else finding.status
        console.print(f"[bold]{mark:>9}[/bold]  {finding.question} {finding.headline}", soft_wrap=True, markup=True)
    typer.echo(f"{page} ({page.stat().st_size / 2**20:.1f} MB, {report.seconds:.0f} s)")
    if any(finding.status == "failed" for finding in report.findings):
        raise typer.Exit(1)
