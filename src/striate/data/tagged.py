"""Sentences with one tag a token, and one way to read and write them in any of four formats."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from striate.engine.files import write_text
from striate.errors import DataError, InputError, did_you_mean

__all__ = ["Format", "TaggedSentence", "format_of", "format_tagged", "read_lines", "read_tagged", "write_tagged"]

Format = Literal["conll", "conllu", "chat", "text"]


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence of a tagged text.

    Attributes:
        tokens: one or more.
        tags: one a token; None where the text has none.
        layout: what else the file said, kept by its reader for the writer of the same format.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    layout: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.tokens or "" in self.tokens:
            raise InputError("tokens", "TaggedSentence", allowed="one or more, none of them empty", got=self.tokens)
        if self.tags is not None and len(self.tags) != len(self.tokens):
            got = f"{len(self.tags)} for {len(self.tokens)} tokens"
            raise InputError("tags", "TaggedSentence", allowed="one a token", got=got)

    def with_tags(self, tags: Sequence[str]) -> TaggedSentence:
        """Return the sentence with other tags and the same layout."""
        return replace(self, tags=tuple(tags))


def format_of(path: str | Path) -> Format:
    """Return the format that a file's name tells: ``.conllu``, ``.cha``, else columns.

    >>> format_of("eng.train"), format_of("FC-001.cha")
    ('conll', 'chat')
    """
    known: dict[str, Format] = {".conllu": "conllu", ".cha": "chat"}
    return known.get(Path(path).suffix.lower(), "conll")


def read_tagged(path: str | Path, format: Format | None = None, **options: Any) -> list[TaggedSentence]:
    """Read a tagged text.

    Args:
        path: a file, or for CHAT a folder of ``.cha`` files.
        format: ``"conll"`` (columns), ``"conllu"``, ``"chat"``, or ``"text"``: a sentence a line, tokens between
            blanks, no tags; None goes by the file's name.
        **options: of :func:`striate.data.conll.read_conll`, :func:`~striate.data.conll.read_conllu` or
            :func:`striate.data.chat.read_chat`.

    Raises:
        DataError: missing, unreadable, empty or malformed; with the line.
    """
    chosen = _known(format or ("chat" if Path(path).is_dir() else format_of(path)))
    if chosen == "chat":
        from striate.data.chat import read_chat

        return read_chat(path, **options)
    if chosen == "text":
        lines = (line.split() for line in read_lines(path))
        return _some([TaggedSentence(tuple(tokens)) for tokens in lines if tokens], path)
    from striate.data.conll import read_conll, read_conllu

    return (read_conllu if chosen == "conllu" else read_conll)(path, **options)


def format_tagged(
    sentences: Sequence[TaggedSentence], format: Format, predicted: Sequence[Sequence[str]] | None = None
) -> str:
    """Return sentences as a file of that format would hold them; see the format's own ``format_…``.

    Args:
        sentences: as read or made.
        format: as in :func:`read_tagged`; ``"text"`` is written as columns, since it has no place for tags.
        predicted: tags to put in: beside the old ones (columns), or in their place (CoNLL-U, CHAT).
    """
    if predicted is not None and [len(row) for row in predicted] != [len(item.tokens) for item in sentences]:
        raise InputError("predicted", "format_tagged", allowed="one tag a token", got="other lengths")
    if _known(format) == "chat":
        from striate.data.chat import format_chat

        return format_chat(sentences, predicted)
    from striate.data.conll import format_conll, format_conllu

    return (format_conllu if format == "conllu" else format_conll)(sentences, predicted)


def write_tagged(
    path: str | Path,
    sentences: Sequence[TaggedSentence],
    format: Format | None = None,
    predicted: Sequence[Sequence[str]] | None = None,
) -> Path:
    """Write :func:`format_tagged` whole or not at all; None goes by the file's name."""
    return write_text(path, format_tagged(sentences, format or format_of(path), predicted))


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a UTF-8 text; ``-`` is standard input.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    import sys

    try:
        if str(path) == "-":
            return sys.stdin.buffer.read().decode("utf-8-sig").split("\n")  # sys.stdin itself lets other bytes pass
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        start = error.object[:2]
        coding = "utf-16" if start in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE} else "latin1"
        raise DataError(
            f"{path} is not UTF-8 text: {error}. Convert it, as with iconv -f {coding} -t utf-8."
        ) from error


def _known(format: str) -> Format:
    if format not in get_args(Format):
        hint = did_you_mean(format, get_args(Format))
        raise InputError("format", "a tagged text", allowed=", ".join(get_args(Format)), got=format, hint=hint)
    return format  # type: ignore[return-value]


def _some(sentences: list[TaggedSentence], path: str | Path) -> list[TaggedSentence]:
    if not sentences:
        raise DataError(f"{path} holds no sentences.")
    return sentences
