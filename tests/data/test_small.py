"""Fashion-MNIST and digits: what is read, and every way in which the files can be wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.data.small import FASHION_CLASSES, default_set, digits, fashion_mnist, fashion_mnist_folder, read_idx
from striate.errors import DataError, InputError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
here = pytest.mark.skipif(fashion_mnist_folder(train=True) is None, reason="fashion-mnist is not on this machine")


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_set(folder: Path, n: int = 4, zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.arange(n * 784, dtype=np.uint32).astype(np.uint8).reshape(n, 28, 28)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10)):
            content = idx(array)
            path = folder / f"{part}-{name}"
            if zipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)


@here
def test_fashion_mnist_is_all_there() -> None:
    train, test = fashion_mnist(True), fashion_mnist(False)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [6000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.labels[:5].tolist() == [9, 0, 0, 3, 0]  # the published set's first labels
    assert train.class_names == FASHION_CLASSES
    assert "training part" in train.origin
    assert abs(train.images.float().mean().item() / 255 - 0.2860) < 1e-4  # the mean that everybody normalises with


def test_digits_are_split_without_overlap() -> None:
    train, test = digits(True), digits(False)
    assert len(train) == 1437
    assert len(test) == 360
    assert train.images.dtype == torch.uint8
    assert train.images.max() == 255
    assert min(test.labels.bincount().tolist()) >= 34
    assert torch.equal(train.images, digits(True).images)
    rows = {tuple(image.flatten().tolist()) for image in torch.cat([train.images, test.images])}
    assert len(rows) == 1797  # all different, so no image can stand in both parts


def test_the_default_is_fashion_mnist_or_digits_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("striate.data.small.fashion_mnist_folder", lambda train, root=None: None)
    assert "digits" in default_set(False).origin
    with pytest.raises(DataError, match="striate data fetch fashion-mnist"):
        default_set(False, "fashion-mnist")
    with pytest.raises(InputError, match="source"):
        default_set(False, "cifar")


@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw", "raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_given_root_may_be_plain_or_torchvisions(tmp_path: Path, inside: str, zipped: bool) -> None:
    write_set(tmp_path / inside, zipped=zipped)
    found = fashion_mnist(True, root=tmp_path)
    assert found.images.shape == (4, 1, 28, 28)
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert found.images[0, 0, 0, :3].tolist() == [0, 1, 2]


def test_an_empty_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        fashion_mnist(True, root=tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not an idx file"),
        (b"hello world", "not an idx file"),
        (b"\0\0\x08\x03\0\0", "truncated inside its header"),
        (idx(np.zeros((2, 28, 28), np.uint8))[:-1], "is truncated: 1,583 bytes"),
        (idx(np.zeros((2, 28, 28), np.uint8)) + b"x", "too long"),
        (gzip.compress(idx(np.zeros((2, 28, 28), np.uint8)), mtime=0)[:-9], "gzip stream ends early"),
        (gzip.compress(b"a" * 500, mtime=0)[:30] + b"\xff" * 20, "cannot be read|ends early"),
        (b"\x1f\x8b", "ends early|cannot be read"),
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "images-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=match) as error:
        read_idx(path)
    assert "images-ubyte" in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing"):
        read_idx(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (np.zeros((4, 32, 32), np.uint8), np.zeros(4, np.uint8), r"\(4, 32, 32\)"),
        (np.zeros((4, 28, 28), np.uint8), np.zeros(3, np.uint8), r"labels \(3,\)"),
        (np.zeros((4, 28, 28), np.uint8), np.full(4, 26, np.uint8), "label is 26"),
    ],
)
def test_another_set_under_the_same_names_is_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, match: str
) -> None:
    (tmp_path / FILES[0]).write_bytes(idx(images))
    (tmp_path / FILES[1]).write_bytes(idx(labels))
    with pytest.raises(DataError, match=match):
        fashion_mnist(True, root=tmp_path)


@given(
    st.sampled_from([(0x08, ">u1"), (0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, kind: tuple[int, str], shape: list[int]) -> None:
    array = np.arange(int(np.prod(shape)), dtype=kind[1]).reshape(shape)
    path = tmp_path_factory.mktemp("idx") / "a.idx"
    path.write_bytes(idx(array, kind[0]))
    read = read_idx(path)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)
