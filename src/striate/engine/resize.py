"""Layers of other widths: what differs between two networks of one architecture, as JSON, and how to apply it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from striate.errors import ModelError

__all__ = ["resize", "size_changes"]

_ATTRIBUTES = (
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "normalized_shape", "num_parameters",
)  # fmt: skip


def size_changes(original: nn.Module, changed: nn.Module) -> dict[str, Any]:
    """Return what :func:`resize` needs to give ``original`` the layer sizes of ``changed``.

    Returns:
        JSON-ready ``{"layers": {name: {attribute: value}}, "tensors": {name: shape}}``, differences only.

    Raises:
        ModelError: they differ in more than sizes.
    """
    ours, theirs = dict(original.named_modules()), dict(changed.named_modules())
    if [*ours] != [*theirs]:
        odd = next(iter(set(ours) ^ set(theirs)))
        raise ModelError(f"The two networks differ in more than layer sizes: only one of them has the module '{odd}'.")
    layers = {}
    for name, module in ours.items():
        values = {
            key: _plain(getattr(theirs[name], key))
            for key in _ATTRIBUTES
            if isinstance(getattr(module, key, None), int | tuple)
            and getattr(theirs[name], key) != getattr(module, key)
        }
        if values:
            layers[name] = values
    shapes = {name: tuple(value.shape) for name, value in original.state_dict().items()}
    new_shapes = {name: tuple(value.shape) for name, value in changed.state_dict().items()}
    if shapes.keys() != new_shapes.keys():
        odd = next(iter(shapes.keys() ^ new_shapes.keys()))
        raise ModelError(f"The two networks differ in more than layer sizes: only one of them has the tensor '{odd}'.")
    tensors = {name: list(shape) for name, shape in new_shapes.items() if shape != shapes[name]}
    return {"layers": layers, "tensors": tensors}


def resize(network: nn.Module, changes: dict[str, Any]) -> nn.Module:
    """Give ``network`` other layer sizes, in place, and return it.

    Tensors of a new shape are zeros: load weights, or initialise them.

    Args:
        network: of the architecture that the changes were taken from.
        changes: from :func:`size_changes`.

    Raises:
        ModelError: a layer or tensor that is to change is not there.
    """
    modules = dict(network.named_modules())
    for name, values in changes["layers"].items():
        module = modules.get(name)
        if module is None or any(not hasattr(module, key) for key in values):
            raise ModelError(f"{type(network).__name__} has no layer '{name}' to resize; is it another architecture?")
        for key, value in values.items():
            setattr(module, key, tuple(value) if isinstance(value, list) else value)
    for name, shape in changes["tensors"].items():
        path, _, leaf = name.rpartition(".")
        module = modules.get(path)
        old = None if module is None else {**module._parameters, **module._buffers}.get(leaf)
        if module is None or old is None:
            raise ModelError(f"{type(network).__name__} has no tensor '{name}' to resize; is it another architecture?")
        new = torch.zeros(tuple(shape), dtype=old.dtype, device=old.device)
        if isinstance(old, nn.Parameter):
            module._parameters[leaf] = nn.Parameter(new, requires_grad=old.requires_grad)
        else:
            module._buffers[leaf] = new
    return network


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
