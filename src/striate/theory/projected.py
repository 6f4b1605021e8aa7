"""Projected gradient descent on a patch network, for all three architectures.

Lahoti, Karp, Winston, Singh, Li, ICLR 2024, arXiv 2403.15707, give the two-step rule for the CNN and the LCN and bound
the FCN from below. To *measure* an FCN beside them it takes an algorithm that all three can run and that is still
equivariant: full-batch gradient descent with filters of norm 1. Loss, rates, threshold and stopping are choices made
here, the same for all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from striate.errors import InputError
from striate.models.patch_net import Arch, PatchNet
from striate.theory.learners import Samples, blank_net, check_samples, initial_weight

__all__ = ["ProjectedGD"]


class ProjectedGD:
    """Full-batch gradient descent on softplus(-scale y f), every filter scaled to norm 1 after every step.

    The threshold b rises linearly from 0 and then stays. With validation samples the step with the best accuracy on
    them is kept. The gradient is in closed form, and many sample sets run as one.

    Args:
        arch: ``"cnn"``, ``"lcn"`` or ``"fcn"``.
        steps: gradient steps.
        lr: rate of a CNN; times k for an LCN and an FCN, whose filters each get about 1/k of the gradient.
        bias: the threshold that b rises to; 0.4 suits sigma = 0.25.
        anneal: share of the steps over which it rises.
        scale: of the loss's argument.
        hidden: units of an FCN, default k.
        every: validation accuracy is looked at every so many steps, and after the last.
    """

    def __init__(
        self,
        arch: Arch = "cnn",
        *,
        steps: int = 300,
        lr: float = 0.3,
        bias: float = 0.4,
        anneal: float = 0.3,
        scale: float = 4.0,
        hidden: int | None = None,
        every: int = 10,
    ) -> None:
        limits: dict[str, tuple[Any, bool, str]] = {
            "arch": (arch, arch in {"cnn", "lcn", "fcn"}, "'cnn', 'lcn' or 'fcn'"),
            "steps": (steps, steps >= 1, ">= 1"),
            "lr": (lr, lr > 0, "> 0"),
            "bias": (bias, bias >= 0, ">= 0"),
            "anneal": (anneal, 0 <= anneal <= 1, "in [0, 1]"),
            "scale": (scale, scale > 0, "> 0"),
            "every": (every, every >= 1, ">= 1"),
        }
        for name, (value, held, words) in limits.items():
            if not held:
                raise InputError(name, "ProjectedGD", allowed=words, got=value)
        self.arch, self.steps, self.lr, self.bias, self.anneal = arch, steps, lr, bias, anneal
        self.scale, self.hidden, self.every = scale, hidden, every

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        seeds: int | Sequence[int] = 0,
        validation: Samples | None = None,
        start: Tensor | None = None,
    ) -> PatchNet:
        """Train; see :class:`striate.theory.learners.Learner`.

        Args:
            x, y, seeds: of the learner.
            validation: samples of the same layout for early stopping; None keeps the last step.
            start: initial weights; None draws them at random on the unit sphere.
        """
        check_samples(x, y, "ProjectedGD")
        net = blank_net(self.arch, x, self.hidden)
        net.weight = nn.Parameter(initial_weight(net, seeds, start, "ProjectedGD"))
        net.project_()
        rate = self.lr * (1 if self.arch == "cnn" else net.k)
        best: _Best | None = None if validation is None else _Best(net)
        for step in range(self.steps):
            rise = self.anneal * self.steps
            net.bias.fill_(self.bias * min(1.0, (step + 1) / rise) if rise else self.bias)
            pull = self.scale * y * torch.sigmoid(-self.scale * y * net(x))
            net.weight.add_(rate * net.gradient(x, pull) / x.shape[-3])
            net.project_()
            if best is not None and validation is not None and ((step + 1) % self.every == 0 or step + 1 == self.steps):
                best.look(net, validation)
        return net if best is None else best.put_back(net)


class _Best:
    """Weights and threshold with the highest validation accuracy so far, for every copy by itself."""

    def __init__(self, net: PatchNet) -> None:
        self.weight, self.bias = net.weight.detach().clone(), net.bias.clone()
        self.right = torch.full(net.bias.shape, -1, device=net.bias.device)

    def look(self, net: PatchNet, validation: Samples) -> None:
        right = (net(validation[0]).sign() == validation[1]).sum(dim=-1)
        better = right > self.right
        self.right = torch.where(better, right, self.right)
        self.weight = torch.where(better[..., None, None], net.weight.detach(), self.weight)
        self.bias = torch.where(better, net.bias, self.bias)

    def put_back(self, net: PatchNet) -> PatchNet:
        net.weight.copy_(self.weight)
        net.bias.copy_(self.bias)
        return net
