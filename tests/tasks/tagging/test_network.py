"""The tagger's network: the paper's sizes, and that no sentence depends on its batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.errors import InputError
from striate.tasks.tagging.network import BiLSTMCNNCRF
from striate.tasks.tagging.scheme import bioes_to_spans
from striate.tasks.tagging.vectors import WordVectors
from striate.tasks.tagging.vocabulary import Vocabulary
from striate.testing import left_as_it_came

WORDS = ["The", "cat", "sat", "on", "Matville", "antidisestablishmentarianism", "x"]
VOCABULARY = Vocabulary.build([WORDS[:5]])
BIOES = ["O", *(f"{p}-{t}" for t in ("LOC", "PER") for p in "BIES")]
HEADS = ["first-order", "bigram", "softmax"]


def small(head: str = "first-order", **options) -> BiLSTMCNNCRF:
    torch.manual_seed(0)
    tags = options.pop("tags", BIOES)
    return BiLSTMCNNCRF(VOCABULARY, tags, head=head, word_dim=6, char_dim=4, char_filters=5, hidden=7, **options)  # type: ignore[arg-type]


def test_the_papers_sizes() -> None:
    model = BiLSTMCNNCRF(VOCABULARY, [f"T{i}" for i in range(17)], head="bigram")
    count = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in model.named_children()
    }
    assert model.chars is not None
    assert sum(p.numel() for p in model.chars.conv.parameters()) == 2_730
    assert count["recurrent"] == 529_600
    assert count["head"] == 129_924
    first = BiLSTMCNNCRF(VOCABULARY, [f"T{i}" for i in range(17)])
    assert sum(p.numel() for part in (first.scores, first.head) for p in part.parameters()) == 7_140
    assert model.words.weight[1:].abs().max() <= (3 / 100) ** 0.5
    assert model.words.weight[0].abs().sum() == 0


@pytest.mark.parametrize("head", HEADS)
@given(sentences=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_neither_the_batch_nor_the_order_changes_anything(head: str, sentences: list[list[str]]) -> None:
    model = small(head)
    together, chances = model.predict(sentences), model.predict_proba(sentences)
    for place, sentence in enumerate(sentences):
        assert model.predict([sentence]) == [together[place]]
        torch.testing.assert_close(model.predict_proba([sentence])[0], chances[place], atol=1e-5, rtol=1e-5)
        assert chances[place].shape == (len(sentence), len(BIOES))
        torch.testing.assert_close(chances[place].sum(1), torch.ones(len(sentence)))


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_a_mean_over_sentences_and_does_not_see_padding(head: str) -> None:
    model = small(head).eval()
    sentences, numbers = [WORDS[:4], WORDS[:1]], [[0, 1, 3, 4], [2]]
    alone = [
        model.nll(VOCABULARY.batch([sentence]), torch.tensor([row]))
        for sentence, row in zip(sentences, numbers, strict=True)
    ]
    together = model.nll(VOCABULARY.batch(sentences), torch.tensor([[0, 1, 3, 4], [2, 0, 0, 0]]))
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_the_best_sequences_have_probabilities() -> None:
    model = small()
    (found,) = model.k_best([["cat", "sat"]], 81)
    assert len(found) == 81
    assert found[0][0] == model.predict([["cat", "sat"]])[0]
    assert sum(p for _, p in found) == pytest.approx(1, abs=1e-4)
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    # A tag's marginal is the sum over the sequences that have it.
    chance = model.predict_proba([["cat", "sat"]])[0]
    assert sum(p for tags, p in found if tags[1] == "S-LOC") == pytest.approx(
        chance[1, BIOES.index("S-LOC")].item(), abs=1e-4
    )


@pytest.mark.parametrize("head", ["first-order", "bigram"])
def test_constrained_prediction_is_valid(head: str) -> None:
    model = small(head, constrain=True)
    generator = torch.Generator().manual_seed(0)
    sentences = [[WORDS[i] for i in torch.randint(7, (6,), generator=generator).tolist()] for _ in range(20)]
    for tags in model.predict(sentences):
        bioes_to_spans(tags, strict=True)


def test_an_output_scheme_is_spoken_on_both_sides() -> None:
    model = small(constrain=True, output_scheme="IOB1")
    assert model.number(["I-LOC", "I-LOC", "O"]) == [BIOES.index("B-LOC"), BIOES.index("E-LOC"), 0]
    for tags in model.predict([WORDS[:5]]):
        assert {tag[0] for tag in tags} <= set("OIB")
    with pytest.raises(InputError, match=r"among its 9 tags.*S-ORG"):
        model.number(["I-ORG"])


def test_vectors_fill_the_rows_of_their_words() -> None:
    vectors = WordVectors({"the": 0, "cat": 1, "bird": 2}, torch.arange(12.0).view(3, 4))
    model = BiLSTMCNNCRF(VOCABULARY, ["A"], vectors=vectors, hidden=3)
    assert model.words.weight[VOCABULARY.row("The")].tolist() == [0, 1, 2, 3]  # looked up in lower case
    assert model.words.weight[VOCABULARY.row("sat")].abs().max() <= (3 / 4) ** 0.5
    before = model.words.weight.detach().clone()
    assert model.add_words(["bird", "cat", "cow"], vectors) == 1
    assert model.vocabulary.row("bird") == len(before)
    assert model.words.weight[-1].tolist() == [8, 9, 10, 11]
    assert torch.equal(model.words.weight[:-1], before)
    with pytest.raises(InputError, match="4 numbers a word"):
        model.add_words(["dog"], WordVectors({"dog": 0}, torch.zeros(1, 3)))
    zeros = BiLSTMCNNCRF(Vocabulary.build([["a"]], digits_to_zero=True), ["A"], word_dim=2, hidden=3)
    assert zeros.add_words(["x9", "y9"], WordVectors({"x0": 0, "y9": 1}, torch.eye(2))) == 1  # y0 has none
    assert zeros.words.weight[zeros.vocabulary.row("x7")].tolist() == [1, 0]


@pytest.mark.parametrize("head", ["first-order", "softmax"])
def test_text_and_nan_are_refused(head: str) -> None:
    model = BiLSTMCNNCRF(Vocabulary.build([["a"]]), ["A", "B"], word_dim=2, hidden=3, head=head)  # type: ignore[arg-type]
    for text in ("the cat", ["the cat"]):
        with pytest.raises(InputError, match=r"text\.split"):
            model.predict(text)  # type: ignore[arg-type]
    torch.nn.init.constant_(model.scores.weight, torch.nan)  # type: ignore[arg-type]
    for call in (model.predict, model.predict_proba):
        with pytest.raises(InputError, match="NaN"):
            call([["a"]])


def test_predicting_leaves_the_model_as_it_came() -> None:
    model = small().train()
    with left_as_it_came(model):
        model.predict([WORDS])
        model.predict_proba([WORDS])
    with left_as_it_came(model), pytest.raises(InputError, match="sentence 1 is empty"):
        model.predict([["cat"], []])


def test_dropout_is_drawn_for_each_occurrence_of_a_word() -> None:
    model = small(dropout=0.5).train()
    assert model.chars is not None
    seen = []
    model.chars.register_forward_hook(lambda module, args, output: seen.append(output))
    model(VOCABULARY.batch([["cat", "cat"]]))
    assert not torch.equal(seen[0][0, 0], seen[0][0, 1])
    model.eval()(VOCABULARY.batch([["cat", "cat"]]))
    assert seen[1].shape == (1, 5)  # once


def test_it_runs_under_bfloat16_autocast() -> None:
    for head in HEADS:
        model = small(head).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.nll(VOCABULARY.batch([WORDS[:3]]), torch.tensor([[0, 1, 2]]))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_without_characters_and_with_a_plain_recurrence() -> None:
    model = BiLSTMCNNCRF(VOCABULARY, ["A", "B"], char_filters=0, recurrent="rnn", head="softmax", hidden=4)
    assert model.chars is None
    assert len(model.predict([WORDS])[0]) == len(WORDS)
    with pytest.raises(InputError, match="a CRF"):
        model.k_best([WORDS], 2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tags": []}, "different names"),
        ({"tags": ["A", "A"]}, "different names"),
        ({"head": "crf"}, "first-order, bigram or softmax"),
        ({"head": "softmax", "constrain": True}, "with a CRF"),
        ({"tags": ["NN"], "constrain": True}, "BIOES tags only"),
    ],
)
def test_wrong_options_are_refused(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        small(**options)
