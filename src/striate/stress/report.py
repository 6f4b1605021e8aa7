"""One table: how far do these networks fall, under attacks and under the attacks' controls?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.state import device_of
from striate.engine.stats import Interval, wilson
from striate.errors import InputError
from striate.stress.batches import Batches, batches
from striate.stress.curve import fgsm_curve, top_hits
from striate.stress.objective import attacked
from striate.stress.patch import AdversarialPatch
from striate.stress.pgd import pgd
from striate.stress.selftest import attack_selftests

__all__ = ["AttackRow", "AttackTable", "attack_report"]


@dataclass(frozen=True)
class AttackRow:
    """One figure of the table.

    Attributes:
        model: its name.
        attack: ``"clean"``, ``"fgsm"``, ``"pgd"``, ``"random sign"``, ``"patch"`` or ``"random patch"``.
        strength: eps, or the side of the patch in pixels; None for clean images.
        detail: name of the patch, else "".
        measures: ``"error"`` (share no longer right) or ``"success"`` (share seen as the patch's target).
        top1, top5: with Wilson 95 % intervals over images; top5 is None for a network of five classes or fewer.
    """

    model: str
    attack: str
    strength: float | None
    detail: str
    measures: Literal["error", "success"]
    top1: Interval
    top5: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        top5 = None if self.top5 is None else self.top5.to_dict()
        return {**vars(self), "top1": self.top1.to_dict(), "top5": top5}


@dataclass(frozen=True)
class AttackTable:
    """What :func:`attack_report` measured.

    Attributes:
        rows: model by model.
        checks: model name -> the self-tests of the attack on that model.
        labelled: whether errors are against given labels; if not, against the model's own clean predictions.
    """

    rows: tuple[AttackRow, ...]
    checks: dict[str, list[Check]]
    labelled: bool

    def select(self, *, model: str | None = None, attack: str | None = None) -> list[AttackRow]:
        """Return the rows of one model, one attack, or both."""
        return [row for row in self.rows if model in {None, row.model} and attack in {None, row.attack}]

    def to_rows(self) -> list[dict[str, Any]]:
        """Return flat rows for a CSV file or a data frame, shares in [0, 1]."""
        return [
            {
                "model": row.model,
                "attack": row.attack,
                "strength": row.strength,
                "detail": row.detail,
                "measures": row.measures,
                "n": row.top1.n,
                **{
                    f"{top}{end}": getattr(figure, end.strip("_") or "value", None)
                    for top, figure in (("top1", row.top1), ("top5", row.top5))
                    for end in ("", "_low", "_high")
                },
            }
            for row in self.rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return rows and checks, JSON-ready."""
        return {
            "labelled": self.labelled,
            "rows": [row.to_dict() for row in self.rows],
            "checks": {name: [check.to_dict() for check in checks] for name, checks in self.checks.items()},
        }

    def __str__(self) -> str:
        five = any(row.top5 for row in self.rows)
        lines = [f"{'model':<20} {'attack':<14} {'strength':>9}  {'top-1 %':<22}" + f" {'top-5 %':<22}" * five]
        for row in self.rows:
            top1, top5 = (
                f"{100 * part.value:5.1f} [{100 * part.low:.1f}, {100 * part.high:.1f}]" if part else ""
                for part in (row.top1, row.top5)
            )
            strength = "" if row.strength is None else f"{row.strength:.4g}"
            tops = f"{top1:<22}" + f" {top5:<22}" * five
            lines.append(f"{row.model:<20} {row.attack:<14} {strength:>9}  {tops} {row.measures}")
        failed = [
            f"{name}: {check.statement}"
            for name, checks in self.checks.items()
            for check in checks
            if check.passed is False
        ]
        return "\n".join(lines + [f"self-test failed, {line}" for line in failed])


def attack_report(
    models: Mapping[str, nn.Module],
    loader: Batches,
    epsilons: Sequence[float] = (1 / 255, 4 / 255, 8 / 255),
    patches: Mapping[str, AdversarialPatch] | Sequence[AdversarialPatch] = (),
    *,
    pgd_steps: int = 10,
    placements: int = 4,
    selftests: bool = True,
    batch_size: int = 16,
    seed: int = 0,
) -> AttackTable:
    """Attack every model by FGSM, PGD and every patch, beside the controls: random signs, random patches.

    Args:
        models: name -> classifier on pixels in [0, 1]; each leaves as it came.
        loader: see :data:`striate.stress.batches.Batches`; with labels errors are against them, without against
            each model's clean predictions.
        epsilons: of FGSM, PGD and random signs, in pixels; none leaves these three out.
        patches: trained patches; each is laid on every model, so a patch trained on one shows its transfer to others.
        pgd_steps: of PGD, without random start; 0 leaves PGD out.
        placements: of each patch on each image.
        selftests: whether to test the attack itself on each model (:func:`striate.stress.selftest.attack_selftests`).
        batch_size: images at once.
        seed: of random signs, random patches and placements.
    """
    if not models:
        raise InputError("models", "attack_report", allowed="at least one name and model", got=dict(models))
    # A list and not a dictionary: two patches may have the same size and target.
    named = list(patches.items()) if isinstance(patches, Mapping) else [(_patch_name(one), one) for one in patches]
    images, labels = _collect(loader, batch_size)
    rows: list[AttackRow] = []
    checks: dict[str, list[Check]] = {}
    few: set[str] = set()
    for name, model in models.items():
        signs = torch.Generator().manual_seed(seed)
        grid = tuple(epsilons) or (0.0,)
        curve = fgsm_curve(model, images, labels, epsilons=grid, batch_size=batch_size, generator=signs)
        if curve.classes <= 5:
            few.add(name)
        rows.append(AttackRow(name, "clean", None, "", "error", curve.error("clean", 1)[0], curve.error("clean", 5)[0]))
        for attack, kind in (("fgsm", "fgsm"), ("random sign", "random")) if epsilons else ():
            figures = zip(curve.epsilons, curve.error(kind, 1), curve.error(kind, 5), strict=True)  # type: ignore[arg-type]
            rows += [AttackRow(name, attack, eps, "", "error", top1, top5) for eps, top1, top5 in figures]
        if pgd_steps and epsilons:
            for eps in curve.epsilons:
                top1, top5 = _pgd_error(model, images, curve.labels, eps, pgd_steps, batch_size)
                rows.append(AttackRow(name, "pgd", eps, "", "error", top1, top5))
        for detail, patch in named:
            control = patch.random_control(torch.Generator().manual_seed(seed))
            for attack, sticker in (("patch", patch), ("random patch", control)):
                places = torch.Generator().manual_seed(seed)
                score = sticker.evaluate(
                    model, (images, curve.labels), placements, batch_size=batch_size, generator=places
                )
                figures_ = score.interval("top1"), score.interval("top5")
                rows.append(AttackRow(name, attack, float(patch.size), detail, "success", *figures_))
        if selftests:
            checks[name] = attack_selftests(model, images, labels, curve=curve, batch_size=batch_size)
    rows = [replace(row, top5=None) if row.model in few else row for row in rows]
    return AttackTable(tuple(rows), checks, labels is not None)


def _collect(loader: Batches, batch_size: int) -> tuple[Tensor, Tensor | None]:
    pairs = list(batches(loader, batch_size))
    if not pairs:
        raise InputError("loader", "attack_report", allowed="at least one image", got="none")
    labels = [given for _, given in pairs if given is not None]
    return torch.cat([batch for batch, _ in pairs]), torch.cat(labels) if len(labels) == len(pairs) else None


def _pgd_error(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, batch_size: int
) -> tuple[Interval, Interval]:
    hits = []
    for batch, given in batches((images, labels), batch_size):
        x, y = batch.to(device_of(model)), (labels[:0] if given is None else given).to(device_of(model))
        moved = pgd(model, x, y, eps, steps=steps, random_start=False)
        with attacked(model) as forward, torch.no_grad():
            hits.append(top_hits(forward(moved), y))
    wrong = (~torch.cat(hits, dim=1)).sum(dim=1).tolist()
    return wilson(wrong[0], len(labels)), wilson(wrong[1], len(labels))


def _patch_name(patch: AdversarialPatch) -> str:
    return f"{patch.size} px, target {patch.target}"
