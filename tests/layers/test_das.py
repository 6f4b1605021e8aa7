"""The gate: anchors by hand, the published cost, the contract of layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from striate.engine.macs import count_macs
from striate.errors import InputError
from striate.layers.das import DAS
from striate.layers.insert_attention import insert_das
from striate.testing import check_layer

OPTIONS = [
    {},
    {"deform": "dense"},
    {"modulated": True},
    {"norm": "layer"},
    {"kernel_size": 5, "dilation": 2},
    {"residual_init": True},
    {"alpha": 1.0},
]


def lively(das: DAS, spread: float = 0.3) -> DAS:
    """Offsets as after training: neither zero nor whole."""
    nn.init.normal_(das.deform.conv_offset.weight, std=spread)
    nn.init.uniform_(das.deform.conv_offset.bias, 0.3, 0.7)
    return das


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_contract(options) -> None:
    torch.manual_seed(0)
    check_layer(lively(DAS(4, **({"alpha": 0.5} | options)), 0.02), torch.randn(2, 4, 5, 5))


@pytest.mark.parametrize("deform", ["separable", "dense"])
def test_at_the_start_it_is_the_same_graph_with_an_ordinary_convolution(deform) -> None:
    das, x = DAS(20, deform=deform), torch.randn(2, 20, 9, 8)
    y = F.conv2d(das.compressed(x), das.deform.weight, padding=1, groups=4 if deform == "separable" else 1)
    y = F.layer_norm(das.expand(y).permute(0, 2, 3, 1), (20,), eps=1e-6).permute(0, 3, 1, 2)
    assert torch.allclose(das(x), x * torch.sigmoid(y), atol=1e-5)


def test_offsets_of_one_pixel_to_the_right_look_one_pixel_to_the_right() -> None:
    das, x = DAS(20), torch.randn(2, 20, 9, 8)
    plain = das.deform(das.compressed(x))
    with torch.no_grad():
        das.deform.conv_offset.bias[1::2] = 1
    moved = das.deform(das.compressed(x))
    assert torch.allclose(moved[..., 1:-2], plain[..., 2:-1], atol=1e-5)


def test_the_gate_is_open_closed_and_between() -> None:
    das, x = lively(DAS(20)), torch.randn(2, 20, 9, 8)
    gate = das.gate(x)
    assert (gate > 0).all()
    assert (gate < 1).all()
    assert torch.equal(das(torch.zeros_like(x)), torch.zeros_like(x))
    nn.init.constant_(das.norm.bias, 20)
    nn.init.constant_(das.norm.weight, 0.1)
    assert torch.allclose(das(x), x, atol=1e-6)
    nn.init.constant_(das.norm.bias, -20)
    assert torch.allclose(das(x), torch.zeros_like(x), atol=1e-6)


def test_residual_init_starts_open() -> None:
    x = torch.randn(2, 20, 9, 8)
    assert torch.allclose(DAS(20, residual_init=True).gate(x), torch.tensor(0.982), atol=1e-3)
    assert DAS(20).gate(x).mean().item() == pytest.approx(0.5, abs=0.05)


def test_translation_equivariance_inside() -> None:
    """With the instance norm's statistics held, a shifted image has a shifted gate, away from the border."""
    das = lively(DAS(10, alpha=0.5), 0.05).eval()
    das.compressed_norm = nn.BatchNorm2d(5, affine=False).eval()
    x = torch.randn(1, 10, 24, 24)
    shifted = torch.roll(x, (3, 2), dims=(2, 3))
    inside = slice(9, -9)
    moved = torch.roll(das.gate(x), (3, 2), dims=(2, 3))
    assert torch.allclose(das.gate(shifted)[..., inside, inside], moved[..., inside, inside], atol=1e-4)


def test_gradients_reach_the_offsets_once_they_have_moved() -> None:
    das = lively(DAS(20))
    das(torch.randn(2, 20, 9, 8)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in das.parameters())
    fresh = DAS(20)
    fresh(torch.randn(2, 20, 9, 8)).square().sum().backward()
    assert fresh.deform.conv_offset.bias.grad.abs().sum() > 0  # they can leave zero


def test_return_gate_and_odd_sizes() -> None:
    das = DAS(7, return_gate=True)
    for size in ((1, 2), (5, 1), (13, 11)):
        x = torch.randn(1, 7, *size)
        out, gate = das(x)
        assert torch.allclose(out, x * gate)


def test_compile() -> None:
    das, x = lively(DAS(10)), torch.randn(2, 10, 6, 5)
    compiled = torch.compile(das, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), das(x), atol=1e-5)


# Millions of parameters and GMACs that four gates add to ResNet-50 at 224 x 224.
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2)
COST = {
    "dense": [(0.591, 0.092), (1.142, 0.179), (2.843, 0.427), (5.652, 0.852), (11.284, 1.701)],
    "separable": [(0.157, 0.031), (0.273, 0.051), (0.629, 0.106), (1.217, 0.202), (2.397, 0.393)],
}


@pytest.mark.parametrize("deform", COST)
def test_cost_on_resnet50(deform) -> None:
    with torch.device("meta"):
        plain, x = torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224)
        bare = sum(p.numel() for p in plain.parameters()), count_macs(plain, x)
        for alpha, (millions, giga) in zip(ALPHAS, COST[deform], strict=True):
            gated = insert_das(plain, alpha=alpha, deform=deform)
            assert (sum(p.numel() for p in gated.parameters()) - bare[0]) / 1e6 == pytest.approx(millions, abs=6e-4)
            assert (count_macs(gated, x) - bare[1]) / 1e9 == pytest.approx(giga, abs=6e-4)


def test_cost_by_hand() -> None:
    das = DAS(256, alpha=0.1, deform="dense")
    assert das.pointwise.out_channels == 25
    assert sum(p.numel() for p in das.deform.conv_offset.parameters()) == 25 * 18 * 9 + 18 == 4068


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"channels": 1}, "channels"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"deform": "thin"}, "deform"),
        ({"norm": "batch"}, "norm"),
    ],
)
def test_what_is_not_allowed_is_refused(options, name) -> None:
    with pytest.raises(InputError, match=f"'{name}'"):
        DAS(**({"channels": 8} | options))


@pytest.mark.parametrize("shape", [(8, 5, 5), (1, 7, 5, 5), (1, 8, 1, 1)])
def test_inputs_that_cannot_be_gated_are_refused(shape) -> None:
    with pytest.raises(InputError, match="'x' of DAS"):
        DAS(8)(torch.zeros(shape))
