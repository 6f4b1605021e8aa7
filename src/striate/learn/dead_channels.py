"""Channels that never fire: for each channel of each ReLU, how often its output is zero over a set of images.

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", 2021, arXiv 2003.00152, count a channel as dead where
the activation is zero in more than 99 % of all places of all test images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from striate.engine.state import device_of, inspected
from striate.errors import InputError, LayerError

__all__ = ["DeadChannels", "dead_channels"]


@dataclass(frozen=True, repr=False)
class DeadChannels:
    """How often channels are at zero.

    Attributes:
        zeros: activation -> (C,) float64, the share of places and images at which each channel's output is zero. An
            activation that is used several times a pass counts as several: ``"act"``, ``"act#2"``, …
        threshold: above which share a channel is dead.
        images: how many were looked at.
    """

    zeros: dict[str, Tensor]
    threshold: float
    images: int

    @property
    def dead(self) -> dict[str, Tensor]:
        """Activation -> (C,) bool, True where the channel is dead."""
        return {name: share > self.threshold for name, share in self.zeros.items()}

    @property
    def share(self) -> float:
        """Dead channels of all channels."""
        return torch.cat(list(self.dead.values())).double().mean().item()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        layers = {name: {"channels": len(dead), "dead": int(dead.sum())} for name, dead in self.dead.items()}
        return {"threshold": self.threshold, "images": self.images, "share": self.share, "layers": layers}

    def __repr__(self) -> str:
        dead, n = sum(int(dead.sum()) for dead in self.dead.values()), sum(map(len, self.zeros.values()))
        return f"<DeadChannels: {dead:,} of {n:,} in {len(self.zeros)} activations, over {self.images:,} images>"


def dead_channels(
    model: nn.Module,
    loader: Tensor | Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]],
    layer_types: type[nn.Module] | tuple[type[nn.Module], ...] = nn.ReLU,
    *,
    threshold: float = 0.99,
) -> DeadChannels:
    """Count how often each channel behind an activation is exactly zero.

    Args:
        model: any network; run in eval mode without gradient, it leaves as it came.
        loader: one batch of images, or several, or of (images, labels, …) as a DataLoader gives them; moved to the
            model.
        layer_types: which modules are looked at. Channels are dimension 1 of their output, the last of a (N, L, C).
        threshold: above which share of zeros a channel is dead, in [0, 1).

    Raises:
        InputError: threshold outside [0, 1), or no images.
        LayerError: the network calls no such module. Functional activations (``F.relu``) cannot be seen.
    """
    if not 0 <= threshold < 1:
        raise InputError("threshold", "dead_channels", allowed="in [0, 1)", got=threshold)
    watched = {name: module for name, module in model.named_modules() if isinstance(module, layer_types)}
    silent: dict[str, Tensor] = {}
    places: dict[str, int] = {}
    calls: dict[str, int] = {}

    def count(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        key = name if calls[name] == 1 else f"{name}#{calls[name]}"
        zero = (output == 0).movedim(2 if output.dim() == 3 else 1, 0).flatten(1)
        silent[key] = silent.get(key, 0) + zero.sum(dim=1).double().cpu()
        places[key] = places.get(key, 0) + zero.shape[1]

    hooks = [module.register_forward_hook(partial(count, name)) for name, module in watched.items()]
    images = 0
    try:
        with inspected(model, warn=False), torch.no_grad():
            for batch in [loader] if isinstance(loader, Tensor) else loader:
                x = batch if isinstance(batch, Tensor) else batch[0]
                calls.clear()
                model(x.to(device_of(model)))
                images += len(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not images:
        raise InputError("loader", "dead_channels", allowed="one that gives images", got="none")
    if not silent:
        kinds = layer_types if isinstance(layer_types, tuple) else (layer_types,)
        names = " or ".join(kind.__name__ for kind in kinds)
        raise LayerError(
            f"dead_channels: {type(model).__name__} calls no module {names}. Functional activations cannot be seen; "
            "give the network modules for them, or name another type in layer_types."
        )
    return DeadChannels({key: total / places[key] for key, total in silent.items()}, threshold, images)
