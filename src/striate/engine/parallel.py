"""Several processes that compute what one would: summed gradients, shared batch statistics."""

from __future__ import annotations

import atexit
import importlib
import os
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["processes", "shared_batch_norm", "sum_over_processes"]


def processes() -> Any:
    """Return accelerate's state of this job: ``num_processes``, ``process_index``, ``device``, ``is_main_process``.

    One process where nothing else was set up; under ``torchrun`` or ``accelerate launch`` it joins the others.
    """
    from accelerate import PartialState

    _leave_at_exit()
    # On a machine without an accelerator the processes of torchrun only find each other when told so.
    return PartialState(cpu=not torch.accelerator.is_available())


@cache
def _leave_at_exit() -> None:
    """See to it that the threads of a process group end before the interpreter does, which aborts on them otherwise."""
    if "WORLD_SIZE" not in os.environ or not torch.distributed.is_available():
        return
    # Imported after a group was made, by PyTorch's optimisers at the latest, it keeps hold of that group for good.
    importlib.import_module("torch.distributed.nn.functional")

    atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in place, in one message."""
    if processes().num_processes == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    start = 0
    for tensor in tensors:
        part = flat[start : start + tensor.numel()]
        tensor.copy_(part.view_as(tensor))
        start += tensor.numel()


@contextmanager
def shared_batch_norm(model: nn.Module) -> Iterator[None]:
    """Let every batch normalisation of ``model`` use the statistics of the whole batch over all processes.

    PyTorch's SyncBatchNorm does this on GPUs only and replaces the modules; this works on any device and leaves the
    modules in place. With one process it does nothing.
    """
    changed = []
    try:
        if processes().num_processes > 1:
            for module in model.modules():
                if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                    module.forward = types.MethodType(_shared_forward, module)  # type: ignore[method-assign]
                    changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


class _Sum(torch.autograd.Function):
    """Sum over the processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


def _shared_forward(self: _BatchNorm, inputs: Tensor) -> Tensor:
    if not self.training and self.running_mean is not None:
        return F.batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    values = inputs.float() if inputs.dtype in {torch.float16, torch.bfloat16} else inputs
    over = [0, *range(2, values.dim())]
    shape = (1, -1, *[1] * (values.dim() - 2))
    count = values.new_tensor(float(values.numel() // values.shape[1]))
    torch.distributed.all_reduce(count)
    mean = _Sum.apply(values.sum(over)) / count
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(over)) / count
    if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), momentum)
            unbiased = variance.detach() * count / (count - 1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
    outputs = centred * torch.rsqrt(variance + self.eps).view(shape)
    if self.weight is not None:
        outputs = outputs * self.weight.view(shape) + self.bias.view(shape)
    return outputs.to(inputs.dtype)
