"""MobileViT has the published size, the authors' and timm's weights, and their outputs."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import Tensor, nn

from striate.engine.macs import count_macs
from striate.errors import InputError, WeightsError
from striate.models.mobilevit import (
    VARIANTS,
    InvertedResidual,
    MobileViT,
    MobileViTConfig,
    checkpoint_filter_fn,
    convert_weights,
    load_official,
)
from striate.testing import check_layer, check_model

MICRO = MobileViTConfig((8, 8, 12), (1, 1, 1), (0, 0, 8), (0, 0, 1), expand=2, num_features=16, stem=8)


def images(n: int, height: int, width: int, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def cvnets_name(key: str) -> str:
    """Our name of a tensor -> the authors', written from the names of their state dict."""
    key = re.sub(r"\.conv\.(?=weight$)", ".block.conv.", key)
    key = re.sub(r"\.bn\.", ".block.norm.", key)
    key = key.replace("stem.", "conv_1.").replace("final_conv.", "conv_1x1_exp.").replace("head.fc.", "classifier.fc.")
    key = re.sub(r"^stages\.(\d)\.", lambda match: f"layer_{int(match[1]) + 1}.", key)
    for ours, theirs in (
        (".conv1_1x1.", ".block.exp_1x1."),
        (".conv2_kxk.", ".block.conv_3x3."),
        (".conv3_1x1.", ".block.red_1x1."),
        (".conv_kxk.", ".local_rep.conv_3x3."),
        ("1.conv_1x1.", "1.local_rep.conv_1x1.block.conv."),
        (".conv_fusion.", ".fusion."),
        (".transformer.", ".global_rep."),
        (".norm1.", ".pre_norm_mha.0."),
        (".attn.qkv.", ".pre_norm_mha.1.qkv_proj."),
        (".attn.proj.", ".pre_norm_mha.1.out_proj."),
        (".norm2.", ".pre_norm_ffn.0."),
        (".mlp.fc1.", ".pre_norm_ffn.1."),
        (".mlp.fc2.", ".pre_norm_ffn.4."),
    ):
        key = key.replace(ours, theirs)
    layers = {"3": 2, "4": 4, "5": 3}
    return re.sub(r"^layer_(\d)\.1\.norm\.", lambda match: f"layer_{match[1]}.1.global_rep.{layers[match[1]]}.", key)


def cvnets_weights(config: str) -> dict[str, Tensor]:
    """A state dict with the authors' names, every tensor drawn in the order of their sorted names."""
    generator = torch.Generator().manual_seed(0)
    named = {cvnets_name(key): value for key, value in MobileViT(config).state_dict().items()}
    for key in sorted(named):
        value = named[key]
        if not value.is_floating_point():
            continue
        drawn = torch.rand(value.shape, generator=generator)
        if key.endswith("running_var"):
            named[key] = drawn + 0.5
        elif value.dim() == 1:
            named[key] = drawn - 0.5 if key.endswith(("bias", "running_mean")) else drawn + 0.5
        else:
            named[key] = (drawn - 0.5) * 2 / value[0].numel() ** 0.5
    return named


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_multiplications(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        macs = count_macs(model, torch.zeros(1, 3, 256, 256))
    assert sum(parameter.numel() for parameter in model.parameters()) == VARIANTS[name].parameters
    assert macs / 1e9 == pytest.approx(VARIANTS[name].macs, abs=5e-4)


def test_features_at_every_stride() -> None:
    with torch.device("meta"):
        model = timm.create_model("striate_mobilevit_s", features_only=True)
        maps = model(torch.zeros(1, 3, 256, 256))
        two = timm.create_model("striate_mobilevit_s", features_only=True, out_indices=(1, 4))
    assert [(x.shape[1], x.shape[-1]) for x in maps] == [(32, 128), (64, 64), (96, 32), (128, 16), (640, 8)]
    assert (two.feature_info.channels(), two.feature_info.reduction()) == ([64, 640], [4, 32])


@pytest.mark.parametrize("size", ["xxs", "xs", "s"])
def test_timms_weights_give_timms_logits(size: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(f"mobilevit_{size}").eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = MobileViT(size).eval()
    ours.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), ours), strict=True)
    with torch.no_grad():
        for height, width in ((256, 256), (144, 176)):
            x = images(1, height, width)
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_transformers_weights_give_transformers_logits() -> None:
    transformers = pytest.importorskip("transformers")
    widths = {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0}
    torch.manual_seed(0)
    theirs = transformers.MobileViTForImageClassification(transformers.MobileViTConfig(num_labels=5, **widths)).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = MobileViT("xxs", num_classes=5).eval()
    ours.load_state_dict(convert_weights(theirs.state_dict()), strict=True)
    x = images(1, 97, 130)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=0, atol=1e-5)
    backbone = convert_weights({key.removeprefix("mobilevit."): value for key, value in theirs.state_dict().items()})
    assert set(backbone) == set(ours.state_dict())


# apple/ml-cvnets at 77717569ab4a, cvnets.models.classification.mobilevit.MobileViT built from
# config/classification/imagenet/mobilevit.yaml with ``output_stride`` as given, weights as in ``cvnets_weights``,
# images(1, height, width), eval mode, torch 2.15: the first four logits and the norm of all thousand.
GOLDEN = [
    ("xxs", 32, (256, 256), [-0.06488, 0.22795, -0.50804, -0.4688], 10.2294),
    ("xxs", 32, (144, 176), [-0.06349, 0.22599, -0.50976, -0.47064], 10.2228),
    ("xxs", 32, (97, 130), [-0.06273, 0.22503, -0.51117, -0.47256], 10.2181),
    ("xxs", 16, (144, 176), [-0.06462, 0.22773, -0.50691, -0.46679], 10.2312),
    ("xxs", 8, (144, 176), [-0.06506, 0.22902, -0.50517, -0.46408], 10.2366),
    ("xs", 32, (97, 130), [0.02048, 0.15738, -0.33142, -0.54704], 10.4935),
    ("s", 32, (97, 130), [0.05113, 0.13112, -0.69571, -0.38821], 10.2812),
]


