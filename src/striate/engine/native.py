"""Small kernels in C++, compiled on first use with the machine's own compiler and kept in the cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from striate.engine.files import cache_dir

__all__ = ["load_native"]

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")
# From the fastest to what every compiler has; OpenMP is missing from Apple's, -march=native from some on ARM.
_EXTRA = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ())


def load_native(name: str, source: Path | str) -> ctypes.CDLL | None:
    """Compile one C++ file, once for each source, compiler and processor, and load it.

    Args:
        name: short, for the file in the cache (``native`` in :func:`striate.engine.files.cache_dir`).
        source: the file.

    Returns:
        The library, or None where no compiler is found, none of the attempts works, or ``STRIATE_NATIVE=0`` is set:
        every caller has another way.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None or os.environ.get("STRIATE_NATIVE") == "0":
        return None
    import torch  # noqa: F401  (brings its OpenMP, so that both share one pool of threads)

    code = Path(source).read_bytes()
    key = hashlib.sha256(code + repr((compiler, _FLAGS, _EXTRA, _processor())).encode()).hexdigest()[:16]
    try:
        library = cache_dir("native") / f"{name}-{key}.so"
        if not library.is_file() and not _compile(compiler, Path(source), library):
            return None
        return ctypes.CDLL(str(library))
    except OSError:
        return None


def _compile(compiler: str, source: Path, library: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for extra in _EXTRA:
            command = [compiler, *_FLAGS, *extra, str(source), "-o", str(made)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                os.replace(made, library)  # whole or not at all, also if two processes compile at once
                return True
    return False


def _processor() -> str:
    """Return what machine code for this processor must not be run elsewhere: its name and, on Linux, its flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        return "\n".join(sorted(set(found)))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
