"""The recursions of :mod:`striate.layers.linear_chain` in plain PyTorch, on any device.

Scores are ``unary`` (B, T, K) and ``pairwise`` (K, K) or (B, T - 1, K, K), in one dtype and checked by the caller;
``lengths`` is (B,).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["by_graph", "by_scan", "by_steps", "list_viterbi"]

_FORBIDDEN = -1e30  # minus infinity where a graph is built: the gradient of logsumexp at minus infinity is NaN
_HARMLESS = {torch.float32: 40.0, torch.float64: 300.0}


def by_steps(unary: Tensor, pairwise: Tensor, lengths: Tensor, marginals: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return log Z, node marginals, and edge marginals (summed over steps where ``pairwise`` is shared).

    The last two are empty without ``marginals``. There is no graph.
    """
    inside = torch.arange(unary.shape[1], device=unary.device) < lengths[:, None]
    unary = torch.where(inside[:, :, None], unary, 0)  # outside there may be anything
    if pairwise.dim() == 4:
        pairwise = torch.where(inside[:, 1:, None, None], pairwise, 0)
    # Two states' futures differ by at most the range of pairwise scores. Where it is small, what a probability loses to
    # underflow at one step can never matter later, and a step is one product with exp(pairwise).
    spread = pairwise.amax(dim=(-2, -1)) - pairwise.amin(dim=(-2, -1))
    harmless = (spread < _HARMLESS[unary.dtype]).all() & unary.amax(dim=2).isfinite().all()  # no NaN, no infinity
    return (_in_probabilities if bool(harmless) else _in_logs)(unary, pairwise, inside, marginals)


def _in_probabilities(
    unary: Tensor, pairwise: Tensor, inside: Tensor, marginals: bool
) -> tuple[Tensor, Tensor, Tensor]:
    steps, shared = unary.shape[1], pairwise.dim() == 2
    top = pairwise.amax(dim=(-2, -1), keepdim=True)
    E = (pairwise - top).exp()
    highest = unary.amax(dim=2, keepdim=True)
    e = (unary - highest).exp()
    alpha: list[Tensor] = []
    sums: list[Tensor] = []
    for t in range(steps):
        into = e[:, t] if t == 0 else _times(alpha[-1], E, t) * e[:, t]
        sums.append(into.sum(dim=1, keepdim=True))
        alpha.append(into / sums[-1])
    gains = torch.cat(sums, dim=1).double().log() + highest[..., 0]
    gains[:, 1:] += top[..., 0, 0]
    logz = torch.where(inside, gains, 0).sum(dim=1).to(unary.dtype)
    if not marginals:
        return logz, unary.new_empty(0), pairwise.new_empty(0)
    beta = torch.ones_like(alpha[0])
    betas, ahead, totals = [beta], [], []
    for t in range(steps - 1, 0, -1):
        w = e[:, t] * beta
        w = w / w.amax(dim=1, keepdim=True)
        back = _times(w, E.mT, t)
        ahead.append(w)
        totals.append((alpha[t - 1] * back).sum(dim=1, keepdim=True))
        beta = torch.where(inside[:, t, None], back / back.amax(dim=1, keepdim=True), 1)
        betas.append(beta)
    a = torch.stack(alpha, dim=1)
    node = a * torch.stack(betas[::-1], dim=1)
    node = torch.where(inside[:, :, None], node / node.sum(dim=2, keepdim=True), 0)
    if steps == 1:
        return logz, node, pairwise.new_zeros((unary.shape[0], *pairwise.shape) if shared else pairwise.shape)
    w, z = (torch.stack(list(reversed(parts)), dim=1) for parts in (ahead, totals))
    from_ = torch.where(inside[:, 1:, None], a[:, :-1] / z, 0)
    return logz, node, E * (from_.mT @ w if shared else from_[..., None] * w[..., None, :])


def _times(row: Tensor, E: Tensor, t: int) -> Tensor:
    return row @ E if E.dim() == 2 else torch.bmm(row[:, None], E[:, t - 1])[:, 0]


def _in_logs(unary: Tensor, pairwise: Tensor, inside: Tensor, marginals: bool) -> tuple[Tensor, Tensor, Tensor]:
    steps, shared = unary.shape[1], pairwise.dim() == 2
    alpha = [unary[:, 0]]
    for t in range(1, steps):
        into = torch.logsumexp(alpha[-1][:, :, None] + _into(pairwise, t), dim=1) + unary[:, t]
        alpha.append(torch.where(inside[:, t, None], into, alpha[-1]))
    logz = torch.logsumexp(alpha[-1], dim=1)
    if not marginals:
        return logz, unary.new_empty(0), pairwise.new_empty(0)
    node = torch.zeros_like(unary)
    edges = pairwise.new_zeros((unary.shape[0], *pairwise.shape) if shared else pairwise.shape)
    beta = torch.zeros_like(alpha[0])
    for t in range(steps - 1, -1, -1):
        counts = inside[:, t, None] & ~logz.isinf()[:, None]  # a chain without any path has no marginals
        # Each step is normalised by itself: what rounding does to log Z does not come in.
        node[:, t] = torch.where(counts, torch.softmax(alpha[t] + beta, dim=1), 0)
        if t > 0:
            onward = _into(pairwise, t) + (unary[:, t] + beta)[:, None, :]
            pairs = torch.softmax((alpha[t - 1][:, :, None] + onward).flatten(1), dim=1).view_as(onward)
            pairs = torch.where(counts[:, :, None], pairs, 0)
            if shared:
                edges += pairs
            else:
                edges[:, t - 1] = pairs
            beta = torch.where(inside[:, t, None], torch.logsumexp(onward, dim=2), beta)
    return logz, node, edges


