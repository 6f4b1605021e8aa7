"""Images in which two small glyphs stand far apart; the question is whether they are of the same kind.

Either glyph alone says nothing: to answer, a network must bring together two places that no small window sees at once.
"""

from __future__ import annotations

import numpy as np
import torch

from striate.data.small import LabelledImages
from striate.errors import InputError

__all__ = ["GLYPHS", "relation_images"]

_DRAWN = (
    "..##.. ..##.. ###### ###### ..##.. ..##..",
    "#....# .#..#. ..##.. ..##.. .#..#. #....#",
    "###### #....# #....# #....# #....# ######",
    "###### ###### ...... ...... ###### ######",
)
GLYPHS = np.array([[[pixel == "#" for pixel in row] for row in glyph.split()] for glyph in _DRAWN], dtype=np.uint8)
"""(4, 6, 6): plus, cross, square, two bars."""


def relation_images(
    n: int, seed: int, *, size: int = 64, distance: float = 32.0, scale: int = 1, noise: float = 0.15
) -> LabelledImages:
    """Return images of two glyphs on noise, with label 1 where they are of the same kind; half of them are.

    Kinds, labels and places are independent of each other: each kind is equally frequent under both labels.

    Args:
        n: images.
        seed: of everything.
        size: side of the image in pixels.
        distance: least distance of the two glyphs' centres in pixels.
        scale: side in pixels of each of a glyph's 6 x 6 squares.
        noise: standard deviation of the Gaussian background, in units of the glyphs' contrast to it.

    Returns:
        (n, 1, size, size) uint8 images: grey 64, glyphs brighter by 127.
    """
    if n < 1 or scale < 1:
        raise InputError("n, scale", "relation_images", allowed=">= 1", got=(n, scale))
    glyphs = GLYPHS.repeat(scale, axis=1).repeat(scale, axis=2)
    side = glyphs.shape[-1]
    if size < side or not 0 <= distance <= 0.9 * (size - side) * 2**0.5:
        allowed = f"at most {0.9 * max(0, size - side) * 2**0.5:.0f} pixels in an image of {size} x {size}"
        raise InputError("distance", "relation_images", allowed=allowed, got=distance)
    generator = np.random.default_rng((seed, 4201))
    labels = generator.permutation(np.arange(n) % 2)
    first = generator.integers(len(GLYPHS), size=n)
    second = np.where(labels == 1, first, (first + generator.integers(1, len(GLYPHS), size=n)) % len(GLYPHS))
    pictures = generator.normal(0.0, noise, (n, size, size)).astype(np.float32)
    for i in range(n):
        while True:
            places = generator.integers(0, size - side + 1, (2, 2))
            if np.hypot(*(places[0] - places[1])) >= distance:
                break
        for (row, column), kind in zip(places, (first[i], second[i]), strict=True):
            pictures[i, row : row + side, column : column + side] += glyphs[kind]
    grey = np.clip(64 + 127 * pictures, 0, 255).round().astype(np.uint8)
    return LabelledImages(
        torch.from_numpy(grey)[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        ("different", "same"),
        f"relation images, seed {seed} ({n:,} of {size} x {size}, at least {distance:g} pixels apart)",
    )
