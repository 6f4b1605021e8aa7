"""Confidence against closed forms, and the sorted threshold search against one pass per threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from striate.compress import confidence, search_threshold
from striate.errors import InputError

KINDS = ("maxp", "difference", "entropy")


def test_closed_forms():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    p = [math.exp(-k) / sum(math.exp(-j) for j in range(4)) for k in range(4)]
    entropy = -sum(q * math.log(q) for q in p)
    assert (p[0], entropy) == pytest.approx((0.6439142599, 0.9475369640), abs=1e-9)
    want = {"maxp": p[0], "difference": p[0] - p[1], "entropy": 1 - entropy / math.log(4)}
    for kind, value in want.items():
        assert float(confidence(logits, kind)) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_certainty_is_one_and_a_uniform_guess_is_lowest(kind):
    found = confidence(torch.tensor([[500.0, 0.0, -500.0], [1.0, 1.0, 1.0]]), kind)
    assert found.tolist() == pytest.approx([1.0, 1 / 3 if kind == "maxp" else 0.0], abs=1e-6)
    assert confidence(torch.zeros(0, 3), kind).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits_are_widened(kind):
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = confidence(logits, kind)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, confidence(logits.double(), kind).float())


def slow_search(a, b, y, kind, postcheck, thresholds):
    """Accuracy and usage, one pass over the images for every threshold."""
    score_a, score_b = confidence(a, kind).double(), confidence(b, kind).double()
    rows = []
    for threshold in thresholds:
        asked = score_a < threshold
        take_b = asked & (score_b > score_a) if postcheck else asked
        answer = torch.where(take_b, b.argmax(1), a.argmax(1))
        rows.append((float((answer == y).double().mean()), float(asked.double().mean())))
    return np.array(rows).T


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(1, 60), st.integers(2, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_sorted_search_is_the_slow_one(kind, n, classes, postcheck, seed):
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers, so that confidences tie with one another.
    a, b = (torch.randint(-2, 3, (n, classes), generator=generator).float() for _ in range(2))
    y = torch.randint(classes, (n,), generator=generator)
    found = search_threshold(a, b, y, kind, postcheck=postcheck, grid=101)
    accuracy, usage = slow_search(a, b, y, kind, postcheck, found.thresholds)
    np.testing.assert_allclose(found.accuracy, accuracy, atol=1e-12)
    np.testing.assert_allclose(found.usage, usage, atol=1e-12)
    assert found.at(found.best) == (found.accuracy.max(), found.usage[found.accuracy.argmax()])
    assert (found.accuracy <= found.union + 1e-12).all()
    assert (np.diff(found.usage) >= 0).all()


def test_the_ends_of_the_range():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(200, 5, generator=generator), torch.randn(200, 5, generator=generator)
    y = torch.randint(5, (200,), generator=generator)
    found = search_threshold(a, b, y, "maxp")
    assert found.at(0.0) == (float((a.argmax(1) == y).double().mean()), 0.0)
    surer = torch.where(confidence(b, "maxp") > confidence(a, "maxp"), b.argmax(1), a.argmax(1))
    assert found.at(1.0) == (pytest.approx(float((surer == y).double().mean())), 1.0)


def test_a_second_that_helps_is_asked_and_one_that_does_not_is_not():
    y = torch.tensor([0, 1] * 50)
    sure = torch.nn.functional.one_hot(y, 2) * 8.0
    lost = torch.tensor([[0.1, 0.0]]).expand(100, 2)  # right on half of the images, and never sure
    helps = search_threshold(lost, sure, y)
    assert helps.at(helps.best) == (1.0, 1.0)
    idle = search_threshold(sure, lost, y)
    assert idle.best == 0.0
    assert idle.to_dict()["usage"] == 0.0


def test_refusals():
    with pytest.raises(InputError, match="one of maxp, difference, entropy"):
        confidence(torch.zeros(1, 2), "sureness")
    with pytest.raises(InputError, match="at least two classes"):
        confidence(torch.zeros(3, 1))
    with pytest.raises(InputError, match="know the same classes"):
        search_threshold(torch.zeros(3, 2), torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(InputError, match=">= 2"):
        search_threshold(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3), grid=1)
