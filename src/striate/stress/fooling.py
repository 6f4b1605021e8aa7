"""The fooling rate: misclassified images among those that are classified correctly when clean.

Gu, Tresp, Qin, "Are Vision Transformers Robust to Patch Perturbations?", 2022, arXiv 2111.10659. Counting over all
images would mix a model's clean errors in. So would comparing models of unequal clean accuracy: it stands in every
result, and the images may be restricted to those that all compared models get right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from striate.engine.stats import Interval, wilson
from striate.errors import InputError
from striate.stress.grid import PatchGrid
from striate.stress.objective import attacked, check_classes, check_images, check_labels, check_logits

__all__ = ["FoolingRate", "fooling_map", "fooling_rate", "predictions"]

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FoolingRate:
    """How often perturbed images are misclassified, among those that are classified correctly when clean.

    Attributes:
        percent: 100 * fooled / evaluated; NaN if none was evaluated.
        interval: Wilson interval of the share, in [0, 1]; None if none was evaluated.
        n: images evaluated.
        clean_accuracy: percentage correct when clean, of all images given.
        evaluated: (N,) bool.
        fooled: (N,) bool.
    """

    percent: float
    interval: Interval | None
    n: int
    clean_accuracy: float
    evaluated: Tensor
    fooled: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        interval = None if self.interval is None else self.interval.to_dict()
        return {"percent": self.percent, "interval": interval, "n": self.n, "clean_accuracy": self.clean_accuracy}


def fooling_rate(
    model: nn.Module | Forward,
    clean: Tensor,
    perturbed: Tensor,
    y: Tensor,
    *,
    evaluated: Tensor | None = None,
    batch_size: int = 128,
) -> FoolingRate:
    """Measure the fooling rate of given images.

    Args:
        model: classifier.
        clean, perturbed: (N, C, H, W), image by image; moved to where the model is.
        y: (N,) true classes.
        evaluated: (N,) bool, further restriction: when models are compared, the images that all of them get right.
        batch_size: of the forward passes.
    """
    clean = check_images(clean, "fooling_rate", model=model)
    y = check_labels(y, clean, "fooling_rate")
    if perturbed.shape != clean.shape:
        raise InputError(
            "perturbed", "fooling_rate", allowed=f"shaped {tuple(clean.shape)}", got=tuple(perturbed.shape)
        )
    with attacked(model) as forward, torch.no_grad():
        correct = predictions(forward, clean, batch_size, y, owner="fooling_rate") == y
        wrong = predictions(forward, perturbed.to(clean.device), batch_size, y, owner="fooling_rate") != y
    if evaluated is not None and evaluated.shape != y.shape:
        raise InputError("evaluated", "fooling_rate", allowed=f"{len(y)} booleans", got=tuple(evaluated.shape))
    counted = correct if evaluated is None else correct & evaluated.to(correct.device)
    fooled = wrong & counted
    n = int(counted.sum())
    interval = wilson(int(fooled.sum()), n) if n else None
    percent = 100 * interval.value if interval else float("nan")
    return FoolingRate(percent, interval, n, 100 * float(correct.float().mean()), counted, fooled)


def fooling_map(cells: Tensor, fooled: Tensor, grid: PatchGrid, *, evaluated: Tensor | None = None) -> Tensor:
    """Return (rows, columns): the percentage fooled among evaluated rows that perturb a cell; NaN where none does.

    Args:
        cells: (R, n) long.
        fooled: (R,) bool.
        grid: geometry.
        evaluated: (R,) bool; default all.
    """
    evaluated = torch.ones_like(fooled) if evaluated is None else evaluated
    seen, hit = (
        torch.zeros(grid.cells, dtype=torch.float64).index_add_(
            0, cells.flatten().cpu(), which.double().cpu()[:, None].expand(cells.shape).flatten()
        )
        for which in (evaluated, fooled & evaluated)
    )
    return (100 * hit / seen).view(grid.shape)  # 0 / 0 is NaN


def predictions(
    forward: Forward, x: Tensor, batch_size: int, y: Tensor | None = None, *, owner: str = "predictions"
) -> Tensor:
    """Return the predicted classes (N,), batch by batch.

    Raises:
        ModelError: no scores (N, classes).
        InputError: a label of ``y`` is none of the classes: its image would count as an error of the model.
    """
    found = []
    for part in x.split(batch_size):
        logits = forward(part)
        check_logits(logits, len(part), owner)
        found.append(logits.argmax(dim=1))
    if y is not None:
        check_classes(y, logits.shape[1], owner)
    return torch.cat(found)
