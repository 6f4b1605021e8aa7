"""The reader of CIFAR's own files: right pixels, and no code from a pickle."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from striate.data.cifar import cifar10, cifar100
from striate.errors import DataError


def dump(path: Path, content: object, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Both sets, ten images a file, as the original archives lay them out."""
    pixels = np.arange(10 * 3072, dtype=np.int64).reshape(10, 3072).astype(np.uint8)
    ten, hundred = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-100-python"
    dump(ten / "batches.meta", {"label_names": [f"class {i}" for i in range(10)], "num_vis": 3072})
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        dump(ten / name, {"data": pixels + np.uint8(i), "labels": list(range(10)), "batch_label": name})
    dump(hundred / "meta", {"fine_label_names": [f"fine {i}" for i in range(100)]})
    for name in ("train", "test"):
        dump(hundred / name, {"data": pixels, "fine_labels": list(range(90, 100)), "coarse_labels": [0] * 10})
    return tmp_path


def test_pixels_and_labels_are_the_files_own(root: Path) -> None:
    train, test = cifar10(root, True), cifar10(root / "cifar-10-batches-py", False)
    assert train.images.shape == (50, 3, 32, 32)
    assert test.images[0, 0, 0, :3].tolist() == [5, 6, 7]  # the sixth file is shifted by five
    assert test.images[0, 1, 0, 0].item() == (1024 + 5) % 256  # red, green, blue planes one after another
    assert test.images[0, 0, 1, 0].item() == 32 + 5
    assert train.labels.tolist() == list(range(10)) * 5
    assert train.class_names[3] == "class 3"
    assert "CIFAR-10, training part" in train.origin
    fine = cifar100(root, False)
    assert fine.labels.tolist() == list(range(90, 100))
    assert len(fine.class_names) == 100


class Command:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_not_run(root: Path) -> None:
    dump(root / "cifar-10-batches-py" / "test_batch", {"data": Command(root / "was-run"), "labels": []})
    with pytest.raises(DataError, match=r"wants to import .*mkdir"):
        cifar10(root, False)
    assert not (root / "was-run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, "does not hold CIFAR images"),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]}, "float32"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "outside 0 to 9"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}, "other CIFAR"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": ["0", "1"]}, "does not hold CIFAR labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": None}, "does not hold CIFAR labels"),
        (b"", "cannot be read"),
    ],
)
def test_damaged_files_are_named(root: Path, content: object, words: str) -> None:
    path = root / "cifar-10-batches-py" / "test_batch"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        dump(path, content)
    with pytest.raises(DataError, match=words):
        cifar10(root, False)


def test_missing_files_are_named(root: Path, tmp_path: Path) -> None:
    (root / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4 is missing"):
        cifar10(root, True)
    with pytest.raises(DataError, match="No CIFAR-100"):
        cifar100(tmp_path / "nowhere", True)
