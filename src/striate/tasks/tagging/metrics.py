"""How good predicted tags are: spans by the rules of conlleval, token accuracy, and both by unknown words.

A span counts as right only if type and both ends match. Counted over all sentences together (micro), as the CoNLL
shared tasks do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from striate.errors import InputError
from striate.tasks.tagging.scheme import spans_of, split_tag

__all__ = ["OOV_KINDS", "Counts", "SpanReport", "accuracy", "by_vocabulary", "span_f1", "span_report"]

OOV_KINDS = ("IV", "OOTV", "OOEV", "OOBV")

_PREFIXES = {"O": 0, "B": 1, "I": 2, "E": 3, "S": 4}


@dataclass(frozen=True)
class Counts:
    """Spans of one kind.

    Attributes:
        gold, predicted: how many there are.
        correct: how many are in both.
    """

    gold: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float:
        """In [0, 1]; 0 where nothing was predicted."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """In [0, 1]; 0 where there is nothing to find."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]."""
        return 2 * self.correct / (self.gold + self.predicted) if self.correct else 0.0


@dataclass(frozen=True)
class SpanReport:
    """What conlleval prints.

    Attributes:
        tokens: how many.
        right: tokens whose tag is right.
        total: all spans.
        types: spans by type, in alphabetical order.
    """

    tokens: int
    right: int
    total: Counts
    types: dict[str, Counts]

    @property
    def f1(self) -> float:
        """Micro F1, in [0, 1]."""
        return self.total.f1

    @property
    def accuracy(self) -> float:
        """Share of tokens whose tag is right."""
        return self.right / self.tokens if self.tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""

        def shown(counts: Counts) -> dict[str, Any]:
            return {**vars(counts), "precision": counts.precision, "recall": counts.recall, "f1": counts.f1}

        return {
            "tokens": self.tokens,
            "accuracy": self.accuracy,
            "spans": shown(self.total),
            "types": {name: shown(counts) for name, counts in self.types.items()},
        }

    def __str__(self) -> str:
        def line(counts: Counts) -> str:
            p, r, f = (100 * value for value in (counts.precision, counts.recall, counts.f1))
            return f"precision: {p:6.2f}%; recall: {r:6.2f}%; FB1: {f:6.2f}"

        total = self.total
        lines = [
            f"processed {self.tokens} tokens with {total.gold} phrases; found: {total.predicted} phrases; "
            f"correct: {total.correct}.",
            f"accuracy: {100 * self.accuracy:6.2f}%; {line(total)}",
        ]
        lines += [f"{name:>17}: {line(counts)}  {counts.predicted}" for name, counts in self.types.items()]
        return "\n".join(lines)


def span_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return micro F1 over spans, in [0, 1].

    >>> span_f1([["B-PER", "E-PER", "O"]], [["B-PER", "E-PER", "S-LOC"]])
    0.6666666666666666
    """
    return span_report(gold, predicted).f1


def span_report(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> SpanReport:
    """Count spans and tokens as conlleval does; any mixture of IOB1, BIO, BIOES and BILOU.

    Args:
        gold, predicted: tags of each sentence.

    Raises:
        InputError: sentences of other lengths, or a tag of no chunk scheme.
    """
    _check_lengths(gold, predicted, "span_report")
    flat = [[tag for tags in side for tag in (*tags, "O")] for side in (gold, predicted)]  # O: no span crosses over
    tokens = len(flat[0]) - len(gold)
    right = int((np.array(flat[0], dtype=object) == np.array(flat[1], dtype=object)).sum()) - len(gold) if tokens else 0
    names: dict[str, int] = {}
    (starts, ends, kinds), guessed = (_spans(tags, names) for tags in flat)
    _, mine, theirs = np.intersect1d(starts, guessed[0], assume_unique=True, return_indices=True)
    same = (ends[mine] == guessed[1][theirs]) & (kinds[mine] == guessed[2][theirs])
    columns = [np.bincount(found, minlength=len(names)) for found in (kinds, guessed[2], kinds[mine][same])]
    types = {name: Counts(*(int(column[code]) for column in columns)) for name, code in sorted(names.items())}
    types = {name: counts for name, counts in types.items() if counts.gold or counts.predicted}
    return SpanReport(tokens, right, Counts(*(int(column.sum()) for column in columns)), types)


def accuracy(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return the share of tokens whose tag is right, over all sentences together."""
    _check_lengths(gold, predicted, "accuracy")
    pairs = [(a, b) for first, second in zip(gold, predicted, strict=True) for a, b in zip(first, second, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 0.0


def by_vocabulary(
    tokens: Sequence[Sequence[str]],
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    train: Collection[str],
    vectors: Collection[str],
    spans: bool,
) -> dict[str, Counts]:
    """Split the counts by whether words are known (Ma, Hovy 2016, section 4.5).

    ``IV``: known to the training text and to the vectors; ``OOTV``: not in the training text; ``OOEV``: without a
    vector; ``OOBV``: neither. A span is out of a vocabulary if any of its words is.

    Args:
        tokens, gold, predicted: words and tags of each sentence.
        train: words of the training text, cased.
        vectors: words that have a vector; looked up as they are and in lower case.
        spans: count spans; else tokens, of which there are as many predicted as gold.
    """
    _check_lengths(gold, predicted, "by_vocabulary")

    def kind(words: Sequence[str]) -> str:
        unseen = any(word not in train for word in words)
        bare = any(word not in vectors and word.lower() not in vectors for word in words)
        return "OOBV" if unseen and bare else "OOTV" if unseen else "OOEV" if bare else "IV"

    found = {name: [0, 0, 0] for name in OOV_KINDS}
    for words, true, guess in zip(tokens, gold, predicted, strict=True):
        if spans:
            sides = set(spans_of(true)), set(spans_of(guess))
            for column, items in enumerate((*sides, sides[0] & sides[1])):
                for span in items:
                    found[kind(words[span.start : span.end])][column] += 1
        else:
            for word, a, b in zip(words, true, guess, strict=True):
                row = found[kind([word])]
                row[0], row[1], row[2] = row[0] + 1, row[1] + 1, row[2] + int(a == b)
    return {name: Counts(*row) for name, row in found.items()}


def _spans(tags: list[str], names: dict[str, int]) -> tuple[NDArray[np.int64], ...]:
    """Return start, end and type of each span, as :func:`spans_of` finds them; types are numbered in ``names``."""

    @cache
    def code(tag: str) -> tuple[int, int]:
        prefix, type_ = split_tag(tag)
        return _PREFIXES[prefix], -1 if prefix == "O" else names.setdefault(type_, len(names))

    prefix, type_ = np.array([code(tag) for tag in tags] or [(0, -1)], dtype=np.int64).T
    before_prefix, before_type = np.roll(prefix, 1), np.roll(type_, 1)  # the last is always an O
    breaks = np.isin(prefix, (0, 1, 4)) | np.isin(before_prefix, (0, 3, 4)) | (type_ != before_type)
    starts = np.flatnonzero(breaks & (prefix != 0))
    return starts, np.flatnonzero(breaks & (before_prefix != 0)), type_[starts]


def _check_lengths(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], owner: str) -> None:
    lengths = [[len(tags) for tags in side] for side in (gold, predicted)]
    if lengths[0] != lengths[1]:
        raise InputError("predicted", owner, allowed="a tag for each gold tag", got="sentences of other lengths")
