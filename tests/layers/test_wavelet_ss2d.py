"""The wavelet scan and the three receptive fields: the authors' numbers, what each part sees, folding."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.conv_bn import BNLinear, ConvBN, Residual, fold
from striate.layers.haar import haar_dwt2d, haar_idwt2d
from striate.layers.mrffi import MRFFI, LocalConv, split_channels
from striate.layers.wavelet_ss2d import BidirectionalSS2D, WaveletSS2D
from striate.testing import check_layer


def value(name: str, shape: torch.Size) -> Tensor:
    """A value for a tensor that depends on its name alone, so that two programs can agree on it."""
    v = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if name.endswith("running_var"):
        return 1 + 0.5 * v.abs()
    if name.endswith("A_logs"):
        return 0.5 * v
    if name.endswith("Ds"):
        return 1 + 0.2 * v
    if "scale" in name:
        return 0.5 + 0.2 * v
    if v.dim() == 1:
        return 0.3 * v + (1 if name.endswith("weight") else 0)
    fan = 1 if "dt_projs_bias" in name else shape[-1] if "x_proj" in name or "dt_projs" in name else v[0].numel()
    return v * fan**-0.5


def filled(module: nn.Module) -> nn.Module:
    state = module.state_dict()
    module.load_state_dict({name: t if "wt_filter" in name else value(name, t.shape) for name, t in state.items()})
    return module.eval()


@torch.no_grad()
def test_the_authors_numbers_with_two_levels() -> None:
    """lewandofskee/MobileMamba 0980f48: ``MBWTConv2d(16, 16, 3, wt_levels=2, ssm_ratio=2, forward_type="v052d")``."""
    layer = filled(WaveletSS2D(16, 3, levels=2))
    x = torch.rand(1, 16, 7, 10, generator=torch.Generator().manual_seed(0))  # odd, on both levels
    y = layer(x)
    expected = torch.tensor([0.121560, -0.272566, -0.167459, -0.344776, -0.564148, -0.106747, 0.024917])
    torch.testing.assert_close(y.flatten()[::160], expected, atol=2e-6, rtol=0)
    assert y.square().mean().item() == pytest.approx(0.183586, abs=2e-6)


def test_both_routes_see_the_whole_map_together() -> None:
    torch.manual_seed(0)
    layer = BidirectionalSS2D(4).double().eval()
    layer.conv2d = None
    x = torch.randn(1, 4, 3, 5, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, :, 1, 2].sum(), x)
    assert (gradient.abs().sum((0, 1)) > 0).all()
    routes = layer.unroll(torch.arange(6.0).view(1, 1, 2, 3))
    assert routes[0, :, 0].tolist() == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
    assert torch.equal(layer.merge(routes, 2, 3), 2 * torch.arange(6.0).view(1, 1, 2, 3))


@torch.no_grad()
def test_images_of_a_batch_do_not_mix() -> None:
    """The authors' plain PyTorch merging of two routes does mix them."""
    layer, x = filled(WaveletSS2D(16, 3)), torch.randn(3, 16, 4, 6)
    torch.testing.assert_close(layer(x), torch.cat([layer(image[None]) for image in x]))


@torch.no_grad()
def test_fresh_parts() -> None:
    layer = WaveletSS2D(16, 5)
    scan = layer.global_atten
    assert (scan.A_logs == 0).all()
    assert (scan.Ds == 1).all()
    for name in ("dt_projs_weight", "dt_projs_bias"):
        assert 0 <= getattr(scan, name).min() <= getattr(scan, name).max() <= 0.1
    assert scan.x_proj_weight.shape == (2, 3, 32)
    assert layer.wavelet_scale[0].weight.unique().item() == pytest.approx(0.1)
    layer.wavelet_convs[0].weight.zero_()[:, :, 2, 2] = 1  # the bands as they are
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(layer.wavelet(x), 0.1 * x)
    layer.wavelet_scale[0].weight.view(16, 4)[:, 0] = 0  # no low band
    bands = haar_dwt2d(x)
    bands[:, :, 0] = 0
    torch.testing.assert_close(layer.wavelet(x), 0.1 * haar_idwt2d(bands, (5, 7)))


