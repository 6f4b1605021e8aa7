from __future__ import annotations

from collections import Counter

import pytest

from striate.data.named_entities import named_entities
from striate.errors import InputError
from striate.tasks.tagging.scheme import bioes_to_spans


@pytest.mark.parametrize(("part", "size"), [("train", 600), ("dev", 200), ("test", 300), ("unlabelled", 5_000)])
def test_parts_have_their_sizes_and_shares(part: str, size: int) -> None:
    made = named_entities(part)  # type: ignore[arg-type]
    assert len(made.sentences) == len(made.kinds) == size
    kinds = Counter(kind for row in made.kinds for kind in row)
    n = sum(kinds.values())
    spread = 3 * (0.3 * 0.7 / n) ** 0.5
    assert abs(kinds["ambiguous"] / n - 0.15) < spread + 0.01
    assert abs(kinds["new"] / n - (0 if part == "train" else 0.30)) < spread + 0.01


def test_tags_are_valid_and_kinds_belong_to_the_spans() -> None:
    made = named_entities("test")
    lengths = set()
    for sentence, kinds in zip(made.sentences, made.kinds, strict=True):
        spans = bioes_to_spans(sentence.tags or (), strict=True)
        assert len(spans) == len(kinds)
        for span, kind in zip(spans, kinds, strict=True):
            assert (kind == "plain") == (span.type in {"MEAS", "DATE"})
            assert kind != "ambiguous" or span.end - span.start == 1
            lengths.add((span.type, span.end - span.start))
    assert {("ORG", 2), ("ORG", 4), ("PER", 1), ("PER", 2), ("LOC", 2), ("MEAS", 2), ("DATE", 3)} <= lengths


def test_new_names_have_stems_that_training_lacks() -> None:
    train = named_entities("train")
    seen = {word for sentence in train.sentences for word in sentence.tokens}
    test = named_entities("test")
    for sentence, kinds in zip(test.sentences, test.kinds, strict=True):
        for span, kind in zip(bioes_to_spans(sentence.tags or ()), kinds, strict=True):
            if kind == "new":
                assert not set(sentence.tokens[span.start : span.end]) <= seen


def test_a_seed_fixes_the_sentences() -> None:
    assert named_entities("dev") == named_entities("dev")
    assert named_entities("dev", seed=1).sentences != named_entities("dev").sentences
    assert named_entities("test", 5).sentences == named_entities("test").sentences[:5]
    assert named_entities("test", 0).sentences == ()
    with pytest.raises(InputError, match="unlabelled"):
        named_entities("validation")  # type: ignore[arg-type]
