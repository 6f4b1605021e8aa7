"""Deformable convolution against torchvision's, against the ordinary convolution, against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import deform_conv2d as peer

from striate.engine.macs import count_macs
from striate.errors import InputError
from striate.layers import deform_conv as module
from striate.layers.deform_conv import DeformConv2d, deform_conv2d
from striate.testing import check_layer


def problem(
    channels=6, out=4, groups=1, moved=1, kernel=(3, 3), stride=1, padding=1, dilation=1, mask=True, size=(7, 9),
    dtype=torch.float64, spread=2.0, seed=0,
):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def length(n, k):
        return (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1

    result = [length(n, k) for n, k in zip(size, kernel, strict=True)]
    points = kernel[0] * kernel[1]
    x = draw(2, channels, *size)
    offset = spread * draw(2, 2 * moved * points, *result)
    weight, bias = draw(out, channels // groups, *kernel), draw(out)
    modulation = torch.sigmoid(draw(2, moved * points, *result)) if mask else None
    tensors = [x, offset, weight, bias, modulation]
    return [None if t is None else t.requires_grad_() for t in tensors], {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }


def of_peer(tensors, options):
    x, offset, weight, bias, mask = tensors
    return peer(x, offset, weight, bias, options["stride"], options["padding"], options["dilation"], mask)


PROBLEMS = [
    {},
    {"mask": False},
    {"channels": 35, "out": 35, "groups": 35},  # depthwise, with a remainder of a vector
    {"channels": 32, "out": 32, "groups": 32, "moved": 2, "stride": 2, "dilation": 2, "padding": 2},
    {"channels": 36, "out": 24, "groups": 4, "moved": 3, "kernel": (3, 5)},
    {"channels": 6, "out": 12, "groups": 6, "padding": 0},  # depthwise with a multiplier
    {"channels": 1, "out": 1, "kernel": (1, 1), "padding": 0},
    {"channels": 40, "out": 3, "size": (1, 6), "kernel": (1, 3)},
    {"spread": 20.0},  # nearly all samples off the map
]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("options", PROBLEMS, ids=str)
def test_same_as_torchvision_forward_and_backward(options, native, monkeypatch) -> None:
    if not native:
        monkeypatch.setattr(module, "_library", lambda: None)
    tensors, geometry = problem(**options)
    ours, theirs = deform_conv2d(*tensors, **geometry), of_peer(tensors, geometry)
    assert torch.allclose(ours, theirs, atol=1e-11)
    above = torch.randn_like(theirs)
    wanted = [t for t in tensors if t is not None]
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, above), torch.autograd.grad(theirs, wanted, above), strict=True
    ):
        assert torch.allclose(mine, other, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(3, 9), st.integers(3, 9), st.integers(1, 2), st.integers(1, 2), st.booleans(),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_any_shape_in_float32(channels, height, width, stride, dilation, mask, depthwise, seed) -> None:
    out, groups = (channels, channels) if depthwise else (5, 1)
    tensors, geometry = problem(
        channels, out, groups, stride=stride, dilation=dilation, padding=dilation, mask=mask, size=(height, width),
        dtype=torch.float32, seed=seed,
    )  # fmt: skip
    assert torch.allclose(deform_conv2d(*tensors, **geometry), of_peer(tensors, geometry), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"mask": False}, {"channels": 4, "out": 4, "groups": 4}])
def test_finite_differences(options) -> None:
    tensors, geometry = problem(**({"channels": 4, "out": 3, "size": (4, 5)} | options))
    with torch.no_grad():  # bilinear sampling has kinks at whole numbers
        offset = tensors[1]
        offset.copy_(offset.floor() + 0.2 + 0.6 * (offset - offset.floor()))
    tensors = [t for t in tensors if t is not None]
    assert torch.autograd.gradcheck(lambda *args: deform_conv2d(*args, **geometry), tensors, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("options", [{"mask": False}, {"channels": 4, "out": 4, "groups": 2, "moved": 2}])
def test_second_derivatives(options) -> None:
    tensors, geometry = problem(**({"channels": 2, "out": 2, "size": (3, 4)} | options))
    tensors = [t for t in tensors if t is not None]
    assert torch.autograd.gradgradcheck(lambda *args: deform_conv2d(*args, **geometry), tensors)


@pytest.mark.parametrize("options", PROBLEMS, ids=str)
def test_transforms_give_the_operators_gradient(options) -> None:
    tensors, geometry = problem(**options)
    with torch.no_grad():
        tensors[1][0].round_()  # at whole numbers bilinear sampling has two slopes: those of one convention
    given = [t for t in tensors if t is not None]
    place = tensors[4] is not None

    def energy(*args):
        return deform_conv2d(*args[:4], args[4] if place else None, **geometry).square().sum()

    ours = torch.func.grad(energy, argnums=tuple(range(len(given))))(*(t.detach() for t in given))
    for mine, other in zip(ours, torch.autograd.grad(energy(*given), given), strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9)


def test_tangents_and_single_gradients() -> None:
    (x, offset, weight, *_), geometry = problem(mask=False, size=(3, 4))
    x, offset, weight = x.detach(), offset.detach(), weight.detach()

    def layer(x):
        return deform_conv2d(x, offset[: len(x)], weight, **geometry)

    assert torch.allclose(torch.func.jvp(layer, (x,), (x,))[1], layer(x))  # linear in the image
    each = torch.func.vmap(torch.func.grad(lambda one: layer(one[None]).square().sum()))(x)
    by_hand = torch.func.grad(lambda one: layer(one).square().sum())(x[:1])
    assert torch.allclose(each[:1], by_hand)


def test_a_backward_pass_inside_of_autocast() -> None:
    tensors, geometry = problem(dtype=torch.float32)
    expected = torch.autograd.grad(deform_conv2d(*tensors, **geometry).sum(), tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(deform_conv2d(*tensors, **geometry).sum(), tensors)
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(("out", "groups"), [(5, 1), (8, 8), (8, 4)])
def test_without_offsets_it_is_the_convolution(out, groups) -> None:
    (x, offset, weight, bias, _), geometry = problem(channels=8, out=out, groups=groups, dtype=torch.float32)
    ours = deform_conv2d(x, torch.zeros_like(offset), weight, bias, **geometry)
    assert torch.allclose(ours, F.conv2d(x, weight, bias, padding=1, groups=groups), atol=1e-5)


def test_offsets_are_dy_then_dx() -> None:
    (x, offset, weight, bias, _), geometry = problem(mask=False)
    right = torch.zeros_like(offset)
    right[:, 1::2] = 1
    moved = deform_conv2d(x, right, weight, bias, **geometry)
    plain = F.conv2d(x, weight, bias, padding=1)
    assert torch.allclose(moved[..., 1:-2], plain[..., 2:-1])
    down = torch.zeros_like(offset)
    down[:, 0::2] = 1
    moved = deform_conv2d(x, down, weight, bias, **geometry)
    assert torch.allclose(moved[:, :, 1:-2], plain[:, :, 2:-1])


def test_a_position_that_is_not_a_number_stays_visible() -> None:
    tensors, geometry = problem(channels=8, out=8, groups=8)
    with torch.no_grad():
        tensors[1][0, 0, 0, 0] = torch.nan
        tensors[1][1, 0, 0, 0] = torch.inf
    out = deform_conv2d(*tensors, **geometry)
    assert out[0, :, 0, 0].isnan().all()
    assert out[1].isfinite().all()  # infinitely far away is off the map


def test_infinite_pixels_do_not_leak_into_samples_outside() -> None:
    x = torch.full((1, 2, 3, 3), torch.inf)
    out = deform_conv2d(x, torch.full((1, 2, 3, 3), 50.0), torch.ones(2, 1, 1, 1))
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("options", [{}, {"channels": 35, "out": 35, "groups": 35}])
def test_the_same_bits_for_any_number_of_threads(options) -> None:
    tensors, geometry = problem(dtype=torch.float32, size=(12, 11), **options)
    if "groups" not in options:
        return  # the matrix product of a dense one is the library's
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = deform_conv2d(*tensors, **geometry)
            found.append([out, *torch.autograd.grad(out.square().sum(), [t for t in tensors if t is not None])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_empty_batch_and_half_precision() -> None:
    layer = DeformConv2d(6, 4)
    assert layer(torch.zeros(0, 6, 5, 5)).shape == (0, 4, 5, 5)
    x = torch.randn(2, 6, 5, 5)
    half = deform_conv2d(x.bfloat16(), torch.zeros(2, 18, 5, 5).bfloat16(), layer.weight.bfloat16(), padding=1)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), F.conv2d(x, layer.weight, padding=1), atol=0.1)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_contract(modulated, groups) -> None:
    layer = DeformConv2d(4, 4, groups=groups, offset_groups=2, modulated=modulated)
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    nn.init.uniform_(layer.conv_offset.bias, 0.3, 0.7)
    check_layer(layer, torch.randn(2, 4, 5, 4))


def test_starts_as_a_convolution_modulated_as_half_of_one() -> None:
    x = torch.randn(2, 6, 9, 8)
    for modulated, share in ((False, 1.0), (True, 0.5)):
        layer = DeformConv2d(6, 4, stride=2, dilation=2, modulated=modulated)
        plain = F.conv2d(x, share * layer.weight, layer.bias, 2, 2, 2)
        assert torch.allclose(layer(x), plain, atol=1e-5)


def test_names_are_those_of_mmcv() -> None:
    shapes = {name: tuple(value.shape) for name, value in DeformConv2d(6, 4, modulated=True).state_dict().items()}
    assert shapes == {
        "weight": (4, 6, 3, 3),
        "bias": (4,),
        "conv_offset.weight": (27, 6, 3, 3),
        "conv_offset.bias": (27,),
    }


def test_frozen_is_the_ordinary_convolution() -> None:
    layer = DeformConv2d(6, 4, modulated=True)
    nn.init.normal_(layer.conv_offset.weight)
    layer.frozen = True
    x = torch.randn(2, 6, 9, 8)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), atol=1e-5)


def test_counts_as_the_convolution_of_its_shape() -> None:
    layer = DeformConv2d(6, 10, bias=False)
    positions = 2 * 9 * 6 * 9 * 20
    assert count_macs(layer, torch.zeros(1, 6, 4, 5)) == positions + 10 * 6 * 9 * 20


def test_compile_and_export() -> None:
    """Compiling takes seconds: the operator must be one piece, with shapes that the compiler knows."""
    layer = DeformConv2d(6, 4, modulated=True)
    x = torch.randn(2, 6, 9, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), atol=1e-5)
    compiled(x).sum().backward()
    exported = torch.export.export(layer, (x,))
    assert torch.allclose(exported.module()(x), layer(x), atol=1e-5)


def test_the_operator_keeps_the_rules_of_operators() -> None:
    tensors, _ = problem(channels=4, out=3, size=(4, 5))
    x, offset, weight, _, mask = tensors
    last, kernel = (t.detach().permute(0, 2, 3, 1).contiguous().requires_grad_() for t in (x, weight))
    torch.library.opcheck(module._deform_conv, (last, offset, mask, kernel, (1, 1), (1, 1), (1, 1)))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({0: torch.zeros(6, 7, 9)}, "x"),
        ({1: torch.zeros(2, 18, 7, 8)}, "offset"),
        ({1: torch.zeros(2, 17, 7, 9)}, "offset"),
        ({1: torch.zeros(1, 18, 7, 9)}, "offset"),
        ({2: torch.zeros(4, 5, 3, 3)}, "weight"),
        ({2: torch.zeros(4, 0, 3, 3)}, "weight"),
        ({4: torch.zeros(2, 18, 7, 9)}, "mask"),
        ({0: torch.zeros(2, 6, 7, 9, dtype=torch.long)}, "x"),
        ({1: torch.zeros(2, 18, 7, 9, device="meta")}, "offset"),
        ({3: torch.zeros(1)}, "bias"),
    ],
)
def test_what_does_not_fit_is_refused(change, name) -> None:
    tensors, geometry = problem(dtype=torch.float32)
    for place, tensor in change.items():
        tensors[place] = tensor
    with pytest.raises(InputError, match=f"'{name}'"):
        deform_conv2d(*tensors, **geometry)
    with pytest.raises(InputError, match="kernel_size"):
        DeformConv2d(4, 4, kernel_size=2)
    with pytest.raises(InputError, match="'groups'"):
        DeformConv2d(4, 6, groups=4)
    with pytest.raises(InputError, match="offset_groups"):
        DeformConv2d(4, 6, offset_groups=3)


@pytest.mark.parametrize(("name", "value"), [("stride", 0), ("padding", -1), ("dilation", (1, 0))])
def test_a_geometry_that_is_none_is_refused(name, value) -> None:
    tensors, geometry = problem()
    with pytest.raises(InputError, match=f"'{name}' of deform_conv2d"):
        deform_conv2d(*tensors, **{**geometry, name: value})
