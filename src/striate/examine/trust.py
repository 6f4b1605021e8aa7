"""Probe: can those maps be trusted? Against random maps, against the axioms, against a network that knows nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from striate.engine.stats import Interval, paired_bootstrap
from striate.errors import StriateError
from striate.examine.finding import Advice, Chart, CheckRecord, Figure, Finding, Level, Series, Table
from striate.examine.subject import BATCH, Subject
from striate.examine.where import explain_shown
from striate.explain.axioms import axiom_reports
from striate.explain.curves import Curve, deletion, insertion
from striate.explain.sanity import randomization_check

__all__ = ["probe"]

_QUESTION = "Can those maps be trusted?"


def probe(subject: Subject) -> Finding:
    """Judge each method's maps by insertion and deletion against random maps, the axioms and model randomisation."""
    explained, _ = explain_shown(subject)
    if not explained:
        raise StriateError("no method could explain this network, so there is no map to judge.")
    maps = {name: result.normalized.cpu() for name, result in explained.items()}
    generator = torch.Generator().manual_seed(subject.seed)
    maps["random map"] = torch.rand(next(iter(maps.values())).shape, generator=generator)
    curves = {name: _curves(subject, name, stack) for name, stack in maps.items()}
    control = curves.pop("random map")

    rows: list[list[str | float | int | None]] = []
    better: list[str] = []
    for name, (inserted, deleted) in curves.items():
        gain_in = paired_bootstrap(inserted.auc.tolist(), control[0].auc.tolist(), seed=subject.seed)
        gain_out = paired_bootstrap(control[1].auc.tolist(), deleted.auc.tolist(), seed=subject.seed)
        if gain_in.low > 0 and gain_out.low > 0:
            better.append(name)
        rows.append([name, float(inserted.auc.mean()), _span(gain_in), float(deleted.auc.mean()), _span(gain_out)])
    rows.append(["random map (control)", float(control[0].auc.mean()), "", float(control[1].auc.mean()), ""])
    table = Table(
        title="Insertion (higher is better) and deletion (lower is better)",
        columns=["method", "insertion", "better than random by", "deletion", "better than random by"],
        rows=rows,
        note="Area under the class probability; differences are paired over images, with 95 % bootstrap intervals.",
    )

    checks = [CheckRecord(**curve.check.to_dict()) for pair in curves.values() for curve in pair]
    checks = [_worst(checks)]
    sanity = _sanity(subject)
    checks += [record for record, _ in sanity]
    figures, axioms = _axioms(subject)
    checks += axioms

    unfit = sorted(set(curves) - set(better))
    level: Level = "good" if not unfit and all(item.passed is not False for item in checks) else "attention"
    if not better:
        headline = (
            "Not shown: by insertion and deletion, no method's maps are surely better than random ones on these "
            f"{len(subject.shown)} images."
        )
        level = "attention"
    elif unfit:
        headline = (
            f"In part: on insertion and deletion {', '.join(better)} beat a random map; for {', '.join(unfit)} "
            f"{len(subject.shown)} images do not show it."
        )
    else:
        headline = "Yes, as far as this goes: every method beats a random map on both insertion and deletion."
    return Finding(
        probe="trust",
        question=_QUESTION,
        status="done",
        level=level,
        headline=headline,
        reading=[
            "Insertion starts from a blurred image and puts back the pixels that the map calls important; deletion "
            "greys them out. Both follow the network's confidence as well as the map, so compare methods on one "
            "network by them, never two networks.",
            "The randomisation check draws the map again on a copy whose weights are made random from the top layer "
            "down: a map that stays as it was explains the image, not the network.",
        ],
        figures=figures,
        charts=[_chart(curves, control, 0, "Insertion"), _chart(curves, control, 1, "Deletion")],
        tables=[table, *[item for _, item in sanity if item is not None]],
        checks=checks,
        advice=[_advice([row for row in rows if row[0] in better])],
        papers=["explainable-robust", "xgrad-cam"],
        limits=["Whether people read the maps rightly.", f"Only {len(subject.shown)} images."],
    )


