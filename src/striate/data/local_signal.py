"""Noisy images of k patches with the label's signal in one of them: worlds in which sample complexity is known.

Lahoti, Karp, Winston, Singh, Li, "Role of Locality and Weight Sharing in Image-Based Tasks: A Sample Complexity
Separation between CNNs, LCNs, and FCNs", ICLR 2024, arXiv 2403.15707.

    y ~ Unif{-1, +1},  t ~ Unif{1 ... k},  x = y mu_t + xi,  xi ~ N(0, sigma^2 I) over all k d pixels,

where mu_t holds the unknown unit vector w* in patch t and zeros elsewhere (DSD); the patch with the signal is noisy
too. In SSD the patch is always the same. :class:`DigitSignal` puts a real handwritten digit in the place of w*.

Sample i of a seed is the same however many are asked for: the first n samples of a larger draw *are* the draw of n, so
that sample sizes are compared on common random numbers.
"""

from __future__ import annotations

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from striate.data.small import digits
from striate.engine.state import mix_seeds
from striate.errors import InputError, StriateWarning

__all__ = ["DSD", "SSD", "DigitSignal", "SignalTask", "patches_to_images"]

_CHUNK = 256  # samples that share one generator
_SIGNAL, _SAMPLES = range(2)  # streams of random numbers


