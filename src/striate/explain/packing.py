"""Convolution weights laid out once as the CPU's kernels read them, for as long as a method calls a network many times.

Each call of a convolution on a CPU brings its weights into the order in which oneDNN reads them: an eighth of the time
of EfficientNet-Lite0 and a twelfth of ResNet-18's for four images of 224 pixels, a fifth of ResNet-18's for one. Going
back, the gradient of a convolution with stride 1 is itself a convolution, of weights that are turned round and packed
as well.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from striate.engine.state import transformed
from striate.explain.folding import FoldedNorms

__all__ = ["PackedConvolutions", "can_pack"]


def can_pack() -> bool:
    """Whether oneDNN is in use, and PyTorch has what its compiler calls to run convolutions on packed weights."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and bool(mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class PackedConvolutions(AbstractContextManager[None]):
    """Run ``model`` inside a ``with`` block with the weights of its convolutions packed; only rounding differs.

    Left alone are convolutions with padding that is not zeros, subclasses with a forward of their own, and calls that
    run under autocast or a transform of torch.func, bring anything but float32 images (N, C, H, W), or are to train the
    weights.

    Args:
        model: in eval mode with float32 weights on a CPU. The weights are read here, once.
        within: entered first, here and in each block: the weights that are packed are the folded ones.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    >>> image = torch.rand(1, 3, 8, 8)
    >>> with torch.no_grad(), PackedConvolutions(network, FoldedNorms(network)):
    ...     packed = network(image)
    >>> torch.allclose(packed, network(image), atol=1e-6)
    True
    """

    def __init__(self, model: nn.Module, within: FoldedNorms) -> None:
        self._within = within
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        with within, torch.no_grad():
            self._forwards = {module: _Packed(module) for module in convolutions if _plain(module)}

    def __bool__(self) -> bool:
        return bool(self._forwards or self._within)

    def __enter__(self) -> None:
        self._within.__enter__()
        for module, forward in self._forwards.items():
            module.__dict__["forward"] = forward

    def __exit__(self, *error: object) -> None:
        for module in self._forwards:
            del module.__dict__["forward"]
        self._within.__exit__(None, None, None)


def _plain(convolution: nn.Conv2d) -> bool:
    """Whether a convolution runs as PyTorch wrote it, on weights of its own."""
    if type(convolution).forward is not nn.Conv2d.forward or "forward" in convolution.__dict__:
        return False
    weight = convolution._parameters.get("weight")
    usual = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return usual and weight is not None and weight.dtype == torch.float32 and weight.device.type == "cpu"


class _Packed:
    """A forward for a convolution, on the weights and the bias that it has now."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        assert isinstance(convolution.padding, tuple)
        self._original, self._weight, self._bias = convolution.forward, convolution.weight, convolution.bias
        self._stride, self._groups = convolution.stride, convolution.groups
        self._padding, self._dilation = convolution.padding, convolution.dilation
        self._packed = self._pack(self._weight, self._padding)
        # The gradient convolves with padding that reaches as far beyond the response as the kernel did.
        reach = zip(convolution.kernel_size, self._dilation, self._padding, strict=True)
        self._turned_padding = tuple((kernel - 1) * step - padding for kernel, step, padding in reach)
        self._turned: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        usual = images.dim() == 4 and images.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not usual or transformed() or (torch.is_grad_enabled() and self._weight.requires_grad):
            return self._original(images)
        if torch.is_grad_enabled() and images.requires_grad:
            return _Convolution.apply(images, self)
        return self.run(images)

    def run(self, images: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        return self._convolve(images, self._packed, self._bias, self._padding, self._stride)

    def gradient(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Return the gradient at images of ``size``, from that at the response."""
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if max(self._stride) > 1 or min(self._turned_padding) < 0:
            return self.differentiable_gradient(gradient, size)
        if self._turned is None:
            self._turned = self._pack(_turned(self._weight, self._groups), self._turned_padding)
        return self._convolve(gradient, self._turned, None, self._turned_padding, (1, 1))

    def differentiable_gradient(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Return the same by an operator of PyTorch's, which can itself be differentiated."""
        images = torch.empty(size, memory_format=torch.channels_last)  # only its shape is read
        geometry = (self._stride, self._padding, self._dilation, False, (0, 0), self._groups)
        wanted = (True, False, False)
        return torch.ops.aten.convolution_backward(gradient, images, self._weight, None, *geometry, wanted)[0]

    def _pack(self, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
        geometry = (padding, self._stride, self._dilation, self._groups)
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry)

    def _convolve(
        self, images: Tensor, packed: Tensor, bias: Tensor | None, padding: tuple[int, ...], stride: tuple[int, ...]
    ) -> Tensor:
        geometry = (padding, stride, self._dilation, self._groups)
        return torch.ops.mkldnn._convolution_pointwise(images, packed, bias, *geometry, "none", [], "")


class _Convolution(torch.autograd.Function):
    """A packed convolution with its gradient. The images need not be kept for it."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, packed: _Packed) -> Tensor:
        ctx.packed, ctx.size = packed, images.shape
        return packed.run(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # A network that uses a gradient of its own has this one differentiated again. (once_differentiable would not
        # do: torch.autograd.grad leaves its error out, and with it the term.)
        if torch.is_grad_enabled() and gradient.requires_grad:
            return ctx.packed.differentiable_gradient(gradient, ctx.size), None
        return ctx.packed.gradient(gradient, ctx.size), None


def _turned(weight: Tensor, groups: int) -> Tensor:
    """Return kernels (outputs, inputs / groups, H, W) turned by half a circle, with inputs and outputs exchanged."""
    grouped = weight.detach().unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return grouped.flip(2, 3).contiguous(memory_format=torch.channels_last)
