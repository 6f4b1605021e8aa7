"""Train single entries of tensors: masked gradients, and all other entries held bitwise, whatever the optimizer does.

The control of Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", 2021, arXiv 2003.00152: as many
parameters as batch norms have, two for each channel, but of the convolutions' weights.

Masking the gradient is not enough. Weight decay moves an entry whose gradient is zero, and so does momentum that was
gathered before. So a mask also puts back, after each step of any optimizer, the entries that it holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from striate.errors import InputError, LayerError
from striate.learn.freezing import freeze_except

__all__ = ["GradMask", "random_parameter_mask"]


class GradMask:
    """Let only some entries of some parameters be trained.

    Works with any optimizer made before or after, with momentum and weight decay, and with gradient clipping, which
    sees the masked gradients. Lives as long as the model, or until :meth:`remove`; also a context manager. A deep copy
    of the model is not masked.

    Args:
        model: its other parameters are left alone; freeze them with :func:`striate.learn.freezing.freeze_except`.
        masks: name of a parameter -> bool tensor of its shape, True where it is trained.

    Attributes:
        masks: as given.
        trainable: entries that are trained.

    Raises:
        InputError: no such parameter, a frozen one, or a mask of another shape or type.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> start = layer.weight.detach().clone()
    >>> mask = GradMask(layer, {"weight": torch.tensor([[True, False]])})
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> (layer.weight == start).tolist()
    [[False, True]]
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        for name, mask in masks.items():
            if name not in parameters:
                raise InputError("masks", "GradMask", allowed="by names of parameters of the model", got=name)
            if not parameters[name].requires_grad:
                raise InputError("masks", "GradMask", allowed="of parameters that require grad", got=f"frozen {name}")
            if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
                allowed = f"bool {tuple(parameters[name].shape)} for {name}"
                raise InputError("masks", "GradMask", allowed=allowed, got=f"{mask.dtype} {tuple(mask.shape)}")
        self.masks = {name: mask.detach().clone() for name, mask in masks.items()}
        self.trainable = sum(int(mask.sum()) for mask in self.masks.values())
        held = _Held([(weakref.ref(parameters[name]), mask) for name, mask in self.masks.items()])
        handles = [
            *(parameters[name].register_hook(_masking(mask)) for name, mask in self.masks.items()),
            # Of every optimizer: the one that will train the model may not have been made yet.
            register_optimizer_step_pre_hook(held.before),
            register_optimizer_step_post_hook(held.after),
        ]
        self._remove = weakref.finalize(model, _remove_all, handles)
        self._remove.atexit = False

    def remove(self) -> None:
        """Let go: from now on the optimizer moves every entry again."""
        self._remove()

    def __enter__(self) -> GradMask:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        total = sum(mask.numel() for mask in self.masks.values())
        return f"<GradMask: {self.trainable:,} of {total:,} entries of {len(self.masks)} tensors>"


def random_parameter_mask(model: nn.Module, per_channel: int = 2, seed: int = 0) -> GradMask:
    """Train ``per_channel`` random weights of each output channel of every convolution, and nothing else, in place.

    The paper's control for training batch norms alone: as many parameters, at the same places, but not scale and
    shift. All other entries and parameters are frozen, batch norms too, which stay in train mode.

    Args:
        model: any network with convolutions; from each channel entries are drawn without replacement, so all layers
            and channels are alike.
        per_channel: 2 for the scale and shift that a batch norm has for it.
        seed: of the choice, on any device the same.

    Raises:
        InputError: per_channel is below 1 or more than a channel has.
        LayerError: there is no convolution, or one whose weight is computed (weight norm, a mask).
    """
    if per_channel < 1:
        raise InputError("per_channel", "random_parameter_mask", allowed=">= 1", got=per_channel)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    convolutions = {}
    for path, module in model.named_modules():
        if isinstance(module, _ConvNd):
            if id(module.weight) not in names:
                raise LayerError(f"The weight of '{path}' is computed from others; remove_parametrizations first.")
            convolutions[names[id(module.weight)]] = module
    if not convolutions:
        raise LayerError(f"random_parameter_mask: {type(model).__name__} has no convolution.")
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, conv in convolutions.items():
        others = conv.weight.numel() // conv.out_channels
        if others < per_channel:
            allowed = f"at most {others}, the weights of a channel of {name}"
            raise InputError("per_channel", "random_parameter_mask", allowed=allowed, got=per_channel)
        order = torch.rand(conv.out_channels, others, generator=generator).argsort(dim=1)
        chosen = torch.zeros(conv.out_channels, others, dtype=torch.bool).scatter_(1, order[:, :per_channel], True)
        if conv.transposed:  # there a weight is (in, out / groups, …)
            chosen = chosen.view(conv.groups, conv.out_channels // conv.groups, conv.in_channels // conv.groups, -1)
            chosen = chosen.transpose(1, 2)
        masks[name] = chosen.reshape(conv.weight.shape)
    freeze_except(model, lambda role: role.name in masks)
    parameters = dict(model.named_parameters())
    return GradMask(model, {name: mask.to(parameters[name].device) for name, mask in masks.items()})


class _Held:
    """Entries that are put back after a step of an optimizer that has their parameters."""

    def __init__(self, masked: list[tuple[weakref.ref[nn.Parameter], Tensor]]) -> None:
        self.masked = masked
        self.kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def before(self, optimizer: Optimizer, *_: Any) -> None:
        moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self.kept = []
        for reference, mask in self.masked:
            parameter = reference()
            if parameter is not None and id(parameter) in moved:
                self.kept.append((parameter, mask.to(parameter.device), parameter.detach().clone()))

    @torch.no_grad()
    def after(self, *_: Any) -> None:
        for parameter, mask, kept in self.kept:
            parameter.copy_(torch.where(mask, parameter, kept))
        self.kept = []


def _masking(mask: Tensor) -> Any:
    # where, not a product: a gradient that is not finite must not spread to entries that are held
    return lambda gradient: torch.where(mask.to(gradient.device), gradient, 0.0)


def _remove_all(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
