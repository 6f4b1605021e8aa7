"""Training a tagger as the paper does: SGD with momentum on ten sentences a step, judged on held-out text."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from striate.data.tagged import TaggedSentence
from striate.engine.checkpoint import read_tensors, write_tensors
from striate.engine.state import device_of, find_device, inspected, seeded
from striate.engine.train import Recipe, fit
from striate.errors import InputError, RunError, SkippedWarning
from striate.tasks.tagging.metrics import accuracy, span_f1
from striate.tasks.tagging.network import BiLSTMCNNCRF
from striate.tasks.tagging.scheme import chunk_scheme, iob1_to_bioes
from striate.tasks.tagging.vectors import WordVectors
from striate.tasks.tagging.vocabulary import Batch, Vocabulary

__all__ = ["LONGEST_SENTENCE", "fit_tagger", "paper_recipe", "score", "train_tagger"]

LONGEST_SENTENCE = 130
"""Tokens; longer sentences are left out of training, as in the authors' code."""

_NONE = -1  # no token


def paper_recipe(lr: float = 0.015, epochs: int = 50, seed: int = 0) -> Recipe:
    """Return the paper's recipe (Table 1): lr is 0.015 for entities and 0.01 for parts of speech."""
    return Recipe(
        epochs=epochs,
        batch_size=10,
        optimizer="sgd",
        lr=lr,
        momentum=0.9,
        schedule="inverse",
        decay=0.05,
        clip=5.0,
        seed=seed,
    )


def train_tagger(
    train: Sequence[TaggedSentence],
    dev: Sequence[TaggedSentence] = (),
    *,
    vectors: WordVectors | None = None,
    extra_words: Iterable[str] = (),
    digits_to_zero: bool = False,
    recipe: Recipe | None = None,
    device: str | torch.device = "cpu",
    patience: int | None = 5,
    unk_replace: float = 0.0,
    checkpoint: str | Path | None = None,
    progress: bool | None = False,
    **network: Any,
) -> tuple[BiLSTMCNNCRF, list[dict[str, Any]]]:
    """Build a tagger for tagged text and train it.

    Chunk tags in IOB1 or BIO are trained as BIOES, and predicted as they were spelled.

    Args:
        train, dev: see :func:`fit_tagger`.
        vectors, extra_words, digits_to_zero: see :class:`BiLSTMCNNCRF` and :meth:`Vocabulary.build`; words of ``dev``
            have rows only if they are in ``extra_words``.
        recipe: default :func:`paper_recipe`; its seed also draws the network's first values.
        device: where.
        patience, unk_replace, checkpoint, progress: see :func:`fit_tagger`.
        **network: options of :class:`BiLSTMCNNCRF`.

    Returns:
        The tagger, and one record an epoch.
    """
    place = find_device(device, "train_tagger")
    recipe = paper_recipe() if recipe is None else recipe
    tags = [_tags_of(sentence) for sentence in train]
    dev_tags = [_tags_of(sentence) for sentence in dev]
    scheme = chunk_scheme([*tags, *dev_tags])
    if scheme in {"IOB1", "BIO"}:
        network.setdefault("output_scheme", scheme)
    if network.get("output_scheme") is not None:
        tags = [tuple(iob1_to_bioes(row)) for row in tags]
        dev_tags = [tuple(iob1_to_bioes(row)) for row in dev_tags]
    vocabulary = Vocabulary.build((item.tokens for item in train), extra_words, digits_to_zero=digits_to_zero)
    with seeded(recipe.seed):
        model = BiLSTMCNNCRF(vocabulary, _tag_names([*tags, *dev_tags], scheme is not None), vectors=vectors, **network)
    model.to(place)
    records = fit_tagger(
        model,
        [item.tokens for item in train],
        [_tags_of(item) for item in train],
        dev=dev,
        recipe=recipe,
        patience=patience,
        unk_replace=unk_replace,
        checkpoint=checkpoint,
        progress=progress,
    )
    return model, records


