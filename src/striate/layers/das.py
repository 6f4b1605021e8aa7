"""DAS: a gate for CNNs that looks, by a deformable convolution, where it matters.

Salajegheh, Asadi, Saryazdi, Mudur, "DAS: A Deformable Attention to Capture Salient Information in CNNs", 2023, arXiv
2311.12091. Features are compressed, sampled at positions predicted from the compressed features themselves, and turned
into a weight in (0, 1) for every pixel and channel; the features are multiplied by it. Cost is linear in pixels.

    X_c = GELU(InstanceNorm(DSC(X)))            depthwise 3x3, pointwise c -> r = max(1, int(alpha * c))
    A   = sigmoid(LayerNorm(Deform(X_c)))       r -> c
    out = X * A

The authors' code is not public, and of the paper itself only its abstract was at hand. What no source settles is a
choice here: the norms' eps and affine parameters, offsets that start at zero, LayerNorm over channels at each pixel
(``norm="layer"``: over channels and pixels), no modulation, and the density of the deformable convolution. The
abstract promises "separable convolutions for efficiency" and no more FLOPs than other attention modules: with the
compression of 0.2 that codes of third parties use, a dense 3x3 r -> c adds 11.3 M parameters and 1.70 GMACs to
ResNet-50, a depthwise one followed by a 1x1 r -> c adds 2.4 M and 0.39 G. So ``deform="separable"`` is the default, an
interpretation; ``"dense"`` is the other reading.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.deform_conv import DeformConv2d

__all__ = ["DAS"]


class DAS(nn.Module):
    """Multiply features by a gate that a deformable convolution computes from them.

    A fresh gate is about 0.5 everywhere: put into a *pretrained* network it halves what the next layer gets. Train on
    from there as the paper does from scratch, or start open with ``residual_init``.

    Args:
        channels: c, of input and output.
        alpha: compression in (0, 1]: the gate works on ``max(1, int(alpha * c))`` channels.
        kernel_size: of the deformable convolution, odd.
        dilation: of the deformable convolution.
        deform: ``"separable"`` (depthwise deformable, then 1x1) or ``"dense"``.
        modulated: deformable convolution v2, with a mask for each sample; not in the paper.
        norm: ``"channel"``: at each pixel over channels; ``"layer"``: over channels and pixels, as some codes have it.
        residual_init: start with the gate at 0.98 instead of about 0.5, for fine-tuning; not in the paper.
        return_gate: return (output, gate) instead of the output.

    Raises:
        InputError: fewer than 2 channels, alpha outside (0, 1], an even kernel, an unknown word.
    """

    def __init__(
        self,
        channels: int,
        alpha: float = 0.2,
        kernel_size: int = 3,
        dilation: int = 1,
        deform: Literal["separable", "dense"] = "separable",
        modulated: bool = False,
        norm: Literal["channel", "layer"] = "channel",
        residual_init: bool = False,
        return_gate: bool = False,
    ) -> None:
        super().__init__()
        if channels < 2:
            raise InputError("channels", "DAS", allowed=">= 2", got=channels, hint="One channel cannot be normalised.")
        if not 0 < alpha <= 1:
            raise InputError("alpha", "DAS", allowed="in (0, 1]", got=alpha)
        if deform not in {"separable", "dense"}:
            raise InputError("deform", "DAS", allowed="'separable' or 'dense'", got=deform)
        if norm not in {"channel", "layer"}:
            raise InputError("norm", "DAS", allowed="'channel' or 'layer'", got=norm)
        r = max(1, int(alpha * channels))
        self.channels, self.return_gate = channels, return_gate
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, r, 1, bias=False)
        # One group a channel is the instance norm; PyTorch's own has a wrong gradient for a single channels-last image.
        self.compressed_norm = nn.GroupNorm(r, r, affine=False)
        self.deform = DeformConv2d(
            r,
            r if deform == "separable" else channels,
            kernel_size,
            dilation=dilation,
            groups=r if deform == "separable" else 1,
            bias=False,
            modulated=modulated,
        )
        self.expand = nn.Conv2d(r, channels, 1, bias=False) if deform == "separable" else nn.Identity()
        self.norm: nn.Module = (
            nn.LayerNorm(channels, eps=1e-6) if norm == "channel" else nn.GroupNorm(1, channels, eps=1e-6)
        )
        for conv in (self.depthwise, self.pointwise, self.expand):
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if residual_init:
            nn.init.zeros_(self.norm.weight)
            nn.init.constant_(self.norm.bias, 4.0)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return ``x * gate(x)``, (N, C, H, W), and with ``return_gate`` the gate as well.

        Raises:
            InputError: not (N, C, H, W) of the right C, or a single pixel, which has no instance norm.
        """
        gate = self.gate(x)
        out = x * gate.to(x.dtype)
        return (out, gate) if self.return_gate else out

    def gate(self, x: Tensor) -> Tensor:
        """Return A, (N, C, H, W) in (0, 1)."""
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise InputError("x", "DAS", allowed=f"(N, {self.channels}, H, W)", got=tuple(x.shape))
        if x.shape[2] * x.shape[3] == 1:
            hint = "Give the network larger images, or leave this stage without a gate."
            raise InputError("x", "DAS", allowed="of more than one pixel", got=tuple(x.shape), hint=hint)
        y = self.expand(self.deform(self.compressed(x)))
        if isinstance(self.norm, nn.LayerNorm):
            y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            y = self.norm(y)
        return torch.sigmoid(y)

    def compressed(self, x: Tensor) -> Tensor:
        """Return X_c, (N, r, H, W), from which offsets are predicted and which is sampled."""
        return F.gelu(self.compressed_norm(self.pointwise(self.depthwise(x))))
