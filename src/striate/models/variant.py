"""What was published of each network that Striate registers with timm: one record a name, and the list of all."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["FAMILIES", "Variant", "build", "rename_weights", "unwrap_weights", "variants"]

FAMILIES: tuple[str, ...] = (
    "vmamba",
    "efficient_vmamba",
    "mobilevit",
    "uniformer",
    "uniformer_light",
    "mobile_mamba",
)
"""Modules of this package that register networks; each has a ``VARIANTS``."""

_WRAPPERS = ("ema_state_dict", "model_ema", "net_E", "net", "model_state", "model_state_dict", "state_dict", "model")
"""Under what names training code saves weights; averaged ones come first."""


@dataclass(frozen=True)
class Variant:
    """A published configuration.

    Attributes:
        paper: key of its paper, ``"vmamba"``.
        parameters: exact count with 1,000 classes.
        macs: multiply-accumulates at ``input_size``, in units of 1e9, as :func:`striate.engine.macs.count_macs` counts.
        top1: published ImageNet-1k accuracy in per cent; None where no figure is on record.
        licence: of the authors' weights.
        input_size: (C, H, W) of the published figure.
        mean, std: of the authors' preprocessing.
        options: what the network's constructor is called with.
    """

    paper: str
    parameters: int
    macs: float
    top1: float | None
    licence: str
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, **more: Any) -> dict[str, Any]:
        """Return the record that timm keeps with the network: preprocessing and licence. There is no address of
        weights in it: load the authors' file with :func:`striate.load_model`."""
        return {
            "input_size": self.input_size,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "license": self.licence,
            **more,
        }


def build(
    cls: type[nn.Module],
    name: str,
    variant: Variant,
    filter_fn: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]],
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a registered network through timm, with ``features_only``, ``out_indices`` and the like.

    Args:
        cls: has ``feature_info`` (``num_chs``, ``reduction`` and ``module`` a stage) and ``reset_classifier``.
        name: as registered; ``cls``'s module has it in its ``default_cfgs``.
        variant: its record.
        filter_fn: maps the authors' checkpoint to our names.
        pretrained: there is no address of weights, so timm refuses; kept for its calling convention.
        **options: override those of the variant.
    """
    from timm.models import build_model_with_cfg

    return build_model_with_cfg(
        cls,
        name,
        pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"feature_cls": "hook", "no_rewrite": True, "out_indices": tuple(range(4))},
        **{**variant.options, **options},
    )


def unwrap_weights(state_dict: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a training checkpoint, averaged ones if there are any, without ``module.`` in front."""
    for wrapper in _WRAPPERS:
        if isinstance(state_dict.get(wrapper), dict) and state_dict[wrapper]:
            state_dict = state_dict[wrapper]
    return {re.sub(r"^(module\.)+", "", name): value for name, value in state_dict.items()}


def rename_weights(state_dict: dict[str, Tensor], patterns: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the weights under other names: each (regular expression, replacement) in turn."""
    pairs = tuple(patterns)

    def renamed(name: str) -> str:
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        return name

    return {renamed(name): value for name, value in state_dict.items()}


def variants() -> dict[str, Variant]:
    """Return every registered network by its name."""
    found: dict[str, Variant] = {}
    for family in FAMILIES:
        found |= importlib.import_module(f"striate.models.{family}").VARIANTS
    return found
