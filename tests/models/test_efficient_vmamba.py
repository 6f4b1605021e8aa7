"""EfficientVMamba: published sizes, the authors' names and numbers, which pixels a scan can see, the contract."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import striate.models.zoo  # noqa: F401
from striate.engine.load import load_model
from striate.engine.macs import count_macs
from striate.errors import InputError
from striate.layers.atrous_scan import ES2D
from striate.models.efficient_vmamba import (
    VARIANTS,
    ChannelGate,
    EfficientVMamba,
    EVSSBlock,
    InvertedResidual,
    checkpoint_filter_fn,
)
from striate.testing import check_layer, check_model


def small(**options: object) -> EfficientVMamba:
    torch.manual_seed(0)
    return EfficientVMamba(dims=8, depths=(1, 1, 1, 1), num_classes=5, **options).eval()  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ published sizes


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == VARIANTS[name].parameters
    macs = count_macs(model.eval(), torch.zeros(1, 3, 224, 224))
    assert macs / 1e9 == pytest.approx(VARIANTS[name].macs, abs=5e-4)


def test_the_released_yaml_is_not_the_published_small_variant() -> None:
    """96 channels, as the yaml says, are 24.8 M parameters and 2.8 G; paper and training log say 11 M and 1.3 G."""
    with torch.device("meta"):
        model = EfficientVMamba(dims=96, depths=(2, 2, 4, 2))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(24.8e6, rel=5e-3)
    assert count_macs(model.eval(), torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(2.8, abs=0.05)


def test_without_its_additions_it_is_vanilla_vmamba() -> None:
    """And the "VMamba-T" of the paper's Table 5, 2.4 M parameters and 0.9 G, is one of 32 to 256 channels."""
    plain = {"scan": "cross2d", "ssm_stages": (0, 1, 2, 3), "conv_branch": False, "gate": False}
    with torch.device("meta"):
        model = EfficientVMamba(dims=96, depths=(2, 2, 9, 2), **plain)  # type: ignore[arg-type]
        vanilla = timm.create_model("vanilla_vmamba_tiny")
        shrunk = EfficientVMamba(dims=32, depths=(2, 2, 4, 2), **plain)  # type: ignore[arg-type]
    shapes = [sorted(tuple(p.shape) for p in network.parameters()) for network in (model, vanilla)]
    assert shapes[0] == shapes[1]
    assert sum(parameter.numel() for parameter in shrunk.parameters()) == 2_398_920
    assert count_macs(shrunk.eval(), torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(0.861, abs=5e-4)


# ------------------------------------------------------------------------------------- the authors' checkpoints


def authors_name(name: str) -> str:
    """Our name -> the authors', for a network whose stages 0 and 1 scan."""
    parts = name.split(".")
    if parts[0] == "layers" and parts[1] in {"2", "3"}:
        if parts[2] == "blocks":
            return ".".join(["layers", parts[1], str(int(parts[3]) + 1), *parts[4:]])
        return ".".join(["layers", parts[1], "4", *parts[3:]])  # the merge after two blocks between two permutes
    return name


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
    if v.dim() == 1:
        return 0.3 * v + (1 if name.endswith("weight") else 0)
    fan = 1 if "dt_projs_bias" in name else shape[-1] if "x_proj" in name or "dt_projs" in name else v[0].numel()
    return v * fan**-0.5


def authors_checkpoint(model: nn.Module) -> dict[str, Tensor]:
    named = {authors_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    return {name: value(name, shape) for name, shape in named.items()}


GOLDEN = {
    (64, 64): [[2.48676, -0.75962, 0.36498, -0.18244, 0.51977], [2.15844, -0.87379, 0.49904, 0.56898, 0.5462]],
    (36, 52): [[2.07432, -0.13032, 0.39024, 0.30964, -0.00637], [2.01959, -0.52349, 0.22934, 0.04947, 0.01537]],
}


@pytest.mark.parametrize("size", GOLDEN)
@torch.no_grad()
def test_the_authors_numbers(size: tuple[int, int]) -> None:
    """What TerryPei/EfficientVMamba at 0bc5ee2 gives for these weights, its CUDA scan replaced by its recurrence.

    Its ``EfficientVSSM(dims=24, depths=[1, 2, 2, 1], num_classes=5, mlp_ratio=0, downsample_version="v1")`` has
    exactly these names; 36 x 52 has odd maps, which its scan and its patch merging pad.
    """
    model = EfficientVMamba(dims=24, depths=(1, 2, 2, 1), num_classes=5).eval()
    model.load_state_dict(checkpoint_filter_fn(authors_checkpoint(model), model), strict=True)
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), torch.tensor(GOLDEN[size]), atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_authors_numbers_with_a_perceptron() -> None:
    """As above, ``depths=[1, 1, 1, 1], mlp_ratio=2``."""
    model = EfficientVMamba(dims=24, depths=(1, 1, 1, 1), num_classes=5, mlp_ratio=2.0).eval()
    names = {name: authors_name(name).replace("layers.2.4.", "layers.2.3.") for name in model.state_dict()}
    checkpoint = {name: value(name, model.state_dict()[ours].shape) for ours, name in names.items()}
    model.load_state_dict(checkpoint_filter_fn(checkpoint, model), strict=True)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([[-1.510987, 0.344446, 0.336928, 1.616249, -0.776051]])
    torch.testing.assert_close(model(x), expected, atol=2e-5, rtol=0)


def test_the_authors_names() -> None:
    """The names of EfficientVMamba-T as its training log and its code have them, all of a stage's first block."""
    with torch.device("meta"):
        model = timm.create_model("efficient_vmamba_t")
    names = set()
    for name in model.state_dict():
        depth = {"2": 4, "3": 2}.get(name.split(".")[1], 0)
        names.add(authors_name(name).replace(".4.reduction", f".{depth + 2}.reduction").replace(".4.norm", ".6.norm"))
    scan = "x_proj_weight dt_projs_weight dt_projs_bias A_logs Ds out_norm.weight out_norm.bias in_proj.weight"
    scan += " conv2d.weight conv2d.bias out_proj.weight"
    expected = {f"layers.1.blocks.1.op.{name}" for name in scan.split()}
    for layer in ("norm", "conv_branch.0", "conv_branch.1", "conv_branch.3", "se.norm", "se.global_reduce"):
        expected |= {f"layers.0.blocks.0.{layer}.weight", f"layers.0.blocks.0.{layer}.bias"}
    for layer in (
        "conv_pw.0.weight",
        "conv_dw.1.bias",
        "se.conv_reduce.bias",
        "se.conv_expand.weight",
        "conv_pw2.1.bias",
    ):
        expected |= {f"layers.2.1.{layer}", f"layers.2.4.{layer}", f"layers.3.2.{layer}"}
    expected |= {"layers.0.downsample.reduction.weight", "layers.1.downsample.norm.bias", "patch_embed.0.bias"}
    expected |= {"layers.2.6.reduction.weight", "layers.2.6.norm.weight", "patch_embed.2.weight"}
    expected |= {"classifier.norm.weight", "classifier.head.weight", "layers.0.blocks.1.se.channel_select.bias"}
    assert expected <= names
    assert len(names) == 261  # as many as theirs


def test_wrappers_and_old_names_load_too() -> None:
    model = EfficientVMamba(dims=8, depths=(1, 1, 2, 1), num_classes=5)
    theirs = authors_checkpoint(model)
    old = {}
    for name, tensor in theirs.items():
        new = name
        for ours, before in (
            ("patch_embed.0", "patch_embed.proj"),
            ("patch_embed.2", "patch_embed.norm"),
            ("classifier.", ""),
            (".op.", ".self_attention."),
            (".0.norm.", ".0.ln_1."),
        ):
            new = new.replace(ours, before)
        old[new] = tensor
    assert "head.weight" in old
    assert "layers.0.blocks.0.ln_1.weight" in old
    wrapped = {"state_dict": {f"module.module.{name}": tensor for name, tensor in theirs.items()}, "epoch": 290}
    for checkpoint in (theirs, old, {"model": theirs}, {"model_ema": theirs, "model": {}}, wrapped):
        found = checkpoint_filter_fn(checkpoint, model)
        model.load_state_dict(found, strict=True)
        assert torch.equal(found["classifier.head.weight"], theirs["classifier.head.weight"])
    assert checkpoint_filter_fn(model.state_dict(), model).keys() == model.state_dict().keys()  # and our own


def test_timm_loads_a_file_of_the_authors(tmp_path: Path) -> None:
    options = {"dims": 8, "depths": (1, 1, 2, 1), "num_classes": 1000}
    theirs = authors_checkpoint(EfficientVMamba(**options))  # type: ignore[arg-type]
    wrapped = {f"module.module.{name}": tensor for name, tensor in theirs.items()}
    torch.save({"state_dict": wrapped, "epoch": 290}, tmp_path / "efficient_vmamba_t.pth")
    overlay = {"file": str(tmp_path / "efficient_vmamba_t.pth")}
    model = timm.create_model("efficient_vmamba_t", pretrained=True, pretrained_cfg_overlay=overlay, **options)
    assert torch.equal(model.layers[2].blocks[1].conv_pw[0].weight, theirs["layers.2.2.conv_pw.0.weight"])
    assert torch.equal(model.layers[2].downsample.reduction.weight, theirs["layers.2.4.reduction.weight"])


def test_striate_loads_a_file_of_the_authors(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in timm.create_model("efficient_vmamba_t").state_dict().items()}
    theirs = {}
    for name, shape in shapes.items():
        depth = {"2": 4, "3": 2}.get(name.split(".")[1])
        merge = depth and ".downsample." in name
        there = name.replace("downsample", f"{depth + 2}") if merge else authors_name(name)
        theirs[f"module.module.{there}"] = value(there, shape)
    torch.save({"state_dict": theirs, "epoch": 290}, tmp_path / "tiny.pth")
    model = load_model(str(tmp_path / "tiny.pth"), architecture="efficient_vmamba_t")
    found = model.network.layers[2].downsample.reduction.weight
    assert torch.equal(found, theirs["module.module.layers.2.6.reduction.weight"])


# ----------------------------------------------------------------------------------------------- what blocks do


def test_a_pixel_sees_only_its_own_tile_and_only_what_came_before() -> None:
    """Without convolutions: the same parity class, and there the earlier half of the route."""
    torch.manual_seed(0)
    layer = ES2D(4, d_conv=1).double()
    x = torch.randn(1, 4, 8, 6, dtype=torch.double, requires_grad=True)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(6), indexing="ij")
    for i, j in ((4, 2), (5, 2), (4, 3), (5, 3), (0, 0), (7, 5)):
        (gradient,) = torch.autograd.grad(layer(x)[0, :, i, j].sum(), x)
        order = columns * 8 + rows if i % 2 else rows * 6 + columns
        expected = (rows % 2 == i % 2) & (columns % 2 == j % 2) & (order <= order[i, j])
        assert torch.equal(gradient[0].abs().sum(0) > 0, expected)


