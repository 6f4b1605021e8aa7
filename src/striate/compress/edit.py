"""Structural edits: a network with fewer (or more) channels, and the proof that it is the one with zeros there.

Whatever chooses the channels, a method of pruning calls :func:`crop_channels` (weights are kept) or :func:`set_widths`
(weights are drawn anew); both take a :class:`~striate.compress.graph.ChannelGraph` and return a new plain network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from striate.compress.graph import ChannelGraph, ChannelGroup, Layer
from striate.engine.check import Check
from striate.engine.resize import resize
from striate.engine.state import copy_with, device_of, inspected, seeded
from striate.errors import CheckError, InputError

__all__ = ["crop_channels", "equality_check", "first_channels", "initialise", "mask_channels", "set_widths"]

Keep = Mapping[int, Any]
"""Group of the graph -> sorted numbers of the channels that stay; groups that are not named stay whole."""

EQUAL = 1e-6
"""Largest difference between the cropped and the masked network, relative to that of two images, in float64."""


def first_channels(graph: ChannelGraph, widths: Mapping[int, int]) -> dict[int, np.ndarray]:
    """Return the first channels of each group, or of each of its equal runs where a grouped layer needs that."""
    keep = {}
    for index, width in widths.items():
        group = graph.groups[index]
        run, share = group.size // group.multiple, width // group.multiple
        keep[index] = np.concatenate([np.arange(share) + run * i for i in range(group.multiple)])
    return keep


def crop_channels(
    model: nn.Module, graph: ChannelGraph, keep: Keep, example_input: Tensor, *, check: bool = True
) -> nn.Module:
    """Return a copy of ``model`` without some channels; the weights of all others are kept.

    Args:
        model: the network that the graph is of; it is not touched.
        graph: from :func:`~striate.compress.graph.channel_graph`.
        keep: group -> numbers of the channels that stay, ascending; at least one, and the same number in each of the
            group's ``multiple`` equal runs.
        example_input: (N, C, H, W), for the check.
        check: compare with the masked network.

    Raises:
        InputError: no such group or channel, none left, or uneven over the runs.
        CheckError: the result differs from the network with these channels masked.
    """
    kept = _checked("crop_channels", graph, keep)
    sizes: dict[str, Any] = {}
    taken: list[tuple[Tensor, Tensor]] = []
    for layer in graph.layers.values():
        ins, outs = (axis.kept(kept) for axis in (layer.inputs, layer.outputs))
        if len(ins) < layer.inputs.size or len(outs) < layer.outputs.size:
            sizes[layer.name] = _sizes(model, layer, len(ins), len(outs))
            for name in _tensors_of(model, layer):
                tensor = _tensor(model, name)
                taken.append((tensor, _taken(tensor.detach(), layer, ins, outs, name)))
    cropped = resize(copy_with(model, taken), {"layers": {k: v for k, v in sizes.items() if v}, "tensors": {}})
    if check:
        found = equality_check(model, graph, kept, example_input)
        if found.passed is False:
            raise CheckError(f"{found.statement} The network was not cropped.")
    return cropped


def set_widths(
    model: nn.Module, graph: ChannelGraph, widths: Mapping[int, int], example_input: Tensor, *, seed: int = 0
) -> nn.Module:
    """Return a copy of ``model`` with other widths, narrower or wider, and freshly initialised.

    Args:
        model: the network that the graph is of; it is not touched.
        graph: from :func:`~striate.compress.graph.channel_graph`.
        widths: group -> channels, a multiple of the group's ``multiple``.
        example_input: (N, C, H, W); one image of it is run through the result.
        seed: of the new weights, see :func:`initialise`.

    Raises:
        InputError: no such group, or a width that does not fit it.
        CheckError: the result does not run, as where the network's code holds one of its widths as a number.
    """
    for index, width in widths.items():
        group = _group("set_widths", graph, index)
        if width < 1 or width % group.multiple:
            allowed = f"a positive multiple of {group.multiple} for the group written by {group.writers[0]}"
            raise InputError("widths", "set_widths", allowed=allowed, got=width)
    with torch.no_grad():  # in which TorchScript's parameters are copied as such
        changed = copy.deepcopy(model)
    starts = {layer.name: _tensor(model, layer.name) for layer in graph.layers.values() if layer.kind == "tensor"}
    sizes: dict[str, Any] = {}
    shapes: dict[str, list[int]] = {}
    for layer in graph.layers.values():
        n_in, n_out = (round(axis.width(widths)) for axis in (layer.inputs, layer.outputs))
        sizes[layer.name] = _sizes(changed, layer, n_in, n_out)
        for name in _tensors_of(changed, layer):
            tensor = _tensor(changed, name)
            shape = _shape(tensor, layer, n_in, n_out, name)
            if shape != list(tensor.shape):
                shapes[name] = shape
    resize(changed, {"layers": {k: v for k, v in sizes.items() if v}, "tensors": shapes})
    initialise(changed, seed)
    for name, start in starts.items():  # a layer scale or the like: one value for all channels
        if _tensor(changed, name).shape != start.shape:
            _tensor(changed, name).data.fill_(start.double().mean())
    image = example_input[:1].to(next(changed.parameters(), example_input))  # device and dtype
    try:
        with torch.no_grad(), inspected(changed, warn=False), seeded(0):
            changed(image)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckError(
            f"{type(model).__name__} does not run at these widths; its code may hold one of them as a number: {reason}."
        ) from error
    return changed


def initialise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all weights anew, in place: convolutions Kaiming-normal by fan-out, all else as PyTorch does.

    He et al. 2015 (arXiv 1502.01852); the fan-out of a grouped convolution is that of one group. Norms start as the
    identity, with fresh statistics. Parameters outside such modules stay.
    """
    with seeded(seed), torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                channels = module.in_channels if module.transposed else module.out_channels
                fan_out = channels // module.groups * math.prod(module.kernel_size)
                module.weight.normal_(0, math.sqrt(2 / fan_out))
                if module.bias is not None:
                    module.bias.zero_()
            elif callable(getattr(module, "reset_parameters", None)):
                module.reset_parameters()  # type: ignore[operator]
    return model


