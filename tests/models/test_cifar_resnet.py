"""CIFAR's ResNets and VGGs: published counts, open_lth's names and logits, checkpointing, the model contract."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import striate
from striate.engine.macs import count_macs
from striate.errors import InputError
from striate.models import cifar_resnet as resnets
from striate.models import cifar_vgg as vggs
from striate.models.cifar_resnet import CifarResNet, cifar_resnet
from striate.models.cifar_vgg import cifar_vgg
from striate.models.mini import PadShortcut
from striate.testing import check_model


def count(model: nn.Module, kind: type[nn.Module] | None = None) -> int:
    modules = [m for m in model.modules() if kind is None or isinstance(m, kind)]
    return sum(p.numel() for m in modules for p in m.parameters(recurse=False))


def on_shapes(depth: int, width: int = 16) -> nn.Module:
    with torch.device("meta"):
        return cifar_resnet(depth, width)


@pytest.mark.parametrize(
    ("depth", "total", "of_norms"),
    [
        (14, 175_258, 1_120),
        (20, 272_474, 1_568),
        (32, 466_906, 2_464),
        (56, 855_770, 4_256),
        (110, 1_730_714, 8_288),
        (218, 3_480_602, 16_352),
        (434, 6_980_378, 32_480),
        (866, 13_979_930, 64_736),
    ],
)
def test_depths_have_the_published_counts(depth: int, total: int, of_norms: int) -> None:
    model = on_shapes(depth)
    assert (count(model), count(model, nn.BatchNorm2d)) == (total, of_norms)
    assert count(model.fc) == 650
    shortcuts = [block.shortcut for block in model.blocks if isinstance(block.shortcut, nn.Sequential)]
    assert sum(count(shortcut) for shortcut in shortcuts) == 2_752
    assert sum(count(shortcut, nn.BatchNorm2d) for shortcut in shortcuts) == 192


@pytest.mark.parametrize(
    ("width", "total", "of_norms"), [(32, 696_618, 2_240), (64, 2_777_674, 4_480), (128, 11_093_130, 8_960)]
)
def test_widths_have_the_published_counts(width: int, total: int, of_norms: int) -> None:
    model = on_shapes(14, width)
    assert (count(model), count(model, nn.BatchNorm2d)) == (total, of_norms)


@pytest.mark.parametrize(("depth", "macs"), [(14, 26_657_408), (20, 40_813_184)])
def test_multiplications_are_the_published_ones(depth: int, macs: int) -> None:
    assert count_macs(on_shapes(depth), torch.zeros(1, 3, 32, 32)) == macs


def filled(model: nn.Module) -> nn.Module:
    """Weights by a formula, so that figures of the authors' own code can stand in this file."""
    model = model.double().eval()
    with torch.no_grad():
        for i, (name, value) in enumerate(model.state_dict().items()):
            if value.is_floating_point():
                wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 1.7 + i).reshape(value.shape)
                if name.endswith("running_var"):
                    wave = 1 + 0.5 * wave
                elif value.dim() > 1:
                    wave = wave * (2 / value[0].numel()) ** 0.5 * 1.3
                else:
                    wave = 0.8 + 0.3 * wave if name.endswith("weight") else 0.1 * wave
                value.copy_(wave)
    return model


