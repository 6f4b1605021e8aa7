"""``striate examine``: every probe on one network, each failure kept to itself, one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from striate.data.images import ImageSet, read_images
from striate.engine.load import load_model
from striate.engine.model import count_classes
from striate.engine.record import environment
from striate.engine.state import seeded
from striate.errors import InputError, StriateError, did_you_mean
from striate.examine.draw import photo
from striate.examine.finding import Finding, Report
from striate.examine.subject import Subject

__all__ = ["PROBES", "examine"]

PROBES: dict[str, tuple[str, str]] = {
    "predictions": ("striate.examine.predictions", "What does it predict, and how sure is it?"),
    "where": ("striate.examine.where", "Where does it look?"),
    "trust": ("striate.examine.trust", "Can those maps be trusted?"),
    "fgsm": ("striate.examine.fgsm", "Does one gradient step break it?"),
    "patch": ("striate.examine.patch", "Does a sticker break it?"),
    "corruption": ("striate.examine.corruption", "Does local damage break it?"),
    "speed": ("striate.examine.speed", "How large and how fast is it here?"),
}
"""Probe name -> module with a function ``probe(subject) -> Finding``, and the question it answers."""

_NOT_TESTED = [
    "Images of other cameras, places, seasons or people than those given (distribution shift).",
    "Fairness between groups of people, and whether the training data may be used at all.",
    "Attacks that do not know the network (black box) or that print and photograph a sticker.",
    "Whether the class list is the right one for the job.",
]


def examine(
    model: str | nn.Module = "lite0",
    images: Any = "embedded",
    *,
    labels: str | Path | None = None,
    quick: bool = False,
    probes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    command: str = "striate.examine.examine(…)",
    say: Callable[[str], None] = lambda line: None,
    **model_options: Any,
) -> Report:
    """Examine a network on images and return the report.

    Args:
        model: any spelling that :func:`striate.load_model` takes.
        images: a folder, a file, an array (N, C, H, W) in [0, 1], or ``"embedded"``.
        labels: a CSV of file and label; class folders give labels by themselves.
        quick: measure less; under a minute for a small network on two cores.
        probes: names from :data:`PROBES`; None runs them all.
        limit: at most so many images, a seeded sample.
        seed: of everything drawn at random.
        command: shown in the report as the way to make it again.
        say: called with each line of progress.
        **model_options: handed to :func:`striate.load_model`.

    Returns:
        A :class:`~striate.examine.finding.Report`; draw it with :func:`striate.report.page.write_report`.

    Raises:
        StriateError: the network or the images cannot be had at all, or the network is no classifier (see
            :func:`striate.engine.model.count_classes`). A probe that fails is reported as failed.
    """
    start = time.perf_counter()
    chosen = _chosen(probes)
    loaded = load_model(model, **model_options)
    say(f"network: {loaded.name}, weights: {loaded.weights}")
    classes = count_classes(loaded)
    found: ImageSet = read_images(
        images,
        loaded.preprocessing,
        labels=labels,
        limit=limit,
        class_names=loaded.class_names,
        num_classes=classes,
        seed=seed,
    )
    say(f"images: {len(found.images)} from {found.origin}; {found.label_rule}")
    subject = Subject(loaded, found, quick=quick, seed=seed, say=say)
    findings = [_run(name, subject) for name in chosen]
    return Report(
        title=f"{loaded.name}, examined",
        command=command,
        model=loaded.describe(),
        images={
            "n": len(found.images),
            "source": found.origin,
            "label_rule": found.label_rule,
            "skipped": [f"{item.name}: {item.reason}" for item in found.skipped],
            "notes": {name: list(notes) for name, notes in found.notes.items()},
        },
        photos=[photo(found.images[i], found.names[i], _caption(subject, i)) for i in subject.shown],
        findings=findings,
        not_tested=[
            *[
                f"The probe '{name}' was not run ({question})"
                for name, (_, question) in PROBES.items()
                if name not in chosen
            ],
            *_NOT_TESTED,
        ],
        environment=environment(),
        seconds=time.perf_counter() - start,
        quick=quick,
    )


def _chosen(probes: Sequence[str] | None) -> list[str]:
    for name in probes or ():
        if name not in PROBES:
            raise InputError(
                "probe", "examine", allowed=f"one of {', '.join(PROBES)}", got=name, hint=did_you_mean(name, PROBES)
            )
    return [name for name in PROBES if not probes or name in probes]


def _run(name: str, subject: Subject) -> Finding:
    module, question = PROBES[name]
    subject.say(f"{name}: {question}")
    start = time.perf_counter()
    try:
        with seeded(subject.seed):
            finding: Finding = import_module(module).probe(subject)
    except Exception as error:  # a person's network can fail in any way; one probe must not take the others with it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind = "" if isinstance(error, StriateError) else f"{type(error).__name__}: "
        finding = Finding(
            probe=name,
            question=question,
            status="failed",
            level="problem",
            headline=f"This probe failed: {kind}{reason}",
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return finding.model_copy(update={"seconds": time.perf_counter() - start})


def _caption(subject: Subject, index: int) -> str:
    try:
        predicted = int(subject.predictions[index])
        confidence = float(subject.confidence[index])
    except Exception:  # the probes say how it fails
        return subject.images.names[index]
    return f"{subject.images.names[index]}: {subject.model.class_name(predicted)}, {100 * confidence:.0f} %"
