"""C++ kernels for the CPU, compiled on first use with the machine's own compiler.

A kernel is one file without any header of PyTorch's: it compiles in a few seconds and is called through ctypes.
That costs nothing at install time; PyTorch's extension builder takes half a minute and ninja for the same kernel,
numba brings a compiler of 150 MB and no vectorised exponential, and torch.compile unrolls a recurrence. Where there is
no compiler every caller has a slower way in plain PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from striate.engine.files import cache_dir
from striate.engine.record import fingerprint

__all__ = ["load_native", "why_not_native"]

# No -ffast-math: linked into a shared library it makes the whole process flush denormal numbers to zero.
_FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
# From the fastest to what every compiler has; OpenMP is missing from Apple's, -march=native from some on ARM.
_EXTRA = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ())
_FAILED: dict[str, str] = {}


@functools.cache
def load_native(source: Path) -> ctypes.CDLL | None:
    """Compile ``source``, or find it compiled in the cache, and load it; None where that cannot be done.

    The cache is keyed by the file, the headers beside it, the compiler and the processor. With
    ``STRIATE_NATIVE=0`` in the environment nothing is compiled or loaded.

    Args:
        source: a ``.cpp`` file.
    """
    if os.environ.get("STRIATE_NATIVE", "1") == "0":
        return _no(source, "STRIATE_NATIVE=0 is set")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        return _no(source, "there is no C++ compiler (g++ or clang++) on this machine")
    import torch  # noqa: F401 (brings its OpenMP, so that both share one pool of threads)

    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
        headers = {path.name: path.read_text() for path in sorted(source.parent.glob("*.hpp"))}
        key = fingerprint([source.read_text(), headers, version, _FLAGS, _EXTRA, _processor()])
        library = cache_dir("native") / f"{source.stem}-{key}.so"
        if not library.is_file():
            _compile(compiler, source, library)
        return ctypes.CDLL(str(library))
    except subprocess.CalledProcessError as error:
        return _no(source, f"{Path(compiler).name} failed: {(error.stderr or '').strip().splitlines()[:1]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return _no(source, str(error))


def _compile(compiler: str, source: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        built = Path(scratch) / library.name
        for extra in _EXTRA:
            command = [compiler, *_FLAGS, *extra, str(source), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode == 0:
                os.replace(built, library)  # whole or not at all; of two processes the last one wins with the same file
                return
        done.check_returncode()


def why_not_native(source: Path) -> str | None:
    """Return why ``source`` is not used as compiled code; None where it is."""
    return None if load_native(source) is not None else _FAILED[source.name]


def _no(source: Path, reason: str) -> ctypes.CDLL | None:
    _FAILED[source.name] = reason
    return None


def _processor() -> str:
    """What ``-march=native`` depends on; a cache may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return "|".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    except OSError:
        return platform.processor()
