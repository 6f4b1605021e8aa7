"""What every explainer returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.engine.check import Check
from striate.errors import InputError

__all__ = ["Attribution", "normalize"]


@dataclass(frozen=True)
class Attribution:
    """A map of what counted, with its own check.

    Attributes:
        map: (N, h, w) raw map, signed where the method is; at the method's own resolution.
        method: name of the method, a key of :data:`striate.explain.METHODS`.
        target: (N,) long, the class explained; (N,) of -1 where the target was a callable.
        layer: path of the layer explained, or None for methods at the input.
        check: the method's own check on this very result.
        seconds: wall time of the call.
        input_size: (H, W) of the images explained.
        weights: (N, K) channel weights of a CAM, else None.
        activations: (N, K, h, w) layer response of a CAM, else None.
        notes: further figures of the method, JSON-ready.
    """

    map: Tensor
    method: str
    target: Tensor
    check: Check
    seconds: float
    input_size: tuple[int, int]
    layer: str | None = None
    weights: Tensor | None = None
    activations: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def upsampled(self, size: tuple[int, int] | None = None, mode: str = "bilinear") -> Tensor:
        """Return the raw map at ``size`` (default: the input's), (N, H, W)."""
        size = self.input_size if size is None else size
        if tuple(self.map.shape[-2:]) == tuple(size):
            return self.map
        align = False if mode in {"bilinear", "bicubic"} else None
        return F.interpolate(self.map[:, None], size=size, mode=mode, align_corners=align)[:, 0]

    @property
    def normalized(self) -> Tensor:
        """Positive part at input size, min-max scaled per image to [0, 1]; a constant map gives zeros. (N, H, W)."""
        return normalize(self.upsampled().clamp_min(0))

    def to_dict(self) -> dict[str, Any]:
        """Return all but the tensors, JSON-ready."""
        return {
            "method": self.method,
            "layer": self.layer,
            "target": self.target.tolist(),
            "map_size": list(self.map.shape[-2:]),
            "check": self.check.to_dict(),
            "seconds": self.seconds,
            "notes": self.notes,
        }

    def __repr__(self) -> str:
        where = f" at {self.layer}" if self.layer else ""
        mark = {True: "passed", False: "FAILED", None: "not applicable"}[self.check.passed]
        return (
            f"<Attribution {self.method}{where}: map {tuple(self.map.shape)}, target {self.target.tolist()}, "
            f"{self.check.name} {mark}, {self.seconds:.3f} s>"
        )


def normalize(maps: Tensor) -> Tensor:
    """Min-max scale each map to [0, 1]; a constant map gives zeros, never NaN.

    Args:
        maps: (N, H, W), finite.
    """
    if not torch.isfinite(maps).all():
        raise InputError("maps", "normalize", allowed="finite", got="NaN or infinity")
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))
