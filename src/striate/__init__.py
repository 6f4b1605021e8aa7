"""Striate: a PyTorch workbench for knowing whether a vision network, and a paper about one, is any good.

>>> import striate
>>> model = striate.load_model("lite0")  # an embedded ImageNet network: nothing is downloaded
>>> striate.METHODS["xgrad-cam"].family
'cam'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from striate.engine.load import load_model
    from striate.engine.model import Preprocessing, VisionModel
    from striate.errors import StriateError, StriateWarning
    from striate.explain.registry import METHODS, attribute
    from striate.papers.catalogue import find_paper
    from striate.papers.runner import reproduce

__all__ = [
    "METHODS",
    "Preprocessing",
    "StriateError",
    "StriateWarning",
    "VisionModel",
    "__version__",
    "attribute",
    "find_paper",
    "load_model",
    "reproduce",
]

__version__ = "0.1.0"

_HOMES = {
    "METHODS": "striate.explain.registry",
    "Preprocessing": "striate.engine.model",
    "StriateError": "striate.errors",
    "StriateWarning": "striate.errors",
    "VisionModel": "striate.engine.model",
    "attribute": "striate.explain.registry",
    "find_paper": "striate.papers.catalogue",
    "load_model": "striate.engine.load",
    "reproduce": "striate.papers.runner",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import striate`` does not import torch.

    No name here is a room's: ``striate.examine`` is the package, and ``from striate.examine import examine`` the call.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'striate' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
