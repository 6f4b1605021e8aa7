"""Gradient maps at the input: Gradient, Input x Gradient, Integrated Gradients, GradientSHAP and SmoothGrad.

Papers: Simonyan, Vedaldi, Zisserman 2013 (arXiv 1312.6034; Gradient); Shrikumar et al. 2016 (arXiv 1605.01713; Input x
Gradient); Sundararajan, Taly, Yan 2017 (arXiv 1703.01365; Integrated Gradients); Lundberg and Lee 2017 (arXiv
1705.07874) and Erion et al. 2019 (arXiv 1906.10670; GradientSHAP, also called expected gradients); Smilkov et al. 2017
(arXiv 1706.03825; SmoothGrad).

All are of the target's score (the logit), evaluated in small batches whatever the number of steps, so that memory does
not grow with it. ``attribute`` returns one map an image, reduced over channels as the method prescribes;
``input_attribution`` returns what stands behind it, signed and per channel.

What differs: GradientSHAP draws its place on the path once in each of n equal parts (stratified), which has the same
expectation and less variance. Random draws belong to the sample's number and are shared by all images, so a map does
not depend on the batch that its image came in. Captum has the same methods and agrees with these to rounding (see the
tests); it is not called, since its Integrated Gradients holds all steps in memory at once by default and rounds its
step sizes to float32, and its GradientSHAP draws from NumPy's global generator.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.errors import InputError
from striate.explain.base import Explainer, RawMap, Target
from striate.explain.batching import Baseline, Copies, as_baseline, pairs, reliability_check
from striate.explain.stem import Stem

_MANY = 8
"""Points on a path from which on it pays to look for its stem, which costs a pass and a half."""

__all__ = ["Gradient", "GradientExplainer", "GradientSHAP", "InputXGradient", "IntegratedGradients", "SmoothGrad"]


@dataclass(frozen=True)
class _Signed:
    """(N, C, H, W) signed attributions with the method's check."""

    values: Tensor
    check: Check
    notes: dict[str, Any] = field(default_factory=dict)


class GradientExplainer(Explainer):
    """Base of the gradient methods: from signed attributions per channel to one map an image.

    Args:
        model: see :class:`Explainer`.
        batch_size: altered copies in one call of the model; None chooses by image size and device.
        seed: see :class:`Explainer`.
        each: gradients an image.
    """

    family = "gradient"

    def __init__(self, model: nn.Module, *, batch_size: int | None = None, seed: int = 0, each: int = 1) -> None:
        super().__init__(model, seed=seed)
        self.batch_size = batch_size
        self._each = each

    def input_attribution(self, inputs: Tensor, target: Target = None) -> Tensor:
        """Return the signed attribution of every input value, (N, C, H, W), before the reduction over channels.

        Args:
            inputs: (N, C, H, W), see :meth:`Explainer.attribute`.
            target: see :data:`striate.explain.base.Target`.
        """
        with self._prepared(inputs) as plain:
            return self._signed(self._copies(plain, target)).values.detach()

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        copies = self._copies(inputs, target)
        signed = self._signed(copies)
        return RawMap(self._reduce(signed.values), copies.target, signed.check, notes=signed.notes)

    def _copies(self, inputs: Tensor, target: Target) -> Copies:
        owner = type(self).__name__
        return Copies.of(self.model, inputs, target, owner, self.batch_size, backward=True, each=self._each)

    @abstractmethod
    def _signed(self, copies: Copies) -> _Signed:
        """Return the signed attribution of every input value."""

    @abstractmethod
    def _reduce(self, values: Tensor) -> Tensor:
        """Return (N, H, W) from (N, C, H, W)."""


class Gradient(GradientExplainer):
    """Gradient of the score; the map is its absolute value, the largest over channels.

    The check compares the gradient's length with the slope measured by a central difference along it.
    """

    name = "gradient"

    def _signed(self, copies: Copies) -> _Signed:
        gradient = _gradient(copies)
        return _Signed(gradient, _slope_check(copies, gradient))

    def _reduce(self, values: Tensor) -> Tensor:
        return values.abs().amax(dim=1)


