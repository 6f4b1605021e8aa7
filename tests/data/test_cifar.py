"""CIFAR-10's pickles: what is read, and that nothing but arrays is."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from striate.data.cifar import CIFAR10_CLASSES, cifar10
from striate.errors import DataError


def write(folder: Path, n: int = 3) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        pixels = np.full((n, 3072), i, dtype=np.uint8)
        pixels[:, 1024:2048] = 200
        content = {b"data": pixels, b"labels": [j % 10 for j in range(n)], b"filenames": [b"x"] * n}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def test_both_parts(tmp_path: Path) -> None:
    write(tmp_path / "cifar-10-batches-py")
    train, test = (cifar10(tmp_path, part) for part in (True, False))
    assert train.images.shape == (15, 3, 32, 32)
    assert (test.images[:, 0] == 5).all()
    assert (test.images[:, 1] == 200).all()
    assert train.labels.tolist() == [0, 1, 2] * 5
    assert train.class_names == CIFAR10_CLASSES
    assert len(cifar10(tmp_path / "cifar-10-batches-py", train=False)) == 3


class Evil:
    def __reduce__(self) -> tuple:
        return eval, ("1 + 1",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Evil(), "wants to import"),
        ([1, 2], "holds a list"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "no batch of CIFAR-10"),
        ({b"data": np.zeros((2, 99), np.uint8), b"labels": [0, 1]}, "no batch of CIFAR-10"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 11]}, "no batch of CIFAR-10"),
    ],
)
def test_what_is_no_batch_is_refused(tmp_path: Path, content: object, words: str) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=words):
        cifar10(tmp_path, train=False)


def test_missing_and_truncated_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unpack"):
        cifar10(tmp_path, train=True)
    write(tmp_path / "set")
    path = tmp_path / "set" / "test_batch"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="cannot be read"):
        cifar10(tmp_path / "set", train=False)
