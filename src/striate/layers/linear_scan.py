"""The recurrence h_t = a_t h_{t-1} + b_t along the first dimension, in plain PyTorch, in four ways.

None of them divides or takes logarithms, so that none can overflow where the recurrence itself does not.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.errors import InputError

__all__ = ["LinearScan", "linear_scan"]


class LinearScan(Protocol):
    """``scan(a, b)`` with both (L, …)."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return all states."""


def linear_scan(a: Tensor, b: Tensor, *, backend: str = "chunked", chunk_size: int = 0) -> Tensor:
    """Return all states h (L, …) of h_t = a_t h_{t-1} + b_t from h_0 = 0.

    Args:
        a, b: (L, …), L > 0.
        backend: ``"loop"``: as written, and differentiable; ``"sequential"``: the same into one buffer, without a
            graph; ``"chunked"``: all chunks step together, then the carries between them: T + L / T steps, without a
            graph; ``"associative"``: log2(L) passes of pairwise combination (Hillis and Steele 1986), differentiable.
        chunk_size: T of ``"chunked"``; 0: about the square root of L.
    """
    if backend == "loop":
        states = [b[0]]
        for t in range(1, a.shape[0]):
            states.append(a[t] * states[-1] + b[t])
        return torch.stack(states)
    if backend == "sequential":
        return _sequential(a.contiguous(), b.contiguous())
    if backend == "chunked":
        return _chunked(a, b, chunk_size or max(1, math.isqrt(a.shape[0])))
    if backend == "associative":
        return _associative(a, b)
    raise InputError("backend", "linear_scan", allowed="loop, sequential, chunked or associative", got=backend)


def _sequential(a: Tensor, b: Tensor) -> Tensor:
    h = b.clone()
    for t in range(1, a.shape[0]):
        torch.addcmul(b[t], a[t], h[t - 1], out=h[t])
    return h


def _chunked(a: Tensor, b: Tensor, size: int) -> Tensor:
    length = a.shape[0]
    chunks = -(-length // size)
    padding = [0, 0] * (a.dim() - 1) + [0, chunks * size - length]
    # Time within a chunk first, so that a step works on one contiguous block: (T, chunks, …).
    h = F.pad(b, padding).unflatten(0, (chunks, size)).transpose(0, 1).contiguous()
    decay = F.pad(a, padding).unflatten(0, (chunks, size)).transpose(0, 1).contiguous()
    for t in range(1, size):
        h[t].addcmul_(decay[t], h[t - 1])
        decay[t].mul_(decay[t - 1])  # now the decay since the chunk's start
    carry = _sequential(decay[-1], h[-1])  # the state at each chunk's end
    if chunks > 1:
        h[:, 1:].addcmul_(decay[:, 1:], carry[:-1])
    return h.transpose(0, 1).flatten(0, 1)[:length]


def _associative(a: Tensor, b: Tensor) -> Tensor:
    step = 1
    while step < b.shape[0]:
        b = torch.cat([b[:step], b[step:] + a[step:] * b[:-step]])
        a = torch.cat([a[:step], a[step:] * a[:-step]])
        step *= 2
    return b
