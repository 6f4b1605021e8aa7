"""Sums and maxima over all label sequences of a linear chain: log Z, marginals, the best path and the k best.

The score of a sequence y of T labels out of K is

    s(y) = sum_t unary[t, y_t] + sum_{t > 0} pairwise[y_{t-1}, y_t],

with one pairwise matrix for all steps, or one for each. log Z = log sum_y exp s(y) by the forward recursion, whose
gradient is known in closed form: d log Z / d unary[t, j] = p(y_t = j), d log Z / d pairwise[i, j] = the expected number
of steps from i to j (Lafferty, McCallum, Pereira, "Conditional Random Fields", ICML 2001). One forward and one backward
pass therefore give value and gradient together, and no graph of T steps is ever built.

Minus infinity forbids a label or a step. Everything is computed in float32 or wider.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from striate.engine.state import full_precision, transformed
from striate.errors import InputError
from striate.layers import native_chain
from striate.layers.chain_recursions import by_graph, by_scan, by_steps, list_viterbi

__all__ = ["BACKENDS", "Backend", "best_backend", "chain_marginals", "k_best", "log_partition", "viterbi"]

Backend = Literal["auto", "native", "sequential", "scan", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "native", "sequential", "scan", "reference")


def log_partition(unary: Tensor, pairwise: Tensor, lengths: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Return log Z of every chain, (B,), in float32 or wider.

    Args:
        unary: (B, T, K) scores of labels.
        pairwise: (K, K), ``[i, j]`` the score of a step from label i to label j; or (B, T - 1, K, K), whose entry
            t - 1 leads into step t.
        lengths: (B,) integers in [1, T]; what comes after a chain's end is not looked at.
        backend: ``"native"``: compiled code (CPU); ``"sequential"``: T steps of plain PyTorch, closed-form gradient;
            ``"scan"``: log2(T) products of matrices in the log semiring, K times the work at a fraction of the depth,
            for long chains of few labels on a GPU; ``"reference"``: T steps of plain PyTorch with a graph;
            ``"auto"``: native on the CPU where there is a compiler, else sequential. ``"scan"`` and ``"reference"``
            are differentiable twice; inside transforms of torch.func and forward-mode differentiation the latter
            stands in for the first two.

    Raises:
        InputError: shapes that do not fit, lengths out of range, an impossible backend.

    >>> log_partition(torch.zeros(1, 3, 2), torch.zeros(2, 2), torch.tensor([3])).exp().round()
    tensor([8.])
    """
    unary, pairwise = _checked(unary, pairwise, lengths, backend)
    chosen = best_backend(unary) if backend == "auto" else backend
    if chosen == "reference" or (transformed() and chosen != "scan"):
        return by_graph(unary, pairwise, lengths)
    if chosen == "scan":
        return by_scan(unary, pairwise, lengths)
    wanted = torch.is_grad_enabled() and (unary.requires_grad or pairwise.requires_grad)
    return torch.ops.striate.chain_partition(unary, pairwise, lengths, wanted, chosen == "native")[0]