class InputXGradient(GradientExplainer):
    """Input times gradient; the map is the absolute value of the sum over channels.

    The check is that of :class:`Gradient`. ``notes["completeness"]`` holds the sum of the attributions over the score,
    per image: 1 for a network that is linear along the ray from zero.
    """

    name = "input-x-gradient"

    def _signed(self, copies: Copies) -> _Signed:
        gradient = _gradient(copies)
        values = copies.inputs * gradient
        share = values.flatten(1).sum(dim=1) / copies.own_scores()
        return _Signed(values, _slope_check(copies, gradient), {"completeness": share.tolist()})

    def _reduce(self, values: Tensor) -> Tensor:
        return values.sum(dim=1).abs()


class IntegratedGradients(GradientExplainer):
    """(x - x0) times the mean gradient on the straight path from a baseline x0 to x, by Gauss-Legendre quadrature.

    For as many gradients the rule mostly misses the integral by less than equal steps do: on EfficientNet-Lite0 and six
    photographs, 50 points miss f(x) - f(x0) by 2 to 19 %, 50 midpoints by 6 to 93 %.

    The map is the signed sum over channels, so it sums to f(x) - f(x0): that is the check, within 1 %. Where the
    gradient jumps along the path, as in deep ReLU networks, no rule tried gets there with 50 points, and the miss falls
    unevenly (100 points: 0.2 to 15 %, 200 points: 0.5 to 3 %); ``max_steps`` lets their number grow until the check
    holds. ``notes["steps"]`` says how many were used.

    Args:
        model: see :class:`Explainer`.
        n_steps: points on the path.
        max_steps: while the check fails, start again with twice the points, up to this many; None: ``n_steps`` it is.
        baseline: x0, see :data:`striate.explain.batching.Baseline`.
        batch_size: path points in one call of the model; None chooses by image size and device.

    >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    >>> result = IntegratedGradients(linear, n_steps=1).attribute(torch.rand(1, 3, 2, 2), target=0)
    >>> result.check.passed
    True
    """

    name = "integrated-gradients"

    def __init__(
        self,
        model: nn.Module,
        *,
        n_steps: int = 50,
        max_steps: int | None = None,
        baseline: Baseline = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, batch_size=batch_size, seed=seed, each=n_steps)
        self.n_steps = _at_least_one("n_steps", n_steps, type(self).__name__)
        if max_steps is not None and max_steps < n_steps:
            raise InputError("max_steps", type(self).__name__, allowed=f"n_steps ({n_steps}) or more", got=max_steps)
        self.max_steps = max_steps
        self.baseline = baseline

    def _signed(self, copies: Copies) -> _Signed:
        baseline = as_baseline(self.baseline, copies.inputs, type(self).__name__, self.model).expand_as(copies.inputs)
        with torch.no_grad():
            answers = copies.answers(baseline)
        difference = copies.own_scores() - copies.score(answers, copies.every)
        paths = [Stem(copies, images, baseline[images]) for images in copies.every.split(copies.batch)]
        if self.n_steps >= _MANY:
            paths = [path.below(answers[path.images]) for path in paths]
        steps, most = self.n_steps, self.max_steps or self.n_steps
        while True:
            values = (copies.inputs - baseline) * torch.cat([_mean_on_path(path, steps) for path in paths])
            check = _completeness(values, difference, steps)
            if check.passed or steps == most:
                return _Signed(values, check, {"steps": steps, "score_difference": difference.tolist()})
            steps = min(2 * steps, most)

    def _reduce(self, values: Tensor) -> Tensor:
        return values.sum(dim=1)


def _mean_on_path(path: Stem, steps: int) -> Tensor:
    """Return the mean gradient on the paths, (n, C, H, W), by ``steps`` points on each."""
    copies, (start, end) = path.copies, path.ends()
    places, shares = (values.to(start) for values in _gauss_legendre(steps))
    total = torch.zeros_like(start, dtype=torch.promote_types(start.dtype, torch.float32))
    for step, row in pairs(steps, len(start), copies.batch, start.device):
        points = torch.lerp(copies.pick(start, row), copies.pick(end, row), places[step].view(-1, 1, 1, 1))
        gradients = path.gradients(points, path.images[row], shares[step])
        for image, gradient in zip(row.tolist(), gradients, strict=True):
            total[image] += gradient  # index_add_ takes ten times as long on channels-last tensors
    return path.at_pixels(total / steps)


