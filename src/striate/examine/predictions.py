"""Probe: what does it predict, and how sure is it?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from striate.engine.stats import bootstrap_mean, wilson
from striate.examine.draw import photo
from striate.examine.finding import Advice, Chart, CheckRecord, Figure, Finding, Gallery, Level, Series, Table
from striate.examine.subject import Subject

__all__ = ["calibration", "probe"]

_QUESTION = "What does it predict, and how sure is it?"
_BINS = 10


def probe(subject: Subject) -> Finding:
    """Report predictions, confidence, stability, and with labels accuracy and calibration."""
    confidence = subject.confidence
    n, classes = subject.logits.shape
    figures = [_mean("Mean confidence", confidence)]
    figures.append(
        Figure(
            name="Entropy of its answers",
            value=subject.normalised_entropy,
            note=f"1 = knows nothing of {classes} classes, 0 = always certain",
        )
    )
    stability = _stability(subject)
    figures += stability
    charts: list[Chart] = []
    reading: list[str] = []
    advice: list[Advice] = []
    level: Level = "info"

    if subject.images.labels is not None:
        headline, level = _with_labels(subject, figures, charts, reading, advice)
    else:
        headline = (
            f"It names a class with {100 * float(confidence.mean()):.0f} % confidence on average over {n} unlabelled "
            f"images; whether the names are right cannot be said without labels."
        )
        advice.append(
            Advice(
                text="Give labels to get accuracy and calibration: class folders, or a CSV of file and label.",
                command="striate examine MODEL IMAGES --labels labels.csv",
            )
        )
    if subject.untrained:
        level = "attention"
        why = "its weights are random" if subject.model.weights == "random" else "its answers are close to uniform"
        headline = (
            f"This network has not learned anything yet: {why}. Everything below holds for the code, not for use."
        )

    shift = min(item.value for item in stability if item.value is not None)
    if not subject.untrained and shift < 0.7:
        level = "attention" if level in {"info", "good"} else level
        reading.append(
            f"Only {100 * shift:.0f} % of the answers survive a change that leaves the content alone (mirroring, or a "
            "shift by a few pixels): single answers of this network should not be trusted much."
        )
    return Finding(
        probe="predictions",
        question=_QUESTION,
        status="done",
        level=level,
        headline=headline,
        reading=reading,
        figures=figures,
        charts=charts,
        galleries=[_gallery(subject)],
        tables=[_table(subject)],
        checks=_checks(subject),
        advice=advice,
        limits=["Inputs from outside the classes it was trained on."],
    )


def calibration(probabilities: Tensor, labels: Tensor, *, bins: int = _BINS) -> float:
    """Return the expected calibration error of (N, classes) probabilities in [0, 1] (equal-width bins, L1)."""
    # torchmetrics gives a confidence of exactly 1 a bin of its own; the published error has it share the last one.
    below_one = probabilities.float().clamp(max=1 - 2**-24)
    return float(
        multiclass_calibration_error(below_one, labels, num_classes=below_one.shape[1], n_bins=bins, norm="l1")
    )


def _with_labels(
    subject: Subject, figures: list[Figure], charts: list[Chart], reading: list[str], advice: list[Advice]
) -> tuple[str, Level]:
    labels, logits = subject.labels, subject.logits
    n, classes = logits.shape
    right = subject.predictions == labels
    accuracy = wilson(int(right.sum()), n)
    figures.insert(
        0, Figure(name="Accuracy", value=accuracy.value, low=accuracy.low, high=accuracy.high, unit="%", n=n)
    )
    if classes > 5:
        top5 = wilson(int((logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1).sum()), n)
        figures.insert(1, Figure(name="Top-5 accuracy", value=top5.value, low=top5.low, high=top5.high, unit="%", n=n))
    probabilities = logits.softmax(dim=1)
    error = calibration(probabilities, labels)
    resampled = _resampled_calibration(probabilities, labels, subject.seed)
    figures.append(
        Figure(
            name="Calibration error (ECE)",
            value=error,
            # It is biased upwards, the more so resampled, so that the quantiles alone may leave the figure out.
            low=min(error, float(np.quantile(resampled, 0.025))),
            high=max(error, float(np.quantile(resampled, 0.975))),
            n=n,
            note=f"{_BINS} bins; 0 = says 80 % and is right 80 % of the time",
        )
    )
    charts.append(_reliability(subject.confidence, right))
    gap = float(subject.confidence.mean()) - accuracy.value
    interval = bootstrap_mean((subject.confidence - right.float()).tolist(), seed=subject.seed)
    side = "over-confident" if gap > 0 else "under-confident"
    if interval.excludes(0):
        reading.append(
            f"It is {side}: it claims {100 * abs(gap):.0f} points {'more' if gap > 0 else 'less'} than it holds."
        )
        advice.append(
            Advice(text="Fit one temperature on held-out data and divide the logits by it (Guo et al., 2017).")
        )
    else:
        reading.append("Confidence and accuracy agree within what so many images can tell.")
    if n < 100:
        reading.append(f"With {n} images the intervals are wide, and the calibration error is biased upwards.")
    level: Level = "attention" if interval.excludes(0) and abs(gap) > 0.05 else "good"
    return (
        f"It is right on {100 * accuracy.value:.0f} % of {n} labelled images "
        f"(95 % interval {100 * accuracy.low:.0f} to {100 * accuracy.high:.0f}), "
        f"at {100 * float(subject.confidence.mean()):.0f} % mean confidence.",
        level,
    )


def _stability(subject: Subject) -> list[Figure]:
    """Share of predictions that survive a mirror image and a shift by 4 pixels in 224."""
    offset = max(1, round(subject.pixels.shape[-1] * 4 / 224))
    changes = {
        "Same answer when mirrored": subject.pixels.flip(-1),
        f"Same answer when shifted {offset} px": torch.nn.functional.pad(
            subject.pixels, (offset, 0, 0, 0), mode="replicate"
        )[..., : subject.pixels.shape[-1]],
    }
    figures = []
    for name, changed in changes.items():
        kept = int((subject.predict(changed).argmax(dim=1) == subject.predictions).sum())
        share = wilson(kept, len(changed))
        figures.append(Figure(name=name, value=share.value, low=share.low, high=share.high, unit="%", n=len(changed)))
    return figures


def _mean(name: str, values: Tensor) -> Figure:
    interval = bootstrap_mean(values.tolist())
    return Figure(name=name, value=interval.value, low=interval.low, high=interval.high, unit="%", n=interval.n)


def _resampled_calibration(probabilities: Tensor, labels: Tensor, seed: int, resamples: int = 200) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    n = len(labels)
    picks = (torch.randint(n, (n,), generator=generator) for _ in range(resamples))
    return np.array([calibration(probabilities[pick], labels[pick]) for pick in picks])


def _reliability(confidence: Tensor, right: Tensor) -> Chart:
    edges = torch.linspace(0, 1, _BINS + 1)
    index = torch.bucketize(confidence, edges[1:-1])
    x, y, low, high = [], [], [], []
    for number in range(_BINS):
        inside = index == number
        count = int(inside.sum())
        if count:
            share = wilson(int(right[inside].sum()), count)
            x.append(float(confidence[inside].mean()))
            y.append(share.value)
            low.append(share.low)
            high.append(share.high)
    return Chart(
        title="Reliability: on the dotted line it is as often right as it claims",
        x_label="confidence",
        y_label="accuracy",
        alt=f"Accuracy against confidence in {len(x)} filled bins.",
        series=[Series(name="accuracy in the bin, 95 % interval", x=x, y=y, low=low, high=high)],
        y_range=(0, 1.02),
        diagonal=True,
    )


def _gallery(subject: Subject) -> Gallery:
    photos = []
    for index in subject.shown:
        predicted = int(subject.predictions[index])
        caption = f"{subject.model.class_name(predicted)}, {100 * float(subject.confidence[index]):.0f} %"
        if subject.images.labels is not None and int(subject.images.labels[index]) != predicted:
            caption += f" (is: {subject.model.class_name(int(subject.images.labels[index]))})"
        photos.append(photo(subject.pixels[index], subject.images.names[index], caption))
    return Gallery(title="What it says of them", photos=photos, note="As the network sees them: resized and cropped.")


def _table(subject: Subject, rows: int = 20) -> Table:
    top = subject.logits.softmax(dim=1).topk(min(3, subject.logits.shape[1]), dim=1)
    lines: list[list[str | float | int | None]] = []
    for index in range(min(rows, len(subject.pixels))):
        guesses = [
            f"{subject.model.class_name(int(label))} {100 * float(value):.0f} %"
            for value, label in zip(top.values[index], top.indices[index], strict=True)
        ]
        lines.append([subject.images.names[index], *guesses])
    names = ["image", "first", "second", "third"][: 1 + top.indices.shape[1]]
    more = len(subject.pixels) - rows
    return Table(
        title="Its first three answers", columns=names, rows=lines, note=f"and {more} more images" if more > 0 else ""
    )


def _checks(subject: Subject) -> list[CheckRecord]:
    from striate.stress.selftest import normalisation_check

    few = subject.pixels[:3]
    alone = torch.cat([subject.predict(image[None]) for image in few])
    difference = float((alone - subject.predict(few)).abs().max())
    scale = float(alone.abs().max().clamp_min(1e-6))
    same = difference <= 1e-3 * scale
    batch = CheckRecord(
        name="batch invariance",
        passed=same,
        value=difference / scale,
        bound=1e-3,
        statement=f"An image gets the same scores alone and in a batch: largest difference {difference / scale:.1e} of "
        f"the largest score (bound 1e-3).",
    )
    check = normalisation_check(subject.model, subject.pixels[:16])
    return [batch, CheckRecord(**check.to_dict())]
