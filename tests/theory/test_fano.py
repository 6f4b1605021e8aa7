"""Fano's bound, the packing that it is checked on, and that a cheat breaks it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from striate.errors import InputError
from striate.theory.fano import fano_bound, fano_trial, locally_separated, signal_information, sphere_packing

CODES = sphere_packing(64, 24, 0.44)


def test_a_packing_is_on_the_sphere_and_apart() -> None:
    assert CODES.norm(dim=1).sub(1).abs().max() < 1e-5
    assert (CODES @ CODES.T).fill_diagonal_(-1).max() <= 0.44
    assert torch.equal(CODES[:10], sphere_packing(10, 24, 0.44))
    with pytest.raises(InputError, match="were found"):
        sphere_packing(40, 3, 0.1, tries=500)


def test_caps_are_disjoint_exactly_where_no_direction_is_in_two() -> None:
    pair = torch.tensor([[1.0, 0.0], [math.cos(1.2), math.sin(1.2)]])
    middle = torch.tensor([math.cos(0.6), math.sin(0.6)])
    edge = float(middle @ pair[0])
    assert locally_separated(pair, edge + 1e-3)
    assert not locally_separated(pair, edge - 1e-3)


@given(st.floats(0, 50), st.integers(2, 10_000))
def test_the_bound_is_a_probability_that_falls_with_information(information: float, m: int) -> None:
    assert 0 <= fano_bound(information + 1, m) <= fano_bound(information, m) < 1


def test_information_is_that_of_gaussians() -> None:
    """Two opposite vectors: KL is 4 / (2 sigma^2) for half of the pairs."""
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert signal_information(pair, 2.0, 3) == pytest.approx(3 * 0.5 * 4 / 8)


def nearest(x: Tensor, y: Tensor) -> Tensor:
    return CODES[(CODES @ (y[:, None, None] * x).sum(dim=(0, 1))).argmax()]


@pytest.mark.parametrize("k", [1, 3])
def test_no_algorithm_beats_the_bound(k: int) -> None:
    for n in (1, 4, 10):
        trial = fano_trial(nearest, CODES, 2.0, n, k=k, cosine=0.85, trials=60)
        assert trial.bound > 0
        assert trial.check.passed, trial.check.statement
    assert fano_trial(nearest, CODES, 2.0, 400, cosine=0.85, trials=20).failed.value == 0


def test_a_cheat_does_and_is_found_out() -> None:
    told = fano_trial(lambda x, y: (y[:, None] * x[:, 0]).mean(dim=0), CODES, 0.01, 4, cosine=0.85, trials=40)
    assert told.failed.value == 0
    honest = fano_trial(nearest, CODES, 2.0, 4, cosine=0.85, trials=40)
    cheat = type(honest)(honest.n, honest.bound, told.failed, honest.risk)
    assert not cheat.check.passed


def test_refusals() -> None:
    with pytest.raises(InputError, match="locally separated"):
        fano_trial(nearest, CODES, 1.0, 3, cosine=0.5)
    with pytest.raises(InputError, match=r"in \(0, 1\]"):
        locally_separated(CODES, 1.5)
    with pytest.raises(InputError):
        fano_bound(-1.0, 4)
    with pytest.raises(InputError):
        sphere_packing(1, 4, 0.5)
