"""Tagged text in columns: the CoNLL shared tasks' files, and CoNLL-U."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from striate.data.tagged import TaggedSentence, read_lines
from striate.errors import DataError

__all__ = ["add_column", "format_conll", "format_conllu", "read_conll", "read_conllu"]

_FORM, _UPOS, _XPOS = 1, 3, 4


@dataclass(frozen=True)
class _Rows:
    """The lines of a sentence.

    Attributes:
        rows: fields of each token's line.
        others: other lines (comments, multiword ranges, empty nodes), each with the number of tokens before it.
        column: of the tag.
        gap: what stands between fields.
    """

    rows: tuple[tuple[str, ...], ...]
    others: tuple[tuple[int, str], ...] = ()
    column: int = -1
    gap: str = " "


def read_conll(
    path: str | Path, *, token_column: int | None = None, tag_column: int | None = None
) -> list[TaggedSentence]:
    """Read columns between tabs or blanks, a token a line, sentences between empty lines.

    ``-DOCSTART-`` lines are skipped. Lines that start with ``#`` and have another number of columns than the text are
    comments, kept for writing. Where the first column counts each sentence's tokens from 1, as in some copies of
    CoNLL-2003, the token is in the second.

    Args:
        path: UTF-8; ``-`` is standard input.
        token_column: from 0; default the first that is no counter.
        tag_column: from 0, negative from the right; default the last. A file of one column has no tags.

    Raises:
        DataError: unreadable, empty, or a line has another number of columns than the first; it is named.
    """
    read = list(_blocks(path))
    lines = [fields for block in read for _, fields, _ in block]
    width = len(next((fields for fields in lines if fields[0][0] != "#"), lines[0])) if lines else 0
    comments = []
    for block in read:
        comments.append(_without_comments(block, width))
        for number, fields, _ in block:
            if len(fields) != width:
                raise DataError(
                    f"{path} line {number}: {len(fields)} columns where the first line has {width}. A text with a "
                    "sentence a line is of the format 'text'."
                )
    blocks = [block for block in read if block]
    counted = width > 1 and any(len(block) > 1 for block in blocks) and all(_counts(block) for block in blocks)
    token = (1 if counted else 0) if token_column is None else _column(token_column, width, path)
    tag = None
    if tag_column is not None or width > token + 1:
        tag = _column(-1 if tag_column is None else tag_column, width, path)
    found = []
    for block, others in zip(read, comments, strict=True):
        if not block:
            continue
        rows = tuple(fields for _, fields, _ in block)
        gap = "\t" if "\t" in block[0][2] else " "
        tags = None if tag is None else tuple(row[tag] for row in rows)
        found.append(TaggedSentence(tuple(row[token] for row in rows), tags, _Rows(rows, others, gap=gap)))
    if not found:
        raise DataError(f"{path} holds no sentences.")
    return found


def format_conll(sentences: Sequence[TaggedSentence], predicted: Sequence[Sequence[str]] | None = None) -> str:
    """Return columns as they were read, and the predicted tags in one more on the right.

    Sentences of another origin, CoNLL-U among them, get two columns, token and tag.
    """
    parts = []
    for sentence in sentences if predicted is None else add_column(sentences, predicted):
        rows = _rows_of(sentence)
        parts += _between(rows.others, [rows.gap.join(row) for row in rows.rows])
    return "".join(parts)


def add_column(sentences: Sequence[TaggedSentence], values: Sequence[Sequence[str]]) -> list[TaggedSentence]:
    """Return the sentences with one more column on the right, a value a token."""
    found = []
    for sentence, more in zip(sentences, values, strict=True):
        rows = _rows_of(sentence)
        wider = tuple((*row, value) for row, value in zip(rows.rows, more, strict=True))
        found.append(replace(sentence, layout=replace(rows, rows=wider)))
    return found


def read_conllu(path: str | Path, *, tag_column: int = _UPOS) -> list[TaggedSentence]:
    """Read CoNLL-U: ten columns between tabs; comments, multiword ranges and empty nodes are kept for writing.

    Args:
        path: UTF-8; ``-`` is standard input.
        tag_column: from 0: 3 is UPOS, 4 is XPOS. A sentence with ``_`` throughout has no tags.

    Raises:
        DataError: unreadable, empty, or a line without ten columns; it is named.
    """
    tag_column = _column(tag_column, 10, path)
    found: list[TaggedSentence] = []
    rows: list[tuple[str, ...]] = []
    others: list[tuple[int, str]] = []
    for number, raw in enumerate([*read_lines(path), ""], start=1):
        line = raw.rstrip("\r")
        if not line.strip():
            if rows:
                tags: tuple[str, ...] | None = tuple(row[tag_column] for row in rows)
                tags = None if set(tags or ()) == {"_"} else tags
                layout = _Rows(tuple(rows), tuple(others), tag_column, "\t")
                found.append(TaggedSentence(tuple(row[_FORM] for row in rows), tags, layout))
                rows, others = [], []
            continue
        fields = tuple(line.split("\t"))
        if line.startswith("#"):
            others.append((len(rows), line))
        elif len(fields) != 10:
            raise DataError(f"{path} line {number}: {len(fields)} columns between tabs where CoNLL-U has 10.")
        elif fields[0].isdigit():
            if not fields[_FORM]:
                raise DataError(f"{path} line {number}: the token is empty.")
            rows.append(fields)
        else:  # 3-4 is one written word of two tokens, 3.1 a word that is not written
            others.append((len(rows), line))
    if not found:
        raise DataError(f"{path} holds no sentences.")
    return found


def format_conllu(sentences: Sequence[TaggedSentence], predicted: Sequence[Sequence[str]] | None = None) -> str:
    """Return CoNLL-U with the predicted tags in the column that the tags were read from, all else as it was."""
    parts = []
    for index, sentence in enumerate(sentences):
        layout = sentence.layout
        if not isinstance(layout, _Rows) or any(len(row) != 10 for row in layout.rows):
            tags = sentence.tags or ("_",) * len(sentence.tokens)
            layout = _Rows(
                tuple(
                    (str(n), token, "_", tag, *["_"] * 6)
                    for n, (token, tag) in enumerate(zip(sentence.tokens, tags, strict=True), start=1)
                ),
                column=_UPOS,
            )
        rows = [list(row) for row in layout.rows]
        if predicted is not None:
            for fields, tag in zip(rows, predicted[index], strict=True):
                fields[layout.column] = tag
        parts += _between(layout.others, ["\t".join(fields) for fields in rows])
    return "".join(parts)


_Line = tuple[int, tuple[str, ...], str]


def _blocks(path: str | Path) -> Iterator[list[_Line]]:
    """Yield each sentence's lines as (number, fields, line)."""
    block: list[_Line] = []
    for number, raw in enumerate([*read_lines(path), ""], start=1):
        line = raw.rstrip("\r")
        if line.strip():
            fields = line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
            # A document's head is a sentence of its own, with or without an empty line behind it.
            if "-DOCSTART-" in fields[:2]:
                if block:
                    yield block
                block = []
                continue
            if "" in fields:
                raise DataError(f"{path} line {number}: a column is empty.")
            block.append((number, tuple(fields), line))
        elif block:
            yield block
            block = []


