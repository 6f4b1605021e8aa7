"""A convolution and its batch norm under the names ``c`` and ``bn``, and folding them into one for inference."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["BNLinear", "ConvBN", "Residual", "fold"]


class ConvBN(nn.Sequential):
    """A convolution without bias, then batch norm; (N, in_channels, H, W) -> (N, out_channels, H', W').

    Args:
        in_channels, out_channels, kernel_size, stride, groups: of the convolution; padding keeps the size at stride 1.
        bn_weight: what the batch norm's weight starts at; 0 makes a residual branch start at nothing.
    """

    c: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        bn_weight: float = 1.0,
    ) -> None:
        c = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=c, bn=nn.BatchNorm2d(out_channels)))
        nn.init.constant_(self.bn.weight, bn_weight)

    def fuse(self) -> nn.Conv2d:
        """Return one convolution with a bias that does the same in eval mode."""
        return fuse_conv_bn_eval(self.c, self.bn)


class BNLinear(nn.Sequential):
    """Batch norm, then a linear layer; (N, in_features) -> (N, out_features)."""

    bn: nn.BatchNorm1d
    l: nn.Linear  # noqa: E741 (the checkpoints' name)

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(OrderedDict(bn=nn.BatchNorm1d(in_features), l=nn.Linear(in_features, out_features)))
        nn.init.trunc_normal_(self.l.weight, std=0.02)
        nn.init.zeros_(self.l.bias)

    @torch.no_grad()
    def fuse(self) -> nn.Linear:
        """Return one linear layer that does the same in eval mode."""
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert variance is not None
        scale = self.bn.weight / (variance + self.bn.eps).sqrt()
        fused = nn.Linear(self.l.in_features, self.l.out_features).to(self.l.weight)
        fused.weight.copy_(self.l.weight * scale)
        fused.bias.copy_(self.l.bias + self.l.weight @ (self.bn.bias - mean * scale))
        return fused


class Residual(nn.Module):
    """``x + m(x)``."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + m(x)``, of the same shape."""
        return x + self.m(x)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Return the same with its parts folded; a depthwise convolution takes ``x`` into its middle tap."""
        m = self.m.fuse() if isinstance(self.m, ConvBN) else fold(self.m)
        if isinstance(m, nn.Conv2d) and m.groups == m.in_channels == m.out_channels and m.stride == (1, 1):
            m.weight[:, :, m.kernel_size[0] // 2, m.kernel_size[1] // 2] += 1
            return m
        return Residual(m).train(self.training)


def fold(module: nn.Module) -> nn.Module:
    """Replace, in place, every part that has a ``fuse()`` by what it returns; the module must be in eval mode."""
    for name, child in module.named_children():
        fuse = getattr(child, "fuse", None)
        setattr(module, name, fuse() if callable(fuse) else fold(child))
    return module
