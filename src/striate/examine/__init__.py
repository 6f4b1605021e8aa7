"""Examining a person's network: probes, what each of them found, and the report that holds it all.

>>> from striate.examine import PROBES
>>> sorted(PROBES)[:3]
['corruption', 'fgsm', 'patch']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from striate.examine.finding import Finding, Report
    from striate.examine.run import PROBES, examine

__all__ = ["PROBES", "Finding", "Report", "examine"]

_HOMES = {"PROBES": "run", "Finding": "finding", "Report": "finding", "examine": "run"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the package itself imports nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'striate.examine' has no attribute '{name}'")
    return getattr(importlib.import_module(f"striate.examine.{_HOMES[name]}"), name)