def mask_channels(model: nn.Module, graph: ChannelGraph, keep: Keep) -> nn.Module:
    """Return a copy of ``model`` in which every channel that does not stay is zero wherever it is written and read.

    Raises:
        InputError: as :func:`crop_channels`.
    """
    kept = _checked("mask_channels", graph, keep)
    masked = copy.deepcopy(model)
    modules = dict(masked.named_modules())
    with torch.no_grad():
        for layer in graph.layers.values():
            inside, outside = (_gone(axis, kept) for axis in (layer.inputs, layer.outputs))
            if layer.kind == "tensor":
                _tensor(masked, layer.name).movedim(_long(_tensor(masked, layer.name)), 0)[outside] = 0
                continue
            module: Any = modules[layer.name]
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            transposed = bool(getattr(module, "transposed", False))
            if isinstance(weight, Tensor):
                if transposed and layer.groups > 1:  # depthwise: (in, outputs of each, …)
                    weight[outside // weight.shape[1], outside % weight.shape[1]] = 0
                else:
                    weight = weight.transpose(0, 1) if transposed else weight
                    weight[outside] = 0
                    if layer.weights and layer.groups == 1:
                        weight.transpose(0, 1)[inside] = 0
            if isinstance(bias, Tensor):
                bias[outside] = 0
    return masked


@torch.no_grad()  # in which TorchScript's parameters are copied as such
def equality_check(model: nn.Module, graph: ChannelGraph, keep: Keep, example_input: Tensor) -> Check:
    """Crop a twin of the network, and compare it with the twin in which the cropped channels are zero.

    In float64 and eval mode on two seeded random images; parameters of one value throughout (norms at their start,
    layer scales, weights that start at zero) are drawn at random, so that no branch is silent, and batch norms get the
    statistics of these images, so that no activation is saturated. It does not apply where a normalisation or a mean
    goes over channels that were cropped, and says nothing where the masked network takes both images for the same.
    """
    name = "cropped = masked"
    keep = _checked("equality_check", graph, keep)
    if device_of(model).type == "meta":
        return Check(name, None, "The network is on the meta device, so there are no answers to compare.")
    twin = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *example_input.shape[1:], dtype=torch.float64, generator=generator).to(device_of(twin))
    with seeded(0):
        _liven(twin, images)
    masked = _outputs(mask_channels(twin, graph, keep), images)
    try:
        cropped = _outputs(crop_channels(twin, graph, keep, example_input, check=False), images)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Check(name, False, f"The cropped network does not run: {reason}.")
    if any(graph.groups[index].mixed for index in keep if len(keep[index]) < graph.groups[index].size):
        why = "A normalisation or a zero-padded shortcut goes over cropped channels, so masking them is something else."
        return Check(name, None, why)
    if not all(bool(out.isfinite().all()) for out in masked):
        return Check(name, False, "The network's answers are not finite; look for NaN weights.")
    told = max(_apart(a[:1], a[1:]) for a in masked)
    if told < EQUAL:
        return Check(name, None, "The masked network answers the same to any image, so a comparison says nothing.")
    apart = max(_apart(a, b) for a, b in zip(masked, cropped, strict=True)) / told
    statement = (
        f"On two random images the cropped network differs from the masked one by {apart:.1e} of what the images "
        f"differ by (bound {EQUAL:.0e})."
    )
    return Check(name, apart <= EQUAL, statement, apart, EQUAL)


def _checked(owner: str, graph: ChannelGraph, keep: Keep) -> dict[int, np.ndarray]:
    return {index: _channels(owner, _group(owner, graph, index), channels) for index, channels in keep.items()}


