"""Probe: does one gradient step break it? FGSM over eps against random signs, PGD as its check, and the self-tests."""

from __future__ import annotations

import torch
from torch import Tensor

from striate.engine.stats import Interval, wilson
from striate.examine.draw import line, percent, photo, share
from striate.examine.finding import Advice, Chart, CheckRecord, Finding, Gallery, Photo, Table
from striate.examine.levels import judge_share
from striate.examine.subject import BATCH, Subject
from striate.stress.curve import FGSMCurve, fgsm_curve
from striate.stress.fgsm import fgsm
from striate.stress.pgd import pgd
from striate.stress.selftest import attack_selftests

__all__ = ["probe"]

_QUESTION = "Does one gradient step break it?"
_EPS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of 255
_QUICK_EPS = (0.25, 1.0, 4.0, 16.0)
_READ_AT = 1.0


def probe(subject: Subject) -> Finding:
    """Measure the share of answers that survive FGSM, PGD and random signs of the same size."""
    n = min(len(subject.pixels), 12 if subject.quick else 40)
    pixels = subject.pixels[:n]
    labels = None if subject.images.labels is None else subject.images.labels[:n]
    subject.say("FGSM and random signs over eps")
    grid = _QUICK_EPS if subject.quick else _EPS
    curve = fgsm_curve(
        subject.model,
        pixels,
        labels,
        epsilons=[eps / 255 for eps in grid],
        batch_size=BATCH,
        generator=torch.Generator().manual_seed(subject.seed),
    )
    if not curve.clean[0].any():
        return Finding(
            probe="fgsm",
            question=_QUESTION,
            status="skipped",
            level="info",
            headline="No image is classified rightly to begin with, so there is nothing for an attack to break.",
        )
    subject.say(f"PGD at {_READ_AT:g}/255")
    pgd_kept = _pgd(subject, pixels, curve.labels, steps=4 if subject.quick else 10)
    subject.say("self-tests of the attack")
    few = 4 if subject.quick else 8
    selftests = attack_selftests(
        subject.model, pixels, labels, curve=curve, steps=3 if subject.quick else 5, pgd_images=few, batch_size=BATCH
    )
    checks = [CheckRecord(**check.to_dict()) for check in selftests]
    return _finding(subject, curve, grid, pgd_kept, checks)


def _finding(
    subject: Subject, curve: FGSMCurve, grid: tuple[float, ...], pgd_kept: Interval, checks: list[CheckRecord]
) -> Finding:
    kept = {kind: [_complement(error) for error in curve.error(kind)] for kind in ("fgsm", "random")}
    clean = _complement(curve.error("clean")[0])
    at = grid.index(_READ_AT)
    after, noise = kept["fgsm"][at], kept["random"][at]
    what = "right answers" if curve.labelled else "answers"
    failed = [check.name for check in checks if check.passed is False]
    level, few = judge_share(_lost(after, clean), attention=0.1, problem=0.5)
    if subject.untrained:
        level, few = "info", []
    elif failed and level in {"good", "info"}:
        level = "attention"  # an attack that fails its own tests says nothing about the network
    headline = (
        f"One gradient step of 1/255 in each pixel, which nobody sees, leaves {100 * after.value:.0f} % of the {what}; "
        f"random changes of the same size leave {100 * noise.value:.0f} %."
    )
    reading = [
        "eps is in steps of an 8-bit pixel: the normalisation stands inside the network that is attacked. Where "
        "the two curves part, it is the gradient that breaks the network, not the size of the change.",
    ]
    reading += few
    if failed:
        reading.append(
            f"The attack failed its own test “{'”, “'.join(failed)}”, so surviving answers here may be the attack's "
            "weakness rather than the network's strength."
        )
    columns = ["eps", "FGSM leaves", "random signs leave"]
    rows: list[list[str | float | int | None]] = [
        [f"{eps:g}/255", percent(kept["fgsm"][i]), percent(kept["random"][i])] for i, eps in enumerate(grid)
    ]
    return Finding(
        probe="fgsm",
        question=_QUESTION,
        status="done",
        level=level,
        headline=headline,
        reading=reading,
        figures=[
            share("Right before" if curve.labelled else "Answers before", clean),
            share("Left by FGSM at 1/255", after),
            share("Left by PGD at 1/255", pgd_kept, "several steps inside the same bounds"),
            share("Left by random signs at 1/255", noise),
        ],
        charts=[
            Chart(
                title=f"Share of {what} that survive",
                x_label="eps (of 255)",
                y_label="share of images",
                alt=headline,
                series=[
                    line("FGSM", [clean, *kept["fgsm"]]),
                    line("random signs", [clean, *kept["random"]], control=True),
                ],
                x_ticks=["0", *[f"{eps:g}" for eps in grid]],
                y_range=(0, 1.02),
            )
        ],
        galleries=_gallery(subject, curve, grid),
        tables=[
            Table(
                title="By eps", columns=columns, rows=rows, note=f"{len(curve.labels)} images, 95 % Wilson intervals."
            )
        ],
        checks=checks,
        advice=[
            Advice(
                text="Train on attacked images (adversarial training, or AdvProp to keep clean accuracy), and attack "
                "again with more steps before believing the gain.",
                command="striate attack MODEL IMAGES --attack pgd --eps 1/255 --steps 50",
            )
        ],
        papers=["fgsm-patch", "explainable-robust"],
        limits=["Attacks without gradients, transfer from other networks, certified bounds."],
    )


