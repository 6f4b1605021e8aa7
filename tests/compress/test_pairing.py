"""Which two classifiers make up for each other's mistakes, against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from striate.compress import choose_pair, complementarity
from striate.errors import InputError


def test_counts_made_by_hand():
    y = torch.ones(5, dtype=torch.long)
    first = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 1, 0]])  # only one right: 2 and 2
    second = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 0, 1]])  # 2 and 1
    assert complementarity(first, y)[0, 1] == pytest.approx(4 / 5)
    assert complementarity(first, y, balanced=False)[0, 1] == pytest.approx(4 / 5)
    assert complementarity(second, y)[0, 1] == pytest.approx(0.4)
    assert complementarity(second, y, balanced=False)[0, 1] == pytest.approx(0.6)


@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_it_is_the_formula_of_the_paper(m, n, seed):
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randint(3, (m, n), generator=generator)
    y = torch.randint(3, (n,), generator=generator)
    found = complementarity(predictions, y)
    right = predictions == y
    for a in range(m):
        for b in range(m):
            union, both = int((right[a] | right[b]).sum()), int((right[a] & right[b]).sum())
            want = (union - both - abs(int(right[a].sum()) - int(right[b].sum()))) / n
            assert float(found[a, b]) == pytest.approx(want, abs=1e-12)
    assert torch.equal(found, found.T)
    assert torch.equal(found.diagonal(), torch.zeros(m, dtype=torch.float64))


def test_the_pair_is_the_most_complementary_that_is_cheap_enough():
    matrix = torch.tensor([[0.0, 0.1, 0.3], [0.1, 0.0, 0.2], [0.3, 0.2, 0.0]])
    assert choose_pair(matrix, [5, 2, 9]) == (0, 2)
    assert choose_pair(matrix, [9, 2, 5]) == (2, 0)  # the cheaper one runs first
    assert choose_pair(matrix, [5, 2, 9], limit=8) == (1, 0)
    assert choose_pair(matrix, [5, 5, 5], accuracies=[0.7, 0.6, 0.8]) == (2, 0)


def test_refusals():
    with pytest.raises(InputError, match=r"\(M, N\)"):
        complementarity(torch.zeros(2, 3), torch.zeros(4))
    with pytest.raises(InputError, match="M >= 2"):
        choose_pair(torch.zeros(2, 2), [1, 2, 3])
    with pytest.raises(InputError, match=">= 7, the cost of the cheapest pair"):
        choose_pair(torch.zeros(3, 3), [3, 4, 9], limit=6)
