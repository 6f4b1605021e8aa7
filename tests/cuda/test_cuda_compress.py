"""Channels, masks, scores, pairs and memories on the GPU give what they give on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from striate import load_model
from striate.compress import DualCNN, PerceptualMemory, complementarity, confidence, fingerprints, search_threshold
from striate.compress.density import DENSITIES, layer_density
from striate.compress.edit import crop_channels, equality_check, first_channels, mask_channels
from striate.compress.graph import channel_graph
from striate.compress.masks import apply_weight_mask, bake_weight_mask, mask_density, reshuffle_mask
from striate.compress.precropping import preconfig, precrop
from striate.compress.save import save_network
from striate.compress.scores import SCORES, weight_mask, weight_scores
from striate.compress.widths import fast_multiple
from striate.engine.latency import compare_latency
from striate.engine.macs import count_macs
from striate.models.micro import MobileMicro, ResNetMicro
from striate.models.mini import densenet_mini

X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1, 0, 3, 2])
MAKE = {"resnet": ResNetMicro, "mobile": MobileMicro, "densenet": lambda: densenet_mini(3)}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MAKE[name]().eval()


@pytest.mark.parametrize("name", MAKE)
def test_the_graph_and_a_crop(device, same, name) -> None:
    here = network(name)
    there = copy.deepcopy(here).to(device)
    graph, own = channel_graph(there, X.to(device)), channel_graph(here, X)
    assert (graph.weights, graph.macs) == (own.weights, own.macs)
    assert graph.groups == own.groups
    keep = first_channels(graph, {i: max(1, g.size // 2) for i, g in enumerate(graph.groups) if g.size > 1})
    check = equality_check(there, graph, keep, X)
    assert check.passed, check
    cropped = crop_channels(there, graph, keep, X)
    assert next(cropped.parameters()).device == device
    with torch.no_grad():
        masked = mask_channels(there, graph, keep)(X.to(device))
        same(cropped(X.to(device)), masked.cpu(), 1e-3)
        same(cropped(X.to(device)), crop_channels(here, own, keep, X)(X), 1e-3)


@pytest.mark.parametrize("method", SCORES)
def test_scores(device, same, method) -> None:
    here = network("resnet")
    there = copy.deepcopy(here).to(device)
    wanted = weight_scores(here, X, method, batch=(X, Y), seed=1)
    for images in (X.to(device), X):
        found = weight_scores(there, images, method, batch=(images, Y), seed=1)
        for name, score in found.items():
            same(score, wanted[name], 1e-2)  # GraSP's are second derivatives


@pytest.mark.parametrize("method", ["synflow", "magnitude", "random"])
def test_masks(device, method) -> None:
    here = network("resnet")
    there = copy.deepcopy(here).to(device)
    wanted, found = (weight_mask(m, X, method, 0.3, rounds=3, seed=1) for m in (here, there))
    for name, mask in found.items():
        assert mask.device == device
        assert float((mask.cpu() != wanted[name]).double().mean()) < 1e-3
    assert mask_density(found) == pytest.approx(mask_density(wanted), abs=1e-3)
    for name, mask in reshuffle_mask(found, seed=4).items():
        assert mask.sum() == found[name].sum()
    apply_weight_mask(there, {name: mask.cpu() for name, mask in found.items()})
    out = there(X.to(device))
    bake_weight_mask(there)
    assert torch.equal(there(X.to(device)), out)


@pytest.mark.parametrize("how", DENSITIES)
def test_densities(device, how) -> None:
    here = network("resnet")
    there = copy.deepcopy(here).to(device)
    wanted, found = (layer_density(m, X, how, 0.3, batch=(X, Y)) for m in (here, there))
    assert found == pytest.approx(wanted, abs=1e-2)


def test_precropping(device) -> None:
    here = network("resnet")
    there = copy.deepcopy(here).to(device)
    wanted, found = precrop(here, 0.3, X), precrop(there, 0.3, X)
    assert found.crop_report.widths == wanted.crop_report.widths
    assert [check.passed for check in found.crop_report.checks] == [True] * len(found.crop_report.checks)
    assert next(found.parameters()).device == device
    assert count_macs(found, X[:1]) == wanted.crop_report.macs[1]
    assert preconfig(there, X, flops=0.5).crop_report.macs[1] <= 0.55 * count_macs(here, X[:1])
    assert fast_multiple(device) in {8, 16}
    timed = compare_latency(there, found, X, repeats=3, training=True)
    assert timed.first > 0
    assert timed.second > 0


def test_a_saved_crop_comes_back(device, same, tmp_path) -> None:
    there = network("resnet").to(device)
    small = precrop(there, 0.3, X)
    path = save_network(small, tmp_path, load_model(network("resnet"), input_size=(3, 32, 32)))
    assert path.is_file()


def two() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 4)) for _ in range(2)]
    for body in made:
        body[-1].weight.data.mul_(20)
    return made[0].eval(), made[1].eval()


@pytest.mark.parametrize("memory", [None, "dhash", "invariants", "exact"])
@pytest.mark.parametrize("split", [False, True], ids=["both there", "one here"])
def test_a_pair(device, memory, split) -> None:
    images = torch.randint(256, (30, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    a, b = two()
    wanted = DualCNN(a, b, 0.4, memory=None if memory is None else PerceptualMemory(memory)).predict(images)
    for given in (images, images.to(device)):
        first, second = copy.deepcopy(a).to(device), copy.deepcopy(b) if split else copy.deepcopy(b).to(device)
        pair = DualCNN(first, second, 0.4, memory=None if memory is None else PerceptualMemory(memory))
        assert pair.identity() == DualCNN(a, b, 0.4).identity()
        found = pair.predict(given)
        assert found.label.device.type == "cpu"
        assert torch.equal(found.label, wanted.label)
        assert torch.equal(found.used_b, wanted.used_b)
        assert torch.allclose(found.score, wanted.score, atol=1e-5)
        if memory is not None:
            assert pair.predict(given).remembered.all()


def test_fingerprints(device) -> None:
    images = torch.randint(256, (5, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for kind in ("dhash", "invariants", "exact"):
        assert fingerprints(images.to(device), kind) == fingerprints(images, kind)


@pytest.mark.parametrize("kind", ["maxp", "difference", "entropy"])
def test_the_threshold(device, kind) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(200, 6, generator=generator), torch.randn(200, 6, generator=generator)
    y = torch.randint(6, (200,), generator=generator)
    wanted, found = search_threshold(a, b, y, kind), search_threshold(a.to(device), b.to(device), y.to(device), kind)
    assert np.abs(found.accuracy - wanted.accuracy).max() <= 1 / 200 + 1e-12
    assert found.union == wanted.union
    assert torch.allclose(confidence(a.to(device), kind).cpu(), confidence(a, kind), atol=1e-6)
    answers = torch.stack([a.argmax(1), b.argmax(1)])
    assert torch.allclose(complementarity(answers.to(device), y).cpu(), complementarity(answers, y))
