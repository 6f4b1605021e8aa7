"""Every family of networks answers on the GPU what it answers on the CPU."""

from __future__ import annotations

import copy
import importlib
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

import striate.models.zoo  # noqa: F401 (registers them)
from striate.models.cifar_resnet import cifar_resnet20
from striate.models.cifar_vgg import cifar_vgg11
from striate.models.low_resolution import low_resolution
from striate.models.micro import MobileMicro, ResNetMicro, vit_micro
from striate.models.mini import densenet_mini, inception_mini, resnet_mini
from striate.models.patch_net import PatchNet
from striate.models.tiny import TinyAlex, TinyMobile, TinyRes
from striate.models.uniformer import uniformer_micro
from striate.models.uniformer_3d import UniFormer3D
from striate.models.variant import FAMILIES
from striate.models.vmamba import vmamba_micro
from striate.testing import check_model

KNOWN = {family: importlib.import_module(f"striate.models.{family}").VARIANTS for family in FAMILIES}
SMALLEST = [min(found, key=lambda name: found[name].parameters) for found in KNOWN.values()]
LARGE = [sorted(found, key=lambda name: found[name].parameters)[-1] for found in KNOWN.values()]

MICRO = {
    "ResNetMicro": (ResNetMicro, (3, 32, 32)),
    "MobileMicro": (MobileMicro, (3, 32, 32)),
    "vit_micro": (partial(vit_micro, 32, 8), (3, 32, 32)),
    "vmamba_micro": (vmamba_micro, (1, 32, 32)),
    "uniformer_micro": (uniformer_micro, (3, 32, 32)),
    "resnet_mini": (resnet_mini, (1, 28, 28)),
    "inception_mini": (inception_mini, (1, 28, 28)),
    "densenet_mini": (densenet_mini, (1, 28, 28)),
    "TinyAlex": (TinyAlex, (3, 40, 40)),
    "TinyRes": (TinyRes, (3, 40, 40)),
    "TinyMobile": (TinyMobile, (3, 40, 40)),
    "cifar_resnet20": (cifar_resnet20, (3, 32, 32)),
    "cifar_vgg11": (cifar_vgg11, (3, 32, 32)),
    "low_resolution": (lambda: low_resolution(timm.create_model("resnet18", num_classes=5)), (3, 32, 32)),
    "UniFormer3D": (
        lambda: UniFormer3D(depths=(1, 1, 2, 1), dims=(16, 32, 64, 96), head_dim=16, num_classes=5), (3, 5, 64, 64)
    ),
}  # fmt: skip


def images(n: int = 2, h: int = 64, w: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))


def stirred(model: nn.Module) -> nn.Module:
    """Batch norms that start at 0 would hide what stands before them, a class token of 0 rates all places alike."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.0)
    if hasattr(model, "cls_token"):
        nn.init.normal_(model.cls_token)
    return model.eval()


def network(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return stirred(timm.create_model(name, num_classes=7, **options))


def answers(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of their squares at the input."""
    x = x.clone().requires_grad_()
    logits = model(x)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]


def agree(here: nn.Module, x: Tensor, device, same, tolerance: float = 2e-4) -> None:
    """Float32 is 1e-6 off float64 in all of these; an activation at its kink may move a gradient by 1e-3."""
    there = copy.deepcopy(here).to(device)
    (logits, gradient), (wanted, slope) = answers(there, x.to(device)), answers(here, x)
    same(logits, wanted, tolerance)
    same(gradient, slope, 10 * tolerance)


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("size", [(2, 64, 64), (1, 65, 97), (3, 96, 70)], ids=str)
def test_logits_and_gradients_of_the_small_ones(device, same, name, size) -> None:
    agree(network(name), images(*size), device, same)


@pytest.mark.parametrize("name", LARGE)
def test_logits_and_gradients_of_the_large_ones(device, same, name) -> None:
    agree(network(name), images(1), device, same)


@pytest.mark.parametrize("name", MICRO)
def test_logits_and_gradients_of_networks_for_small_images(device, same, name) -> None:
    make, size = MICRO[name]
    torch.manual_seed(0)
    model = stirred(make())
    agree(model, torch.rand(3, *size, generator=torch.Generator().manual_seed(1)), device, same)


@pytest.mark.parametrize("arch", ["cnn", "lcn", "fcn"])
def test_patch_networks(device, same, arch) -> None:
    torch.manual_seed(0)
    agree(PatchNet(arch, 3, 4, bias=0.1).double(), torch.randn(5, 3, 4, dtype=torch.float64), device, same, 1e-9)


@pytest.mark.parametrize("name", [*SMALLEST, "vmamba_micro", "vit_micro"])
def test_the_contract(device, name) -> None:
    if name in MICRO:
        make, size = MICRO[name]
        torch.manual_seed(0)
        check_model(stirred(make()).to(device), torch.rand(2, *size).to(device))
    else:
        check_model(network(name).to(device), images().to(device), classes=7)


@pytest.mark.parametrize("name", SMALLEST)
def test_float64_agrees_to_the_last_digits(device, same, name) -> None:
    agree(network(name).double(), images(1).double(), device, same, 1e-8)


@pytest.mark.parametrize("name", SMALLEST)
def test_training_under_bfloat16_autocast_is_near(device, name) -> None:
    model, x = network(name).to(device), images().to(device)
    found = []
    for half in (False, True):
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            logits = model(x).float()
            logits.logsumexp(dim=1).sum().backward()
        slopes = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert torch.isfinite(slopes).all()
        found.append((logits.detach(), slopes))
    (plain, slopes), (rounded, rough) = found
    assert float((rounded - plain).abs().max() / plain.abs().max()) < 0.1
    assert float(torch.cosine_similarity(slopes, rough, dim=0)) > 0.9


@pytest.mark.parametrize("name", SMALLEST)
def test_channels_last_weights_too(device, same, name) -> None:
    model, x = network(name), images()
    there = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        same(there(x.to(device, memory_format=torch.channels_last)), model(x), 1e-3)


@pytest.mark.parametrize("name", SMALLEST)
def test_features(device, same, name) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).eval()
    there, x = copy.deepcopy(model).to(device), images()
    with torch.no_grad():
        for a, b in zip(there(x.to(device)), model(x), strict=True):
            same(a, b, 1e-3)


@pytest.mark.parametrize("name", SMALLEST)
def test_checkpointed_training_gives_the_same_gradients(device, name) -> None:
    model = network(name).to(device)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing(True)
    for one in (model, other):
        one.train()
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        one(images().to(device)).square().mean().backward()
    for (key, parameter), twin in zip(model.named_parameters(), other.parameters(), strict=True):
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max().clamp_min(1e-6))
            assert float((twin.grad - parameter.grad).abs().max()) < 1e-2 * scale, key


@pytest.mark.parametrize("name", ["efficient_vmamba_t", "uniformer_xxs"])
def test_compiled(device, same, name) -> None:
    """By Triton on a GPU; on the CPU only the graph is checked, since compiling C++ takes minutes."""
    model, x = network(name), images()
    there = torch.compile(copy.deepcopy(model).to(device), backend="inductor" if device.type == "cuda" else "aot_eager")
    with torch.no_grad():
        same(there(x.to(device)), model(x), 1e-3)
    torch.compiler.reset()


def test_fused_networks_answer_as_before(device, same) -> None:
    model, x = network("mobile_mamba_t2"), images()
    with torch.no_grad():
        same(copy.deepcopy(model).to(device).fuse().eval()(x.to(device)), model(x), 1e-3)
