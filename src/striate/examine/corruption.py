"""Probe: does local damage break it? Natural corruptions on some cells of a grid, by how many and by where."""

from __future__ import annotations

import torch
from torch import Tensor

from striate.engine.stats import wilson_mean
from striate.examine.draw import map_picture, photo, share
from striate.examine.finding import Advice, Chart, CheckRecord, Finding, Gallery, Photo, Series, Table
from striate.examine.levels import judge_share
from striate.examine.subject import Subject
from striate.examine.tiling import square_cells
from striate.stress.corruptions import corrupt
from striate.stress.grid import PatchGrid
from striate.stress.patch_perturbation import corrupt_patches

__all__ = ["probe"]

_QUESTION = "Does local damage break it?"
_SHARES = (32 / 196, 96 / 196, 160 / 196, 1.0)  # of the cells, as published
_SEVERITY = 5


def probe(subject: Subject) -> Finding:
    """Damage more and more cells of each image, then one cell after another, and count the answers that change."""
    height, width = subject.pixels.shape[-2:]
    kinds: tuple[str, ...] = ("gaussian_noise", "defocus_blur", "contrast")
    if not subject.quick:
        kinds += ("fog", "pixelate", "jpeg_compression")
    grid = square_cells(height, width, 14)
    counts = sorted({max(1, round(share * grid.cells)) for share in _SHARES})
    pixels, clean = subject.pixels, subject.predictions
    changed = torch.zeros(len(kinds), len(counts), len(pixels))
    for i, kind in enumerate(kinds):
        subject.say(f"damaged cells: {kind}")
        for j, count in enumerate(counts):
            generator = torch.Generator().manual_seed(subject.seed)
            damaged = corrupt_patches(pixels, kind, _SEVERITY, count, grid, generator)
            changed[i, j] = (subject.predict(damaged).argmax(dim=1) != clean).float()
    coarse = square_cells(height, width, 4 if subject.quick else 7)
    return _finding(subject, kinds, counts, grid, changed, _by_place(subject, coarse), coarse.patch_size[0])


def _finding(
    subject: Subject,
    kinds: tuple[str, ...],
    counts: list[int],
    grid: PatchGrid,
    changed: Tensor,
    place: Tensor,
    coarse: int,
) -> Finding:
    total, (height, width) = grid.cells, grid.image_size
    area = 100 * grid.pixels_per_cell / (height * width)  # of one cell, in percent
    by_count = [wilson_mean(changed[:, j].mean(dim=0).tolist()) for j in range(len(counts))]
    least, most = by_count[0], by_count[-1]
    level, few = judge_share(least, attention=0.1, problem=0.3)
    if subject.untrained:
        level, few = "info", []
    headline = (
        f"Damage to {counts[0] * area:.0f} % of the image changes {100 * least.value:.0f} % of the answers; "
        f"damage to {f'{total * area:.0f} %' if grid.left_over else 'all'} of it, {100 * most.value:.0f} %."
    )
    x = [float(j) for j in range(len(counts))]
    chart = Chart(
        title=f"Answers changed by damaged cells, severity {_SEVERITY} of 5",
        x_label="share of the cells damaged",
        y_label="share of images",
        alt=headline,
        series=[
            Series(name=kind.replace("_", " "), x=x, y=changed[i].mean(dim=1).tolist()) for i, kind in enumerate(kinds)
        ],
        x_ticks=[f"{100 * count / total:.0f} %" for count in counts],
        y_range=(0, 1.02),
    )
    rows: list[list[str | float | int | None]] = [
        [kind.replace("_", " "), *[f"{100 * float(changed[i, j].mean()):.0f} %" for j in range(len(counts))]]
        for i, kind in enumerate(kinds)
    ]
    where = "all cells" if grid.left_over else "the whole image"
    worst = kinds[int(changed[:, -1].mean(dim=1).argmax())].replace("_", " ")
    low, high = float(place.min()), float(place.max())
    scaled = place.mean(dim=0)
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min()).clamp_min(1e-12)
    top = torch.nonzero(scaled == scaled.max())[0].tolist()
    gallery = Gallery(
        title="Which place matters",
        note=f"One cell of {coarse} px at a time under noise: how far the probability of the class falls, mean over "
        f"{len(place)} images (single cells: from {low:+.2f} to {high:+.2f}).",
        maps=[
            map_picture(
                scaled,
                "mean fall by place",
                f"The largest mean fall is in row {top[0] + 1} of {scaled.shape[0]}, column {top[1] + 1}.",
                photo=None,
            )
        ],
        photos=_examples(subject, kinds, counts, grid),
        low_label="least",
        high_label="most",
    )
    return Finding(
        probe="corruption",
        question=_QUESTION,
        status="done",
        level=level,
        headline=headline,
        reading=[
            f"Worst over {where}: {worst}. The damage is that of the common-corruptions benchmark at its "
            "highest severity, cut into cells, drawn at random for each image and the same for every kind.",
            "An answer counts as changed against the clean prediction, right or wrong.",
            *([grid.left_over] if grid.left_over else []),
            *few,
        ],
        figures=[
            share(
                f"Changed at {100 * count / total:.0f} % of the cells", item, f"mean over {len(kinds)} kinds of damage"
            )
            for count, item in zip(counts, by_count, strict=True)
        ],
        charts=[chart],
        galleries=[gallery],
        tables=[
            Table(
                title="Answers changed",
                columns=["damage", *[f"{count} of {total} cells" for count in counts]],
                rows=rows,
            )
        ],
        checks=[
            _whole_image_check(subject, grid),
        ],
        advice=[
            Advice(
                text=f"If {worst} is to be expected in use, train with it, and measure on images of your own.",
                command="striate attack MODEL IMAGES --attack cells",
            )
        ],
        papers=["patch-perturbation"],
        limits=["The other kinds of damage of the benchmark, and lower severities."],
    )