def _completeness(values: Tensor, difference: Tensor, steps: int) -> Check:
    residual = (values.flatten(1).sum(dim=1) - difference).abs()
    # A difference that is rounding itself cannot be held to 1 % of itself.
    noise = 1e-5 * values.flatten(1).abs().sum(dim=1)
    ratio = float((residual / difference.abs().clamp_min(torch.finfo(values.dtype).tiny)).max())
    value = float(torch.where(residual <= noise, 0.0, residual / difference.abs()).max())
    passed = value <= 0.01
    advice = "" if passed else " More steps (n_steps; max_steps to have as many as it takes) bring it down."
    return Check(
        "completeness",
        passed,
        f"With {steps} steps the attributions miss f(x) - f(baseline) by {ratio:.2%} at most (allowed: 1%).{advice}",
        value,
        0.01,
    )


class GradientSHAP(GradientExplainer):
    """Expected gradients: the mean of (x - b) times the gradient at a random point between b and x, over baselines b.

    Each sample draws a baseline from the pool and adds Gaussian noise to it. The map is the signed sum over channels.

    The check is completeness in expectation: over the drawn baselines the attributions have to sum to
    mean(f(x) - f(b)), within three standard errors of the draw; ``notes["relative_error"]`` says how large
    the miss is against that difference.

    Args:
        model: see :class:`Explainer`.
        n_samples: gradients an image.
        baselines: the pool, (M, C, H, W); None is the one neutral image of
            :data:`striate.explain.batching.Baseline`.
        sigma: standard deviation of the noise added to baselines, as a share of each image's range (max - min).
        batch_size: points in one call of the model; None chooses by image size and device.
        seed: fixes baselines, noise and places.
    """

    name = "gradient-shap"

    def __init__(
        self,
        model: nn.Module,
        *,
        n_samples: int = 50,
        baselines: Tensor | None = None,
        sigma: float = 0.15,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, batch_size=batch_size, seed=seed, each=n_samples)
        self.n_samples = _at_least_one("n_samples", n_samples, type(self).__name__)
        self.sigma = _not_negative("sigma", sigma, type(self).__name__)
        self.baselines = baselines

    def places(self) -> Tensor:
        """Return where on its path each sample lies, (n_samples,) in [0, 1): 0 is the baseline, 1 the image."""
        generator = torch.Generator().manual_seed(self.seed)
        jitter = torch.rand(self.n_samples, generator=generator, dtype=torch.float64)
        return (torch.arange(self.n_samples) + jitter) / self.n_samples

    def draw_baselines(self, inputs: Tensor, sample: Tensor, image: Tensor) -> Tensor:
        """Return the baselines of samples ``sample`` (b,) for the images ``image`` (b,), as (b, C, H, W)."""
        pool = self._pool(inputs)
        generator = torch.Generator().manual_seed(self.seed + 1)
        choice = torch.randint(pool.shape[0], (self.n_samples,), generator=generator).to(inputs.device)
        drawn = pool[choice[sample]]
        if self.sigma == 0:
            return drawn
        return drawn + self.sigma * _range(inputs)[image] * _noise(inputs, sample, self.n_samples, self.seed)

    def _pool(self, inputs: Tensor) -> Tensor:
        if self.baselines is None:
            return as_baseline(None, inputs, type(self).__name__, self.model)
        pool = self.baselines.detach().to(inputs)
        if pool.dim() != 4 or pool.shape[0] == 0 or pool.shape[1:] != inputs.shape[1:]:
            allowed = f"(M, {', '.join(map(str, inputs.shape[1:]))})"
            raise InputError("baselines", type(self).__name__, allowed=allowed, got=tuple(pool.shape))
        return pool

    def _signed(self, copies: Copies) -> _Signed:
        inputs, n = copies.inputs, copies.inputs.shape[0]
        places = self.places().to(inputs.device, inputs.dtype)
        differences = inputs.new_zeros(self.n_samples, n)  # f(x) - f(b)
        sums = inputs.new_zeros(self.n_samples, n)  # sum of one sample's attributions
        own = copies.own_scores()

        def between(sample: Tensor, image: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            baseline = self.draw_baselines(inputs, sample, image)
            differences[sample, image] = (own[image] - copies.scores(baseline, image)).to(inputs.dtype)

            def weigh(gradient: Tensor) -> Tensor:
                part = (inputs[image] - baseline) * gradient
                sums[sample, image] = part.flatten(1).sum(dim=1)
                return part

            return torch.lerp(baseline, inputs[image], places[sample].view(-1, 1, 1, 1)), weigh

        values = _mean_over_samples(copies, self.n_samples, between)[0]
        return _Signed(values, *_expectation_check(sums, differences))

    def _reduce(self, values: Tensor) -> Tensor:
        return values.sum(dim=1)


class SmoothGrad(GradientExplainer):
    """Mean gradient over noisy copies of the image; the map is its absolute value, the largest over channels.

    The check is the map's reliability: the maps of two halves of the samples are correlated (r, the worst image), and
    2r / (1 + r) is what the whole map would correlate with another run's.

    Args:
        model: see :class:`Explainer`.
        n_samples: noisy copies an image.
        sigma: standard deviation of the noise as a share of each image's range (max - min).
        batch_size: copies in one call of the model; None chooses by image size and device.
        seed: fixes the noise.
    """

    name = "smoothgrad"

    def __init__(
        self,
        model: nn.Module,
        *,
        n_samples: int = 50,
        sigma: float = 0.15,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, batch_size=batch_size, seed=seed, each=n_samples)
        self.n_samples = _at_least_one("n_samples", n_samples, type(self).__name__)
        self.sigma = _not_negative("sigma", sigma, type(self).__name__)

    def _signed(self, copies: Copies) -> _Signed:
        inputs, spread = copies.inputs, self.sigma * _range(copies.inputs)

        def noisy(sample: Tensor, image: Tensor) -> tuple[Tensor, None]:
            return inputs[image] + spread[image] * _noise(inputs, sample, self.n_samples, self.seed), None

        halves = _mean_over_samples(copies, self.n_samples, noisy, groups=min(2, self.n_samples))
        values = torch.lerp(halves[0], halves[-1], (self.n_samples // 2) / self.n_samples)
        check = reliability_check(*(self._reduce(half) for half in halves)) if len(halves) == 2 else _one_sample()
        return _Signed(values, check)

    def _reduce(self, values: Tensor) -> Tensor:
        return values.abs().amax(dim=1)


def _mean_over_samples(
    copies: Copies,
    n_samples: int,
    draw: Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Tensor], Tensor] | None]],
    groups: int = 1,
) -> Tensor:
    """Return the mean over samples of the (weighed) gradient, (groups, N, C, H, W); sample k counts to k mod groups.

    Args:
        copies: model and images.
        n_samples: samples an image.
        draw: ``(sample, image)`` indices (b,) -> points (b, C, H, W) and what turns gradients there into summands.
        groups: separate means.
    """
    inputs, n = copies.inputs, copies.inputs.shape[0]
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    total = torch.zeros(groups * n, *inputs.shape[1:], dtype=dtype, device=inputs.device)
    for sample, image in pairs(n_samples, n, copies.batch, inputs.device):
        points, weigh = draw(sample, image)
        gradient = copies.gradients(points, image)
        part = gradient if weigh is None else weigh(gradient)
        total.index_add_(0, (sample % groups) * n + image, part.to(dtype))
    counts = torch.tensor([len(range(group, n_samples, groups)) for group in range(groups)], device=inputs.device)
    return total.view(groups, n, *inputs.shape[1:]) / counts.view(-1, 1, 1, 1, 1)