def _curves(subject: Subject, name: str, maps: Tensor) -> tuple[Curve, Curve]:
    subject.say(f"insertion and deletion: {name}")
    inputs = subject.pixels[subject.shown].to(subject.model.mean.device)
    target = subject.predictions[subject.shown].to(inputs.device)
    pixels = inputs.shape[-1] * inputs.shape[-2]
    step = -(-pixels // (8 if subject.quick else 14))
    options: dict[str, Any] = {"step": step, "batch_size": BATCH}
    maps = maps.to(inputs.device)
    return (
        insertion(subject.model, inputs, target, maps, **options),
        deletion(subject.model, inputs, target, maps, **options),
    )


def _sanity(subject: Subject) -> list[tuple[CheckRecord, Table | None]]:
    """Randomise the model under one gradient method and one CAM."""
    found: list[tuple[CheckRecord, Table | None]] = []
    inputs = subject.pixels[subject.shown].to(subject.model.mean.device)
    methods = [name for name in ("grad-cam", "integrated-gradients") if name in subject.explained]
    for name in methods[: 1 if subject.quick else 2]:
        subject.say(f"model randomisation: {name}")
        options = {"n_steps": 4} if name == "integrated-gradients" else {"layer": subject.explained[name].layer}
        try:
            result = randomization_check(
                subject.model, inputs, name, stages=4, target=subject.predictions[subject.shown], **options
            )
        except StriateError as error:
            found.append((CheckRecord(name=f"randomisation of {name}", passed=None, statement=str(error)), None))
            continue
        table = Table(
            title=f"Model randomisation under {name}",
            columns=["randomised down to", "rank correlation with the map before", "structural similarity"],
            rows=[
                [stage.removeprefix("network."), float(result.spearman[i].mean()), float(result.ssim[i].mean())]
                for i, stage in enumerate(result.stages)
            ],
        )
        found.append((CheckRecord(**result.check.to_dict()), table))
    return found


def _axioms(subject: Subject) -> tuple[list[Figure], list[CheckRecord]]:
    """Sensitivity and conservation of the CAMs, by real ablation of every channel."""
    methods = [name for name in ("grad-cam", "xgrad-cam") if name in subject.explained]
    layer = subject.explained[methods[0]].layer if methods else None
    if layer is None:
        return [], []
    subject.say(f"axioms, by removing every channel of {layer}")
    few = subject.shown[:2]
    inputs, target = subject.pixels[few].to(subject.model.mean.device), subject.predictions[few]
    try:
        reports = axiom_reports(subject.model, layer, inputs, target, methods=methods)
    except StriateError as error:
        return [], [CheckRecord(name="axioms", passed=None, statement=f"The axioms could not be measured: {error}")]
    figures = []
    for name, report in reports.items():
        figures += [
            Figure(
                name=f"Sensitivity error, {name}",
                value=float(report.sensitivity_error.nanmean()),
                n=len(few),
                note="0 = removing a channel costs what the map says; by real ablation",
            ),
            Figure(
                name=f"Conservation error, {name}",
                value=float(report.conservation_error.nanmean()),
                n=len(few),
                note="0 = the map's parts add up to the score; the rest is bias",
            ),
        ]
    return figures, []


def _chart(curves: dict[str, tuple[Curve, Curve]], control: tuple[Curve, Curve], which: int, title: str) -> Chart:
    def series(name: str, curve: Curve, is_control: bool) -> Series:
        return Series(name=name, x=curve.fractions.tolist(), y=curve.curve.mean(dim=0).tolist(), control=is_control)

    ends = ", ".join(f"{name} {float(pair[which].auc.mean()):.2f}" for name, pair in curves.items())
    return Chart(
        title=f"{title}: mean probability of the class",
        x_label="share of pixels put back" if which == 0 else "share of pixels greyed out",
        y_label="probability",
        alt=f"{title} curves; areas: {ends}, random map {float(control[which].auc.mean()):.2f}.",
        series=[
            *[series(name, pair[which], False) for name, pair in curves.items()],
            series("random map", control[which], True),
        ],
        y_range=(0, 1.02),
    )


def _worst(checks: list[CheckRecord]) -> CheckRecord:
    """Of many checks of the same kind, the one with the largest residual stands for all."""
    return max(checks, key=lambda check: check.value or 0.0)


def _advice(better: list[list[str | float | int | None]]) -> Advice:
    if not better:
        return Advice(text="Prefer none of these methods on this evidence; give more images, or look at other layers.")
    best = max(better, key=lambda row: float(row[1] or 0))[0]
    return Advice(
        text=f"Prefer {best}: of the methods that beat a random map it has the best insertion on these images.",
        command=f"striate explain MODEL IMAGES --method {best}",
    )


def _span(interval: Interval) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
