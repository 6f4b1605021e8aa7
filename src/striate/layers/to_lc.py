"""Whole networks of random frozen convolutions: turn any CNN into one, and back into an ordinary one.

Gavrikov, Keuper, "The Power of Linear Combinations: Learning with Random Convolutions", 2023, arXiv 2301.11360.
ResNet-LC-20-16x8, for one, is ``to_lc(cifar_resnet(20, 16), 8)``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.errors import LayerError
from striate.layers.lc_conv import Between, FilterBank, LCConv2d, Path

__all__ = ["collapse_model", "compact_state_dict", "to_lc"]


def to_lc(
    model: nn.Module,
    expansion: float,
    predicate: Callable[[str, nn.Conv2d], bool] | None = None,
    shared_bank: bool = False,
    *,
    learn_filters: bool = False,
    between: Between = "nothing",
    path: Path = "auto",
    seed: int | None = None,
) -> nn.Module:
    """Replace convolutions of ``model`` by :class:`LCConv2d`, in place, and return it.

    The new layers start at random, whatever the network had learned; sizes, stride, padding, dilation, bias, device,
    dtype and mode are those of the old ones. 1 x 1 convolutions stay, projection shortcuts among them.

    Args:
        model: any CNN.
        expansion: E of every layer.
        predicate: ``predicate(name, conv)`` says which convolutions are replaced; None takes all with more than one
            tap.
        shared_bank: cut the filters of all layers from one :class:`FilterBank`, which becomes ``model.filter_bank``.
        learn_filters, between, path: of every layer.
        seed: of all filters together; None draws one from PyTorch's global generator.

    Raises:
        LayerError: no convolution is to be replaced, or one has groups: choose others with ``predicate``.
        InputError: as :class:`LCConv2d` does.

    >>> from striate.models.cifar_resnet import cifar_resnet
    >>> model = to_lc(cifar_resnet(20), expansion=8)
    >>> sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    264874
    """
    chosen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not _inside_lc(model, name):
            wanted = math.prod(module.kernel_size) > 1 if predicate is None else predicate(name, module)
            if wanted and module.groups > 1:
                raise LayerError(
                    f"'{name}' of {type(model).__name__} has {module.groups} groups, and combining its filters across "
                    "them would make another layer of it. Leave such layers out with predicate=lambda name, conv: "
                    "conv.groups == 1 and conv.kernel_size != (1, 1); a depthwise convolution with a 1 x 1 after it "
                    "can be frozen as it is (freeze_spatial)."
                )
            if wanted:
                chosen[name] = module
    if not chosen:
        raise LayerError(f"{type(model).__name__} has no convolution to replace, or predicate picks none.")
    seed = int(torch.randint(2**31 - 1, (), device="cpu")) if seed is None else seed
    bank = None
    if shared_bank:
        size = max(round(expansion * conv.out_channels) * conv.weight[0].numel() for conv in chosen.values())
        bank = FilterBank(size, seed).to(next(iter(chosen.values())).weight)
    made: dict[int, nn.Module] = {}
    for index, conv in enumerate(chosen.values()):
        layer = LCConv2d(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            expansion,
            (conv.stride[0], conv.stride[1]),
            conv.padding,  # type: ignore[arg-type]
            (conv.dilation[0], conv.dilation[1]),
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            learn_filters=learn_filters,
            bank=bank,
            seed=_of_layer(seed, index),
            between=between,
            path=path,
        )
        made[id(conv)] = layer.to(conv.weight.device, conv.weight.dtype).train(conv.training)
    model = _replaced(model, made)
    if bank is not None:
        model.add_module("filter_bank", bank)
    return model


def collapse_model(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with an ordinary convolution in the place of every :class:`LCConv2d`.

    It computes the same, is as small and as fast as the network that :func:`to_lc` was given, and its tensors have
    that one's names.

    Raises:
        LayerError: there is no such layer, or one has something between its filters and their combination.
    """
    copied = copy.deepcopy(model)
    made: dict[int, nn.Module] = {
        id(module): module.collapse() for module in copied.modules() if isinstance(module, LCConv2d)
    }
    if not made:
        raise LayerError(f"{type(model).__name__} has no LCConv2d to collapse.")
    copied = _replaced(copied, made)
    if isinstance(getattr(copied, "filter_bank", None), FilterBank):
        del copied.filter_bank
    return copied


def compact_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return ``model.state_dict()`` with seeds in the place of all frozen filters that come from one.

    ``model.load_state_dict`` and :func:`striate.load_model` take it, strictly, into a network made by the same
    :func:`to_lc`, and the filters are the same bit for bit.
    """
    state: dict[str, Any] = model.state_dict()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LCConv2d | FilterBank):
            module.compact(state, f"{name}." if name else "")
    return state


def _inside_lc(model: nn.Module, name: str) -> bool:
    parts = name.split(".")
    return any(isinstance(model.get_submodule(".".join(parts[:i])), LCConv2d) for i in range(len(parts)))


def _of_layer(seed: int, index: int) -> int:
    """A seed for each layer; neighbouring ones give unrelated numbers."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> 2)


def _replaced(model: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, by identity, at every place that they have."""
    if id(model) in made:
        return made[id(model)]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and id(child) in made:
                module._modules[name] = made[id(child)]
    return model
