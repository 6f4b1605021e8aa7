"""Papers side by side: one process each, with its share of the cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["run_side_by_side"]

_CHILD = "from striate.cli import main; main()"
_MARK = "   "
"""How lines of progress begin; the child's own headings and its scoreboard are left out."""


def run_side_by_side(
    commands: Mapping[str, Sequence[str]], jobs: int, say: Callable[[str], None], threads: int
) -> dict[str, int]:
    """Run ``striate`` commands, ``jobs`` at a time in the order given, and return name -> exit code.

    Args:
        commands: name -> arguments of ``striate``.
        jobs: processes at a time.
        say: called with each line of progress, the name before it.
        threads: of PyTorch in each process.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    running: list[subprocess.Popen[str]] = []

    def perform(name: str) -> int:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *commands[name]],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        running.append(child)
        assert child.stderr is not None  # a pipe was asked for
        for line in child.stderr:
            if line.startswith((_MARK, "striate:")):
                say(f"   {name}: {line.strip().removeprefix('striate: ')}")
        return child.wait()

    with _terminable(), ThreadPoolExecutor(jobs) as pool:
        try:
            return dict(zip(commands, pool.map(perform, commands), strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in running:
                child.terminate()
            raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Leave by an exception when terminated, so that no child is left that goes on writing."""
    if threading.current_thread() is not threading.main_thread():  # in which no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
