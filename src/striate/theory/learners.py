"""What can be trained on samples of two classes: any network, or ridge regression.

A learner has one method, ``fit``. The rules for :class:`striate.models.patch_net.PatchNet` are in
:mod:`striate.theory.two_step` and :mod:`striate.theory.projected`; all can be given to
:func:`striate.theory.sample_complexity.sample_complexity`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.state import mix_seeds, seeded
from striate.engine.train import Recipe, fit
from striate.errors import InputError, ModelError, StriateError
from striate.models.patch_net import Arch, PatchNet

__all__ = [
    "Learner",
    "NetworkLearner",
    "RidgeLearner",
    "Samples",
    "blank_net",
    "check_samples",
    "initial_weight",
    "seeds_of",
]

Samples = tuple[Tensor, Tensor]


class Learner(Protocol):
    """Anything that makes a classifier out of samples."""

    def fit(
        self, x: Tensor, y: Tensor, *, seeds: int | Sequence[int] = 0, validation: Samples | None = None
    ) -> nn.Module:
        """Train on one sample set, or on R side by side.

        Args:
            x: (n, k, d), or (R, n, k, d) for R sets that share nothing.
            y: (n,) or (R, n), -1 and +1.
            seeds: of the initial weights and all else that is random; one a set, or one number, from which R sets
                count upwards. A set's result depends on its own seed alone, not on the others beside it.
            validation: further samples of the same layout, for rules that stop or choose by them.

        Returns:
            A module in eval mode with (m, k, d) -> scores (m,), or (R, m, k, d) -> (R, m); the sign is the answer.
        """
        ...


class NetworkLearner:
    """Any network of two classes, trained by the one training loop.

    Args:
        make_model: returns a fresh network; called under the seed. It takes whatever ``prepare`` makes and returns one
            score an image, (n,) or (n, 1), or two logits (n, 2), the second for y = +1.
        recipe: how to train; its seed is replaced. Default: Adam, 3e-3, batches of 32, cosine.
        steps: optimiser steps at least, whatever n is: the recipe's epochs become as many as that takes, so that what
            is compared is the number of samples and not the length of training. None keeps the recipe's epochs.
        prepare: from patches (n, k, d) to the network's input, e.g. a partial of
            :func:`striate.data.local_signal.patches_to_images`; None leaves them.

    >>> from striate.data.local_signal import DSD
    >>> learner = NetworkLearner(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), steps=10)
    >>> learner.fit(*DSD(3, 4, 0.5).sample(40))(torch.zeros(7, 3, 4)).shape
    torch.Size([7])
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        recipe: Recipe | None = None,
        *,
        steps: int | None = 600,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if isinstance(make_model, nn.Module) or not callable(make_model):
            allowed = "a function that makes a fresh network for every repeat, as its class or 'lambda: …'"
            raise InputError("make_model", "NetworkLearner", allowed=allowed, got=f"a {type(make_model).__name__}")
        if steps is not None and steps < 1:
            raise InputError("steps", "NetworkLearner", allowed=">= 1 or None", got=steps)
        self.make_model, self.steps, self.prepare = make_model, steps, prepare
        self.recipe = recipe or Recipe(epochs=1, batch_size=32, optimizer="adam", lr=3e-3, schedule="cosine")

    def fit(
        self, x: Tensor, y: Tensor, *, seeds: int | Sequence[int] = 0, validation: Samples | None = None
    ) -> nn.Module:
        """Train, one set after the other; see :class:`Learner`. Validation samples are not used."""
        many = check_samples(x, y, "NetworkLearner")
        xs, ys = (x, y) if many else (x[None], y[None])
        chosen = seeds_of(seeds, len(xs))
        trained = [self._fit_one(*one, seed) for one, seed in zip(zip(xs, ys, strict=True), chosen, strict=True)]
        return _SideBySide(trained).eval() if many else trained[0].eval()

    def _fit_one(self, x: Tensor, y: Tensor, seed: int) -> nn.Module:
        with seeded(seed):
            model = _Scored(self.make_model(), self.prepare).to(x.device)
        recipe = dataclasses.replace(self.recipe, seed=seed)
        if self.steps is not None:
            per_epoch = max(1, len(x) // recipe.batch_size)
            recipe = dataclasses.replace(recipe, epochs=math.ceil(self.steps / per_epoch))
        try:
            with torch.enable_grad():  # whoever measures may stand inside torch.no_grad
                fit(model, x, y, recipe, loss=_logistic)
        except StriateError:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ModelError(
                f"{type(model.network).__name__} could not be trained on patches {tuple(x.shape)}: "
                f"{str(error).splitlines()[0]}. 'prepare' of NetworkLearner makes images of them (patches_to_images)."
            ) from error
        return model


class RidgeLearner:
    """Linear least squares with an L2 penalty: the best that a classifier without locality or threshold can be.

    Args:
        penalties: candidates, in units of the mean eigenvalue of X^T X; the one with the best validation accuracy is
            taken, without validation samples the middle one.
    """

    def __init__(self, penalties: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)) -> None:
        if not penalties or min(penalties) <= 0:
            raise InputError("penalties", "RidgeLearner", allowed="one or more numbers > 0", got=tuple(penalties))
        self.penalties = tuple(penalties)

    def fit(
        self, x: Tensor, y: Tensor, *, seeds: int | Sequence[int] = 0, validation: Samples | None = None
    ) -> PatchNet:
        """Solve the normal equations; see :class:`Learner`. Nothing is random."""
        many = check_samples(x, y, "RidgeLearner")
        flat = x.flatten(-2)
        squares, basis = torch.linalg.eigh(flat.mT @ flat)  # once for all penalties
        moment = basis.mT @ (flat.mT @ y[..., None])
        scale = squares.mean(dim=-1, keepdim=True)
        nets = []
        for penalty in self.penalties if validation is not None else self.penalties[len(self.penalties) // 2 :][:1]:
            net = blank_net("fcn", x, hidden=1)
            solved = basis @ (moment / (squares.clamp_min(0) + penalty * scale)[..., None])
            net.weight = nn.Parameter(solved.mT.contiguous())
            nets.append(net)
        if validation is None:
            return nets[0]
        with torch.no_grad():
            right = torch.stack([(net(validation[0]).sign() == validation[1]).sum(dim=-1) for net in nets])
        best = right.argmax(dim=0)
        weights = torch.stack([net.weight.detach() for net in nets])
        nets[0].weight = nn.Parameter(weights[best, torch.arange(len(x), device=x.device)] if many else weights[best])
        return nets[0]


def check_samples(x: Tensor, y: Tensor, owner: str) -> bool:
    """Return whether ``x`` holds several sample sets (R, n, k, d); refuse what is no sample set."""
    if x.dim() not in {3, 4} or not x.is_floating_point() or x.shape[-3] == 0:
        raise InputError("x", owner, allowed="floating point (n, k, d) or (R, n, k, d)", got=f"{tuple(x.shape)}")
    if y.shape != x.shape[:-2] or not bool(((y == 1) | (y == -1)).all()):
        raise InputError("y", owner, allowed=f"-1 or +1, {tuple(x.shape[:-2])}", got=f"{tuple(y.shape)}, {y.unique()}")
    return x.dim() == 4


def seeds_of(seeds: int | Sequence[int], sets: int) -> tuple[int, ...]:
    """Return one seed a set; a single number counts upwards."""
    given = tuple(range(seeds, seeds + sets)) if isinstance(seeds, int) else tuple(seeds)
    if len(given) != sets or min(given) < 0:
        raise InputError("seeds", "fit", allowed=f"one number >= 0, or {sets} of them", got=seeds)
    return given


def blank_net(arch: Arch, x: Tensor, hidden: int | None = None) -> PatchNet:
    """Return a network for samples ``x``, one copy a set, in eval mode; its weights are yet to be put in."""
    with seeded(0):  # the caller's generator stays where it is
        k, d = x.shape[-2:]
        net = PatchNet(arch, k, d, hidden=hidden, copies=len(x) if x.dim() == 4 else None)
    return net.to(x.device, x.dtype).eval()


def initial_weight(net: PatchNet, seeds: int | Sequence[int], start: Tensor | None, owner: str) -> Tensor:
    """Return standard normal weights for ``net``, each copy's from its own seed alone; or ``start``, if it fits."""
    if start is None:
        *_, filters, width = net.weight.shape
        rows = [
            torch.randn(filters, width, generator=torch.Generator().manual_seed(mix_seeds(seed)))
            for seed in seeds_of(seeds, net.copies or 1)
        ]
        start = rows[0] if net.copies is None else torch.stack(rows)
    if start.shape != net.weight.shape:
        raise InputError("start", owner, allowed=f"{tuple(net.weight.shape)}", got=tuple(start.shape))
    return start.to(net.weight).clone()


def _logistic(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return F.softplus(-y * model(x)).mean()


class _Scored(nn.Module):
    """A network with one score an image."""

    def __init__(self, network: nn.Module, prepare: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.network, self.prepare = network, prepare

    def forward(self, x: Tensor) -> Tensor:
        out = self.network(x if self.prepare is None else self.prepare(x))
        if out.shape == (len(x), 2):
            return out[:, 1] - out[:, 0]
        if out.shape not in {(len(x),), (len(x), 1)}:
            wanted = f"a network with one score or two logits an image, ({len(x)},), ({len(x)}, 1) or ({len(x)}, 2)"
            raise InputError("make_model", "NetworkLearner", allowed=wanted, got=tuple(out.shape))
        return out.reshape(len(x))


class _SideBySide(nn.Module):
    """R networks, each with its own samples."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """(R, m, k, d) -> (R, m)."""
        return torch.stack([network(part) for network, part in zip(self.networks, x, strict=True)])
