"""How often a patch makes a network see its class."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from striate.engine.stats import Interval, wilson

__all__ = ["PatchScore"]


@dataclass(frozen=True)
class PatchScore:
    """How often a patch makes a network see its class.

    Attributes:
        top1: share of patched images predicted as the target.
        top5: share with the target among the five highest scores.
        n: images counted, each under ``placements`` random placements.
        placements: placements per image.
        excluded: images left out because they are of the target class already.
    """

    top1: float
    top5: float
    n: int
    placements: int
    excluded: int

    def interval(self, which: Literal["top1", "top5"] = "top1") -> Interval:
        """Wilson 95 % interval that counts *images*: placements on one image are no independent trials."""
        share = getattr(self, which)
        low, high = wilson(math.floor(share * self.n + 1e-9), self.n), wilson(math.ceil(share * self.n - 1e-9), self.n)
        return Interval(share, low.low, high.high, self.n)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, intervals included."""
        intervals = {f"{name}_interval": self.interval(name).to_dict() for name in ("top1", "top5")}
        return asdict(self) | intervals
