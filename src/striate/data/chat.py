"""CHAT transcripts (``.cha``): utterances with a ``%mor`` tier that tags each word.

The format of TalkBank (MacWhinney, "The CHILDES Project: Tools for Analyzing Talk"). An item of the tier is
``tag|stem``; clitics are joined, ``pro|it~cop|be``, and have joined tags, ``pro~cop``. Items without a bar are
punctuation and no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from striate.data.tagged import TaggedSentence, read_lines
from striate.errors import DataError, InputError

__all__ = ["format_chat", "read_chat"]

_HEAD = "@UTF8\n@Begin\n@Languages:\tund\n@Participants:\tXXA Adult\n@ID:\tund|striate|XXA|||||Adult|||\n"
# Codes in brackets, marks of retracing, times between control characters.
_CODES = re.compile(r"\[[^\]]*\]|[<>]|\x15[^\x15]*\x15")
_NO_WORD = re.compile(r"&.*|\+.*|0\w+|xxx|yyy|www|\d+_\d+|\W*")


@dataclass(frozen=True)
class _Utterance:
    """The lines of a sentence.

    Attributes:
        before: all up to the ``%mor`` tier, the main line among them.
        mor: that tier, or "".
        after: tiers that follow it, and behind the last utterance the end of the file.
        items: of the tier; None where there is none.
        places: which items are the sentence's tokens.
    """

    before: tuple[str, ...]
    mor: str
    after: tuple[str, ...]
    items: tuple[str, ...] | None
    places: tuple[int, ...]


def read_chat(path: str | Path, *, tokens: Literal["mor", "main"] = "mor") -> list[TaggedSentence]:
    """Read a transcript, or all of a folder in the order of their names.

    Args:
        path: a ``.cha`` file or a folder of them.
        tokens: ``"mor"``: the stems on the ``%mor`` tier (in the Hong Kong Cantonese Corpus the romanised words);
            utterances without that tier are passed over. ``"main"``: the words of the main line, without codes and
            punctuation, so that an utterance without the tier is a sentence without tags.

    Raises:
        DataError: unreadable, empty, or main line and tier disagree in the number of words; the utterance is named.
    """
    if tokens not in {"mor", "main"}:
        raise InputError("tokens", "read_chat", allowed="mor or main", got=tokens)
    files = sorted(Path(path).glob("*.cha")) if Path(path).is_dir() else [path]
    found = [sentence for file in files for sentence in _sentences(file, tokens)]
    if not found:
        raise DataError(f"{path} holds no utterances{' with a %mor tier' if tokens == 'mor' else ''}.")
    return found


def format_chat(sentences: Sequence[TaggedSentence], predicted: Sequence[Sequence[str]] | None = None) -> str:
    """Return a transcript with the predicted tags on its ``%mor`` tier, all else as it was read.

    An utterance that had no tier gets one. Sentences of another origin become utterances of one speaker.

    Raises:
        InputError: a token of another origin has a blank in it, for which CHAT has no spelling.
    """
    parts = []
    for index, sentence in enumerate(sentences):
        layout = sentence.layout if isinstance(sentence.layout, _Utterance) else None
        tags = sentence.tags if predicted is None else predicted[index]
        if layout is None:
            blank = next((token for token in sentence.tokens if token.split() != [token]), None)
            if blank is not None:
                raise InputError("sentences", "format_chat", allowed="of tokens without blanks", got=f"'{blank}'")
            parts += [_HEAD] if index == 0 else []
            parts.append(f"*XXA:\t{' '.join(sentence.tokens)} .\n")
            parts += [] if tags is None else [f"%mor:\t{' '.join(map(_join, tags, sentence.tokens))} .\n"]
            parts += ["@End\n"] if index == len(sentences) - 1 else []
            continue
        parts += layout.before
        if predicted is None:
            parts += [layout.mor]
        else:
            items = list(layout.items or (*sentence.tokens, "."))
            for place, token, tag in zip(layout.places, sentence.tokens, predicted[index], strict=True):
                items[place] = _join(tag, items[place] if layout.items is not None else token)
            parts.append(f"%mor:\t{' '.join(items)}\n")
        parts += layout.after
    return "".join(parts)


def _join(tag: str, item: str) -> str:
    """Put ``tag`` on a stem or in the place of an item's tag; joined tags on joined stems one by one."""
    stems = [part.rpartition("|")[2] for part in item.split("~")]
    tags = tag.split("~")
    if len(tags) != len(stems):
        return f"{tag}|{'~'.join(stems)}"
    return "~".join(f"{mark}|{stem}" for mark, stem in zip(tags, stems, strict=True))


def _sentences(path: str | Path, tokens: str) -> list[TaggedSentence]:
    found: list[TaggedSentence] = []
    pending: list[str] = []
    for number, heads, main, tiers in _groups(path):
        pending += heads
        if not main:
            continue
        mor = next((tier for tier in tiers if tier.startswith("%mor:")), "")
        items = tuple(mor.partition(":")[2].split()) if mor else None
        places = tuple(place for place, item in enumerate(items or ()) if "|" in item)
        written = _CODES.sub(" ", main.partition(":")[2]).split()
        if items is not None and len(written) == len(items):  # item for item, punctuation included
            words = [written[place] for place in places]
        else:
            words = [word for word in written if not _NO_WORD.fullmatch(word)]
        if tokens == "main" and items is not None and len(words) != len(places):
            raise DataError(
                f"{path} line {number}: {len(words)} words on the main line and {len(places)} on %mor; "
                "read the stems of %mor instead (tokens='mor')."
            )
        if tokens == "mor":
            words = (
                ["~".join(p.partition("|")[2] for p in items[place].split("~")) for place in places] if items else []
            )
        if not words:
            pending += [main, *tiers]
            continue
        tags = None
        if items is not None:
            tags = tuple("~".join(p.partition("|")[0] for p in items[place].split("~")) for place in places)
        cut = tiers.index(mor) if mor else 0
        before, after = (*pending, main, *tiers[:cut]), tuple(tiers[cut + 1 if mor else 0 :])
        layout = _Utterance(before, mor, after, items, places or tuple(range(len(words))))
        try:
            found.append(TaggedSentence(tuple(words), tags, layout))
        except InputError as error:
            raise DataError(f"{path} line {number}: an item of %mor has no stem.") from error
        pending = []
    if found and pending:
        layout = found[-1].layout
        found[-1] = replace(found[-1], layout=replace(layout, after=(*layout.after, *pending)))
    return found


def _groups(path: str | Path) -> Iterator[tuple[int, list[str], str, list[str]]]:
    """Yield (line number, headers before, main line, its tiers), each with its continuation lines; last the end."""
    logical: list[tuple[int, str]] = []
    for number, raw in enumerate(read_lines(path), start=1):
        line = raw.rstrip("\r")
        if line.startswith("\t") and logical:
            logical[-1] = (logical[-1][0], f"{logical[-1][1]}{line}\n")
        elif line.strip():
            if line[0] not in "@*%":
                raise DataError(f"{path} line {number}: a line of CHAT starts with @, *, % or a tab.")
            logical.append((number, line + "\n"))
    before: list[str] = []
    at, main, tiers = 0, "", list[str]()
    for number, line in logical:
        if line.startswith("%") and main:
            tiers.append(line)
            continue
        if main:
            yield at, before, main, tiers
            before, main, tiers = [], "", []
        if line.startswith("*"):
            at, main = number, line
        else:
            before.append(line)
    yield at, before, main, tiers
