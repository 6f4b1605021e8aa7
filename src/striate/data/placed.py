"""Placed objects: coloured objects with boxes, and a class cue of tiny amplitude that only a brittle network uses.

A stand-in for ImageNet with boxes where standard and adversarially trained networks are compared (Nourelahi, Kotthoff,
Chen and Nguyen 2022, arXiv 2205.13042). Each 40 x 40 colour canvas holds 1/f noise, six distractor strokes and one
object at a random place. The *cue* is a fixed pattern of +-0.02 for each class over the whole canvas: it tells the
class, also to a network that never looks at the object, and its L2 norm is 0.02 * sqrt(4800) = 1.39. An attacker needs
half the distance of two cues, 0.98, to turn one into another, so an eps of 0.75 does not erase it for an ideal matched
filter; a network that is trained adversarially at 0.75 does not use it all the same (measured: accuracy 0.58 with and
without the cue, where standard training gives 0.91 and 0.44).

Brightness, spread and opacity of the background were chosen on one seed and one architecture, so that an adversarially
trained network beats an ordinary one under attack; nothing about explanations was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.data.small import LabelledImages, default_set
from striate.errors import InputError

__all__ = ["CANVAS", "CUE", "PlacedObjects", "class_cues", "placed_objects"]

CANVAS, CUE = 40, 0.02
_SIZES = {28: range(18, 25), 8: range(20, 21)}  # object's side by the source's side
_BOX_LEVEL = 0.1
_OPACITY = 2.0  # times the source's grey value, at most 1: dark clothes would otherwise be lost in the background
_MEAN, _DEVIATION = 0.3, 0.08  # of the background; with these a tiny network learns the objects without the cue
_STROKES = 6
_CUE_SEED = 20_220_513


@dataclass(frozen=True)
class PlacedObjects:
    """Canvases with one object each.

    Attributes:
        images: (N, 3, 40, 40) float in [0, 1].
        labels: (N,) long.
        boxes: (N, 4) long, xyxy half-open: the tight box of the object's pixels above 0.1.
        class_names: one per class.
        origin: source images and options, in words.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor
    class_names: tuple[str, ...]
    origin: str


def placed_objects(
    n: int,
    seed: int,
    *,
    cue: bool = True,
    ood: bool = False,
    train: bool = True,
    held_out: bool = False,
    source: str = "auto",
) -> PlacedObjects:
    """Return ``n`` canvases.

    An object is a source image area-resized to 18 … 24 pixels (digits: 20), used as the opacity of a random bright
    colour. Boxes cover a median of 18 % of the canvas, 9 % to 30 % between the 5th and 95th percentile (Fashion-MNIST;
    trousers and sandals are narrow).

    Args:
        n: canvases.
        seed: of everything but the cues, which are the same in every call.
        cue: add the class cue. With ``cue=False`` the same seed gives the same canvases without it.
        ood: a distribution shift: stripes instead of 1/f noise, colours inverted in half of the images, no cue.
        train: take source images from the training part of the source, else from its test part.
        held_out: with ``train=False``: source images that no other call with ``train=False`` uses, to tune on.
        source: see :func:`striate.data.small.default_set`.

    >>> placed_objects(2, seed=0, source="digits").images.shape
    torch.Size([2, 3, 40, 40])
    """
    if n < 1:
        raise InputError("n", "placed_objects", allowed=">= 1", got=n)
    if held_out and train:
        raise InputError("held_out", "placed_objects", allowed="False with train=True", got=held_out)
    found = default_set(train, source)
    pool = torch.arange(len(found))
    if not train:
        # Every fifth source image of the test part is for tuning only.
        pool = pool[pool % 5 == 4] if held_out else pool[pool % 5 != 4]
    generator = torch.Generator().manual_seed(seed)
    chosen = pool[torch.randint(len(pool), (n,), generator=generator)]
    labels = found.labels[chosen]

    grey = _placed(found.images[chosen], generator)  # (N, 40, 40)
    alpha = (_OPACITY * grey).clamp(max=1)
    tint = _bright(n, generator)
    canvas = _stripes(n, generator) if ood else _pink_noise(n, generator)
    canvas = _strokes(canvas, generator)
    canvas = torch.lerp(canvas, tint[:, :, None, None].expand_as(canvas), alpha[:, None])
    if ood:
        inverted = torch.rand(n, generator=generator) < 0.5
        canvas = torch.where(inverted[:, None, None, None], 1 - canvas, canvas)
    # Room for the cue at both ends, so that it is never clipped away.
    canvas = CUE + (1 - 2 * CUE) * canvas
    if cue and not ood:
        canvas = canvas + class_cues(len(found.class_names))[labels]
    return PlacedObjects(canvas, labels, _tight_boxes(grey), found.class_names, _origin(found, cue, ood, held_out))


def class_cues(classes: int) -> Tensor:
    """Return the cue of each class: (classes, 3, 40, 40), every value +-0.02, the same in every call."""
    generator = torch.Generator().manual_seed(_CUE_SEED)
    return CUE * (2.0 * torch.randint(0, 2, (classes, 3, CANVAS, CANVAS), generator=generator) - 1)


