"""Following channels through the operations of a forward pass, whatever the modules around them are called.

Every element of a tensor carries the number of the channel that it belongs to, 0 where it belongs to none. What moves
elements about (views, permutations, concatenation) is simply run on the numbers too; what computes element by element
joins the channels that meet; all else holds its channels fast, and says what did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode_temporarily
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["ChannelLabels", "varying"]

_MOVES = frozenset({
    "_unsafe_view", "view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "select", "slice",
    "split", "split_with_sizes", "unbind", "cat", "stack", "flip", "roll",
})  # fmt: skip
_TAKES_A_PART = frozenset({"select", "slice", "split", "split_with_sizes", "unbind", "roll", "flip"})
_SAME = frozenset({
    "alias", "clone", "detach", "contiguous", "_to_copy", "to", "lift_fresh", "native_dropout", "bernoulli",
    "hardswish", "silu", "mish", "gelu", "elu", "hardsigmoid", "hardtanh", "leaky_relu", "relu", "relu6", "sigmoid",
    "tanh", "softplus",
})  # fmt: skip
_SPATIAL = frozenset({
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool1d",
    "adaptive_avg_pool1d", "max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "upsample_bilinear2d",
    "upsample_nearest2d", "upsample_bicubic2d", "reflection_pad2d", "replication_pad2d", "constant_pad_nd",
    "grid_sampler_2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
})  # fmt: skip
_REDUCTIONS = frozenset({
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "argmax", "linalg_vector_norm", "norm",
    "logsumexp", "var_mean", "std_mean",
})  # fmt: skip
_LIKE = frozenset({"empty_like", "zeros_like", "ones_like", "rand_like", "randn_like", "full_like"})
_ACROSS = frozenset({"_softmax", "_safe_softmax", "_log_softmax", "cumsum"})


class ChannelLabels(TorchDispatchMode):
    """Numbers channels and notes which of them belong together, while a network runs under it.

    Attributes:
        count: numbers given so far; 0 is "no channel".
        pairs: (n, 2) arrays of numbers that must stay or go together.
        fixed: (numbers, why) of channels that must stay.
        mixed: numbers of channels that a normalisation or a mean over channels combines: without one of them the
            others come out differently than with a zero in its place.
        added: (n, 2) arrays of numbers that an addition of two tensors joined.
        where: called for the place in the network, for reasons.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.count = 1
        self.pairs: list[np.ndarray] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.mixed: list[np.ndarray] = []
        self.added: list[np.ndarray] = []
        self.where = where
        self._labels: Any = WeakTensorKeyDictionary()
        self._paused = 0

    # ------------------------------------------------------------------------------------------------- numbers

    def fresh(self, n: int) -> np.ndarray:
        """Return ``n`` new numbers."""
        start, self.count = self.count, self.count + n
        return np.arange(start, start + n)

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Note that channel ``first[i]`` stays exactly if ``second[i]`` does."""
        differ = first != second
        if differ.any():
            self.pairs.append(np.stack([first[differ], second[differ]], axis=1))

    def fix(self, labels: Tensor | np.ndarray, why: str) -> None:
        """Note that these channels must stay."""
        numbers = _distinct(labels)
        numbers = numbers[numbers > 0]
        if numbers.size:
            self.fixed.append((numbers, why))

    def mix(self, labels: Tensor | np.ndarray) -> None:
        """Note that these channels are normalised or averaged over."""
        self.mixed.append(_distinct(labels))

    def get(self, tensor: Any) -> Tensor | None:
        """Return the numbers of a tensor's elements, of its shape, or None."""
        return self._labels.get(tensor) if isinstance(tensor, Tensor) else None

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Say which channels a tensor's elements belong to; ``labels`` is broadcast to its shape."""
        self._labels[tensor] = _compact(labels.expand(tensor.shape))

    def put_along(self, tensor: Tensor, axis: int, numbers: np.ndarray) -> None:
        """Say which channels lie along one axis of a tensor."""
        shape = [1] * tensor.dim()
        shape[axis] = -1
        self.put(tensor, torch.from_numpy(numbers).view(shape))

    def along(self, tensor: Tensor, axis: int, why: str) -> np.ndarray:
        """Return the numbers along one axis; zeros, and the channels held fast, where they vary along another."""
        labels = self.get(tensor)
        size = tensor.shape[axis]
        if labels is None:
            return np.zeros(size, dtype=np.int64)
        if set(varying(labels)) <= {axis % tensor.dim()}:
            place: list[Any] = [0] * labels.dim()
            place[axis] = slice(None)
            return labels[tuple(place)].numpy().copy()
        self.fix(labels, why)
        return np.zeros(size, dtype=np.int64)

    @contextmanager
    def paused(self) -> Any:
        """Let operations pass unseen, as inside a layer that is known as a whole."""
        self._paused += 1
        try:
            with _pop_mode_temporarily():
                yield
        finally:
            self._paused -= 1

    @property
    def is_paused(self) -> bool:
        """Whether operations pass unseen now."""
        return self._paused > 0

    # ---------------------------------------------------------------------------------------------- operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        changed = args[0] if args and name.endswith("_") else None
        if isinstance(changed, Tensor) and changed.is_meta and _pointwise(func, name.rstrip("_")):
            out = changed  # in place, where there is nothing to compute
        else:
            out = func(*args, **kwargs)
        if not self._paused:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if any(self.get(tensor) is not None for tensor in tensors):
                self._follow(func, args, kwargs, tensors, out)
        return out

    def _follow(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], out: Any) -> None:
        name = func.overloadpacket.__name__
        plain = name.rstrip("_") if not name.startswith("_") else name
        labelled = [tensor for tensor in tensors if self.get(tensor) is not None]
        if name in _MOVES and self._move(func, name, args, kwargs, labelled, out):
            return
        if name in _LIKE or plain in _SAME or (_pointwise(func, plain) and isinstance(out, Tensor)):
            self._meet(plain, tensors, out)
        elif name in _SPATIAL and self._spatial(name, args, labelled, out):
            pass
        elif name in _REDUCTIONS:
            self._reduce(func, args, kwargs, labelled[0], out)
        elif name in _ACROSS:
            labels = self.get(labelled[0])
            assert labels is not None
            if args[1] % labels.dim() in varying(labels):
                self.mix(labels)
            self.put(out, labels)
        elif name == "as_strided_" and out.shape == self.get(out).shape and out.is_contiguous():  # type: ignore
            pass  # pooling to one pixel: only the order in memory is channels-last
        elif name == "copy_" and self.get(args[1]) is not None and not args[0]._is_view():
            self.put(out, self.get(args[1]))  # type: ignore[arg-type]
        elif isinstance(out, Tensor) or tree_leaves(out):
            self._hold(labelled, name)

    def _hold(self, labelled: Sequence[Tensor], name: str) -> None:
        for tensor in labelled:
            self.fix(self.get(tensor), f"{name} in {self.where()}")  # type: ignore[arg-type]

    def _move(self, func: Any, name: str, args: Any, kwargs: Any, labelled: Sequence[Tensor], out: Any) -> bool:
        """Run what only moves elements on the numbers as well."""

        def numbers(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            found = self.get(leaf)
            return torch.zeros((), dtype=torch.int64).expand(leaf.shape) if found is None else found

        moved_args, moved_kwargs = tree_map(numbers, (args, kwargs))
        if name in {"view", "_unsafe_view", "reshape"}:
            moved = moved_args[0].reshape(out.shape)
        else:
            moved = func(*moved_args, **moved_kwargs)
        before = {axis for tensor in labelled for axis in varying(self.get(tensor))}  # type: ignore[arg-type]
        results = [moved] if isinstance(moved, Tensor) else list(moved)
        if any(len(varying(_compact(result))) > 1 for result in results):
            self._hold(labelled, f"{name} that splits channels")
        elif name in _TAKES_A_PART and before & {_axis_of(name, args, kwargs, args[0].dim())}:
            self._hold(labelled, f"{name} along channels")
        for tensor, result in zip([out] if isinstance(out, Tensor) else out, results, strict=True):
            self.put(tensor, result)
        return True

    def _meet(self, name: str, tensors: Sequence[Tensor], out: Any) -> None:
        """Join the channels that meet in an operation on elements."""
        result = out if isinstance(out, Tensor) else out[0]
        shape = result.shape
        merged: Tensor | None = None
        for tensor in tensors:
            labels = self.get(tensor)
            if labels is None:
                continue
            if merged is None:
                merged = _lifted(labels, len(shape))
                continue
            merged = self._meet_two(name, merged, _lifted(labels, len(shape)))
        assert merged is not None
        for tensor in tensors:
            if self.get(tensor) is None and set(varying(merged)) & _long_axes(tensor, len(shape)):
                # A constant with a value for each channel that belongs to no parameter of its own.
                self.fix(merged, f"{name} with a constant in {self.where()}")
        self.put(result, merged)

    def _meet_two(self, name: str, first: Tensor, second: Tensor) -> Tensor:
        one, two = varying(first), varying(second)
        if one and two and one != two:
            for labels in (first, second):
                self.fix(labels, f"{name} across axes in {self.where()}")
            return torch.zeros((), dtype=torch.int64).expand(torch.broadcast_shapes(first.shape, second.shape))
        wide, narrow = (first, second) if one else (second, first)
        axes = varying(wide)
        if axes and all(narrow.shape[axis] == 1 for axis in axes):
            self.fix(narrow, f"{name} of one channel with many in {self.where()}")
            return wide
        a, b = torch.broadcast_tensors(_core(first), _core(second))
        numbers_a, numbers_b = a.reshape(-1).numpy(), b.reshape(-1).numpy()
        if name == "add":
            self.added.append(np.stack([numbers_a, numbers_b], axis=1)[numbers_a != numbers_b])
        self.join(numbers_a, numbers_b)
        return wide if wide.numel() >= narrow.numel() else narrow

    def _spatial(self, name: str, args: Any, labelled: Sequence[Tensor], out: Any) -> bool:
        labels = self.get(args[0])
        result = out if isinstance(out, Tensor) else out[0]
        if labels is None or len(labelled) > 1 or result.dim() != labels.dim():
            return False
        axes = varying(labels)
        if any(result.shape[axis] != labels.shape[axis] for axis in axes):
            if name != "constant_pad_nd":
                return False
            self.fix(labels, f"zero padding of channels in {self.where()}")
            return True
        core = _core(labels)
        if any(core.shape[axis] > 1 for axis in range(2, labels.dim())):
            return False  # channels along an axis that is pooled
        self.put(result, core)
        return True

    def _reduce(self, func: Any, args: Any, kwargs: Any, source: Tensor, out: Any) -> None:
        labels = self.get(source)
        assert labels is not None
        given = _bound(func, args, kwargs)
        dims = given.get("dim")
        axes = range(labels.dim()) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
        reduced = {axis % labels.dim() for axis in axes}
        if reduced & set(varying(labels)):
            self.mix(labels)
            return
        kept = labels
        for axis in sorted(reduced, reverse=True):
            kept = kept.narrow(axis, 0, 1) if given.get("keepdim") else kept.select(axis, 0)
        for result in [out] if isinstance(out, Tensor) else out:
            self.put(result, kept)


def varying(labels: Tensor) -> tuple[int, ...]:
    """Return the axes along which the channel changes."""
    return tuple(axis for axis in range(labels.dim()) if labels.shape[axis] > 1 and labels.stride(axis) != 0)


def _compact(labels: Tensor) -> Tensor:
    """Return the same numbers, with stride 0 along every axis where they do not change."""
    core = _core(labels)
    for axis in range(labels.dim()):
        if core.shape[axis] > 1:
            first = core.narrow(axis, 0, 1)
            if bool((core == first).all()):
                core = first
    return core.contiguous().expand(labels.shape)


def _distinct(labels: Tensor | np.ndarray) -> np.ndarray:
    return np.unique(_core(labels) if isinstance(labels, Tensor) else labels)


def _core(labels: Tensor) -> Tensor:
    for axis in range(labels.dim()):
        if labels.stride(axis) == 0 and labels.shape[axis] > 1:
            labels = labels.narrow(axis, 0, 1)
    return labels


def _lifted(labels: Tensor, dim: int) -> Tensor:
    return labels.reshape((1,) * (dim - labels.dim()) + labels.shape) if labels.dim() < dim else labels


def _long_axes(tensor: Tensor, dim: int) -> set[int]:
    return {axis + dim - tensor.dim() for axis in range(tensor.dim()) if tensor.shape[axis] > 1}


def _pointwise(func: Any, plain: str) -> bool:
    if torch.Tag.pointwise in func.tags:
        return True
    packet = getattr(torch.ops.aten, plain, None)
    overload = getattr(packet, func._overloadname, None) if packet is not None else None
    return overload is not None and torch.Tag.pointwise in overload.tags


def _bound(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _axis_of(name: str, args: Any, kwargs: Any, dim: int) -> int | None:
    """Return the axis that a part is taken along; roll and flip may have several, of which the first counts."""
    place = {"select": 1, "slice": 1, "split": 2, "split_with_sizes": 2, "unbind": 1, "roll": 2, "flip": 1}[name]
    axis = kwargs.get("dim", kwargs.get("dims", args[place] if len(args) > place else 0))
    if isinstance(axis, list | tuple):
        axis = axis[0] if axis else 0
    return axis % dim
