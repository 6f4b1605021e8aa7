"""Words and characters as numbers, and sentences as padded batches of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["LONGEST_WORD", "Batch", "Vocabulary", "zeros_for_digits"]

LONGEST_WORD = 45
"""Characters; what is longer is cut, as in the authors' code."""

_PAD, _UNKNOWN, _FIRST = 0, 1, 2


class Batch(NamedTuple):
    """Sentences for the network.

    Attributes:
        words: (B, T) rows of the word table; 0 after a sentence's end.
        chars: (U, C) characters of each different word of the batch; 0 after a word's end.
        spelling: (B, T) rows of ``chars``; anything after a sentence's end.
        mask: (B, T) true on tokens.
    """

    words: Tensor
    chars: Tensor
    spelling: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        return Batch(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class Vocabulary:
    """Which words have a row of their own in the table, and which characters are known.

    Rows go by the cased word, so that "The" and "the" may start from one vector and then part. 0 is the padding, 1
    shared by whatever is unknown.

    Attributes:
        words: with their own rows, numbered from 2.
        chars: likewise.
        digits_to_zero: look words up with every digit as 0; the paper does not. Characters are read as they are.
    """

    words: tuple[str, ...]
    chars: tuple[str, ...]
    digits_to_zero: bool = False
    _rows: dict[str, int] = field(init=False, repr=False, compare=False)
    _places: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("words", "chars"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise InputError(name, "Vocabulary", allowed="all different", got="some twice")
        object.__setattr__(self, "_rows", {word: row for row, word in enumerate(self.words, start=_FIRST)})
        object.__setattr__(self, "_places", {char: place for place, char in enumerate(self.chars, start=_FIRST)})

    @classmethod
    def build(
        cls, sentences: Iterable[Sequence[str]], extra_words: Iterable[str] = (), *, digits_to_zero: bool = False
    ) -> Vocabulary:
        """Take all words of ``sentences`` and ``extra_words``, in sorted order, and all their characters.

        Args:
            sentences: tokens of each.
            extra_words: further words that shall have rows, such as those of the text to be tagged: the paper gives
                rows to the words of its development and test parts, so that their vectors are used.
            digits_to_zero: see the attribute.
        """
        words = {word for sentence in sentences for word in sentence} | set(extra_words)
        chars = sorted({char for word in words for char in word[:LONGEST_WORD]})
        words = {zeros_for_digits(word) for word in words} if digits_to_zero else words
        return cls(tuple(sorted(words)), tuple(chars), digits_to_zero)

    @property
    def num_words(self) -> int:
        """Rows of the word table."""
        return len(self.words) + _FIRST

    @property
    def num_chars(self) -> int:
        """As :class:`striate.layers.char_cnn.CharCNN` counts them."""
        return len(self.chars) + _FIRST

    def row(self, word: str) -> int:
        """Return the word's row: as it is, else in lower case, else that of the unknown."""
        word = zeros_for_digits(word) if self.digits_to_zero else word
        return self._rows.get(word, self._rows.get(word.lower(), _UNKNOWN))

    def spell(self, words: Sequence[str]) -> Tensor:
        """Return the characters of each word, (U, C), at most :data:`LONGEST_WORD`, zeros after its end."""
        spelled = [[self._places.get(char, _UNKNOWN) for char in word[:LONGEST_WORD]] for word in words]
        longest = max(map(len, spelled), default=1)
        return torch.tensor([row + [_PAD] * (longest - len(row)) for row in spelled]).view(len(words), longest)

    def batch(self, sentences: Sequence[Sequence[str]]) -> Batch:
        """Return sentences of one or more tokens as one batch.

        Raises:
            InputError: no sentence, or an empty one.
        """
        if not sentences or not all(sentences):
            got = "none" if not sentences else f"sentence {[len(s) for s in sentences].index(0)} is empty"
            raise InputError("sentences", "the tagger", allowed="one or more, none empty", got=got)
        rows: dict[str, int] = {}
        spelling = [[rows.setdefault(word, len(rows)) for word in sentence] for sentence in sentences]
        table = torch.tensor([self.row(word) for word in rows])
        lengths = [len(sentence) for sentence in sentences]
        padded = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in spelling])
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return Batch(torch.where(mask, table[padded], _PAD), self.spell(list(rows)), padded, mask)


def zeros_for_digits(word: str) -> str:
    """Return the word with every digit as 0, as a vocabulary with ``digits_to_zero`` looks it up."""
    return re.sub(r"\d", "0", word)
