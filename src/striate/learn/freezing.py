"""What to freeze: train some kinds of parameters of any network and leave the rest at what they are.

Frozen means ``requires_grad`` False: no gradient is computed, and an optimizer that is given the trainable parameters
(or skips those without gradient, as PyTorch's do) applies no weight decay to them either. Batch norms stay in train
mode and follow the statistics of the features they see; only their scale and shift can be frozen.

- Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", 2021, arXiv 2003.00152: ``freeze_except(model)``
  after :func:`striate.learn.random_init.init_bn`.
- Gavrikov, Keuper, "The Power of Linear Combinations: Learning with Random Convolutions", 2023, arXiv 2301.11360:
  ``freeze_spatial(model)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from striate.engine.model import VisionModel
from striate.errors import InputError, LayerError, did_you_mean
from striate.learn.norms import affine_norms, is_batch_norm, is_norm

__all__ = ["KINDS", "FreezeReport", "Role", "freeze_except", "freeze_spatial", "parameter_roles"]

KINDS = {
    "bn": "scale and shift of batch norms",
    "norm": "scale and shift of all other norms: group, layer, instance, RMS",
    "conv": "weights and biases of convolutions; each is also 'spatial' or 'pointwise'",
    "spatial": "of convolutions whose kernel has more than one tap",
    "pointwise": "of 1 x 1 convolutions",
    "linear": "weights and biases of linear layers, attention's projections included",
    "output": "the last layer, which gives the logits",
    "shortcut": "convolutions on the shortcuts of residual blocks",
    "bias": "biases of everything that is not a norm",
    "other": "whatever is none of these: embeddings, tokens, layer scales",
}
"""The kinds of parameters that :func:`freeze_except` knows; one parameter can be of several."""

_SHORTCUTS = {"shortcut", "skip", "downsample", "proj_shortcut", "conv_shortcut", "identity_conv"}


@dataclass(frozen=True)
class Role:
    """One parameter and what it is for.

    Attributes:
        name: as in ``model.named_parameters()``.
        parameter: itself.
        module: the layer that it belongs to; of a tied parameter the first.
        kinds: some of :data:`KINDS`; of a tied parameter those of all its places.
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    kinds: frozenset[str]


@dataclass(frozen=True, repr=False)
class FreezeReport:
    """What is trained now and what is not.

    Attributes:
        trainable: numbers that will be trained.
        frozen: numbers that will not.
        names: parameters that will be trained, in the model's order.
        frozen_names: those that will not.
    """

    trainable: int
    frozen: int
    names: tuple[str, ...]
    frozen_names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    def __repr__(self) -> str:
        share = 100 * self.trainable / max(1, self.trainable + self.frozen)
        return (
            f"<FreezeReport: {self.trainable:,} trainable in {len(self.names)} tensors ({share:.2g} %), "
            f"{self.frozen:,} frozen in {len(self.frozen_names)}>"
        )


def freeze_except(model: nn.Module, train: str | Iterable[str] | Callable[[Role], bool] = ("bn",)) -> FreezeReport:
    """Let only some kinds of parameters be trained, in place; all others are frozen, whatever they were before.

    Args:
        model: any network.
        train: kinds out of :data:`KINDS`, or a function that says of each parameter's :class:`Role` whether it is
            trained. ``"output"`` is the classifier that timm declares, else the last linear layer, else the last
            convolution. ``"shortcut"`` goes by names: ``shortcut``, ``skip``, and ``downsample`` where it stands
            beside convolutions.

    Raises:
        InputError: no such kind.
        LayerError: there is nothing of a kind that was asked for, or the function picks nothing; the model is as it
            was.

    >>> from striate.models.cifar_resnet import cifar_resnet
    >>> freeze_except(cifar_resnet(866), "bn").trainable
    64736
    >>> freeze_except(cifar_resnet(14), ["bn", "output"])
    <FreezeReport: 1,770 trainable in 32 tensors (1 %), 173,488 frozen in 15>
    """
    roles = parameter_roles(model)
    if callable(train):
        chosen = {role.name for role in roles if train(role)}
        if not chosen:
            raise LayerError(f"The function given to freeze_except picks no parameter of {type(model).__name__}.")
        return _freeze(roles, chosen)
    kinds = (train,) if isinstance(train, str) else tuple(train)
    if not kinds:
        raise InputError("train", "freeze_except", allowed="one kind or more", got=kinds)
    for kind in kinds:
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS).strip()
            raise InputError("train", "freeze_except", allowed=f"of {', '.join(KINDS)}", got=kind, hint=hint)
        if not any(kind in role.kinds for role in roles):
            if kind == "bn":
                affine_norms(model, "bn", "freeze_except")  # says why there is none
            what = f"kind '{kind}' ({KINDS[kind]})"
            there = ", ".join(known for known in KINDS if any(known in role.kinds for role in roles))
            hint = f"It has {there}; a function can pick others by name."
            raise LayerError(f"{type(model).__name__} has no parameter of {what}. {hint}")
    return _freeze(roles, {role.name for role in roles if role.kinds & set(kinds)})


