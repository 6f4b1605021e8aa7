"""A person's images as one tensor: a folder, a file, arrays, or the embedded photographs.

What cannot be read is left out by name, and the rest goes on.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from striate.data.embedded import photographs
from striate.data.labels import Labelling, labels_by_folder, labels_from_csv
from striate.data.picture import MAX_PIXELS, open_picture, picture_suffixes, prepare
from striate.engine.model import Preprocessing
from striate.errors import ImageError, InputError, SkippedWarning, did_you_mean

__all__ = ["MAX_PIXELS", "ImageSet", "Skipped", "open_picture", "prepare", "read_images"]

T = TypeVar("T")

Source = str | Path | Image.Image | Tensor | np.ndarray | Sequence[str | Path | Image.Image]


@dataclass(frozen=True)
class Skipped:
    """A file that was left out.

    Attributes:
        name: relative to the source.
        reason: why, in words.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """Images ready for a model.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        names: one per image: its path relative to the source, or the photograph's name.
        labels: (N,) long, or None.
        class_names: of the labels, where known.
        label_rule: how the labels came about, or why there are none.
        skipped: what was left out, and why.
        notes: by name, what was done to images that are not plain (turned, flattened, …).
        origin: where they come from, in words.
    """

    images: Tensor
    names: tuple[str, ...]
    labels: Tensor | None
    class_names: tuple[str, ...] | None
    label_rule: str
    skipped: tuple[Skipped, ...]
    notes: dict[str, tuple[str, ...]]
    origin: str

    def __len__(self) -> int:
        return len(self.names)


