"""SynFlow, SNIP, GraSP and the masks and densities that follow from them."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.compress.density import DENSITIES, layer_density
from striate.compress.graph import channel_graph
from striate.compress.masks import apply_weight_mask, bake_weight_mask, mask_density, reshuffle_mask
from striate.compress.scores import SCORES, weight_mask, weight_scores
from striate.engine.train import Recipe, fit
from striate.errors import InputError, LayerError, RunError
from striate.models.micro import MobileMicro, ResNetMicro
from striate.models.tiny import TinyAlex, TinyMobile
from striate.testing import left_as_it_came


def batch(n=8, channels=3, side=16):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, side, side, generator=generator), torch.arange(n) % 10


def two_layers():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    model[2].weight.data = torch.tensor([[2.0, -1.0]])
    return model


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_a_branch_that_starts_silent_keeps_its_share(method):
    model = timm.create_model("resnet10t", num_classes=10)  # the last norm of every block starts at zero
    images, labels = batch(side=32)
    density = layer_density(model, images, method, 0.25, batch=(images, labels))
    assert not model.layer3[0].bn2.weight.any()
    assert density["layer3.0.conv1"] == density["layer3.0.conv2"] == pytest.approx(0.25, abs=1e-3)
    weights = {name: model.get_submodule(name).weight.numel() for name in density}
    kept = sum(density[name] * count for name, count in weights.items())
    assert kept / sum(weights.values()) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("method", ["synflow", "magnitude"])
@pytest.mark.parametrize("density", [0.001, 0.3, 1.0])
def test_the_highest_are_found_as_sorting_finds_them(method, density):
    model = ResNetMicro((8, 16))
    next(model.parameters()).data.fill_(0.1)  # many scores alike
    x = torch.zeros(1, 3, 16, 16)
    fast, slow = (weight_mask(model, x, method, density, flops, rounds=3) for flops in (None, 1.0))
    assert all(torch.equal(fast[name], slow[name]) for name in fast)


def test_scores_that_say_nothing_are_refused():
    model = two_layers()
    model[2].weight.data.zero_()
    model[0].weight.data.zero_()
    with pytest.raises(RunError, match="zero in every layer"):
        weight_mask(model, torch.zeros(1, 2), "synflow", 0.5)


def test_synflow_by_hand():
    scores = weight_scores(two_layers(), torch.zeros(1, 2), "synflow")
    torch.testing.assert_close(scores["0"], torch.tensor([[2.0, 4.0], [0.5, 3.0]], dtype=torch.float64))
    torch.testing.assert_close(scores["2"], torch.tensor([[6.0, 3.5]], dtype=torch.float64))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_every_layer_carries_the_whole_flow(seed, widths):
    """Conservation: in a chain of ReLU layers without biases the scores of each layer add up to R."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 2
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
        channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3, bias=False))
    sums = [float(score.sum()) for score in weight_scores(model, torch.zeros(1, 2, 6, 6), "synflow").values()]
    assert all(math.isclose(value, sums[0], rel_tol=1e-9) for value in sums)


@pytest.mark.parametrize("method", SCORES)
def test_the_network_leaves_as_it_came(method):
    model = MobileMicro((4, 8)).train()
    with left_as_it_came(model):
        scores = weight_scores(model, torch.zeros(1, 3, 16, 16), method, batch=batch())
    assert list(scores) == list(channel_graph(model, torch.zeros(1, 3, 16, 16)).weighted)
    assert all(torch.isfinite(score).all() for score in scores.values())


def test_snip_and_grasp_by_their_definitions():
    torch.manual_seed(0)
    model, (x, y) = TinyAlex(), batch()
    model.eval()  # no norms or dropout in it, so the mode makes no difference
    names = list(channel_graph(model, x).weighted)
    weights = [model.get_submodule(name).weight for name in names]
    first = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
    snip = weight_scores(model, x, "snip", batch=(x, y))
    for name, weight, gradient in zip(names, weights, first, strict=True):
        torch.testing.assert_close(snip[name], (weight * gradient).abs().detach())

    # H g by finite differences of the gradient along g.
    def gradient_at(shift):
        twin = TinyAlex().double()
        twin.load_state_dict({key: value.double() for key, value in model.state_dict().items()})
        own = [twin.get_submodule(name).weight for name in names]
        with torch.no_grad():
            for weight, g in zip(own, shift, strict=True):
                weight.add_(g)
        return torch.autograd.grad(F.cross_entropy(twin(x.double()) / 200, y), own)

    g = gradient_at([torch.zeros(()) for _ in names])
    eps = 1e-5
    up, down = (gradient_at([sign * eps * value for value in g]) for sign in (1, -1))
    grasp = weight_scores(model.double(), x.double(), "grasp", batch=(x.double(), y))
    for name, weight, a, b in zip(names, weights, up, down, strict=True):
        product = weight.double() * (a - b) / (2 * eps)
        torch.testing.assert_close(grasp[name], product.detach(), rtol=1e-2, atol=1e-3 * product.abs().max().item())