def freeze_spatial(model: nn.Module, min_area: int = 2) -> FreezeReport:
    """Freeze every convolution whose kernel has ``min_area`` taps or more, and let all else be trained, in place.

    What is left to train are 1 x 1 convolutions (shortcuts too), linear layers and norms. Of a
    :class:`striate.layers.lc_conv.LCConv2d` its random filters are frozen and its combinations trained. Call it
    before training starts: the filters stay as they are now, so a pretrained network keeps its learned ones.

    Args:
        model: any network with spatial convolutions.
        min_area: least height times width of a kernel to be frozen; 2 is every spatial one.

    Raises:
        InputError: min_area below 2, which would freeze 1 x 1 convolutions as well.
        LayerError: no convolution is that large.

    >>> import torchvision
    >>> freeze_spatial(torchvision.models.resnet50()).frozen
    11326656
    """
    if min_area < 2:
        raise InputError("min_area", "freeze_spatial", allowed=">= 2", got=min_area)
    roles = parameter_roles(model)

    def large(role: Role) -> bool:
        return isinstance(role.module, _ConvNd) and _taps(role.module) >= min_area

    frozen = {role.name for role in roles if large(role)}
    if not frozen:
        raise LayerError(f"{type(model).__name__} has no convolution of {min_area} taps or more to freeze.")
    return _freeze(roles, {role.name for role in roles} - frozen)


def parameter_roles(model: nn.Module) -> tuple[Role, ...]:
    """Return every parameter of ``model`` with the kinds that it is of, in the model's order."""
    outputs = _output_layers(model)
    modules = dict(model.named_modules())
    kinds: dict[int, set[str]] = {}
    first: dict[int, nn.Module] = {}
    for place, own in modules.items():
        path = f".{place}".partition(".parametrizations.")[0][1:]  # what a weight is computed from is its layer's
        module = modules[path]
        shortcut = isinstance(module, _ConvNd) and _on_shortcut(model, path)
        for name, parameter in own.named_parameters(recurse=False):
            found = kinds.setdefault(id(parameter), set())
            found |= _kinds(module, name)
            found |= {"output"} if module in outputs else set()
            found |= {"shortcut"} if shortcut else set()
            first.setdefault(id(parameter), module)
    return tuple(
        Role(name, parameter, first[id(parameter)], frozenset(kinds[id(parameter)]))
        for name, parameter in model.named_parameters()
    )


def _kinds(module: nn.Module, name: str) -> set[str]:
    if is_batch_norm(module):
        return {"bn"}
    if is_norm(module):
        return {"norm"}
    bias = {"bias"} if name.endswith("bias") else set()
    if isinstance(module, _ConvNd):
        return {"conv", "spatial" if _taps(module) > 1 else "pointwise"} | bias
    if isinstance(module, nn.Linear | nn.MultiheadAttention):
        return {"linear"} | bias
    return bias or {"other"}


def _taps(conv: _ConvNd) -> int:
    taps = 1
    for size in conv.kernel_size:
        taps *= size
    return taps


def _output_layers(model: nn.Module) -> list[nn.Module]:
    network = model.network if isinstance(model, VisionModel) else model
    declared = (getattr(network, "pretrained_cfg", None) or {}).get("classifier")
    modules = dict(network.named_modules())
    heads = [modules.get(name) for name in ((declared,) if isinstance(declared, str) else declared or ())]
    found: list[nn.Module] = [head for head in heads if isinstance(head, nn.Linear | _ConvNd)]
    if found or (heads and all(isinstance(head, nn.Identity) for head in heads)):  # without classes: no output layer
        return found
    for kind in (nn.Linear, _ConvNd):
        found = [module for module in modules.values() if isinstance(module, kind)]
        if found:
            return found[-1:]
    return []


def _on_shortcut(model: nn.Module, path: str) -> bool:
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part not in _SHORTCUTS:
            continue
        # Between the stages of ConvNeXt and Swin stands a downsample that is no shortcut.
        siblings = [name for name, _ in model.get_submodule(".".join(parts[:i])).named_children()]
        if part != "downsample" or any(name.startswith("conv") for name in siblings):
            return True
    return False


def _freeze(roles: Iterable[Role], chosen: set[str]) -> FreezeReport:
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for role in roles:
        role.parameter.requires_grad_(role.name in chosen)
        (trained if role.name in chosen else frozen)[role.name] = role.parameter.numel()
    return FreezeReport(sum(trained.values()), sum(frozen.values()), tuple(trained), tuple(frozen))
