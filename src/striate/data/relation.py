"""Images in which two marks stand far apart, each bright or dark; the question is whether they are alike.

The polarities are two fair coins, independent of each other, of the places and of the noise. So, exactly:

- A window that touches one mark at most says nothing: turning the other mark round turns the answer round. No window of
  ``gap + 1`` pixels or less touches both.
- Nor does any sum of functions of such windows, as of a network whose outputs see no further and are averaged: in the
  polarities a, b = +-1 the sum is c + p a + q b, its mean product with the answer a b is 0, and so by Jensen's
  inequality its cross entropy is log 2 at least, that of a coin. (Three of the four cases can still be put on the right
  side of a threshold, 75 %, but no descent of the loss leads there.)

Bright and dark can be added up wherever they stand: to a network that brings the two places together the answer is the
size of a sum.
"""

from __future__ import annotations

import numpy as np
import torch

from striate.data.small import LabelledImages
from striate.errors import InputError

__all__ = ["relation_images"]

_GREY, _CONTRAST = 128, 80


def relation_images(
    n: int, seed: int, *, size: int | tuple[int, int] = 48, gap: int = 32, mark: int = 4, noise: float = 0.15
) -> LabelledImages:
    """Return grey images of two square marks with label 1 where both are bright or both dark; half of them are.

    Args:
        n: images.
        seed: of everything.
        size: side of the image in pixels, or (height, width).
        gap: least number of pixels between the marks, along rows or along columns; along the longer side of an oblong.
        mark: side of a mark in pixels.
        noise: standard deviation of the Gaussian background; a mark's contrast is 1.

    Returns:
        (n, 1, height, width) uint8 images, 128 where there is nothing.

    >>> relation_images(6, seed=0).labels.sort().values.tolist()
    [0, 0, 0, 1, 1, 1]
    """
    if n < 1 or mark < 1:
        raise InputError("n, mark", "relation_images", allowed=">= 1", got=(n, mark))
    if not noise >= 0:
        raise InputError("noise", "relation_images", allowed=">= 0", got=noise)
    height, width = size if isinstance(size, tuple) else (size, size)
    long, short = max(height, width), min(height, width)
    room = long - 2 * mark - gap
    if gap < 0 or room < 0 or mark > short:
        allowed = f"0 to {long - 2 * mark}, for two marks of {mark} in {height} x {width} pixels"
        raise InputError("gap", "relation_images", allowed=allowed, got=gap)
    generator = np.random.default_rng((seed, 4201))
    labels = generator.permutation(np.arange(n) % 2)
    first = generator.choice([-1, 1], n)
    polarity = np.stack([first, np.where(labels == 1, first, -first)], axis=1)
    near = generator.integers(0, room + 1, n)
    along = np.stack([near, generator.integers(near, room + 1) + mark + gap], axis=1)
    across = generator.integers(0, short - mark + 1, (n, 2))
    upright = generator.choice([False, True], (n, 1)) if height == width else height > width
    rows, columns = np.where(upright, along, across), np.where(upright, across, along)
    pictures = generator.normal(0.0, noise, (n, height, width)).astype(np.float32)
    for picture, *marks in zip(pictures, polarity, rows, columns, strict=True):
        for sign, row, column in zip(*marks, strict=True):
            picture[row : row + mark, column : column + mark] += sign
    grey = np.clip(_GREY + _CONTRAST * pictures, 0, 255).round().astype(np.uint8)
    return LabelledImages(
        torch.from_numpy(grey)[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        ("different", "alike"),
        f"two marks, seed {seed} ({n:,} of {height} x {width}, marks of {mark} at least {gap} apart, noise {noise:g})",
    )