def test_several_batches_add_up():
    model, (x, y) = TinyAlex(), batch()
    halves = [(x[:4], y[:4]), (x[4:], y[4:])]
    one, two = (weight_scores(model, x, "grasp", batch=[half]) for half in halves)
    both = weight_scores(model, x, "grasp", batch=halves)
    for name, value in both.items():
        torch.testing.assert_close(value, one[name] + two[name])


@pytest.mark.parametrize("method", SCORES)
def test_masks_meet_the_budget(method):
    model, x = ResNetMicro((8, 16)), torch.zeros(1, 3, 16, 16)
    graph = channel_graph(model, x)
    masks = weight_mask(model, x, method, 0.1, batch=batch(), rounds=10, graph=graph)
    assert abs(sum(int(mask.sum()) for mask in masks.values()) - 0.1 * graph.weights) <= 1
    by_macs = weight_mask(model, x, method, None, 0.1, batch=batch(), rounds=10, graph=graph)
    spent = sum(graph.layers[name].macs * share for name, share in mask_density(by_macs).items())
    assert spent <= 0.1 * graph.macs
    assert spent > 0.09 * graph.macs


@pytest.mark.parametrize("build", [lambda: ResNetMicro((16, 32, 64)), TinyMobile])
def test_synflow_in_rounds_empties_no_layer(build):
    torch.manual_seed(0)
    density = mask_density(weight_mask(build(), torch.zeros(1, 3, 32, 32), "synflow", 0.01, rounds=30))
    assert min(density.values()) > 0


def test_magnitude_at_once_can_empty_a_layer():
    torch.manual_seed(0)
    density = mask_density(
        weight_mask(ResNetMicro((16, 32, 64), (2, 2, 2)), torch.zeros(1, 3, 32, 32), "magnitude", 0.01)
    )
    assert min(density.values()) == 0


def test_synflow_passes_relu6_gates_and_layer_norms():
    """Where the flow is cut off, every score in front of it is zero and the layer is emptied."""
    x = torch.zeros(1, 3, 32, 32)
    for model in (timm.create_model("mobilenetv2_050"), MobileMicro((8, 12, 16))):
        scores = weight_scores(model, x, "synflow")
        reached = [name for name, score in scores.items() if bool(score.any())]
        inside = [name for name in scores if any(word in name for word in ("reduce", "restore", ".se."))]
        assert set(scores) - set(reached) == set(inside)


def test_a_mask_holds_in_training_and_can_be_baked_in():
    torch.manual_seed(0)
    model, (x, y) = ResNetMicro((4, 8)), batch(32)
    masks = weight_mask(model, x, "synflow", 0.3, rounds=5)
    with left_as_it_came(model):
        masked = apply_weight_mask(model, masks)
    fit(masked, x, y, Recipe(epochs=2, batch_size=8, optimizer="adamw", lr=0.01, weight_decay=0.1, seed=0))
    baked = bake_weight_mask(masked)
    for name, mask in masks.items():
        weight = baked.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        assert not weight[~mask].any()
        assert weight[mask].all()
    assert baked.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(baked.eval()(x), masked.eval()(x))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 100))
def test_reshuffling_keeps_each_layers_count(size, kept, seed):
    masks = {"a": torch.arange(size) < kept, "b": torch.ones(2, 3, dtype=torch.bool)}
    shuffled = reshuffle_mask(masks, seed)
    assert {name: (mask.shape, int(mask.sum())) for name, mask in shuffled.items()} == {
        name: (mask.shape, int(mask.sum())) for name, mask in masks.items()
    }
    assert all(torch.equal(shuffled[name], reshuffle_mask(masks, seed)[name]) for name in masks)


