"""Gratings: the orientation of one long wave and the period of one fine carrier together are the class.

A network needs both a receptive field over half of the image and what is finer than three pixels. Phases, the angle of
the carrier, contrast and noise are random, so that no single pixel, and no mean, tells anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["PERIODS", "Gratings", "gratings"]

PERIODS = (2.0, 2.3, 2.6, 3.0)
"""Periods of the carrier, in pixels."""

_WAVE, _CARRIER, _NOISE = 0.2, 0.15, 0.05  # amplitudes, and the noise's deviation


@dataclass(frozen=True)
class Gratings:
    """Images with a class of two factors.

    Attributes:
        images: (N, 1, side, side) float in [0, 1].
        labels: (N,) long in 0 … 7: 4 * orientation + carrier.
        origin: in words.
    """

    images: Tensor
    labels: Tensor
    origin: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def orientations(self) -> Tensor:
        """(N,) long: 0 where the long wave varies from left to right, 1 from top to bottom."""
        return self.labels // len(PERIODS)

    @property
    def carriers(self) -> Tensor:
        """(N,) long: the place of the carrier's period in :data:`PERIODS`."""
        return self.labels % len(PERIODS)


def gratings(n: int, *, side: int = 64, seed: int = 0) -> Gratings:
    """Generate ``n`` images, as many of each class as possible, in random order.

    The long wave has 1 to 1.5 periods over the image; contrasts vary between 0.6 and 1 of the largest.

    >>> gratings(16).labels.bincount().tolist()
    [2, 2, 2, 2, 2, 2, 2, 2]
    """
    if n < 1 or side < 8:
        raise InputError("n, side", "gratings", allowed="n >= 1 and side >= 8", got=(n, side))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n)[torch.randperm(n, generator=generator)] % (2 * len(PERIODS))
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")

    def random(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    along = torch.where((labels // len(PERIODS) == 0)[:, None, None], x, y)
    wave = torch.cos(2 * torch.pi * (random(1.0, 1.5) / side * along + random(0, 1)))
    angle, period = random(0, torch.pi), torch.tensor(PERIODS)[labels % len(PERIODS)][:, None, None]
    across = x * angle.cos() + y * angle.sin()
    carrier = torch.cos(2 * torch.pi * (across / period + random(0, 1)))
    images = 0.5 + _WAVE * random(0.6, 1) * wave + _CARRIER * random(0.6, 1) * carrier
    images = images + _NOISE * torch.randn(n, side, side, generator=generator)
    return Gratings(images.clamp(0, 1)[:, None], labels, f"gratings, {side} x {side}, seed {seed} ({n:,} images)")