@pytest.mark.parametrize(("size", "stride", "image", "first", "norm"), GOLDEN)
def test_the_authors_weights_give_the_authors_logits(
    size: str, stride: int, image: tuple[int, int], first: list[float], norm: float
) -> None:
    model = MobileViT(size, output_stride=stride).eval()
    model.load_state_dict(convert_weights(cvnets_weights(size)), strict=True)
    with torch.no_grad():
        logits = model(images(1, *image))[0]
    torch.testing.assert_close(logits[:4], torch.tensor(first), rtol=0, atol=2e-5)
    assert float(logits.norm()) == pytest.approx(norm, abs=2e-4)


def test_wrappers_and_encoders_are_opened() -> None:
    named = cvnets_weights("xxs")
    ours = convert_weights(named)
    assert set(ours) == set(MobileViT("xxs").state_dict())
    for wrapped in (
        {"model_ema": named, "epoch": 300},
        {"state_dict": {f"module.{key}": value for key, value in named.items()}},
        {f"encoder.{key}": value for key, value in named.items()} | {"seg_head.weight": torch.zeros(1)},
    ):
        found = convert_weights(wrapped)
        assert set(found) == set(ours)
        assert all(torch.equal(found[key], ours[key]) for key in ours)


def test_a_bgr_checkpoint_gives_for_rgb_what_it_gave_for_bgr(tmp_path) -> None:
    torch.save({"model_state_dict": cvnets_weights("xxs")}, tmp_path / "mobilevit_xxs.pt")
    rgb = load_official(tmp_path / "mobilevit_xxs.pt", output_stride=16)
    bgr = load_official(tmp_path / "mobilevit_xxs.pt", source="cvnets", channel_order="bgr", output_stride=16)
    x = images(1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(bgr(x), rgb(x.flip(1)))
        assert not torch.allclose(bgr(x), rgb(x))
    assert not rgb.training


def test_what_is_no_mobilevit_is_refused(tmp_path) -> None:
    with pytest.raises(WeightsError, match="no first convolution"):
        convert_weights({"conv1.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="timm names"):
        convert_weights(cvnets_weights("xxs"), source="timm")
    with pytest.raises(InputError, match="rgb or bgr"):
        convert_weights({}, channel_order="grb")  # type: ignore[arg-type]
    torch.save(MobileViT(MICRO).state_dict(), tmp_path / "micro.pt")
    with pytest.raises(WeightsError, match="none of the published"):
        load_official(tmp_path / "micro.pt")


@pytest.mark.parametrize("options", [{}, {"in_chans": 1, "fusion": False}, {"attention": False}])
def test_the_network_keeps_the_contract(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = MobileViT(MICRO, num_classes=5, **options)
    check_model(model, images(2, 39, 46)[:, : options.get("in_chans", 3)], classes=5)


@pytest.mark.parametrize(("stride", "expand", "dilation"), [(1, 4, 1), (2, 2, 1), (1, 1, 2)])
def test_the_inverted_residual_keeps_the_contract(stride: int, expand: int, dilation: int) -> None:
    block = InvertedResidual(8, 8, stride, expand, dilation)
    x = torch.randn(2, 8, 7, 6)
    check_layer(block, x)
    assert block(x).shape == (2, 8, 7, 6) if stride == 1 else (2, 8, 4, 3)


def test_a_width_inside_is_rounded_to_eight_and_never_far_below() -> None:
    assert InvertedResidual(10, 8, 1, 2.0).conv2_kxk.conv.out_channels == 24  # 20 is nearer to 24 by the rule


@pytest.mark.parametrize(("stride", "reductions"), [(8, [2, 4, 8, 8, 8]), (16, [2, 4, 8, 16, 16])])
def test_output_stride_dilates_what_comes_after(stride: int, reductions: list[int]) -> None:
    with torch.device("meta"):
        model = MobileViT("xxs", output_stride=stride)
        assert model.forward_features(torch.zeros(1, 3, 128, 128)).shape[-1] == 128 // stride
    assert [info["reduction"] for info in model.feature_info] == reductions
    dilations = [stage[0].conv2_kxk.conv.dilation[0] for stage in model.stages]
    assert dilations == ([1, 1, 1, 1, 2] if stride == 8 else [1, 1, 1, 1, 1])


def test_dropout_is_the_papers() -> None:
    model = timm.create_model("striate_mobilevit_xxs")
    assert model.head.drop.p == 0.1
    assert {layer.dropout.p for stage in model.stages[2:] for layer in stage[1].transformer} == {0.1}


def test_impossible_options_are_refused() -> None:
    for options, message in (
        ({"config": "m"}, "xxs, xs, s"),
        ({"output_stride": 4}, "8, 16 or 32"),
        ({"num_heads": 7}, "divisor"),
    ):
        with pytest.raises(InputError, match=message):
            MobileViT(**{"config": "xxs", **options})
    with pytest.raises(InputError, match="one value >= 1 a stage"):
        MobileViTConfig((8,), (1, 1), (0,), (0,), 2, 16)
    with pytest.raises(InputError, match="at least 33 x 33"):
        MobileViT("xxs")(torch.zeros(1, 3, 32, 64))
    with pytest.raises(InputError, match="1 or 2"):
        InvertedResidual(8, 8, stride=3)
