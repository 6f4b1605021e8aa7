"""The selective scan as two Triton kernels: one pass over the data forward, one backward, on CUDA in float32.

A program takes a few channels of one group through the whole sequence, block by block, and scans each block in parallel
(Blelloch 1990, "Prefix Sums and Their Applications"). The gradient starts from the states that the forward pass kept at
the start of every block. Each program sums its own part of the gradients of B and C, so that two runs give the same
bytes, which atomic additions would not.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch brings it where it can be had
    triton = None

__all__ = ["Tile", "available", "backward", "forward", "tile", "why_not"]

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run in Python, on any device


class Tile(NamedTuple):
    """What a program works on at a time: powers of two, and the warps that share it."""

    channels: int
    states: int
    steps: int
    warps: int


def tile(dim: int, groups: int, states: int) -> Tile:
    """Return the tile for a problem; the same forward and backward, whose blocks must agree."""
    padded = triton.next_power_of_2(states)
    return Tile(2 if padded <= 32 and dim > groups else 1, padded, max(16, 512 // padded), 4)


def available(u: Tensor) -> bool:
    """Whether the kernels can run on a tensor like ``u``."""
    return why_not(u) is None


def why_not(u: Tensor) -> str | None:
    """Return why the kernels cannot run on a tensor like ``u``; None where they can."""
    if triton is None:
        return "Triton cannot be imported"
    if u.device.type not in {"cuda", "meta"} and not _INTERPRETED:
        return f"Triton's kernels run on CUDA, and the tensors are on {u.device.type}"
    if u.dtype == torch.float64:
        return "Triton's kernels compute in float32, and the tensors are in float64"
    return None


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
    """Return y (B, D, L), the last state (B, D, N), and the states at the start of every block (B, D, blocks, N)."""
    batch, dim, length = u.shape
    groups, states = B.shape[1], A.shape[1]
    chosen = tile(dim, groups, states)
    y = torch.empty(batch, dim, length, dtype=u.dtype, device=u.device)
    last = u.new_empty(batch, dim, states)
    starts = u.new_empty(batch, dim, -(-length // chosen.steps), states)
    parts = -(-(dim // groups) // chosen.channels)
    tensors = [tensor if tensor is None else tensor.contiguous() for tensor in (u, delta, A, B, C, D, bias)]
    with torch.cuda.device_of(u):
        _forward[batch * groups * parts,](
            *tensors, y, last, starts, groups, dim // groups, parts, states, length, starts.shape[2], softplus,
            *chosen[:3], num_warps=chosen.warps,
        )  # fmt: skip
    return y, last, starts


def backward(
    dy: Tensor,
    dlast: Tensor,
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
    chosen = tile(dim, groups, states)
    parts = -(-(dim // groups) // chosen.channels)
    du, ddelta = (torch.empty(batch, dim, length, dtype=u.dtype, device=u.device) for _ in range(2))
    dA, dD, dbias = (u.new_empty(batch, dim, *rest) for rest in ((states,), (), ()))
    dB, dC = (u.new_empty(parts, batch, groups, states, length) for _ in range(2))
    tensors = [
        tensor if tensor is None else tensor.contiguous() for tensor in (u, delta, A, B, C, D, bias, starts, dy, dlast)
    ]
    with torch.cuda.device_of(u):
        _backward[batch * groups * parts,](
            *tensors, du, ddelta, dA, dB, dC, dD, dbias, batch, groups, dim // groups, parts, states, length,
            starts.shape[2], softplus, *chosen[:3], num_warps=chosen.warps,
        )  # fmt: skip
    return du, ddelta, dA.sum(dim=0), dB.sum(dim=0), dC.sum(dim=0), dD.sum(dim=0), dbias.sum(dim=0)


if triton is not None:

    @triton.jit
    def _combine(a, x, later_a, later_x):  # type: ignore[no-untyped-def]
        """Two stretches h -> a h + x, one after the other."""
        return a * later_a, later_a * x + later_x

    @triton.jit
    def _steps(delta, bias, row, d, at, here, length, SOFT: tl.constexpr):  # type: ignore[no-untyped-def]
        """Step sizes (channels, steps) and their slope by delta; 0 outside the sequence, where a state stands still."""
        inside = here[:, None] & ((at >= 0) & (at < length))[None, :]
        dt = tl.load(delta + row[:, None] * length + at[None, :], mask=inside, other=0.0)
        if bias is not None:
            dt += tl.load(bias + d, mask=here, other=0.0)[:, None]
        slope = tl.full(dt.shape, 1.0, tl.float32)
        if SOFT:
            e = tl.exp(-tl.abs(dt))
            # log(1 + e) as 2 artanh(e / (2 + e)), which keeps the small steps that 1 + e would round away.
            s = e / (2.0 + e)
            q = s * s
            series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
            slope = tl.where(dt > 0, 1.0, e) / (1.0 + e)
            dt = tl.maximum(dt, 0.0) + 2.0 * s * series
        return tl.where(inside, dt, 0.0), slope

    @triton.jit
    def _forward(  # type: ignore[no-untyped-def]
        u, delta, A, B, C, D, bias, y, last, starts,
        groups, per_group, parts, states, length, blocks, SOFT: tl.constexpr,
        CHANNELS: tl.constexpr, STATES: tl.constexpr, STEPS: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0)
        batch_group = program // parts
        channel = program % parts * CHANNELS + tl.arange(0, CHANNELS)
        here = channel < per_group
        d = batch_group % groups * per_group + channel
        row = (batch_group * per_group + channel).to(tl.int64)  # = b dim + d
        n = tl.arange(0, STATES)
        t = tl.arange(0, STEPS)
        kept = here[:, None] & (n < states)[None, :]
        log2_decay = 1.4426950408889634 * tl.load(A + d[:, None] * states + n[None, :], mask=kept, other=0.0)
        group_rows = (batch_group.to(tl.int64) * states + n)[:, None] * length
        h = tl.zeros((CHANNELS, STATES), tl.float32)
        for block in range(blocks):
            tl.store(starts + (row * blocks + block)[:, None] * states + n[None, :], h, mask=kept)
            at = block * STEPS + t
            inside = here[:, None] & (at < length)[None, :]
            in_group = (n < states)[:, None] & (at < length)[None, :]
            x = tl.load(u + row[:, None] * length + at[None, :], mask=inside, other=0.0)
            B_t = tl.load(B + group_rows + at[None, :], mask=in_group, other=0.0)
            C_t = tl.load(C + group_rows + at[None, :], mask=in_group, other=0.0)
            dt, _ = _steps(delta, bias, row, d, at, here, length, SOFT)
            a = tl.exp2(dt[:, None, :] * log2_decay[:, :, None])
            drive = (dt * x)[:, None, :] * B_t[None, :, :]
            drive = tl.where((t == 0)[None, None, :], drive + a * h[:, :, None], drive)
            _, all_h = tl.associative_scan((a, drive), 2, _combine)
            h = tl.sum(tl.where((t == STEPS - 1)[None, None, :], all_h, 0.0), axis=2)
            out = tl.sum(all_h * C_t[None, :, :], axis=1)
            if D is not None:
                out += tl.load(D + d, mask=here, other=0.0)[:, None] * x
            tl.store(y + row[:, None] * length + at[None, :], out, mask=inside)
        tl.store(last + row[:, None] * states + n[None, :], h, mask=kept)

    @triton.jit
    def _backward(  # type: ignore[no-untyped-def]  # noqa: PLR0915
        u, delta, A, B, C, D, bias, starts, dy, dlast, du, ddelta, dA, dB, dC, dD, dbias,
        batch, groups, per_group, parts, states, length, blocks, SOFT: tl.constexpr,
        CHANNELS: tl.constexpr, STATES: tl.constexpr, STEPS: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0)
        batch_group = program // parts
        part = program % parts
        channel = part * CHANNELS + tl.arange(0, CHANNELS)
        here = channel < per_group
        d = batch_group % groups * per_group + channel
        row = (batch_group * per_group + channel).to(tl.int64)
        n = tl.arange(0, STATES)
        t = tl.arange(0, STEPS)
        kept = here[:, None] & (n < states)[None, :]
        decay = tl.load(A + d[:, None] * states + n[None, :], mask=kept, other=0.0)
        log2_decay = 1.4426950408889634 * decay
        group_rows = (batch_group.to(tl.int64) * states + n)[:, None] * length
        part_rows = ((part * batch * groups + batch_group).to(tl.int64) * states + n)[:, None] * length
        skip = tl.zeros((CHANNELS,), tl.float32)
        if D is not None:
            skip = tl.load(D + d, mask=here, other=0.0)
        # What the loss gains by the state before a block, through all steps from there on.
        carry = tl.load(dlast + row[:, None] * states + n[None, :], mask=kept, other=0.0)
        sum_A = tl.zeros((CHANNELS, STATES), tl.float32)
        sum_D = tl.zeros((CHANNELS,), tl.float32)
        sum_bias = tl.zeros((CHANNELS,), tl.float32)
        for turn in range(blocks):
            block = blocks - 1 - turn
            at = block * STEPS + t
            inside = here[:, None] & (at < length)[None, :]
            in_group = (n < states)[:, None] & (at < length)[None, :]
            x = tl.load(u + row[:, None] * length + at[None, :], mask=inside, other=0.0)
            dy_t = tl.load(dy + row[:, None] * length + at[None, :], mask=inside, other=0.0)
            B_t = tl.load(B + group_rows + at[None, :], mask=in_group, other=0.0)
            C_t = tl.load(C + group_rows + at[None, :], mask=in_group, other=0.0)
            dt, slope = _steps(delta, bias, row, d, at, here, length, SOFT)
            a = tl.exp2(dt[:, None, :] * log2_decay[:, :, None])
            h = tl.load(starts + (row * blocks + block)[:, None] * states + n[None, :], mask=kept, other=0.0)
            driving = (dt * x)[:, None, :]
            drive = driving * B_t[None, :, :]
            _, all_h = tl.associative_scan(
                (a, tl.where((t == 0)[None, None, :], drive + a * h[:, :, None], drive)), 2, _combine
            )
            # Gradient of each state: the same recurrence backwards, with the decay of the step after.
            dt_after, _ = _steps(delta, bias, row, d, at + 1, here, length, SOFT)
            driven = dy_t[:, None, :] * C_t[None, :, :]
            driven = tl.where((t == STEPS - 1)[None, None, :], driven + carry[:, :, None], driven)
            a_after = tl.exp2(dt_after[:, None, :] * log2_decay[:, :, None])
            _, G = tl.associative_scan((a_after, driven), 2, _combine, reverse=True)
            carry = tl.sum(tl.where((t == 0)[None, None, :], a * G, 0.0), axis=2)

            turned = G * (all_h - drive)  # dL/da a, for the rest of a state is a times the state before
            through_B = tl.sum(G * B_t[None, :, :], axis=1)
            slow = (tl.sum(turned * decay[:, :, None], axis=1) + through_B * x) * slope
            tl.store(du + row[:, None] * length + at[None, :], through_B * dt + skip[:, None] * dy_t, mask=inside)
            tl.store(ddelta + row[:, None] * length + at[None, :], slow, mask=inside)
            tl.store(dB + part_rows + at[None, :], tl.sum(G * driving, axis=0), mask=in_group)
            tl.store(dC + part_rows + at[None, :], tl.sum(dy_t[:, None, :] * all_h, axis=0), mask=in_group)
            sum_A += tl.sum(turned * dt[:, None, :], axis=2)
            sum_D += tl.sum(dy_t * x, axis=1)
            sum_bias += tl.sum(tl.where(inside, slow, 0.0), axis=1)
        tl.store(dA + row[:, None] * states + n[None, :], sum_A, mask=kept)
        tl.store(dD + row, sum_D, mask=here)
        tl.store(dbias + row, sum_bias, mask=here)
