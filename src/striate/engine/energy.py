"""What running something costs: multiply-accumulates, processor seconds, or joules where the machine counts them."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Literal, get_args

from striate.engine.macs import counting_flops
from striate.errors import InputError, RunError

__all__ = ["EnergyKind", "EnergyMeter"]

EnergyKind = Literal["macs", "time", "rapl"]
_COUNTERS = Path("/sys/class/powercap")
_UNITS = {"macs": "multiply-accumulates", "time": "processor seconds", "rapl": "joules"}


class EnergyMeter(AbstractContextManager["EnergyMeter"]):
    """Measures what is run inside a ``with`` block.

    Args:
        kind: ``"macs"``, the multiply-accumulates that really run (as :func:`~striate.engine.macs.count_macs` counts
            them): the same on every machine, and blind to memory traffic; ``"time"``, seconds of this process on all
            its cores, without waiting and without a GPU's work: a stand-in for energy on one machine, nothing more;
            ``"rapl"``, joules of all processor packages by the kernel's counters, whoever used them.
        counters: where the kernel shows its counters.

    Attributes:
        value: after the block: how much.
        unit: of ``value``, in words.

    Raises:
        RunError: on entering, ``"rapl"`` where this machine has no counters that may be read.

    >>> with EnergyMeter("time") as meter:
    ...     total = sum(range(1000))
    >>> meter.value >= 0
    True
    """

    def __init__(self, kind: EnergyKind = "macs", *, counters: str | Path = _COUNTERS) -> None:
        if kind not in get_args(EnergyKind):
            raise InputError("kind", "EnergyMeter", allowed=f"one of {', '.join(get_args(EnergyKind))}", got=kind)
        self.kind, self.unit = kind, _UNITS[kind]
        self.value = 0.0
        self._counters = Path(counters)
        self._stack = ExitStack()
        self._before: float | dict[Path, int] = 0.0

    def __enter__(self) -> EnergyMeter:
        if self.kind == "rapl":
            self._before = _microjoules(self._counters)
        elif self.kind == "time":
            self._before = time.process_time()
        else:
            self._flops = self._stack.enter_context(counting_flops())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        if isinstance(self._before, dict):
            after = _microjoules(self._counters)
            self.value = sum(_passed(domain, old, after[domain]) for domain, old in self._before.items()) / 1e6
        elif self.kind == "time":
            self.value = time.process_time() - self._before
        else:
            self.value = float(self._flops.get_total_flops() // 2)


def _microjoules(counters: Path) -> dict[Path, int]:
    """Return the counter of every processor package; cores and memory inside a package are part of it."""
    packages = [folder for folder in sorted(counters.glob("intel-rapl:*")) if folder.name.count(":") == 1]
    try:
        values = {folder: int((folder / "energy_uj").read_text()) for folder in packages}
    except (OSError, ValueError) as error:
        raise RunError(
            f"The energy counters of this machine cannot be read ({error}); use 'macs' or 'time'."
        ) from error
    if not values:
        raise RunError(f"This machine offers no energy counters in {counters}; use 'macs' or 'time'.")
    return values


def _passed(domain: Path, before: int, after: int) -> int:
    """Return what a counter counted, also where it began anew from zero."""
    return after - before if after >= before else after - before + int((domain / "max_energy_range_uj").read_text()) + 1