def chain_marginals(
    unary: Tensor, pairwise: Tensor, lengths: Tensor, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Return log Z (B,) and p(y_t = j) as (B, T, K), zero after a chain's end.

    The marginals are differentiable where a gradient is asked for; they are then computed by ``"reference"``.
    Arguments as in :func:`log_partition`.
    """
    unary, pairwise = _checked(unary, pairwise, lengths, backend)
    if transformed():
        logz = by_graph(unary, pairwise, lengths)
        return logz, torch.func.grad(lambda scores: by_graph(scores, pairwise, lengths).sum())(unary)
    if torch.is_grad_enabled() and (unary.requires_grad or pairwise.requires_grad):
        leaf = unary if unary.requires_grad else unary.detach().requires_grad_()
        logz = by_graph(leaf, pairwise, lengths)
        return logz, torch.autograd.grad(logz.sum(), leaf, create_graph=True)[0]
    chosen = best_backend(unary) if backend == "auto" else backend
    logz, node, _ = torch.ops.striate.chain_partition(unary, pairwise, lengths, True, chosen == "native")
    return logz, node


def viterbi(unary: Tensor, pairwise: Tensor, lengths: Tensor, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Return the best label sequence of every chain, (B, T) int64 with -1 after its end, and its score (B,).

    Of equal sequences the one with smaller labels towards the end is taken. Arguments as in :func:`log_partition`.
    """
    unary, pairwise = (tensor.detach() for tensor in _checked(unary, pairwise, lengths, backend))
    if (best_backend(unary) if backend == "auto" else backend) == "native":
        return native_chain.viterbi(unary, pairwise, lengths)
    path, score = list_viterbi(unary, pairwise, lengths, 1)
    return path[:, 0], score[:, 0]


def k_best(unary: Tensor, pairwise: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best label sequences of every chain, best first, (B, k, T), and their scores (B, k).

    Where there are fewer than k, the score of the rest is minus infinity. Arguments as in :func:`log_partition`.
    """
    if k < 1:
        raise InputError("k", "k_best", allowed=">= 1", got=k)
    unary, pairwise = (tensor.detach() for tensor in _checked(unary, pairwise, lengths, "sequential"))
    return list_viterbi(unary, pairwise, lengths, k)


def best_backend(unary: Tensor) -> Backend:
    """Return what ``"auto"`` takes for scores like ``unary``."""
    return "native" if unary.device.type == "cpu" and native_chain.available() else "sequential"


def _checked(unary: Tensor, pairwise: Tensor, lengths: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Return both scores in one dtype, float32 or wider."""
    if unary.dim() != 3 or 0 in unary.shape or not unary.is_floating_point():
        got = f"{unary.dtype} {tuple(unary.shape)}"
        raise InputError("unary", "a linear chain", allowed="floating point (B, T, K), none of them 0", got=got)
    batch, steps, states = unary.shape
    if pairwise.shape not in {(states, states), (batch, steps - 1, states, states)}:
        allowed = f"({states}, {states}) or ({batch}, {steps - 1}, {states}, {states})"
        raise InputError("pairwise", "a linear chain", allowed=allowed, got=tuple(pairwise.shape))
    if lengths.shape != (batch,) or lengths.dtype != torch.long:
        got = f"{lengths.dtype} {tuple(lengths.shape)}"
        raise InputError("lengths", "a linear chain", allowed=f"int64 ({batch},)", got=got)
    low, high = torch.aminmax(lengths)
    if low < 1 or high > steps:
        got = f"{int(low)} to {int(high)}"
        raise InputError("lengths", "a linear chain", allowed=f"from 1 to {steps}, the steps", got=got)
    if backend not in BACKENDS:
        raise InputError("backend", "a linear chain", allowed=f"one of {', '.join(BACKENDS)}", got=backend)
    if backend == "native" and (unary.device.type != "cpu" or not native_chain.available()):
        reason = native_chain.why_not() or f"the scores are on {unary.device}"
        raise InputError("backend", "a linear chain", allowed=f"another one here: {reason}", got=backend)
    wide = torch.promote_types(torch.promote_types(unary.dtype, pairwise.dtype), torch.float32)
    return unary.to(wide), pairwise.to(wide)


# ------------------------------------------------------------------------------------------------ one operator


@torch.library.custom_op("striate::chain_partition", mutates_args=())
def _partition(
    unary: Tensor, pairwise: Tensor, lengths: Tensor, marginals: bool, native: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log Z, node and edge marginals; the last two empty unless asked for."""
    function = native_chain.partition if native else by_steps
    with full_precision(unary.device):  # the steps are products of matrices, and sums of thousands
        return function(unary, pairwise, lengths, marginals)


@_partition.register_fake
def _(unary: Tensor, pairwise: Tensor, lengths: Tensor, marginals: bool, native: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, states = unary.shape
    if not marginals:
        return unary.new_empty(batch), unary.new_empty(0), pairwise.new_empty(0)
    shape = (batch, states, states) if pairwise.dim() == 2 else pairwise.shape
    return unary.new_empty(batch), unary.new_empty(unary.shape), pairwise.new_empty(shape)


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.shared = inputs[1].dim() == 2
    ctx.save_for_backward(output[1], output[2])


def _differentiate(ctx: Any, above: Tensor | None, *second: Tensor | None) -> tuple[Any, ...]:
    if any(gradient is not None for gradient in second):
        raise InputError(
            "backend", "a linear chain", allowed="'reference' or 'scan' for second derivatives", got="another one"
        )
    if above is None:
        return None, None, None, None, None
    node, edges = ctx.saved_tensors
    to_pairwise = above.view(-1, *[1] * (edges.dim() - 1)) * edges
    to_pairwise = to_pairwise.sum(dim=0) if ctx.shared else to_pairwise
    return above[:, None, None] * node, to_pairwise, None, None, None


_partition.register_autograd(_differentiate, setup_context=_set_up)
