"""Random filters and their combinations are one convolution, on both paths, and seeds give the filters bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.engine.train import Recipe, fit
from striate.errors import InputError, LayerError
from striate.layers.lc_conv import FilterBank, LCConv2d, random_filters
from striate.testing import check_layer


def layer(**options: object) -> LCConv2d:
    return LCConv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, "expansion": 2, "seed": 1, **options})


GEOMETRIES = [
    {"stride": 2, "padding": 1},
    {"padding": 2, "dilation": 2},
    {"kernel_size": (3, 5), "padding": (1, 2), "stride": (1, 2)},
    {"kernel_size": 7, "padding": "same", "dilation": 2},
    {"padding": "valid", "bias": True},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "circular", "kernel_size": 4},
]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_the_paths_agree_with_each_other_and_with_the_combined_kernel(options: dict) -> None:
    torch.manual_seed(0)
    direct, kernel = layer(**options, path="direct"), layer(**options, path="kernel")
    kernel.load_state_dict(direct.state_dict())
    x = torch.randn(3, 4, 15, 12)
    plain = nn.Conv2d(4, 6, direct.kernel_size, direct.stride, direct.padding, direct.dilation, bias=False,
                      padding_mode=direct.padding_mode)  # fmt: skip
    combined = torch.einsum("oj,jcyx->ocyx", direct.combine.weight[:, :, 0, 0], direct.filters.weight)
    with torch.no_grad():
        plain.weight.copy_(combined)
        expected = plain(x) + (0 if direct.combine.bias is None else direct.combine.bias[:, None, None])
        assert direct(x).sub(expected).abs().max() < 1e-5
        assert kernel(x).sub(expected).abs().max() < 1e-5
        assert direct.collapse()(x).sub(expected).abs().max() < 1e-5
    above = torch.randn_like(expected)
    gradients = [torch.autograd.grad(m(x), m.combine.weight, above)[0] for m in (direct, kernel)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@given(
    st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 3, 5]), st.integers(1, 4), st.integers(1, 2),
    st.integers(0, 2), st.integers(1, 3), st.booleans(), st.integers(5, 12),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_paths_agree_whatever_the_shape(
    c: int, out: int, k: int, expansion: int, stride: int, padding: int, n: int, bias: bool, size: int
) -> None:
    options = {"stride": stride, "padding": padding, "bias": bias, "seed": 0}
    direct = LCConv2d(c, out, k, expansion, path="direct", **options).double()
    kernel = LCConv2d(c, out, k, expansion, path="kernel", **options).double()
    auto = LCConv2d(c, out, k, expansion, **options).double()
    for other in (kernel, auto):
        other.load_state_dict(direct.state_dict())
    x = torch.randn(n, c, size, size + 1, dtype=torch.float64)
    torch.testing.assert_close(kernel(x), direct(x))
    torch.testing.assert_close(auto(x), direct(x))
    torch.testing.assert_close(direct(x[:1]), direct(x)[:1])


@pytest.mark.parametrize(
    "options", [{"path": "direct"}, {"path": "kernel"}, {"between": "bn-relu"}, {"bank": FilterBank(999)}]
)
def test_the_contract(options: dict) -> None:
    """Gradients by finite differences, batches, channels_last, bfloat16 autocast, state dict."""
    torch.manual_seed(0)
    check_layer(LCConv2d(2, 3, 3, 2, padding=1, seed=0, **options), torch.randn(2, 2, 5, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    one = layer(path="kernel").to(dtype)
    assert one(torch.randn(1, 4, 5, 5, dtype=dtype)).dtype == dtype
    assert one.kernel().dtype == dtype


def test_under_autocast_the_kernel_is_made_in_float32() -> None:
    one = layer(path="kernel")
    with torch.autocast("cpu", torch.bfloat16):
        kernel, out = one.kernel(), one(torch.randn(1, 4, 5, 5))
    assert kernel.dtype == torch.float32
    assert torch.equal(kernel, one.kernel())
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("learn_filters", [False, True])
@pytest.mark.parametrize("gradients", ["none", "weights", "input too"])
def test_auto_takes_the_path_with_fewer_multiplications(learn_filters: bool, gradients: str) -> None:
    """Counted by PyTorch's own counter, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    def count(path: str) -> int:
        one = LCConv2d(8, 12, 3, expansion, padding=1, path=path, learn_filters=learn_filters)
        with torch.set_grad_enabled(gradients != "none"), FlopCounterMode(display=False) as counter:
            out = one(torch.zeros(n, 8, side, side, requires_grad=gradients == "input too"))
            if gradients != "none":
                out.sum().backward()
        return counter.get_total_flops()

    for expansion in (1, 2, 8):
        for n, side in ((1, 2), (1, 4), (1, 8), (16, 4)):
            assert count("auto") == min(count("direct"), count("kernel")), (expansion, n, side)


