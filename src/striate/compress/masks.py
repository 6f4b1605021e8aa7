"""Weight masks: single weights held at zero, in a network that keeps its shape."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from striate.engine.model import get_layer
from striate.errors import InputError

__all__ = ["WeightMask", "apply_weight_mask", "bake_weight_mask", "mask_density", "reshuffle_mask"]


class WeightMask(nn.Module):
    """The parametrization ``weight -> weight * mask``: masked weights are zero, whatever trains them.

    Args:
        mask: of the weight's shape, boolean.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.detach().clone().bool())

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros where the mask is False."""
        return weight * self.mask


def apply_weight_mask(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of ``model`` in which masked weights are zero and stay zero in training.

    Args:
        model: any network; it is not touched.
        masks: layer -> boolean mask of its weight's shape; True stays.

    Raises:
        LayerError: no such layer.
        InputError: a mask of another shape, or a layer without weights.
    """
    masked = copy.deepcopy(model)
    for name, mask in masks.items():
        layer = get_layer(masked, name)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor):
            raise InputError("masks", "apply_weight_mask", allowed="of layers that have a weight", got=name)
        if mask.shape != weight.shape:
            raise InputError(
                "masks", "apply_weight_mask", allowed=f"{tuple(weight.shape)} for '{name}'", got=tuple(mask.shape)
            )
        parametrize.register_parametrization(layer, "weight", WeightMask(mask.to(weight.device)))
    return masked


def bake_weight_mask(model: nn.Module) -> nn.Module:
    """Return a copy of a masked network as a plain one, with zeros in its weights."""
    baked = copy.deepcopy(model)
    for module in list(baked.modules()):
        parametrizations: Any = getattr(module, "parametrizations", {})
        if set(parametrizations) == {"weight"} and all(
            isinstance(one, WeightMask) for one in parametrizations["weight"]
        ):
            # Not by remove_parametrizations: it edits the class, which a deep copy shares with the person's network.
            masked: Any = module.weight
            weight = nn.Parameter(masked.detach().clone(), parametrizations["weight"].original.requires_grad)
            module.__class__ = type(module).__bases__[0]
            del module._modules["parametrizations"]
            module._parameters = {"weight": weight, **module._parameters}
    return baked


def mask_density(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return layer -> share of its weights that stay."""
    return {name: mask.double().mean().item() for name, mask in masks.items()}


def reshuffle_mask(masks: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Permute each mask at random within its layer: other weights, the same number of them (paper, Section 3.2).

    >>> mask = {"fc": torch.arange(12).view(3, 4) < 5}
    >>> int(reshuffle_mask(mask)["fc"].sum())
    5
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator).to(mask.device)].view_as(mask)
        for name, mask in masks.items()
    }