def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Return n places in (0, 1) and their weights, whose mean is 1; float64."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights * (n / 2))


def _gradient(copies: Copies) -> Tensor:
    inputs = copies.inputs
    return _mean_over_samples(copies, 1, lambda sample, image: (inputs[image], None))[0]


def _slope_check(copies: Copies, gradient: Tensor) -> Check:
    """Compare |gradient| with the slope along it: (f(x + h u) - f(x - h u)) / 2h with u = gradient / |gradient|."""
    name, bound = "finite-difference", 0.1
    length = gradient.flatten(1).norm(dim=1)
    if (length == 0).any():
        which = torch.nonzero(length == 0)[:, 0].tolist()
        return Check(name, False, f"The gradient is zero everywhere for image {which}: the score is flat there.")
    if torch.finfo(copies.logits.dtype).eps > 1e-6 or _answers_in_half(copies):
        return Check(name, None, "Scores in half precision are too coarse for a finite difference.")
    # A step that moves the score by a five-hundredth of its scale: well above rounding, below most kinks.
    scale = torch.maximum(copies.logits.std(dim=1, correction=0), copies.own_scores().abs())
    step = 0.002 * scale / length
    direction = gradient / length.view(-1, 1, 1, 1)
    moved = (step.view(-1, 1, 1, 1) * direction).to(copies.inputs.dtype)
    up, down = (copies.scores(copies.inputs + sign * moved, copies.every) for sign in (1, -1))
    error = float((((up - down) / (2 * step) - length).abs() / length).max())
    statement = f"The slope measured along the gradient differs from its length by {error:.1%} at most (allowed: 10%)."
    return Check(name, error <= bound, statement, error, bound)