def _without_comments(block: list[_Line], width: int) -> tuple[tuple[int, str], ...]:
    """Take the comments out of a block, in place; return them, each with the number of tokens before it."""
    others: list[tuple[int, str]] = []
    rows: list[_Line] = []
    for line in block:
        if line[2].startswith("#") and len(line[1]) != width:
            others.append((len(rows), line[2]))
        else:
            rows.append(line)
    block[:] = rows
    return tuple(others)


def _between(others: Sequence[tuple[int, str]], lines: Sequence[str]) -> list[str]:
    """Return a sentence's lines with the other ones where they stood, and an empty one behind."""
    placed = [*((place, 0, line) for place, line in others), *((place, 1, line) for place, line in enumerate(lines))]
    return [line + "\n" for _, _, line in sorted(placed, key=lambda one: one[:2])] + ["\n"]


def _counts(block: list[_Line]) -> bool:
    return [fields[0] for _, fields, _ in block] == [str(n) for n in range(1, len(block) + 1)]


def _column(column: int, width: int, path: str | Path) -> int:
    if not -width <= column < width:
        raise DataError(f"{path} has {width} columns, so there is none of number {column} (counted from 0).")
    return column


def _rows_of(sentence: TaggedSentence) -> _Rows:
    if isinstance(sentence.layout, _Rows) and sentence.layout.column == -1:  # else it is of CoNLL-U
        return sentence.layout
    gap = "\t" if any(" " in token for token in sentence.tokens) else " "
    columns = [sentence.tokens] if sentence.tags is None else [sentence.tokens, sentence.tags]
    return _Rows(tuple(zip(*columns, strict=True)), gap=gap)
