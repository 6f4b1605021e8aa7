"""Forward-backward and Viterbi as compiled C++ (``native/linear_chain.cpp``), one sentence a task."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from striate.engine.native import load_native, why_not_native

__all__ = ["available", "partition", "viterbi", "why_not"]

_SOURCE = Path(__file__).with_name("native") / "linear_chain.cpp"
_SMALL = 1 << 17  # below so many pairs of states a second thread costs more than it saves


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether there is a compiler, or the kernel in the cache."""
    return load_native(_SOURCE) is not None


def why_not() -> str | None:
    """Return why the kernel cannot be used; None where it can."""
    return why_not_native(_SOURCE)


def partition(unary: Tensor, pairwise: Tensor, lengths: Tensor, marginals: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return log Z (B,), node marginals (B, T, K) and edge marginals; the last two empty without ``marginals``.

    Edges are summed over steps, (B, K, K), where ``pairwise`` is shared.
    """
    batch, _, states = unary.shape
    logz = unary.new_empty(batch)
    node = unary.new_zeros(unary.shape) if marginals else unary.new_empty(0)
    shape = (batch, states, states) if pairwise.dim() == 2 else pairwise.shape
    edges = pairwise.new_zeros(shape) if marginals else pairwise.new_empty(0)
    _call("partition", unary, pairwise, lengths, [logz, node if marginals else None, edges if marginals else None])
    return logz, node, edges


def viterbi(unary: Tensor, pairwise: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best path (B, T), -1 after its end, and its score (B,)."""
    path = torch.full(unary.shape[:2], -1, dtype=torch.long)
    score = unary.new_empty(unary.shape[0])
    _call("viterbi", unary, pairwise, lengths, [path, score])
    return path, score


def _call(name: str, unary: Tensor, pairwise: Tensor, lengths: Tensor, outputs: list[Tensor | None]) -> None:
    library = load_native(_SOURCE)
    assert library is not None  # the caller chose this backend because it is there
    function = library[f"chain_{name}_{'f64' if unary.dtype == torch.float64 else 'f32'}"]
    inputs = [unary.contiguous(), pairwise.contiguous(), lengths.contiguous()]  # kept until the call is over
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in [*inputs, *outputs]]
    batch, steps, states = unary.shape
    threads = 1 if batch * steps * states * states < _SMALL else torch.get_num_threads()
    sizes = (ctypes.c_int64(size) for size in (batch, steps, states))
    function(*pointers, *sizes, int(pairwise.dim() == 2), threads)
