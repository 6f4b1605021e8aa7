"""The normalisation layers of any network: which ones there are, and which have scale and shift to train."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from striate.engine.model import layer_name
from striate.errors import InputError, LayerError

__all__ = ["Norms", "affine_norms", "is_batch_norm", "is_norm"]

Norms = Literal["bn", "all"]
"""``"bn"``: batch norms (1d, 2d, 3d, synchronised); ``"all"``: group, layer, instance and RMS norms too."""


def is_batch_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a batch norm."""
    return isinstance(module, _BatchNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation of any kind."""
    known = isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm)
    # Layer norms over channels and RMS norms are written anew in every library; they are all called so.
    return known or ("Norm" in type(module).__name__ and not list(module.children()))


def affine_norms(model: nn.Module, norms: Norms, owner: str) -> dict[str, Any]:
    """Return name -> layer of every norm with a scale of its own.

    Args:
        model: any network.
        norms: which.
        owner: the calling function, for messages.

    Raises:
        InputError: no such word.
        LayerError: there are none, or none with a scale.
    """
    if norms not in {"bn", "all"}:
        raise InputError("norms", owner, allowed="'bn' or 'all'", got=norms)
    wanted = is_batch_norm if norms == "bn" else is_norm
    found = {name: module for name, module in model.named_modules() if wanted(module)}
    affine = {name: module for name, module in found.items() if getattr(module, "weight", None) is not None}
    if affine:
        return affine
    what = "batch norm" if norms == "bn" else "norm"
    kind = type(model).__name__
    if found:
        first = next(iter(found.values()))
        raise LayerError(
            f"{owner}: none of the {len(found)} {what}s of {kind} has scale and shift (first: "
            f"'{layer_name(model, first)}'); they were made with affine=False. Make them with affine=True."
        )
    others = sorted({type(module).__name__ for module in model.modules() if is_norm(module)})
    hint = f" It has {', '.join(others)}: say norms='all' (of freeze_except: 'norm')." if others else ""
    raise LayerError(f"{owner}: {kind} has no {what}.{hint}")
