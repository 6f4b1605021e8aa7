"""Canvases with one or two small objects at known places: ground truth for localisation and class discrimination.

A 64 x 64 canvas of low-frequency noise carries 24 x 24 patches of *different* classes in different cells of a 2 x 2
grid. Training and test canvases are made of different source images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.data.small import LabelledImages, default_set
from striate.errors import InputError

__all__ = ["CANVAS", "PATCH", "Mosaic", "single_object_canvas", "two_object_mosaic"]

CANVAS, PATCH = 64, 24
_CELL = CANVAS // 2
_NOISE_GRID, _NOISE_TOP = 8, 0.5  # background: bilinear between 8 x 8 grey values in [0, 0.5]


@dataclass(frozen=True)
class Mosaic:
    """Canvases and what is on them; K is the number of objects.

    Attributes:
        images: (N, 1, 64, 64) float in [0, 1].
        labels: (N, K) long, the class of each object, all different within a canvas.
        boxes: (N, K, 4) long, xyxy half-open: pixels [y1:y2, x1:x2].
        class_names: one per class.
        origin: which source images, in words.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor
    class_names: tuple[str, ...]
    origin: str

    @property
    def multi_hot(self) -> Tensor:
        """(N, classes) float, 1 where the class is on the canvas."""
        return torch.zeros(len(self.labels), len(self.class_names)).scatter_(1, self.labels, 1.0)


def two_object_mosaic(n: int, seed: int, source: str = "auto", *, train: bool = True) -> Mosaic:
    """Return ``n`` canvases with two objects of different classes.

    Each object stands at a random place inside one of four 32 x 32 cells, the other in another cell.

    Args:
        n: canvases.
        seed: of classes, source images, cells, places and background.
        source: ``"auto"``, ``"fashion-mnist"`` or ``"digits"``, see :func:`striate.data.small.default_set`.
        train: take source images from the training part of the source, else from its test part.

    >>> mosaic = two_object_mosaic(3, seed=0, source="digits")
    >>> mosaic.images.shape, mosaic.boxes.shape
    (torch.Size([3, 1, 64, 64]), torch.Size([3, 2, 4]))
    """
    return _canvases(n, 2, seed, default_set(train, source))


def single_object_canvas(n: int, seed: int, source: str = "auto", *, train: bool = True) -> Mosaic:
    """Return ``n`` canvases with one object; arguments as in :func:`two_object_mosaic`."""
    return _canvases(n, 1, seed, default_set(train, source))


def _canvases(n: int, objects: int, seed: int, source: LabelledImages) -> Mosaic:
    if n < 1:
        raise InputError("n", "two_object_mosaic", allowed=">= 1", got=n)
    generator = torch.Generator().manual_seed(seed)
    classes = len(source.class_names)
    # A random order of classes and of cells for each canvas: the first K of each are different by construction.
    labels = torch.rand(n, classes, generator=generator).argsort(dim=1)[:, :objects]
    cells = torch.rand(n, 4, generator=generator).argsort(dim=1)[:, :objects]
    jitter = torch.randint(0, _CELL - PATCH + 1, (n, objects, 2), generator=generator)
    corners = torch.stack([cells % 2, cells // 2], dim=-1) * _CELL + jitter  # (N, K, 2), x then y
    patches = _patches(source.images[_pick(source.labels, labels, generator)])  # (N, K, 24, 24)

    noise = torch.rand(n, 1, _NOISE_GRID, _NOISE_GRID, generator=generator) * _NOISE_TOP
    images = F.interpolate(noise, size=(CANVAS, CANVAS), mode="bilinear", align_corners=False)
    rows = corners[..., 1, None, None] + torch.arange(PATCH)[:, None]  # (N, K, 24, 1)
    columns = corners[..., 0, None, None] + torch.arange(PATCH)  # (N, K, 1, 24)
    images[:, 0][torch.arange(n)[:, None, None, None], rows, columns] = patches
    return Mosaic(images, labels, torch.cat([corners, corners + PATCH], dim=-1), source.class_names, source.origin)


def _pick(source_labels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return, for each wanted label, the index of a random source image of that class."""
    order = source_labels.argsort(stable=True)
    counts = torch.bincount(source_labels)
    starts = counts.cumsum(0) - counts
    place = (torch.rand(labels.shape, generator=generator, dtype=torch.float64) * counts[labels]).long()
    return order[starts[labels] + place]


def _patches(images: Tensor) -> Tensor:
    """Resize (N, K, 1, h, w) uint8 to (N, K, 24, 24) float in [0, 1]."""
    flat = images.flatten(0, 1).float() / 255
    resized = F.interpolate(flat, size=(PATCH, PATCH), mode="bilinear", align_corners=False, antialias=True)
    return resized.clamp(0, 1).unflatten(0, images.shape[:2])[:, :, 0]
