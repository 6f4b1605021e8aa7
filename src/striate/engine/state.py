"""Looking into a person's model without changing it."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

from striate.errors import InputError, TrainModeWarning

__all__ = [
    "StillStatistics",
    "as_written",
    "copy_with",
    "device_of",
    "find_device",
    "full_precision",
    "inspected",
    "is_compiled",
    "mix_seeds",
    "seeded",
    "transformed",
]


@contextmanager
def inspected(model: nn.Module, *, warn: bool = True, exact: bool = True) -> Iterator[nn.Module]:
    """Put ``model`` in eval mode with frozen parameters, and hand it back exactly as it came.

    A network that went through ``torch.compile`` runs as it is written for the time: hooks are met, and looking inside
    compiles nothing anew. On a GPU convolutions are repeatable and in float32 for the time; PyTorch's default there is
    TF32, with 10 bits after the point, which no check of a result would survive.

    Training flags of every submodule, ``requires_grad`` and ``.grad`` of every parameter are restored on
    exit, also after an exception. With frozen parameters a backward pass computes input gradients only.

    Args:
        model: any module.
        warn: emit :class:`TrainModeWarning` if the model came in training mode.
        exact: False leaves cuDNN's settings alone, for timing what a person would run.
    """
    # Setting an attribute of a module costs a hundred times as much as reading one, so only what differs is set.
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    # model.parameters() would walk the modules again, and put every name together.
    own = dict.fromkeys(own for module in modules for own in module._parameters.values() if own is not None)
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in own]
    if warn and model.training:
        message = (
            f"{type(model).__name__} came in training mode; it is evaluated in eval mode and handed back as it came."
        )
        warnings.warn(message, TrainModeWarning, stacklevel=4)
    try:
        for module, mode in modes:
            if mode:
                module.training = False
        for parameter, requires_grad, _ in parameters:
            if requires_grad:
                parameter.requires_grad_(False)
        with _eager(modules), _exact_cudnn() if exact else nullcontext():
            yield model
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode
        for parameter, requires_grad, grad in parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


@contextmanager
def _exact_cudnn() -> Iterator[None]:
    """Repeatable float32 convolutions inside, where there is a GPU in use; settings as they were after."""
    if not torch.cuda.is_initialized():
        yield
        return
    cudnn, before = torch.backends.cudnn, {}
    try:
        for name, value in {"deterministic": True, "benchmark": False, "allow_tf32": False}.items():
            with suppress(RuntimeError):  # raised where somebody set TF32 operator by operator: that stays as it is
                before[name] = getattr(cudnn, name)
                setattr(cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(cudnn, name, value)


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``torch.compile`` was called on the module itself."""
    return bool(module._compiled_call_impl) or "_orig_mod" in module._modules


def as_written(model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which a network that went through ``torch.compile`` runs as it is written."""
    return _eager(model.modules())


def _eager(modules: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    return torch.compiler.set_stance("force_eager") if any(map(is_compiled, modules)) else nullcontext()


class StillStatistics(AbstractContextManager[None]):
    """Leave the running statistics of batch norms alone inside a ``with`` block, whatever passes through in train mode.

    Can be entered again after it was left, as recomputing a checkpointed part of a network may have to.

    Args:
        model: the network, or a part of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._before: list[tuple[float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        self._before = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm in self._norms:
            # Momentum 0 keeps the running statistics; without its counter a cumulative average keeps them too.
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, counter) in zip(self._norms, self._before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run with PyTorch's global generators at ``seed`` and put them back after; None leaves them alone."""
    if seed is None:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:  # torch.manual_seed would note its caller's stack, for accelerators to come: a fiftieth of a CAM's time
            torch.default_generator.manual_seed(seed)
        yield


def mix_seeds(*parts: int) -> int:
    """Return a 63-bit seed that depends on every part (each >= 0); neighbouring parts give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


@torch.no_grad()
def copy_with(model: nn.Module, tensors: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """Return a deep copy of a network with other tensors in it, the rest copied; what goes is not copied in between.

    Args:
        model: not touched.
        tensors: pairs of one of its parameters or buffers, and what stands in the copy instead, wherever it is used.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():  # most of copying a module is its empty dictionaries of hooks
        memo |= {id(own): type(own)() for own in vars(module).values() if type(own) in {dict, OrderedDict} and not own}
    for old, new in tensors:
        memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return copy.deepcopy(model, memo)


def device_of(model: nn.Module, default: str | torch.device = "cpu") -> torch.device:
    """Return the device of the model's first parameter or buffer."""
    tensor: Tensor | None = next(model.parameters(), None)
    if tensor is None:
        tensor = next(model.buffers(), None)
    return torch.device(default) if tensor is None else tensor.device


def find_device(name: str | torch.device, owner: str) -> torch.device:
    """Return a device of this machine by its name, with its number where it has one.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, …
        owner: named in errors.

    Raises:
        InputError: PyTorch knows no such device, or cannot use it here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        allowed = "one that PyTorch can use on this machine, as 'cpu'"
        raise InputError("device", owner, allowed=allowed, got=name, hint=str(error).splitlines()[0]) from error


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which a surrounding autocast is off: numbers are put together in the precision they have."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@torch.compiler.assume_constant_result
def transformed() -> bool:
    """Return whether a transform of torch.func (grad, vmap, jvp, …) or forward-mode differentiation is at work.

    Compiled kernels know nothing of either: their tangents would be zeros, and nothing would say so.
    """
    return bool(_functorch_active()) or forward_ad._current_level >= 0


_functorch_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