def _answers_in_half(copies: Copies) -> bool:
    return torch.is_autocast_enabled(copies.inputs.device.type) or copies.inputs.dtype in {
        torch.float16,
        torch.bfloat16,
    }


def _expectation_check(sums: Tensor, differences: Tensor) -> tuple[Check, dict[str, Any]]:
    """Judge E[sum of attributions] = E[f(x) - f(b)] over samples: both (n_samples, N)."""
    name, bound = "expected completeness", 3.0
    miss = (sums - differences).double()
    n = miss.shape[0]
    relative = miss.mean(dim=0).abs() / differences.double().mean(dim=0).abs().clamp_min(1e-12)
    notes = {"relative_error": relative.tolist(), "score_difference": differences.mean(dim=0).tolist()}
    if n < 2:
        return Check(name, None, "One sample has no standard error.", None, bound), notes
    rounding = 1e-5 * (sums.abs() + differences.abs()).double().mean(dim=0)
    error = miss.std(dim=0) / n**0.5
    value = float((miss.mean(dim=0).abs() / torch.maximum(error, rounding).clamp_min(1e-300)).max())
    statement = (
        f"Over {n} samples the attributions miss mean f(x) - f(baseline) by {float(relative.max()):.1%} at most: "
        f"{value:.1f} standard errors of the draw (allowed: {bound:.0f})."
    )
    return Check(name, value <= bound, statement, value, bound), notes


def _noise(inputs: Tensor, sample: Tensor, n_samples: int, seed: int) -> Tensor:
    """Return standard normal noise for samples ``sample`` (b,): (b, C, H, W); sample k's noise is always the same."""
    seeds = torch.randint(2**62, (n_samples,), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn: dict[int, Tensor] = {}
    for k in sample.tolist():
        if k not in drawn:
            generator = torch.Generator().manual_seed(seeds[k])
            drawn[k] = torch.randn(inputs.shape[1:], generator=generator)
    return torch.stack([drawn[k] for k in sample.tolist()]).to(inputs)


def _range(inputs: Tensor) -> Tensor:
    """Return max - min of each image, (N, 1, 1, 1)."""
    return inputs.amax(dim=(1, 2, 3), keepdim=True) - inputs.amin(dim=(1, 2, 3), keepdim=True)


def _one_sample() -> Check:
    return Check("split-half", None, "One sample has no halves to compare.", None, 0.7)


def _at_least_one(name: str, value: int, owner: str) -> int:
    if value < 1:
        raise InputError(name, owner, allowed=">= 1", got=value)
    return value


def _not_negative(name: str, value: float, owner: str) -> float:
    if not value >= 0:
        raise InputError(name, owner, allowed=">= 0", got=value)
    return value