def read_images(
    source: Source,
    preprocessing: Preprocessing,
    labels: str | Path | Sequence[int] | Tensor | None = None,
    limit: int | None = None,
    *,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """Read images and make them a model's input.

    Args:
        source: ``"embedded"`` (the natural ones of :func:`striate.data.embedded.photographs`); a folder, nested in
            any way, links followed; a file; a PIL image; a list of files or PIL images; or an array: a tensor
            (N, C, H, W) or (C, H, W), a numpy array (N, H, W, C) or (H, W, C), uint8 or float in [0, 1].
        preprocessing: of the model.
        labels: for files, a table (see :func:`striate.data.labels.labels_from_csv`); images that it does not list are
            left out. For arrays and lists, one class index an image. By default class folders, where there are any
            (see :func:`striate.data.labels.labels_by_folder`).
        limit: read at most so many, a seeded random sample.
        class_names: of the model, to map folder and table names onto.
        num_classes: of the model, where it is known: labels that cannot be its classes are refused, and folders are
            not taken for classes where their number differs.
        seed: of the sample.

    Raises:
        ImageError: no such folder or file, or nothing in it can be read.
        InputError: an array of another shape or range, labels that do not fit.
        DataError: the table of labels cannot be read or names an unknown class.

    Warns:
        SkippedWarning: files were left out; ``skipped`` lists them all.
    """
    if limit is not None and limit < 1:
        raise InputError("limit", "read_images", allowed=">= 1 or None", got=limit)
    if isinstance(source, Tensor | np.ndarray):
        return _from_array(source, preprocessing, labels, limit, class_names, num_classes, seed)
    known = None if class_names is None else tuple(class_names)
    opened, where = _find(source)
    names = list(opened)
    labelling: Labelling | None
    if isinstance(labels, str | Path):
        labelling = labels_from_csv(labels, names, known, num_classes=num_classes)
        skipped = [Skipped(name, "listed in the labels, but not there") for name in labelling.missing]
        listed = labelling.labels or {}
        skipped += [Skipped(name, "not listed in the labels") for name in names if name not in listed]
        names = [name for name in names if name in listed]
    elif labels is not None:
        by_hand = _index_labels(labels, len(names), num_classes)
        labelling = Labelling(dict(zip(names, by_hand.tolist(), strict=True)), known, "given by the caller")
        skipped = []
    else:
        labelling, skipped = None, []

    order = _sample(len(names), limit, seed)
    images, notes = {}, {}
    wanted = len(names) if limit is None else limit
    with warnings.catch_warnings():  # around the threads, since filters belong to the whole process
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for place, result in _in_order(order, lambda i: _read(opened[names[i]], preprocessing)):
            if isinstance(result, ImageError):
                skipped.append(Skipped(names[place], str(result)))
                continue
            images[place], note = result
            if note:
                notes[names[place]] = note
            if len(images) == wanted:
                break
    kept = sorted(images)
    if not kept:
        first = f" First: {skipped[0].name}: {skipped[0].reason}." if skipped else ""
        raise ImageError(f"{where} holds no image that can be read.{first}")
    skipped.sort(key=lambda item: item.name)
    if skipped:
        named = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        warnings.warn(f"{len(skipped)} files of {where} were left out ({named}{more}).", SkippedWarning, stacklevel=2)
    kept_names = tuple(names[i] for i in kept)
    if labelling is None:
        in_question = _in_question(names, set(kept_names), {item.name for item in skipped})
        labelling = labels_by_folder(in_question, known, num_classes=num_classes)
    found = labelling.labels
    return ImageSet(
        images=torch.stack([images[i] for i in kept]),
        names=kept_names,
        labels=None if found is None else torch.tensor([found[name] for name in kept_names]),
        class_names=labelling.class_names,
        label_rule=labelling.rule,
        skipped=tuple(skipped),
        notes=notes,
        origin=where,
    )


def _in_question(names: Sequence[str], read: set[str], refused: set[str]) -> list[str]:
    """Return the names that class folders are told by: pictures, read or not; no notes or tables beside them."""
    suffixes = picture_suffixes()

    def is_picture(name: str) -> bool:
        suffix = PurePosixPath(name).suffix.lower()
        return name in read or suffix in suffixes or (not suffix and name not in refused)

    return [name for name in names if is_picture(name)]


def _find(source: Source) -> tuple[dict[str, Path | Image.Image], str]:
    """Return what there is by name, nothing opened yet, and where it is in words."""
    if isinstance(source, Image.Image):
        return {"image": source}, "the given image"
    if isinstance(source, str) and source == "embedded":
        found = photographs(natural_only=True)
        return {item.name: item.image for item in found}, "the embedded photographs"
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.is_dir():
            return {file.relative_to(path).as_posix(): file for file in _walk(path)}, str(path)
        if not path.exists() and not path.is_symlink():
            siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            near = did_you_mean(path.name, siblings)
            raise ImageError(f"There is no folder or file {path}.{near} 'embedded' takes the embedded photographs.")
        return {path.name: path}, str(path)
    opened: dict[str, Path | Image.Image] = {}
    for i, item in enumerate(source):
        if isinstance(item, Image.Image):
            opened[f"image {i}"] = item
        elif isinstance(item, str | Path):
            opened[str(item)] = Path(item)
        else:
            raise InputError("source", "read_images", allowed="files or PIL images", got=type(item).__name__)
    return opened, "the given list"


def _walk(folder: Path) -> Iterator[Path]:
    """Yield files below ``folder`` in sorted order, hidden ones left out; links are followed, each folder once."""
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here) / name for name in sorted(files) if not name.startswith("."))


def _read(item: Path | Image.Image, preprocessing: Preprocessing) -> tuple[Tensor, tuple[str, ...]] | ImageError:
    try:
        picture, notes = (item, ()) if isinstance(item, Image.Image) else open_picture(item)
        return prepare(picture, preprocessing), notes
    except ImageError as error:
        return error
    except MemoryError:
        return ImageError("there was not enough memory to open it")


def _in_order(order: Sequence[int], work: Callable[[int], T]) -> Iterator[tuple[int, T]]:
    """Do ``work`` on a few threads (decoding releases the interpreter's lock), results in order."""
    step = 32
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(order), step):
            part = order[start : start + step]
            yield from zip(part, pool.map(work, part), strict=True)


