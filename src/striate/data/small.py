"""Small real sets for classification: Fashion-MNIST and scikit-learn's digits."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from striate.engine.packages import find
from striate.errors import DataError, InputError

__all__ = [
    "FASHION_CLASSES",
    "LabelledImages",
    "default_set",
    "digits",
    "fashion_mnist",
    "fashion_mnist_folder",
    "read_idx",
]

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True)
class LabelledImages:
    """Images with a class each.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) long.
        class_names: one per class.
        origin: which set, which part, and where it was read from, in words.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    origin: str

    def __len__(self) -> int:
        return self.images.shape[0]


def default_set(train: bool, source: str = "auto") -> LabelledImages:
    """Return Fashion-MNIST where it is on this machine, else scikit-learn's digits; ``origin`` says which.

    Args:
        train: the training part, else the test part.
        source: ``"auto"``, or ``"fashion-mnist"`` or ``"digits"`` to have that one and no other.
    """
    if source not in {"auto", "fashion-mnist", "digits"}:
        raise InputError("source", "default_set", allowed="auto, fashion-mnist or digits", got=source)
    if source == "digits" or (source == "auto" and fashion_mnist_folder(train) is None):
        return digits(train)
    return fashion_mnist(train)


def fashion_mnist(train: bool, root: str | Path | None = None) -> LabelledImages:
    """Read Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747): 60,000 + 10,000 grey 28 x 28 images.

    Args:
        train: the training part, else the test part.
        root: a folder with the four idx files or a torchvision root; by default the places of the Debian package,
            of Striate's cache and of torchvision (``data`` or ``datasets``, here and in the home folder).

    Raises:
        DataError: not on this machine, or its files are truncated or malformed.
    """
    folder = fashion_mnist_folder(train, root)
    if folder is None and root is not None:
        raise DataError(f"No Fashion-MNIST in {root}: {' and '.join(_files(train))} (or .gz) were looked for.")
    if folder is None:
        raise DataError(
            "Fashion-MNIST is not on this machine. Get it (31 MB, MIT) with: striate data fetch fashion-mnist"
        )
    images, labels = (read_idx(_with_or_without_gz(folder, name)) for name in _files(train))
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or images.dtype != np.uint8:
        raise DataError(
            f"{folder} does not hold Fashion-MNIST: images {images.shape}, labels {labels.shape}, "
            "where (N, 28, 28) and (N,) were expected."
        )
    if labels.size and labels.max() >= len(FASHION_CLASSES):
        raise DataError(f"{folder} does not hold Fashion-MNIST: a label is {labels.max()}, above 9.")
    return LabelledImages(
        torch.from_numpy(images.copy())[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        FASHION_CLASSES,
        f"Fashion-MNIST, {'training' if train else 'test'} part ({len(images):,} images)",
    )


def fashion_mnist_folder(train: bool, root: str | Path | None = None) -> Path | None:
    """Return the folder that :func:`fashion_mnist` would read, or None."""
    if root is not None:
        places = [Path(root), Path(root) / "FashionMNIST" / "raw", Path(root) / "raw"]
    else:
        found = find("fashion-mnist")
        roots = [Path("data"), Path("datasets"), Path.home() / "data", Path.home() / "datasets"]
        places = ([found] if found else []) + [place / "FashionMNIST" / "raw" for place in roots]
    complete = (place for place in places if all(_with_or_without_gz(place, name).is_file() for name in _files(train)))
    return next(complete, None)


def digits(train: bool) -> LabelledImages:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8, in a fixed stratified split of 1,437 and 360.

    The 17 grey levels are stretched to 0 … 255.

    >>> digits(train=False).images.shape
    torch.Size([360, 1, 8, 8])
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    values, labels = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    chosen = np.sort(parts[0] if train else parts[1])
    images = np.round(values[chosen] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return LabelledImages(
        torch.from_numpy(images),
        torch.from_numpy(labels[chosen].astype(np.int64)),
        tuple(str(digit) for digit in range(10)),
        f"scikit-learn digits, {'training' if train else 'test'} part ({len(images):,} images)",
    )


def read_idx(path: str | Path) -> np.ndarray:
    """Read an array in idx format, as it is or gzipped.

    The format: two zero bytes, a type code, the number of dimensions, each size as big-endian uint32, the values.

    Raises:
        DataError: missing, truncated, too long, or not idx.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except EOFError as error:
        raise DataError(f"{path} is truncated: its gzip stream ends early. Fetch it again.") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise DataError(f"{path} is not an idx file: it starts with {content[:4].hex(' ') or 'nothing'}.")
    kind, rank = np.dtype(_TYPES[content[2]]), content[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise DataError(f"{path} is truncated inside its header.")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, 4))
    wanted = header + kind.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(content) != wanted:
        state = "truncated" if len(content) < wanted else "too long"
        raise DataError(f"{path} is {state}: {len(content):,} bytes where shape {shape} needs {wanted:,}.")
    return np.frombuffer(content, kind, offset=header).reshape(shape).astype(kind.newbyteorder("="), copy=False)


def _files(train: bool) -> tuple[str, str]:
    part = "train" if train else "t10k"
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _with_or_without_gz(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"
