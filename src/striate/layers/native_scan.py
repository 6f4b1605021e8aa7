"""The selective scan as compiled C++ (``native/selective_scan.cpp``): one pass over the data, on CPU threads."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from striate.engine.native import load_native, why_not_native
from striate.engine.pages import keep_pages

__all__ = ["available", "backward", "block", "forward", "why_not"]


def block(states: int) -> int:
    """Return after how many steps all states are kept for the gradient: with few states often, for that is faster."""
    return 16 if states <= 4 else 64


_SOURCE = Path(__file__).with_name("native") / "selective_scan.cpp"
_SMALL = 1 << 15  # below so many states a second thread costs more than it saves


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether there is a compiler, or the kernel in the cache."""
    return load_native(_SOURCE) is not None


def why_not() -> str | None:
    """Return why the kernel cannot be used; None where it can."""
    return why_not_native(_SOURCE)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (B, D, L), the last state (B, D, N), and the states at the start of every block (B, blocks, N, D)."""
    keep_pages()
    batch, dim, length = u.shape
    states = A.shape[1]
    y = torch.empty(batch, dim, length, dtype=u.dtype)
    last = torch.empty(batch, dim, states, dtype=u.dtype)
    starts = torch.empty(batch, -(-length // block(states)), states, dim, dtype=u.dtype)
    inputs = [_contiguous(tensor) for tensor in (u, delta, A, B, C, D, bias)]
    sizes = (batch, dim, B.shape[1], states, length, block(states))
    _call("forward", u.dtype, [*inputs, y, last, starts], sizes, softplus, _threads(u, states))
    return y, last, starts


def backward(
    dy: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    starts: Tensor,
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D and bias."""
    batch, dim, length = u.shape
    groups, states = B.shape[1], A.shape[1]
    threads = _threads(u, states)
    # Each split of a group's channels sums its own gradient of B and C, so that no two threads write to one place.
    splits = max(1, min(dim // groups, -(-threads // max(1, batch * groups))))
    du, ddelta = (torch.empty(batch, dim, length, dtype=u.dtype) for _ in range(2))
    dA, dD, dbias = (torch.empty(dim, *rest, dtype=u.dtype) for rest in ((states,), (), ()))
    dB, dC = (torch.empty(splits, batch, groups, states, length, dtype=u.dtype) for _ in range(2))
    inputs = [_contiguous(tensor) for tensor in (u, delta, A, B, C, D, bias, starts, dy, dlast)]
    tensors = [*inputs, du, ddelta, dA, dB, dC, dD, dbias]
    _call("backward", u.dtype, tensors, (batch, dim, groups, states, length, block(states)), softplus, threads, splits)
    dB, dC = (parts[0] if splits == 1 else parts.sum(dim=0) for parts in (dB, dC))
    return du, ddelta, dA, dB, dC, dD, dbias


def _call(
    name: str,
    dtype: torch.dtype,
    tensors: list[Tensor | None],
    sizes: tuple[int, ...],
    softplus: bool,
    threads: int,
    splits: int | None = None,
) -> None:
    function = _function(f"scan_{name}_{'f64' if dtype == torch.float64 else 'f32'}", len(tensors))
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    function(*pointers, *sizes, softplus, threads, splits or 0)


@functools.cache
def _function(name: str, pointers: int) -> Any:
    library = load_native(_SOURCE)
    assert library is not None  # the caller chose this backend because it is there
    function = getattr(library, name)
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 9
    return function


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _threads(u: Tensor, states: int) -> int:
    return 1 if u.numel() * states < _SMALL else torch.get_num_threads()
