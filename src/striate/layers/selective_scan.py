"""The selective state-space scan (S6) of Mamba: a linear recurrence whose coefficients depend on the input.

Gu, Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv 2312.00752, as used by VMamba
(Liu et al., 2024, arXiv 2401.10166). The discretisation is the one of every Mamba code, which checkpoints depend on:
zero-order hold for A, Euler for B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["selective_scan"]


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
) -> Tensor:
    """Scan along the last dimension; all arithmetic in float32 (float64 stays).

    Args:
        u: (B, D, L) input.
        delta: (B, D, L) step sizes before bias and softplus.
        A: (D, N) real and negative.
        B, C: (B, N, L), or (B, G, N, L) with channel d in group d // (D / G).
        D: (D,) skip, or None.
        z: (B, D, L) gate: the output is multiplied by SiLU(z).
        delta_bias: (D,) or None.
        delta_softplus: apply softplus to ``delta + delta_bias``.

    Returns:
        (B, D, L) in the dtype of ``u``.
    """
    dtype = u.dtype
    wide = torch.promote_types(dtype, torch.float32)
    u, delta, A, B, C = (t.to(wide) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(wide)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    if B.dim() == 3:
        B, C = B[:, None], C[:, None]
    repeat = u.shape[1] // B.shape[1]
    B, C = (t.repeat_interleave(repeat, dim=1) for t in (B, C))  # (B, D, N, L)
    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    ys = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        ys.append((h * C[..., t]).sum(-1))
    y = torch.stack(ys, dim=2)
    if D is not None:
        y = y + D.to(wide)[:, None] * u
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(dtype)