def _pgd(subject: Subject, pixels: Tensor, reference: Tensor, steps: int) -> Interval:
    """Share of images that PGD leaves right; it starts from FGSM's result only by chance, so it is no weaker."""
    kept = 0
    device = subject.model.mean.device
    for x, y in zip(pixels.split(BATCH), reference.split(BATCH), strict=True):
        found = pgd(subject.model, x.to(device), y.to(device), _READ_AT / 255, steps=steps, random_start=False)
        kept += int((subject.predict(found.cpu()).argmax(dim=1) == y).sum())
    return wilson(kept, len(pixels))


def _gallery(subject: Subject, curve: FGSMCurve, grid: tuple[float, ...]) -> list[Gallery]:
    """Show the first images that break, at the smallest eps that breaks each, beside the change made visible."""
    photos: list[Photo] = []
    right = curve.clean[0]
    for index in subject.shown:
        broken = [i for i in range(len(grid)) if bool(right[index]) and not bool(curve.fgsm[i, 0, index])]
        if not broken or len(photos) >= 6:
            continue
        eps = grid[broken[0]]
        image = subject.pixels[index : index + 1].to(subject.model.mean.device)
        label = curve.labels[index : index + 1].to(image.device)
        found = fgsm(subject.model, image, label, eps / 255)
        after = subject.predict(found.cpu())[0].softmax(dim=0)
        said = f"{subject.model.class_name(int(after.argmax()))}, {100 * float(after.max()):.0f} %"
        name = subject.images.names[index]
        photos.append(photo(found[0], f"{name} under FGSM", f"{name} at eps {eps:g}/255: now {said}"))
        change = (found - image)[0] / (2 * eps / 255) + 0.5
        photos.append(photo(change, f"the change to {name}", f"the change, {255 / (2 * eps):.0f} times enlarged"))
    if not photos:
        return []
    return [Gallery(title="What it takes", photos=photos, note="At the smallest eps tried that changes the answer.")]


def _lost(after: Interval, clean: Interval) -> Interval:
    """Return which share of what held before is lost."""
    before = max(clean.value, 1e-12)
    low, high = (min(1.0, max(0.0, 1 - left / before)) for left in (after.high, after.low))
    return Interval(min(1.0, max(0.0, 1 - after.value / before)), low, high, after.n, after.level)


def _complement(error: Interval) -> Interval:
    return Interval(1 - error.value, 1 - error.high, 1 - error.low, error.n, error.level)
