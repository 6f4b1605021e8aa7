"""How diverse the convolution kernels of a network are: variance entropy, sparsity, orthogonality, spatial variance.

Gavrikov, Keuper, "The Power of Linear Combinations: Learning with Random Convolutions", 2023, arXiv 2301.11360; the
entropy and its normalisation are those of the same authors' "CNN Filter DB", 2022, arXiv 2203.15331. Random kernels
point everywhere alike, learned ones repeat a few patterns, and those larger than 3 x 3 concentrate in their centre.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from striate.errors import InputError, LayerError
from striate.layers.lc_conv import LCConv2d

__all__ = [
    "FilterLayer",
    "FilterReport",
    "centre_to_border",
    "filter_orthogonality",
    "filter_report",
    "filter_sparsity",
    "filter_variance_entropy",
    "random_entropy",
    "spatial_kernels",
    "spatial_variance",
]


@dataclass(frozen=True)
class FilterLayer:
    """The kernels of one convolution.

    Attributes:
        name: of the layer.
        kernels: how many k x k kernels.
        entropy: variance entropy, in [0, log10 of k²].
        relative_entropy: over that of random kernels, 1 and more is random; 3 x 3 only, else None.
        sparsity: see :func:`filter_sparsity`.
        orthogonality: see :func:`filter_orthogonality`.
    """

    name: str
    kernels: int
    entropy: float
    relative_entropy: float | None
    sparsity: float
    orthogonality: float


@dataclass(frozen=True, repr=False)
class FilterReport:
    """The kernels of all spatial convolutions of a network.

    Attributes:
        layers: in the model's order.
    """

    layers: tuple[FilterLayer, ...]

    def mean(self, what: str) -> float:
        """Return the mean over layers of ``"entropy"``, ``"relative_entropy"``, ``"sparsity"`` or ``"orthogonality"``.

        Layers without a relative entropy are left out of its mean.

        Raises:
            LayerError: no layer has one.
        """
        values = [value for layer in self.layers if (value := getattr(layer, what)) is not None]
        if not values:
            raise LayerError(f"None of the {len(self.layers)} layers has a {what}: none has 3 x 3 kernels.")
        return fmean(values)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'':{width}} {'kernels':>9} {'entropy':>8} {'relative':>9} {'sparsity':>9} {'orthogonality':>14}"]
        for layer in self.layers:
            relative = "–" if layer.relative_entropy is None else f"{layer.relative_entropy:.3f}"
            lines.append(
                f"{layer.name:{width}} {layer.kernels:>9} {layer.entropy:>8.3f} {relative:>9} {layer.sparsity:>9.3f} "
                f"{layer.orthogonality:>14.3f}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        means = ", ".join(f"{what} {self.mean(what):.3f}" for what in ("entropy", "sparsity", "orthogonality"))
        return f"<FilterReport: {len(self.layers)} layers, mean {means}>"


def filter_report(model: nn.Module) -> FilterReport:
    """Measure every spatial convolution of ``model``; of an :class:`LCConv2d` its combined kernels.

    Raises:
        LayerError: there is no spatial convolution.
    """
    layers = []
    for name, weight in spatial_kernels(model).items():
        entropy = filter_variance_entropy(weight)
        n = weight.shape[0] * weight.shape[1]
        relative = entropy / random_entropy(n) if weight.shape[2:] == (3, 3) and n > 1 else None
        layers.append(FilterLayer(name, n, entropy, relative, filter_sparsity(weight), filter_orthogonality(weight)))
    return FilterReport(tuple(layers))


def filter_variance_entropy(weight: Tensor, *, relative: bool = False) -> float:
    """Return how evenly the variance of a layer's kernels is spread over their principal directions.

    With v_i the shares of variance along them, H = - Σ v_i log10 v_i: 0 where all kernels are alike up to scale and
    sign around their mean, log10(kh kw) where every direction carries as much.

    Args:
        weight: (c_out, c_in, kh, kw), or (N, kh, kw) kernels.
        relative: divide by :func:`random_entropy`; 3 x 3 kernels only.

    Raises:
        InputError: another shape.
    """
    rows = _kernels(weight, "filter_variance_entropy")
    if relative and tuple(weight.shape[-2:]) != (3, 3):
        raise InputError("weight", "filter_variance_entropy", allowed="3 x 3 for relative=True", got=weight.shape)
    variance = torch.linalg.svdvals(rows - rows.mean(dim=0)).square()
    # What rounding leaves of kernels that are all alike is no variance.
    if variance.sum() <= 1e-24 * rows.square().sum() or not variance.any():
        return 0.0
    share = variance / variance.sum()
    entropy = -torch.special.xlogy(share, share).sum().item() / math.log(10)
    return max(0.0, entropy) / (random_entropy(len(rows)) if relative else 1.0)


def random_entropy(n: int) -> float:
    """Return the variance entropy that ``n`` random 3 x 3 kernels have, by the authors' fit T_H.

    >>> round(random_entropy(32), 6), round(random_entropy(256), 6)
    (0.845659, 0.943307)
    """
    if n < 2:
        raise InputError("n", "random_entropy", allowed=">= 2", got=n)
    return 1.2618047 / (1 + math.exp(-0.88767525 * (math.log2(n) - 2.30436435))) - 0.31050834


def filter_sparsity(weight: Tensor) -> float:
    """Return the share of kernels of which every entry is below 1 % of the layer's largest, in magnitude.

    Args:
        weight: (c_out, c_in, kh, kw), or (N, kh, kw) kernels.
    """
    rows = _kernels(weight, "filter_sparsity").abs()
    return (rows.amax(dim=1) < 0.01 * rows.max()).double().mean().item()


def filter_orthogonality(weight: Tensor) -> float:
    """Return 1 - the mean magnitude of the cosine over pairs of filters: 1 if all are orthogonal, 0 if all parallel.

    Args:
        weight: (c_out, …): one filter for each output channel; a filter of zeros is orthogonal to all.
    """
    filters = weight.detach().double().flatten(1)
    n = len(filters)
    if n < 2:
        return 1.0
    unit = torch.nn.functional.normalize(filters, dim=1)
    cosines = (unit @ unit.T).abs().fill_diagonal_(0)
    return 1.0 - cosines.sum().item() / (n * (n - 1))


def spatial_kernels(model: nn.Module) -> dict[str, Tensor]:
    """Return name -> (c_out, c_in, kh, kw) of every 2-D convolution with more than one tap, detached.

    Of an :class:`LCConv2d` these are its combined kernels, where it has nothing in between, else its filters.

    Raises:
        LayerError: there is none, or one has weights that are not finite.
    """
    found: dict[str, Tensor] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LCConv2d):
            inside |= {id(child) for child in module.modules()}
            linear = isinstance(module.between, nn.Identity)
            found[name] = (module.kernel() if linear else module.filter_weight).detach()
        elif isinstance(module, nn.Conv2d) and id(module) not in inside and math.prod(module.kernel_size) > 1:
            found[name] = module.weight.detach()
    if not found:
        raise LayerError(f"{type(model).__name__} has no 2-D convolution with more than one tap.")
    for name, weight in found.items():
        if not weight.isfinite().all():
            raise LayerError(f"'{name}' has weights that are not finite.")
    return found


def spatial_variance(model: nn.Module, kernel_size: tuple[int, int] | None = None) -> Tensor:
    """Return where in the kernel a network's kernels vary: the variance over all kernels at each tap, (kh, kw).

    Each kernel is first divided by the standard deviation of its layer's whole weight, so that layers count alike;
    layers of one value throughout have none and are left out.

    Args:
        model: any CNN.
        kernel_size: only layers of this size; None takes the size with most kernels.

    Raises:
        LayerError: no layer of that size, or no kernel that varies.
    """
    by_size: dict[tuple[int, ...], list[Tensor]] = {}
    for weight in spatial_kernels(model).values():
        wide = weight.double()
        if not wide.std() > 0:
            continue
        by_size.setdefault(tuple(weight.shape[2:]), []).append((wide / wide.std()).flatten(0, 1))
    if not by_size:
        raise LayerError(f"The kernels of {type(model).__name__} are of one value throughout: they do not vary.")
    if kernel_size is None:
        kernels = max(by_size.values(), key=lambda found: sum(map(len, found)))
    elif kernel_size in by_size:
        kernels = by_size[kernel_size]
    else:
        sizes = ", ".join(f"{h} x {w}" for h, w in by_size)
        raise LayerError(f"No layer has kernels of {kernel_size[0]} x {kernel_size[1]}; there are {sizes}.")
    return torch.cat(kernels).var(dim=0)


def centre_to_border(variance: Tensor) -> float:
    """Return the variance at the centre of a map over the mean on its outermost ring; 1 where it is even.

    Args:
        variance: (k, k), k odd and at least 3, from :func:`spatial_variance`.

    Raises:
        InputError: another shape.
    """
    if variance.dim() != 2 or min(variance.shape) < 3 or variance.shape[0] % 2 == 0 or variance.shape[1] % 2 == 0:
        raise InputError("variance", "centre_to_border", allowed="(k, k) for odd k >= 3", got=tuple(variance.shape))
    ring = torch.ones_like(variance, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    centre = variance[variance.shape[0] // 2, variance.shape[1] // 2]
    return (centre / variance[ring].mean()).item()


def _kernels(weight: Tensor, owner: str) -> Tensor:
    """Kernels as rows, (N, kh kw), in float64."""
    if weight.dim() not in {3, 4} or weight.numel() == 0:
        raise InputError("weight", owner, allowed="(c_out, c_in, kh, kw) or (N, kh, kw)", got=tuple(weight.shape))
    return weight.detach().double().flatten(-2).flatten(0, -2)