def test_the_gate_is_one_module_for_both_branches() -> None:
    torch.manual_seed(0)
    block = EVSSBlock(8).eval()
    x = torch.randn(2, 8, 4, 6)
    y = block.norm(x)
    expected = x + block.se(block.op(y)) + block.se(block.conv_branch(y))
    torch.testing.assert_close(block(x), expected)
    assert [name for name, _ in block.named_modules() if name.endswith("channel_select")] == ["se.channel_select"]


@torch.no_grad()
def test_the_gate_by_hand() -> None:
    torch.manual_seed(0)
    gate, x = ChannelGate(16), torch.randn(2, 16, 3, 5)
    mean = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (16,), gate.norm.weight, gate.norm.bias).mean((1, 2))
    weights = torch.sigmoid(gate.channel_select(nn.functional.gelu(gate.global_reduce(mean))))
    torch.testing.assert_close(gate(x), x * weights[:, :, None, None])
    assert gate.global_reduce.out_features == 2


@torch.no_grad()
def test_without_tiles_it_is_vanilla_vmamba_and_a_convolution() -> None:
    from striate.layers.ss2d import SS2D

    torch.manual_seed(0)
    block = EVSSBlock(8, scan="cross2d", gate=False).eval()
    plain = SS2D(8, 16, 2.0, conv_bias=True, gate=True)
    plain.load_state_dict(block.op.state_dict())
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(block(x), x + plain(block.norm(x)) + block.conv_branch(block.norm(x)))
    torch.testing.assert_close(EVSSBlock(8, scan="none", conv_branch=True, gate=False)(x).shape, x.shape)
    with pytest.raises(InputError, match="conv_branch"):
        EVSSBlock(8, scan="none", conv_branch=False)


