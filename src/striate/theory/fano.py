"""Fano's inequality for algorithms that toss coins, checked on a packing of the sphere.

Lahoti, Karp, Winston, Singh, Li, ICLR 2024, arXiv 2403.15707. The usual route from Fano's inequality to a lower bound
on samples needs the loss to be a semi-metric between hypotheses. Theirs needs less. Let V be uniform over M hypotheses,
S the samples under V, and theta whatever a randomised algorithm makes of S. If the hypotheses are *locally separated*
at level delta, that is, if no theta has a risk below delta under two of them, then

    P(risk of theta under V >= delta) >= 1 - (I(V; S) + ln 2) / ln M,

because whoever has a small risk has named V. Here hypotheses are unit vectors w in R^d, a sample is (y, y w + xi), and
a classifier is a direction u, whose risk is Phi(-u . w / sigma). Hiding w in one of k patches can only lower I(V; S),
so that the bound stands for DSD too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import stats as scipy_stats
from torch import Tensor

from striate.data.local_signal import DSD
from striate.engine.check import Check
from striate.engine.state import mix_seeds
from striate.engine.stats import Interval, wilson
from striate.errors import InputError

__all__ = ["FanoTrial", "fano_bound", "fano_trial", "locally_separated", "signal_information", "sphere_packing"]

Decide = Callable[[Tensor, Tensor], Tensor]
"""``decide(x (n, k, d), y (n,))``: a direction (d,)."""


def sphere_packing(m: int, d: int, max_cosine: float, seed: int = 0, *, tries: int = 20_000) -> Tensor:
    """Return ``m`` unit vectors (m, d), no two with a cosine above ``max_cosine``: random ones, kept if they fit.

    Raises:
        InputError: ``tries`` candidates did not yield as many.
    """
    if m < 2 or d < 2 or not -1 < max_cosine < 1:
        raise InputError("m, d, max_cosine", "sphere_packing", allowed=">= 2, >= 2, in (-1, 1)", got=(m, d, max_cosine))
    generator = torch.Generator().manual_seed(mix_seeds(seed))
    kept = torch.empty(0, d)
    for candidate in torch.nn.functional.normalize(torch.randn(tries, d, generator=generator), dim=1):
        if not (kept @ candidate > max_cosine).any():
            kept = torch.cat([kept, candidate[None]])
            if len(kept) == m:
                return kept
    hint = "Take fewer vectors, more dimensions or a higher cosine."
    allowed = f"what fits: {len(kept)} were found in {tries} tries"
    raise InputError("m", "sphere_packing", allowed=allowed, got=m, hint=hint)


def locally_separated(codes: Tensor, cosine: float) -> bool:
    """Whether no direction has a cosine above ``cosine``, in (0, 1], with two of the unit vectors ``codes`` (m, d).

    Two caps of angle arccos(cosine) are disjoint where their centres are at least twice that angle apart.
    """
    if not 0 < cosine <= 1:
        raise InputError("cosine", "locally_separated", allowed="in (0, 1]", got=cosine)
    nearest = (codes.double() @ codes.double().T).fill_diagonal_(-1).max().clamp(-1, 1)
    return bool(torch.arccos(nearest) >= 2 * math.acos(cosine))


def signal_information(codes: Tensor, sigma: float, n: int) -> float:
    """Return an upper bound on I(V; S) in nats: n times the mean over pairs of |w - w'|^2 / (2 sigma^2)."""
    return n * float(torch.cdist(codes.double(), codes.double()).square().mean()) / (2 * sigma**2)


def fano_bound(information: float, m: int) -> float:
    """Return the least probability of failure, max(0, 1 - (I + ln 2) / ln M).

    >>> fano_bound(0.0, 4)
    0.5
    """
    if information < 0 or m < 2:
        raise InputError("information, m", "fano_bound", allowed=">= 0, >= 2", got=(information, m))
    return max(0.0, 1 - (information + math.log(2)) / math.log(m))


@dataclass(frozen=True)
class FanoTrial:
    """How often an algorithm failed, against the bound.

    Attributes:
        n: samples.
        bound: the least probability of failure that theory allows.
        failed: share of trials in which the risk reached delta, with its interval.
        risk: delta.
    """

    n: int
    bound: float
    failed: Interval
    risk: float

    @property
    def check(self) -> Check:
        """Whether the bound holds; an algorithm that breaks it was told the answer."""
        words = f"n = {self.n}: fails in {self.failed} of the trials, and at least in {self.bound:.3f} by Fano."
        return Check("Fano", self.failed.high >= self.bound, words, self.failed.value, self.bound)


def fano_trial(
    decide: Decide, codes: Tensor, sigma: float, n: int, *, k: int = 1, cosine: float, trials: int = 300, seed: int = 0
) -> FanoTrial:
    """Let an algorithm name the signal, over and over, and count its failures.

    Args:
        decide: from samples to a direction; may toss coins.
        codes: (m, d) unit vectors, locally separated at ``cosine``.
        sigma, n, k: of the samples; with k > 1 the signal hides in one of k patches.
        cosine: success means a larger cosine with the signal, i.e. a risk below Phi(-cosine / sigma).
        trials: each with a signal drawn from ``codes`` and samples of its own.
        seed: of signals and samples.

    Raises:
        InputError: the codes are not locally separated, so that the bound says nothing.
    """
    if not locally_separated(codes, cosine):
        raise InputError("codes", "fano_trial", allowed=f"locally separated at cosine {cosine:g}", got="closer ones")
    m, d = codes.shape
    drawn = torch.randint(m, (trials,), generator=torch.Generator().manual_seed(mix_seeds(seed)))
    failed = 0
    for trial, v in enumerate(drawn.tolist()):
        task = DSD(k, d, sigma, codes[v])
        u = decide(*task.sample(n, seed * 1_000_003 + trial))
        failed += not float(torch.nn.functional.cosine_similarity(u, codes[v], dim=0)) > cosine
    bound = fano_bound(signal_information(codes, sigma, n), m)
    return FanoTrial(n, bound, wilson(failed, trials), float(scipy_stats.norm.cdf(-cosine / sigma)))
