"""Side-by-side timing: the same numbers first, then interleaved medians and their ratio.

Both sides are called once to warm up, and these two results are compared; only then are they timed, in turns, so
that a busy or a throttling machine slows both alike. A ratio above 1 means that ours is faster. On a GPU its work is
waited for, and threads are left alone.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from striate.engine.latency import wall_seconds

__all__ = ["Row", "compare", "options", "print_head", "print_summary"]

# Three runs of 25 ms tell a ratio of 3.0 from 2.9 only by luck.
_SECONDS = 2.0
_MOST = 200

_HEAD = f"{'':46} {'threads':>7} {'max diff':>10} {'ours':>11} {'peer':>11} {'peer/ours':>9}  {'range':>15} {'aim':>8}"


@dataclass(frozen=True)
class Row:
    """One comparison at one thread count, or on one GPU.

    Attributes:
        name: what was compared, with the peer and its setting.
        threads: torch.set_num_threads; the device's name where that is no CPU.
        difference: largest difference between the two results, as ``difference`` measures it.
        ours, peer: median seconds.
        low, high: lower and upper quartile of the ratios of neighbouring runs.
        aim: least ratio hoped for, or None.
    """

    name: str
    threads: int | str
    difference: float
    ours: float
    peer: float
    low: float
    high: float
    aim: float | None = None

    @property
    def ratio(self) -> float:
        """Median of the peer over median of ours."""
        return self.peer / self.ours

    def __str__(self) -> str:
        aim = "" if self.aim is None else f">= {self.aim:g}{'' if self.ratio >= self.aim else ' LOST'}"
        span = f"[{self.low:.3g}, {self.high:.3g}]"
        return (
            f"{self.name:46} {self.threads:>7} {self.difference:>10.2e} {_seconds(self.ours):>11} "
            f"{_seconds(self.peer):>11} {self.ratio:>9.2f}  {span:>15} {aim:>8}"
        )


def compare(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    difference: Callable[[Any, Any], float],
    repeats: int = 7,
    threads: int | Sequence[int] = (1, 2),
    device: str | torch.device = "cpu",
    aim: float | None = None,
) -> list[Row]:
    """Time ``ours`` against ``peer`` and print one row for each thread count as soon as it is known.

    Args:
        name: what is compared; name the peer and its setting.
        ours, peer: take no arguments; their results go to ``difference``.
        difference: ``(ours_result, peer_result) -> float``, the largest difference between the two.
        repeats: timed runs of each side at least; where they are short there are more, until two seconds are timed.
        threads: thread counts; the count found is put back.
        device: where both sides compute; on another one than the CPU there is one row, at the thread count found.
        aim: least ratio hoped for; a row below it is marked LOST, and stays in the table.
    """
    rows = []
    before = torch.get_num_threads()
    place = torch.device(device)
    counts = (threads,) if isinstance(threads, int) else tuple(threads)
    try:
        for count in counts if place.type == "cpu" else (before,):
            torch.set_num_threads(count)
            apart = float(difference(ours(), peer()))
            mine, theirs = [], []
            while (turn := len(mine)) < repeats or (turn < _MOST and sum(mine) + sum(theirs) < _SECONDS):
                if turn % 2:
                    theirs.append(wall_seconds(peer, place))
                    mine.append(wall_seconds(ours, place))
                else:
                    mine.append(wall_seconds(ours, place))
                    theirs.append(wall_seconds(peer, place))
            low, high = _quartiles([other / own for own, other in zip(mine, theirs, strict=True)])
            shown = count if place.type == "cpu" else str(place)
            row = Row(name, shown, apart, statistics.median(mine), statistics.median(theirs), low, high, aim)
            print(row, flush=True)
            rows.append(row)
    finally:
        torch.set_num_threads(before)
    return rows


def options(description: str, *, device: bool = True) -> argparse.Namespace:
    """Read ``--quick`` (few repeats, one thread), ``--threads`` and ``--device``; adds ``repeats`` that follows.

    Args:
        description: for ``--help``.
        device: False where a benchmark is about the CPU alone.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few repeats, one thread: does it run, roughly how fast")
    parser.add_argument("--threads", type=int, nargs="+", help="thread counts (default: 1 2, with --quick: 1)")
    if device:
        parser.add_argument(
            "--device", type=torch.device, default=torch.device("cpu"), help="cpu, cuda, … (default: cpu)"
        )
    chosen = parser.parse_args()
    chosen.threads = tuple(chosen.threads or ((1,) if chosen.quick else (1, 2)))
    chosen.repeats = 3 if chosen.quick else 9
    return chosen


def print_head(title: str, peers: Iterable[str] = (), device: str | torch.device = "cpu") -> None:
    """Print the title, machine (the GPU too, if that is the device) and versions, and the head of the table."""
    from importlib import metadata

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "(built from source)"

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *peers))
    place = torch.device(device)
    gpu = f"; {torch.cuda.get_device_name(place)}" if place.type == "cuda" else ""
    machine = f"{platform.machine()}, {_processor()}{gpu}"
    print(f"{title}\npython {platform.python_version()}, {versions}; {machine}\n{_HEAD}")


def print_summary(rows: Sequence[Row]) -> None:
    """Print how many rows met their aim, and every one that did not."""
    judged = [row for row in rows if row.aim is not None]
    lost = [row for row in judged if row.ratio < (row.aim or 0.0)]
    print(f"\n{len(judged) - len(lost)} of {len(judged)} rows with an aim met it.")
    for row in lost:
        where = row.threads if isinstance(row.threads, str) else f"{row.threads} thread(s)"
        print(f"  lost: {row.name}, {where}: {row.ratio:.2f} where {row.aim:g} was the aim")


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value < 10 else f"{value:.2f} s"


def _processor() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"