def test_inverted_residual_is_relu_throughout() -> None:
    block = InvertedResidual(8)
    kinds = [type(module).__name__ for module in block.modules() if not list(module.children())]
    assert kinds.count("ReLU") == 3
    assert not {"GELU", "SiLU", "Hardswish"} & set(kinds)
    assert block.se.conv_reduce.weight.shape == (4, 32, 1, 1)
    assert not any(isinstance(module, nn.Conv2d) for module in InvertedResidual(8, se_ratio=0).se.modules())


def test_layers_keep_the_contract() -> None:
    x = torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    check_layer(ES2D(4, d_state=2), x)
    check_layer(ES2D(4, d_state=2, step=3, phases="all", reverse=True), x)
    check_layer(EVSSBlock(4, d_state=2, mlp_ratio=2.0), x)
    check_layer(InvertedResidual(4), x)


# ---------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ssm_stages": (2, 3), "reverse": True},
        {"step": 3, "phases": "all", "mlp_ratio": 1.0},
        {"scan": "cross2d", "gate": False, "conv_branch": False},
        {"scan": "none"},
    ],
)
def test_the_network_keeps_the_contract(options: dict[str, object]) -> None:
    check_model(small(**options), torch.rand(2, 3, 33, 46), classes=5)


def test_features_in_the_field_s_way() -> None:
    model = timm.create_model("efficient_vmamba_t", features_only=True, out_indices=(0, 2, 3), depths=(1, 1, 1, 1))
    features = model(torch.rand(1, 3, 64, 48))
    assert [tuple(feature.shape[1:]) for feature in features] == [(48, 16, 12), (192, 4, 3), (384, 2, 2)]
    assert model.feature_info.reduction() == [4, 16, 32]


