"""Put an attention module after the stages of a CNN that exists already, and look at the gates.

Works on torchvision's ResNets and MobileNets, on the CNNs of timm whose ``feature_info`` names modules that return one
map (not HRNet, SelecSLS), and on any other network if told after which modules.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.model import get_layer
from striate.engine.state import device_of, inspected
from striate.errors import InputError, LayerError
from striate.layers.das import DAS

__all__ = ["Gated", "attention_stages", "gate_maps", "insert_attention", "insert_das"]


class Gated(nn.Module):
    """A module followed by an attention module; its tensors keep the names they had without it.

    Args:
        body: the module; its attributes can still be reached through this one.
        attention: applied to its output.
    """

    def __init__(self, body: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.attention = attention

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``attention(body(...))``."""
        return self.attention(self.body(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("body"), name)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the tensors, the body's under the names that it has alone."""
        destination = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        for key in [key for key in destination if key.startswith(prefix)]:  # all, so that their order stays
            destination[prefix + key.removeprefix(prefix).removeprefix("body.")] = destination.pop(key)
        return destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if not name.startswith(("attention.", "body.")):
                state_dict[f"{prefix}body.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def attention_stages(model: nn.Module) -> tuple[str, ...]:
    """Return the modules after which DAS stands in the paper: the last of each of the stages at stride 4 and deeper.

    In a ResNet ``layer1`` … ``layer4``, after the last residual addition and its ReLU; in MobileNetV2 the last block
    before each further down-sampling and before the pooling (24, 32, 96 and 320 channels).

    Raises:
        LayerError: none can be found.
    """
    info = getattr(model, "feature_info", None)
    if info is not None:
        entries = [entry for entry in info if entry.get("reduction", 4) >= 4 and entry.get("module")]
        if entries:
            return tuple(entry["module"] for entry in entries)
    layers = tuple(name for name, _ in model.named_children() if name.startswith("layer") and name[5:].isdigit())
    if layers:
        return layers
    blocks = _torchvision_blocks(model)
    if blocks:
        return blocks
    raise LayerError(
        f"The stages of {type(model).__name__} are not known: it has no feature_info and no layer1, layer2, … "
        "Name the modules to put attention after: after=['stage1', 'stage2']."
    )


def insert_attention(
    model: nn.Module,
    factory: Callable[[int], nn.Module],
    after: Sequence[str] | None = None,
    *,
    image_size: int = 224,
) -> nn.Module:
    """Return a copy of ``model`` with a new attention module after each of some modules.

    The model itself is not changed, as with all that Striate does to a person's network; drop your reference to it
    if memory is short. The copy's old tensors keep their names, so a checkpoint of the plain network loads with
    ``strict=False``; the new ones are called ``STAGE.attention.…``. Where the attention went is kept in the copy's
    attribute ``attention_after``.

    Args:
        model: any network of which the modules named return one tensor (N, C, H, W).
        factory: ``factory(channels)`` returns the attention module, e.g. :class:`DAS` or ``timm.layers.SEModule``.
        after: names of modules, or one; None takes :func:`attention_stages`.
        image_size: side of the square images with which channel counts are found out, on shapes alone.

    Raises:
        LayerError: no such module, or its output is not one tensor (N, C, H, W), or there is attention already, or the
            network does not take images of that size.
    """
    names = attention_stages(model) if after is None else (after,) if isinstance(after, str) else tuple(after)
    if not names:
        raise InputError("after", "insert_attention", allowed="one module name or more", got=list(names))
    copied = copy.deepcopy(model)
    try:
        modules = {name: get_layer(copied, name) for name in names}
        channels = _channels(model, names, image_size)
    except LayerError as error:
        if after is not None:
            raise
        raise LayerError(
            f"Without after=, attention goes after {', '.join(names)} of {type(model).__name__}. {error} "
            "Name the modules to put it after: after=['…']."
        ) from error
    for name, module in modules.items():
        if isinstance(module, Gated) or any(child == "attention" for child, _ in module.named_children()):
            raise LayerError(f"'{name}' of {type(model).__name__} has attention already.")
        attention = factory(channels[name]).train(module.training)
        first = next(module.parameters(), None)
        if first is not None:
            attention = attention.to(first.device, first.dtype)
        if type(module).forward is nn.Sequential.forward:
            module.add_module("attention", attention)  # a Sequential runs it last, and stays what it was
        else:
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, Gated(module, attention))
    copied.attention_after = names  # type: ignore[assignment]
    return copied


def insert_das(
    model: nn.Module, after: Sequence[str] | None = None, *, image_size: int = 224, **options: Any
) -> nn.Module:
    """Return a copy of ``model`` with :class:`DAS` after each stage; see :func:`insert_attention`.

    Args:
        model: any CNN.
        after: names of modules; None takes :func:`attention_stages`.
        image_size: see :func:`insert_attention`.
        **options: of :class:`DAS`; for a pretrained network take ``residual_init=True``.

    >>> import torchvision
    >>> insert_das(torchvision.models.resnet18()).attention_after
    ('layer1', 'layer2', 'layer3', 'layer4')
    """
    return insert_attention(model, functools.partial(DAS, **options), after, image_size=image_size)


def gate_maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return how much each inserted attention module lets through at every place of the images.

    For :class:`DAS` the mean of its gate over channels; for any other module (SE, CBAM, …) the sum over channels of
    the output's magnitude over that of the input, which is exactly the spatial map of a module that has one.

    Args:
        model: from :func:`insert_attention`; it is evaluated in eval mode and left as it came.
        x: (N, C, H, W); moved to where the model is.

    Returns:
        Stage -> (N, H, W), resized to the images bilinearly.

    Raises:
        LayerError: there is no attention in it.
    """
    found = {name: model.get_submodule(f"{name}.attention") for name in getattr(model, "attention_after", ())}
    for name, module in model.named_modules():
        # By identity: a compiled network has each module under a second name.
        if isinstance(module, DAS) and all(module is not other for other in found.values()):
            found[name.removesuffix(".attention")] = module
    if not found:
        raise LayerError(f"{type(model).__name__} has no attention module; put some in with insert_das.")
    maps: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        if isinstance(module, DAS):
            value = (output[1] if isinstance(output, tuple) else module.gate(inputs[0])).mean(dim=1)
        else:
            value = out.abs().sum(dim=1) / inputs[0].abs().sum(dim=1).clamp_min(1e-12)
        maps[name] = F.interpolate(value[:, None].float(), x.shape[-2:], mode="bilinear")[:, 0]

    hooks = [module.register_forward_hook(functools.partial(keep, name)) for name, module in found.items()]
    try:
        with inspected(model, warn=False), torch.no_grad():
            model(x.to(device_of(model, x.device)))
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def _torchvision_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the last inverted residual before each down-sampling, from stride 4 on."""
    features = getattr(model, "features", None)
    if features is None:
        return ()
    blocks = [(name, module) for name, module in features.named_children() if type(module).__name__ in _BLOCKS]
    strides = [_stride(module) for _, module in blocks]
    ends = [i for i in range(len(blocks)) if i + 1 == len(blocks) or strides[i + 1] > 1]
    return tuple(f"features.{blocks[i][0]}" for i in ends if max(strides[: i + 1]) > 1)


_BLOCKS = {"InvertedResidual"}


def _stride(block: nn.Module) -> int:
    return max(m.stride[0] for m in block.modules() if isinstance(m, nn.Conv2d))


def _channels(model: nn.Module, names: Sequence[str], image_size: int) -> dict[str, int]:
    """Return the channels of each module's output, from a forward pass on shapes alone."""
    ghost = copy.deepcopy(model).to("meta").eval()
    shapes: dict[str, Any] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__

    for name in names:
        get_layer(ghost, name).register_forward_hook(functools.partial(keep, name))
    refusal: Exception | None = None
    for colours in _colours(model):
        try:
            with torch.no_grad():
                ghost(torch.empty(1, colours, image_size, image_size, device="meta"))
            break
        except Exception as error:  # whatever a network says to an image that it does not take
            refusal = refusal or error
    else:
        raise LayerError(
            f"{type(model).__name__} does not run on an image of {image_size} x {image_size}: "
            f"{type(refusal).__name__}: {str(refusal).partition(chr(10))[0]}. Give a size that it takes: image_size=…"
        ) from refusal
    info = getattr(model, "feature_info", None) or ()
    known = {entry["module"]: entry["num_chs"] for entry in info if entry.get("module")}
    for name in names:
        shape = shapes.get(name, "nothing in the forward pass")
        # Where the count is known, it also tells channels-first from channels-last (Swin).
        if not isinstance(shape, tuple) or len(shape) != 4 or shape[1] != known.get(name, shape[1]):
            raise LayerError(f"'{name}' of {type(model).__name__} returns {shape}; attention needs (N, C, H, W).")
    return {name: shapes[name][1] for name in names}


def _colours(model: nn.Module) -> tuple[int, ...]:
    """Return how many channels an image may have: those of the first convolution, unless what is before it turns
    pixels into channels; then as the network's record says."""
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    record = getattr(model, "pretrained_cfg", None) or {}
    return tuple(dict.fromkeys((first, (record.get("input_size") or (3,))[0], 3)))
