"""One forward pass of a network with numbered channels: which of them each of its modules reads and writes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from striate.compress.labels import ChannelLabels, varying
from striate.engine.state import as_written, copy_with, seeded
from striate.models.mini import PadShortcut

__all__ = ["Seen", "Trace"]

_CONVS = (nn.modules.conv._ConvNd,)
_LINEAR = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
_NORMS = (
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm,
    nn.PReLU,
)  # fmt: skip
_OPAQUE = (nn.RNNBase, nn.MultiheadAttention, nn.Embedding, nn.Bilinear)
_LEAVES = (*_CONVS, nn.Linear, *_NORMS, PadShortcut, *_OPAQUE)


@dataclass
class Seen:
    """What one module showed when it ran: numbers of its channels."""

    module: nn.Module | None
    kind: str
    inputs: np.ndarray
    outputs: np.ndarray
    groups: int = 1
    macs: int = 0


@dataclass
class Trace:
    """One network, followed: run :meth:`follow`, then read.

    Attributes:
        model: the network; a copy of it is run.
        device: where to; ``"meta"`` computes nothing.
        example: (N, C, H, W).
        seen: what every module, and every vector that stands by itself, showed.
        labels: which numbers belong together.
        image: the numbers of the input's channels.
        unused: modules with channels that never ran.
    """

    model: nn.Module
    device: Any
    example: Tensor
    seen: dict[str, Seen] = field(default_factory=dict)
    place: list[str] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)
    users: dict[int, list[str]] = field(default_factory=dict)

    def follow(self) -> Trace:
        """Run the network, and return this trace."""
        with torch.no_grad(), seeded(0), as_written(self.model):
            tensors = (*self.model.parameters(), *self.model.buffers())
            copied = copy_with(self.model, ((tensor, tensor.detach().to(self.device, copy=True)) for tensor in tensors))
            self.labels = ChannelLabels(lambda: (self.place[-1] if self.place else "") or "the network")
            leaves = {name: module for name, module in copied.named_modules() if isinstance(module, _LEAVES)}
            for name, module in copied.named_modules():
                for _, parameter in module.named_parameters(recurse=False):
                    self.users.setdefault(id(parameter), []).append(name)
                for hooks in (module._forward_hooks, module._forward_pre_hooks):
                    hooks.clear()
                self._watch(name, module, leaf=name in leaves)
            self._number_tensors(copied, leaves)
            self._run(copied.eval(), self.example[:1])
            if set(leaves) - self.ran:
                macs = {name: seen.macs for name, seen in self.seen.items()}
                with suppress(RuntimeError, ValueError, TypeError):
                    self._run(copied.train(), self.example[:1].expand(2, *self.example.shape[1:]))
                for name, seen in self.seen.items():
                    seen.macs = macs.get(name, 0)
        self.unused = tuple(name for name in leaves if name not in self.ran)
        return self

    def _run(self, model: nn.Module, example: Tensor) -> None:
        x = torch.empty_like(example, device=self.device) if str(self.device) == "meta" else example.to(self.device)
        with self.labels:
            if not hasattr(self, "image"):
                self.image = self.labels.fresh(x.shape[1])
                self.labels.fix(self.image, "the network's input")
            self.labels.put_along(x, 1, self.image)
            out = model(x)
            if not _tensors(out):
                raise TypeError(f"it returns {type(out).__name__}, not tensors or tuples, lists or dicts of them.")
            for tensor in _tensors(out):
                found = self.labels.get(tensor)
                if found is not None:
                    self.labels.fix(found, "the network's output")

    def _watch(self, name: str, module: nn.Module, *, leaf: bool) -> None:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.place.append(name)
            self.ran.add(name)
            try:
                if not leaf or self.labels.is_paused:
                    return original(*args, **kwargs)
                with self.labels.paused():
                    x = args[0] if args else next(iter(kwargs.values()))
                    idle = isinstance(module, _NORMS) and x.is_meta  # of the input's shape, with nothing to compute
                    out = torch.empty_like(x) if idle else original(*args, **kwargs)
                    self._leaf(name, module, x, out)
                return out
            finally:
                self.place.pop()

        module.forward = forward

    def _number_tensors(self, model: nn.Module, leaves: Iterable[str]) -> None:
        """Give channels to parameters and buffers that stand by themselves and are vectors."""
        inside = tuple(f"{name}." for name in leaves)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            long = [axis for axis in range(tensor.dim()) if tensor.shape[axis] > 1]
            if len(long) == 1 and not (name + ".").startswith(inside):
                numbers = self.labels.fresh(tensor.shape[long[0]])
                self.labels.put_along(tensor, long[0], numbers)
                self.seen[name] = Seen(None, "tensor", numbers, numbers)

    def _leaf(self, name: str, module: nn.Module, x: Tensor, out: Any) -> None:
        labels = self.labels
        if not isinstance(out, Tensor) or isinstance(module, _OPAQUE) or not _plain(module):
            for tensor in _tensors(x):
                found = labels.get(tensor)
                if found is not None:
                    labels.fix(found, f"{type(module).__name__} {name} is not understood")
            return
        if isinstance(module, _NORMS):
            self._norm(name, module, x, out)
            return
        if isinstance(module, nn.Linear):
            axis_in = axis_out = x.dim() - 1
        else:
            axis_in = axis_out = x.dim() - 1 - len(getattr(module, "kernel_size", (1, 1)))
        found = labels.get(x)
        if found is not None and isinstance(module, _CONVS) and x.shape[axis_in] == 1 and x.shape == out.shape:
            axes = varying(found)
            if axes and axis_in not in axes:  # channels as places of a convolution (ECA): it mixes neighbours
                labels.mix(found)
                labels.put(out, found)
                one = np.zeros(1, dtype=np.int64)
                self._see(name, Seen(module, "conv", one, one, 1, module.weight.numel() * out.numel()))
                return
        numbers = labels.along(x, axis_in, f"{name} reads across channels")
        groups = getattr(module, "groups", 1)
        known = self.seen.get(name)
        outputs = known.outputs if known is not None else labels.fresh(out.shape[axis_out])
        kind = "linear" if isinstance(module, nn.Linear) else "conv"
        macs = 0
        if isinstance(module, PadShortcut):
            kind = "pad"
            labels.mix(numbers)
            labels.mix(outputs)
        else:
            assert isinstance(module.weight, Tensor)
            if not _linear_in_its_weight(self.model.get_submodule(name)):
                labels.mix(numbers)
            macs = module.weight.numel() * (x if getattr(module, "transposed", False) else out).numel()
            macs //= (x if getattr(module, "transposed", False) else out).shape[axis_out]
        if groups > 1 and groups == len(numbers):
            labels.join(np.repeat(numbers, len(outputs) // groups), outputs)
        elif groups > 1 and getattr(module, "transposed", False):
            labels.fix(np.concatenate([numbers, outputs]), f"{name} is a grouped transposed convolution")
        self._see(name, Seen(module, kind, numbers, outputs, groups, macs))
        labels.put_along(out, axis_out, outputs)

    def _norm(self, name: str, module: nn.Module, x: Tensor, out: Tensor) -> None:
        labels = self.labels
        found = labels.get(x)
        axis = 1
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            axes = varying(found) if found is not None else ()
            axis = axes[0] if len(axes) == 1 and len(module.normalized_shape) == 1 else x.dim() - 1
            if found is not None and (not axes or x.shape[axis] != module.normalized_shape[0]):
                labels.fix(found, f"{name} normalises over more than channels")
        numbers = labels.along(x, axis, f"{name} is not over channels")
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            numbers = numbers[:0]
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            labels.mix(numbers)
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else 1
        self._see(name, Seen(module, "norm", numbers, numbers, groups))
        if found is not None:
            labels.put(out, found)

    def _see(self, name: str, seen: Seen) -> None:
        weight = None if seen.module is None else seen.module._parameters.get("weight")
        users = self.users.get(id(weight), [])
        if len(users) > 1:  # the others may not be cropped alike
            self.labels.fix(np.concatenate([seen.inputs, seen.outputs]), f"{' and '.join(users)} share one weight")
        known = self.seen.get(name)
        if known is None:
            self.seen[name] = seen
            return
        self.labels.join(known.inputs, seen.inputs)
        self.labels.join(known.outputs, seen.outputs)
        known.macs += seen.macs


def _plain(module: nn.Module) -> bool:
    """Whether the weights are the module's own parameters, not computed from others (parametrizations, pruning)."""
    weight = getattr(module, "weight", None)
    return weight is None or "weight" in module._parameters


def _linear_in_its_weight(module: nn.Module) -> bool:
    """Whether twice the weight gives twice the output; not so where weights are standardised, which mixes inputs."""
    if type(module).forward in {kind.forward for kind in _LINEAR}:
        return True
    probe: Any = copy.deepcopy(module).cpu().float().eval()
    spatial = [4 * size for size in getattr(probe, "kernel_size", ())]
    x = torch.randn(1, getattr(probe, "in_channels", getattr(probe, "in_features", 1)), *spatial)
    for key, parameter in probe.named_parameters():  # not as they are: a gain may start at zero
        parameter.normal_() if key == "weight" else parameter.fill_(0.0 if key == "bias" else 1.0)
    once = probe(x)
    probe.weight.mul_(2)
    return bool(torch.allclose(probe(x), 2 * once, rtol=1e-2, atol=1e-3 * float(once.abs().max())))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