def test_paths_that_are_asked_for_are_taken() -> None:
    x = torch.zeros(128, 16, 32, 32, device="meta")
    assert LCConv2d(16, 16, 3, 8, padding=1).takes_kernel_path(x)
    assert not LCConv2d(16, 16, 3, 8, path="direct").takes_kernel_path(x)
    assert not LCConv2d(16, 16, 3, 8, between="relu").takes_kernel_path(x)
    assert LCConv2d(16, 16, 3, 8, path="kernel").takes_kernel_path(x[:1, :, :1, :1])
    frozen_e1 = LCConv2d(16, 16, 3, padding=1)
    assert not frozen_e1.takes_kernel_path(x.requires_grad_())  # K would need a gradient, F needs none
    with torch.no_grad():
        assert frozen_e1.takes_kernel_path(x)


# --- initialisation and seeds


def test_filters_start_as_pytorchs_convolutions_do() -> None:
    filters = LCConv2d(64, 64, 3, expansion=4, seed=0).filters.weight
    bound = (64 * 9) ** -0.5
    assert filters.abs().max() <= bound
    assert filters.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    combine = LCConv2d(64, 64, 3, expansion=4).combine.weight
    assert combine.abs().max() <= 256**-0.5


def test_a_seed_is_one_set_of_filters_and_reseeding_another() -> None:
    one = layer(seed=5)
    assert torch.equal(one.filters.weight, layer(seed=5).filters.weight)
    assert torch.equal(one.filters.weight, random_filters((12, 4, 3, 3), 5))
    first = one.filters.weight.clone()
    one.reseed(6)
    assert one.seed == 6
    assert not torch.equal(one.filters.weight, first)
    assert not one.filters.weight.requires_grad


def test_without_a_seed_the_global_generator_decides_once() -> None:
    torch.manual_seed(3)
    first = layer(seed=None)
    torch.manual_seed(3)
    second = layer(seed=None)
    assert first.seed == second.seed
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(first(x), first(x))  # nothing is drawn again


def test_a_compact_state_holds_seeds_and_gives_the_same_bits() -> None:
    one, other = layer(seed=5), layer(seed=9)
    state = one.state_dict(compact=True)
    assert set(state) == {"filters_seed", "combine.weight"}
    assert set(one.state_dict()) == {"filters.weight", "combine.weight"}
    other.load_state_dict(state)
    assert other.seed == 5
    assert torch.equal(other.filters.weight, one.filters.weight)
    half, again = layer(seed=5).bfloat16(), layer(seed=9).bfloat16()
    again.load_state_dict(half.state_dict(compact=True))
    assert torch.equal(again.filters.weight, half.filters.weight)


def test_filters_that_the_seed_does_not_give_are_kept() -> None:
    """Learned, or loaded from elsewhere: a seed in their place would silently be another layer."""
    one = layer(seed=5)
    one.load_state_dict(layer(seed=7).state_dict())
    state = one.state_dict(compact=True)
    assert "filters.weight" in state
    other = layer(seed=1)
    other.load_state_dict(state)
    assert torch.equal(other.filters.weight, layer(seed=7).filters.weight)