def test_without_scan_or_wavelet() -> None:
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(WaveletSS2D(16, levels=0, scan=False)(x), x)
    assert not any("wt_filter" in name for name, _ in WaveletSS2D(16, levels=0).named_parameters())


def test_checkpoints_of_another_wavelet_are_refused_and_buffers_load() -> None:
    layer = WaveletSS2D(16)
    assert not layer.wt_filter.requires_grad
    state = layer.state_dict()
    layer.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True)
    with pytest.raises(RuntimeError, match="not the Haar wavelet"):
        layer.load_state_dict({**state, "wt_filter": -state["wt_filter"]})


def test_split_channels() -> None:
    published = {(144, 0.8, 0.2): (112, 28, 4), (192, 0.8, 0.2): (160, 32, 0), (272, 0.7, 0.2): (192, 54, 26)}
    published |= {(448, 0.6, 0.3): (272, 134, 42)}
    for arguments, parts in published.items():
        assert split_channels(*arguments) == parts
    assert split_channels(16, 0.5, 0.2) == (16, 0, 0)  # 8 is a tie, and goes up
    with pytest.raises(InputError, match="at least 32"):
        split_channels(24, 1.0, 0.0)
    with pytest.raises(InputError, match="local_ratio"):
        split_channels(32, 0.5, 1.5)
    with pytest.raises(InputError, match="odd"):
        MRFFI(24, 0.2, 0.8, kernel_size=4)


@torch.no_grad()
def test_the_identity_part_is_passed_on_and_the_local_part_is_local() -> None:
    mixer = filled(MRFFI(32, 0.5, 0.25, 5))
    assert mixer.parts == (16, 8, 8)
    mixer.proj[1] = nn.Identity()
    x = torch.randn(1, 32, 9, 9)
    torch.testing.assert_close(mixer(x)[:, 24:], x[:, 24:].relu())
    moved = x.clone()
    moved[:, :, 0, 0] += 1
    changed = (mixer(moved) - mixer(x)).abs()
    assert (changed[0, 16:24].amax(0) > 0).nonzero().max() <= 2
    assert (changed[0, :16].amax(0) > 0).float().mean() > 0.5


def test_layers_keep_the_contract() -> None:
    torch.manual_seed(0)
    check_layer(WaveletSS2D(4, 3, levels=2), torch.randn(2, 4, 3, 5))
    check_layer(filled(MRFFI(24, 0.5, 0.2, 3)), torch.randn(2, 24, 3, 2))
    check_layer(Residual(ConvBN(3, 3, 3, groups=3)), torch.randn(2, 3, 4, 3))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Residual(ConvBN(6, 6, 3, groups=6)), (2, 6, 5, 4)),
        (Residual(ConvBN(6, 6)), (2, 6, 5, 4)),
        (LocalConv(6, 5), (2, 6, 5, 4)),
        (nn.Sequential(ConvBN(6, 4, 3, 2), nn.ReLU(), ConvBN(4, 4)), (2, 6, 5, 4)),
        (BNLinear(6, 3), (2, 6)),
        (MRFFI(32, 0.5, 0.25, 3), (2, 32, 5, 4)),
    ],
)
@torch.no_grad()
def test_folding_changes_nothing(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer, x = filled(layer).double(), torch.randn(shape, dtype=torch.double)
    expected = layer(x)
    folded = fold(nn.Sequential(layer))
    torch.testing.assert_close(folded(x), expected)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())


def test_refusals() -> None:
    with pytest.raises(InputError, match="odd"):
        WaveletSS2D(16, 4)
    with pytest.raises(InputError, match="levels"):
        WaveletSS2D(16, levels=-1)
    with pytest.raises(InputError, match="more than 4 pixels"):
        WaveletSS2D(16, levels=3)(torch.zeros(1, 16, 4, 4))
