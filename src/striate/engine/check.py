"""A check that a result carries about itself: the axiom's residual, the attack's self-test."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Check"]


@dataclass(frozen=True)
class Check:
    """One measured statement about a result.

    Attributes:
        name: short name, e.g. ``"completeness"``.
        passed: whether the statement held; None where it does not apply here (``statement`` says why).
        value: the measured figure; None where nothing was measured.
        bound: the figure it was held against; None where there is none.
        statement: one plain sentence with the figures in it.
    """

    name: str
    passed: bool | None
    statement: str
    value: float | None = None
    bound: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)
