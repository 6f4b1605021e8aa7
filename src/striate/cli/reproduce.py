"""``striate reproduce`` and ``striate verify``: check the papers, and check the checking."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from striate.errors import InputError, StriateError

if TYPE_CHECKING:
    from striate.papers.base import Scale
    from striate.papers.runner import Outcome, Row

__all__ = ["reproduce", "verify"]

_OUT = Path("reproductions")


def reproduce(
    ctx: typer.Context,
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Papers, by key or number.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every paper that is implemented.")] = False,
    scale: Annotated[
        str,
        typer.Option(help="smoke: seconds, no verdicts. laptop: minutes on two cores. paper: real data, GPU."),
    ] = "laptop",
    claim: Annotated[list[str] | None, typer.Option(help="Only this claim, as C2; may be repeated.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds. Default: as the paper's page says.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the evidence.")] = _OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build everything, take one step, keep nothing.")] = False,
    data: Annotated[Path | None, typer.Option(help="Root of the real data set, for --scale paper.")] = None,
    device: Annotated[str, typer.Option(help="Where networks run, as cpu or cuda.")] = "cpu",
    jobs: Annotated[
        int, typer.Option(min=1, help="Papers side by side, the longest first, each with its share of the cores.")
    ] = 1,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the scoreboard as Markdown.")] = False,
) -> None:
    """Run papers' experiments and judge their claims.

    Evidence is written as it is measured; the same command continues a run that was cut off. The exit code says
    whether everything ran, not what the verdicts are.

    \b
    striate reproduce xgrad-cam
    striate reproduce --all --jobs 2
    striate reproduce fgsm-patch --claim C2 --out evidence
    striate reproduce xgrad-cam --scale paper --dry-run
    """
    from striate.papers.base import Scale
    from striate.papers.catalogue import find_paper, load_reproduction, papers
    from striate.papers.runner import recall
    from striate.papers.runner import reproduce as run

    if every == bool(keys):
        raise InputError("KEY", "striate reproduce", allowed="given, or --all, and not both", got=keys or "neither")
    if scale not in get_args(Scale):
        raise InputError("--scale", "striate reproduce", allowed=f"one of {', '.join(get_args(Scale))}", got=scale)
    chosen = [paper for paper in papers() if paper.implemented] if every else [find_paper(key) for key in keys or ()]
    for paper in chosen:
        if not paper.implemented:
            load_reproduction(paper.key)  # says so, before anything runs

    asked = keys = list(dict.fromkeys(paper.key for paper in chosen))
    outcomes: list[Outcome] = []
    failed: list[str] = []
    if jobs > 1 and len(keys) > 1:
        given = {"--claim": claim, "--seeds": seeds, "--out": out, "--data": data, "--device": device}
        failed += _side_by_side(keys, cast(Scale, scale), jobs, given, dry_run)
        if not dry_run:
            outcomes += [recall(key, scale=cast(Scale, scale), out=out) for key in keys if key not in failed]
        keys = []
    for key in keys:
        try:
            reproduction = load_reproduction(key)
            minutes = f"about {reproduction.minutes[cast(Scale, scale)]:.2g} min"
            _say(f"── {key}, {scale} scale, {'dry run' if dry_run else minutes}")
            outcome = run(
                reproduction,
                scale=cast(Scale, scale),
                seeds=seeds,
                claims=claim or None,
                out=out,
                device=device,
                dry_run=dry_run,
                data=data,
                report=lambda line: _say(f"   {line}"),
            )
        except StriateError as error:
            if ctx.find_root().params.get("traceback"):
                raise
            failed.append(key)
            _say(f"striate: {error}")
            continue
        except KeyboardInterrupt:
            _show([row for outcome in outcomes for row in outcome.rows], markdown)
            kept = "A dry run keeps nothing." if dry_run else f"Finished steps are kept in {out / key / scale}."
            _say(f"Stopped. {kept} The same command continues.")
            raise typer.Exit(130) from None
        outcomes.append(outcome)
        _say(f"   {_where(outcome)}")
    _show([row for outcome in outcomes for row in outcome.rows], markdown)
    if failed:
        _say(f"striate: {len(failed)} of {len(asked)} failed to run: {', '.join(failed)}.")
        raise typer.Exit(1)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with evidence, at any depth.")] = _OUT,
) -> None:
    """Recompute verdicts from stored evidence.

    Nothing is trained or measured. The exit code is 1 where a stored verdict does not follow from the evidence.

    \b
    striate verify reproductions
    striate verify reproductions/xgrad-cam/laptop
    """
    from rich.console import Console

    from striate.papers.runner import verify as recompute
    from striate.papers.scoreboard import verification_table

    rows = recompute(folder)
    Console().print(verification_table(rows))
    wrong = sum(not row.same for row in rows)
    typer.echo(f"{len(rows) - wrong} of {len(rows)} stored verdicts follow from the evidence.")
    if wrong:
        raise typer.Exit(1)


def _show(rows: list[Row], markdown: bool) -> None:
    from rich.console import Console

    from striate.papers.scoreboard import TABLE_WIDTH, markdown_table, reasons, rich_table, summary, text_blocks

    if not rows:
        return
    if markdown:
        typer.echo(markdown_table(rows), nl=False)
        return
    console = Console()
    if console.width < TABLE_WIDTH:
        typer.echo(text_blocks(rows, console.width))
    else:
        console.print(rich_table(rows))
        for line in reasons(rows):
            typer.echo(line)
    typer.echo(f"\n{summary(rows)}")


def _side_by_side(keys: list[str], scale: Scale, jobs: int, given: Mapping[str, Any], dry_run: bool) -> list[str]:
    """Run each paper in a process of its own, the longest first, and return those that failed."""
    from striate.cli._jobs import run_side_by_side
    from striate.papers.catalogue import load_reproduction

    minutes = {key: load_reproduction(key).minutes[scale] for key in keys}
    shared = ["--scale", scale, *(["--dry-run"] if dry_run else [])]
    for option, value in given.items():
        for each in value if isinstance(value, list) else [value]:
            shared += [] if each is None else [option, str(each)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // jobs)
    _say(f"── {len(keys)} papers, {scale} scale, {jobs} side by side, {threads} thread(s) each")
    commands = {key: ["reproduce", key, *shared] for key in sorted(keys, key=lambda key: -minutes[key])}
    try:
        codes = run_side_by_side(commands, jobs, _say, threads)
    except KeyboardInterrupt:
        _say("Stopped. Finished steps are kept. The same command continues.")
        raise typer.Exit(130) from None
    return [key for key in keys if codes[key] != 0]


def _where(outcome: Outcome) -> str:
    if outcome.folder is None:
        return f"dry run of {len(outcome.evidence.steps)} steps went through; nothing was kept"
    return f"{len(outcome.evidence.steps)} steps, {outcome.evidence.seconds:.1f} s, evidence in {outcome.folder}"


def _say(line: str) -> None:
    typer.echo(line, err=True)
