"""Smaller and cheaper networks: pruning before, during and after training, and pairs in place of one large network.

The figure that counts is measured latency. Every method of pruning speaks of a network's channels through one
:func:`~striate.compress.graph.channel_graph` and edits it through :mod:`striate.compress.edit`, which proves that the
cropped network is the one with zeros in place of what is gone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from striate.compress.allocation import synexp
    from striate.compress.density import DENSITIES, layer_density
    from striate.compress.dual import DualAnswer, DualCNN
    from striate.compress.edit import crop_channels, equality_check, mask_channels, set_widths
    from striate.compress.graph import ChannelGraph, ChannelGroup, channel_graph
    from striate.compress.masks import apply_weight_mask, bake_weight_mask, mask_density, reshuffle_mask
    from striate.compress.pairing import choose_pair, complementarity
    from striate.compress.perceptual_hash import fingerprints
    from striate.compress.perceptual_memory import MemoryCounts, PerceptualMemory
    from striate.compress.precropping import CropReport, preconfig, precrop
    from striate.compress.save import save_network
    from striate.compress.scores import weight_mask, weight_scores
    from striate.compress.threshold import ThresholdCurve, confidence, search_threshold
    from striate.compress.widths import fast_multiple

__all__ = [
    "DENSITIES",
    "ChannelGraph",
    "ChannelGroup",
    "CropReport",
    "DualAnswer",
    "DualCNN",
    "MemoryCounts",
    "PerceptualMemory",
    "ThresholdCurve",
    "apply_weight_mask",
    "bake_weight_mask",
    "channel_graph",
    "choose_pair",
    "complementarity",
    "confidence",
    "crop_channels",
    "equality_check",
    "fast_multiple",
    "fingerprints",
    "layer_density",
    "mask_channels",
    "mask_density",
    "preconfig",
    "precrop",
    "reshuffle_mask",
    "save_network",
    "search_threshold",
    "set_widths",
    "synexp",
    "weight_mask",
    "weight_scores",
]

_HOMES = {
    "pairing": ("choose_pair", "complementarity"),
    "threshold": ("ThresholdCurve", "confidence", "search_threshold"),
    "dual": ("DualAnswer", "DualCNN"),
    "perceptual_hash": ("fingerprints",),
    "perceptual_memory": ("MemoryCounts", "PerceptualMemory"),
    "edit": ("crop_channels", "equality_check", "mask_channels", "set_widths"),
    "density": ("DENSITIES", "layer_density"),
    "graph": ("ChannelGraph", "ChannelGroup", "channel_graph"),
    "masks": ("apply_weight_mask", "bake_weight_mask", "mask_density", "reshuffle_mask"),
    "precropping": ("CropReport", "preconfig", "precrop"),
    "save": ("save_network",),
    "scores": ("weight_mask", "weight_scores"),
    "allocation": ("synexp",),
    "widths": ("fast_multiple",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the package itself imports nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module 'striate.compress' has no attribute '{name}'")
    return getattr(importlib.import_module(f"striate.compress.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
