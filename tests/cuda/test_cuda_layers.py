"""Every layer gives on the GPU what it gives on the CPU, gradients too."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn

from striate.engine.macs import count_macs
from striate.errors import InputError
from striate.layers.atrous_scan import ES2D, atrous_merge, atrous_scan
from striate.layers.attention import attention_weights, smooth_attention
from striate.layers.bi_recurrent import BiRecurrent
from striate.layers.channel_first import Linear2d, PatchMerging
from striate.layers.char_cnn import CharCNN
from striate.layers.conv_bn import BNLinear, ConvBN, fold
from striate.layers.crf import LinearChainCRF
from striate.layers.cross_scan import cross_merge, cross_scan
from striate.layers.das import DAS
from striate.layers.deform_conv import DeformConv2d, deform_conv2d
from striate.layers.dual_bn import DualBatchNorm, bn_branch, convert_dual_bn, drop_aux_bn
from striate.layers.haar import haar_dwt2d, haar_filters, haar_idwt2d
from striate.layers.insert_attention import gate_maps, insert_das
from striate.layers.lc_conv import LCConv2d, random_filters
from striate.layers.linear_chain import chain_marginals, k_best, log_partition, viterbi
from striate.layers.linear_scan import linear_scan
from striate.layers.mhra import DynamicPositionEmbedding, GlobalMHRA, LocalMHRA
from striate.layers.mobilevit_block import EncoderLayer, MobileViTBlock, fold_patches, unfold_patches
from striate.layers.mrffi import MRFFI
from striate.layers.recompute import recomputed
from striate.layers.selective_scan import best_backend, selective_scan, selective_state_update
from striate.layers.ss2d import SS2D
from striate.layers.to_lc import collapse_model, compact_state_dict, to_lc
from striate.layers.wavelet_ss2d import BidirectionalSS2D, WaveletSS2D
from striate.models.micro import ResNetMicro
from striate.testing import check_layer, left_as_it_came

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ selective scan


def scan_inputs() -> list[torch.Tensor]:
    """u, delta, A, B, C (two groups), D, z, bias."""
    return [
        randn(2, 8, 19), randn(2, 8, 19, seed=1), -randn(8, 3, seed=2).exp(), randn(2, 2, 3, 19, seed=3),
        randn(2, 2, 3, 19, seed=4), randn(8, seed=5), randn(2, 8, 19, seed=6), randn(8, seed=7),
    ]  # fmt: skip


@DTYPES
@pytest.mark.parametrize("backend", ["reference", "sequential", "chunked", "associative", "auto"])
def test_selective_scan(both, backend, dtype) -> None:
    def scan(*tensors):
        return selective_scan(*tensors, delta_softplus=True, return_last_state=True, backend=backend)

    both(scan, *scan_inputs(), dtype=dtype)


def test_selective_scan_picks_what_the_device_can_do(device) -> None:
    u = torch.zeros(1, 2, 3, device=device)
    assert (best_backend(u) == "native") <= (device.type == "cpu")
    if device.type == "cuda":
        with pytest.raises(InputError, match="another one"):
            selective_scan(u, u, -torch.ones(2, 1, device=device), u[:, :1], u[:, :1], backend="native")


def test_selective_scan_in_half_precision(device, same) -> None:
    u, delta, A, B, C, D, z, bias = scan_inputs()
    here = selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True)
    moved = [x.to(device) for x in (u, delta, A, B, C, D, z, bias)]
    half = [x.bfloat16() if i in {0, 1, 3, 4, 6} else x for i, x in enumerate(moved)]
    there = selective_scan(*half, delta_softplus=True)
    assert there.dtype == torch.bfloat16
    same(there.float(), here, 0.03)


def test_the_state_of_single_steps_is_the_scans(device, same) -> None:
    u, delta, A, B, C, D, z, bias = [x.to(device) for x in scan_inputs()]
    whole, last = selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True, return_last_state=True)
    state = torch.zeros(2, 8, 3, device=device)
    steps = [
        selective_state_update(state, u[..., t], delta[..., t], A, B[..., t], C[..., t], D, z[..., t], bias, True)
        for t in range(u.shape[2])
    ]
    same(torch.stack(steps, dim=2), whole.cpu())
    same(state, last.cpu())


@DTYPES
@pytest.mark.parametrize("backend", ["loop", "sequential", "chunked", "associative"])
def test_linear_scan(both, backend, dtype) -> None:
    def scan(a, b):
        graph = backend in {"loop", "associative"}
        return linear_scan(a if graph else a.detach(), b if graph else b.detach(), backend=backend) + 0 * (a + b)

    both(scan, torch.rand(13, 2, 4, 3), randn(13, 2, 4, 3), dtype=dtype)


@pytest.mark.parametrize("mode", ["cross2d", "unidi", "bidi"])
def test_scans_of_a_map(both, mode) -> None:
    both(lambda x: cross_merge(cross_scan(x, mode), 5, 7, mode), randn(2, 3, 5, 7), dtype=torch.float64)


@pytest.mark.parametrize("reverse", [False, True])
def test_atrous_scan(both, reverse) -> None:
    both(
        lambda x: atrous_merge(atrous_scan(x, reverse=reverse), 5, 7, reverse=reverse),
        randn(2, 3, 5, 7),
        dtype=torch.float64,
    )


# ------------------------------------------------------------------------------------------------ modules

MODULES = {
    "SS2D": (lambda: SS2D(8, d_state=2), (2, 8, 5, 7)),
    "SS2D gate": (lambda: SS2D(8, d_state=1, gate=True, scan="cascade"), (2, 8, 5, 7)),
    "ES2D": (lambda: ES2D(8, d_state=2), (2, 8, 5, 7)),
    "BidirectionalSS2D": (lambda: BidirectionalSS2D(8), (2, 8, 5, 6)),
    "WaveletSS2D": (lambda: WaveletSS2D(8, levels=2), (2, 8, 9, 11)),
    "MRFFI": (lambda: MRFFI(20), (2, 20, 7, 9)),
    "DAS": (lambda: DAS(20), (2, 20, 7, 9)),
    "DAS dense": (lambda: DAS(20, deform="dense", modulated=True, norm="layer"), (2, 20, 7, 9)),
    "DeformConv2d": (lambda: moved(DeformConv2d(8, 6, groups=2, offset_groups=4)), (2, 8, 7, 9)),
    "DeformConv2d v2": (lambda: moved(DeformConv2d(8, 8, groups=8, dilation=2, modulated=True)), (2, 8, 7, 9)),
    "LocalMHRA": (lambda: LocalMHRA(4, 3), (2, 4, 5, 7)),
    "LocalMHRA 3-D": (lambda: LocalMHRA(4, 3, 3), (2, 4, 3, 5, 4)),
    "GlobalMHRA": (lambda: GlobalMHRA(8, 2), (2, 5, 7, 8)),
    "GlobalMHRA windows": (lambda: GlobalMHRA(8, 2, window=4), (2, 5, 7, 8)),
    "DynamicPositionEmbedding": (lambda: DynamicPositionEmbedding(4), (2, 4, 5, 7)),
    "MobileViTBlock": (lambda: MobileViTBlock(8, 16).eval(), (2, 8, 7, 9)),
    "EncoderLayer": (lambda: EncoderLayer(8, 2), (2, 6, 8)),
    "LCConv2d": (lambda: LCConv2d(4, 6, 3, 2, padding=1, seed=1, path="direct"), (2, 4, 8, 7)),
    "LCConv2d kernel": (lambda: LCConv2d(4, 6, 3, 2, padding=1, seed=1, path="kernel"), (2, 4, 8, 7)),
    "DualBatchNorm": (lambda: DualBatchNorm(nn.BatchNorm2d(3)), (4, 3, 5, 5)),
    "ConvBN": (lambda: ConvBN(4, 6, 3), (2, 4, 5, 5)),
    "BNLinear": (lambda: BNLinear(4, 6), (3, 4)),
    "Linear2d": (lambda: Linear2d(4, 6), (2, 4, 3, 5)),
    "PatchMerging": (lambda: PatchMerging(4), (2, 4, 5, 7)),
}


def moved(layer: DeformConv2d) -> DeformConv2d:
    """Offsets of about a pixel, as after training; they start at zero."""
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    return layer


@DTYPES
@pytest.mark.parametrize("name", MODULES)
def test_a_layer_is_the_same_on_both(both, name, dtype) -> None:
    make, shape = MODULES[name]
    torch.manual_seed(0)
    both(make(), randn(*shape), dtype=dtype)


CONTRACTS = ["SS2D", "WaveletSS2D", "DAS", "DAS dense", "GlobalMHRA", "MobileViTBlock", "LCConv2d"]


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_layer_keeps_the_contract_there(device, name) -> None:
    make, shape = MODULES[name]
    torch.manual_seed(0)
    check_layer(make().to(device), randn(*shape).to(device), gradcheck=name in {"DAS", "GlobalMHRA"})


# --------------------------------------------------------------------------------------- deformable convolution


@DTYPES
@pytest.mark.parametrize("groups", [1, 4, 8], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("masked", [False, True])
def test_deform_conv2d(both, groups, masked, dtype) -> None:
    tensors = [randn(2, 8, 9, 7), randn(2, 2 * 18, 5, 4, seed=1), randn(8, 8 // groups, 3, 3, seed=2), randn(8)]
    if masked:
        tensors.append(torch.sigmoid(randn(2, 2 * 9, 5, 4, seed=3)))
    both(partial(deform_conv2d, stride=2, padding=1), *tensors, dtype=dtype)


def test_a_gate_costs_the_same_multiplications_on_both(device) -> None:
    gate, x = DAS(20).eval(), randn(1, 20, 9, 9)
    assert count_macs(copy.deepcopy(gate).to(device), x) == count_macs(gate, x) > 0


# --------------------------------------------------------------------------------------------- linear chains


def chain(shared: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return randn(4, 9, 5), randn(5, 5, seed=1) if shared else randn(4, 8, 5, 5, seed=1), torch.tensor([9, 1, 6, 4])


@DTYPES
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "by step"])
@pytest.mark.parametrize("backend", ["sequential", "scan", "reference", "auto"])
def test_log_partition(both, backend, shared, dtype) -> None:
    unary, pairwise, lengths = chain(shared)

    def run(u, p, n):
        return log_partition(u, p, n, backend=backend)

    both(run, unary, pairwise, lengths, dtype=dtype)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "by step"])
def test_marginals_and_best_paths(device, same, shared) -> None:
    here = chain(shared)
    there = tuple(x.to(device) for x in here)
    for a, b in zip(chain_marginals(*there), chain_marginals(*here), strict=True):
        same(a, b)
    for a, b in zip(viterbi(*there), viterbi(*here), strict=True):
        same(a, b)
    for a, b in zip(k_best(*there, 4), k_best(*here, 4), strict=True):
        same(a, b)


@pytest.mark.parametrize("features", [None, 6], ids=["first order", "bigram"])
@pytest.mark.parametrize("in_training", [False, True])
def test_the_random_field(device, same, features, in_training) -> None:
    torch.manual_seed(0)
    here = LinearChainCRF(5, bigram_features=features, gaps=True)
    here.constrain(~torch.eye(5, dtype=torch.bool), end=torch.arange(5) > 0, in_training=in_training)
    there = copy.deepcopy(here).to(device)
    x, tags = randn(4, 9, features or 5), torch.arange(36).view(4, 9) % 4 + 1
    mask = torch.arange(9) < torch.tensor([9, 2, 6, 4])[:, None]
    mask[0, 3] = False
    for wide in (torch.float32, torch.float64):
        here, there = here.to(wide), there.to(wide)
        moved_inputs = x.to(device, wide), tags.to(device), mask.to(device)
        loss, own = there.nll(*moved_inputs), here.nll(x.to(wide), tags, mask)
        same(loss, own)
        for a, b in zip(
            torch.autograd.grad(loss, list(there.parameters())),
            torch.autograd.grad(own, list(here.parameters())),
            strict=True,
        ):
            same(a, b, 1e-3)
        assert there.decode(moved_inputs[0], moved_inputs[2]) == here.decode(x.to(wide), mask)
        best = there.decode(moved_inputs[0], moved_inputs[2], k=3)
        for found, wanted in zip(best, here.decode(x.to(wide), mask, k=3), strict=True):
            assert [path.tags for path in found] == [path.tags for path in wanted]
            assert [p.log_probability for p in found] == pytest.approx([p.log_probability for p in wanted], abs=1e-3)
        same(there.marginals(moved_inputs[0], moved_inputs[2]), here.marginals(x.to(wide), mask), 1e-3)


def test_the_random_field_under_autocast(device) -> None:
    torch.manual_seed(0)
    field, x, tags = LinearChainCRF(5).to(device), randn(3, 7, 5).to(device), torch.ones(3, 7, dtype=torch.long)
    plain = field.nll(x, tags.to(device))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert float((field.nll(x, tags.to(device)) - plain).detach()) == pytest.approx(0, abs=1e-4)


# ----------------------------------------------------------------------------------------- letters and sequences


def test_letters(device, same) -> None:
    torch.manual_seed(0)
    cnn, chars = CharCNN(20).eval(), torch.tensor([[[3, 5, 0], [4, 0, 0]], [[7, 8, 9], [0, 0, 0]]])
    same(copy.deepcopy(cnn).to(device)(chars.to(device)), cnn(chars))


@pytest.mark.parametrize("kind", ["lstm", "rnn"])
@DTYPES
def test_recurrent(both, kind, dtype) -> None:
    torch.manual_seed(0)
    mask = torch.arange(6) < torch.tensor([6, 1, 4])[:, None]
    both(BiRecurrent(5, 4, kind), randn(3, 6, 5), mask, dtype=dtype)


# --------------------------------------------------------------------------------------------------- the rest


@DTYPES
def test_haar(both, device, same, dtype) -> None:
    both(haar_dwt2d, randn(2, 3, 7, 9), dtype=dtype)
    both(lambda x: haar_idwt2d(haar_dwt2d(x), (7, 9)), randn(2, 3, 7, 9), dtype=dtype)
    same(haar_filters(3).to(device), haar_filters(3), 0)


def test_patches(both) -> None:
    both(lambda x: fold_patches(*unfold_patches(x, (2, 2))), randn(2, 3, 7, 9))


def test_recomputing_changes_nothing(device, same) -> None:
    torch.manual_seed(0)
    layer, x = SS2D(8).to(device), randn(2, 8, 5, 5).to(device).requires_grad_()
    (plain,) = torch.autograd.grad(layer(x).square().sum(), x)
    (again,) = torch.autograd.grad(recomputed(layer, x).square().sum(), x)
    same(again, plain.cpu())


def test_random_filters_are_the_same_on_every_device(device, same) -> None:
    torch.manual_seed(0)
    mixed = to_lc(ResNetMicro((8, 16)), expansion=2, seed=3).eval()
    there = to_lc(ResNetMicro((8, 16)).to(device), expansion=2, seed=3).eval()
    torch.testing.assert_close(random_filters((2, 3, 3, 3), 5), random_filters((2, 3, 3, 3), 5), rtol=0, atol=0)
    frozen = [key for key, value in mixed.state_dict().items() if "filters" in key and value.dim() == 4]
    assert frozen
    for key in frozen:
        same(there.state_dict()[key], mixed.state_dict()[key], 0)
    there.load_state_dict(mixed.state_dict())
    x = torch.rand(2, 3, 32, 32)
    same(there(x.to(device)), mixed(x))
    same(collapse_model(there)(x.to(device)), mixed(x))
    again = to_lc(ResNetMicro((8, 16)).to(device), expansion=2, seed=9).eval()
    again.load_state_dict(compact_state_dict(there))
    same(again(x.to(device)), mixed(x))


def test_folding(device, same) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(ConvBN(3, 8, 3), nn.ReLU(), ConvBN(8, 8, 1))
    block(randn(8, 3, 9, 9))
    block.eval()
    x = randn(2, 3, 9, 9)
    same(fold(copy.deepcopy(block).to(device))(x.to(device)), block(x))


def test_two_norms(device, same) -> None:
    torch.manual_seed(0)
    here = convert_dual_bn(ResNetMicro((8, 16)))
    there = copy.deepcopy(here).to(device)
    x = torch.rand(4, 3, 32, 32)
    for branch in ("main", "aux"):
        with bn_branch(here, branch), bn_branch(there, branch):
            same(there(x.to(device)), here(x), 1e-3)
    same(drop_aux_bn(there).eval()(x.to(device)), drop_aux_bn(here).eval()(x), 1e-3)


def test_gates_in_a_network_and_their_maps(device, same) -> None:
    torch.manual_seed(0)
    here = insert_das(timm.create_model("resnet18", num_classes=5)).eval()
    there = copy.deepcopy(here).to(device)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        same(there(x.to(device)), here(x), 1e-3)
    wanted = gate_maps(here, x)
    for images in (x, x.to(device)):
        with left_as_it_came(there):
            for stage, values in gate_maps(there, images).items():
                same(values, wanted[stage], 1e-3)


def test_attention(device, same) -> None:
    torch.manual_seed(0)
    here = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=6).eval()
    there, x = copy.deepcopy(here).to(device), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted = attention_weights(here, x)
        for images in (x, x.to(device)):
            for a, b in zip(attention_weights(there, images), wanted, strict=True):
                same(a.weights, b.weights)
        with smooth_attention(here, 2.0), smooth_attention(there, 2.0):
            same(there(x.to(device)), here(x))
