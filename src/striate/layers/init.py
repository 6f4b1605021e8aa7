"""First values that several networks share."""

from __future__ import annotations

from timm.layers import trunc_normal_
from torch import nn

__all__ = ["init_linear"]


def init_linear(module: nn.Module) -> None:
    """Draw a linear layer's weights from a normal of deviation 0.02, its bias 0; leave any other module alone.

    For ``network.apply(init_linear)``.
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
