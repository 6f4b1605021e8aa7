"""Span F1 by the rules of conlleval: worked cases, and seqeval's numbers."""

from __future__ import annotations

import random
import warnings

import pytest

from striate.errors import InputError
from striate.tasks.tagging.metrics import Counts, accuracy, by_vocabulary, span_f1, span_report

PREFIXES = {"IOB1": "OIB", "BIO": "OOBI", "BIOES": "OOBIES"}


def random_tags(chance: random.Random, prefixes: str, n: int) -> list[str]:
    return [p if p == "O" else f"{p}-{chance.choice('XYZ')}" for p in chance.choices(prefixes, k=n)]


def test_a_worked_example() -> None:
    gold = [["B-PER", "E-PER", "O", "S-LOC"], ["S-ORG", "O"]]
    guess = [["B-PER", "E-PER", "O", "S-PER"], ["B-ORG", "E-ORG"]]
    report = span_report(gold, guess)
    assert report.total == Counts(gold=3, predicted=3, correct=1)
    assert (report.tokens, report.right) == (6, 3)
    assert report.types == {"LOC": Counts(1, 0, 0), "ORG": Counts(1, 1, 0), "PER": Counts(1, 2, 1)}
    assert span_f1(gold, guess) == pytest.approx(1 / 3)
    assert str(report).splitlines() == [
        "processed 6 tokens with 3 phrases; found: 3 phrases; correct: 1.",
        "accuracy:  50.00%; precision:  33.33%; recall:  33.33%; FB1:  33.33",
        "              LOC: precision:   0.00%; recall:   0.00%; FB1:   0.00  0",
        "              ORG: precision:   0.00%; recall:   0.00%; FB1:   0.00  1",
        "              PER: precision:  50.00%; recall: 100.00%; FB1:  66.67  2",
    ]
    assert report.to_dict()["spans"] == {
        "gold": 3, "predicted": 3, "correct": 1,
        "precision": pytest.approx(1 / 3), "recall": pytest.approx(1 / 3), "f1": pytest.approx(1 / 3),
    }  # fmt: skip


@pytest.mark.parametrize("scheme", sorted(PREFIXES))
def test_equal_to_seqeval_on_valid_and_invalid_sequences(scheme: str) -> None:
    labeling = pytest.importorskip("seqeval.metrics.sequence_labeling", exc_type=ImportError)
    chance = random.Random(scheme)
    for _ in range(20):
        gold = [random_tags(chance, PREFIXES[scheme], chance.randint(1, 12)) for _ in range(10)]
        guess = [
            [tag if chance.random() < 0.7 else random_tags(chance, PREFIXES[scheme], 1)[0] for tag in row]
            for row in gold
        ]
        report = span_report(gold, guess)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            micro = labeling.precision_recall_fscore_support(gold, guess, average="micro")
            each = labeling.precision_recall_fscore_support(gold, guess, average=None)
            assert report.accuracy == pytest.approx(labeling.accuracy_score(gold, guess))
        assert (report.total.precision, report.total.recall, report.f1) == pytest.approx(micro[:3])
        for place, counts in enumerate(report.types.values()):
            assert counts.f1 == pytest.approx(each[2][place])
            assert counts.gold == each[3][place]


def test_spans_do_not_cross_sentences() -> None:
    assert span_report([["B-X"], ["I-X"]], [["B-X"], ["I-X"]]).total == Counts(2, 2, 2)


def test_nothing_at_all_is_zero() -> None:
    assert span_report([], []).f1 == 0
    empty = span_report([["O"]], [["O"]])
    assert (empty.f1, empty.accuracy, empty.types) == (0, 1, {})
    assert accuracy([], []) == 0


def test_mixed_schemes_are_compared_by_spans() -> None:
    assert span_f1([["I-X", "I-X", "B-X"]], [["B-X", "E-X", "S-X"]]) == 1


def test_accuracy_counts_tokens_not_sentences() -> None:
    assert accuracy([["N", "V", "N"], ["N"]], [["N", "V", "V"], ["V"]]) == 0.5


def test_unknown_words_are_told_apart() -> None:
    tokens = [["The", "Bank", "Zork", "Quux", "new"]]
    found = by_vocabulary(
        tokens,
        [["D", "N", "N", "N", "A"]],
        [["D", "N", "V", "N", "N"]],
        train={"The", "Bank"},
        vectors={"the", "Zork", "new"},
        spans=False,
    )
    assert found == {"IV": Counts(1, 1, 1), "OOEV": Counts(1, 1, 1), "OOTV": Counts(2, 2, 0), "OOBV": Counts(1, 1, 1)}
    spans = by_vocabulary(
        tokens,
        [["O", "B-X", "E-X", "S-X", "O"]],
        [["O", "B-X", "E-X", "O", "S-Y"]],
        train={"The", "Bank"},
        vectors={"the", "Zork", "new"},
        spans=True,
    )
    # "Bank Zork" has a word without a vector and another that training lacks.
    assert spans == {"IV": Counts(0, 0, 0), "OOTV": Counts(0, 1, 0), "OOEV": Counts(0, 0, 0), "OOBV": Counts(2, 1, 1)}


def test_lengths_must_agree() -> None:
    for call in (span_report, accuracy):
        with pytest.raises(InputError, match="a tag for each gold tag"):
            call([["O", "O"]], [["O"]])
    with pytest.raises(InputError, match="O, or B-"):
        span_report([["NN"]], [["NN"]])
