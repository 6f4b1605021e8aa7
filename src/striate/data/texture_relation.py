"""Long images whose class needs a fine texture and a relation of two far marks: one of three, times alike or not.

The marks are those of :mod:`striate.data.relation`, near the two ends: each bright or dark, the question whether they
are alike. Between them a 24 x 24 patch carries a texture of period 4, with the same mean and contrast for each kind.
What that module says of windows that touch one mark at most holds here under every texture: a sum of functions of such
windows knows no more of the relation than a coin.
"""

from __future__ import annotations

import numpy as np
import torch

from striate.data.relation import relation_images
from striate.data.small import LabelledImages
from striate.errors import InputError

__all__ = ["TEXTURES", "texture_relation"]

TEXTURES = ("checker", "stripes", "dots")
_PATCH, _CONTRAST = 24, 12
_TILES = np.array(
    [
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
        [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]],
    ]
)


def texture_relation(
    n: int, seed: int, *, size: tuple[int, int] = (32, 544), gap: int = 487, mark: int = 24, noise: float = 0.05
) -> LabelledImages:
    """Return images with label ``2 * texture + alike``: ``texture`` as in :data:`TEXTURES`, ``alike`` 1 for like marks.

    Textures, marks and places are independent of each other; the six classes are equally frequent.

    Args:
        n: images.
        seed: of everything.
        size: (height, width) in pixels, wider than high.
        gap: least number of pixels between the marks, along rows.
        mark: side of a mark in pixels.
        noise: standard deviation of the Gaussian background; a mark's contrast is 1, a texture's deviation 0.15.

    Returns:
        (n, 1, height, width) uint8 images, 128 where there is nothing.

    >>> texture_relation(6, seed=0).labels.sort().values.tolist()
    [0, 1, 2, 3, 4, 5]
    """
    height, width = size
    ends = width - mark - gap  # how far from an end a mark may reach
    room = width - 2 * ends - _PATCH
    if height >= width or height < _PATCH or room < 0:
        allowed = f"wider than high, with {_PATCH} x {_PATCH} pixels free of marks between the ends"
        raise InputError("size", "texture_relation", allowed=allowed, got=size)
    marks = relation_images(n, seed, size=size, gap=gap, mark=mark, noise=noise)
    generator = np.random.default_rng((seed, 4901))
    alike = marks.labels.numpy()
    textures = np.empty_like(alike)
    for kind in (0, 1):
        chosen = alike == kind
        textures[chosen] = generator.permutation(np.arange(chosen.sum()) % len(TEXTURES))
    tiles = _TILES - _TILES.mean(axis=(1, 2), keepdims=True)
    tiles *= _CONTRAST / tiles.std(axis=(1, 2), keepdims=True)
    pictures = marks.images[:, 0].numpy().astype(np.float32)
    for picture, texture in zip(pictures, textures, strict=True):
        tile = np.roll(tiles[texture], generator.integers(0, 4, 2), axis=(0, 1))
        row, column = generator.integers(0, height - _PATCH + 1), ends + generator.integers(0, room + 1)
        picture[row : row + _PATCH, column : column + _PATCH] += np.tile(tile, (_PATCH // 4, _PATCH // 4))
    grey = np.clip(pictures, 0, 255).round().astype(np.uint8)
    return LabelledImages(
        torch.from_numpy(grey)[:, None],
        torch.from_numpy(2 * textures + alike),
        tuple(f"{texture}, {relation}" for texture in TEXTURES for relation in marks.class_names),
        f"textures of deviation {_CONTRAST} and {marks.origin}",
    )
