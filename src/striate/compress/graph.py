"""The channel-dependency graph: which channels of which layers stay or go together.

One forward pass is followed with numbered channels (:mod:`striate.compress.labels`), so it does not matter how a
network is written: functional calls, reused modules, ``chunk``, ``cat``, channel shuffles and gates are all seen.

Why not Torch-Pruning, whose dependency graph (Fang et al. 2023, arXiv 2301.12900) does the same job? It was tried
(1.6.1, random channel sets, the cropped network against the same network with those channels zeroed):

* It cannot be built on torchvision's ShuffleNetV2 (ZeroDivisionError; its issues 14 and 45 on channel shuffles are
  open), and channel splits and shuffles are part of what has to be cropped here.
* On ResNeXt and RegNet its check accepts channel sets that are uneven over the groups of a grouped convolution; the
  cropped network runs and computes something else. Wrong indices across concatenation (issue 415) and views (125, 219)
  are reported too.
* On weight-standardised convolutions (``nf_resnet26``) and splits of fixed size (``mixnet_s``) it returns networks that
  crash, on ``res2net50`` it crashes itself; a convolution with one output counts as depthwise (179).
* It edits the person's network in place, and leaves no record from which the result could be rebuilt without it.

It was right on ResNet, VGG, DenseNet, MobileNet, EfficientNet, GhostNet and HRNet, and so is this one. Here whatever is
not understood keeps its width, and the graph says what and why; what is cropped is compared with the masked network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import lcm

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from striate.compress.labels import ChannelLabels
from striate.compress.trace import Seen, Trace
from striate.engine.state import device_of
from striate.errors import ModelError

__all__ = ["Axis", "ChannelGraph", "ChannelGroup", "Layer", "channel_graph"]


@dataclass(frozen=True)
class Axis:
    """One axis of a layer's weights, and what its channels belong to.

    Attributes:
        group: (C,) number of the :class:`ChannelGroup` of each channel; -1 where the channel is fixed.
        channel: (C,) which channel of that group.
    """

    group: np.ndarray
    channel: np.ndarray

    @property
    def size(self) -> int:
        """Channels along it."""
        return len(self.group)

    def width(self, widths: Mapping[int, float]) -> float:
        """Return its size where group ``g`` has ``widths[g]`` channels; groups that are not named stay."""
        return self.size + sum(
            count * (widths[group] / size - 1) for group, (count, size) in self._counts.items() if group in widths
        )

    @cached_property
    def _counts(self) -> dict[int, tuple[int, int]]:
        """Group -> how many places of this axis belong to it, and how many channels it has."""
        places = Counter(self.group[self.group >= 0].tolist())
        return {group: (count, len(np.unique(self.channel[self.group == group]))) for group, count in places.items()}

    def kept(self, keep: Mapping[int, np.ndarray]) -> np.ndarray:
        """Return the places of the channels that stay where group ``g`` keeps its channels ``keep[g]``."""
        stays = np.ones(self.size, dtype=bool)
        for group in np.unique(self.group):
            if group in keep:
                here = self.group == group
                chosen = np.zeros(self.size, dtype=bool)
                chosen[keep[group]] = True
                stays[here] = chosen[self.channel[here]]
        return np.flatnonzero(stays)


@dataclass(frozen=True)
class Layer:
    """A module with channels.

    Attributes:
        name: its path in the network.
        kind: ``"conv"``, ``"linear"``, ``"norm"`` (with PReLU), ``"pad"`` (a zero-padded shortcut), or ``"tensor"``
            (a parameter or buffer that stands by itself, as a layer scale).
        inputs, outputs: its two axes; the same one for all but convolutions and linear layers.
        groups: of a convolution or group norm.
        transposed: whether a convolution's weight has its input axis first.
        weights: elements of the weight of a convolution or linear layer, else 0: what densities are counted in.
        macs: multiply-accumulates for one image, in eval mode.
        from_image: it reads nothing but the network's input.
        to_output: it writes nothing but the network's output.
    """

    name: str
    kind: str
    inputs: Axis
    outputs: Axis
    groups: int = 1
    transposed: bool = False
    weights: int = 0
    macs: int = 0
    from_image: bool = False
    to_output: bool = False

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved by itself, so that both axes are one."""
        return self.kind == "conv" and self.groups > 1 and self.groups == self.inputs.size

    def density(self, widths: Mapping[int, float]) -> float:
        """Return its weights at these widths, in units of those that it has now."""
        density = self.outputs.width(widths) / self.outputs.size
        return density if self.depthwise else density * self.inputs.width(widths) / self.inputs.size


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are alike: written and read by the same layers. One width can be chosen for them.

    Attributes:
        index: its number in the graph.
        size: channels.
        multiple: a width must be a multiple of this, for the sake of grouped convolutions and group norms, and of each
            of so many equal runs of channels the same number must stay.
        writers, readers: names of the convolutions and linear layers on either side; a depthwise one is a writer.
        joined: an addition of two tensors joins them: the trunk of a residual network.
        mixed: a normalisation or a mean over channels combines them, so a cropped network differs from a masked one.
    """

    index: int
    size: int
    multiple: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    joined: bool
    mixed: bool


@dataclass(frozen=True, repr=False)
class ChannelGraph:
    """All layers and groups of a network.

    Attributes:
        layers: every module with channels that ran, in the order of the forward pass.
        groups: what can be cropped; all other channels are fixed.
        fixed: layer -> why its output channels cannot be changed.
        unused: modules with weights that never ran.
    """

    layers: Mapping[str, Layer]
    groups: tuple[ChannelGroup, ...]
    fixed: Mapping[str, str]
    unused: tuple[str, ...] = ()

    @property
    def weighted(self) -> dict[str, Layer]:
        """The convolutions and linear layers that run in eval mode."""
        return {name: layer for name, layer in self.layers.items() if layer.weights and layer.macs}

    @property
    def weights(self) -> int:
        """Their weights."""
        return sum(layer.weights for layer in self.weighted.values())

    @property
    def macs(self) -> int:
        """Their multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.weighted.values())

    def weights_at(self, widths: Mapping[int, float]) -> float:
        """Return the weights where group ``g`` has ``widths[g]`` channels."""
        return sum(layer.weights * layer.density(widths) for layer in self.weighted.values())

    def macs_at(self, widths: Mapping[int, float]) -> float:
        """Return the multiply-accumulates where group ``g`` has ``widths[g]`` channels."""
        return sum(layer.macs * layer.density(widths) for layer in self.weighted.values())

    def __repr__(self) -> str:
        free = sum(group.size for group in self.groups)
        return f"<ChannelGraph: {len(self.weighted)} layers, {len(self.groups)} groups of {free} channels>"