def by_graph(unary: Tensor, pairwise: Tensor, lengths: Tensor) -> Tensor:
    """Return log Z by the forward recursion with a graph: the slow twin, and the way to second derivatives."""
    unary, pairwise = unary.clamp_min(_FORBIDDEN), pairwise.clamp_min(_FORBIDDEN)
    alpha = unary[:, 0]
    for t in range(1, unary.shape[1]):
        into = torch.logsumexp(alpha[:, :, None] + _into(pairwise, t), dim=1) + unary[:, t]
        alpha = torch.where((t < lengths)[:, None], into, alpha)
    return _opened(torch.logsumexp(alpha, dim=1))


def by_scan(unary: Tensor, pairwise: Tensor, lengths: Tensor) -> Tensor:
    """Return log Z as the product of all steps' matrices in the log semiring, neighbours first, with a graph.

    Särkkä, García-Fernández, "Temporal Parallelization of Bayesian Smoothers", 2019, arXiv 1905.13002.
    """
    unary, pairwise = unary.clamp_min(_FORBIDDEN), pairwise.clamp_min(_FORBIDDEN)
    states, first = unary.shape[2], unary[:, 0]
    if unary.shape[1] == 1:
        return _opened(torch.logsumexp(first, dim=1))
    matrices = pairwise + unary[:, 1:, None, :]
    nothing = torch.full((states, states), _FORBIDDEN, dtype=unary.dtype, device=unary.device).fill_diagonal_(0)
    inside = torch.arange(1, unary.shape[1], device=unary.device) < lengths[:, None]
    matrices = torch.where(inside[:, :, None, None], matrices, nothing)
    while (n := matrices.shape[1]) > 1:
        left, right, odd = matrices[:, : n - 1 : 2], matrices[:, 1:n:2], matrices[:, n - n % 2 :]
        product = torch.logsumexp(left[..., :, :, None] + right[..., None, :, :], dim=-2)
        matrices = torch.cat([product, odd], dim=1)
    return _opened(torch.logsumexp(first[:, :, None] + matrices[:, 0], dim=(1, 2)))


def list_viterbi(unary: Tensor, pairwise: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best paths (B, k, T) and their scores (B, k): every label keeps its k best predecessors."""
    batch, steps, states = unary.shape
    best = unary.new_full((batch, states, k), -torch.inf)
    best[:, :, 0] = unary[:, 0]
    stay = torch.arange(states * k, device=unary.device).view(1, states, k)  # label * k + rank
    back = [stay.expand(batch, -1, -1)]
    for t in range(1, steps):
        into = best[..., None] + _into(pairwise, t)[..., None, :]  # (B, from, rank, to)
        value, origin = _largest(into.reshape(batch, states * k, states), k)
        inside = (t < lengths)[:, None, None]
        best = torch.where(inside, value.transpose(1, 2) + unary[:, t, :, None], best)
        back.append(torch.where(inside, origin.transpose(1, 2), stay))
    score, last = _largest(best.reshape(batch, states * k, 1), k)
    return _traced(torch.stack(back), last[..., 0], lengths, k), score[..., 0]


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest along the second dimension and where they are; the first of equal ones."""
    if k == 1:
        return values.max(dim=1, keepdim=True)
    found, places = torch.sort(values, dim=1, descending=True, stable=True)
    return found[:, :k], places[:, :k]


def _traced(back: Tensor, last: Tensor, lengths: Tensor, k: int) -> Tensor:
    """Follow the pointers (T, B, K, k) from the last states (B, k) backwards, all chains at once."""
    pointers = back.flatten(2).cpu().numpy()
    state = last.cpu().numpy()
    rows = np.arange(len(state))[:, None]
    path = np.empty((len(state), k, len(pointers)), dtype=np.int64)
    for t in range(len(pointers) - 1, -1, -1):
        path[:, :, t] = state // k
        state = pointers[t][rows, state]
    path[np.broadcast_to(np.arange(len(pointers)) >= lengths.cpu().numpy()[:, None, None], path.shape)] = -1
    return torch.from_numpy(path).to(back.device)


def _into(pairwise: Tensor, t: int) -> Tensor:
    """Scores of the step into t, (1 or B, K, K)."""
    return pairwise[None] if pairwise.dim() == 2 else pairwise[:, t - 1]


def _opened(logz: Tensor) -> Tensor:
    """Minus infinity again where every path was forbidden."""
    return torch.where(logz < _FORBIDDEN / 2, -torch.inf, logz)
