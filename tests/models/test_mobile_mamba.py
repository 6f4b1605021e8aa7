"""MobileMamba: published sizes, the authors' numbers and names, folding, features, refusals."""

from __future__ import annotations

import zlib

import pytest
import timm
import torch
from torch import Tensor, nn

import striate.models.zoo  # noqa: F401
from striate.engine.macs import count_macs
from striate.errors import InputError
from striate.models.mobile_mamba import VARIANTS, Downsample, MobileMamba, MobileMambaBlock, checkpoint_filter_fn
from striate.testing import check_layer, check_model

SIZES = {  # all, trainable, folded; published G
    "mobile_mamba_t2": (8_836_890, 8_806_682, 8_809_444, 0.255),
    "mobile_mamba_t4": (14_176_090, 14_137_690, 14_141_092, 0.413),
    "mobile_mamba_s6": (15_036_632, 14_996_696, 15_000_456, 0.652),
    "mobile_mamba_b1": (17_122_849, 17_070_625, 17_079_424, 1.080),
    "mobile_mamba_b2": (17_122_849, 17_070_625, 17_079_424, 2.427),
    "mobile_mamba_b4": (17_122_849, 17_070_625, 17_079_424, 4.313),
}


def small(**options: object) -> MobileMamba:
    torch.manual_seed(0)
    return MobileMamba((48, 64, 96), (1, 1, 1), num_classes=5, **options).eval()  # type: ignore[arg-type]


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


def filled(model: MobileMamba) -> MobileMamba:
    state = model.state_dict()
    model.load_state_dict({name: t if "wt_filter" in name else value(name, t.shape) for name, t in state.items()})
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes(name: str) -> None:
    everything, trainable, folded, published = SIZES[name]
    with torch.device("meta"):
        model = timm.create_model(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == everything
        assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == trainable
        assert sum(parameter.numel() for parameter in model.fuse().parameters()) == folded
    macs = count_macs(model.eval(), torch.zeros(1, *VARIANTS[name].input_size)) / 1e9
    assert macs == pytest.approx(published, rel=0.01)  # theirs counts the wavelet as a convolution


# The logits of lewandofskee/MobileMamba at 0980f48 for these weights, image by image: its plain PyTorch merging of
# routes mixes the images of a batch. MobileMamba(embed_dim=[48, 64, 96], depth=[1, 1, 1], ssm_ratio=2, num_classes=5).
GOLDEN = {
    (64, 64): [
        [1.319855, -3.7785, -4.314795, -3.577871, -2.841495],
        [1.327421, -3.772929, -4.3406, -3.556708, -2.802675],
    ],
    (72, 104): [
        [1.194198, -4.015405, -3.026704, -4.546443, -4.425328],
        [1.21254, -3.944619, -3.045732, -4.554410, -4.403636],
    ],
}
GOLDEN_TWO_HEADS = [
    [0.743759, -0.486680, -3.436386, -0.507272, 1.762428],
    [0.740621, -0.483782, -3.434857, -0.552832, 1.766937],
]


@pytest.mark.parametrize("size", GOLDEN)
@torch.no_grad()
def test_the_authors_numbers(size: tuple[int, int]) -> None:
    model = filled(small())
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), torch.tensor(GOLDEN[size]), atol=2e-5, rtol=0)
    torch.testing.assert_close(model.fuse()(x), model(x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_two_heads() -> None:
    model = filled(small(distillation=True))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), torch.tensor(GOLDEN_TWO_HEADS), atol=2e-5, rtol=0)
    torch.testing.assert_close(model.fuse()(x), model(x), atol=1e-5, rtol=0)
    first, second = model.train()(x)
    assert first.shape == second.shape == (2, 5)