def channel_graph(model: nn.Module, example_input: Tensor) -> ChannelGraph:
    """Return the channel-dependency graph of a network.

    The network is copied and the copy run without computing anything (on the meta device) where that is possible, in
    eval mode, and in train mode too if some layers run only there (auxiliary heads).

    Args:
        model: any network on images; it is not touched.
        example_input: (N, C, H, W); one image of it is enough.

    Raises:
        ModelError: the network does not run on this input.
    """
    if not isinstance(example_input, Tensor) or example_input.dim() < 2:
        raise ModelError("'example_input' of channel_graph must be a batch of images, (N, C, H, W).")
    try:
        return _assembled(Trace(model, "meta", example_input).follow())
    except Exception:  # data-dependent code or tensors outside the state dict cannot run on the meta device
        try:
            return _assembled(Trace(model, device_of(model), example_input).follow())
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            raise ModelError(
                f"{type(model).__name__} could not be followed on an input of {tuple(example_input.shape)}: "
                f"{type(error).__name__}: {reason}"
            ) from error


def _assembled(trace: Trace) -> ChannelGraph:
    """Turn numbers into groups: numbers that belong together are one channel, channels of the same layers a group."""
    labels, seen = trace.labels, trace.seen
    channel_of, stuck = _channels(labels)
    mixed = np.zeros(channel_of.max() + 1, dtype=bool)
    added = mixed.copy()
    for numbers in labels.mixed:
        mixed[channel_of[numbers]] = True
    alone = np.concatenate([np.zeros(0, dtype=int), *(item.outputs for item in seen.values() if item.kind == "tensor")])
    for pairs in labels.added:
        joined = pairs[~np.isin(pairs, alone).any(axis=1)]  # a bias that stands by itself joins nothing
        added[channel_of[joined]] = True
    spots = [(name, side) for name, item in seen.items() for side in _sides(item)]
    group_of, index_in, members = _groups(seen, spots, channel_of, stuck, added)
    why: dict[int, str] = {}
    for numbers, reason in labels.fixed:
        for channel in np.unique(channel_of[numbers]).tolist():
            why.setdefault(channel, reason)

    def axis(numbers: np.ndarray) -> Axis:
        channels = channel_of[numbers]
        return Axis(group_of[channels], index_in[channels])

    image = set(channel_of[trace.image].tolist())
    last = {channel for channel, reason in why.items() if reason == "the network's output"}
    layers, fixed = {}, {}
    for name, item in seen.items():
        inputs, outputs = axis(item.inputs), axis(item.outputs)
        weights = item.module.weight.numel() if item.kind in {"conv", "linear"} else 0  # type: ignore
        layers[name] = Layer(
            name, item.kind, inputs, outputs, item.groups, bool(getattr(item.module, "transposed", False)), weights,
            item.macs,
            from_image=set(channel_of[item.inputs].tolist()) <= image,
            to_output=set(channel_of[item.outputs].tolist()) <= last,
        )  # fmt: skip
        held = channel_of[item.outputs][outputs.group < 0]
        if weights and item.macs and held.size:
            fixed[name] = next((why[channel] for channel in held.tolist() if channel in why), "meets fixed channels")
    reads = {name: set(layer.inputs.group.tolist()) for name, layer in layers.items()}
    writes = {name: set(layer.outputs.group.tolist()) for name, layer in layers.items()}
    groups = []
    for index, channels in enumerate(members):
        writers = tuple(name for name, layer in layers.items() if layer.weights and index in writes[name])
        touching = [
            layer
            for layer in layers.values()
            if not layer.depthwise and index in reads[layer.name] | writes[layer.name]
        ]
        readers = tuple(layer.name for layer in touching if layer.weights and index in reads[layer.name])
        multiple = lcm(*(layer.groups for layer in touching))
        is_added, is_mixed = (bool(noted[channels].any()) for noted in (added, mixed))
        groups.append(ChannelGroup(index, len(channels), multiple, writers, readers, is_added, is_mixed))
    return ChannelGraph(layers, tuple(groups), fixed, trace.unused)


