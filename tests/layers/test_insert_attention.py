"""Attention goes after the stages of real networks, and nothing else about them changes."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from timm.layers import EcaModule, SEModule
from timm.layers.cbam import CbamModule
from torch import nn

from striate.errors import InputError, LayerError
from striate.layers.das import DAS
from striate.layers.insert_attention import Gated, attention_stages, gate_maps, insert_attention, insert_das
from striate.layers.to_lc import to_lc
from striate.models.micro import ResNetMicro
from striate.testing import check_model, left_as_it_came

STAGES = {
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "mobilenetv2_100": ("blocks.1", "blocks.2", "blocks.4", "blocks.6"),
    "convnext_atto": ("stages.0", "stages.1", "stages.2", "stages.3"),
    "regnetx_002": ("s1", "s2", "s3", "s4"),
}
MOBILENET = ("features.3", "features.6", "features.13", "features.17")


@pytest.mark.parametrize("name", STAGES)
def test_timm(name) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gated = insert_das(model)
    assert all(torch.equal(value, before.pop(key)) for key, value in model.state_dict().items())
    assert not before
    assert gated.attention_after == STAGES[name] == attention_stages(model)
    assert sum(isinstance(module, DAS) for module in gated.modules()) == 4
    missing, unexpected = gated.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert all(".attention." in key for key in missing)
    assert set(gated.state_dict()) == set(model.state_dict()) | set(missing)
    other = insert_das(model)
    other.load_state_dict(gated.state_dict(), strict=True)
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(other(x), gated(x), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "stages", "channels"),
    [
        (torchvision.models.resnet50, STAGES["resnet18"], [256, 512, 1024, 2048]),
        (torchvision.models.mobilenet_v2, MOBILENET, [24, 32, 96, 320]),
    ],
)  # fmt: skip
def test_torchvision(build, stages, channels) -> None:
    with torch.device("meta"):
        gated = insert_das(build())
    assert gated.attention_after == stages
    assert [module.channels for module in gated.modules() if isinstance(module, DAS)] == channels


def test_the_gate_stands_after_the_last_addition_and_its_relu() -> None:
    model = torchvision.models.resnet18(num_classes=5).eval()
    gated = insert_das(model, after=["layer2"]).eval()
    x = torch.rand(2, 3, 64, 64)
    y = model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x))))))
    y = model.layer4(model.layer3(gated.layer2.attention(y)))
    assert torch.allclose(gated(x), model.fc(model.avgpool(y).flatten(1)), atol=1e-5)


def test_a_module_that_is_no_sequential_is_wrapped_and_stays_reachable() -> None:
    model = timm.create_model("convnext_atto", num_classes=5)
    gated = insert_das(model, after=["stages.1"])
    assert isinstance(gated.stages[1], Gated)
    assert gated.stages[1].blocks is gated.stages[1].body.blocks
    gated.set_grad_checkpointing(True)
    gated(torch.rand(2, 3, 64, 64)).sum().backward()
    with pytest.raises(AttributeError):
        _ = gated.stages[1].nonsense


@pytest.mark.parametrize("factory", [SEModule, CbamModule, EcaModule, DAS])
def test_other_attention_and_its_maps(factory) -> None:
    torch.manual_seed(0)
    model = insert_attention(ResNetMicro(in_chans=1), factory, image_size=32)
    x = torch.rand(2, 1, 24, 20)
    check_model(model, x, classes=10)
    with left_as_it_came(model):
        maps = gate_maps(model, x)
    assert list(maps) == ["layer1", "layer2", "layer3", "layer4"]
    assert all(value.shape == (2, 24, 20) and (value >= 0).all() and (value <= 1).all() for value in maps.values())


def test_the_map_of_cbam_is_its_spatial_map() -> None:
    torch.manual_seed(0)
    cbam = CbamModule(8)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)))
    model = insert_attention(model, lambda channels: cbam.spatial, after=["0"]).eval()
    x = torch.rand(2, 3, 16, 16)
    features = model[0][1](model[0][0](x))
    assert torch.allclose(gate_maps(model, x)["0"], (cbam.spatial(features) / features)[:, 0], atol=1e-4)


def test_gates_of_das_also_where_they_are_returned() -> None:
    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.das = DAS(4, return_gate=True)

        def forward(self, x):
            return self.das(x)[0]

    model, x = Returning(), torch.rand(2, 4, 6, 6)
    assert torch.allclose(gate_maps(model, x)["das"], model.das.gate(x).mean(1), atol=1e-6)


def test_a_stem_that_turns_pixels_into_channels() -> None:
    """The first convolution of TResNet sees 4 x 4 pixels as 48 channels."""
    with torch.device("meta"):
        gated = insert_das(timm.create_model("tresnet_m"), image_size=64)
    assert gated.attention_after == ("body.layer1", "body.layer2", "body.layer3", "body.layer4")


def test_the_gates_of_a_compiled_network_have_one_name_each() -> None:
    gated, images = insert_das(ResNetMicro()), torch.rand(2, 3, 32, 32)
    maps = gate_maps(torch.compile(gated, backend="eager"), images)  # type: ignore[arg-type]
    assert list(maps) == list(gated.attention_after)  # type: ignore[arg-type]
    for name, value in gate_maps(gated, images).items():
        assert torch.equal(maps[name], value)


def test_a_network_of_random_filters_takes_a_gate() -> None:
    gated = insert_das(to_lc(ResNetMicro(), 2, path="kernel"), "layer1")
    assert gated.attention_after == ("layer1",)
    assert gated(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_what_cannot_be_done_is_said() -> None:
    model = ResNetMicro()
    with torch.device("meta"), pytest.raises(LayerError, match=r"image of 20 x 20.*image_size"):
        insert_das(timm.create_model("vgg11", num_classes=5), image_size=20)
    with pytest.raises(LayerError, match="attention already"):
        insert_das(insert_das(model))
    with pytest.raises(LayerError, match=r"attention needs \(N, C, H, W\)"):
        insert_das(model, after=["fc"])
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224")
    with pytest.raises(LayerError, match=r"attention needs \(N, C, H, W\)"):
        insert_das(swin)
    with torch.device("meta"):
        hrnet = timm.create_model("hrnet_w18_small")
    with pytest.raises(LayerError, match=r"^Without after=, attention goes after stage1.*after=\["):
        insert_das(hrnet)
    with pytest.raises(LayerError, match=r"^The model has no layer 'nowhere'"):
        insert_das(model, after=["nowhere"])
    with pytest.raises(InputError, match="'after'"):
        insert_das(model, after=[])
    with pytest.raises(LayerError, match="stages"):
        insert_das(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(LayerError, match="no attention"):
        gate_maps(model, torch.zeros(1, 3, 32, 32))