def _channels(owner: str, group: ChannelGroup, channels: Any) -> np.ndarray:
    found = np.asarray(channels.cpu() if isinstance(channels, Tensor) else channels)
    where = f"the group written by {', '.join(group.writers) or 'nothing'}"
    whole = found.ndim == 1 and found.size > 0 and found.dtype.kind in "iu"
    if not whole or (np.diff(found) <= 0).any() or found[0] < 0 or found[-1] >= group.size:
        allowed = f"ascending numbers from 0 to {group.size - 1}, at least one, for {where}"
        raise InputError("keep", owner, allowed=allowed, got=found.tolist())
    per_run = np.bincount(found * group.multiple // group.size, minlength=group.multiple)
    if len(set(per_run.tolist())) > 1:
        allowed = f"even over {group.multiple} runs of {group.size // group.multiple} channels for {where}"
        raise InputError("keep", owner, allowed=allowed, got=f"{per_run.tolist()} channels in the runs")
    return found


def _group(owner: str, graph: ChannelGraph, index: int) -> ChannelGroup:
    if not 0 <= index < len(graph.groups):
        raise InputError("group", owner, allowed=f"from 0 to {len(graph.groups) - 1}", got=index)
    return graph.groups[index]


def _tensors_of(model: nn.Module, layer: Layer) -> list[str]:
    """Return the names of a layer's tensors that have a channel axis."""
    if layer.kind == "tensor":
        return [layer.name]
    module = model.get_submodule(layer.name)
    own = {**module._parameters, **module._buffers}
    return [f"{layer.name}.{key}".lstrip(".") for key, value in own.items() if value is not None and value.dim() > 0]


def _sizes(model: nn.Module, layer: Layer, n_in: int, n_out: int) -> dict[str, Any]:
    """Return the attributes of a module that tell these sizes."""
    if layer.kind == "tensor":
        return {}
    module: Any = model.get_submodule(layer.name)
    if layer.kind == "conv":
        groups = n_in if layer.depthwise else layer.groups
        sizes: dict[str, Any] = {"in_channels": n_in, "out_channels": n_out, "groups": groups}
    elif layer.kind == "linear":
        sizes = {"in_features": n_in, "out_features": n_out}
    elif layer.kind == "pad":
        sizes = {"out_channels": n_out}
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        sizes = {"normalized_shape": [n_out]}
    else:
        key = {"GroupNorm": "num_channels", "PReLU": "num_parameters"}
        kind = next((kind for kind in key if isinstance(module, getattr(nn, kind))), None)
        sizes = {} if layer.outputs.size == 0 else {key[kind] if kind else "num_features": n_out}
    return {name: value for name, value in sizes.items() if _as_list(getattr(module, name)) != value}


def _has_two_axes(tensor: Tensor, layer: Layer, name: str) -> bool:
    return layer.kind in {"conv", "linear"} and name.endswith("weight") and tensor.dim() > 1


def _shape(tensor: Tensor, layer: Layer, n_in: int, n_out: int, name: str) -> list[int]:
    """Return a tensor's shape at these widths."""
    shape = list(tensor.shape)
    if layer.kind == "tensor":
        shape[_long(tensor)] = n_out
    elif _has_two_axes(tensor, layer, name) and not layer.depthwise:
        shape[:2] = [n_in, n_out] if layer.transposed else [n_out, n_in // layer.groups]
    elif layer.outputs.size:
        shape[0] = n_in if layer.transposed and name.endswith("weight") else n_out
    return shape


def _taken(tensor: Tensor, layer: Layer, kept_in: np.ndarray, kept_out: np.ndarray, name: str) -> Tensor:
    """Return the part of a tensor that belongs to the channels that stay."""
    ins, outs = (torch.from_numpy(kept).to(tensor.device) for kept in (kept_in, kept_out))
    if layer.kind == "tensor":
        return tensor.index_select(_long(tensor), outs)
    if not layer.outputs.size:
        return tensor
    if layer.depthwise or not _has_two_axes(tensor, layer, name):
        return tensor.index_select(0, ins if layer.transposed and name.endswith("weight") else outs)
    if layer.groups == 1:
        first, second = (ins, outs) if layer.transposed else (outs, ins)
        return tensor.index_select(0, first).index_select(1, second)
    per_in, per_out = layer.inputs.size // layer.groups, layer.outputs.size // layer.groups
    local = ins.view(layer.groups, -1) % per_in  # run of the input -> which of its channels stay, as many in each
    return tensor[outs[:, None], local[outs // per_out]]


def _gone(axis: Any, keep: Keep) -> np.ndarray:
    return np.setdiff1d(np.arange(axis.size), axis.kept(keep))


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    found = getattr(model.get_submodule(path), leaf)
    assert isinstance(found, Tensor)
    return found


def _long(tensor: Tensor) -> int:
    return max(range(tensor.dim()), key=lambda axis: tensor.shape[axis])


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _liven(model: nn.Module, images: Tensor) -> None:
    """Draw at random what starts at one value, and give batch norms the statistics of what they see."""
    with torch.no_grad(), inspected(model, warn=False):
        for parameter in model.parameters():
            if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.uniform_(0.5, 1.5)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                module.momentum, module.training = 1.0, True
        model(images)


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad(), inspected(model, warn=False):
        return [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)]


def _apart(a: Tensor, b: Tensor) -> float:
    scale = max(float(a.abs().max()), 1e-300)
    return float((a - b).abs().max()) / scale
