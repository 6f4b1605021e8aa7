"""Salient rings: what tells the class is one small disc at a random place, among clutter and beside a decoy.

A stand-in for fine-grained sets, where the deciding part is small and moves about (as the dogs of Salajegheh et al.
2023, arXiv 2311.12091). Each 48 x 48 colour canvas holds noise, random strokes, a *disc* whose concentric rings carry
the class (one of four periods in one of two colour pairs), and a *decoy*: a square with concentric squares that
carries the code of another class. Disc and decoy do not overlap. Masks of both are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["SalientRings", "salient_rings"]

_CANVAS = 48
_PERIODS = (2.5, 4.0, 6.0, 10.0)  # pixels
_PAIRS = (((0.9, 0.25, 0.2), (0.1, 0.15, 0.6)), ((0.25, 0.8, 0.25), (0.6, 0.1, 0.55)))
_NAMES = tuple(f"period {period:g}, {pair}" for pair in ("red/blue", "green/violet") for period in _PERIODS)
_STROKES = 10
_CANDIDATES = 64  # places tried for the decoy


@dataclass(frozen=True)
class SalientRings:
    """Canvases with one disc and one decoy each.

    Attributes:
        images: (N, 3, 48, 48) float in [0, 1].
        labels: (N,) long, 8 classes.
        masks: (N, 48, 48) bool, the disc; about 3 % of the canvas.
        decoys: (N, 48, 48) bool, the square with another class's code.
        class_names: one per class.
        origin: in words.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    decoys: Tensor
    class_names: tuple[str, ...]
    origin: str


def salient_rings(n: int, seed: int) -> SalientRings:
    """Return ``n`` canvases.

    Discs have a radius of 5 to 7 pixels, decoys half a side of 5 to 7.

    Args:
        n: canvases.
        seed: of everything.

    >>> salient_rings(2, seed=0).images.shape
    torch.Size([2, 3, 48, 48])
    """
    if n < 1:
        raise InputError("n", "salient_rings", allowed=">= 1", got=n)
    generator = torch.Generator().manual_seed(seed)
    classes = len(_NAMES)
    labels = torch.randint(classes, (n,), generator=generator)
    others = (labels + torch.randint(1, classes, (n,), generator=generator)) % classes
    radius, half = (5 + 2 * torch.rand(n, generator=generator) for _ in range(2))
    centre = _places(radius[:, None], 1, generator)[:, 0]
    decoy = _apart(centre, radius, half, generator)

    dy, dx = _from(centre)
    distance = torch.hypot(dy, dx)
    masks = distance <= radius[:, None, None]
    ey, ex = _from(decoy)
    ring = torch.maximum(ey.abs(), ex.abs())
    decoys = ring <= half[:, None, None]

    canvas = _strokes(0.45 + 0.12 * torch.randn(n, 3, _CANVAS, _CANVAS, generator=generator), generator)
    canvas = torch.where(decoys[:, None], _pattern(ring, others), canvas)
    canvas = torch.where(masks[:, None], _pattern(distance, labels), canvas)
    canvas = canvas + 0.05 * torch.randn(canvas.shape, generator=generator)
    return SalientRings(
        canvas.clamp(0, 1), labels, masks, decoys, _NAMES, f"salient rings, {n:,} canvases, seed {seed}"
    )


def _pattern(distance: Tensor, codes: Tensor) -> Tensor:
    """(N, H, W) distances in pixels and (N,) codes -> (N, 3, H, W) rings between the two colours of the code."""
    period = torch.tensor(_PERIODS)[codes % len(_PERIODS), None, None]
    first, second = torch.tensor(_PAIRS)[codes // len(_PERIODS)].unbind(dim=1)
    wave = 0.5 + 0.5 * torch.cos(2 * torch.pi * distance / period)
    return torch.lerp(first[:, :, None, None], second[:, :, None, None], wave[:, None])


def _places(margin: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return centres (N, count, 2), y x, at least ``margin`` (N, 1) from the border."""
    share = torch.rand(len(margin), count, 2, generator=generator)
    return margin[:, None] + share * (_CANVAS - 2 * margin[:, None])


def _apart(centre: Tensor, radius: Tensor, half: Tensor, generator: torch.Generator) -> Tensor:
    """Return centres (N, 2) of the decoys: the first of many places that is clear of the disc."""
    places = _places(half[:, None], _CANDIDATES, generator)
    gap = (places - centre[:, None]).abs().amax(dim=2) - (radius + half)[:, None]
    clear = gap > 0
    # In the one case in 10^20 that none is clear, the farthest.
    chosen = torch.where(clear.any(dim=1), clear.int().argmax(dim=1), gap.argmax(dim=1))
    return places[torch.arange(len(places)), chosen]


def _from(centre: Tensor) -> tuple[Tensor, Tensor]:
    line = torch.arange(_CANVAS) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y - centre[:, 0, None, None], x - centre[:, 1, None, None]


def _strokes(canvas: Tensor, generator: torch.Generator) -> Tensor:
    """Draw straight strokes of random colour, 6 to 20 pixels long and 1 to 3 wide."""
    n = len(canvas)
    for _ in range(_STROKES):
        dy, dx = _from(torch.rand(n, 2, generator=generator) * _CANVAS)
        angle = torch.rand(n, 1, 1, generator=generator) * torch.pi
        half = 3 + 7 * torch.rand(n, 1, 1, generator=generator)
        width = 1 + 2 * torch.rand(n, 1, 1, generator=generator)
        colour = torch.rand(n, 3, 1, 1, generator=generator)
        along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        canvas = torch.where(((along.abs() <= half) & (across.abs() <= width / 2))[:, None], colour, canvas)
    return canvas
