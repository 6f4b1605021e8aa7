"""Loading, training, resuming, timing and counting on the GPU."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine import train
from striate.engine.energy import EnergyMeter
from striate.engine.latency import compare_latency, latency
from striate.engine.load import load_model, load_state_dict, read_weights
from striate.engine.macs import count_macs
from striate.engine.memory import activation_bytes
from striate.engine.parallel import processes
from striate.engine.record import environment
from striate.engine.state import device_of, inspected, seeded
from striate.engine.train import Recipe, fit, trained
from striate.layers.das import DAS
from striate.models.micro import ResNetMicro, vit_micro
from striate.models.vmamba import vmamba_micro
from striate.testing import left_as_it_came, sample_network

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.01, schedule="one-cycle", weight_decay=1e-4, clip=1.0, seed=3)
OPTIMIZERS = {
    "adam": {}, "adamw": {}, "sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
}  # fmt: skip


def data(side: int = 8, channels: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100, channels, side, side), dtype=torch.uint8, generator=generator)
    return images, images.float().mean((1, 2, 3)).gt(127.5).long()


def build(dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(7)
    # A bias before a batch norm would have rounding for a gradient, and Adam makes whole steps of that.
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(144, 2),
    )


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    assert generator.device == images.device
    return images + 0.1 * torch.randn(images.shape, generator=generator, device=images.device)


def noisy_loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return F.cross_entropy(model(images + 0.05 * noise), labels)


def test_a_network_normalises_pixels_on_its_device(device, same) -> None:
    here, there = load_model("lite0"), load_model("lite0", device=str(device))
    assert there.mean.device == there.std.device == device_of(there) == device
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        same(there(x.to(device)), here(x), 1e-3)
    assert there.describe() == here.describe()


def test_weights_saved_on_the_device_load_anywhere(device, tmp_path) -> None:
    there = build().to(device)
    torch.save(there.state_dict(), tmp_path / "weights.pth")
    weights = read_weights(tmp_path / "weights.pth")
    assert {value.device.type for value in weights.values()} == {"cpu"}
    other = nn.Sequential(*build()).to(device)
    load_state_dict(other, weights)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), there.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("where", ["images here", "images there"])
def test_training_is_the_cpus(device, same, optimizer, where) -> None:
    images, labels = data()
    recipe = replace(RECIPE, epochs=1, optimizer=optimizer, **OPTIMIZERS[optimizer])
    here, there = build(0.0), build(0.0).to(device)
    wanted = fit(here, images, labels, recipe)
    moved = (images.to(device), labels.to(device)) if where == "images there" else (images, labels)
    records = fit(there, *moved, recipe)
    assert records[-1]["loss"] == pytest.approx(wanted[-1]["loss"], rel=1e-3)
    for a, b in zip(there.parameters(), here.parameters(), strict=True):
        # Adam's steps are of one length however small a gradient is, so that rounding may turn some.
        same(a, b, 0.02 if optimizer != "sgd" else 1e-3)


def test_the_same_seed_gives_the_same_bytes(device) -> None:
    images, labels = data()
    runs = []
    for _ in range(2):
        model = build().to(device)
        before = torch.get_rng_state()
        records = fit(model, images, labels, RECIPE, loss=noisy_loss, augment=noisy)
        assert torch.equal(before, torch.get_rng_state())
        runs.append((records, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1].values(), runs[1][1].values(), strict=True))


class CutOffError(Exception):
    """The power went."""


NETWORKS = {
    "cnn": (build, (8, 1)),
    "resnet": (lambda: ResNetMicro((8, 16), num_classes=2), (16, 3)),
    "state space": (lambda: vmamba_micro(1, 2), (32, 1)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(
    device, tmp_path, monkeypatch, name, optimizer, precision
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    make, (side, channels) = NETWORKS[name]
    images, labels = data(side, channels)
    recipe = replace(RECIPE, epochs=2, optimizer=optimizer, precision=precision, **OPTIMIZERS[optimizer])

    def start() -> nn.Module:
        torch.manual_seed(7)
        return make().to(device)

    def cut_off(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        steps.append(None)
        if len(steps) == 9:
            raise CutOffError
        return noisy_loss(model, x, y, generator)

    cut_off.__qualname__, cut_off.__module__ = noisy_loss.__qualname__, noisy_loss.__module__
    whole = fit(start(), images, labels, recipe, loss=noisy_loss, augment=noisy, checkpoint=tmp_path / "whole")
    steps: list[None] = []
    with pytest.raises(CutOffError):
        fit(start(), images, labels, recipe, loss=cut_off, augment=noisy, checkpoint=tmp_path / "cut")
    model = start()
    assert fit(model, images, labels, recipe, loss=noisy_loss, augment=noisy, checkpoint=tmp_path / "cut") == whole
    final = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "cut")]
    assert final[0] == final[1]
    assert device_of(model) == device


@pytest.mark.parametrize("name", ["vit", "das"])
def test_two_runs_are_near_where_kernels_add_in_any_order(device, name) -> None:
    """Memory-efficient attention and torchvision's deformable convolution have no repeatable backward pass."""
    images, labels = data(16, 3)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model = (
            vit_micro(16, 4, 32, 2, 2, num_classes=2)
            if name == "vit"
            else nn.Sequential(nn.Conv2d(3, 20, 3), DAS(20), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 2))
        )
        losses.append(fit(model.to(device), images, labels, replace(RECIPE, epochs=2))[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns(device, precision) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(128) % 2
    images = 0.3 * torch.rand(128, 1, 8, 8, generator=generator)
    images[..., :4] += 0.6 * labels.view(-1, 1, 1, 1)
    model = build().to(device)
    records = fit(model, images, labels, replace(RECIPE, epochs=6, precision=precision))
    assert records[-1]["loss"] < 0.2 < records[0]["loss"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_settings_of_cudnn_come_back(device) -> None:
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    seen = []

    def look(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
        return noisy_loss(model, x, y, generator)

    fit(build().to(device), *data(), replace(RECIPE, epochs=1), loss=look)
    assert set(seen) == {(True, False)}
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == flags


def test_a_network_is_looked_at_in_float32_and_repeatably(device) -> None:
    torch.backends.cudnn.allow_tf32 = True
    model = sample_network().to(device)
    with left_as_it_came(model), inspected(model):
        if device.type == "cuda":
            assert torch.backends.cudnn.allow_tf32 is False
            assert torch.backends.cudnn.deterministic
        with pytest.raises(ZeroDivisionError), inspected(model):
            raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32
    with inspected(model, exact=False):
        assert torch.backends.cudnn.allow_tf32


def test_global_generators_of_the_device_come_back(device) -> None:
    torch.rand(1, device=device)
    model = sample_network().to(device)
    with left_as_it_came(model), seeded(5):
        first = torch.rand(3, device=device)
    with seeded(5):
        assert torch.equal(torch.rand(3, device=device), first)


def test_the_cache_keeps_what_was_trained_on_the_device(device, tmp_path, monkeypatch, same) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path))
    asked = []

    def images() -> tuple[Tensor, Tensor]:
        asked.append(None)
        return data()

    def get(place: str | torch.device) -> nn.Module:
        return trained("cuda-test", build, images, replace(RECIPE, epochs=1), key={}, device=place)

    there, again, here = get(device), get(device), get("cpu")
    assert len(asked) == 1
    for a, b, c in zip(
        there.state_dict().values(), again.state_dict().values(), here.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
        same(a, c, 0)
    recipe = next(tmp_path.rglob("recipe.json"))
    gpu = json.loads(recipe.read_text())["environment"]["machine"]["gpu"]
    assert gpu == (torch.cuda.get_device_name() if torch.cuda.is_available() else None)


def test_latency(device) -> None:
    """A network that takes more on the GPU takes longer on the clock, so its work is waited for."""
    small, large = (nn.Conv2d(16, 16, 3, padding=1), nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1)] * 100))
    x = torch.rand(8, 16, 128, 128) if device.type == "cuda" else torch.rand(1, 16, 8, 8)
    small, large = small.to(device), large.to(device)
    seconds = latency(large, x, repeats=5)
    assert seconds.shape == (5,)
    assert (seconds > 0).all()
    compared = compare_latency(large, small, x, repeats=5)
    assert compared.ratio > 3
    assert compare_latency(large, small, x, repeats=3, training=True).ratio > 3
    assert device_of(large) == device


def test_costs_are_counted_alike(device) -> None:
    x = torch.rand(2, 3, 24, 24)
    for here in (sample_network(), vit_micro(24, 8, 32, 2, 2)):
        there = copy.deepcopy(here).to(device)
        assert count_macs(there, x) == count_macs(here, x) > 0
        with EnergyMeter() as here_meter, torch.no_grad():
            here(x)
        with EnergyMeter() as there_meter, torch.no_grad():
            there(x.to(device))
        assert there_meter.value == here_meter.value > 0
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert activation_bytes(copy.deepcopy(plain).to(device), x) == activation_bytes(plain, x)


def test_the_record_names_the_gpu(device) -> None:
    gpu = environment()["machine"]["gpu"]
    assert (gpu is not None) == torch.cuda.is_available()
    assert processes().num_processes == 1
