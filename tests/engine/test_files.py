"""Writing whole or not at all; strict JSON; the cache folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.engine import files
from striate.engine.files import cache_dir, read_json, write_bytes, write_json, write_text

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
@settings(max_examples=40, deadline=None)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    assert read_json(write_json(path, value)) == value


def test_json_is_strict_and_knows_tensors_arrays_and_paths(tmp_path: Path) -> None:
    value = {
        "tensor": torch.tensor([[1.5, float("nan")]]),
        "scalar": torch.tensor(3),
        "array": np.float32(0.5),
        "path": Path("a/b"),
        "infinite": float("-inf"),
        3: (1, 2),
    }
    write_json(tmp_path / "a.json", value)
    expected = {"tensor": [[1.5, None]], "scalar": 3, "array": 0.5, "path": "a/b", "infinite": None, "3": [1, 2]}
    assert read_json(tmp_path / "a.json") == expected
    assert "NaN" not in (tmp_path / "a.json").read_text()


def test_folders_are_made_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = write_text(tmp_path / "deep" / "er" / "a.txt", "höhe")
    assert path.read_bytes() == "höhe".encode()
    assert [item.name for item in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("where", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = write_bytes(tmp_path / "a.bin", b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, where, fail)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.bin"]


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}


KILLED = """
import os, signal, sys
from striate.engine import files
real = getattr(os, sys.argv[2])
def killed(*parts):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(files.os, sys.argv[2], killed)
files.write_bytes(sys.argv[1], b"new" * 100_000)
"""


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_kill_during_the_write_leaves_the_old_file_whole(tmp_path: Path, where: str) -> None:
    path = write_bytes(tmp_path / "a.bin", b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), where], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert write_bytes(path, b"next").read_bytes() == b"next"


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "own"))
    assert cache_dir("a", "b") == tmp_path / "own" / "a" / "b"
    assert (tmp_path / "own" / "a" / "b").is_dir()
    monkeypatch.delenv("STRIATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "striate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "striate"
    assert os.access(cache_dir(), os.W_OK)
