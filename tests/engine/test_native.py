"""Compiled on first use, kept, and done without where there is no compiler."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from striate.engine.native import load_native, why_not_native


def write(folder: Path, body: str) -> Path:
    path = folder / "seven.cpp"
    path.write_text(body)
    return path


def test_compiled_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path, 'extern "C" int seven(int x) { return 7 * x; }')
    library = load_native(source)
    if library is None:
        pytest.skip(f"no compiler here: {why_not_native(source)}")
    assert library.seven(ctypes.c_int(6)) == 42
    assert why_not_native(source) is None
    (kept,) = (tmp_path / "cache" / "native").iterdir()
    assert kept.suffix == ".so"


def test_a_broken_source_says_what_the_compiler_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path, "not C++")
    assert load_native(source) is None
    assert why_not_native(source)


def test_without_a_compiler_there_is_a_reason_and_a_slower_way(tmp_path: Path) -> None:
    program = (
        "import torch; from striate.layers import native_scan; from striate.layers.selective_scan import *\n"
        "x = torch.ones(1, 2, 9); y = selective_scan(x, x, -torch.ones(2, 1), x[:, :1], x[:, :1])\n"
        "print(native_scan.available(), best_backend(x), native_scan.why_not(), y.isfinite().all().item())"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "STRIATE_CACHE": str(tmp_path)}
    environment.pop("CXX", None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("False chunked there is no C++ compiler")
    assert done.stdout.strip().endswith("True")
