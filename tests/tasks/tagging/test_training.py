"""Training: it learns, it stops, it continues, and what it keeps is the best on held-out text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from striate.data.named_entities import named_entities
from striate.data.tagged import TaggedSentence
from striate.engine import train as engine
from striate.errors import InputError, ModelError, RunError, SkippedWarning, WeightsError
from striate.tasks.tagging.files import load_tagger, save_tagger
from striate.tasks.tagging.network import BiLSTMCNNCRF
from striate.tasks.tagging.scheme import bioes_to_bio
from striate.tasks.tagging.training import LONGEST_SENTENCE, fit_tagger, paper_recipe, score, train_tagger
from striate.tasks.tagging.vocabulary import Vocabulary

SMALL = {"hidden": 16, "word_dim": 12, "char_filters": 6}
RECIPE = paper_recipe(0.05, epochs=3)
TRAIN, DEV = named_entities("train", 60).sentences, named_entities("dev", 20).sentences


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_papers_recipe() -> None:
    recipe = paper_recipe()
    assert (recipe.batch_size, recipe.momentum, recipe.clip, recipe.optimizer) == (10, 0.9, 5.0, "sgd")
    # By finished epochs, not by steps.
    assert [recipe.lr_at(step, 100) for step in (0, 99, 100, 250)] == pytest.approx(
        [0.015, 0.015, 0.015 / 1.05, 0.015 / 1.1]
    )


@pytest.mark.parametrize("head", ["first-order", "bigram", "softmax"])
def test_it_learns_a_rule(head: str) -> None:
    words = [f"w{i}" for i in range(20)]
    generator = torch.Generator().manual_seed(0)
    text = []
    for _ in range(60):
        tokens = [words[i] for i in torch.randint(20, (5,), generator=generator).tolist()]
        text.append(TaggedSentence(tuple(tokens), tuple("AB"[int(w[1:]) % 2] for w in tokens)))
    model, records = train_tagger(text[:50], text[50:], recipe=paper_recipe(0.1, 8), head=head, **SMALL)
    assert records[-1]["loss"] < records[0]["loss"] / 2
    assert score(model, text[50:])[1] > 0.95


def test_a_seed_fixes_a_run_and_the_global_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    runs = [train_tagger(TRAIN, DEV, recipe=RECIPE, unk_replace=0.5, **SMALL) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert runs[0][1] == runs[1][1]
    for first, second in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        assert torch.equal(first, second)


def test_the_weights_of_the_best_epoch_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.tasks.tagging import training

    planned = iter([(3.0, 0.2), (2.0, 0.6), (2.5, 0.5), (2.6, 0.4), (1.0, 0.1)])
    snapshots = []

    def fake(model: BiLSTMCNNCRF, dev: object) -> tuple[float, float]:
        snapshots.append([p.detach().clone() for p in model.parameters()])
        return next(planned)

    monkeypatch.setattr(training, "score", fake)
    model, records = train_tagger(TRAIN, DEV, recipe=replace(RECIPE, epochs=9), patience=2, **SMALL)
    # Epochs 3 and 4 are worse than the best in both loss and score, which is what patience counts.
    assert len(records) == 4
    assert records[-1]["stopped"]
    for kept, best in zip(model.parameters(), snapshots[1], strict=True):
        assert torch.equal(kept, best)


def test_a_run_that_was_killed_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, records = train_tagger(TRAIN, DEV, recipe=RECIPE, checkpoint=tmp_path / "a", **SMALL)
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    steps = 0
    original = torch.optim.SGD.step

    def step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal steps
        steps += 1
        if steps == 15:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train_tagger(TRAIN, DEV, recipe=RECIPE, checkpoint=tmp_path / "b", **SMALL)
    continued, again = train_tagger(TRAIN, DEV, recipe=RECIPE, checkpoint=tmp_path / "b", **SMALL)
    assert steps == 15 + 18 - 14
    assert again == records
    finished, _ = train_tagger(TRAIN, DEV, recipe=RECIPE, checkpoint=tmp_path / "b", **SMALL)  # is read back
    for first, second, third in zip(whole.parameters(), continued.parameters(), finished.parameters(), strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    (tmp_path / "b" / "best.safetensors").unlink()
    with pytest.raises(RunError, match=r"best\.safetensors is missing"):
        train_tagger(TRAIN, DEV, recipe=RECIPE, checkpoint=tmp_path / "b", **SMALL)


def test_bio_is_trained_as_bioes_and_predicted_as_bio() -> None:
    bio = [item.with_tags(bioes_to_bio(item.tags or ())) for item in (*TRAIN, *DEV)]
    model, records = train_tagger(bio[:60], bio[60:], recipe=replace(RECIPE, epochs=2), **SMALL)
    same, twin = train_tagger(TRAIN, DEV, recipe=replace(RECIPE, epochs=2), **SMALL)
    assert model.output_scheme == "BIO"
    assert model.tags == same.tags
    assert model.tags[0] == "O"
    assert [record["dev_score"] for record in records] == [record["dev_score"] for record in twin]
    found = model.predict([item.tokens for item in DEV])
    assert found == [bioes_to_bio(tags) for tags in same.predict([item.tokens for item in DEV])]


def test_long_sentences_are_left_out_with_a_warning() -> None:
    long = TaggedSentence(("x",) * (LONGEST_SENTENCE + 1), ("O",) * (LONGEST_SENTENCE + 1))
    with pytest.warns(SkippedWarning, match="1 of 61 sentences have more than 130 tokens"):
        model, _ = train_tagger([*TRAIN, long], recipe=replace(RECIPE, epochs=1), **SMALL)
    assert len(model.predict([long.tokens])[0]) == 131  # but they can be tagged


def test_rare_words_teach_the_unknown_row_only_where_asked_to() -> None:
    for chance, moved in ((0.0, False), (1.0, True)):
        vocabulary = Vocabulary.build(item.tokens for item in TRAIN)
        names = sorted({tag for item in TRAIN for tag in item.tags or ()})
        model = BiLSTMCNNCRF(vocabulary, names, **SMALL)  # type: ignore[arg-type]
        before = model.words.weight[1].detach().clone()
        tags = [item.tags or () for item in TRAIN]
        model.fit([item.tokens for item in TRAIN], tags, recipe=replace(RECIPE, epochs=1), unk_replace=chance)
        assert torch.equal(before, model.words.weight[1]) is not moved


def test_it_trains_under_bfloat16() -> None:
    _, records = train_tagger(TRAIN, recipe=replace(RECIPE, precision="bfloat16", epochs=2), **SMALL)
    assert records[1]["loss"] < records[0]["loss"]


def test_a_tagger_is_read_back(tmp_path: Path) -> None:
    model, records = train_tagger(TRAIN, DEV, recipe=replace(RECIPE, epochs=1), constrain=True, **SMALL)
    save_tagger(model, tmp_path, {"epochs": records})
    found, trained = load_tagger(tmp_path)
    assert trained == {"epochs": records}
    assert not found.training
    text = [item.tokens for item in DEV]
    assert found.predict(text) == model.predict(text)
    assert found.predict([("Neverseenville", "¿")]) == model.predict([("Neverseenville", "¿")])


def test_files_that_are_no_tagger_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no tagger in"):
        load_tagger(tmp_path)
    model, _ = train_tagger(TRAIN, recipe=replace(RECIPE, epochs=1), **SMALL)
    save_tagger(model, tmp_path)
    description = (tmp_path / "tagger.json").read_text()
    for wrong in ("{", "{}", description.replace('"format": 1', '"format": 9'), description.replace('"lstm"', '"gru"')):
        (tmp_path / "tagger.json").write_text(wrong)
        with pytest.raises(ModelError, match=r"tagger\.json"):
            load_tagger(tmp_path)
    (tmp_path / "tagger.json").write_text(description.replace('"hidden": 16', '"hidden": 8'))
    with pytest.raises(WeightsError, match="do not fit"):
        load_tagger(tmp_path)
    (tmp_path / "tagger.json").write_text(description)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="is missing beside"):
        load_tagger(tmp_path)


def test_wrong_data_is_refused() -> None:
    model = BiLSTMCNNCRF(Vocabulary.build([["a"]]), ["A"], **SMALL)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one tag a token"):
        fit_tagger(model, [["a", "a"]], [["A"]])
    with pytest.raises(InputError, match="0 sentences"):
        fit_tagger(model, [], [])
    with pytest.raises(InputError, match="2 for 1 tokens"):
        fit_tagger(model, [["a"], ["a"]], [["A"], ["A", "A"]])
    with pytest.warns(SkippedWarning), pytest.raises(InputError, match=r"at most 130 tokens. Got 1 sentences"):
        fit_tagger(model, [["a"] * 131], [["A"] * 131])
    with pytest.raises(InputError, match="unk_replace"):
        fit_tagger(model, [["a"]], [["A"]], unk_replace=3)
    with pytest.raises(InputError, match=r"of 2 sentences\. Got of 1"):
        fit_tagger(model, [["a"], ["a"]], [["A"]])
    with pytest.raises(InputError, match="0 for 0 tokens"):
        fit_tagger(model, [["a"], []], [["A"], []])
    with pytest.raises(InputError, match="among its 1 tags"):
        fit_tagger(model, [["a"]], [["B"]])
    with pytest.raises(InputError, match=r"tagged.*'a' without"):
        train_tagger([TaggedSentence(("a",))])
