"""Which features a network has switched off: the scales γ of its norms, and channels that never fire.

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", 2021, arXiv 2003.00152, section 5: a network of
random features in which only batch norms are trained pushes about a third of |γ| below 0.01, and setting these to
zero hardly changes its accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from striate.errors import InputError, ModelError
from striate.learn.norms import Norms, affine_norms

__all__ = ["GammaLayer", "GammaReport", "gamma_report", "prune_gamma_"]


@dataclass(frozen=True)
class GammaLayer:
    """The scales of one norm.

    Attributes:
        name: of the layer.
        gamma: (C,) float32 on the CPU.
        below: threshold -> share of |γ| below it.
    """

    name: str
    gamma: Tensor
    below: dict[float, float]


@dataclass(frozen=True, repr=False)
class GammaReport:
    """The scales of all norms.

    Attributes:
        layers: in the model's order.
        below: threshold -> share of |γ| below it, over all channels.
    """

    layers: tuple[GammaLayer, ...]
    below: dict[float, float]

    @property
    def gamma(self) -> Tensor:
        """All scales, (sum of C,)."""
        return torch.cat([layer.gamma for layer in self.layers])

    def histogram(self, bins: int = 50, high: float = 1.0) -> tuple[list[int], list[float]]:
        """Return counts and edges of |γ| in ``bins`` bins from 0 to ``high``; what is larger is in the last bin."""
        magnitude = self.gamma.abs().clamp(max=high)
        counts = torch.histc(magnitude, bins, 0.0, high).long().tolist()
        return counts, torch.linspace(0, high, bins + 1).tolist()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, without the scales themselves."""
        layers = {layer.name: {"channels": len(layer.gamma), "below": _by_text(layer.below)} for layer in self.layers}
        return {"channels": len(self.gamma), "below": _by_text(self.below), "layers": layers}

    def __str__(self) -> str:
        heads = "".join(f"{f'< {threshold:g}':>10}" for threshold in self.below)
        width = max(len("all"), *(len(layer.name) for layer in self.layers))
        lines = [f"{'':{width}} {'channels':>9}{heads}"]
        for name, n, below in [
            *((layer.name, len(layer.gamma), layer.below) for layer in self.layers),
            ("all", len(self.gamma), self.below),
        ]:
            lines.append(f"{name:{width}} {n:>9}" + "".join(f"{100 * share:>8.1f} %" for share in below.values()))
        return "\n".join(lines)

    def __repr__(self) -> str:
        shares = ", ".join(f"{100 * share:.3g} % below {threshold:g}" for threshold, share in self.below.items())
        return f"<GammaReport: {len(self.gamma):,} channels of {len(self.layers)} norms, {shares}>"


def gamma_report(
    model: nn.Module, thresholds: Sequence[float] = (1e-3, 1e-2, 5e-2), *, norms: Norms = "bn"
) -> GammaReport:
    """Return the share of scales below each threshold in magnitude, layer by layer; the model is only looked at.

    A scale is as large as the weights after it make it: shares of two networks compare only where both were trained
    with the same weight decay from the same start.

    Args:
        model: any network with norms that have a scale.
        thresholds: above 0.
        norms: ``"bn"``, or ``"all"`` for group, layer and other norms too.

    Raises:
        InputError: a threshold that is not above 0, or none.
        LayerError: there is no such norm, or none has a scale.
        ModelError: a scale is NaN or infinite.

    >>> gamma_report(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    <GammaReport: 4 channels of 1 norms, 0 % below 0.001, 0 % below 0.01, 0 % below 0.05>
    """
    if not thresholds or not all(threshold > 0 for threshold in thresholds):
        raise InputError("thresholds", "gamma_report", allowed="one or more numbers > 0", got=tuple(thresholds))
    layers = []
    for name, norm in affine_norms(model, norms, "gamma_report").items():
        gamma = norm.weight.detach().float().cpu().flatten().clone()
        if not gamma.isfinite().all():
            raise ModelError(f"gamma_report: '{name}' has scales that are not finite.")
        layers.append(GammaLayer(name, gamma, _below(gamma, thresholds)))
    return GammaReport(tuple(layers), _below(torch.cat([layer.gamma for layer in layers]), thresholds))


@torch.no_grad()
def prune_gamma_(model: nn.Module, tau: float, *, norms: Norms = "bn") -> dict[str, int]:
    """Set every scale with a magnitude below ``tau`` to zero, in place: its channel becomes the constant β.

    Args:
        model: any network with norms that have a scale; shifts stay as they are.
        tau: >= 0.
        norms: as in :func:`gamma_report`.

    Returns:
        Layer -> how many of its channels are at zero now.

    Raises:
        InputError: tau is negative or not finite.
        LayerError: there is no such norm, or none has a scale.
    """
    if not 0 <= tau < float("inf"):
        raise InputError("tau", "prune_gamma_", allowed=">= 0 and finite", got=tau)
    zeros = {}
    for name, norm in affine_norms(model, norms, "prune_gamma_").items():
        norm.weight.masked_fill_(norm.weight.abs() < tau, 0.0)
        zeros[name] = int((norm.weight == 0).sum())
    return zeros


def _below(gamma: Tensor, thresholds: Sequence[float]) -> dict[float, float]:
    magnitude = gamma.abs()
    return {float(threshold): (magnitude < threshold).double().mean().item() for threshold in thresholds}


def _by_text(below: dict[float, float]) -> dict[str, float]:
    return {f"{threshold:g}": share for threshold, share in below.items()}
