"""Cluttered canvases: a Fashion-MNIST image at a random place of a larger canvas, among scraps of other images.

After the cluttered, translated MNIST of Mnih, Heess, Graves, Kavukcuoglu, "Recurrent Models of Visual Attention", 2014,
arXiv 1406.6247, with clothes for digits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.data.small import LabelledImages, default_set
from striate.errors import InputError

__all__ = ["cluttered_canvases"]

_CANVAS, _OBJECT, _SCRAP, _SCRAPS = 56, 28, 8, 10


def cluttered_canvases(n: int, seed: int, *, train: bool = True, source: str = "auto") -> LabelledImages:
    """Return ``n`` grey canvases, (N, 1, 56, 56) uint8, each with one whole object and ten 8 x 8 scraps.

    Scraps come from training images, whatever the object's part is; where they meet, the brighter pixel stays.

    Args:
        n: canvases.
        seed: of everything.
        train: objects from the training part of the source, else from its test part.
        source: see :func:`striate.data.small.default_set`; digits are stretched to 28 x 28.

    >>> cluttered_canvases(2, seed=0, source="digits").images.shape
    torch.Size([2, 1, 56, 56])
    """
    if n < 1:
        raise InputError("n", "cluttered_canvases", allowed=">= 1", got=n)
    found = default_set(train, source)
    scraps = found if train else default_set(True, source)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(found), (n,), generator=generator)
    canvas = torch.zeros(n, _CANVAS, _CANVAS, dtype=torch.uint8)
    for _ in range(_SCRAPS):
        others = _sized(scraps.images[torch.randint(len(scraps), (n,), generator=generator)])
        _paste(canvas, _windows(others, _SCRAP, generator), generator)
    _paste(canvas, _sized(found.images[chosen]), generator)
    origin = f"cluttered canvases, seed {seed}, from {found.origin}"
    return LabelledImages(canvas[:, None], found.labels[chosen], found.class_names, origin)


def _sized(images: Tensor) -> Tensor:
    """(N, 1, h, w) uint8 -> (N, 28, 28) uint8."""
    if images.shape[-1] == _OBJECT:
        return images[:, 0]
    large = F.interpolate(images.float(), (_OBJECT, _OBJECT), mode="bilinear")
    return large.round().clamp(0, 255).to(torch.uint8)[:, 0]


def _windows(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return a random square of each image, (N, side, side)."""
    y, x = _grid(len(images), side, images.shape[-1], generator)
    return images[torch.arange(len(images))[:, None, None], y, x]


def _paste(canvas: Tensor, pieces: Tensor, generator: torch.Generator) -> None:
    """Put each piece at a random place of its canvas, in place; the brighter pixel stays."""
    y, x = _grid(len(canvas), pieces.shape[-1], _CANVAS, generator)
    rows = torch.arange(len(canvas))[:, None, None]
    canvas[rows, y, x] = torch.maximum(canvas[rows, y, x], pieces)


def _grid(n: int, side: int, room: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    corner = torch.randint(room - side + 1, (2, n, 1, 1), generator=generator)
    line = torch.arange(side)
    return corner[0] + line[:, None], corner[1] + line
