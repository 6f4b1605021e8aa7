"""What theory says of a signal in one of k patches: sample complexities, and the best accuracy there is.

Lahoti, Karp, Winston, Singh, Li, ICLR 2024, arXiv 2403.15707. Of the task :class:`striate.data.local_signal.DSD`, with
sigma of the order of 1 / sqrt(k) at most, up to constants:

    FCN  at least  sigma^2 k^2 d                    for every O(kd)-equivariant algorithm whose final bias is >= 1e-2
    LCN  at least  sigma^2 k d                      for every algorithm equivariant to rotations within patches and
                                                    to permutations of patches
         at most   sigma^2 k (k + d) ln(kd)         by the two-step rule
    CNN  at most   sigma^2 (k + d) ln(kd)           by the two-step rule

The rates of the abstract leave sigma^2 out: at sigma^2 = c / k all of them are smaller by k. Between k (k + d) and k d
there is a gap that the paper leaves open. :func:`theorem_rate` gives these forms, without the constants.

:func:`predicted_cosine` is a calculation for finite sizes, not a theorem: the first step of the two-step rule, and the
second too as long as the threshold keeps nearly all patches, is a mean over h = n / 2 samples of y x. Its part along
w* is w* / k for each filter of an LCN, w* for the CNN's one; its noise has variance sigma^2 / h in each of d
directions, in the CNN's from k patches. So at a fixed sigma the linear rule needs samples in proportion to k^2 d (LCN)
and k d (CNN), and its accuracy is at most Phi(1 / (sigma sqrt(k))).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from striate.errors import InputError
from striate.models.patch_net import Arch

__all__ = ["linear_accuracy", "oracle_accuracy", "predicted_cosine", "predicted_samples", "theorem_rate"]


def theorem_rate(arch: Arch, k: float, d: float, sigma: float, bound: Literal["lower", "upper"] = "lower") -> float:
    """Return the form of a theorem's bound on n, without its constant.

    Args:
        arch: lower bounds are of the LCN and the FCN, upper bounds of the CNN and the LCN.
        k, d, sigma: of the task.
        bound: which.

    >>> theorem_rate("fcn", 10, 20, 0.25) / theorem_rate("lcn", 10, 20, 0.25)
    10.0
    """
    _check(k, sigma)
    if d < 1:
        raise InputError("d", "theorem_rate", allowed=">= 1", got=d)
    log = math.log(k * d)
    forms = {
        ("fcn", "lower"): k * k * d,
        ("lcn", "lower"): k * d,
        ("lcn", "upper"): k * (k + d) * log,
        ("cnn", "upper"): (k + d) * log,
    }
    if (arch, bound) not in forms:
        known = ", ".join(f"{side} of {name}" for name, side in forms)
        raise InputError("arch, bound", "theorem_rate", allowed=f"one of: {known}", got=f"{bound} of {arch}")
    return sigma**2 * forms[arch, bound]


def predicted_cosine(arch: Literal["cnn", "lcn"], n: float, k: int, d: int, sigma: float) -> float:
    """Return the cosine of a filter and w* after the linear two-step rule on n samples: 1 / sqrt(1 + noise / h).

    ``h = n / 2``; the noise is sigma^2 k^2 d for an LCN and sigma^2 k d for a CNN. What chance adds by placing more or
    fewer signals in a patch is left out.

    >>> round(predicted_cosine("cnn", 106, 10, 20, 0.25), 2)
    0.9
    """
    if n <= 0:
        raise InputError("n", "predicted_cosine", allowed="> 0", got=n)
    return 1 / math.sqrt(1 + _noise(arch, k, d, sigma) / (n / 2))


def predicted_samples(arch: Literal["cnn", "lcn"], cosine: float, k: int, d: int, sigma: float) -> float:
    """Return the n at which :func:`predicted_cosine` is ``cosine``.

    >>> round(predicted_samples("lcn", 0.9, 10, 20, 0.25) / 2)
    533
    """
    if not 0 < cosine < 1:
        raise InputError("cosine", "predicted_samples", allowed="between 0 and 1", got=cosine)
    return 2 * _noise(arch, k, d, sigma) * cosine**2 / (1 - cosine**2)


def linear_accuracy(k: int, sigma: float) -> float:
    """Return the accuracy of the best linear rule, Phi(1 / (sigma sqrt(k))).

    >>> round(linear_accuracy(10, 0.25), 3)
    0.897
    """
    _check(k, sigma)
    return float(scipy_stats.norm.cdf(1 / (sigma * math.sqrt(k))))


def oracle_accuracy(k: int, d: int, sigma: float, b: float) -> float:
    """Return the accuracy of the network whose filters are w* itself, at threshold b.

    Computed, not sampled: the k patches' outputs are independent, so that their sum's distribution is a convolution,
    taken on a fine grid (error below 1e-4). An output of exactly 0 counts as wrong.

    Args:
        k: number of patches.
        d: values a patch; it makes no difference, since w* . x_j is one number.
        sigma: deviation of the noise.
        b: threshold >= 0.

    >>> [round(oracle_accuracy(10, 20, 0.25, b), 3) for b in (0.2, 0.4)]
    [0.965, 0.982]
    """
    _check(k, sigma)
    if b < 0 or d < 1:
        raise InputError("b, d", "oracle_accuracy", allowed="b >= 0, d >= 1", got=(b, d))
    half = 2**15
    reach = 1 + 10 * sigma * math.sqrt(k)
    edges = (np.arange(2 * half + 1) - half - 0.5) * reach / half  # bin `half` is around 0
    with_signal, at_zero = _thresholded(edges, 1.0, sigma, b, half)
    noise, noise_at_zero = _thresholded(edges, 0.0, sigma, b, half)
    spectrum = np.fft.rfft(np.roll(with_signal, -half)) * np.fft.rfft(np.roll(noise, -half)) ** (k - 1)
    total = np.roll(np.fft.irfft(spectrum, 2 * half), half)
    tie = at_zero * noise_at_zero ** (k - 1)
    return float(total[half + 1 :].sum() + (total[half] - tie) / 2)


def _thresholded(edges: np.ndarray, mean: float, sigma: float, b: float, zero: int) -> tuple[np.ndarray, float]:
    """Return the distribution of phi_b(mean + sigma z) on the bins, and its atom at 0."""
    cdf = scipy_stats.norm(mean, sigma).cdf
    above, below = np.diff(cdf(np.maximum(edges, 0) + b)), np.diff(cdf(np.minimum(edges, 0) - b))
    atom = float(cdf(b) - cdf(-b))
    probability = above + below
    probability[zero] += atom
    return probability, atom


def _noise(arch: str, k: int, d: int, sigma: float) -> float:
    if arch not in {"cnn", "lcn"}:
        raise InputError("arch", "predicted_cosine", allowed="'cnn' or 'lcn'", got=arch)
    _check(k, sigma)
    return sigma**2 * d * k ** {"cnn": 1, "lcn": 2}[arch]


def _check(k: float, sigma: float) -> None:
    if not k >= 1 or not 0 < sigma < math.inf:
        raise InputError("k, sigma", "theory", allowed="k >= 1, sigma > 0 and finite", got=(k, sigma))