@pytest.mark.parametrize("method", DENSITIES)
def test_densities_meet_the_budget(method):
    model, x = ResNetMicro((8, 16)), torch.zeros(1, 3, 16, 16)
    graph = channel_graph(model, x)
    p = layer_density(model, x, method, 0.2, batch=batch(), rounds=5, graph=graph)
    assert list(p) == list(graph.weighted)
    assert sum(graph.layers[name].weights * share for name, share in p.items()) == pytest.approx(
        0.2 * graph.weights, abs=1
    )
    assert all(0 <= share <= 1 for share in p.values())
    both = layer_density(model, x, method, 0.3, 0.3, batch=batch(), rounds=5, graph=graph)
    assert sum(graph.layers[name].weights * share for name, share in both.items()) <= 0.3 * graph.weights + 1
    assert sum(graph.layers[name].macs * share for name, share in both.items()) <= 0.3 * graph.macs * (1 + 1e-9)


def test_erk_by_its_definition():
    model, x = ResNetMicro((8, 16)), torch.zeros(1, 3, 16, 16)
    p = layer_density(model, x, "erk", 0.3)
    rates = {name: sum(model.get_submodule(name).weight.shape) / model.get_submodule(name).weight.numel() for name in p}
    below = [name for name in p if p[name] < 1]
    assert len({round(p[name] / rates[name], 9) for name in below}) == 1
    assert all(rates[name] >= max(rates[other] for other in below) for name in set(p) - set(below))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density": 0.0}, "in \\(0, 1\\]"),
        ({"density": 1.5}, "in \\(0, 1\\]"),
        ({"flops": -0.1}, "in \\(0, 1\\]"),
        ({}, "or flops"),
        ({"density": 0.5, "method": "synflo"}, "Did you mean 'synflow'"),
        ({"density": 0.5, "method": "snip"}, "SynFlow and SynExp need no data"),
        ({"density": 0.5, "method": "grasp"}, "labels"),
        ({"density": 0.5, "method": "synflow", "rounds": 0}, ">= 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        layer_density(TinyAlex(), torch.zeros(1, 3, 16, 16), **options)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="for 'fc'"):
        apply_weight_mask(ResNetMicro((4,)), {"fc": torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(LayerError):
        apply_weight_mask(ResNetMicro((4,)), {"cf": torch.ones(3, 3, dtype=torch.bool)})


def test_weights_that_are_not_numbers_are_named():
    model = TinyAlex()
    model.classifier[0].weight.data[0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        weight_scores(model, torch.zeros(1, 3, 16, 16), "synflow")


class TwoHeads(nn.Module):
    """Logits, and what an auxiliary head says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.aux = nn.Conv2d(3, 4, 1), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        return self.head(x), self.aux(x)


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_of_several_outputs_the_first_counts_also_without_gradient_mode(method):
    model, x, y = TwoHeads(), torch.rand(4, 3, 6, 6), torch.tensor([0, 1, 1, 0])
    expected = weight_scores(model, x, method, batch=(x, y))
    assert expected["conv"].any()
    assert not expected["aux"].any()
    with torch.inference_mode():
        found = weight_scores(model, x, method, batch=[x.clone(), y.clone()])  # a list, as loaders give it
    for name, score in expected.items():
        assert torch.equal(score, found[name])
    with pytest.raises(InputError, match="Got none"):
        weight_scores(model, x, method, batch=[])


def test_clip_passes_flow_as_clamp_does():
    class Clipped(nn.Module):
        def __init__(self, cut) -> None:
            super().__init__()
            self.conv, self.head, self.cut = nn.Conv2d(3, 4, 1), nn.Linear(4, 2), cut

        def forward(self, x):
            return self.head(self.cut(9 + self.conv(x)).mean((2, 3)))

    x = torch.rand(1, 3, 6, 6)
    clipped, clamped = Clipped(lambda x: torch.clip(x, 0, 6)), Clipped(lambda x: torch.clamp(x, 0, 6))
    clipped.load_state_dict(clamped.state_dict())
    assert weight_scores(clamped, x)["conv"].any()
    assert torch.equal(weight_scores(clamped, x)["conv"], weight_scores(clipped, x)["conv"])
