"""Two steps of gradient descent learn a signal that is in one of k patches.

Lahoti, Karp, Winston, Singh, Li, ICLR 2024, arXiv 2403.15707: the algorithm of the upper bounds, for the CNN and the
LCN. The samples are split into halves S1 and S2, which the theory needs to be independent.

    w ~ N(0, I / (10 k d)^2),  b0 = 0
    w <- Proj(w - eta1 grad L_S1(w, b0)),  b1 = scale sqrt((k + d) ln(kd) / (kd)),  scale 1/32
    w <- Proj(w - eta2 grad L_S2(w, b1)),  b2 = 1e-4

with L = -(1/n) sum_i y_i f(x_i) and Proj onto filters of norm 1. The first step finds w with a squared cosine to the
signal of about n / (sigma^2 k^2 d) (LCN) or n / (sigma^2 k d) (CNN). The threshold b1 then keeps those pairs of patch
and sample that are likely to hold the signal, which takes a factor of about k off the second step's noise. At sizes of
tens the published 1/32 keeps nearly everything, so that the measured rate is that of a linear rule; a scale of 0.5 to 1
shows the threshold at work.

That the loss is the correlation is a reading of the proof; at step 1 the squared loss has the same gradient, because
f is about 0. The published eta2 = 1000 k is the LCN's; of the CNN's only "large" is known, and it is the same here: a
step that large is a jump to the direction of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from striate.errors import InputError
from striate.models.patch_net import PatchNet
from striate.theory.learners import Samples, blank_net, check_samples, initial_weight

__all__ = ["TwoStepGD", "threshold"]


def threshold(k: int, d: int, scale: float = 1 / 32) -> float:
    """Return b1 = scale sqrt((k + d) ln(kd) / (kd)).

    >>> round(threshold(10, 10), 5)
    0.02999
    """
    return scale * math.sqrt((k + d) * math.log(k * d) / (k * d))


class TwoStepGD:
    """The two-step rule, for one sample set or many at once; no autograd.

    Args:
        arch: ``"cnn"`` or ``"lcn"``.
        eta1: rate of the first step.
        eta2: rate of the second; None is 1000 k.
        threshold_scale: of b1; 1/32 is published.
        final_bias: b2 of the trained network. At 1e-4 the answer is that of a linear rule: to classify, set
            ``net.bias`` to a threshold chosen on other samples.
        split: ``"halves"`` uses fresh samples for each step; ``"same"`` uses all samples twice, which the theory does
            not cover.

    >>> from striate.data.local_signal import DSD
    >>> task = DSD(k=5, d=5, sigma=0.25)
    >>> TwoStepGD("cnn").fit(*task.sample(200)).cosine(task.w).item() > 0.9
    True
    """

    def __init__(
        self,
        arch: Literal["cnn", "lcn"] = "cnn",
        eta1: float = 1.0,
        eta2: float | None = None,
        threshold_scale: float = 1 / 32,
        final_bias: float = 1e-4,
        split: Literal["halves", "same"] = "halves",
    ) -> None:
        if arch not in {"cnn", "lcn"}:
            raise InputError("arch", "TwoStepGD", allowed="'cnn' or 'lcn'", got=arch, hint="For an FCN: ProjectedGD.")
        if split not in {"halves", "same"}:
            raise InputError("split", "TwoStepGD", allowed="'halves' or 'same'", got=split)
        if eta1 <= 0 or (eta2 is not None and eta2 <= 0):
            raise InputError("eta1, eta2", "TwoStepGD", allowed="> 0", got=(eta1, eta2))
        if threshold_scale < 0 or final_bias < 0:
            raise InputError(
                "threshold_scale, final_bias", "TwoStepGD", allowed=">= 0", got=(threshold_scale, final_bias)
            )
        self.arch, self.eta1, self.eta2 = arch, eta1, eta2
        self.threshold_scale, self.final_bias, self.split = threshold_scale, final_bias, split

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        seeds: int | Sequence[int] = 0,
        validation: Samples | None = None,
        start: Tensor | None = None,
    ) -> PatchNet:
        """Take the two steps; see :class:`striate.theory.learners.Learner`.

        Args:
            x, y, seeds: of the learner. With an odd n the first half has the sample more.
            validation: not used.
            start: initial weights, of the shape of the network's; None draws them.

        Raises:
            InputError: fewer than 2 samples, which cannot be split.
        """
        check_samples(x, y, "TwoStepGD")
        n = x.shape[-3]
        if n < 2:
            raise InputError("x", "TwoStepGD", allowed="2 samples or more, half for each step", got=f"{n} sample")
        net = self._start(x, seeds, start)
        half = n - n // 2
        sets = [(x[..., :half, :, :], y[..., :half]), (x[..., half:, :, :], y[..., half:])]
        first, second = sets if self.split == "halves" else [(x, y), (x, y)]
        return self._steps(net, [first], [second])

    def fit_stream(self, first: Iterable[Samples], second: Iterable[Samples], *, seed: int = 0) -> PatchNet:
        """Take the two steps on samples that come in pieces, which are used and dropped.

        Args:
            first, second: pieces (x (n, k, d), y (n,)) of each half, e.g. ``task.stream(n, seed)``.
            seed: of the initial weights.
        """
        pieces = iter(first)
        head = next(pieces, None)
        if head is None:
            raise InputError("first", "TwoStepGD.fit_stream", allowed="at least one piece", got="none")
        net = self._start(head[0], seed, None)
        return self._steps(net, _chained(head, pieces), second)

    def _start(self, x: Tensor, seeds: int | Sequence[int], start: Tensor | None) -> PatchNet:
        net = blank_net(self.arch, x)
        weight = initial_weight(net, seeds, start, "TwoStepGD")
        net.weight = nn.Parameter(weight / (10 * net.k * net.d) if start is None else weight)
        return net

    @torch.no_grad()
    def _steps(self, net: PatchNet, first: Iterable[Samples], second: Iterable[Samples]) -> PatchNet:
        eta2 = 1000.0 * net.k if self.eta2 is None else self.eta2
        net.bias.fill_(0.0)
        self._step(net, first, self.eta1)
        net.bias.fill_(threshold(net.k, net.d, self.threshold_scale))
        self._step(net, second, eta2)
        net.bias.fill_(self.final_bias)
        return net

    def _step(self, net: PatchNet, pieces: Iterable[Samples], eta: float) -> None:
        total, n = torch.zeros_like(net.weight), 0
        for x, y in pieces:
            total += net.gradient(x.to(net.weight), y.to(net.weight))
            n += x.shape[-3]
        if n == 0:
            raise InputError("second", "TwoStepGD.fit_stream", allowed="at least one piece", got="none")
        net.weight.add_(eta * total / n)
        net.project_()


def _chained(head: Samples, rest: Iterable[Samples]) -> Iterable[Samples]:
    yield head
    yield from rest
