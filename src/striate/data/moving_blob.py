"""Clips of a blob that moves one of six ways, which come in pairs: each is another played backwards.

So the frames of a clip, shuffled, say which pair it is of, but not which of the two: that needs the order in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["MOVES", "Clips", "moving_blob"]

MOVES = ("right", "left", "down", "up", "clockwise", "anti-clockwise")
_SIDE, _FRAMES = 32, 8


@dataclass(frozen=True)
class Clips:
    """Short videos with a class each.

    Attributes:
        clips: (N, 1, T, H, W) uint8.
        labels: (N,) long, indices of :data:`MOVES`; ``labels ^ 1`` is the same movement played backwards.
        origin: in words.
    """

    clips: Tensor
    labels: Tensor
    origin: str

    def __len__(self) -> int:
        return len(self.labels)


def moving_blob(n: int, seed: int, *, noise: float = 0.1) -> Clips:
    """Return clips of 8 frames of 32 x 32 pixels; the six movements are equally frequent.

    Args:
        n: clips.
        seed: of everything.
        noise: standard deviation of each frame's own Gaussian noise, in units of the blob's height.

    >>> moving_blob(6, seed=0).clips.shape
    torch.Size([6, 1, 8, 32, 32])
    """
    if n < 1:
        raise InputError("n", "moving_blob", allowed=">= 1", got=n)
    if not noise >= 0:
        raise InputError("noise", "moving_blob", allowed=">= 0", got=noise)
    generator = np.random.default_rng((seed, 4902))
    labels = generator.permutation(np.arange(n) % len(MOVES))
    pair, backwards = labels // 2, labels % 2
    time = np.arange(_FRAMES)
    # (n, T, 2): rows and columns of the blob's centre, of the forward movement of each pair
    places = np.empty((n, _FRAMES, 2))
    speed = generator.uniform(1.5, 2.5, (n, 1))
    along = generator.uniform(5, _SIDE - 5 - 7 * speed[:, 0])[:, None] + speed * time
    across = np.broadcast_to(generator.uniform(5, _SIDE - 5, (n, 1)), along.shape)
    angle = generator.uniform(0, 2 * np.pi, (n, 1)) + generator.uniform(0.4, 0.7, (n, 1)) * time
    radius, centre = generator.uniform(5, 8, (n, 1)), generator.uniform(13, _SIDE - 13, (n, 2))
    places[:, :, 0] = np.choose(pair[:, None], [across, along, centre[:, :1] + radius * np.sin(angle)])
    places[:, :, 1] = np.choose(pair[:, None], [along, across, centre[:, 1:] + radius * np.cos(angle)])
    places = np.where(backwards[:, None, None] == 1, places[:, ::-1], places)
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    squared = (rows - places[..., :1, None]) ** 2 + (columns - places[..., 1:, None]) ** 2
    frames = np.exp(-squared / (2 * 2.0**2)) + generator.normal(0.0, noise, squared.shape)
    return Clips(
        torch.from_numpy(np.clip(64 + 160 * frames, 0, 255).round().astype(np.uint8))[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        f"moving blob, seed {seed} ({n:,} clips of {_FRAMES} frames of {_SIDE} x {_SIDE}, noise {noise:g})",
    )
