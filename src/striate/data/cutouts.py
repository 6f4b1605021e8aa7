"""Scenes with exact masks: photographic cut-outs pasted on photographs, ground truth for real networks.

The cut-outs are Tux Paint's stamps (Debian package ``tuxpaint-stamps-default``, GPL-2), read from the machine's own
copy. Those that are drawings, signs, mirror images or nearly transparent are left out. The backgrounds are photographs
without an object of their own. Scenes are split by *source* cut-out, never by rendering, so a network trained on one
part has not seen the objects of the other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from striate.data.embedded import photographs
from striate.engine.packages import find, find_file
from striate.errors import InputError, did_you_mean

__all__ = ["GROUPS", "CutOut", "CutoutScenes", "cutout_scenes", "cutouts"]

GROUPS = ("animals", "food", "hobbies", "household", "plants", "sports", "vehicles")
"""Top folders whose cut-outs are photographs of things; the others hold mostly drawings, signs and planets."""

Part = Literal["all", "train", "test"]

_DROPPED_WORDS = ("cartoon", "mirror", "flip", "symbols")
_DRAWN = {
    "animals/mammals/echidna",
    "animals/mammals/hedgehog",
    "food/pizza",
    "plants/flowers/plastic/chuvanna_plastic_poo",
    "plants/trees/holly_leaves",
    "vehicles/ship/chineseJunk",
    "vehicles/ship/walnutBoat",
}
_MIN_COVER = 0.08  # opaque share of the picture; below it a "cut-out" is a few thin lines or glass
_BACKGROUNDS = ("Blinds", "Dune", "GreenMeadow", "RainDrops", "Storm", "Wood")  # no object of their own
_FALLBACK = ("grass", "brick", "gravel")
_SPLIT_SEED = 0


@dataclass(frozen=True)
class CutOut:
    """One source object.

    Attributes:
        name: its file's name, e.g. ``"koala"``.
        tree: its folders, e.g. ``("animals", "marsupials")``.
        path: RGBA picture.
        size: (width, height) of the picture.
    """

    name: str
    tree: tuple[str, ...]
    path: Path
    size: tuple[int, int]


@dataclass(frozen=True)
class CutoutScenes:
    """Scenes with one object each.

    Attributes:
        images: (N, 3, S, S) float in [0, 1].
        masks: (N, S, S) bool, the pixels that the object covers (opacity of at least one half).
        boxes: (N, 4) long, xyxy half-open: the tight box of the mask.
        names: name of each scene's cut-out.
        trees: folders of each scene's cut-out, for classes at any depth: ``tree[0]`` is the group.
        backgrounds: name of each scene's background.
        origin: which cut-outs and backgrounds, in words.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor
    names: tuple[str, ...]
    trees: tuple[tuple[str, ...], ...]
    backgrounds: tuple[str, ...]
    origin: str


def cutouts(groups: Sequence[str] = GROUPS, *, part: Part = "all", min_side: int = 128) -> list[CutOut]:
    """Return the usable cut-outs on this machine, in a fixed order.

    Args:
        groups: top folders, of :data:`GROUPS`.
        part: ``"train"`` (7 of 10 in each group) or ``"test"`` (the others), or ``"all"``.
        min_side: shortest allowed length of the longer side, in pixels.

    Raises:
        DataError: the cut-outs are not on this machine; how to get them.
    """
    for group in groups:
        if group not in GROUPS:
            hint = did_you_mean(group, GROUPS).strip()
            raise InputError("groups", "cutouts", allowed=f"of {', '.join(GROUPS)}", got=group, hint=hint)
    if part not in {"all", "train", "test"}:
        raise InputError("part", "cutouts", allowed="all, train or test", got=part)
    chosen = []
    for group in groups:
        members = [cutout for cutout in _all(find_file("cut-outs")) if cutout.tree[0] == group]
        # Ranked before min_side is applied, so that the same object is always in the same part.
        rank = np.random.default_rng(_SPLIT_SEED).permutation(len(members)) % 10
        wanted = {"all": rank >= 0, "train": rank < 7, "test": rank >= 7}[part]
        chosen += [c for c, keep in zip(members, wanted, strict=True) if keep and max(c.size) >= min_side]
    return chosen