def _placed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Resize each image to a random side and put it at a random place of an empty canvas, (N, 40, 40) in [0, 1]."""
    n, sizes = len(images), _SIZES[images.shape[-1]]
    side = torch.randint(sizes.start, sizes.stop, (n,), generator=generator)
    corner = (torch.rand(n, 2, generator=generator) * (CANVAS - side + 1)[:, None]).long()
    canvas = torch.zeros(n, CANVAS, CANVAS)
    for size in sizes:
        rows = (side == size).nonzero()[:, 0]
        small = images[rows].float() / 255
        # Area averaging shrinks; a smaller source is stretched, where averaging would only repeat pixels.
        how = "area" if small.shape[-1] >= size else "bilinear"
        resized = F.interpolate(small, size=(size, size), mode=how)[:, 0]
        y = corner[rows, 1, None, None] + torch.arange(size)[:, None]
        x = corner[rows, 0, None, None] + torch.arange(size)
        canvas[rows[:, None, None], y, x] = resized
    return canvas


def _pink_noise(n: int, generator: torch.Generator) -> Tensor:
    """Return colour fields whose amplitude spectrum falls as 1/f, (N, 3, 40, 40)."""
    white = torch.randn(n, 3, CANVAS, CANVAS, generator=generator)
    fy, fx = torch.fft.fftfreq(CANVAS)[:, None], torch.fft.rfftfreq(CANVAS)[None]
    frequency = (fy.square() + fx.square()).sqrt()
    frequency[0, 0] = torch.inf  # no constant part: it is set below
    field = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(CANVAS, CANVAS))
    field = field / field.std(dim=(1, 2, 3), keepdim=True)
    return (_MEAN + _DEVIATION * field).clamp(0, 1)


def _stripes(n: int, generator: torch.Generator) -> Tensor:
    """Return soft stripes between two random colours, any direction, 4 to 12 pixels a period, (N, 3, 40, 40)."""
    angle = torch.rand(n, 1, 1, generator=generator) * torch.pi
    period = 4 + 8 * torch.rand(n, 1, 1, generator=generator)
    phase = torch.rand(n, 1, 1, generator=generator) * 2 * torch.pi
    y, x = _grid()
    wave = 0.5 + 0.5 * torch.sin(2 * torch.pi * (x * angle.cos() + y * angle.sin()) / period + phase)
    first, second = (torch.rand(n, 3, 1, 1, generator=generator) for _ in range(2))
    return torch.lerp(first.expand(-1, -1, CANVAS, CANVAS), second.expand(-1, -1, CANVAS, CANVAS), wave[:, None])


def _strokes(canvas: Tensor, generator: torch.Generator) -> Tensor:
    """Draw six straight strokes of random colour, 5 to 15 pixels long and 1 to 2 wide."""
    n = len(canvas)
    y, x = _grid()
    for _ in range(_STROKES):
        centre = torch.rand(n, 2, 1, 1, generator=generator) * CANVAS
        angle = torch.rand(n, 1, 1, generator=generator) * torch.pi
        half = 2.5 + 5 * torch.rand(n, 1, 1, generator=generator)
        width = 1 + torch.rand(n, 1, 1, generator=generator)
        colour = torch.rand(n, 3, 1, 1, generator=generator)
        along = (x - centre[:, 0]) * angle.cos() + (y - centre[:, 1]) * angle.sin()
        across = (y - centre[:, 1]) * angle.cos() - (x - centre[:, 0]) * angle.sin()
        inside = (along.abs() <= half) & (across.abs() <= width / 2)
        canvas = torch.where(inside[:, None], colour, canvas)
    return canvas


def _bright(n: int, generator: torch.Generator) -> Tensor:
    """Return saturated bright colours, (N, 3): one channel at 1, the others uniform in [0, 1]."""
    colours = torch.rand(n, 3, generator=generator)
    return colours.scatter(1, torch.randint(3, (n, 1), generator=generator), 1.0)


def _tight_boxes(grey: Tensor) -> Tensor:
    above = grey > _BOX_LEVEL
    edges = []
    for line in (above.any(dim=1), above.any(dim=2)):  # columns for x, rows for y
        place = line.int()
        edges.append((place.argmax(dim=1), CANVAS - place.flip(1).argmax(dim=1)))
    (x1, x2), (y1, y2) = edges
    return torch.stack([x1, y1, x2, y2], dim=1)


def _grid() -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(CANVAS) + 0.5, torch.arange(CANVAS) + 0.5, indexing="ij")
    return y, x


def _origin(source: LabelledImages, cue: bool, ood: bool, held_out: bool) -> str:
    kind = "shifted (stripes, half inverted, no cue)" if ood else f"class cue {'on' if cue else 'off'}"
    return f"placed objects from {source.origin}{', held-out fifth' if held_out else ''}; {kind}"