# Logits of open_lth's networks under filled(), first image.
LOGITS = {
    "cifar_resnet_8": "1.06403 3.62662 -3.98054 -0.36366 4.25197 -3.11255 -1.70776 4.52817 -1.98798 -2.95194",
    "cifar_resnet_20_8": "-2.43485 -3.46169 6.22546 -3.42299 -2.47317 6.20506 -4.33915 -1.53617 6.06923 -5.03616",
    "cifar_vgg_11": "1.60887 -1.75307 1.98437 -2.26383 2.35679 -2.23366 2.11727 -2.09435 1.96814 -1.60873",
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_those_of_the_authors_code(name: str) -> None:
    models = {
        "cifar_resnet_8": cifar_resnet(8),
        "cifar_resnet_20_8": cifar_resnet(20, 8),
        "cifar_vgg_11": cifar_vgg(11),
    }
    x = torch.sin(torch.arange(2 * 3 * 32 * 32, dtype=torch.float64) * 0.37).reshape(2, 3, 32, 32)
    with torch.no_grad():
        found = filled(models[name])(x)[0].tolist()
    assert found == pytest.approx([float(number) for number in LOGITS[name].split()], abs=1e-5)


def test_tensors_have_the_authors_names() -> None:
    names = list(dict(cifar_resnet(14).named_parameters()))
    assert names[:3] == ["conv.weight", "bn.weight", "bn.bias"]
    block = [name.removeprefix("blocks.2.") for name in names if name.startswith("blocks.2.")]
    assert block == [
        "conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias",
        "shortcut.0.weight", "shortcut.1.weight", "shortcut.1.bias",
    ]  # fmt: skip
    assert names[-2:] == ["fc.weight", "fc.bias"]
    assert list(dict(cifar_vgg(11).named_parameters()))[4:8] == [
        "layers.2.conv.weight", "layers.2.conv.bias", "layers.2.bn.weight", "layers.2.bn.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_of_the_authors_code_loads(tmp_path: Path, wrapped: bool) -> None:
    original = cifar_resnet(20)
    content = original.state_dict()
    if wrapped:  # open_lth's checkpoint.pth
        content = {"ep": 1, "it": 0, "model_state_dict": content, "optimizer_state_dict": {}, "logger": "train,0"}
    torch.save(content, tmp_path / "model_ep160_it0.pth")
    model = striate.load_model(
        str(tmp_path / "model_ep160_it0.pth"), architecture="striate.models.cifar_resnet:cifar_resnet20"
    )
    assert model.preprocessing.input_size == (3, 32, 32)
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert torch.equal(model.network.conv.weight, original.conv.weight)


@pytest.mark.parametrize("name", [name for name in [*resnets.__all__, *vggs.__all__] if name[-1].isdigit()])
def test_every_factory_builds_what_its_name_says(name: str) -> None:
    with torch.device("meta"):
        model = getattr(resnets if "resnet" in name else vggs, name)()
    weighted = [m for m in model.modules() if isinstance(m, nn.Linear) or getattr(m, "kernel_size", 0) == (3, 3)]
    # VGG's numbers count three fully connected layers, of which one is left here.
    assert name.endswith(f"net{len(weighted)}" if "resnet" in name else f"vgg{len(weighted) + 2}")


@pytest.mark.parametrize("model", [cifar_resnet(8, 4, in_chans=1, num_classes=3), cifar_vgg(11, 1, 3)])
def test_the_contract(model: nn.Module) -> None:
    torch.manual_seed(0)
    check_model(model, torch.rand(2, 1, 33, 20), classes=3)


def settled(model: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    model.train()
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None], model.state_dict()


def test_checkpointing_gives_the_same_gradients_and_the_same_running_statistics() -> None:
    """Computing a part again must not let its batch norms see the batch twice."""
    torch.manual_seed(0)
    model = cifar_resnet(20, 4)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    x = torch.rand(4, 3, 16, 16)
    (first, state), (second, recomputed) = settled(model, x), settled(other, x)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(state[name], recomputed[name]) for name in state)
    assert recomputed["bn.num_batches_tracked"] == recomputed["blocks.8.bn2.num_batches_tracked"] == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"depth": 18}, "6 D"), ({"depth": 2}, "6 D"), ({"width": 0}, "width"), ({"kernel_size": 4}, "odd")],
)
def test_impossible_networks_are_refused(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        cifar_resnet(**wrong)
    with pytest.raises(InputError, match="11, 13"):
        cifar_vgg(12)


def test_shortcuts_without_weights_are_those_of_option_a() -> None:
    model = CifarResNet(20, shortcut="pad")
    assert count(model) == 269_722
    assert count(model, nn.Conv2d) == 267_696
    check_model(model, torch.rand(2, 3, 32, 32), classes=10)
    x = torch.rand(1, 16, 6, 6)
    out = PadShortcut(32, 2)(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    assert torch.equal(PadShortcut(5)(x[:, :4]), torch.cat([x[:, :4], torch.zeros(1, 1, 6, 6)], dim=1))
    assert torch.equal(PadShortcut(12)(x), x[:, 2:14])
