"""Selective scans along K routes through an image, each with its own projections: what all visual Mambas share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.selective_scan import selective_scan

__all__ = ["SSMInit", "ScanRoutes"]

SSMInit = Literal["v0", "v1", "v2"]


class ScanRoutes(nn.Module):
    """Parameters and scan of K routes; subclasses say how an image is unrolled into routes and put together again.

    The names of the parameters are those of the official checkpoints of VMamba, EfficientVMamba and MobileMamba.

    Args:
        d_inner: channels of a route.
        n_routes: K.
        d_state: N, states a channel.
        dt_rank: rank of the projection of the step sizes.
        ssm_init: ``"v0"`` as in Mamba; ``"v1"`` (A_logs normal, steps 0.1 * normal); ``"v2"`` (A = -1, steps
            0.1 * uniform).
    """

    def __init__(
        self, d_inner: int, n_routes: int, d_state: int = 1, dt_rank: int = 1, ssm_init: SSMInit = "v0"
    ) -> None:
        super().__init__()
        if ssm_init not in {"v0", "v1", "v2"}:
            raise InputError("ssm_init", type(self).__name__, allowed="v0, v1 or v2", got=ssm_init)
        for name, size in {"d_inner": d_inner, "n_routes": n_routes, "d_state": d_state, "dt_rank": dt_rank}.items():
            if size < 1:
                raise InputError(name, type(self).__name__, allowed=">= 1", got=size)
        self.d_inner, self.n_routes, self.d_state, self.dt_rank = d_inner, n_routes, d_state, dt_rank
        bound = d_inner**-0.5
        projection = torch.empty(n_routes, dt_rank + 2 * d_state, d_inner).uniform_(-bound, bound)
        self.x_proj_weight = nn.Parameter(projection)  # nn.Linear's default
        self.Ds = nn.Parameter(torch.ones(n_routes * d_inner))
        shape = (n_routes, d_inner)
        if ssm_init == "v0":
            states = torch.arange(1, d_state + 1, dtype=torch.float32).log()
            self.A_logs = nn.Parameter(states.repeat(n_routes * d_inner, 1))
            weight = torch.empty(*shape, dt_rank).uniform_(-(dt_rank**-0.5), dt_rank**-0.5)
            step = torch.exp(torch.empty(shape).uniform_(math.log(1e-3), math.log(1e-1))).clamp_min(1e-4)
            bias = step + torch.log(-torch.expm1(-step))  # the inverse of softplus
        elif ssm_init == "v1":
            self.A_logs = nn.Parameter(torch.randn(n_routes * d_inner, d_state))
            weight, bias = 0.1 * torch.randn(*shape, dt_rank), 0.1 * torch.randn(shape)
        else:
            self.A_logs = nn.Parameter(torch.zeros(n_routes * d_inner, d_state))
            weight, bias = 0.1 * torch.rand(*shape, dt_rank), 0.1 * torch.rand(shape)
        self.dt_projs_weight, self.dt_projs_bias = nn.Parameter(weight), nn.Parameter(bias)

    def scan(self, routes: Tensor, which: slice = slice(None)) -> Tensor:
        """Scan every route: (B, K, d_inner, L) -> (B, K, d_inner, L), in the dtype of the input.

        Args:
            routes: K of them.
            which: the routes whose parameters are used; default all.
        """
        batch, k, d, length = routes.shape
        projection, A_logs = self.x_proj_weight[which], self.A_logs.unflatten(0, (-1, d))[which].flatten(0, 1)
        # (K, R + 2N, d) @ (B, K, d, L)
        steps, B, C = (projection @ routes).split([self.dt_rank, self.d_state, self.d_state], dim=2)
        delta = self.dt_projs_weight[which] @ steps  # (B, K, d, L)
        y = selective_scan(
            routes.flatten(1, 2),
            delta.flatten(1, 2),
            -torch.exp(A_logs.to(torch.promote_types(A_logs.dtype, torch.float32))),
            B,
            C,
            self.Ds.unflatten(0, (-1, d))[which].flatten(),
            delta_bias=self.dt_projs_bias[which].flatten(),
            delta_softplus=True,
        )
        return y.view(batch, k, d, length)
