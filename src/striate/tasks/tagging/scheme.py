"""Chunk tags: how B, I, E, S and O spell spans, and which sequences of them are valid.

Ramshaw, Marcus 1995 (IOB1); the CoNLL-2003 shared task is IOB1, most later files are IOB2 ("BIO"), and Ma, Hovy 2016
train on BIOES. L and U (BILOU) and M (BMES) are read as E, S and I.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from striate.errors import InputError

__all__ = [
    "Scheme",
    "Span",
    "allowed_transitions",
    "bio_to_bioes",
    "bioes_to_bio",
    "bioes_to_spans",
    "chunk_scheme",
    "iob1_to_bioes",
    "spans_of",
    "spans_to_tags",
    "split_tag",
]

Scheme = Literal["IOB1", "BIO", "BIOES"]

_SAME = {"L": "E", "U": "S", "M": "I"}


class Span(NamedTuple):
    """Tokens ``start`` to ``end`` (exclusive) of one type."""

    type: str
    start: int
    end: int


def split_tag(tag: str) -> tuple[str, str]:
    """Return prefix (B, I, E, S or O) and type of a chunk tag.

    Raises:
        InputError: it is none.

    >>> split_tag("U-LOC"), split_tag("O")
    (('S', 'LOC'), ('O', ''))
    """
    prefix, _, type_ = tag.partition("-")
    prefix = _SAME.get(prefix, prefix)
    if prefix not in set("BIES") and tag != "O":
        raise InputError("tag", "a chunk scheme", allowed="O, or B-, I-, E- or S- and a type", got=tag)
    return prefix, type_


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Return the spans of any scheme, by the rules of conlleval: each sequence has a reading, also an invalid one.

    A span starts at B and S, at an I or E that follows O, E or S, and where the type changes; it ends accordingly.

    >>> spans_of(["I-PER", "I-PER", "B-PER", "O"])
    [Span(type='PER', start=0, end=2), Span(type='PER', start=2, end=3)]
    """
    found: list[Span] = []
    start, before = 0, ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        prefix, type_ = split_tag(tag)
        breaks = prefix in {"B", "S", "O"} or before[0] in {"E", "S", "O"} or type_ != before[1]
        if breaks and before[0] != "O":
            found.append(Span(before[1], start, place))
        if breaks:
            start = place
        before = prefix, type_
    return found


def spans_to_tags(spans: Iterable[Span], length: int, scheme: Scheme = "BIOES") -> list[str]:
    """Spell spans as tags.

    Raises:
        InputError: two spans overlap, or one lies outside.
    """
    tags = ["O"] * length
    before = Span("", -1, -1)
    for span in sorted(spans, key=lambda item: item.start):
        if not 0 <= span.start < span.end <= length or span.start < before.end:
            raise InputError("spans", "spans_to_tags", allowed=f"apart from one another in 0 to {length}", got=span)
        n = span.end - span.start
        if scheme == "BIOES":
            marks = "S" if n == 1 else "B" + "I" * (n - 2) + "E"
        else:
            touching = before.end == span.start and before.type == span.type
            marks = ("I" if scheme == "IOB1" and not touching else "B") + "I" * (n - 1)
        tags[span.start : span.end] = [f"{mark}-{span.type}" for mark in marks]
        before = span
    return tags


def iob1_to_bioes(tags: Sequence[str]) -> list[str]:
    """Spell IOB1 as BIOES.

    >>> iob1_to_bioes(["I-PER", "I-PER", "B-PER", "O"])
    ['B-PER', 'E-PER', 'S-PER', 'O']
    """
    return spans_to_tags(spans_of(tags), len(tags))


def bio_to_bioes(tags: Sequence[str]) -> list[str]:
    """Spell BIO as BIOES.

    >>> bio_to_bioes(["B-PER", "I-PER", "B-PER", "O"])
    ['B-PER', 'E-PER', 'S-PER', 'O']
    """
    return spans_to_tags(spans_of(tags), len(tags))


def bioes_to_bio(tags: Sequence[str]) -> list[str]:
    """Spell BIOES as BIO."""
    return spans_to_tags(spans_of(tags), len(tags), "BIO")


def bioes_to_spans(tags: Sequence[str], *, strict: bool = False) -> list[Span]:
    """Return the spans of BIOES tags.

    Args:
        tags: one a token.
        strict: refuse sequences that the scheme does not allow, instead of reading them by conlleval's rules.

    Raises:
        InputError: ``strict``, and the tags are not valid; the place is named.
    """
    if strict:
        parts = [("O", ""), *(split_tag(tag) for tag in tags), ("O", "")]
        for place, (before, after) in enumerate(pairwise(parts)):
            if not _may_follow(before, after, "BIOES"):
                got = f"'{' '.join(['(start)', *tags, '(end)'][place : place + 2])}' at token {max(0, place - 1)}"
                raise InputError("tags", "bioes_to_spans(strict=True)", allowed="valid BIOES", got=got)
    return spans_of(tags)


def chunk_scheme(sentences: Iterable[Sequence[str]]) -> Scheme | None:
    """Return the scheme that all tags keep to, the strictest first; None where they are no chunk tags.

    Tags without any E or S are BIO where each span starts with B, else IOB1. Text with O alone tells nothing: None.
    """
    sentences = [tuple(tags) for tags in sentences]
    try:
        parts = [[split_tag(tag) for tag in tags] for tags in sentences]
    except InputError:
        return None
    prefixes = {prefix for row in parts for prefix, _ in row}
    if not prefixes & set("BIES"):
        return None
    if prefixes & set("ES"):
        return "BIOES"
    padded = [[("O", ""), *row] for row in parts]
    valid = all(_may_follow(a, b, "BIO") for row in padded for a, b in pairwise(row))
    return "BIO" if valid else "IOB1"


def allowed_transitions(tags: Sequence[str], scheme: Scheme = "BIOES") -> tuple[Tensor, Tensor, Tensor]:
    """Return what :meth:`striate.layers.crf.LinearChainCRF.constrain` takes.

    Boolean: which tag may follow which, (K, K), which may start and which may end, (K,).

    >>> follow, start, end = allowed_transitions(["O", "B-X", "E-X", "S-X"])
    >>> follow.int().tolist(), start.tolist(), end.tolist()
    ([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1], [1, 1, 0, 1]], [True, True, False, True], [True, False, True, True])
    """
    parts = [split_tag(tag) for tag in tags]
    follow = [[_may_follow(before, after, scheme) for after in parts] for before in parts]
    start = [_may_follow(("O", ""), part, scheme) for part in parts]
    end = [_may_follow(part, ("O", ""), scheme) for part in parts]
    return torch.tensor(follow), torch.tensor(start), torch.tensor(end)


def _may_follow(before: tuple[str, str], after: tuple[str, str], scheme: Scheme) -> bool:
    same = before[1] == after[1]
    if scheme == "BIOES":
        if before[0] in {"B", "I"}:
            return after[0] in {"I", "E"} and same
        return after[0] in {"B", "S", "O"}
    if after[0] in {"E", "S"} or before[0] in {"E", "S"}:
        return False
    if scheme == "BIO":
        return after[0] != "I" or (before[0] in {"B", "I"} and same)
    return after[0] != "B" or (before[0] in {"B", "I"} and same)
