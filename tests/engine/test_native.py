"""Kernels are compiled once, kept, and done without where they cannot be had."""

from __future__ import annotations

import ctypes
import shutil

import pytest

from striate.engine.files import cache_dir
from striate.engine.native import load_native

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler here")


@needs_compiler
def test_compiled_once_for_each_source(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "answer.cpp"
    for answer in (42, 43):
        source.write_text(f'extern "C" int answer() {{ return {answer}; }}')
        first, again = load_native("answer", source), load_native("answer", source)
        assert isinstance(first, ctypes.CDLL)
        assert first.answer() == again.answer() == answer
    assert len(list(cache_dir("native").glob("answer-*.so"))) == 2
    assert len(list(cache_dir("native").iterdir())) == 2  # nothing left behind


def test_none_where_it_cannot_be_had(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "wrong.cpp"
    source.write_text("not C++")
    assert load_native("wrong", source) is None
    source.write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert load_native("answer", source) is None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("STRIATE_NATIVE", "0")
    assert load_native("answer", source) is None
