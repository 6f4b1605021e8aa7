"""SynExp's programme: its optimum, its bounds, and the numbers of ResNet-20."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.compress.allocation import fill, synexp
from striate.errors import InputError

SIZES = st.lists(st.floats(1.0, 1e6), min_size=1, max_size=12)

# ResNet-20 for CIFAR: stem, 6 layers of 16 x 16, 16 -> 32, 5 of 32 x 32, 32 -> 64, 5 of 64 x 64, classifier.
N = np.array([432.0] + [2304.0] * 6 + [4608.0] + [9216.0] * 5 + [18432.0] + [36864.0] * 5 + [640.0])
PIXELS = np.array([1024.0] * 7 + [256.0] * 6 + [64.0] * 6 + [1.0])
F = N * PIXELS


def test_sizes_of_resnet_20():
    assert N.sum() == 268_336
    assert F.sum() == 40_551_040


@pytest.mark.parametrize(
    ("density", "c", "macs", "log"),
    [
        (0.5, 11_430.667, 0.7882, -6.33247),
        (0.2, 3_230.933, 0.5130, -19.50951),
        (0.1, 1_431.2, None, None),
        (0.05, 685.822, None, None),
    ],
)
def test_the_optimum_on_resnet_20(density, c, macs, log):
    p = synexp(N, params_budget=density * N.sum())
    assert p @ N == pytest.approx(density * N.sum(), rel=1e-12)
    np.testing.assert_allclose(p, np.minimum(1, c / N), rtol=1e-5)
    if macs is not None:
        assert p @ F / F.sum() == pytest.approx(macs, abs=5e-5)
        assert np.log(p).sum() == pytest.approx(log, abs=5e-6)


def test_a_bound_on_multiplications():
    p = synexp(N, F, macs_budget=0.5 * F.sum())
    assert 1_101_806.2 / F[1] == pytest.approx(p[1], rel=1e-6)
    np.testing.assert_allclose(p[[1, 7, 8, 13, 14]], [0.46701, 0.93401, 0.46701, 0.93401, 0.46701], atol=5e-6)
    assert p[0] == p[-1] == 1
    assert p @ N / N.sum() == pytest.approx(0.5092, abs=5e-5)


def test_both_bounds_are_met_and_both_tight_where_they_cross():
    p = synexp(N, F, params_budget=0.3 * N.sum(), macs_budget=0.3 * F.sum())
    assert p @ N / N.sum() == pytest.approx(0.3, rel=1e-9)
    assert p @ F / F.sum() == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize(("params", "macs"), [(0.1, 1.0), (1.0, 0.1), (0.2, 0.6), (0.6, 0.2)])
def test_a_bound_that_is_loose_changes_nothing(params, macs):
    p = synexp(N, F, params_budget=params * N.sum(), macs_budget=macs * F.sum())
    alone = synexp(N, params_budget=params * N.sum()) if params < macs else synexp(N, F, macs_budget=macs * F.sum())
    np.testing.assert_allclose(p, alone)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.data())
def test_no_other_densities_do_better(sizes, data):
    """Any feasible exchange between two layers lowers the sum of logarithms."""
    n = np.array(sizes)
    share = data.draw(st.floats(0.05, 0.95))
    p = synexp(n, params_budget=share * n.sum())
    assert np.all((p > 0) & (p <= 1))
    assert p @ n == pytest.approx(share * n.sum(), rel=1e-9)
    if len(n) > 1:
        i, j = data.draw(st.permutations(range(len(n))))[:2]
        step = 1e-4 * min(p[i] * n[i], p[j] * n[j])
        q = p.copy()
        q[i] += step / n[i]
        q[j] -= step / n[j]
        if q[i] <= 1:
            assert np.log(q).sum() <= np.log(p).sum() + 1e-12


@settings(max_examples=30, deadline=None)
@given(SIZES, st.data())
def test_the_conditions_of_karush_kuhn_and_tucker_hold_under_both_bounds(sizes, data):
    n = np.array(sizes)
    f = n * np.array(data.draw(st.lists(st.floats(1.0, 1e3), min_size=len(n), max_size=len(n))))
    a, b = data.draw(st.floats(0.05, 0.95)), data.draw(st.floats(0.05, 0.95))
    p = synexp(n, f, params_budget=a * n.sum(), macs_budget=b * f.sum())
    assert p @ n <= a * n.sum() * (1 + 1e-9)
    assert p @ f <= b * f.sum() * (1 + 1e-9)
    inner = p < 1 - 1e-9
    if inner.sum() > 2:  # 1 / p is a combination of n and f with weights >= 0
        basis = np.stack([n[inner], f[inner]], axis=1) * p[inner, None]
        weights, *_ = np.linalg.lstsq(basis, np.ones(int(inner.sum())), rcond=None)
        np.testing.assert_allclose(basis @ weights, 1, atol=1e-5)


def test_wider_than_before_where_that_is_allowed():
    p = synexp(N, F, macs_budget=F.sum(), p_max=4)
    assert p.max() == 4
    assert p.min() < 1
    assert p @ F == pytest.approx(F.sum(), rel=1e-12)


def test_all_of_it_is_all_of_it():
    np.testing.assert_array_equal(synexp(N, params_budget=N.sum()), np.ones(20))
    np.testing.assert_array_equal(fill(np.ones(3), np.ones(3), 99.0), np.ones(3))


@pytest.mark.parametrize(
    "options",
    [{}, {"params_budget": 0.0}, {"params_budget": -1.0}, {"macs_budget": 5.0}, {"params_budget": float("nan")}],
)
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(InputError):
        synexp([1.0, 2.0], **options)
