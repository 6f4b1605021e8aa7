"""PreCrop and PreConfig: widths by the rule, budgets that are met, fresh weights, honest reports."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.compress.density import layer_density
from striate.compress.graph import channel_graph
from striate.compress.masks import apply_weight_mask
from striate.compress.precropping import TOLERANCE, preconfig, precrop
from striate.compress.widths import fast_multiple, rounded
from striate.engine.macs import count_macs
from striate.errors import CheckError, InputError, ModelError
from striate.models.cifar_resnet import CifarResNet
from striate.models.micro import MobileMicro, ResNetMicro
from striate.models.mini import densenet_mini, inception_mini, resnet_mini
from striate.models.tiny import TinyAlex, TinyMobile
from striate.testing import check_model, left_as_it_came


def images(side=32, channels=3):
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_resnet_20_at_a_fifth():
    small = precrop(CifarResNet(20, shortcut="pad"), 0.2, images())
    blocks = list(small.blocks)
    assert [block.conv1.out_channels for block in blocks] == [16, 16, 16, 15, 11, 11, 7, 6, 6]
    assert [block.conv2.out_channels for block in blocks] == [16] * 3 + [32] * 3 + [64] * 3
    report = small.crop_report
    assert report.params == (268_336, 53_920)
    assert round(report.params[1] / report.params[0], 4) == 0.2009
    assert report.kappa == 1
    assert report.macs[1] == count_macs(small, images()[:1])
    assert [check.passed for check in report.checks] == [True, True, True]
    assert report.widths["blocks.6.conv1"] == (64, 7)
    assert report.achieved["blocks.6.conv2"] == pytest.approx(7 / 64)
    assert report.target["blocks.6.conv2"] == pytest.approx(0.08764, abs=5e-6)


def test_a_bottleneck_solves_its_quadratic():
    model, x = torchvision.models.resnet50(num_classes=10), images()
    p = layer_density(model, x, density=0.5)
    report = precrop(model, p, x).crop_report
    graph = channel_graph(model, x)
    n1, n2, n3 = (graph.layers[f"layer3.2.conv{i}"].weights for i in (1, 2, 3))
    wanted = sum(n * p[f"layer3.2.conv{i}"] for i, n in ((1, n1), (2, n2), (3, n3)))
    a = (-(n1 + n3) + math.sqrt((n1 + n3) ** 2 + 4 * n2 * wanted)) / (2 * n2)
    for i in (1, 2):
        assert report.widths[f"layer3.2.conv{i}"][1] == round(report.kappa * a * 256)


def test_a_chain_takes_square_roots():
    model, x = TinyAlex(), images()
    p = dict.fromkeys(layer_density(model, x, density=0.5), 0.25)
    report = precrop(model, p, x).crop_report
    for name, (old, new) in report.widths.items():
        assert new == math.floor(report.kappa * 0.5 * old + 0.5), name
    middle = [name for name in p if name not in {"features.0", "classifier.4"}]
    assert all(report.achieved[name] == pytest.approx(0.25, rel=0.12) for name in middle)  # p, not p squared


@pytest.mark.parametrize(
    ("build", "side"),
    [
        (lambda: ResNetMicro((16, 32, 64), (2, 2, 2)), 32),
        (TinyAlex, 32),
        (TinyMobile, 32),
        (lambda: MobileMicro((16, 24, 40)), 32),
        (lambda: densenet_mini(3), 16),
        (lambda: resnet_mini(3), 16),
        (lambda: torchvision.models.mobilenet_v2(num_classes=10), 32),
        (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), 32),
        (lambda: torchvision.models.resnext50_32x4d(num_classes=10), 32),
    ],
)
@pytest.mark.parametrize("residual", ["inner", "stage"])
def test_budgets_are_met_after_rounding(build, side, residual):
    model, x = build().train(), images(side)
    with left_as_it_came(model):
        small = precrop(model, 0.3, x, residual=residual)
    report = small.crop_report
    weights = sum(m.weight.numel() for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert weights == report.params[1]
    assert weights == pytest.approx(0.3 * report.params[0], rel=TOLERANCE)
    assert all(check.passed is not False for check in report.checks)
    assert small.training
    assert type(small) is type(model)
    assert all(new >= 1 for _, new in report.widths.values())


@pytest.mark.parametrize("residual", ["inner", "stage"])
def test_a_cropped_network_is_a_classifier_like_any_other(residual):
    torch.manual_seed(0)
    model = CifarResNet(8, 4, shortcut="pad")
    check_model(precrop(model, 0.4, images(16), residual=residual), images(16), classes=10)


def test_a_budget_of_multiplications():
    model, x = TinyMobile(), images()
    p = layer_density(model, x, flops=0.4)
    report = precrop(model, p, x, budget="flops").crop_report
    assert report.macs[1] / report.macs[0] == pytest.approx(0.4, rel=TOLERANCE)


def test_density_one_changes_no_width():
    for residual in ("inner", "stage"):
        small = precrop(ResNetMicro((4, 8)), 1.0, images(8), residual=residual)
        assert small.crop_report.widths == {}
        assert small.crop_report.params[0] == small.crop_report.params[1]


def test_weights_are_new_and_follow_the_seed():
    model, x = ResNetMicro((16, 32)), images(16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
        model.stem[1].running_mean.fill_(7.0)
    one, same, other = (precrop(model, 0.5, x, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.stem[0].weight, same.stem[0].weight)
    assert not torch.equal(one.stem[0].weight, other.stem[0].weight)
    assert not any((parameter == 7).any() for parameter in one.parameters())
    assert not one.stem[1].running_mean.any()
    conv = one.layer2[0].conv2
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (conv.out_channels * 9)), rel=0.05)


def test_stage_crops_what_additions_join():
    model, x = ResNetMicro((16, 32, 64), (2, 2, 2)), images()
    inner, stage = (precrop(model, 0.3, x, residual=residual) for residual in ("inner", "stage"))
    assert inner.layer3[0].conv2.out_channels == 64
    assert stage.layer3[0].conv2.out_channels == stage.layer3[1].conv2.out_channels < 64
    padded = precrop(CifarResNet(20, shortcut="pad"), 0.2, x, residual="stage")
    assert padded.blocks[6].shortcut.out_channels == padded.blocks[6].conv2.out_channels < 64
    assert padded(x).shape == (2, 10)


def test_widths_in_multiples():
    model, x = ResNetMicro((32, 64, 128), (2, 2, 2)), images()
    report = precrop(model, 0.3, x, divisor=8).crop_report
    assert report.divisor == 8
    assert all(new % 8 == 0 for _, new in report.widths.values())
    assert precrop(model, 0.3, x, divisor="auto").crop_report.divisor == fast_multiple("cpu")
    grouped = precrop(torchvision.models.resnext50_32x4d(num_classes=10), 0.3, x)
    assert all(m.in_channels % m.groups == 0 for m in grouped.modules() if isinstance(m, nn.Conv2d))
    assert grouped.layer1[0].conv2.groups == 32


def test_an_emptied_layer_keeps_a_channel():
    model, x = ResNetMicro((8, 16)), images(16)
    p = layer_density(model, x, density=0.9)
    p |= {"layer2.0.conv1": 0.0, "layer2.0.conv2": 0.0}
    small = precrop(model, p, x)
    assert small.layer2[0].conv1.out_channels >= 1


@settings(max_examples=10, deadline=None)
@given(st.floats(0.15, 1.0), st.integers(0, 1000))
def test_any_densities_give_a_network_that_runs(share, seed):
    model, x = inception_mini(3), images(8)
    values = np.random.default_rng(seed).uniform(share / 2, share, 20)
    p = dict(zip(channel_graph(model, x).weighted, values.tolist(), strict=False))
    small = precrop(model, p, x)
    assert torch.isfinite(small.eval()(x)).all()
    assert small.crop_report.checks[0].passed


def test_preconfig_widens_some_and_narrows_some_at_the_same_cost():
    model, x = TinyMobile(), images()
    changed = preconfig(model, x, flops=1.0)
    report = changed.crop_report
    assert report.macs[1] / report.macs[0] == pytest.approx(1, rel=TOLERANCE)
    factors = [new / old for old, new in report.widths.values()]
    assert min(factors) < 1 < max(factors) <= 4
    assert changed(x).shape == (2, 10)
    both = preconfig(model, x, params=0.8, flops=1.0).crop_report
    assert both.params[1] / both.params[0] <= 0.8 * (1 + TOLERANCE)
    assert preconfig(model, x).crop_report.budget == "params"
    assert max(new / old for old, new in preconfig(model, x, flops=1.0, p_max=1.5).crop_report.widths.values()) <= 1.5


def test_a_report_is_plain_data():
    import json

    report = precrop(ResNetMicro((8, 16)), 0.5, images(16)).crop_report
    again = json.loads(json.dumps(report.to_dict()))
    assert again["params"] == list(report.params)
    assert {check["name"] for check in again["checks"]} == {"cropped = masked", "budget", "every layer ran"}


def test_what_the_budget_cannot_buy_is_reported():
    model, x = ResNetMicro((8,)), images(16)
    report = precrop(model, 0.55, x).crop_report  # a channel of its one free group is a tenth of all weights
    budget = report.checks[1]
    assert budget.passed is False
    assert "cannot come closer" in budget.statement


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"density": 0.0}, InputError, "in \\(0, 1\\]"),
        ({"density": 1.2}, InputError, "in \\(0, 1\\]"),
        ({"density": {"fc": 2.0}}, InputError, "in \\[0, 1\\] for 'fc'"),
        ({"density": {"nonsense": 0.5}}, InputError, "of layers that the network has"),
        ({"density": 0.001}, InputError, "one channel a group needs"),
        ({"density": 0.5, "residual": "outer"}, InputError, "'inner' or 'stage'"),
        ({"density": 0.5, "divisor": 0}, InputError, "or 'auto'"),
        ({"density": 0.5, "budget": "time"}, InputError, "'params' or 'flops'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        precrop(ResNetMicro((8, 16)), options.pop("density"), images(16), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_stay_as_they_are(dtype):
    small = precrop(ResNetMicro((8, 16)).to(dtype), 0.5, images(16))
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert small.crop_report.checks[0].passed


def test_a_compiled_network_is_followed_as_it_is_written():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # reset() leaves what other tests compiled
    network = torch.compile(ResNetMicro((8, 16)), backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert channel_graph(network, images(16)).weights == channel_graph(ResNetMicro((8, 16)), images(16)).weights
    assert torch._dynamo.utils.counters["frames"].get("total", 0) == 0


def test_layers_that_keep_their_widths_are_named():
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.conv(self.stem(x).chunk(2, 1)[0]).mean((2, 3)))

    report = precrop(Halved(), 0.7, images(8)).crop_report
    assert report.fixed == {"stem": "split along channels in the network"}
    assert "1 of 3 layers of another width, 1 fixed; failed checks: budget>" in repr(report)
    with pytest.raises(InputError, match="1 of 3 layers keep their widths"):
        precrop(Halved(), 0.2, images(8))


def test_nothing_to_crop_is_said():
    with pytest.raises(ModelError, match="nothing to crop"):
        precrop(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), 0.5, torch.zeros(1, 3, 2, 2))
    masks = {
        name: torch.ones_like(layer.weight)
        for name, layer in ResNetMicro((8,)).named_modules()
        if hasattr(layer, "kernel_size") or name == "fc"
    }
    masked = apply_weight_mask(ResNetMicro((8,)), masks)
    for make in (lambda: precrop(masked, 0.5, images(8)), lambda: preconfig(masked, images(8))):
        with pytest.raises(ModelError, match="bake_weight_mask"):
            make()
    joined = nn.Sequential(nn.Conv2d(3, 8, 1), Doubled(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ModelError, match="residual='stage'"):
        precrop(joined, 0.5, images(8))


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x + self.conv(x)


@pytest.mark.parametrize(
    ("options", "words"), [({"params": 0.0}, "> 0"), ({"flops": -1.0}, "> 0"), ({"p_max": 0.5}, ">= 1")]
)
def test_preconfig_refuses_nonsense(options, words):
    with pytest.raises(InputError, match=words):
        preconfig(TinyAlex(), images(), **options)


def test_a_width_in_the_code_stops_preconfig():
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)).view(-1, 8))

    with pytest.raises(CheckError, match="as a number"):
        preconfig(Sliced(), images(8), params=2.0)


@pytest.mark.parametrize(
    ("width", "multiple", "limit", "expected"),
    [(33, 16, None, 32), (0.1, 8, None, 8), (99, 16, 60, 48), (7.5, 1, 64, 8)],
)
def test_rounding(width, multiple, limit, expected):
    assert rounded(width, multiple, limit) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"params": 1e-6}, "'params' of preconfig"),
        ({"flops": 1e-6}, "'flops' of preconfig"),
        ({"p_max": float("inf")}, "finite"),
    ],
)
def test_preconfig_names_the_option_that_it_refuses(options, words):
    with pytest.raises(InputError, match=words):
        preconfig(TinyAlex(), images(), **options)


def test_a_mask_for_a_layer_without_weights_is_refused():
    with pytest.raises(InputError, match="have a weight"):
        apply_weight_mask(nn.Sequential(nn.ReLU()), {"0": torch.ones(3)})
