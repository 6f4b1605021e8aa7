"""Deformable convolution: a convolution whose kernel points look where learned offsets send them.

- v1: Dai, Qi, Xiong, Li, Zhang, Hu, Wei, "Deformable Convolutional Networks", 2017, arXiv 1703.06211.
- v2, modulated: Zhu, Hu, Lin, Dai, "Deformable ConvNets v2: More Deformable, Better Results", 2018, arXiv 1811.11168.

    y(p) = sum_k w_k * m_k(p) * x(p + p_k + dp_k(p)),    bilinear sampling, zeros outside; m = 1 in v1

Same numbers, same argument order as ``torchvision.ops.deform_conv2d``, which does the work on CUDA. On the CPU a kernel
of our own samples channels-last, many channels at a time; a depthwise convolution is summed up on the spot and never
lays out the columns (im2col) that torchvision's needs. Where there is no compiler for it, torchvision's runs there too.
All inside of torch.func, and on the CPU second derivatives, go through plain operations.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula
from torchvision.ops import deform_conv2d as peer  # also registers the operator that it calls

from striate.engine.native import load_native
from striate.engine.state import full_precision, transformed
from striate.errors import InputError

__all__ = ["DeformConv2d", "deform_conv2d", "has_native_deform_conv"]

_COLUMNS = 2**20  # elements of the columns of a dense convolution that are laid out at a time


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """Convolve at displaced positions.

    Gradients reach every tensor argument. Half precision is computed in float32.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * G * K, H', W') in pixels, dy and dx of each of the K = kh * kw points in turn, row by row; the
            channels of ``x`` fall into G groups that move together.
        weight: (C', C / groups, kh, kw); (C, 1, kh, kw) is depthwise.
        bias: (C',) or None.
        mask: (N, G * K, H', W'), the modulation of v2, or None.
        stride, padding, dilation: as in :func:`torch.nn.functional.conv2d`.

    Returns:
        (N, C', H', W') in the dtype of ``x``; on the CPU channels-last in memory.

    Raises:
        InputError: sizes or devices that do not fit together, or integers.
    """
    steps, pads, gaps = _pair(stride), _pair(padding), _pair(dilation)
    _check(x, offset, weight, bias, mask, steps, pads, gaps)
    dtype = x.dtype
    wide = torch.promote_types(dtype, torch.float32)
    # Autocast would round the products that the offsets' positions depend on.
    with full_precision(x.device):
        x, offset, weight = x.to(wide), offset.to(wide), weight.to(wide)
        mask = None if mask is None else mask.to(wide)
        if transformed():
            out = _plain(x, offset, mask, weight, steps, pads, gaps)
        elif x.device.type in {"cpu", "meta"}:
            last, kernel = x.permute(0, 2, 3, 1).contiguous(), weight.permute(0, 2, 3, 1)
            out = _deform_conv(last, offset.contiguous(), _contiguous(mask), kernel, steps, pads, gaps)
            out = out.permute(0, 3, 1, 2)
        else:
            out = peer(x, offset, weight, None, steps, pads, gaps, mask)
        if bias is not None:
            out = out + bias.to(wide)[:, None, None]
        return out.to(dtype)


class DeformConv2d(nn.Module):
    """A deformable convolution that predicts its own offsets from its input.

    The convolution that predicts them (and, if ``modulated``, the masks before their sigmoid) starts at zero, so that
    the layer starts as an ordinary convolution; a modulated one starts at half of it. Its tensors bear the names of
    mmcv's DeformConv2dPack and ModulatedDeformConv2dPack.

    Args:
        in_channels, out_channels: of the convolution.
        kernel_size: odd.
        stride: of the convolution.
        dilation: of the convolution and of the one that predicts its offsets.
        groups: of the convolution; ``in_channels`` for a depthwise one.
        offset_groups: groups of channels that move together.
        bias: add one.
        modulated: v2.

    Attributes:
        frozen: if True, offsets are 0 and masks 1, whatever was learned: the ordinary convolution, as a control.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        offset_groups: int = 1,
        bias: bool = True,
        modulated: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError("kernel_size", "DeformConv2d", allowed="odd and >= 1", got=kernel_size)
        if groups < 1 or in_channels % groups or out_channels % groups:
            allowed = f"a divisor of in_channels ({in_channels}) and out_channels ({out_channels})"
            raise InputError("groups", "DeformConv2d", allowed=allowed, got=groups)
        if offset_groups < 1 or in_channels % offset_groups:
            allowed = f"a divisor of in_channels ({in_channels})"
            raise InputError("offset_groups", "DeformConv2d", allowed=allowed, got=offset_groups)
        self.stride, self.dilation, self.modulated = stride, dilation, modulated
        self.padding = dilation * (kernel_size - 1) // 2
        self.points, self.frozen = kernel_size**2, False
        weight = torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))  # as the kernel reads it
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        predicted = offset_groups * self.points * (3 if modulated else 2)
        self.conv_offset = nn.Conv2d(in_channels, predicted, kernel_size, stride, self.padding, dilation)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        offset, mask = self.positions(x)
        return deform_conv2d(
            x, offset, self.weight, self.bias, mask, stride=self.stride, padding=self.padding, dilation=self.dilation
        )

    def positions(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the offsets (N, 2 * G * K, H', W') in pixels and the masks (N, G * K, H', W') in (0, 1), or None."""
        predicted = self.conv_offset(x)
        if not self.modulated:
            return (torch.zeros_like(predicted) if self.frozen else predicted), None
        moved = predicted.shape[1] // 3 * 2
        offset, mask = predicted[:, :moved], torch.sigmoid(predicted[:, moved:])
        return (torch.zeros_like(offset), torch.ones_like(mask)) if self.frozen else (offset, mask)

    def extra_repr(self) -> str:
        """Show the shape in the network's printout."""
        out, per_group, k, _ = self.weight.shape
        return f"{per_group} a group -> {out}, kernel {k}, dilation {self.dilation}, modulated={self.modulated}"


def has_native_deform_conv() -> bool:
    """Whether the kernel for the CPU could be compiled here; else torchvision's is used. Compiles on first use."""
    return _library() is not None


# ------------------------------------------------------------------------------------- the operator of the CPU


@torch.library.custom_op("striate::deform_conv", mutates_args=())
def _deform_conv(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """(N, H, W, C) -> (N, H', W', C') with weight (C', kh, kw, C / groups); contiguous but for the weight."""
    out = x.new_empty(x.shape[0], *offset.shape[2:], weight.shape[0])
    if out.numel() == 0:
        return out
    library = _library()
    if library is None:
        return _peer_forward(x, offset, mask, weight, stride, padding, dilation)
    shape = _shape(x, offset, weight, stride, padding, dilation)
    threads = torch.get_num_threads()
    if _is_depthwise(x, weight):
        by_point = weight.flatten(1).t().contiguous()  # (K, C)
        call = getattr(library, f"deform_depthwise_{_suffix(x)}")
        call(_at(x), _at(offset), _at(mask), _at(by_point), _at(out), shape, threads)
        return out
    groups = x.shape[3] // weight.shape[3]
    # Either the weight or the columns must be turned over, unless the weight is channels-last: the smaller of the two.
    turned = not weight.is_contiguous() and out[..., 0].numel() < weight.shape[0]
    matrix = (weight.permute(0, 3, 1, 2) if turned else weight).reshape(groups, weight.shape[0] // groups, -1)
    lines = out.view(-1, out.shape[2], out.shape[3])
    for first, last, columns in _tiles(x, offset, weight):
        getattr(library, f"deform_columns_{_suffix(x)}")(
            _at(x), _at(offset), _at(mask), _at(columns), shape, first, last, threads
        )
        product = _group(columns, groups, turned) @ matrix.transpose(1, 2)  # (g, P, C' / g)
        lines[first:last] = product.transpose(0, 1).reshape(last - first, *lines.shape[1:])
    return out


@_deform_conv.register_fake
def _(x, offset, mask, weight, stride, padding, dilation):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], *offset.shape[2:], weight.shape[0])


@torch.library.custom_op("striate::deform_conv_backward", mutates_args=())
def _deform_conv_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, offset, mask (empty without one) and weight, for the gradient of the output (N, H', W', C')."""
    library = _library()
    if library is None and grad.numel():
        return _peer_backward(grad, x, offset, mask, weight, stride, padding, dilation)
    grad_x, grad_offset = torch.zeros_like(x), torch.zeros_like(offset)
    grad_mask = offset.new_empty(0) if mask is None else torch.zeros_like(mask)
    if grad.numel() == 0:
        return grad_x, grad_offset, grad_mask, weight.new_zeros(weight.shape)
    shape, threads = _shape(x, offset, weight, stride, padding, dilation), torch.get_num_threads()
    call = getattr(library, f"deform_backward_{_suffix(x)}")
    into = _at(grad_x), _at(grad_offset), _at(None if mask is None else grad_mask)
    rows, points = grad.shape[0] * grad.shape[1], weight.shape[1:3].numel()
    if _is_depthwise(x, weight):
        by_point = weight.flatten(1).t().contiguous()
        shares = x.new_zeros(rows, points, x.shape[3])
        call(
            *(_at(t) for t in (x, offset, mask, grad, by_point)), *into, _at(shares), shape, 0, rows, threads
        )  # fmt: skip
        return grad_x, grad_offset, grad_mask, shares.sum(0).t().reshape(weight.shape).contiguous()
    groups = x.shape[3] // weight.shape[3]
    matrix = weight.reshape(groups, weight.shape[0] // groups, -1)  # (g, C' / g, K * C / g)
    grad_matrix, lines = torch.zeros_like(matrix), grad.view(rows, grad.shape[2], grad.shape[3])
    for first, last, columns in _tiles(x, offset, weight):
        getattr(library, f"deform_columns_{_suffix(x)}")(
            _at(x), _at(offset), _at(mask), _at(columns), shape, first, last, threads
        )
        upstream = lines[first:last].reshape(-1, groups, lines.shape[2] // groups).transpose(0, 1)  # (g, P, C' / g)
        grad_matrix.baddbmm_(upstream.transpose(1, 2), _group(columns, groups))
        by_column = upstream @ matrix  # (g, P, K * C / g)
        by_column = by_column.view(groups, -1, points, x.shape[3] // groups).permute(1, 2, 0, 3).contiguous()
        call(*(_at(t) for t in (x, offset, mask, by_column, None)), *into, None, shape, first, last, threads)
    return grad_x, grad_offset, grad_mask, grad_matrix.view(weight.shape)


@_deform_conv_backward.register_fake
def _(grad, x, offset, mask, weight, stride, padding, dilation):  # type: ignore[no-untyped-def]
    grad_mask = offset.new_empty(0) if mask is None else torch.empty_like(mask)
    return torch.empty_like(x), torch.empty_like(offset), grad_mask, weight.new_empty(weight.shape)


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, offset, mask, weight, *ctx.geometry = inputs
    ctx.save_for_backward(x, offset, mask, weight)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    inputs = x, offset, mask, weight = ctx.saved_tensors
    # A backward pass inside of autocast would hand the kernel half-precision products.
    with full_precision(x.device):
        if not torch.is_grad_enabled():
            grads = _deform_conv_backward(grad.contiguous(), x, offset, mask, weight, *ctx.geometry)
            return grads[0], grads[1], None if mask is None else grads[2], grads[3], None, None, None
        # create_graph: this gradient is to be differentiated too.
        image, kernel, above = (t.permute(0, 3, 1, 2) for t in (x, weight, grad))
        wanted = [t for t in inputs if t is not None and t.requires_grad]
        out = _plain(image, offset, mask, kernel, *ctx.geometry)
        found = iter(torch.autograd.grad(out, wanted, above, create_graph=True))
        return (*(next(found) if t is not None and t.requires_grad else None for t in inputs), None, None, None)


_deform_conv.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.striate.deform_conv)
def _flops(x, offset, mask, weight, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """Those of the ordinary convolution of the same shape, as published tables count them."""
    return 2 * out_shape.numel() * weight[1:].numel()


@register_flop_formula(torch.ops.torchvision.deform_conv2d)
def _peer_flops(x, weight, *args, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    """The same on CUDA, where torchvision's operator runs."""
    return 2 * out_shape.numel() * weight[1:].numel()


# ------------------------------------------------------------------------------------- the same in plain PyTorch


def _plain(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """(N, C, H, W) -> (N, C', H', W') with weight (C', C / groups, kh, kw)."""
    (n, channels, height, width), (out_channels, per_group, kh, kw) = x.shape, weight.shape
    size = out_h, out_w = offset.shape[2], offset.shape[3]
    moved = offset.reshape(n, -1, kh * kw, 2, out_h, out_w)
    taps = torch.meshgrid(*(torch.arange(k, device=x.device) for k in (kh, kw)), indexing="ij")
    down, across = (  # (N, G, K, H', W')
        moved[:, :, :, i]
        + (taps[i].reshape(-1, 1, 1) * dilation[i] - padding[i])
        + torch.arange(size[i], device=x.device).view((-1, 1) if i == 0 else (-1,)) * stride[i]
        for i in (0, 1)
    )
    top, left = down.detach().floor(), across.detach().floor()
    flat = x.reshape(n, moved.shape[1], -1, 1, height * width).expand(-1, -1, -1, kh * kw, -1)
    sampled: Tensor | float = 0.0
    for row, by_row in ((top, 1 - (down - top)), (top + 1, down - top)):
        for column, by_column in ((left, 1 - (across - left)), (left + 1, across - left)):
            outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
            place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).nan_to_num().long()
            index = place.flatten(3)[:, :, None].expand(-1, -1, flat.shape[2], -1, -1)
            pixel = flat.gather(4, index).unflatten(4, size)  # (N, G, C / G, K, H', W')
            sampled = sampled + torch.where(outside[:, :, None], 0, pixel * (by_row * by_column)[:, :, None])
    assert isinstance(sampled, Tensor)
    if mask is not None:
        sampled = sampled * mask.reshape(n, -1, 1, kh * kw, out_h, out_w)
    groups = channels // per_group
    columns = sampled.reshape(n, groups, per_group * kh * kw, out_h * out_w)
    return (weight.reshape(groups, out_channels // groups, -1) @ columns).reshape(n, out_channels, out_h, out_w)


# --------------------------------------------------------------------------------------------- small helpers


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_native(Path(__file__).parent / "native" / "deform_conv.cpp")
    if library is None:
        return None
    rows, tail = [ctypes.c_int64] * 2, [ctypes.c_int]
    for kind in ("f32", "f64"):
        for name, arrays, more in (("columns", 4, rows), ("depthwise", 5, []), ("backward", 9, rows)):
            function = getattr(library, f"deform_{name}_{kind}")
            function.restype, function.argtypes = None, [ctypes.c_void_p] * (arrays + 1) + more + tail
    return library


def _at(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def _suffix(x: Tensor) -> str:
    return "f32" if x.dtype == torch.float32 else "f64"


def _shape(x: Tensor, offset: Tensor, weight: Tensor, *geometry: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    kernel = tuple(weight.shape[1:3])
    pairs = [value for pair in (kernel, *geometry) for value in pair]
    groups = offset.shape[1] // (2 * kernel[0] * kernel[1])
    values = [*x.shape, *offset.shape[2:], *pairs, groups]
    return (ctypes.c_int64 * len(values))(*values)


def _is_depthwise(x: Tensor, weight: Tensor) -> bool:
    return weight.shape[3] == 1 and weight.shape[0] == x.shape[3]


def _tiles(x: Tensor, offset: Tensor, weight: Tensor):  # type: ignore[no-untyped-def]
    """Yield (first row, last row, columns (rows * W', K, C)) so that columns stay in the cache."""
    rows, width, points = x.shape[0] * offset.shape[2], offset.shape[3], weight.shape[1:3].numel()
    step = max(1, _COLUMNS // (width * points * x.shape[3]))
    buffer = x.new_empty(min(step, rows) * width, points, x.shape[3])
    for first in range(0, rows, step):
        last = min(rows, first + step)
        yield first, last, buffer[: (last - first) * width]


def _group(columns: Tensor, groups: int, turned: bool = False) -> Tensor:
    """(P, K, C) -> (g, P, K * C / g), or with C before K if ``turned``."""
    pixels, points, channels = columns.shape
    split = columns.view(pixels, points, groups, channels // groups)
    return split.permute(2, 0, *((3, 1) if turned else (1, 3))).reshape(groups, pixels, -1)


def _peer_forward(x, offset, mask, weight, stride, padding, dilation) -> Tensor:  # type: ignore[no-untyped-def]
    image, weight = (t.permute(0, 3, 1, 2).contiguous() for t in (x, weight))
    out = peer(image, offset, weight, None, tuple(stride), tuple(padding), tuple(dilation), mask)
    return out.permute(0, 2, 3, 1).contiguous()


def _peer_backward(grad, x, offset, mask, weight, stride, padding, dilation):  # type: ignore[no-untyped-def]
    n, points = x.shape[0], weight.shape[1:3].numel()
    groups, moved = x.shape[3] // weight.shape[3], offset.shape[1] // (2 * points)
    image, above, kernel = (t.permute(0, 3, 1, 2).contiguous() for t in (x, grad, weight))
    modulation = x.new_zeros(n, 1) if mask is None else mask
    grads = torch.ops.torchvision._deform_conv2d_backward(
        above, image, kernel, offset, modulation, x.new_zeros(weight.shape[0]),
        *stride, *padding, *dilation, groups, moved, mask is not None,
    )  # fmt: skip
    grad_x, grad_weight, grad_offset, grad_mask, _ = grads
    grad_mask = offset.new_empty(0) if mask is None else grad_mask.contiguous()
    grad_x, grad_weight = (t.permute(0, 2, 3, 1).contiguous() for t in (grad_x, grad_weight))
    return grad_x, grad_offset.contiguous(), grad_mask, grad_weight


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _check(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    def refuse(name: str, allowed: str, got: object) -> None:
        raise InputError(name, "deform_conv2d", allowed=allowed, got=got)

    for name, tensor in {"x": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask}.items():
        if tensor is not None and not tensor.is_floating_point():
            refuse(name, "floating point", tensor.dtype)
        if tensor is not None and tensor.device != x.device:  # the kernel would read another device's addresses
            refuse(name, f"on {x.device}, where x is", str(tensor.device))
    if x.dim() != 4:
        refuse("x", "4-D, (N, C, H, W)", tuple(x.shape))
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if min(pair) < least:
            refuse(name, f">= {least}", pair)
    if weight.dim() != 4 or 0 in weight.shape or not x.shape[1]:
        refuse("weight", "(C', C / groups, kh, kw), none of them 0", tuple(weight.shape))
    if x.shape[1] % weight.shape[1] or weight.shape[0] % (x.shape[1] // weight.shape[1]):
        refuse("weight", f"(C', C / groups, kh, kw) for C = {x.shape[1]}", tuple(weight.shape))
    kernel = weight.shape[2:]
    points = kernel[0] * kernel[1]
    size = tuple(
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    )
    groups = offset.shape[1] // (2 * points) if offset.dim() == 4 else 0
    fits = groups >= 1 and offset.shape[1] == 2 * points * groups and x.shape[1] % groups == 0
    if not fits or offset.shape[0] != x.shape[0] or tuple(offset.shape[2:]) != size:
        allowed = f"({x.shape[0]}, {2 * points} * groups, {size[0]}, {size[1]}), groups dividing {x.shape[1]}"
        refuse("offset", allowed, tuple(offset.shape))
    if mask is not None and tuple(mask.shape) != (x.shape[0], groups * points, *size):
        refuse("mask", f"({x.shape[0]}, {groups * points}, {size[0]}, {size[1]})", tuple(mask.shape))
    if bias is not None and bias.shape != weight.shape[:1]:
        refuse("bias", f"({weight.shape[0]},)", tuple(bias.shape))
