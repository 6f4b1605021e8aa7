from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.errors import InputError
from striate.layers.char_cnn import CharCNN


def test_parameters_are_the_papers() -> None:
    cnn = CharCNN(85)
    assert sum(parameter.numel() for parameter in cnn.conv.parameters()) == 2_730
    assert cnn.embedding.weight[1:].abs().max() <= (3 / 30) ** 0.5
    assert cnn.embedding.weight[0].abs().sum() == 0


@given(letters=st.lists(st.integers(1, 9), min_size=1, max_size=8), longer=st.integers(0, 20), width=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_word_is_what_the_authors_padding_gives(letters: list[int], longer: int, width: int) -> None:
    """They fill up to the longest word of the corpus with word-end symbols, convolve with full padding, take all."""
    torch.manual_seed(0)
    cnn = CharCNN(10, dim=4, filters=6, width=width).eval()
    filled = torch.tensor([letters + [cnn.end] * (width + longer)])
    expected = torch.tanh(cnn.conv(cnn.embedding(filled).transpose(1, 2))).amax(dim=2)
    torch.testing.assert_close(cnn(torch.tensor([letters])), expected)
    torch.testing.assert_close(cnn(F.pad(torch.tensor([letters]), (0, longer))), expected)


def test_no_word_depends_on_another() -> None:
    cnn = CharCNN(10).eval()
    chars = torch.tensor([[[1, 0, 0, 0], [2, 3, 4, 5]], [[6, 7, 0, 0], [0, 0, 0, 0]]])
    found = cnn(chars)
    assert found.shape == (2, 2, 30)
    torch.testing.assert_close(cnn(torch.tensor([1])), found[0, 0])
    torch.testing.assert_close(cnn(torch.tensor([[6, 7]]))[0], found[1, 0])
    assert found[1, 1].abs().sum() == 0  # no word at all


def test_dropout_is_on_single_elements_of_the_embedding() -> None:
    cnn = CharCNN(10, dropout=0.5).train()
    chars = torch.tensor([[1, 2, 3]]).expand(4, 3)
    assert not torch.equal(cnn(chars)[0], cnn(chars)[1])
    assert torch.equal(cnn.eval()(chars)[0], cnn(chars)[1])


def test_everything_but_the_padding_learns() -> None:
    cnn = CharCNN(5).train()
    cnn(torch.tensor([[1, 2, 3, 4], [4, 1, 0, 0]])).sum().backward()
    gradient = cnn.embedding.weight.grad
    assert gradient is not None
    assert gradient[0].abs().sum() == 0
    assert (gradient[1:].abs().sum(1) > 0).all()  # the word-end symbol too
    assert cnn(torch.zeros(0, 4, dtype=torch.long)).shape == (0, 30)


@pytest.mark.parametrize(("arguments", "name"), [((1,), "num_chars"), ((5, 0), "dim"), ((5, 3, 0), "filters")])
def test_sizes_are_checked(arguments: tuple[int, ...], name: str) -> None:
    with pytest.raises(InputError, match=name):
        CharCNN(*arguments)
