from __future__ import annotations

import pytest

from striate.errors import InputError
from striate.tasks.tagging.vocabulary import LONGEST_WORD, Vocabulary


def test_rows_go_by_case_and_fall_back_to_lower_case_then_to_the_unknown() -> None:
    found = Vocabulary.build([["The", "the", "cat"]], ["dog"])
    assert found.words == ("The", "cat", "dog", "the")
    assert [found.row(word) for word in ("The", "the", "CAT", "THE", "bird")] == [2, 5, 3, 5, 1]
    assert found.num_words == 6
    assert set(found.chars) == set("Thecatdog")


def test_digits_are_looked_up_as_zeros_only_where_asked_for() -> None:
    plain = Vocabulary.build([["1999", "x2"]])
    zeros = Vocabulary.build([["1999", "2001", "x2"]], digits_to_zero=True)
    assert plain.row("2003") == 1
    assert zeros.words == ("0000", "x0")
    assert zeros.row("2003") == zeros.row("1999") == 2
    assert set(zeros.chars) == set("19201x")  # characters are read as they are


def test_a_batch_holds_each_word_once() -> None:
    vocabulary = Vocabulary.build([["a", "bc"]])
    batch = vocabulary.batch([["a", "bc", "a"], ["zz"]])
    assert batch.words.tolist() == [[2, 3, 2], [1, 0, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.chars.tolist() == [[2, 0], [3, 4], [1, 1]]  # z is no known character
    assert batch.chars[batch.spelling[0]].tolist() == [[2, 0], [3, 4], [2, 0]]


def test_long_words_are_cut() -> None:
    vocabulary = Vocabulary.build([["a" * 99]])
    assert vocabulary.spell(["a" * 99, "a"]).shape == (2, LONGEST_WORD)


def test_empty_sentences_and_doubles_are_refused() -> None:
    vocabulary = Vocabulary.build([["a"]])
    with pytest.raises(InputError, match="sentence 1 is empty"):
        vocabulary.batch([["a"], []])
    with pytest.raises(InputError, match="none"):
        vocabulary.batch([])
    with pytest.raises(InputError, match="all different"):
        Vocabulary(("a", "a"), ())
