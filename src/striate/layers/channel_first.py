"""A linear layer over the channels of a map, stored as ``nn.Linear`` stores it, and Swin's patch merging on maps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

__all__ = ["Linear2d", "PatchMerging"]


class Linear2d(nn.Linear):
    """``nn.Linear`` over dim 1 of (N, C, H, W); a 1 x 1 convolution's weights (out, in, 1, 1) load too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_features, H, W)."""
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.dim() == 4:
            state_dict[f"{prefix}weight"] = weight.flatten(1)
        super()._load_from_state_dict(state_dict, prefix, *args)


class PatchMerging(nn.Module):
    """Halve a map: the four pixels of a 2 x 2 patch side by side, normalised, then a linear layer.

    Liu et al., "Swin Transformer", 2021, arXiv 2103.14030, section 3.1. Odd sizes are padded with zeros at the bottom
    and on the right.

    Args:
        dim: channels of the input.
        out_dim: channels of the output; default twice as many.
    """

    def __init__(self, dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.norm = LayerNorm2d(4 * dim, eps=1e-5)
        self.reduction = Linear2d(4 * dim, out_dim or 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, dim, H, W) -> (N, out_dim, ceil(H / 2), ceil(W / 2))."""
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        parts = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]  # (0, 0), (1, 0), (0, 1), (1, 1)
        return self.reduction(self.norm(torch.cat(parts, dim=1)))