def test_head_and_pieces() -> None:
    model = small(drop_path_rate=0.3)
    x = torch.rand(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 1, 1)
    assert model.forward_head(features, pre_logits=True).shape == (2, 64)
    torch.testing.assert_close(model.forward_head(features), model(x))
    model.reset_classifier(0)
    assert model(x).shape == (2, 64)
    model.reset_classifier(3)
    assert model.get_classifier().out_features == 3
    assert model(x).shape == (2, 3)
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert "layers.0.blocks.0.op.A_logs" in model.no_weight_decay()
    assert all(name in dict(model.named_parameters()) for name in model.no_weight_decay())


def test_checkpointing_changes_no_gradient() -> None:
    model, x = small().train(), torch.rand(2, 3, 32, 32)
    plain = torch.autograd.grad(model(x).logsumexp(1).sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    spared = torch.autograd.grad(model(x).logsumexp(1).sum(), list(model.parameters()))
    torch.testing.assert_close(spared, plain)


def test_exports() -> None:
    model, x = small(), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_dims_and_depths_must_agree() -> None:
    with pytest.raises(InputError, match="dims"):
        EfficientVMamba(dims=(8, 16), depths=(1, 1, 1))


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 pixels"):
        EfficientVMamba(dims=(8, 16), depths=(1, 1), patch_size=2)(torch.rand(1, 3, 1, 9))
