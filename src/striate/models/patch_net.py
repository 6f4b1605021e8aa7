"""One hidden layer on patches: convolutional, locally connected or fully connected, with one filter a patch at most.

Lahoti, Karp, Winston, Singh, Li, ICLR 2024, arXiv 2403.15707. Images are k patches of d values (stride d: patches do
not overlap), the second layer is fixed to ones, and the activation is the soft threshold phi_b ("local signal
adaptivity"):

    CNN  f(x) = sum_j phi_b(w . x_j)      w   in R^d
    LCN  f(x) = sum_j phi_b(w_j . x_j)    w_j in R^d
    FCN  f(x) = sum_j phi_b(w_j . x)      w_j in R^{kd}

Each is a special case of the next: an LCN with equal filters is a CNN, an FCN with block-diagonal rows is an LCN.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from striate.errors import InputError

__all__ = ["Arch", "PatchNet", "soft_threshold"]

Arch = Literal["cnn", "lcn", "fcn"]


def soft_threshold(z: Tensor, b: float | Tensor) -> Tensor:
    """Return phi_b(z) = relu(z - b) - relu(-z - b): odd, 0 on [-b, b], slope 1 outside; phi_0(z) = z.

    >>> soft_threshold(torch.tensor([-2.0, 0.5, 3.0]), 1.0).tolist()
    [-1.0, 0.0, 2.0]
    """
    return torch.relu(z - b) - torch.relu(-z - b)


class PatchNet(nn.Module):
    """A CNN, LCN or FCN on k patches of d values; the sign of its output is its answer.

    Args:
        arch: ``"cnn"``, ``"lcn"`` or ``"fcn"``.
        k, d: number of patches, and values a patch.
        bias: the threshold b >= 0, shared by all units. It is a buffer: plain gradient descent does not learn it.
        hidden: units of an FCN, default k.
        copies: None for one network; R for R networks side by side that share nothing, so that repeats of an
            experiment run as one batch of products.

    Attributes:
        weight: (filters, width), with ``copies`` (R, filters, width): 1 x d, k x d or hidden x kd; starts as
            N(0, 1 / kd).
        bias: scalar, with ``copies`` (R,).
    """

    bias: Tensor

    def __init__(
        self, arch: Arch, k: int, d: int, bias: float = 0.0, hidden: int | None = None, copies: int | None = None
    ) -> None:
        super().__init__()
        if arch not in {"cnn", "lcn", "fcn"}:
            raise InputError("arch", "PatchNet", allowed="'cnn', 'lcn' or 'fcn'", got=arch)
        if k < 1 or d < 1 or (hidden or 1) < 1 or (copies or 1) < 1:
            raise InputError("k, d, hidden, copies", "PatchNet", allowed=">= 1", got=(k, d, hidden, copies))
        if hidden is not None and arch != "fcn":
            raise InputError("hidden", "PatchNet", allowed=f"left out for an {arch.upper()}", got=hidden)
        if not 0 <= bias < float("inf"):
            raise InputError("bias", "PatchNet", allowed=">= 0 and finite", got=bias)
        self.arch: Arch = arch
        self.k, self.d, self.copies = k, d, copies
        shape = {"cnn": (1, d), "lcn": (k, d), "fcn": (hidden or k, k * d)}[arch]
        many = () if copies is None else (copies,)
        self.weight = nn.Parameter(torch.randn(*many, *shape) / (k * d) ** 0.5)
        self.register_buffer("bias", torch.full(many, float(bias)))

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x): (n, k, d) -> (n,); with ``copies`` (R, n, k, d), or (n, k, d) for all, -> (R, n)."""
        return soft_threshold(self.products(x), self.bias[..., None, None]).sum(dim=-1)

    def products(self, x: Tensor) -> Tensor:
        """Return every unit's product w_j . x_j before the threshold: (n, units), with ``copies`` (R, n, units)."""
        self._check(x)
        if self.arch == "fcn":
            return x.flatten(-2) @ self.weight.mT
        if self.arch == "cnn":
            return (x @ self.weight.unsqueeze(-3).mT).squeeze(-1)
        return (x * self.weight.unsqueeze(-3)).sum(dim=-1)  # faster than a batch of matrix-vector products

    @torch.no_grad()
    def gradient(self, x: Tensor, coefficient: Tensor) -> Tensor:
        """Return sum_i c_i df(x_i)/dweight, in closed form: phi_b' is 1 where a unit's product exceeds b.

        Args:
            x: (n, k, d), with ``copies`` (R, n, k, d).
            coefficient: c, (n,), with ``copies`` (R, n).

        Returns:
            Of the shape of ``weight``.
        """
        passes = self.products(x).abs() > self.bias[..., None, None]
        c = coefficient[..., None] * passes  # (..., n, units)
        if self.arch == "fcn":
            return c.mT @ x.flatten(-2)
        if self.arch == "cnn":
            return c.flatten(-2)[..., None, :] @ x.flatten(-3, -2)
        return (c[..., None] * x).sum(dim=-3)

    @torch.no_grad()
    def project_(self) -> PatchNet:
        """Scale every filter to norm 1 (a filter of zeros stays), and return self."""
        norm = self.weight.norm(dim=-1, keepdim=True)
        self.weight.div_(torch.where(norm > 0, norm, 1))
        return self

    def cosine(self, w: Tensor) -> Tensor:
        """Return cos(w_j, w) of every filter of a CNN or LCN: (filters,), with ``copies`` (R, filters)."""
        if self.arch == "fcn":
            raise InputError(
                "arch", "PatchNet.cosine", allowed="cnn or lcn: an FCN has no filter of a patch", got="fcn"
            )
        with torch.no_grad():
            return nn.functional.cosine_similarity(self.weight, w.to(self.weight), dim=-1)

    def widened(self, arch: Arch) -> PatchNet:
        """Return the same function as a less constrained network: CNN -> LCN -> FCN.

        >>> net, x = PatchNet("cnn", 3, 2, bias=0.1), torch.randn(5, 3, 2)
        >>> torch.allclose(net.widened("fcn")(x), net(x), atol=1e-6)
        True
        """
        order: tuple[Arch, ...] = ("cnn", "lcn", "fcn")
        if arch not in order or order.index(arch) < order.index(self.arch):
            raise InputError("arch", "PatchNet.widened", allowed=f"{self.arch} or what contains it", got=arch)
        if arch == self.arch:
            return copy.deepcopy(self)
        wide = PatchNet(arch, self.k, self.d, copies=self.copies).to(self.weight)
        rows = self.weight.detach().expand(*self.weight.shape[:-2], self.k, self.d)
        if arch == "fcn":
            eye = torch.eye(self.k, device=rows.device, dtype=rows.dtype)
            rows = torch.einsum("...jd,jm->...jmd", rows, eye).flatten(-2)
        with torch.no_grad():
            wide.weight.copy_(rows)
        wide.bias.copy_(self.bias)
        return wide

    def extra_repr(self) -> str:
        """Name the architecture in ``print(net)``."""
        copies = "" if self.copies is None else f", copies={self.copies}"
        return f"{self.arch!r}, k={self.k}, d={self.d}, filters={self.weight.shape[-2]}{copies}"

    def _check(self, x: Tensor) -> None:
        dims = {3} if self.copies is None else {3, 4}
        right = x.dim() in dims and x.shape[-2:] == (self.k, self.d)
        if x.dim() == 4 and right:
            right = x.shape[0] == self.copies
        if not right:
            many = "" if self.copies is None else f", or ({self.copies}, n, {self.k}, {self.d})"
            wanted = f"(n, {self.k}, {self.d}){many}"
            raise InputError("x", "PatchNet", allowed=wanted, got=tuple(x.shape))
