"""Any CNN becomes a network of random filters with the published counts, and collapses into an ordinary one."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from striate.engine.load import load_state_dict, read_weights
from striate.errors import LayerError
from striate.layers.lc_conv import FilterBank, LCConv2d
from striate.layers.to_lc import collapse_model, compact_state_dict, to_lc
from striate.learn.freezing import freeze_spatial
from striate.models.cifar_resnet import cifar_resnet
from striate.testing import check_model


def learnable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("expansion", "count"), [(1, 37_290), (2, 69_802), (4, 134_826), (8, 264_874), (9, 297_386), (16, 524_970)]
)
def test_resnet_lc_20_has_the_published_counts(expansion: int, count: int) -> None:
    with torch.device("meta"):
        model = to_lc(cifar_resnet(20, 16), expansion)
    layers = [module for module in model.modules() if isinstance(module, LCConv2d)]
    assert len(layers) == 19
    assert learnable(model) == count
    assert sum(one.filters.weight.numel() for one in layers) == 267_696 * expansion
    assert sum(one.combine.weight.numel() for one in layers) == 32_512 * expansion
    assert freeze_spatial(model).trainable == count


@pytest.mark.parametrize("shared_bank", [False, True])
def test_a_collapsed_network_gives_the_same_logits_under_the_old_names(shared_bank: bool) -> None:
    torch.manual_seed(0)
    model = to_lc(cifar_resnet(14, 8), 3, shared_bank=shared_bank, seed=1)
    model.train()(torch.rand(8, 3, 16, 16))  # running statistics other than 0 and 1
    model.eval()
    x = torch.rand(2, 3, 16, 16)
    collapsed = collapse_model(model)
    with torch.no_grad():
        assert collapsed(x).sub(model(x)).abs().max() < 1e-4
    plain = cifar_resnet(14, 8)
    assert list(collapsed.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(collapsed.state_dict())
    assert any(isinstance(module, LCConv2d) for module in model.modules())
    with pytest.raises(LayerError, match="no LCConv2d"):
        collapse_model(collapsed)


def test_a_whole_network_has_the_same_gradients_on_both_paths() -> None:
    torch.manual_seed(0)
    networks = [to_lc(cifar_resnet(14, 4), 4, seed=1, path=path).double() for path in ("direct", "kernel")]
    networks[1].load_state_dict(networks[0].state_dict())
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    for model in networks:
        model.train()(x).square().sum().backward()
    first, second = ([p.grad for p in model.parameters() if p.requires_grad] for model in networks)
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(first, second, strict=True))


def test_other_peoples_networks_keep_their_geometry() -> None:
    torch.manual_seed(0)
    for make, size in ((torchvision.models.resnet18, 64), (lambda: timm.create_model("resnet18d"), 64)):
        plain = make().eval()
        shapes = {name: m.weight.shape for name, m in plain.named_modules() if isinstance(m, nn.Conv2d)}
        with torch.no_grad():
            expected = plain(torch.rand(1, 3, size, size)).shape
            model = to_lc(plain, 1, seed=0)
            assert model is plain
            assert model(torch.rand(1, 3, size, size)).shape == expected
        assert {
            n: m.weight.shape for n, m in collapse_model(model).named_modules() if isinstance(m, nn.Conv2d)
        } == shapes
        assert not any(
            isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.weight.requires_grad for m in model.modules()
        )


def test_device_type_mode_bias_and_options_are_the_old_ones() -> None:
    model = (
        nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1, 1, bias=True, padding_mode="reflect"), nn.Conv2d(4, 4, 1))
        .double()
        .eval()
    )
    shared = model[0]
    model.append(shared)
    to_lc(model[:1], 2)
    assert isinstance(model[0], nn.Conv2d)  # a slice is another Sequential
    to_lc(model, 2, seed=3, learn_filters=True, between="bn", predicate=lambda name, conv: name == "0")
    one = model[0]
    assert model[2] is one
    assert (one.stride, one.padding, one.padding_mode) == ((2, 2), (1, 1), "reflect")
    assert one.combine.bias is not None
    assert one.combine.weight.dtype == torch.float64
    assert not one.training
    assert one.filters.weight.requires_grad
    assert isinstance(model[1], nn.Conv2d)


def test_a_single_convolution_is_returned_as_a_layer() -> None:
    assert isinstance(to_lc(nn.Conv2d(1, 2, 3), 2), LCConv2d)
    assert isinstance(collapse_model(LCConv2d(1, 2, 3)), nn.Conv2d)


def test_applied_twice_it_finds_nothing_left() -> None:
    model = to_lc(cifar_resnet(8, 4), 1)
    with pytest.raises(LayerError, match="no convolution to replace"):
        to_lc(model, 1)


def test_groups_are_refused_by_name_and_nothing_is_changed() -> None:
    model = torchvision.models.mobilenet_v2()
    with pytest.raises(LayerError, match=r"'features\.1\.conv\.0\.0' of MobileNetV2 has 32 groups"):
        to_lc(model, 1)
    assert not any(isinstance(module, LCConv2d) for module in model.modules())
    to_lc(model, 1, predicate=lambda name, conv: conv.groups == 1 and conv.kernel_size != (1, 1))
    assert sum(isinstance(module, LCConv2d) for module in model.modules()) == 1


def test_one_seed_gives_one_network_and_layers_differ() -> None:
    torch.manual_seed(0)
    first, second = to_lc(cifar_resnet(8, 4), 1, seed=3), to_lc(cifar_resnet(8, 4), 1, seed=3)
    weights = [m.filters.weight for m in first.modules() if isinstance(m, LCConv2d)]
    others = [m.filters.weight for m in second.modules() if isinstance(m, LCConv2d)]
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    assert not torch.equal(first.blocks[0].conv1.filters.weight, first.blocks[0].conv2.filters.weight)


@pytest.mark.parametrize("shared_bank", [False, True])
def test_compact_checkpoints_hold_seeds_alone_and_load_strictly(shared_bank: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = to_lc(cifar_resnet(8, 4), 4, shared_bank=shared_bank, seed=3).eval()
    second = to_lc(cifar_resnet(8, 4), 4, shared_bank=shared_bank, seed=4).eval()
    state = compact_state_dict(first)
    size, full = (sum(value.numel() for value in found.values()) for found in (state, first.state_dict()))
    assert full - size == sum(
        p.numel() for n, p in first.state_dict().items() if "filters." in n or "numbers" in n
    ) - len([name for name in state if name.endswith("filters_seed")])
    second.load_state_dict(state)
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
        path = tmp_path / "compact.safetensors"
        save_file(state, path)
        made = to_lc(cifar_resnet(8, 4), 4, shared_bank=shared_bank)
        load_state_dict(made, read_weights(path))
        assert torch.equal(first(x), made.eval()(x))
    if shared_bank:
        assert isinstance(first.filter_bank, FilterBank)
        assert [name for name in state if name.endswith("seed")] == ["filter_bank.filters_seed"]
        assert not any("filters" in name for name in first.state_dict())


def test_the_contract() -> None:
    torch.manual_seed(0)
    check_model(to_lc(cifar_resnet(8, 4), 2), torch.rand(2, 3, 17, 12), classes=10)
