"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels, 10 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Read from the published "python version"
(``cifar-10-batches-py``: ``data_batch_1`` … ``data_batch_5``, ``test_batch``). These files are pickles; they are opened
so that nothing but numpy arrays can be made of them. Unverified against the real files.
"""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from striate.data.small import LabelledImages
from striate.errors import DataError

__all__ = ["CIFAR10_CLASSES", "cifar10"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(root: str | Path, train: bool) -> LabelledImages:
    """Read one part into memory, (N, 3, 32, 32) uint8.

    Args:
        root: the folder ``cifar-10-batches-py``, or the one that holds it.
        train: the training part, else the test part.

    Raises:
        DataError: a file is missing, malformed, or holds more than arrays.
    """
    folder = next((path for path in (Path(root) / "cifar-10-batches-py", Path(root)) if path.is_dir()), Path(root))
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    images, labels = [], []
    for name in names:
        batch = _read(folder / name)
        try:
            pixels = np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32)
            classes = np.asarray(batch[b"labels"], dtype=np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / name} is no batch of CIFAR-10: {type(error).__name__}: {error}.") from error
        if (
            pixels.dtype != np.uint8
            or classes.shape != pixels.shape[:1]
            or not 0 <= classes.min() <= classes.max() <= 9
        ):
            raise DataError(
                f"{folder / name} is no batch of CIFAR-10: {pixels.dtype} {pixels.shape}, labels {classes.shape}."
            )
        images.append(torch.from_numpy(pixels.copy()))
        labels.append(torch.from_numpy(classes))
    part = "training" if train else "test"
    whole = torch.cat(images)
    return LabelledImages(whole, torch.cat(labels), CIFAR10_CLASSES, f"CIFAR-10, {part} part ({len(whole):,} images)")


class _ArraysOnly(pickle.Unpickler):
    """Refuses every global but those of which numpy makes an array."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in {"numpy.core.multiarray", "numpy._core.multiarray"}:
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode
        raise pickle.UnpicklingError(f"it wants to import {module}.{name}")


def _read(path: Path) -> dict[bytes, Any]:
    file: IO[bytes]
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    except FileNotFoundError as error:
        raise DataError(f"There is no {path.name} in {path.parent}; unpack cifar-10-python.tar.gz there.") from error
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise DataError(f"{path} cannot be read as a batch of CIFAR-10: {error or type(error).__name__}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no batch of CIFAR-10: it holds a {type(content).__name__}.")
    return content
