"""The selective state-space scan (S6) of Mamba: a linear recurrence whose coefficients depend on the input.

Gu, Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv 2312.00752, as used by VMamba
(Liu et al., 2024, arXiv 2401.10166). The discretisation is the one of every Mamba code, which checkpoints depend on:
zero-order hold for A, Euler for B.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,    y_t = C_t h_t + D u_t,    dt = softplus(delta + bias)

All backends but the reference share one hand-written gradient: with g_t the gradient of y_t by h_t, the states'
gradient is the same recurrence run backwards, G_t = g_t + exp(dt_{t+1} A) G_{t+1}. All inside of torch.func, and second
derivatives of all but mamba-ssm's kernel, go through plain operations.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from striate.engine.state import transformed
from striate.errors import InputError, UnstableWarning
from striate.layers import native_scan, triton_scan
from striate.layers.linear_scan import LinearScan, linear_scan

__all__ = ["BACKENDS", "Backend", "best_backend", "selective_scan", "selective_state_update"]

Backend = Literal["auto", "reference", "sequential", "chunked", "associative", "native", "triton", "mamba-ssm"]
BACKENDS: tuple[Backend, ...] = (
    "auto", "reference", "sequential", "chunked", "associative", "native", "triton", "mamba-ssm",
)  # fmt: skip


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: Backend = "auto",
    chunk_size: int | None = None,
) -> Any:
    """Scan along the last dimension, with the signature and the numbers of mamba-ssm; arithmetic in float32 or wider.

    Args:
        u: (B, D, L) input.
        delta: (B, D, L) step sizes before bias and softplus.
        A: (D, N) real and negative.
        B, C: (B, N, L), or (B, G, N, L) with channel d in group d // (D / G).
        D: (D,) skip, or None.
        z: (B, D, L) gate: the output is multiplied by SiLU(z).
        delta_bias: (D,) or None.
        delta_softplus: apply softplus to ``delta + delta_bias``.
        return_last_state: return the state after the last step too.
        backend: ``"reference"``: a plain loop, slow; ``"sequential"``: a loop without a graph;
            ``"chunked"``: all chunks at once, then their carries; ``"associative"``: log2(L) passes; ``"native"``:
            one pass of compiled code (CPU); ``"triton"``: one pass too (CUDA, float32); ``"mamba-ssm"``: its kernel
            (CUDA); ``"auto"``: the best there is (:func:`best_backend`). Where a graph is exported, and inside
            transforms of torch.func or forward-mode differentiation, all run as plain operations.
        chunk_size: steps a chunk of ``"chunked"``; default about the square root of L.

    Returns:
        (B, D, L) in the dtype of ``u``; with ``return_last_state`` a pair of it and the state (B, D, N), in float32 or
        wider.

    Raises:
        InputError: shapes or devices that do not fit, an empty sequence, integers or complex numbers, an unknown or
            impossible backend.

    >>> one = torch.ones(1, 1, 3)
    >>> selective_scan(one, one * 0.6931, -torch.ones(1, 1), one, one)
    tensor([[[0.6931, 1.0397, 1.2130]]])
    """
    _check(u, delta, A, B, C, D, z, delta_bias, backend)
    if chunk_size is not None and chunk_size < 1:
        raise InputError("chunk_size", "selective_scan", allowed=">= 1, or None", got=chunk_size)
    chosen = best_backend(u) if backend == "auto" else backend
    # No kernel knows a transform, or fills the gradients of no states or channels.
    plain = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or transformed() or A.numel() == 0
    if backend == "auto" and plain:
        chosen = "associative"
    if chosen == "mamba-ssm":
        return _mamba_ssm(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    dtype = u.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (tensor if tensor.dtype == wide else tensor.to(wide) for tensor in (u, delta, A, B, C))
    D = D if D is None or D.dtype == wide else D.to(wide)
    delta_bias = delta_bias if delta_bias is None or delta_bias.dtype == wide else delta_bias.to(wide)
    if B.dim() == 3:
        B, C = B[:, None], C[:, None]
    if chosen == "reference" or plain:
        linear = functools.partial(linear_scan, backend="loop" if chosen == "reference" else "associative")
        y, last = _plain(u, delta, A, B, C, D, delta_bias, delta_softplus, linear)
    else:
        inputs = (u, delta, A, B, C, D, delta_bias)
        graph = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
        recording = torch.compiler.is_compiling() or torch.jit.is_tracing()
        scan = _Scan.apply if graph and not recording else torch.ops.striate.selective_scan
        y, last, _ = scan(*inputs, delta_softplus, chosen, chunk_size or 0)
    if z is not None:
        y = y * F.silu(z.to(wide))
    y = y if dtype == wide else y.to(dtype)
    return (y, last) if return_last_state else y


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Take one step of :func:`selective_scan`, for inputs that arrive one by one.

    Args:
        state: (B, D, N); changed in place.
        x, dt: (B, D).
        A: (D, N).
        B, C: (B, N) or (B, G, N).
        D: (D,) or None.
        z: (B, D) gate or None.
        dt_bias: (D,) or None.
        dt_softplus: apply softplus to ``dt + dt_bias``.

    Returns:
        (B, D) in the dtype of ``x``.

    Raises:
        InputError: shapes that do not fit, or integers.
    """
    _check_step(state, x, dt, A, B, C, D, z, dt_bias)
    wide = torch.promote_types(x.dtype, torch.float32)
    step = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    step = F.softplus(step) if dt_softplus else step
    B, C = (_per_channel(t.to(wide)[..., None], x.shape[1])[..., 0] for t in (B, C))  # (B, D, N)
    u = x.to(wide)
    new = torch.exp(step[..., None] * A.to(wide)) * state.to(wide) + (step * u)[..., None] * B
    state.copy_(new)
    y = (new * C).sum(dim=-1)
    y = y if D is None else y + D.to(wide) * u
    y = y if z is None else y * F.silu(z.to(wide))
    return y.to(x.dtype)


