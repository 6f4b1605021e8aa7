"""Is a learner equivariant: does it, trained on transformed samples, give the transformed classifier?

Lahoti, Karp, Winston, Singh, Li, ICLR 2024, arXiv 2403.15707: an algorithm is equivariant under a group of orthogonal
matrices U if training on (U x_i, y_i) gives, in distribution, the model x -> f(U^T x). The lower bounds on sample
complexity hold for every such algorithm. Gradient descent from Gaussian weights is equivariant under all rotations of
the whole image (FCN), under rotations within every patch and permutations of patches (LCN), and under one rotation of
all patches and permutations (CNN). Rules that treat coordinates one by one, Adam among them, are not.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from striate.data.local_signal import DSD, SignalTask
from striate.engine.check import Check
from striate.engine.state import mix_seeds
from striate.engine.stats import paired_bootstrap
from striate.errors import InputError
from striate.theory.learners import Learner
from striate.theory.projected import ProjectedGD
from striate.theory.two_step import TwoStepGD

__all__ = ["Group", "Symmetry", "check_equivariance"]

Group = Literal["rotation", "patch rotations", "common rotation", "patch permutation"]


class Symmetry:
    """One random element of a group of orthogonal matrices of the k d pixels.

    Args:
        group: ``"rotation"``: of the whole image; ``"patch rotations"``: another one in every patch; ``"common
            rotation"``: the same in all patches; ``"patch permutation"``.
        k, d: of the task.
        seed: which element.
    """

    def __init__(self, group: Group, k: int, d: int, seed: int = 0) -> None:
        if group not in get_args(Group):
            raise InputError("group", "Symmetry", allowed=f"one of {', '.join(get_args(Group))}", got=group)
        generator = torch.Generator().manual_seed(mix_seeds(seed))
        self.group, self.k, self.d = group, k, d
        self.order = torch.arange(k)  # patch j goes to place order[j]
        self.rotations = torch.eye(d, dtype=torch.float64).expand(k, d, d)
        self.whole: Tensor | None = None
        if group == "rotation":
            self.whole = _rotation(k * d, generator)
        elif group == "patch rotations":
            self.rotations = torch.stack([_rotation(d, generator) for _ in range(k)])
        elif group == "common rotation":
            self.rotations = _rotation(d, generator).expand(k, d, d)
        else:
            self.order = torch.randperm(k, generator=generator)

    def inputs(self, x: Tensor) -> Tensor:
        """Return U x of patches (..., k, d)."""
        if self.whole is not None:
            return (x.flatten(-2) @ self.whole.to(x).mT).unflatten(-1, (self.k, self.d))
        moved = torch.einsum("...kd,ked->...ke", x, self.rotations.to(x))
        return moved[..., self.order.argsort().to(x.device), :]

    def weights(self, arch: str, weight: Tensor) -> Tensor:
        """Return the weights of x -> f(U^T x).

        Where the architecture has none (an LCN under a rotation of the whole image, a CNN under different rotations of
        its patches), the nearest attempt: the first patch's rotation for a CNN, else the weights as they are.
        """
        if arch == "fcn":
            return self.inputs(weight.unflatten(-1, (self.k, self.d))).flatten(-2)
        if self.whole is not None:
            return weight
        if arch == "lcn":
            return self.inputs(weight)
        return weight @ self.rotations[0].to(weight).mT


def check_equivariance(
    learner: Learner,
    group: Group,
    *,
    task: SignalTask | None = None,
    n: int = 64,
    tol: float = 1e-6,
    repeats: int = 10,
    seed: int = 0,
) -> Check:
    """Train on samples and on transformed samples, and compare the classifiers.

    For :class:`TwoStepGD` and :class:`ProjectedGD` the initial weights are transformed too, and outputs must be equal
    in float64. Any other learner is compared in distribution: test accuracy of ``repeats`` pairs of runs, each on
    another group element; passed where the interval of their difference includes 0. That finds large differences only.

    Args:
        learner: what is checked.
        group: see :class:`Symmetry`.
        task: what is learnt; default DSD with k = 4, d = 6, sigma = 0.5. For a learner that may prefer the axes give a
            task whose signal lies along one: a signal at random already hides the difference.
        n: training samples.
        tol: largest difference of outputs, in units of the largest output.
        repeats: of the comparison in distribution.
        seed: of samples, weights and group elements.
    """
    if task is None:
        task = DSD(4, 6, 0.5, seed=seed)
    if repeats < 2:
        raise InputError("repeats", "check_equivariance", allowed=">= 2, as one pair shows no spread", got=repeats)
    if isinstance(learner, TwoStepGD | ProjectedGD):
        return _same_outputs(learner, group, task, n, tol, seed)
    return _same_accuracy(learner, group, task, n, repeats, seed)


def _same_outputs(learner: Any, group: Group, task: SignalTask, n: int, tol: float, seed: int) -> Check:
    symmetry = Symmetry(group, task.k, task.d, seed)
    x, y = (part.double() for part in task.sample(n, seed))
    validation = tuple(part.double() for part in task.sample(200, seed + 1))
    test, _ = (part.double() for part in task.sample(500, seed, train=False))
    start = _start(learner, x, y, seed)
    plain = learner.fit(x, y, start=start, validation=validation)
    moved = learner.fit(
        symmetry.inputs(x),
        y,
        start=symmetry.weights(learner.arch, start),
        validation=(symmetry.inputs(validation[0]), validation[1]),
    )
    with torch.no_grad():
        expected, got = plain(test), moved(symmetry.inputs(test))
    apart = float((got - expected).abs().max() / expected.abs().max())
    name = f"{type(learner).__name__} of a {learner.arch.upper()}"
    words = f"{name} under {group}: outputs differ by {apart:.1e} of the largest (bound {tol:.0e})."
    return Check("equivariance", math.isfinite(apart) and apart <= tol, words, apart, tol)


def _start(learner: Any, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """Return initial weights of the learner's own kind and size."""
    shape = learner.fit(x[:2], y[:2], seeds=seed).weight.shape
    scale = 1 / (10 * x.shape[-2] * x.shape[-1]) if isinstance(learner, TwoStepGD) else 1.0
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(mix_seeds(seed)), dtype=x.dtype)


def _same_accuracy(learner: Learner, group: Group, task: SignalTask, n: int, repeats: int, seed: int) -> Check:
    found: dict[str, list[float]] = {"plain": [], "moved": []}
    for repeat in range(seed, seed + repeats):
        symmetry = Symmetry(group, task.k, task.d, repeat)
        x, y = task.sample(n, repeat)
        validation = task.sample(1_000, repeat + 1_000_003)
        test = task.sample(2_000, repeat, train=False)
        plain = learner.fit(x, y, seeds=repeat, validation=validation)
        moved_validation = symmetry.inputs(validation[0]), validation[1]
        moved = learner.fit(symmetry.inputs(x), y, seeds=repeat, validation=moved_validation)
        found["plain"].append(_accuracy(plain, test[0], test[1]))
        found["moved"].append(_accuracy(moved, symmetry.inputs(test[0]), test[1]))
    gap = paired_bootstrap(found["moved"], found["plain"])
    words = (
        f"{type(learner).__name__} under {group}, in distribution: accuracy moves by {100 * gap.value:+.1f} points "
        f"[{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] over {repeats} pairs."
    )
    return Check("equivariance", not gap.excludes(0.0), words, gap.value)


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).sign() == y).double().mean().item()


def _rotation(size: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()  # uniform over the orthogonal group