def _whole_image_check(subject: Subject, grid: PatchGrid) -> CheckRecord:
    """Damaging every cell must be the benchmark's own function on the whole image, to the last bit."""
    few, total = subject.pixels[:4], grid.cells
    height, width = (count * side for count, side in zip(grid.shape, grid.patch_size, strict=True))
    damaged = corrupt_patches(few, "contrast", _SEVERITY, total, grid)
    whole = corrupt(few, "contrast", _SEVERITY)
    same = torch.equal(damaged[..., :height, :width], whole[..., :height, :width])
    verb = ("equals" if same else "does not equal") + (", inside them," if grid.left_over else "")
    return CheckRecord(
        name="all cells = whole image",
        passed=same,
        statement=f"Damaging all {total} cells {verb} damaging the whole image, bit for bit (contrast).",
    )


def _by_place(subject: Subject, grid: PatchGrid) -> Tensor:
    """Return how far the class probability falls under noise in each single cell, (images, rows, columns)."""
    pixels = subject.pixels[subject.shown]
    noisy = corrupt(pixels, "gaussian_noise", _SEVERITY, seed=subject.seed)
    masks = grid.mask(torch.arange(grid.cells)[:, None])
    falls = []
    for place, index in enumerate(subject.shown):
        label = int(subject.predictions[index])
        before = float(subject.logits[index].softmax(dim=0)[label])
        damaged = torch.where(masks, noisy[place], pixels[place])
        after = subject.predict(damaged).softmax(dim=1)[:, label]
        falls.append((before - after).view(grid.shape))
    return torch.stack(falls)


def _examples(subject: Subject, kinds: tuple[str, ...], counts: list[int], grid: PatchGrid) -> list[Photo]:
    """One image under one kind of damage, more and more of it."""
    found = []
    for count in counts:
        generator = torch.Generator().manual_seed(subject.seed)
        damaged = corrupt_patches(subject.pixels[:1], kinds[0], _SEVERITY, count, grid, generator)
        said = subject.model.class_name(int(subject.predict(damaged).argmax()))
        share = f"{100 * count / grid.cells:.0f} %"
        found.append(photo(damaged[0], f"{kinds[0].replace('_', ' ')} on {share} of the cells", f"{share}: {said}"))
    return found
