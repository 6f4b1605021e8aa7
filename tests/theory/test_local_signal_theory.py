"""Closed forms against published-size values, simulation, and each other."""

from __future__ import annotations

import math

import pytest
import torch

from striate.data.local_signal import DSD
from striate.errors import InputError
from striate.models.patch_net import PatchNet
from striate.theory.local_signal import (
    linear_accuracy,
    oracle_accuracy,
    predicted_cosine,
    predicted_samples,
    theorem_rate,
)

ORACLES = {
    5: (0.962, 0.987, 0.987, 0.945),
    10: (0.899, 0.964, 0.983, 0.945),
    20: (0.817, 0.916, 0.969, 0.945),
    30: (0.765, 0.876, 0.955, 0.942),
}


@pytest.mark.parametrize("k", ORACLES)
def test_oracle_accuracies_at_a_quarter(k: int) -> None:
    found = [oracle_accuracy(k, 20, 0.25, b) for b in (1e-4, 0.2, 0.4, 0.6)]
    assert found == pytest.approx(ORACLES[k], abs=0.003)


@pytest.mark.parametrize(("k", "sigma", "b"), [(7, 0.3, 0.35), (3, 1.0, 0.0), (1, 0.25, 0.5)])
def test_the_oracle_is_what_a_network_with_the_signal_itself_scores(k: int, sigma: float, b: float) -> None:
    task = DSD(k, 3, sigma)
    net = PatchNet("cnn", k, 3, bias=b)
    with torch.no_grad():
        net.weight.copy_(task.w)
        x, y = task.sample(200_000)
        sampled = (net(x).sign() == y).double().mean().item()
    assert oracle_accuracy(k, 3, sigma, b) == pytest.approx(sampled, abs=0.003)


@pytest.mark.parametrize(("k", "limit"), [(10, 0.897), (20, 0.814), (30, 0.767)])
def test_without_a_threshold_the_oracle_is_the_linear_limit(k: int, limit: float) -> None:
    assert linear_accuracy(k, 0.25) == pytest.approx(limit, abs=5e-4)
    assert oracle_accuracy(k, 20, 0.25, 0.0) == pytest.approx(linear_accuracy(k, 0.25), abs=1e-4)


def test_predictions_are_inverse_and_have_the_known_sizes() -> None:
    assert predicted_samples("lcn", 0.9, 10, 20, 0.25) / 2 == pytest.approx(533, abs=0.5)
    assert predicted_samples("cnn", 0.9, 10, 20, 0.25) / 2 == pytest.approx(53.3, abs=0.05)
    for arch in ("cnn", "lcn"):
        assert predicted_cosine(arch, predicted_samples(arch, 0.8, 7, 3, 0.4), 7, 3, 0.4) == pytest.approx(0.8)


def test_bounds_are_ordered_where_they_must_be() -> None:
    k, d, sigma = 12, 30, 0.2
    lower = {arch: theorem_rate(arch, k, d, sigma) for arch in ("lcn", "fcn")}
    upper = {arch: theorem_rate(arch, k, d, sigma, "upper") for arch in ("cnn", "lcn")}
    assert lower["fcn"] / lower["lcn"] == pytest.approx(k)
    assert upper["lcn"] / upper["cnn"] == pytest.approx(k)
    assert lower["lcn"] < upper["lcn"]
    assert upper["cnn"] == pytest.approx(0.04 * 42 * math.log(360))


def test_refusals() -> None:
    for call in (
        lambda: theorem_rate("cnn", 2, 2, 1),
        lambda: predicted_samples("cnn", 1.0, 2, 2, 1),
        lambda: predicted_cosine("fcn", 10, 2, 2, 1),
        lambda: oracle_accuracy(2, 2, 1, -0.1),
        lambda: linear_accuracy(2, 0),
        lambda: linear_accuracy(2, math.nan),
        lambda: oracle_accuracy(2, 2, math.inf, 0.1),
        lambda: theorem_rate("lcn", 2, 2, -1),
        lambda: theorem_rate("lcn", 2, 0, 1),
        lambda: predicted_cosine("cnn", 0, 2, 2, 1),
    ):
        with pytest.raises(InputError):
            call()