def test_the_authors_names() -> None:
    with torch.device("meta"):
        names = set(timm.create_model("mobile_mamba_t2").state_dict())
    mixer = "blocks1.0.mixer.m.attn"
    scan = "x_proj_weight Ds A_logs dt_projs_weight dt_projs_bias out_norm.weight in_proj.c.weight conv2d.bias"
    expected = {f"{mixer}.global_op.global_atten.{name}" for name in [*scan.split(), "out_proj.bn.running_var"]}
    wavelet = "wt_filter iwt_filter base_scale.weight wavelet_convs.0.weight wavelet_scale.0.weight"
    expected |= {f"{mixer}.global_op.{name}" for name in wavelet.split()}
    local = "dwconv3x3.weight bn1.weight dwconv1x1.weight bn2.bias"
    expected |= {f"{mixer}.local_op.{name}" for name in local.split()} | {f"{mixer}.proj.1.c.weight"}
    expected |= {"blocks1.0.dw0.m.c.weight", "blocks1.0.ffn0.m.pw2.bn.weight", "blocks2.0.1.m.pw1.c.weight"}
    expected |= {
        "blocks2.1.conv2.bn.bias",
        "blocks2.1.se.fc1.weight",
        "blocks2.2.0.m.c.weight",
        "patch_embed.6.c.weight",
    }
    expected |= {"head.bn.weight", "head.l.weight"}
    assert expected <= names
    assert len(names) == 547  # as many as theirs


def test_wrappers_load_too() -> None:
    model = small()
    theirs = dict(filled(small()).state_dict().items())
    wrapped = {"net": {}, "net_E": {f"module.{name}": tensor for name, tensor in theirs.items()}}
    backbone = {"state_dict": {f"backbone.{name}": t for name, t in theirs.items()} | {"neck.weight": torch.zeros(1)}}
    for checkpoint in (theirs, wrapped, backbone, {"net": theirs}, {"model": theirs}, {"model_ema": theirs}):
        found = checkpoint_filter_fn(checkpoint, model)
        model.load_state_dict(found, strict=True)
        assert torch.equal(model.state_dict()["head.l.weight"], theirs["head.l.weight"])


@torch.no_grad()
def test_a_fresh_block_doubles_its_input() -> None:
    block, x = MobileMambaBlock(32).eval(), torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(block(x), 2 * x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(MobileMambaBlock(32, has_skip=False).eval()(x), x, rtol=1e-4, atol=1e-5)
    zero = {
        name for name, module in block.named_modules() if isinstance(module, nn.BatchNorm2d) and not module.weight.any()
    }
    assert zero == {"dw0.m.bn", "ffn0.m.pw2.bn", "mixer.m.attn.proj.1.bn", "dw1.m.bn", "ffn1.m.pw2.bn"}
    model = small()
    assert model.blocks2[0][0].m.bn.weight.all()  # not those of the down-sampling
    assert not model.blocks2[0][1].m.pw2.bn.weight.any()
    assert model.blocks2[1].se.fc1.weight.shape == (48, 192, 1, 1)


@pytest.mark.parametrize("options", [{}, {"levels": 0}, {"scan": False}, {"local_ratio": (0, 0, 0)}])
def test_the_network_keeps_the_contract(options: dict[str, object]) -> None:
    model = filled(small(**options))
    check_model(model, torch.rand(2, 3, 65, 80), classes=5)


def test_blocks_keep_the_contract() -> None:
    torch.manual_seed(0)
    check_layer(Downsample(4, 6), torch.randn(2, 4, 5, 4))


def test_folding_gives_a_copy() -> None:
    model = filled(small()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = model.fuse()
    assert model.training
    assert not fused.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fused.modules())


def test_features_have_strides_16_32_64() -> None:
    model = timm.create_model("mobile_mamba_t2", features_only=True)
    features = model(torch.rand(1, 3, 128, 64))
    assert [tuple(feature.shape[1:]) for feature in features] == [(144, 8, 4), (272, 4, 2), (368, 2, 1)]
    assert model.feature_info.reduction() == [16, 32, 64]


def test_drop_path_rises_over_all_blocks() -> None:
    model = timm.create_model("mobile_mamba_b1")
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates == pytest.approx([0.03 * i / 6 for i in range(7)])
    assert "blocks1.0.mixer.m.attn.global_op.global_atten.A_logs" in model.no_weight_decay()


def test_refusals() -> None:
    with pytest.raises(InputError, match="at least 64"):
        small()(torch.zeros(1, 3, 63, 80))
    with pytest.raises(InputError, match="kernels"):
        MobileMamba(kernels=(7, 5))
    with pytest.raises(InputError, match="multiple of 8"):
        MobileMamba((50, 64, 96))
