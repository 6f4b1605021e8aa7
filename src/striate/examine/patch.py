"""Probe: does a sticker break it? One square of free pixels in each image, against random pixels in the same place."""

from __future__ import annotations

from striate.engine.stats import Interval, wilson
from striate.examine.draw import line, percent, photo, share
from striate.examine.finding import Advice, Chart, CheckRecord, Finding, Gallery, Photo, Table
from striate.examine.levels import judge_share
from striate.examine.subject import BATCH, Subject
from striate.examine.tiling import square_cells
from striate.stress.patch_perturbation import PatchAttack, PatchResult

__all__ = ["probe"]

_QUESTION = "Does a sticker break it?"
_STEP = 16 / 255


def probe(subject: Subject) -> Finding:
    """Attack one cell of each image, at a random place, for several sizes of cell."""
    height, width = subject.pixels.shape[-2:]
    n = min(len(subject.pixels), 6 if subject.quick else 12)
    steps = 12 if subject.quick else 40
    pixels = subject.pixels[:n].to(subject.model.mean.device)
    labels = subject.labels[:n].to(pixels.device)
    grids = {square_cells(height, width, wanted) for wanted in ((7,) if subject.quick else (14, 7, 4))}
    found: list[tuple[int, PatchResult, PatchResult]] = []
    for grid in sorted(grids, key=lambda grid: grid.patch_size):
        side = grid.patch_size[0]
        subject.say(f"sticker of {side} px, up to {steps} steps on each of {n} images")
        attacked, control = (
            PatchAttack(subject.model, grid, steps=taken, step_size=_STEP, batch_size=BATCH).attack(
                pixels, labels, seed=subject.seed
            )
            for taken in (steps, 0)
        )
        found.append((side, attacked, control))
    return _finding(subject, found, steps)


def _finding(subject: Subject, found: list[tuple[int, PatchResult, PatchResult]], steps: int) -> Finding:
    n = int(found[0][1].evaluated.sum())
    if n == 0:
        return Finding(
            probe="patch",
            question=_QUESTION,
            status="skipped",
            level="info",
            headline="No image is classified rightly to begin with, so there is nothing for a sticker to break.",
        )
    area = subject.pixels.shape[-2] * subject.pixels.shape[-1]
    fooled = [wilson(int(attacked.success.sum()), n) for _, attacked, _ in found]
    control = [wilson(int(random.success.sum()), n) for _, _, random in found]
    side, gap = found[-1][0], fooled[-1].value - control[-1].value
    level, few = judge_share(max(fooled, key=lambda item: item.value), attention=0.1, problem=0.5)
    if level == "good" and side * side < 0.01 * area:
        height, width = subject.pixels.shape[-2:]
        few = [f"On images of {height} x {width} so small a sticker proves nothing."]
        level = "info"
    failed = [check.name for check in found[-1][1].checks if check.passed is False]
    if subject.untrained:
        level, few = "info", []
    elif failed and level in {"good", "info"}:
        level = "attention"  # an attack that fails its own tests says nothing about the network
        few = [f"The attack failed its own test “{'”, “'.join(failed)}”, so that surviving answers prove nothing."]
    headline = (
        f"A sticker of {side} px ({100 * side * side / area:.1f} % of the image), made for the image, changes the "
        f"answer on {100 * fooled[-1].value:.0f} % of {n} images; random pixels there, {100 * control[-1].value:.0f} %."
    )
    charts = []
    if len(found) > 1:
        charts.append(
            Chart(
                title="Answers changed by a sticker, by size",
                x_label="side of the sticker in pixels",
                y_label="share of images",
                alt=headline,
                series=[line("made for the image", fooled), line("random pixels", control, control=True)],
                x_ticks=[str(size) for size, _, _ in found],
                y_range=(0, 1.02),
            )
        )
    rows: list[list[str | float | int | None]] = [
        [f"{size} px, {100 * size * size / area:.1f} % of the image", percent(a), percent(b), _steps(result)]
        for (size, result, _), a, b in zip(found, fooled, control, strict=True)
    ]
    columns = ["sticker", "changed", "changed by random pixels", "median steps where it worked"]
    return Finding(
        probe="patch",
        question=_QUESTION,
        status="done",
        level=level,
        headline=headline,
        reading=[
            f"Any pixels are allowed inside the square and none is touched outside. Up to {steps} gradient steps per "
            "image; more make it stronger, so these shares are a lower bound.",
            *(result.grid.left_over for _, result, _ in found if result.grid.left_over),
            *few,
        ],
        figures=[
            share(f"Changed by a {side} px sticker", fooled[-1]),
            share("Changed by random pixels", control[-1]),
        ],
        charts=charts,
        galleries=_gallery(subject, found),
        tables=[Table(title="By size", columns=columns, rows=rows, note="One random place an image; Wilson 95 %.")],
        checks=[_control_check(fooled, control, gap), *[CheckRecord(**c.to_dict()) for c in found[-1][1].checks]],
        advice=[
            Advice(
                text="Train one sticker for all images, print it, and try it in front of the camera.",
                command=f"striate attack MODEL IMAGES --attack patch --size {side} --steps 700",
            )
        ],
        papers=["patch-perturbation", "fgsm-patch"],
        limits=["One sticker for all images, printing, other places in the image."],
    )


def _control_check(fooled: list[Interval], control: list[Interval], gap: float) -> CheckRecord:
    above = all(a.value >= b.value for a, b in zip(fooled, control, strict=True))
    words = "at every size" if above else "not at every size, so the attack itself may have failed"
    return CheckRecord(
        name="at least as strong as its control",
        passed=above,
        value=gap,
        bound=0.0,
        statement=f"The sticker changes at least as many answers as random pixels in the same place {words}; at the "
        f"largest, {100 * gap:+.0f} points.",
    )


def _gallery(subject: Subject, found: list[tuple[int, PatchResult, PatchResult]]) -> list[Gallery]:
    photos: list[Photo] = []
    for size, result, _ in found:
        worked = result.success.nonzero()[:2, 0].tolist()
        if not worked:
            continue
        stuck = result.x_adv[worked].cpu()
        said = subject.predict(stuck).argmax(dim=1)
        for place, row in enumerate(worked):
            name = subject.images.names[int(result.image[row])]
            caption = f"{name}, {size} px: now {subject.model.class_name(int(said[place]))}"
            photos.append(photo(stuck[place], f"{name} under a sticker of {size} px", caption))
    return [Gallery(title="Stickers that worked", photos=photos)] if photos else []


def _steps(result: PatchResult) -> float | None:
    return float(result.steps_used[result.success].float().median()) if bool(result.success.any()) else None
