"""Complementarity: how much two classifiers make up for each other's mistakes, and which pair to take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["choose_pair", "complementarity"]


def complementarity(predictions: Tensor, labels: Tensor, *, balanced: bool = True) -> Tensor:
    """Return the complementarity of every two classifiers, (M, M) in [0, 1], symmetric with a zero diagonal.

    With n(a) the images that a gets right: [n(a or b) - n(a and b) - |n(a) - n(b)|] / N, which is twice the smaller of
    the two counts of images that only one of them gets right (Kinnas et al. 2025, arXiv 2412.01039, section 3).

    Args:
        predictions: (M, N) class of each of N images by each of M classifiers.
        labels: (N,) right classes.
        balanced: False leaves the last term out, as the authors' script does: the share of images that exactly one of
            the two gets right. A weak classifier beside a strong one then counts as complementary.

    >>> right, wrong = [1, 1, 1, 0, 0], [0, 1, 0, 0, 1]
    >>> float(complementarity(torch.tensor([right, wrong]), torch.ones(5))[0, 1])
    0.4
    """
    if predictions.dim() != 2 or labels.shape != predictions.shape[1:] or not len(labels):
        shapes = (tuple(predictions.shape), tuple(labels.shape))
        allowed = "(M, N) and (N,), with N >= 1"
        raise InputError("predictions, labels", "complementarity", allowed=allowed, got=shapes)
    right = (predictions == labels.to(predictions.device)).double()
    only = right @ (1 - right).T  # (a, b): right by a, wrong by b
    return (2 * torch.minimum(only, only.T) if balanced else only + only.T) / len(labels)


def choose_pair(
    complementarity: Tensor,
    costs: Sequence[float],
    *,
    limit: float | None = None,
    accuracies: Sequence[float] | None = None,
) -> tuple[int, int]:
    """Return the most complementary pair whose networks together cost no more than ``limit``, the first to run first.

    The cheaper one runs first, since it runs on every image; of equally dear ones the more accurate.

    Args:
        complementarity: (M, M), see :func:`complementarity`.
        costs: of one image through each network, e.g. multiply-accumulates.
        limit: None for no limit.
        accuracies: of each network.

    Raises:
        InputError: lengths differ, or no pair is cheap enough.
    """
    m = len(costs)
    if complementarity.shape != (m, m) or m < 2 or (accuracies is not None and len(accuracies) != m):
        got = (tuple(complementarity.shape), m, None if accuracies is None else len(accuracies))
        raise InputError("complementarity, costs, accuracies", "choose_pair", allowed="of M >= 2 networks", got=got)
    pairs = [(a, b) for a in range(m) for b in range(a + 1, m) if limit is None or costs[a] + costs[b] <= limit]
    if not pairs:
        cheapest = sum(sorted(costs)[:2])
        raise InputError("limit", "choose_pair", allowed=f">= {cheapest:g}, the cost of the cheapest pair", got=limit)
    best = max(pairs, key=lambda pair: float(complementarity[pair]))
    first, second = sorted(best, key=lambda i: (costs[i], -(accuracies[i] if accuracies is not None else 0.0)))
    return first, second
