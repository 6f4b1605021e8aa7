"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their "python version": 50,000 + 10,000 colour images, 32 x 32."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from striate.data.small import LabelledImages
from striate.errors import DataError

__all__ = ["cifar10", "cifar100"]

_FOLDERS = {10: "cifar-10-batches-py", 100: "cifar-100-python"}
_FILES = {
    (10, True): tuple(f"data_batch_{i}" for i in range(1, 6)),
    (10, False): ("test_batch",),
    (100, True): ("train",),
    (100, False): ("test",),
}
_META = {10: ("batches.meta", "label_names", "labels"), 100: ("meta", "fine_label_names", "fine_labels")}


def cifar10(root: str | Path, train: bool) -> LabelledImages:
    """Read CIFAR-10.

    Args:
        root: the folder ``cifar-10-batches-py``, or the one that holds it (torchvision's root).
        train: the 50,000 training images, else the 10,000 test images.

    Raises:
        DataError: not there, damaged, or a pickle with more in it than arrays.
    """
    return _read(Path(root), 10, train)


def cifar100(root: str | Path, train: bool) -> LabelledImages:
    """Read CIFAR-100 with its 100 fine labels from ``cifar-100-python``; see :func:`cifar10`."""
    return _read(Path(root), 100, train)


def _read(root: Path, classes: int, train: bool) -> LabelledImages:
    meta, names_key, labels_key = _META[classes]
    folder = next((place for place in (root, root / _FOLDERS[classes]) if (place / meta).is_file()), None)
    if folder is None:
        raise DataError(f"No CIFAR-{classes} in {root}: {meta} was looked for, there and in {_FOLDERS[classes]}.")
    names = tuple(str(name) for name in _field(folder / meta, names_key))
    images, labels = [], []
    for file in _FILES[classes, train]:
        pixels, numbers = (np.asarray(_field(folder / file, key)) for key in ("data", labels_key))
        if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
            raise DataError(f"{folder / file} does not hold CIFAR labels: {numbers.dtype} {numbers.shape}.")
        if pixels.ndim != 2 or pixels.shape != (len(numbers), 3072) or pixels.dtype != np.uint8:
            raise DataError(f"{folder / file} does not hold CIFAR images: {pixels.dtype} {pixels.shape}.")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
            raise DataError(f"{folder / file} does not hold CIFAR-{classes}: a label is outside 0 to {classes - 1}.")
        images.append(torch.from_numpy(pixels.copy()).view(-1, 3, 32, 32))
        labels.append(torch.from_numpy(numbers.astype(np.int64)))
    part = "training" if train else "test"
    n = sum(map(len, labels))
    return LabelledImages(torch.cat(images), torch.cat(labels), names, f"CIFAR-{classes}, {part} part ({n:,} images)")


class _Arrays(pickle.Unpickler):
    """Opens what the CIFAR files are made of, and imports nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        parts = module.split(".")
        if parts[0] == "numpy" and name in {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to import {module}.{name}")


def _field(path: Path, key: str) -> Any:
    try:
        content = _Arrays(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        return content[key]
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Unpack the whole archive of the python version.") from None
    except KeyError:
        raise DataError(f"{path} has no '{key}': is it a file of the other CIFAR?") from None
    except Exception as error:
        raise DataError(f"{path} cannot be read as a CIFAR file: {error}. Unpack the archive again.") from error
