"""``striate attack``: how far a network falls, beside the controls and the attack's own tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from striate.engine.model import VisionModel
    from striate.stress.patch import AdversarialPatch
    from striate.stress.report import AttackTable

__all__ = ["attack"]

_ATTACKS = ("fgsm", "pgd", "patch", "cells")


def attack(
    model: Annotated[str, typer.Argument(help="Any network: lite0, a timm name, torchvision:NAME, …")],
    images: Annotated[str, typer.Argument(help="A folder or a file; 'embedded' for the photographs that come along.")],
    labels: Annotated[Path | None, typer.Option(help="CSV of file and label; class folders need none.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--attack", help="fgsm, pgd, patch or cells; repeat for several.")
    ] = None,
    eps: Annotated[str, typer.Option(help="Of fgsm and pgd, in pixels of [0, 1].")] = "0.5/255,1/255,4/255,8/255",
    steps: Annotated[int | None, typer.Option(min=1, help="Default: pgd 10, patch 100, cells 50.")] = None,
    size: Annotated[int, typer.Option(help="Side of a patch in pixels, at the network's input.")] = 48,
    target: Annotated[str | None, typer.Option(help="Class index or name that a patch shall look like.")] = None,
    cells: Annotated[int, typer.Option(help="How many cells of the grid are attacked.")] = 1,
    cell_size: Annotated[int, typer.Option(help="Side of a cell in pixels.")] = 16,
    limit: Annotated[int | None, typer.Option(help="At most so many images, a seeded sample.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for attack.json and the pictures.")] = Path("striate-attack"),
    architecture: Annotated[str | None, typer.Option(help="Which network a checkpoint file belongs to.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Let libraries download weights.")] = False,
    input_size: Annotated[str | None, typer.Option(help="CxHxW, where the network does not say.")] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel for pixels in [0, 1].")] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, like --mean.")] = None,
    class_names: Annotated[Path | None, typer.Option(help="Text file with one class name per line.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
) -> None:
    """Attack a network on images: a table with controls and intervals, the attack's self-tests, pictures.

    Example: striate attack lite0 embedded --attack fgsm --eps 1/255
    """
    from rich.console import Console

    from striate.cli.options import class_index, model_options, numbers, output_folder
    from striate.data.images import read_images
    from striate.engine.files import write_json
    from striate.engine.load import load_model
    from striate.engine.model import count_classes
    from striate.errors import InputError, did_you_mean
    from striate.stress.report import attack_report

    kinds = kind or ["fgsm", "pgd"]
    for name in kinds:
        if name not in _ATTACKS:
            hint = did_you_mean(name, _ATTACKS)
            raise InputError("--attack", "striate attack", allowed=", ".join(_ATTACKS), got=name, hint=hint)
    epsilons = numbers(eps, "--eps") if {"fgsm", "pgd"} & set(kinds) else []
    output_folder(out, "striate attack")
    loaded = load_model(model, **model_options(architecture, pretrained, input_size, mean, std, class_names, device))
    console = Console(highlight=False)
    found = read_images(
        images,
        loaded.preprocessing,
        labels=labels,
        limit=limit,
        class_names=loaded.class_names,
        num_classes=count_classes(loaded),
        seed=seed,
    )
    pixels, truth, names = found.images.to(loaded.mean.device), found.labels, found.names
    record: dict[str, object] = {"model": loaded.describe(), "images": len(pixels), "label_rule": found.label_rule}

    patches: dict[str, AdversarialPatch] = {}
    if "patch" in kinds:
        wanted = None if target is None else class_index(target, loaded)
        if len(pixels) < 4:
            raise InputError("IMAGES", "striate attack --attack patch", allowed="at least 4 images", got=len(pixels))
        # A patch is judged on images that it was not trained on, and so is everything it is compared with.
        half = len(pixels) // 2
        patches = {f"{size} px": _train_patch(loaded, pixels[:half], size, wanted, steps or 100, seed)}
        pixels, truth = pixels[half:], None if truth is None else truth[half:]
        names = names[half:]
    if {"fgsm", "pgd", "patch"} & set(kinds):
        pgd_steps = (steps or 10) if "pgd" in kinds else 0
        source = pixels if truth is None else (pixels, truth.to(pixels.device))
        table = attack_report({loaded.name: loaded}, source, epsilons, patches, pgd_steps=pgd_steps, seed=seed)
        _print(console, table)
        record["report"] = table.to_dict()
        for patch in patches.values():
            patch.printable(out / "patch.png")
        write_json(out / "attack.json", record)  # kept if the cells fail
        _save(_adversarial(loaded, pixels[:4], truth, kinds, epsilons, patches, pgd_steps), names, out)
    if "cells" in kinds:
        record["cells"] = _cells(console, loaded, pixels, truth, names, cells, cell_size, steps or 50, seed, out)
    write_json(out / "attack.json", record)
    for item in found.skipped:
        typer.echo(f"left out: {item.name}: {item.reason}", err=True)
    typer.echo(f"{out / 'attack.json'} and pictures beside it")


def _train_patch(
    model: VisionModel, pixels: Tensor, size: int, target: int | None, steps: int, seed: int
) -> AdversarialPatch:
    """Train towards a class, by default the one that the model is least inclined to see."""
    import torch

    from striate.stress.patch import AdversarialPatch

    if target is None:
        with torch.no_grad():
            target = int(model(pixels).softmax(dim=1).mean(dim=0).argmin())
    patch = AdversarialPatch(size, target, image_size=tuple(pixels.shape[-2:]), channels=pixels.shape[1])  # type: ignore[arg-type]
    batch = min(8, len(pixels))
    patch.fit(model, pixels, steps, batch_size=batch, generator=torch.Generator().manual_seed(seed))
    typer.echo(
        f"patch of {size} px towards {model.class_name(target)}, trained on {len(pixels)} images for {steps} steps"
    )
    return patch


def _print(console: Console, table: AttackTable) -> None:
    from rich.table import Table

    five = [row for row in table.rows if row.top5]
    shown = Table("attack", "strength", "top-1", *(["top-5"] if five else []), "measures")
    for row in table.rows:
        strength = (
            ""
            if row.strength is None
            else f"{255 * row.strength:g}/255"
            if row.strength < 1
            else f"{row.strength:g} px"
        )
        cells = [f"{100 * x.value:.0f} % ({100 * x.low:.0f} to {100 * x.high:.0f})" for x in (row.top1, row.top5) if x]
        shown.add_row(row.attack, strength, *cells, row.measures)
    console.print(shown)
    console.print(
        "error is against the labels" if table.labelled else "no labels: error is against the clean prediction"
    )
    for checks in table.checks.values():
        for check in checks:
            mark = {True: "passed", False: "FAILED", None: "–"}[check.passed]
            console.print(f"{mark:>7}  {check.name}: {check.statement}", soft_wrap=True, markup=False)


def _adversarial(
    model: VisionModel,
    pixels: Tensor,
    truth: Tensor | None,
    kinds: list[str],
    epsilons: list[float],
    patches: dict[str, AdversarialPatch],
    pgd_steps: int,
) -> dict[str, Tensor]:
    """Return attacked versions of a few images, by the name of the attack, for the pictures."""
    from striate.stress.fgsm import fgsm
    from striate.stress.pgd import pgd

    labels = None if truth is None else truth[: len(pixels)].to(pixels.device)
    found = {"clean": pixels}
    for eps in epsilons:
        name = f"{255 * eps:g}".replace(".", "_")
        if "fgsm" in kinds:
            found[f"fgsm-{name}"] = fgsm(model, pixels, labels, eps)
        if "pgd" in kinds:
            found[f"pgd-{name}"] = pgd(model, pixels, labels, eps, steps=pgd_steps, random_start=False)
    for patch in patches.values():
        found["patch"] = patch.apply(pixels)
    return found


def _save(images: dict[str, Tensor], names: tuple[str, ...], out: Path) -> None:
    from torchvision.transforms.functional import to_pil_image

    from striate.cli.options import file_name

    taken: set[str] = set()
    for index in range(len(images["clean"])):
        base = file_name(names[index], taken)
        for attack_name, batch in images.items():
            to_pil_image(batch[index].clamp(0, 1).cpu()).save(out / f"{base}-{attack_name}.png")


def _cells(
    console: Console,
    model: VisionModel,
    pixels: Tensor,
    truth: Tensor | None,
    names: tuple[str, ...],
    n: int,
    cell_size: int,
    steps: int,
    seed: int,
    out: Path,
) -> dict[str, object]:
    """Attack n cells of the grid of each image that is right when clean; the control is random content in them."""
    import torch

    from striate.engine.stats import wilson
    from striate.errors import RunError
    from striate.stress.grid import PatchGrid
    from striate.stress.patch_perturbation import PatchAttack

    if truth is None:
        with torch.no_grad():
            truth = torch.cat([model(batch).argmax(dim=1) for batch in pixels.split(8)])
    grid = PatchGrid((pixels.shape[-2], pixels.shape[-1]), cell_size, cover=False)
    y = truth.to(pixels.device)
    found = {}
    for name, taken in (("attacked", steps), ("random content", 0)):
        result = PatchAttack(model, grid, steps=taken, step_size=8 / 255, n=n).attack(pixels, y, seed=seed)
        evaluated = int(result.evaluated.sum())
        if evaluated == 0:
            raise RunError("No image is classified rightly when clean, so nothing can be fooled.")
        found[name] = wilson(int(result.success.sum()), evaluated)
        if taken:
            _save({"clean": pixels[:4], "cells": result.x_adv[:4]}, names[:4], out)
            for check in result.checks:
                mark = {True: "passed", False: "FAILED", None: "–"}[check.passed]
                console.print(f"{mark:>7}  {check.name}: {check.statement}", soft_wrap=True, markup=False)
    for name, rate in found.items():
        console.print(
            f"{n} of {grid.cells} cells of {cell_size} px, {name}: {100 * rate.value:.0f} % of {rate.n} images fooled "
            f"({100 * rate.low:.0f} to {100 * rate.high:.0f})"
        )
    if grid.left_over:
        console.print(grid.left_over)
    return {"n": n, "cell_size": cell_size, "steps": steps, **{name: rate.to_dict() for name, rate in found.items()}}