def cutout_scenes(
    n: int,
    seed: int,
    size: int = 224,
    *,
    groups: Sequence[str] = GROUPS,
    names: Sequence[str] | None = None,
    part: Part = "all",
    area: tuple[float, float] = (0.08, 0.35),
    rotation: tuple[float, float] = (0.0, 0.0),
    centre: tuple[float, float] | None = None,
    min_side: int = 128,
) -> CutoutScenes:
    """Paste one cut-out on each of ``n`` background crops.

    Args:
        n: scenes; every cut-out is used once before any is used again.
        seed: of order, background, area, place and rotation.
        size: S, the scene's side in pixels.
        groups: see :func:`cutouts`.
        names: only these cut-outs.
        part: split by source cut-out, see :func:`cutouts`.
        area: lowest and highest share of the scene that the mask covers, uniform between; a long thin object that
            would stick out is made smaller, and none is enlarged beyond twice its source's size.
        rotation: lowest and highest angle in degrees, counter-clockwise, uniform between.
        centre: (x, y) of the object's box in [0, 1]; moved inwards where the object would stick out. None places
            it anywhere inside.
        min_side: see :func:`cutouts`.

    Raises:
        InputError: an argument is out of range, or nothing is left to choose from.
        DataError: the cut-outs are not on this machine.
    """
    _check(n, size, area, rotation, centre)
    sources = cutouts(groups, part=part, min_side=min_side)
    if names is not None:
        known = {cutout.name for cutout in sources}
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known).strip()
                allowed = "names of cut-outs in this part"
                raise InputError("names", "cutout_scenes", allowed=allowed, got=name, hint=hint)
        sources = [cutout for cutout in sources if cutout.name in set(names)]
    if not sources:
        raise InputError("min_side", "cutout_scenes", allowed="such that a cut-out is left", got=min_side)
    backgrounds, where = _backgrounds()
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(len(sources)) for _ in range(-(-n // len(sources)))])[:n]

    images, masks, used = np.empty((n, size, size, 3), np.uint8), np.empty((n, size, size), bool), []
    for i, index in enumerate(order):
        name, picture = backgrounds[random.integers(len(backgrounds))]
        used.append(name)
        scene = _random_crop(picture, size, random)
        place = random.random(2) if centre is None else None
        stamp = _stamp(_cut(sources[index].path, 2 * size), size, random.uniform(*area), random.uniform(*rotation))
        corner = _corner(stamp.size, size, place, centre)
        layer = Image.new("RGBA", (size, size))
        layer.paste(stamp, corner)
        images[i] = np.asarray(Image.alpha_composite(scene, layer).convert("RGB"))
        masks[i] = np.asarray(layer)[..., 3] >= 128
    found = [sources[index] for index in order]
    part_words = "" if part == "all" else f", {part} part by source"
    return CutoutScenes(
        torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255,
        torch.from_numpy(masks),
        _tight_boxes(masks),
        tuple(cutout.name for cutout in found),
        tuple(cutout.tree for cutout in found),
        tuple(used),
        f"{len(sources)} photographic cut-outs of Tux Paint{part_words}, on {where}",
    )


@functools.cache
def _all(root: Path) -> tuple[CutOut, ...]:
    found = []
    for path in sorted(root.rglob("*.png")):
        inside = path.relative_to(root).with_suffix("").as_posix()
        if any(word in inside.lower() for word in _DROPPED_WORDS) or inside in _DRAWN:
            continue
        with Image.open(path) as picture:
            if not picture.has_transparency_data:
                continue
            opaque = np.asarray(picture.convert("RGBA"))[..., 3] >= 128
        if opaque.mean() >= _MIN_COVER:
            tree = tuple(inside.split("/"))
            found.append(CutOut(tree[-1], tree[:-1], path, (opaque.shape[1], opaque.shape[0])))
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _cut(path: Path, limit: int) -> Image.Image:
    """Return the picture cropped to its visible part, no larger than ``limit``."""
    with Image.open(path) as picture:
        image = picture.convert("RGBA")
    image = image.crop(_visible(image))
    image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    return image


def _visible(image: Image.Image) -> tuple[int, int, int, int] | None:
    return image.getchannel("A").point(lambda alpha: 255 * (alpha >= 8)).getbbox()


@functools.cache
def _backgrounds() -> tuple[list[tuple[str, Image.Image]], str]:
    folder = find("photo-backgrounds")
    if folder is None:
        found = [(photograph.name, photograph.image) for photograph in photographs(_FALLBACK)]
        return found, "scikit-image's grass, brick and gravel (photo-backgrounds is not on this machine)"
    pictures = []
    for name in _BACKGROUNDS:
        with Image.open(folder / f"{name}.jpg") as picture:
            picture.draft("RGB", (1024, 1024))  # decodes at a fraction of the size
            image = picture.convert("RGB")
        image.thumbnail((1024, 1024))
        pictures.append((name, image))
    return pictures, "six nature photographs of MATE without an object of their own"


def _random_crop(picture: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Return a square crop of half to all of the shorter side, resized."""
    side = min(picture.size) * random.uniform(0.5, 1.0)
    left, top = (random.uniform(0, length - side) for length in picture.size)
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box).convert("RGBA")


def _stamp(cut: Image.Image, size: int, area: float, angle: float) -> Image.Image:
    """Rotate and scale a cut-out so that it covers ``area`` of the scene, as far as it fits."""
    if angle:
        cut = cut.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        cut = cut.crop(_visible(cut))
    covered = int((np.asarray(cut)[..., 3] >= 128).sum())
    scale = min(size * (area / covered) ** 0.5, size / max(cut.size), 2.0)
    width, height = (max(1, min(size, round(length * scale))) for length in cut.size)
    return cut.resize((width, height), Image.Resampling.LANCZOS)


def _corner(
    stamp: tuple[int, int], size: int, place: np.ndarray | None, centre: tuple[float, float] | None
) -> tuple[int, int]:
    if place is not None:
        return int(place[0] * (size - stamp[0] + 1)), int(place[1] * (size - stamp[1] + 1))
    x, y = (
        min(max(round(middle * size - length / 2), 0), size - length)
        for middle, length in zip(centre or (0.5, 0.5), stamp, strict=True)
    )
    return x, y


def _tight_boxes(masks: np.ndarray) -> Tensor:
    columns, rows = masks.any(axis=1), masks.any(axis=2)
    first = [edge.argmax(axis=1) for edge in (columns, rows)]
    last = [masks.shape[1] - np.flip(edge, axis=1).argmax(axis=1) for edge in (columns, rows)]
    return torch.from_numpy(np.stack([*first, *last], axis=1))


def _check(
    n: int,
    size: int,
    area: tuple[float, float],
    rotation: tuple[float, float],
    centre: tuple[float, float] | None,
) -> None:
    if n < 1:
        raise InputError("n", "cutout_scenes", allowed=">= 1", got=n)
    if size < 16:
        raise InputError("size", "cutout_scenes", allowed=">= 16", got=size)
    if not 0 < area[0] <= area[1] <= 1:
        raise InputError("area", "cutout_scenes", allowed="0 < low <= high <= 1", got=area)
    if rotation[0] > rotation[1]:
        raise InputError("rotation", "cutout_scenes", allowed="low <= high", got=rotation)
    if centre is not None and not all(0 <= value <= 1 for value in centre):
        raise InputError("centre", "cutout_scenes", allowed="in [0, 1]", got=centre)
