"""Far-cue images: one small coloured patch decides what every pixel must answer, however far away it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["FarCue", "far_cue"]

_COLOURS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0))


@dataclass(frozen=True)
class FarCue:
    """Images with a dense target.

    Attributes:
        images: (N, 3, side, side) float: noise of deviation 0.1 and one 3 x 3 patch of one of four colours.
        targets: (N, side, side) long: the colour's number at every pixel.
        places: (N, 2) long: row and column of the patch's first pixel.
        origin: in words.
    """

    images: Tensor
    targets: Tensor
    places: Tensor
    origin: str

    def __len__(self) -> int:
        return len(self.images)


def far_cue(n: int, *, side: int = 24, seed: int = 0) -> FarCue:
    """Generate ``n`` images; the patch stands anywhere with equal chance.

    >>> far_cue(5).targets.shape
    torch.Size([5, 24, 24])
    """
    if n < 1 or side < 3:
        raise InputError("n, side", "far_cue", allowed="n >= 1 and side >= 3", got=(n, side))
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.randn(n, 3, side, side, generator=generator)
    colours = torch.randint(len(_COLOURS), (n,), generator=generator)
    places = torch.randint(side - 2, (n, 2), generator=generator)
    table = torch.tensor(_COLOURS)
    for image, colour, (row, column) in zip(images, colours, places.tolist(), strict=True):
        image[:, row : row + 3, column : column + 3] = table[colour][:, None, None]
    targets = colours[:, None, None].expand(-1, side, side).clone()
    return FarCue(images, targets, places, f"far-cue images, {side} x {side}, seed {seed} ({n:,} images)")