def best_backend(u: Tensor) -> Backend:
    """Return what ``"auto"`` takes for an input like ``u``.

    On a CPU the compiled kernel, and without a compiler the chunked form, which is faster than the loop from some
    dozen steps on. On CUDA mamba-ssm's kernel where it can be imported, else Triton's, and without Triton or in
    float64 the chunked form. Where PyTorch is asked for deterministic algorithms mamba-ssm's kernel is passed over: its
    gradients of B and C are sums of atomic additions.
    """
    if u.device.type == "cpu" and native_scan.available():
        return "native"
    if u.device.type == "cuda" and u.dtype != torch.float64:
        if _mamba_ssm_kernel() is not None and not torch.are_deterministic_algorithms_enabled():
            return "mamba-ssm"
        if triton_scan.available(u):
            return "triton"
    return "chunked"


# ------------------------------------------------------------------------------------------------ one operator


@torch.library.custom_op("striate::selective_scan", mutates_args=())
def _operator(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    backend: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state, and the states at the start of every block that the native gradient starts from."""
    if backend == "native":
        return native_scan.forward(u, delta, A, B, C, D, bias, softplus)
    if backend == "triton":
        return triton_scan.forward(u, delta, A, B, C, D, bias, softplus)
    scan = functools.partial(linear_scan, backend=backend, chunk_size=chunk_size)
    y, last = _plain(u, delta, A, B, C, D, bias, softplus, scan)
    return y, last, u.new_empty(0)


@torch.library.custom_op("striate::selective_scan_backward", mutates_args=())
def _operator_backward(
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
    backend: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D and bias; the last two also where there is none."""
    if backend == "native":
        return native_scan.backward(dy, dlast, u, delta, A, B, C, D, bias, starts, softplus)
    dlast = u.new_zeros(u.shape[0], u.shape[1], A.shape[1]) if dlast is None else dlast
    if backend == "triton":
        return triton_scan.backward(dy, dlast, u, delta, A, B, C, D, bias, starts, softplus)
    scan = functools.partial(linear_scan, backend=backend, chunk_size=chunk_size)
    return _plain_backward(dy, dlast, u, delta, A, B, C, D, bias, softplus, scan)


@_operator.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    backend: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, dim, length = u.shape
    starts, states = u.new_empty(0), A.shape[1]
    if backend == "native":
        starts = u.new_empty(batch, -(-length // native_scan.block(states)), states, dim)
    if backend == "triton":
        steps = triton_scan.tile(dim, B.shape[1], states).steps
        starts = u.new_empty(batch, dim, -(-length // steps), states)
    return torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty(batch, dim, A.shape[1]), starts


@_operator_backward.register_fake
def _(
    dy: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = [tensor.new_empty(tensor.shape) for tensor in (u, delta, A, B, C)]
    return (*like, u.new_empty(u.shape[1]), u.new_empty(u.shape[1]))  # type: ignore[return-value]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, ctx.backend, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors, output[2])


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None, dstarts: Tensor | None) -> tuple[Any, ...]:
    u, delta, A, B, C, D, bias, starts = ctx.saved_tensors
    dy = torch.zeros_like(u) if dy is None else dy
    if torch.is_grad_enabled():  # create_graph: this gradient is to be differentiated too
        return (*_with_graph(dy, dlast, (u, delta, A, B, C, D, bias), ctx.softplus), None, None, None)
    *found, dD, dbias = torch.ops.striate.selective_scan_backward(
        dy, dlast, u, delta, A, B, C, D, bias, starts, ctx.softplus, ctx.backend, ctx.chunk_size
    )
    return (*found, None if D is None else dD, None if bias is None else dbias, None, None, None)


def _with_graph(dy: Tensor, dlast: Tensor | None, inputs: tuple[Any, ...], softplus: bool) -> list[Tensor | None]:
    """Return the inputs' gradients as plain operations find them, which can be differentiated again."""
    u, delta, A, B, C, D, bias = inputs
    scan = functools.partial(linear_scan, backend="associative")
    y, last = _plain(u, delta, A, B, C, D, bias, softplus, scan)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    above = (dy, torch.zeros_like(last) if dlast is None else dlast)
    found = iter(torch.autograd.grad((y, last), wanted, above, create_graph=True, allow_unused=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


_operator.register_autograd(_differentiate, setup_context=_set_up)


class _Scan(torch.autograd.Function):
    """The operator with the same gradient outside of compiled code, where its own takes 40 us a call more."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output: tuple[Tensor, Tensor, Tensor] = torch.ops.striate.selective_scan(*inputs)
        ctx.set_materialize_grads(False)
        _set_up(ctx, inputs, output)
        return output

    backward = staticmethod(_differentiate)


@register_flop_formula(torch.ops.striate.selective_scan)
def _flops(u_shape: Any, delta_shape: Any, A_shape: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    """Count 9 L D N + L D multiply-accumulates an image, as published tables do, two operations each."""
    batch, dim, length = u_shape
    return 2 * batch * (9 * length * dim * A_shape[1] + length * dim)


# ------------------------------------------------------------------------------------ the same in plain PyTorch


def _plain(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    scan: LinearScan,
) -> tuple[Tensor, Tensor]:
    _, _, decay, drive = _coefficients(u, delta, A, B, bias, softplus)
    h = scan(decay, drive)
    y = (h * _time_major(C, u.shape[1])).sum(dim=-1).permute(1, 2, 0)
    y = y if D is None else y + D[:, None] * u
    return y.contiguous(), h[-1].clone()


def _plain_backward(
    dy: Tensor,
    dlast: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    scan: LinearScan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    raw, dt, decay, drive = _coefficients(u, delta, A, B, bias, softplus)
    h = scan(decay, drive)
    B_t, C_t = (_time_major(tensor, u.shape[1]) for tensor in (B, C))
    dy_t, dt_t, u_t = (tensor.permute(2, 0, 1)[..., None] for tensor in (dy, dt, u))  # (L, B, D, 1)
    driven = dy_t * C_t
    driven[-1] += dlast
    # Backwards the decay of step t + 1 stands at step t.
    later = torch.cat([decay[1:], torch.ones_like(decay[:1])]).flip(0)
    G = scan(later, driven.flip(0)).flip(0)
    before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
    turned = G * before * decay  # dL/da a
    through_B = (G * B_t).sum(dim=-1).permute(1, 2, 0)
    ddt = (turned * A).sum(dim=-1).permute(1, 2, 0) + through_B * u
    ddelta = ddt * torch.sigmoid(raw) if softplus else ddt
    du = through_B * dt if D is None else through_B * dt + D[:, None] * dy

    def per_group(tensor: Tensor) -> Tensor:  # (L, B, D, N) -> (B, G, N, L), summed over a group's channels
        return tensor.unflatten(2, (B.shape[1], -1)).sum(dim=3).permute(1, 2, 3, 0).contiguous()

    return (
        du.contiguous(),
        ddelta.contiguous(),
        (turned * dt_t).sum(dim=(0, 1)),
        per_group(G * dt_t * u_t),
        per_group(dy_t * h),
        (dy * u).sum(dim=(0, 2)),
        ddelta.sum(dim=(0, 2)),
    )


def _coefficients(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, softplus: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dt before and after softplus (B, D, L), and decay and drive of the recurrence (L, B, D, N)."""
    raw = delta if bias is None else delta + bias[:, None]
    dt = F.softplus(raw) if softplus else raw
    decay = torch.exp(dt.permute(2, 0, 1)[..., None] * A)
    drive = (dt * u).permute(2, 0, 1)[..., None] * _time_major(B, u.shape[1])
    return raw, dt, decay, drive


def _per_channel(grouped: Tensor, dim: int) -> Tensor:
    """(B, N, L) or (B, G, N, L) -> (B, D, N, L): a group's coefficients for each of its channels."""
    grouped = grouped[:, None] if grouped.dim() == 3 else grouped
    batch, groups, states, length = grouped.shape
    return grouped[:, :, None].expand(-1, -1, dim // groups, -1, -1).reshape(batch, dim, states, length)


def _time_major(grouped: Tensor, dim: int) -> Tensor:
    return _per_channel(grouped, dim).permute(3, 0, 1, 2)  # (L, B, D, N)


# ---------------------------------------------------------------------------------------------- mamba-ssm, checks


@functools.cache
def _mamba_ssm_kernel() -> Any:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:  # its module imports its CUDA extension
        return None
    return selective_scan_fn


def _mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    return_last_state: bool,
) -> Any:
    kernel = _mamba_ssm_kernel()
    if kernel is None or u.device.type != "cuda":
        allowed = "another one here: mamba-ssm cannot be imported, or the tensors are not on a GPU"
        raise InputError("backend", "selective_scan", allowed=allowed, got="mamba-ssm")
    # The kernel takes what belongs to a step in u's dtype, and what belongs to a channel in float32.
    delta, B, C = (tensor.to(u.dtype).contiguous() for tensor in (delta, B, C))
    D, z, bias = (
        None if t is None else t.to(kind) for t, kind in ((D, torch.float32), (z, u.dtype), (bias, torch.float32))
    )
    return kernel(u.contiguous(), delta, A.float().contiguous(), B, C, D, z, bias, softplus, return_last_state)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    backend: str,
) -> None:
    owner = "selective_scan"
    if backend not in BACKENDS:
        raise InputError("backend", owner, allowed=f"one of {', '.join(BACKENDS)}", got=backend)
    if backend == "native" and not native_scan.available():
        raise InputError("backend", owner, allowed=f"another one here: {native_scan.why_not()}", got=backend)
    if backend == "native" and u.device.type not in {"cpu", "meta"}:
        raise InputError("backend", owner, allowed=f"another one for tensors on {u.device.type}", got=backend)
    if backend == "triton" and (reason := triton_scan.why_not(u)) is not None:
        raise InputError("backend", owner, allowed=f"another one here: {reason}", got=backend)
    if u.dim() != 3 or u.shape[2] == 0:
        raise InputError("u", owner, allowed="(B, D, L) with L > 0", got=tuple(u.shape))
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": bias}
    for name, tensor in given.items():
        if tensor is not None and not tensor.is_floating_point():
            raise InputError(name, owner, allowed="floating point, and real", got=tensor.dtype)
        if tensor is not None and tensor.device != u.device:  # a kernel would read another device's addresses
            raise InputError(name, owner, allowed=f"on {u.device}, where u is", got=str(tensor.device))
    batch, dim, length = u.shape
    if A.dim() != 2 or A.shape[0] != dim:
        raise InputError("A", owner, allowed=f"({dim}, N)", got=tuple(A.shape))
    for name, tensor in (("delta", delta), ("z", z)):
        if tensor is not None and tensor.shape != u.shape:
            raise InputError(name, owner, allowed=f"of u's shape {tuple(u.shape)}", got=tuple(tensor.shape))
    _check_groups(B, C, batch, dim, (A.shape[1], length), owner)
    for name, tensor in (("D", D), ("delta_bias", bias)):
        if tensor is not None and tensor.shape != (dim,):
            raise InputError(name, owner, allowed=f"({dim},)", got=tuple(tensor.shape))
    looked_at = A.device.type == "cpu" and A.numel() and not torch.compiler.is_compiling() and not transformed()
    if looked_at and A.detach().max() > 0:
        warnings.warn(
            "selective_scan: A has positive entries, so states grow without bound along the sequence; A is usually "
            "-exp(A_log).",
            UnstableWarning,
            stacklevel=3,
        )


def _check_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
) -> None:
    owner = "selective_state_update"
    if x.dim() != 2:
        raise InputError("x", owner, allowed="(B, D)", got=tuple(x.shape))
    given = {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": bias}
    for name, tensor in given.items():
        if tensor is not None and not tensor.is_floating_point():  # a state of integers would be cut off
            raise InputError(name, owner, allowed="floating point, and real", got=tensor.dtype)
    (batch, dim), states = x.shape, A.shape[-1]
    wanted = {"dt": (dt, x.shape), "A": (A, (dim, states)), "state": (state, (batch, dim, states)), "z": (z, x.shape)}
    for name, (tensor, shape) in {**wanted, "D": (D, (dim,)), "dt_bias": (bias, (dim,))}.items():
        if tensor is not None and tensor.shape != shape:
            raise InputError(name, owner, allowed=str(tuple(shape)), got=tuple(tensor.shape))
    _check_groups(B, C, batch, dim, (states,), owner)


def _check_groups(B: Tensor, C: Tensor, batch: int, dim: int, size: tuple[int, ...], owner: str) -> None:
    """Refuse B and C unless they are (batch, groups, *size), or (batch, *size) for one group."""
    for name, tensor in (("B", B), ("C", C)):
        grouped = tensor.dim() == len(size) + 2
        groups = tensor.shape[1] if grouped else 1
        wanted = (batch, groups, *size) if grouped else (batch, *size)
        if tensor.shape != wanted or groups == 0 or dim % groups or tensor.shape != B.shape:
            shape = ", ".join(map(str, size))
            allowed = f"({batch}, G, {shape}) with G dividing {dim}, B and C alike"
            raise InputError(name, owner, allowed=allowed, got=tuple(tensor.shape))
