"""How sure a classifier is, and below which confidence a second one is worth asking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["KINDS", "ConfidenceKind", "ThresholdCurve", "confidence", "search_threshold"]

ConfidenceKind = Literal["maxp", "difference", "entropy"]
KINDS: tuple[ConfidenceKind, ...] = get_args(ConfidenceKind)


def confidence(logits: Tensor, kind: ConfidenceKind = "difference") -> Tensor:
    """Return how sure each prediction is, (N,) in [0, 1]; higher is surer whatever the kind.

    Args:
        logits: (N, C) with C >= 2, before the softmax.
        kind: ``"maxp"``, the largest probability; ``"difference"``, the largest less the second; ``"entropy"``,
            1 - H / ln C, so that a uniform guess gives 0 (Kinnas et al. 2025, arXiv 2412.01039, section 3).

    Returns:
        float32, or float64 for float64 logits.

    >>> float(confidence(torch.tensor([[0.0, 0.0]]), "maxp"))
    0.5
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError("logits", "confidence", allowed="(N, C) with at least two classes", got=tuple(logits.shape))
    wide = logits if logits.dtype is torch.float64 else logits.float()
    probabilities = wide.softmax(1)
    if probabilities.isnan().any():
        hint = "Does a network have NaN weights?"
        raise InputError("logits", "confidence", allowed="numbers whose softmax is one", got="NaN", hint=hint)
    if kind == "maxp":
        return probabilities.amax(1)
    if kind == "difference":
        first, second = probabilities.topk(2, dim=1).values.unbind(1)
        return first - second
    if kind == "entropy":
        # xlogy takes 0 ln 0 as 0; rounding may leave the range by an ulp.
        return (1 + torch.special.xlogy(probabilities, probabilities).sum(1) / math.log(logits.shape[1])).clamp(0, 1)
    raise InputError("kind", "confidence", allowed=f"one of {', '.join(KINDS)}", got=kind)


@dataclass(frozen=True)
class ThresholdCurve:
    """What a pair of classifiers does at every threshold, on the images that the threshold was searched on.

    Attributes:
        best: the threshold of the highest accuracy; of several the one that asks the second least.
        thresholds: (K,) in [0, 1].
        accuracy: (K,) of the pair at each.
        usage: (K,) share of the images that the second is asked about; never falls from one threshold to the next.
        union: share of images that at least one gets right, as an oracle that asks the second only where the first errs
            would reach: no threshold can do better.
        kind, postcheck: as searched.
    """

    best: float
    thresholds: np.ndarray
    accuracy: np.ndarray
    usage: np.ndarray
    union: float
    kind: ConfidenceKind
    postcheck: bool

    def at(self, threshold: float) -> tuple[float, float]:
        """Return accuracy and usage at the largest searched threshold that is not above ``threshold``."""
        index = max(int(np.searchsorted(self.thresholds, threshold, side="right")) - 1, 0)
        return float(self.accuracy[index]), float(self.usage[index])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary of the best threshold and what it gives."""
        accuracy, usage = self.at(self.best)
        return {
            "threshold": self.best,
            "accuracy": accuracy,
            "usage": usage,
            "union": self.union,
            "kind": self.kind,
            "postcheck": self.postcheck,
        }


def search_threshold(
    logits_a: Tensor,
    logits_b: Tensor,
    labels: Tensor,
    kind: ConfidenceKind = "difference",
    *,
    postcheck: bool = True,
    grid: int = 2000,
) -> ThresholdCurve:
    """Find the confidence below which the second classifier should be asked, on labelled images kept for it.

    One sort of the first's confidences gives accuracy and usage at all thresholds: O(N log N) instead of one pass over
    the images per threshold. Search it on validation images: on test images the accuracy it reports is too good.

    Args:
        logits_a, logits_b: (N, C) of the classifier that runs first and of the second.
        labels: (N,) right classes.
        kind: see :func:`confidence`.
        postcheck: the surer of the two answers where both were asked; False takes the second's answer then.
        grid: thresholds, equidistant in [0, 1].

    Raises:
        InputError: shapes differ, or ``grid`` < 2.
    """
    if logits_a.shape != logits_b.shape or labels.shape != logits_a.shape[:1] or not len(labels):
        shapes = (tuple(logits_a.shape), tuple(logits_b.shape), tuple(labels.shape))
        allowed = "(N, C), (N, C) and (N,): both classifiers know the same classes"
        raise InputError("logits_a, logits_b, labels", "search_threshold", allowed=allowed, got=shapes)
    if grid < 2:
        raise InputError("grid", "search_threshold", allowed=">= 2", got=grid)
    y = labels.cpu()
    score_a, score_b = (confidence(logits, kind).cpu().double() for logits in (logits_a, logits_b))
    right_a, right_b = ((logits.argmax(1).cpu() == y).double() for logits in (logits_a, logits_b))
    right_both = torch.where(score_b > score_a, right_b, right_a) if postcheck else right_b

    order = score_a.argsort(stable=True)
    gained = np.concatenate([[0.0], (right_both - right_a)[order].cumsum(0).numpy()])
    thresholds = np.linspace(0, 1, grid)
    asked = np.searchsorted(score_a[order].numpy(), thresholds, side="left")  # confidence < threshold
    right = right_a.sum().item() + gained[asked]
    best = float(thresholds[right.argmax()])
    union = float(torch.maximum(right_a, right_b).mean())
    return ThresholdCurve(best, thresholds, right / len(y), asked / len(y), union, kind, postcheck)
