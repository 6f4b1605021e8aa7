"""Chunk tags: reading, spelling, validity."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from striate.errors import InputError
from striate.layers.crf import LinearChainCRF
from striate.tasks.tagging.scheme import (
    Span,
    allowed_transitions,
    bio_to_bioes,
    bioes_to_bio,
    bioes_to_spans,
    chunk_scheme,
    iob1_to_bioes,
    spans_of,
    spans_to_tags,
    split_tag,
)

TAGS = st.lists(st.sampled_from(["O", *(f"{p}-{t}" for p in "BIES" for t in "XY")]), max_size=9)


@st.composite
def spans(draw: st.DrawFn) -> tuple[list[Span], int]:
    found, place = [], 0
    for _ in range(draw(st.integers(0, 5))):
        start = place + draw(st.integers(0, 2))
        place = start + draw(st.integers(1, 3))
        found.append(Span(draw(st.sampled_from("XY")), start, place))
    return found, place + draw(st.integers(0, 2))


@pytest.mark.parametrize("scheme", ["IOB1", "BIO", "BIOES"])
@given(made=spans())
def test_spelled_spans_are_read_again(scheme: str, made: tuple[list[Span], int]) -> None:
    tags = spans_to_tags(*made, scheme)  # type: ignore[arg-type]
    assert spans_of(tags) == made[0]
    assert spans_of(iob1_to_bioes(tags)) == spans_of(bio_to_bioes(tags)) == made[0]
    assert bioes_to_spans(iob1_to_bioes(tags), strict=True) == made[0]
    if made[0]:
        # Each scheme is told from its tags where it shows: touching spans of a type, spans of one token.
        assert chunk_scheme([tags]) in {scheme, "BIO"}


def test_iob1_is_not_bio() -> None:
    # B stands only between touching entities of one type; read as strict BIO the first two words would be invalid.
    tags = ["I-ORG", "O", "I-PER", "I-PER", "B-PER", "I-LOC"]
    assert iob1_to_bioes(tags) == ["S-ORG", "O", "B-PER", "E-PER", "S-PER", "S-LOC"]
    assert chunk_scheme([tags]) == "IOB1"
    assert bioes_to_bio(iob1_to_bioes(tags)) == ["B-ORG", "O", "B-PER", "I-PER", "B-PER", "B-LOC"]
    assert spans_to_tags(spans_of(tags), 6, "IOB1") == tags


@given(tags=TAGS)
def test_any_sequence_has_a_reading_and_strict_reading_refuses_what_the_constraints_forbid(tags: list[str]) -> None:
    found = spans_of(tags)
    assert all(first.end <= second.start for first, second in itertools.pairwise(found))
    names = ["O", *(f"{p}-{t}" for p in "BIES" for t in "XY")]
    follow, start, end = allowed_transitions(names)
    numbers = [names.index(tag) for tag in tags]
    valid = all(follow[a, b] for a, b in itertools.pairwise(numbers))
    valid = valid and (not tags or bool(start[numbers[0]] and end[numbers[-1]]))
    if valid:
        assert spans_to_tags(bioes_to_spans(tags, strict=True), len(tags)) == tags
    else:
        with pytest.raises(InputError, match="valid BIOES"):
            bioes_to_spans(tags, strict=True)


def test_the_place_of_a_violation_is_named() -> None:
    with pytest.raises(InputError, match="'O E-X' at token 0"):
        bioes_to_spans(["O", "E-X"], strict=True)
    with pytest.raises(InputError, match=r"'B-X \(end\)' at token 1"):
        bioes_to_spans(["O", "B-X"], strict=True)
    with pytest.raises(InputError, match=r"'\(start\) I-X' at token 0"):
        bioes_to_spans(["I-X"], strict=True)


@pytest.mark.parametrize(("scheme", "good", "bad"), [("BIO", "B-X I-X B-X", "O I-X"), ("IOB1", "I-X I-X B-X", "O B-X")])
def test_other_schemes_have_their_transitions(scheme: str, good: str, bad: str) -> None:
    names = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    follow, start, _ = allowed_transitions(names, scheme)  # type: ignore[arg-type]
    for text, expected in ((good, True), (bad, False)):
        numbers = [names.index(tag) for tag in text.split()]
        assert (bool(start[numbers[0]]) and all(follow[a, b] for a, b in itertools.pairwise(numbers))) is expected


def test_a_constrained_crf_decodes_valid_bioes() -> None:
    names = ["O", *(f"{p}-{t}" for p in "BIES" for t in "XY")]
    crf = LinearChainCRF(len(names)).constrain(*allowed_transitions(names))
    scores = 5 * torch.randn(50, 7, len(names), generator=torch.Generator().manual_seed(0))
    for row in crf.decode(scores):
        bioes_to_spans([names[number] for number in row], strict=True)


def test_schemes_are_told_apart() -> None:
    assert chunk_scheme([["NN", "VB"]]) is None
    assert chunk_scheme([["O", "O"]]) is None
    assert chunk_scheme([["O", "S-X"]]) == "BIOES"
    assert chunk_scheme([["B-X", "L-X"], ["U-Y"]]) == "BIOES"
    assert chunk_scheme([["O", "B-X"], ["B-Y", "I-Y"]]) == "BIO"
    assert chunk_scheme([["B-X", "I-Y"]]) == "IOB1"


def test_other_tags_and_overlaps_are_refused() -> None:
    assert split_tag("M-X-Y") == ("I", "X-Y")
    for tag in ("NN", "", "BX", "o"):
        with pytest.raises(InputError, match="O, or B-"):
            split_tag(tag)
    for wrong in ([Span("X", 0, 2), Span("Y", 1, 3)], [Span("X", 2, 4)], [Span("X", 1, 1)]):
        with pytest.raises(InputError, match="apart from one another"):
            spans_to_tags(wrong, 3)
