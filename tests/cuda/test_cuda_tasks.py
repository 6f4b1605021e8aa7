"""The tagger, trained and used on the GPU."""

from __future__ import annotations

import pytest
import torch

from striate.data.named_entities import named_entities
from striate.engine import train as engine
from striate.engine.state import device_of
from striate.tasks.tagging.files import load_tagger, save_tagger
from striate.tasks.tagging.training import paper_recipe, score, train_tagger
from striate.testing import left_as_it_came

SMALL = {"hidden": 16, "word_dim": 12, "char_filters": 6}
RECIPE = paper_recipe(0.05, epochs=3)
TRAIN, DEV = named_entities("train", 60).sentences, named_entities("dev", 20).sentences
WORDS = [item.tokens for item in DEV]


@pytest.mark.parametrize("head", ["first-order", "bigram", "softmax"])
def test_training_there(device, head, tmp_path) -> None:
    options = {"recipe": RECIPE, "unk_replace": 0.5, "head": head, **SMALL}
    model, records = train_tagger(TRAIN, DEV, device=device, **options)
    assert device_of(model) == device
    assert records[-1]["loss"] < records[0]["loss"]
    with left_as_it_came(model):
        tags = model.predict(WORDS)
    assert [len(row) for row in tags] == [len(row) for row in WORDS]
    # The same weights on the CPU, by way of the disk, tag alike and score alike.
    save_tagger(model, tmp_path)
    here, _ = load_tagger(tmp_path)
    there, _ = load_tagger(tmp_path, device=device)
    assert device_of(there) == device
    assert here.predict(WORDS) == there.predict(WORDS) == tags
    assert score(there, DEV) == pytest.approx(score(here, DEV), abs=1e-3)


def test_the_first_epoch_is_the_cpus(device) -> None:
    found, wanted = (
        train_tagger(TRAIN, recipe=paper_recipe(0.01, epochs=1), device=place, dropout=0.0, **SMALL)[1]
        for place in (device, "cpu")
    )
    assert found[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-2)


class CutOffError(Exception):
    """The power went."""


def test_training_goes_on_after_a_kill(device, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    options = {"recipe": RECIPE, "device": device, **SMALL}
    _, whole = train_tagger(TRAIN, DEV, checkpoint=tmp_path / "whole", **options)
    gradient, calls = engine._gradient, []

    def cut_off(*args, **named):
        calls.append(None)
        if len(calls) == 10:
            raise CutOffError
        return gradient(*args, **named)

    monkeypatch.setattr(engine, "_gradient", cut_off)
    with pytest.raises(CutOffError):
        train_tagger(TRAIN, DEV, checkpoint=tmp_path / "cut", **options)
    monkeypatch.setattr(engine, "_gradient", gradient)
    model, again = train_tagger(TRAIN, DEV, checkpoint=tmp_path / "cut", **options)
    assert [record["epoch"] for record in again] == [record["epoch"] for record in whole]
    for mine, theirs in zip(again, whole, strict=True):  # cuDNN's recurrent kernels promise no fixed order
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_new_words_and_best_labellings(device) -> None:
    model, _ = train_tagger(TRAIN, DEV, recipe=RECIPE, device=device, **SMALL)
    best = model.predict(WORDS[:3])
    assert all(row for row in best)
    with torch.no_grad():
        batch = model.vocabulary.batch(WORDS[:3])
        assert model.nll(batch.to(device), torch.zeros_like(batch.words).to(device)).isfinite()
