"""``striate pair``: which two of several classifiers to run in place of a large one, and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from torch import Tensor

    from striate.compress.threshold import ConfidenceKind, ThresholdCurve
    from striate.engine.model import VisionModel

__all__ = ["pair"]

_LEAST = 40


def pair(
    models: Annotated[list[str], typer.Argument(help="Two networks or more of the same classes: lite0, timm names, …")],
    images: Annotated[str, typer.Option(help="Labelled images: half to choose on, half to judge on.")],
    labels: Annotated[Path | None, typer.Option(help="CSV of file and label; class folders need none.")] = None,
    against: Annotated[str | None, typer.Option(help="The large network that the pair shall replace.")] = None,
    score: Annotated[str, typer.Option(help="Confidence: difference, maxp or entropy.")] = "difference",
    postcheck: Annotated[bool, typer.Option(help="Take the surer answer, or always the second's.")] = True,
    limit: Annotated[int | None, typer.Option(help="At most so many images, a seeded sample.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split in halves.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for pair.json.")] = Path("striate-pair"),
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Let libraries download weights.")] = False,
    class_names: Annotated[Path | None, typer.Option(help="Text file with one class name per line.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
) -> None:
    """Choose the pair that errs on the most different images, its threshold, and say what it costs and gains.

    The first network runs on every image, the second only where the first is unsure; both orders are tried. The pair is
    compared with each of the two, with the best single network, and with the one it shall replace.

    Example: striate pair lite0 mobilenet-v2 --images photos --labels labels.csv
    """
    import numpy as np
    import torch
    from rich.console import Console

    from striate.cli.options import model_options
    from striate.compress import choose_pair, complementarity, search_threshold
    from striate.compress.threshold import KINDS
    from striate.engine.files import write_json
    from striate.engine.latency import latency
    from striate.engine.load import load_model
    from striate.engine.macs import count_macs
    from striate.errors import InputError, did_you_mean

    if score not in KINDS:
        hint = did_you_mean(score, KINDS)
        raise InputError("--score", "striate pair", allowed=", ".join(KINDS), got=score, hint=hint)
    kind: ConfidenceKind = score
    if len(models) < 2 or len({*models, against}) <= len(models):
        raise InputError("MODELS, --against", "striate pair", allowed="two networks or more, all different", got=models)
    names = [*models, *([] if against is None else [against])]
    options = model_options(None, pretrained, None, None, None, class_names, device)
    loaded = [load_model(name, **options) for name in names]
    logits, y, rule = _logits(names, loaded, images, labels, limit, seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    choose, judge = order[: len(y) // 2], order[len(y) // 2 :]

    macs = [count_macs(model, torch.zeros(1, *model.preprocessing.input_size)) for model in loaded]
    seconds = [float(np.median(latency(m, torch.rand(1, *m.preprocessing.input_size)))) for m in loaded]
    right = [[float((x.argmax(1) == y)[rows].double().mean()) for x in logits] for rows in (choose, judge)]
    few = len(models)
    matrix = complementarity(torch.stack([x[choose].argmax(1) for x in logits[:few]]), y[choose])

    def search(a: int, b: int, rows: Tensor) -> ThresholdCurve:
        return search_threshold(logits[a][rows], logits[b][rows], y[rows], kind, postcheck=postcheck)

    chosen = choose_pair(matrix, macs[:few], accuracies=right[0][:few])
    orders = {order: search(*order, choose) for order in (chosen, chosen[::-1])}
    a, b = max(orders, key=lambda order: orders[order].accuracy.max())  # the cheaper first where both do as well
    found, curve = orders[a, b], search(a, b, judge)
    accuracy, usage = curve.at(found.best)
    cost = {"macs": macs[a] + usage * macs[b], "seconds": seconds[a] + usage * seconds[b]}

    console = Console(highlight=False)
    console.print(f"{len(y)} images, {rule}", soft_wrap=True, markup=False)
    _print(console, names, right, macs, seconds, matrix, (a, b))
    _print_pair(console, (names[a], names[b]), found, (accuracy, usage), curve.union, cost)
    best = max(range(few), key=right[0].__getitem__)
    for index in sorted({a, b, best, *range(few, len(names))}):
        gain = _gain(logits[a][judge], logits[b][judge], logits[index][judge], y[judge], found)
        shown = f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        shares = f"{cost['macs'] / macs[index]:.2f} of its multiply-accumulates, {cost['seconds'] / seconds[index]:.2f}"
        console.print(f"against {names[index]} alone: {shown}, {shares} of its time", soft_wrap=True)
        if index == best and not gain.low > 0:
            console.print(f"NOT BETTER beyond doubt than {names[index]} alone: one network may do", soft_wrap=True)
    record: dict[str, Any] = {
        "first": names[a],
        "second": names[b],
        **found.to_dict(),
        "judged": {"n": len(judge), "accuracy": accuracy, "usage": usage, "union": curve.union, **cost},
        "networks": [
            {"name": name, "accuracy": right[1][i], "macs": macs[i], "seconds": seconds[i]}
            for i, name in enumerate(names)
        ],
        "complementarity": matrix.tolist(),
    }
    path = write_json(out / "pair.json", record)
    console.print(f"{path}; in Python: DualCNN(a, b, threshold={found.best:.4f}, kind='{kind}')", soft_wrap=True)


def _logits(
    names: Sequence[str], models: Sequence[VisionModel], images: str, labels: Path | None, limit: int | None, seed: int
) -> tuple[list[Tensor], Tensor, str]:
    """Return the logits of every network on the images as it wants them, the labels, and where these came from.

    Raises:
        CheckError: no network is right more often than by chance.
    """
    import torch

    from striate.data.images import read_images
    from striate.engine.model import count_classes
    from striate.engine.stats import wilson
    from striate.errors import CheckError, InputError, ModelError

    classes = [count_classes(model) for model in models]
    odd = next((name for name, count in zip(names, classes, strict=True) if count != classes[0]), None)
    if odd is not None:
        known = f"{classes[0]} classes and {odd} {classes[names.index(odd)]}"
        raise ModelError(f"{names[0]} knows {known}; a pair needs the same classes in the same order.")
    logits, y, rule = [], None, ""
    for model in models:
        found = read_images(
            images,
            model.preprocessing,
            labels=labels,
            limit=limit,
            class_names=model.class_names,
            num_classes=classes[0],
            seed=seed,
        )
        if found.labels is None or len(found.labels) < _LEAST:
            got = found.label_rule if found.labels is None else len(found.labels)
            raise InputError("--images", "striate pair", allowed=f"at least {_LEAST} labelled images", got=got)
        y, rule = found.labels, found.label_rule
        with torch.inference_mode():
            parts = [model(part.to(model.mean.device)).float().cpu() for part in found.images.split(32)]
        logits.append(torch.cat(parts))
    assert y is not None
    most, n_classes = max(int((x.argmax(1) == y).sum()) for x in logits), logits[0].shape[1]
    if wilson(most, len(y)).low <= 1 / n_classes:
        raise CheckError(
            f"No network is right more often than by chance: on {most} of {len(y)} images at most, with {n_classes} "
            f"classes. Are the labels the networks' own? They came from: {rule}."
        )
    return logits, y, rule


def _gain(first: Tensor, second: Tensor, other: Tensor, y: Tensor, found: ThresholdCurve) -> Any:
    """Return by how much the pair's accuracy is above another network's, with its interval over images."""
    from striate.compress import confidence
    from striate.engine.stats import paired_bootstrap

    score, score_b = (confidence(logits, found.kind).double() for logits in (first, second))
    taken = (score < found.best) & ((score_b > score) | (not found.postcheck))
    answer = second.argmax(1).where(taken, first.argmax(1))
    return paired_bootstrap((answer == y).double().tolist(), (other.argmax(1) == y).double().tolist())


def _print(
    console: Console,
    names: Sequence[str],
    right: Sequence[Sequence[float]],
    macs: Sequence[int],
    seconds: Sequence[float],
    matrix: Tensor,
    chosen: tuple[int, int],
) -> None:
    from rich.table import Table

    table = Table("network", "right, choosing", "right, judging", "multiply-accumulates", "one image")
    for i, name in enumerate(names):
        role = {chosen[0]: " (first)", chosen[1]: " (second)"}.get(i, "")
        table.add_row(
            name + role,
            f"{100 * right[0][i]:.1f} %",
            f"{100 * right[1][i]:.1f} %",
            f"{macs[i] / 1e6:,.1f} M",
            f"{1000 * seconds[i]:.1f} ms",
        )
    console.print(table)
    for i in range(len(matrix)):
        for j in range(i + 1, len(matrix)):
            console.print(f"complementarity of {names[i]} and {names[j]}: {100 * float(matrix[i, j]):.1f} %")


def _print_pair(
    console: Console,
    names: tuple[str, str],
    found: ThresholdCurve,
    judged: tuple[float, float],
    union: float,
    cost: dict[str, float],
) -> None:
    accuracy, usage = judged
    rule = "the surer answer is given" if found.postcheck else "its answer is given"
    console.print(
        f"{names[0]} answers; where its {found.kind} is under {found.best:.4f}, {names[1]} is asked and {rule}: "
        f"{100 * accuracy:.1f} % right (at least one of them on {100 * union:.1f} %), {100 * usage:.1f} % asked, "
        f"{cost['macs'] / 1e6:,.1f} M multiply-accumulates and about {1000 * cost['seconds']:.1f} ms an image",
        soft_wrap=True,
    )