def fit_tagger(
    model: BiLSTMCNNCRF,
    sentences: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    *,
    dev: Sequence[TaggedSentence] = (),
    recipe: Recipe | None = None,
    patience: int | None = 5,
    unk_replace: float = 0.0,
    checkpoint: str | Path | None = None,
    progress: bool | None = False,
) -> list[dict[str, Any]]:
    """Train ``model`` in place.

    With ``dev`` the weights of its best epoch stay, by span F1 where the tags are chunk tags and by token accuracy
    elsewhere; without it those of the last epoch.

    Args:
        model: where its parameters are.
        sentences: tokens of each; those with more than :data:`LONGEST_SENTENCE` are left out, with a warning.
        tags: of each.
        dev: held-out text.
        recipe: default :func:`paper_recipe`.
        patience: stop after so many epochs in a row in which both loss and score on ``dev`` were worse than the best
            so far, as the authors' code does; None never stops.
        unk_replace: chance with which a word that occurs once is read as unknown in training, so that the unknown
            row learns something. 0 in the paper, whose vocabulary holds the test words.
        checkpoint: folder to continue from after a kill, see :func:`striate.engine.train.fit`.
        progress: True shows a bar, None where stderr is a terminal.

    Returns:
        The records of :func:`striate.engine.train.fit`, with ``dev_loss`` (mean over sentences) and ``dev_score``.

    Raises:
        InputError: no sentence, unknown or missing tags, lengths that differ.
        RunError: the loss is not finite, or the checkpoint belongs to another run.
    """
    recipe = paper_recipe() if recipe is None else recipe
    if len(sentences) != len(tags):
        raise InputError("tags", "fit_tagger", allowed=f"of {len(sentences)} sentences", got=f"of {len(tags)}")
    kept = [(tuple(words), tuple(row)) for words, row in zip(sentences, tags, strict=True)]
    short = [(words, row) for words, row in kept if len(words) <= LONGEST_SENTENCE]
    if len(short) < len(kept):
        left_out = f"{len(kept) - len(short)} of {len(kept)} sentences have more than {LONGEST_SENTENCE} tokens"
        warnings.warn(f"{left_out} and were left out of training.", SkippedWarning, stacklevel=2)
    if not short:
        allowed = f"one or more of at most {LONGEST_SENTENCE} tokens"
        raise InputError("sentences", "fit_tagger", allowed=allowed, got=f"{len(kept)} sentences")
    wrong = next(((words, row) for words, row in short if not words or len(words) != len(row)), None)
    if wrong is not None:
        got = f"{len(wrong[1])} for {len(wrong[0])} tokens"
        raise InputError("tags", "fit_tagger", allowed="one tag a token, of one token or more", got=got)
    if not 0 <= unk_replace <= 1:
        raise InputError("unk_replace", "fit_tagger", allowed="in [0, 1]", got=unk_replace)
    lexicon = _Lexicon(model.vocabulary, [words for words, _ in short], unk_replace)
    words = _padded([lexicon.number(words) for words, _ in short])
    numbers = _padded([model.number(row) for _, row in short])
    watch = _Watch(dev, patience, None if checkpoint is None else Path(checkpoint)) if dev else None
    records = fit(
        model, words, numbers, recipe, loss=lexicon.loss, after_epoch=watch, checkpoint=checkpoint, progress=progress
    )
    if watch is not None:
        model.load_state_dict(watch.best())
    return records


def score(model: BiLSTMCNNCRF, sentences: Sequence[TaggedSentence]) -> tuple[float, float]:
    """Return loss (mean over sentences) and score (span F1 of chunk tags, else token accuracy) on tagged text."""
    gold = [_tags_of(item) for item in sentences]
    device = device_of(model)
    total = 0.0
    with inspected(model, warn=False), torch.no_grad():
        for start in range(0, len(sentences), 100):
            part = [item.tokens for item in sentences[start : start + 100]]
            numbers = _padded([model.number(tags) for tags in gold[start : start + 100]], fill=0)
            total += float(model.nll(model.vocabulary.batch(part).to(device), numbers.to(device))) * len(part)
    found = model.predict([item.tokens for item in sentences])
    measure = accuracy if chunk_scheme([model.tags]) is None else span_f1
    return total / len(sentences), measure(gold, found)


