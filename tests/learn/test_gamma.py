"""Scales are counted and cut as asked, a channel at zero is the constant β, and dead channels are found."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from striate.errors import InputError, LayerError, ModelError
from striate.learn.dead_channels import dead_channels
from striate.learn.gamma import gamma_report, prune_gamma_
from striate.models.cifar_resnet import cifar_resnet
from striate.testing import left_as_it_came


def with_gamma(*gammas: list[float]) -> nn.Module:
    norms = [nn.BatchNorm2d(len(gamma)) for gamma in gammas]
    with torch.no_grad():
        for norm, gamma in zip(norms, gammas, strict=True):
            norm.weight.copy_(torch.tensor(gamma))
    return nn.Sequential(*norms)


def test_shares_are_per_layer_and_over_all_channels() -> None:
    model = with_gamma([0.0, -0.005, 0.02, 1.0], [0.5, -2.0])
    with left_as_it_came(model):
        report = gamma_report(model)
    assert report.layers[0].below == {1e-3: 0.25, 1e-2: 0.5, 5e-2: 0.75}
    assert report.layers[1].below == {1e-3: 0.0, 1e-2: 0.0, 5e-2: 0.0}
    assert report.below == {1e-3: 1 / 6, 1e-2: 2 / 6, 5e-2: 3 / 6}
    counts, edges = report.histogram(bins=4, high=1.0)
    assert counts == [3, 0, 1, 2]
    assert edges == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert json.loads(json.dumps(report.to_dict()))["layers"]["0"] == {
        "channels": 4,
        "below": {"0.001": 0.25, "0.01": 0.5, "0.05": 0.75},
    }
    assert "33.3 %" in str(report)
    assert "6 channels of 2 norms" in repr(report)


def test_pruning_sets_small_scales_to_zero_and_no_others() -> None:
    model = with_gamma([0.0, -0.005, 0.02, 1.0], [0.5, -2.0])
    assert prune_gamma_(model, 0.01) == {"0": 2, "1": 0}
    assert model[0].weight.tolist() == pytest.approx([0, 0, 0.02, 1])
    assert prune_gamma_(model, 0.0) == {"0": 2, "1": 0}


@pytest.mark.parametrize("training", [False, True])
def test_a_channel_at_zero_is_the_constant_beta(training: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).train(training)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.005, 1.0]))
        norm.bias.copy_(torch.tensor([0.0, 0.7, 0.0]))
    prune_gamma_(norm, 0.01)
    out = norm(torch.randn(4, 3, 5, 6))
    assert torch.equal(out[:, 1], torch.full((4, 5, 6), 0.7))
    assert out[:, 0].std() > 0.5


@pytest.mark.parametrize(("eps", "tolerance"), [(1e-12, 1e-8), (1e-5, 2e-2)])
def test_scaling_a_frozen_convolution_changes_nothing(eps: float, tolerance: float) -> None:
    """In train mode the batch norm divides it out again, up to its eps."""
    torch.manual_seed(0)
    model = cifar_resnet(8, 4).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    x = torch.rand(8, 3, 16, 16, dtype=torch.float64)
    before = model(x)
    with torch.no_grad():
        model.blocks[1].conv1.weight.mul_(3.0)
        model.conv.weight.mul_(0.5)
    torch.testing.assert_close(model(x), before, atol=tolerance, rtol=0)


def test_other_norms_by_option_and_none_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4))
    assert len(gamma_report(model, norms="all").layers) == 1  # the instance norm has no scale
    for call in (gamma_report, lambda m: prune_gamma_(m, 0.1)):
        with pytest.raises(LayerError, match="no batch norm"):
            call(model)
    with pytest.raises(InputError, match="thresholds"):
        gamma_report(model, (0.0,))
    with pytest.raises(InputError, match="tau"):
        prune_gamma_(model, -1.0)


class Net(nn.Module):
    """Channel 0 never fires, channel 1 always, channel 2 on positive images; the second call sees it negated."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.unused = nn.ReLU(), nn.ReLU()
        self.p = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([-x.abs(), x.abs(), x], dim=1)
        return self.act(-self.act(y)) + self.p


def test_dead_channels_are_those_that_never_fire() -> None:
    model = Net().train()
    images = torch.cat([torch.ones(3, 1, 4, 4), -torch.ones(1, 1, 4, 4)])
    with left_as_it_came(model):
        found = dead_channels(model, images.split(2))
    assert found.zeros["act"].tolist() == [1.0, 0.0, 0.25]
    assert found.zeros["act#2"].tolist() == [1.0, 1.0, 1.0]
    assert found.dead["act"].tolist() == [True, False, False]
    assert found.share == pytest.approx(4 / 6)
    assert found.images == 4
    assert found.to_dict()["layers"]["act#2"] == {"channels": 3, "dead": 3}
    assert "4 of 6 in 2 activations" in repr(found)
    assert dead_channels(model, images.split(2), threshold=0.2).dead["act"].tolist() == [True, False, True]


def test_batches_may_carry_labels_and_features_may_be_flat_or_tokens() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.ReLU())
    x = torch.tensor([[[[1.0, -1.0]]], [[[1.0, 1.0]]]])
    assert dead_channels(flat, [(x, torch.zeros(2))]).zeros["1"].tolist() == [0.0, 0.5]
    tokens = torch.tensor([[[1.0, -1.0], [2.0, -2.0], [-1.0, -1.0]]])
    assert dead_channels(nn.Sequential(nn.ReLU()), [tokens]).zeros["0"].tolist() == pytest.approx([1 / 3, 1.0])
    swish = nn.Sequential(nn.Hardswish())
    assert dead_channels(swish, [torch.full((1, 2, 3, 3), -9.0)], nn.Hardswish).share == 1.0


def test_a_gamma_of_zero_under_a_negative_shift_is_a_dead_channel() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[0].bias.fill_(-0.1)
    assert dead_channels(model, torch.rand(8, 2, 5, 5)).dead["1"].tolist() == [True, False]


def test_what_cannot_be_seen_is_said() -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x)

    with pytest.raises(LayerError, match="Functional"):
        dead_channels(Functional(), [torch.rand(1, 1, 2, 2)])
    with pytest.raises(InputError, match="gives images"):
        dead_channels(Net(), [])
    with pytest.raises(InputError, match="threshold"):
        dead_channels(Net(), [], threshold=1.0)


def test_scales_that_are_no_numbers_are_not_above_a_threshold():
    norm = nn.BatchNorm2d(4)
    norm.weight.data[1] = float("nan")
    with pytest.raises(ModelError, match="'0' has scales that are not finite"):
        gamma_report(nn.Sequential(norm))