@pytest.mark.parametrize(
    ("options", "moves"), [({}, False), ({"learn_filters": True}, True), ({"bank": FilterBank(999, 2)}, False)]
)
def test_frozen_filters_are_bitwise_still_under_momentum_and_decay(options: dict, moves: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer(padding=1, **options), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before, combine = model[0].filter_weight.clone(), model[0].combine.weight.clone()
    recipe = Recipe(2, 8, "sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    fit(model, torch.rand(16, 4, 6, 6), torch.arange(16) % 6, recipe)
    assert torch.equal(model[0].filter_weight, before) != moves
    assert not torch.equal(model[0].combine.weight, combine)
    if not options:  # an optimizer that was handed the frozen filters too leaves them alone as well
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
        model(torch.rand(4, 4, 6, 6)).sum().backward()
        optimizer.step()
        assert torch.equal(model[0].filter_weight, before)


@pytest.mark.parametrize(("expansion", "reaches"), [(9, True), (8, False)])
def test_enough_random_filters_span_every_kernel(expansion: int, reaches: bool) -> None:
    """c = 16, k = 3: 9 x 16 = 144 = c k² filters do, 128 do not."""
    one = LCConv2d(16, 16, 3, expansion, seed=0).double()
    filters = one.filter_weight.flatten(1)
    target = torch.randn(16, 144, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    combine = torch.linalg.lstsq(filters.T, target.T, driver="gelsd").solution.T
    residual = (combine @ filters - target).abs().max()
    assert (residual < 1e-6) == reaches
    assert torch.linalg.matrix_rank(filters) == min(expansion * 16, 144)
    if reaches:
        with torch.no_grad():
            one.combine.weight.copy_(combine[:, :, None, None])
        assert one.kernel().flatten(1).sub(target).abs().max() < 1e-6


# --- banks and what stands between


def test_layers_of_one_bank_share_their_numbers() -> None:
    bank = FilterBank(4 * 4 * 9 * 4, seed=3)
    first, second = LCConv2d(4, 4, 3, 4, bank=bank), LCConv2d(2, 4, 3, 1, bank=bank)
    torch.testing.assert_close(second.filter_weight.flatten() * 18**0.5, first.filter_weight.flatten()[:72] * 6)
    assert first.filter_weight.abs().max() <= 1 / 6
    assert sum(p.numel() for p in first.parameters()) == 64
    assert "bank of seed 3" in repr(first)
    copied = copy.deepcopy(nn.ModuleDict({"bank": bank, "first": first, "second": second}))
    assert copied["first"].bank is copied["second"].bank is copied["bank"]
    with pytest.raises(LayerError, match="cut from a bank"):
        first.reseed(1)


@pytest.mark.parametrize("between", ["relu", "bn", "bn-relu"])
def test_with_something_between_there_is_no_single_kernel(between: str) -> None:
    one = layer(between=between, padding=1)
    x = torch.randn(2, 4, 5, 5)
    assert one(x).shape == (2, 6, 5, 5)
    for call in (one.kernel, one.collapse):
        with pytest.raises(LayerError, match="between"):
            call()


def test_a_fraction_of_the_channels_will_do() -> None:
    assert LCConv2d(4, 6, 3, 1 / 6).filters.weight.shape == (1, 4, 3, 3)
    assert LCConv2d(4, 6, 3, 1.5).filters.weight.shape == (9, 4, 3, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"expansion": 0.1}, "at least 1/6"),
        ({"expansion": 1.4}, "whole number"),
        ({"expansion": float("nan")}, "whole number"),
        ({"bank": FilterBank(10)}, "at least 432"),
        ({"bank": FilterBank(999), "learn_filters": True}, "learn_filters"),
        ({"path": "fast"}, "'direct'"),
        ({"between": "gelu"}, "'relu'"),
        ({"between": "relu", "path": "kernel"}, "between"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        layer(**options)
    with pytest.raises(InputError, match="size"):
        FilterBank(0)