class _Lexicon:
    """The training text's different words, so that a batch is looked up instead of being spelled anew."""

    def __init__(self, vocabulary: Vocabulary, sentences: Sequence[Sequence[str]], unk_replace: float) -> None:
        self.places: dict[str, int] = {}
        counts: dict[str, int] = {}
        for word in (word for sentence in sentences for word in sentence):
            self.places.setdefault(word, len(self.places))
            counts[word] = counts.get(word, 0) + 1
        self.words = torch.tensor([vocabulary.row(word) for word in self.places])
        self.chars = vocabulary.spell(list(self.places))
        self.lengths = (self.chars != 0).sum(dim=1)
        self.once = torch.tensor([counts[word] == 1 for word in self.places])
        self.unk_replace = unk_replace
        self.unknown = vocabulary.row("")

    def number(self, sentence: Sequence[str]) -> list[int]:
        return [self.places[word] for word in sentence]

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return the network's loss on (B, longest of all) word and tag numbers."""
        if self.words.device != x.device:
            for name in ("words", "chars", "lengths", "once"):
                setattr(self, name, getattr(self, name).to(x.device))
        mask = x != _NONE
        longest = int(mask.sum(dim=1).max())
        mask, place, tags = mask[:, :longest], x[:, :longest].clamp_min(0), y[:, :longest].clamp_min(0)
        words = torch.where(mask, self.words[place], 0)
        if self.unk_replace:
            drawn = torch.rand(place.shape, generator=generator, device=x.device) < self.unk_replace
            words = torch.where(mask & drawn & self.once[place], self.unknown, words)
        chars = self.chars[:, : int(self.lengths[place].max())]
        assert isinstance(model, BiLSTMCNNCRF)  # fit hands on the model that it was given
        return model.nll(Batch(words, chars, place, mask), tags)


class _Watch:
    """After every epoch: how good the network is on held-out text, whether to stop, and its best weights."""

    def __init__(self, dev: Sequence[TaggedSentence], patience: int | None, folder: Path | None) -> None:
        self.dev, self.patience = dev, patience
        self.path = None if folder is None else folder / "best.safetensors"
        self.kept: dict[str, Tensor] | None = None

    def __call__(self, model: nn.Module, records: list[dict[str, Any]]) -> bool:
        assert isinstance(model, BiLSTMCNNCRF)
        record = records[-1]
        record["dev_loss"], record["dev_score"] = score(model, self.dev)
        before = records[:-1]
        if all(record["dev_score"] > other["dev_score"] for other in before):
            self.kept = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            if self.path is not None:
                write_tensors(self.path, self.kept, {"epoch": record["epoch"]})
        if not before:
            record["worse"] = 0
            return False
        worse = record["dev_loss"] > min(other["dev_loss"] for other in before)
        worse = worse and record["dev_score"] < max(other["dev_score"] for other in before)
        record["worse"] = before[-1]["worse"] + 1 if worse else 0
        return self.patience is not None and record["worse"] >= self.patience

    def best(self) -> dict[str, Tensor]:
        """Return the weights of the best epoch."""
        if self.kept is not None:
            return self.kept
        if self.path is None or not self.path.is_file():
            raise RunError(f"{self.path} is missing, which held the best weights; delete its folder and train again.")
        return read_tensors(self.path)[0]


def _tag_names(tags: Sequence[Sequence[str]], chunks: bool) -> list[str]:
    """Return the tags in sorted order; O first, and of each type of span all four marks, seen or not."""
    seen = sorted({tag for row in tags for tag in row})
    if not chunks or not any(tag[0] in "ES" for tag in seen):
        return seen
    types = sorted({tag.partition("-")[2] for tag in seen if tag != "O"})
    names = [f"{mark}-{type_}" for type_ in types for mark in "BIES"]
    return ["O", *(names if set(seen) <= {"O", *names} else [tag for tag in seen if tag != "O"])]


def _tags_of(sentence: TaggedSentence) -> tuple[str, ...]:
    if sentence.tags is None:
        raise InputError("sentences", "the tagger", allowed="tagged", got=f"'{' '.join(sentence.tokens[:6])}' without")
    return sentence.tags


def _padded(rows: Sequence[Sequence[int]], fill: int = _NONE) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