def _sides(item: Seen) -> tuple[str, ...]:
    return ("inputs", "outputs") if item.kind in {"conv", "linear", "pad"} else ("outputs",)


def _channels(labels: ChannelLabels) -> tuple[np.ndarray, np.ndarray]:
    """Return number -> channel, and which channels are fixed."""
    pairs = np.concatenate([*labels.pairs, np.zeros((0, 2), dtype=np.int64)])
    size = labels.count
    matrix = coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    count, channel_of = connected_components(matrix, directed=False)
    stuck = np.zeros(count, dtype=bool)
    stuck[channel_of[0]] = True
    for numbers, _ in labels.fixed:
        stuck[channel_of[numbers]] = True
    return channel_of, stuck


def _groups(
    seen: Mapping[str, Seen],
    spots: list[tuple[str, str]],
    channel_of: np.ndarray,
    stuck: np.ndarray,
    added: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return channel -> group (-1: fixed), channel -> place in its group, and the channels of each group."""
    kinds = added.astype(np.int64)  # channel -> number of what it has been seen in so far
    has_writer = np.zeros(len(stuck), dtype=bool)
    places = [channel_of[getattr(seen[name], side)] for name, side in spots]
    for (name, side), channels in zip(spots, places, strict=True):
        here, counts = np.unique(channels, return_counts=True)
        which = np.unique(kinds[here] * (len(channels) + 1) + counts, return_inverse=True)[1]
        kinds[here] = kinds.max() + 1 + which
        if side == "outputs" and seen[name].kind in {"conv", "linear"}:
            has_writer[here] = True
    met, first = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *places]), return_index=True)
    free = met[np.argsort(first)]
    free = free[has_writer[free] & ~stuck[free]]
    alike = {kind: free[kinds[free] == kind] for kind in dict.fromkeys(kinds[free].tolist())}
    for item in seen.values():  # grouped layers must see channels as whole axes, in order, so that their runs agree
        if item.groups > 1 and not (item.kind == "conv" and item.groups == len(item.inputs)):
            for channels in (channel_of[item.inputs], channel_of[item.outputs]):
                found = set(kinds[channels].tolist())
                if not np.array_equal(channels, alike.get(min(found), ())):
                    alike = {kind: members for kind, members in alike.items() if kind not in found}
    members = list(alike.values())
    group_of, index_in = np.full(len(stuck), -1), np.zeros(len(stuck), dtype=np.int64)
    for index, channels in enumerate(members):
        group_of[channels] = index
        index_in[channels] = np.arange(len(channels))
    return group_of, index_in, members