def _sample(n: int, limit: int | None, seed: int) -> list[int]:
    """Return all places, or a random order of them, of which the first readable ``limit`` are taken."""
    if limit is None or limit >= n:
        return list(range(n))
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def _index_labels(labels: Sequence[int] | Tensor, n: int, num_classes: int | None) -> Tensor:
    index = torch.as_tensor(labels)
    if index.shape != (n,) or index.is_floating_point() or index.dtype == torch.bool:
        raise InputError("labels", "read_images", allowed=f"one whole number for each of {n} images", got=labels)
    outside = index[(index < 0) | (index >= (torch.iinfo(torch.int64).max if num_classes is None else num_classes))]
    if outside.numel():
        allowed = ">= 0" if num_classes is None else f"class indices from 0 to {num_classes - 1}"
        raise InputError("labels", "read_images", allowed=allowed, got=int(outside[0]))
    return index.long()


def _from_array(
    source: Tensor | np.ndarray,
    preprocessing: Preprocessing,
    labels: str | Path | Sequence[int] | Tensor | None,
    limit: int | None,
    class_names: Sequence[str] | None,
    num_classes: int | None,
    seed: int,
) -> ImageSet:
    images = _unit_images(source, preprocessing)
    if isinstance(labels, str | Path):
        raise InputError("labels", "read_images", allowed="one class index an image for an array", got="a table")
    index = None if labels is None else _index_labels(labels, len(images), num_classes)
    chosen = sorted(_sample(len(images), limit, seed)[:limit])
    return ImageSet(
        images=_fit_size(images[chosen], preprocessing),
        names=tuple(f"image {i}" for i in chosen),
        labels=None if index is None else index[chosen],
        class_names=None if class_names is None else tuple(class_names),
        label_rule="no labels" if index is None else "given by the caller",
        skipped=(),
        notes={},
        origin="the given array",
    )


def _unit_images(source: Tensor | np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """Return (N, C, H, W) float32 in [0, 1] with the model's channels."""
    # A mirrored array, or one of BGR turned to RGB, has strides that a tensor cannot have.
    values = torch.as_tensor(np.ascontiguousarray(source) if isinstance(source, np.ndarray) else source).detach().cpu()
    if values.dim() == 3:
        values = values[None]
    if isinstance(source, np.ndarray) and values.dim() == 4:
        values = values.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    channels = preprocessing.input_size[0]
    if values.dim() != 4 or 0 in values.shape or values.shape[1] not in {1, 3, channels}:
        allowed = "a tensor (N, C, H, W) or a numpy array (N, H, W, C) with 1 or 3 channels"
        raise InputError("source", "read_images", allowed=allowed, got=tuple(source.shape))
    if values.dtype == torch.uint8:
        values = values.float() / 255
    elif not values.is_floating_point():
        raise InputError("source", "read_images", allowed="uint8, or float in [0, 1]", got=str(values.dtype))
    values = values.float()
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):
        hint = "Divide by 255." if low >= 0 and high > 1 else "Give pixels before normalisation; the model normalises."
        raise InputError("source", "read_images", allowed="in [0, 1]", got=f"{low:g} to {high:g}", hint=hint)
    if values.shape[1] == 1 and channels == 3:
        values = values.expand(-1, 3, -1, -1)
    elif values.shape[1] == 3 and channels == 1:
        values = (values * values.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return values


def _fit_size(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Leave images of the input size alone; resize and crop others as :func:`prepare` does, in float."""
    _, height, width = preprocessing.input_size
    h, w = images.shape[-2:]
    if (h, w) == (height, width):
        return images.contiguous()
    scale = max(round(height / preprocessing.crop) / h, round(width / preprocessing.crop) / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    resized = F.interpolate(images, size=size, mode=preprocessing.interpolation, antialias=True, align_corners=False)
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    return resized[..., top : top + height, left : left + width].clamp(0, 1).contiguous()
