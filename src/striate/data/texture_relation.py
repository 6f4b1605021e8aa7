"""Images whose class needs both a fine texture and a relation of two far marks: one of three, times same side or not.

A 24 x 24 patch in the middle band carries a texture of period 4 with the same mean and contrast for each kind. One
mark stands in the top band and one in the bottom band, each on the left or on the right; one mark alone says nothing.
"""

from __future__ import annotations

import numpy as np
import torch

from striate.data.small import LabelledImages
from striate.errors import InputError

__all__ = ["TEXTURES", "texture_relation"]

TEXTURES = ("checker", "stripes", "dots")
_SIDE, _PATCH, _MARK = 48, 24, 4
_TILES = np.array(
    [
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
        [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]],
    ],
    dtype=np.float32,
)


def texture_relation(n: int, seed: int, *, noise: float = 0.15) -> LabelledImages:
    """Return images with label ``2 * texture + same``: ``texture`` as in :data:`TEXTURES`, ``same`` 1 for one side.

    Texture, sides and places are independent of each other; the six classes are equally frequent.

    Args:
        n: images.
        seed: of everything.
        noise: standard deviation of the Gaussian background; a mark's contrast is 1, a texture's 0.25.

    Returns:
        (n, 1, 48, 48) uint8 images.

    >>> texture_relation(6, seed=0).labels.sort().values.tolist()
    [0, 1, 2, 3, 4, 5]
    """
    if n < 1:
        raise InputError("n", "texture_relation", allowed=">= 1", got=n)
    if not noise >= 0:
        raise InputError("noise", "texture_relation", allowed=">= 0", got=noise)
    generator = np.random.default_rng((seed, 4901))
    labels = generator.permutation(np.arange(n) % (2 * len(TEXTURES)))
    tiles = _TILES - _TILES.mean(axis=(1, 2), keepdims=True)
    tiles *= 0.25 / tiles.std(axis=(1, 2), keepdims=True)
    pictures = generator.normal(0.0, noise, (n, _SIDE, _SIDE)).astype(np.float32)
    for i, label in enumerate(labels):
        texture, same = divmod(int(label), 2)
        phase = generator.integers(0, 4, 2)
        patch = np.tile(np.roll(tiles[texture], phase, axis=(0, 1)), (_PATCH // 4, _PATCH // 4))
        column = generator.integers(0, _SIDE - _PATCH + 1)
        pictures[i, 12 : 12 + _PATCH, column : column + _PATCH] += patch
        first = int(generator.integers(0, 2))
        for band, right in ((0, first), (_SIDE - 8, first if same else 1 - first)):
            row = band + generator.integers(0, 8 - _MARK + 1)
            place = right * (_SIDE - 16) + generator.integers(0, 16 - _MARK + 1)
            pictures[i, row : row + _MARK, place : place + _MARK] += 1.0
    grey = np.clip(96 + 127 * pictures, 0, 255).round().astype(np.uint8)
    return LabelledImages(
        torch.from_numpy(grey)[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        tuple(f"{texture}, {relation}" for texture in TEXTURES for relation in ("opposite sides", "same side")),
        f"texture and relation, seed {seed} ({n:,} of {_SIDE} x {_SIDE}, noise {noise:g})",
    )