class SignalTask(Protocol):
    """What a task must offer to be measured by :func:`striate.theory.sample_complexity.sample_complexity`."""

    @property
    def k(self) -> int:
        """Number of patches."""
        ...

    @property
    def d(self) -> int:
        """Values a patch."""
        ...

    @property
    def sigma(self) -> float:
        """Deviation of the noise."""
        ...

    @property
    def w(self) -> Tensor | None:
        """The signal (d,), a unit vector; None where there is no single one."""
        ...

    def sample(self, n: int, seed: int = 0, *, train: bool = True) -> tuple[Tensor, Tensor]:
        """Return x (n, k, d) float and y (n,) float of -1 and +1."""
        ...

    def stream(self, n: int, seed: int = 0, *, train: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same samples in pieces, for sets that do not fit into memory."""
        ...


class _Patches(ABC):
    """Noise in k patches and something of a class in one of them."""

    w: Tensor | None = None

    def __init__(self, k: int, d: int, sigma: float) -> None:
        owner = type(self).__name__
        if k < 1 or d < 1:
            raise InputError("k, d", owner, allowed=">= 1", got=(k, d))
        if not 0 < sigma < math.inf:
            raise InputError("sigma", owner, allowed="> 0 and finite", got=sigma)
        self.k, self.d, self.sigma = int(k), int(d), float(sigma)

    def sample(self, n: int, seed: int = 0, *, train: bool = True) -> tuple[Tensor, Tensor]:
        """Draw ``n`` samples on the CPU.

        Args:
            n: >= 1.
            seed: >= 0; the first samples of a seed are always the same.
            train: the training part, else the test part; the two never share a random number.

        Returns:
            x (n, k, d) float32 and y (n,) float32 of -1 and +1.
        """
        xs, ys = zip(*self.stream(n, seed, train=train), strict=True)
        return torch.cat(xs), torch.cat(ys)

    def stream(self, n: int, seed: int = 0, *, train: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the samples of :meth:`sample` in pieces of at most 256."""
        if n < 1:
            raise InputError("n", f"{type(self).__name__}.sample", allowed=">= 1", got=n)
        for chunk, start in enumerate(range(0, n, _CHUNK)):
            generator = torch.Generator().manual_seed(mix_seeds(_SAMPLES, int(train), seed, chunk))
            x = self.sigma * torch.randn(_CHUNK, self.k, self.d, generator=generator)
            y = 2.0 * torch.randint(2, (_CHUNK,), generator=generator) - 1
            x[torch.arange(_CHUNK), self._places(generator)] += self._signals(y, generator, train)
            wanted = min(_CHUNK, n - start)
            yield x[:wanted], y[:wanted]

    def _places(self, generator: torch.Generator) -> Tensor:
        return torch.randint(self.k, (_CHUNK,), generator=generator)

    @abstractmethod
    def _signals(self, y: Tensor, generator: torch.Generator, train: bool) -> Tensor:
        """Return what stands in the chosen patch of each sample, (256, d)."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k}, d={self.d}, sigma={self.sigma:g})"


class DSD(_Patches):
    """Dynamic Signal Distribution: +-w* in one of k patches, anywhere.

    Args:
        k, d: number of patches, and values a patch.
        sigma: deviation of the noise; the theorems assume it of the order of 1 / sqrt(k) at most.
        w: (d,) the signal; normalised, with a warning, if it is no unit vector. None draws one at random, so that it
            lies along no axis.
        seed: of that draw.

    >>> x, y = DSD(k=10, d=20, sigma=0.25).sample(100)
    >>> x.shape, y.unique().tolist()
    (torch.Size([100, 10, 20]), [-1.0, 1.0])
    """

    w: Tensor

    def __init__(self, k: int, d: int, sigma: float, w: Tensor | None = None, seed: int = 0) -> None:
        super().__init__(k, d, sigma)
        if w is None:
            w = torch.randn(d, generator=torch.Generator().manual_seed(mix_seeds(_SIGNAL, seed)))
            w = w / w.norm()
        self.w = _unit(w, d, type(self).__name__)

    def _signals(self, y: Tensor, generator: torch.Generator, train: bool) -> Tensor:
        return y[:, None] * self.w


class SSD(DSD):
    """Static Signal Distribution: as :class:`DSD`, but the signal is always in the same, known patch.

    Args:
        k, d, sigma, w, seed: as of :class:`DSD`.
        patch: where the signal is, 0 … k - 1.
    """

    def __init__(self, k: int, d: int, sigma: float, w: Tensor | None = None, seed: int = 0, *, patch: int = 0) -> None:
        super().__init__(k, d, sigma, w, seed)
        if not 0 <= patch < k:
            raise InputError("patch", "SSD", allowed=f"0 to {k - 1}", got=patch)
        self.patch = patch

    def _places(self, generator: torch.Generator) -> Tensor:
        return torch.full((_CHUNK,), self.patch)


class DigitSignal(_Patches):
    """DSD with real signals: an 8 x 8 handwritten digit of unit norm in one of k patches (d = 64).

    Digits are scikit-learn's, centred to mean 0; the training and the test part share no image.

    Args:
        k: number of patches.
        sigma: deviation of the noise.
        digits: one digit, shown as it is for y = +1 and with its sign flipped for -1; or two, the first for y = +1.
    """

    def __init__(self, k: int, sigma: float, digits: tuple[int, ...] = (3,)) -> None:
        super().__init__(k, 64, sigma)
        if len(digits) not in {1, 2} or len(set(digits)) != len(digits) or not set(digits) <= set(range(10)):
            raise InputError("digits", "DigitSignal", allowed="one digit, or two different ones, 0 to 9", got=digits)
        self.digits = tuple(digits)

    def _signals(self, y: Tensor, generator: torch.Generator, train: bool) -> Tensor:
        draw = torch.rand(len(y), generator=generator)

        def some(digit: int) -> Tensor:
            pool = _digit_patches(digit, train)
            return pool[(draw * len(pool)).long()]

        if len(self.digits) == 1:
            return y[:, None] * some(self.digits[0])
        return torch.where(y[:, None] > 0, some(self.digits[0]), some(self.digits[1]))

    def __repr__(self) -> str:
        return f"DigitSignal(k={self.k}, sigma={self.sigma:g}, digits={self.digits})"


def patches_to_images(x: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Lay patches out as grey images, for networks that take images.

    Args:
        x: (..., k, d) with k = grid rows x columns, d = patch height x width.
        grid: rows and columns of patches.
        patch: height and width of a patch.

    Returns:
        (..., 1, H, W); patch j stands at row j // columns and column j % columns.

    >>> patches_to_images(torch.zeros(5, 6, 64), (2, 3), (8, 8)).shape
    torch.Size([5, 1, 16, 24])
    """
    (rows, columns), (h, w) = grid, patch
    if x.dim() < 2 or x.shape[-2:] != (rows * columns, h * w):
        wanted = f"(..., {rows * columns}, {h * w}), for a grid of {rows} x {columns} patches of {h} x {w}"
        raise InputError("x", "patches_to_images", allowed=wanted, got=tuple(x.shape))
    laid = x.unflatten(-1, (h, w)).unflatten(-3, (rows, columns))  # (..., rows, columns, h, w)
    return laid.transpose(-3, -2).reshape(*x.shape[:-2], 1, rows * h, columns * w)


@functools.cache
def _digit_patches(digit: int, train: bool) -> Tensor:
    part = digits(train)
    flat = part.images[part.labels == digit].flatten(1).float()
    flat = flat - flat.mean(dim=1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True)


def _unit(w: Tensor, d: int, owner: str) -> Tensor:
    w = torch.as_tensor(w, dtype=torch.float32).cpu()
    if w.shape != (d,) or not w.isfinite().all() or not w.any():
        raise InputError("w", owner, allowed=f"{d} finite numbers, not all 0", got=str(w.tolist()))
    norm = w.norm().item()
    if abs(norm - 1) > 1e-4:
        warnings.warn(f"The signal w of {owner} has norm {norm:.4g}; it is scaled to 1.", StriateWarning, stacklevel=4)
        w = w / norm
    return w
