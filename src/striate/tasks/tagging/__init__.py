"""Tagging sequences of words: names, parts of speech, chunks, slots.

>>> from striate.tasks.tagging import BiLSTMCNNCRF, Vocabulary, read_conll, span_f1
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from striate.data.chat import read_chat
    from striate.data.conll import read_conll, read_conllu
    from striate.data.tagged import TaggedSentence, read_tagged, write_tagged
    from striate.tasks.tagging.files import load_tagger, save_tagger
    from striate.tasks.tagging.metrics import SpanReport, accuracy, by_vocabulary, span_f1, span_report
    from striate.tasks.tagging.network import BiLSTMCNNCRF
    from striate.tasks.tagging.scheme import (
        Span,
        allowed_transitions,
        bio_to_bioes,
        bioes_to_bio,
        bioes_to_spans,
        iob1_to_bioes,
        spans_of,
        spans_to_tags,
    )
    from striate.tasks.tagging.training import fit_tagger, paper_recipe, train_tagger
    from striate.tasks.tagging.vectors import WordVectors, ppmi_vectors, read_vectors
    from striate.tasks.tagging.vocabulary import Vocabulary

__all__ = [
    "BiLSTMCNNCRF",
    "Span",
    "SpanReport",
    "TaggedSentence",
    "Vocabulary",
    "WordVectors",
    "accuracy",
    "allowed_transitions",
    "bio_to_bioes",
    "bioes_to_bio",
    "bioes_to_spans",
    "by_vocabulary",
    "fit_tagger",
    "iob1_to_bioes",
    "load_tagger",
    "paper_recipe",
    "ppmi_vectors",
    "read_chat",
    "read_conll",
    "read_conllu",
    "read_tagged",
    "read_vectors",
    "save_tagger",
    "span_f1",
    "span_report",
    "spans_of",
    "spans_to_tags",
    "train_tagger",
    "write_tagged",
]

_HOMES = {
    "striate.data.chat": ("read_chat",),
    "striate.data.conll": ("read_conll", "read_conllu"),
    "striate.data.tagged": ("TaggedSentence", "read_tagged", "write_tagged"),
    "striate.tasks.tagging.files": ("load_tagger", "save_tagger"),
    "striate.tasks.tagging.metrics": ("SpanReport", "accuracy", "by_vocabulary", "span_f1", "span_report"),
    "striate.tasks.tagging.network": ("BiLSTMCNNCRF",),
    "striate.tasks.tagging.scheme": (
        "Span",
        "allowed_transitions",
        "bio_to_bioes",
        "bioes_to_bio",
        "bioes_to_spans",
        "iob1_to_bioes",
        "spans_of",
        "spans_to_tags",
    ),
    "striate.tasks.tagging.training": ("fit_tagger", "paper_recipe", "train_tagger"),
    "striate.tasks.tagging.vectors": ("WordVectors", "ppmi_vectors", "read_vectors"),
    "striate.tasks.tagging.vocabulary": ("Vocabulary",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the package itself imports nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module 'striate.tasks.tagging' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
