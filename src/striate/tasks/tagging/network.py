"""The tagger: word vectors and a character CNN, a bidirectional LSTM, and a conditional random field.

Ma, Hovy, "End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF", ACL 2016, arXiv 1603.01354.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.state import device_of, inspected
from striate.errors import InputError
from striate.layers.bi_recurrent import BiRecurrent
from striate.layers.char_cnn import CharCNN
from striate.layers.crf import LinearChainCRF, TagPath
from striate.tasks.tagging.scheme import (
    Scheme,
    allowed_transitions,
    chunk_scheme,
    iob1_to_bioes,
    spans_of,
    spans_to_tags,
)
from striate.tasks.tagging.vectors import WordVectors
from striate.tasks.tagging.vocabulary import Batch, Vocabulary, zeros_for_digits

__all__ = ["BiLSTMCNNCRF", "Head", "TokenSoftmax"]

Head = Literal["first-order", "bigram", "softmax"]
_T = TypeVar("_T")


class TokenSoftmax(nn.Module):
    """Every token's tag by itself, with the interface of :class:`striate.layers.crf.LinearChainCRF`.

    Its loss is the CRF's with all transitions at 0: the sum of a sentence's cross entropies.
    """

    def nll(self, inputs: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over sentences of the summed cross entropy of (B, T, K) scores."""
        losses = F.cross_entropy(inputs.float().transpose(1, 2), tags, reduction="none")
        return (losses * mask).sum() / len(inputs)

    def decode(self, inputs: Tensor, mask: Tensor) -> list[list[int]]:
        """Return the best tag of each token."""
        _refuse_nan(inputs)
        sizes = mask.sum(dim=1).tolist()
        return [row[:size] for row, size in zip(inputs.argmax(dim=2).tolist(), sizes, strict=True)]

    def marginals(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Return softmax, zero where the mask is."""
        _refuse_nan(inputs)
        return inputs.float().softmax(dim=2) * mask[:, :, None]


class BiLSTMCNNCRF(nn.Module):
    """Tags sentences of tokens; trained by :meth:`fit`, or by your own loop on :meth:`nll`.

    A word is [what the CNN reads from its characters ; its row of the word table]; dropout; bidirectional LSTM;
    dropout; head. Sizes are the paper's by default.

    Args:
        vocabulary: which words and characters there are.
        tags: names of the tags, in the order of their numbers.
        vectors: first values of the word table for the words that have one; the others are drawn uniformly in
            ±sqrt(3 / dimension). All are trained.
        word_dim: width of the word table; with ``vectors`` it is theirs.
        char_dim, char_filters, char_width: of the character CNN; 0 filters leave it out.
        hidden: units a direction.
        recurrent: ``"lstm"``, or ``"rnn"`` for the paper's weakest baseline.
        head: ``"first-order"``: a CRF whose transitions are constants; ``"bigram"``: the paper's, whose transitions
            depend on the input; ``"softmax"``: no CRF.
        dropout: on characters, on words and on the LSTM's output.
        constrain: never predict what BIOES forbids (CRF heads, chunk tags).
        output_scheme: for data whose spans are spelled in IOB1 or BIO: the network works in BIOES (give BIOES
            ``tags``), :meth:`fit` takes and :meth:`predict` gives that spelling.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        tags: Sequence[str],
        *,
        vectors: WordVectors | None = None,
        word_dim: int = 100,
        char_dim: int = 30,
        char_filters: int = 30,
        char_width: int = 3,
        hidden: int = 200,
        recurrent: Literal["lstm", "rnn"] = "lstm",
        head: Head = "first-order",
        dropout: float = 0.5,
        constrain: bool = False,
        output_scheme: Scheme | None = None,
    ) -> None:
        super().__init__()
        if not tags or len(set(tags)) != len(tags):
            raise InputError("tags", "BiLSTMCNNCRF", allowed="one or more different names", got=tags)
        if head not in {"first-order", "bigram", "softmax"}:
            raise InputError("head", "BiLSTMCNNCRF", allowed="first-order, bigram or softmax", got=head)
        if constrain and (head == "softmax" or chunk_scheme([tags]) != "BIOES"):
            raise InputError("constrain", "BiLSTMCNNCRF", allowed="True with a CRF and BIOES tags only", got=True)
        for name, size, least in (("hidden", hidden, 1), ("word_dim", word_dim, 1), ("char_filters", char_filters, 0)):
            if size < least:
                raise InputError(name, "BiLSTMCNNCRF", allowed=f">= {least}", got=size)
        if not 0 <= dropout < 1:
            raise InputError("dropout", "BiLSTMCNNCRF", allowed="in [0, 1)", got=dropout)
        self.vocabulary, self.tags = vocabulary, tuple(tags)
        self.output_scheme = output_scheme
        word_dim = word_dim if vectors is None else vectors.dim
        self.options: dict[str, Any] = {
            "word_dim": word_dim,
            "char_dim": char_dim,
            "char_filters": char_filters,
            "char_width": char_width,
            "hidden": hidden,
            "recurrent": recurrent,
            "head": head,
            "dropout": dropout,
            "constrain": constrain,
            "output_scheme": output_scheme,
        }
        """Of the constructor, but for the vectors."""
        self._numbers = {tag: number for number, tag in enumerate(self.tags)}
        self.words = nn.Embedding(vocabulary.num_words, word_dim, padding_idx=0)
        self._draw_words(slice(1, None))
        if vectors is not None:
            self._fill(vocabulary.words, vectors, first=2)
        self.chars = None
        if char_filters:
            self.chars = CharCNN(vocabulary.num_chars, char_dim, char_filters, char_width, dropout)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = BiRecurrent(char_filters + word_dim, hidden, recurrent)
        self.scores: nn.Module = nn.Identity()
        self.head: LinearChainCRF | TokenSoftmax
        if head == "bigram":
            self.head = LinearChainCRF(len(tags), bigram_features=2 * hidden)
        else:
            self.scores = nn.Linear(2 * hidden, len(tags))
            nn.init.xavier_uniform_(self.scores.weight)
            nn.init.zeros_(self.scores.bias)
            self.head = LinearChainCRF(len(tags)) if head == "first-order" else TokenSoftmax()
        if constrain and isinstance(self.head, LinearChainCRF):
            self.head.constrain(*allowed_transitions(self.tags))

    def forward(self, batch: Batch) -> Tensor:
        """Return what the head reads, (B, T, tags) scores or, in the bigram form, (B, T, 2 hidden) features."""
        words = self.words(batch.words)
        if self.chars is not None:
            # Each different word once; in training each occurrence, for each has its own dropout.
            read = self.chars(batch.chars[batch.spelling]) if self.training else self.chars(batch.chars)[batch.spelling]
            words = torch.cat([read, words], dim=2)
        return self.scores(self.dropout(self.recurrent(self.dropout(words), batch.mask)))

    def nll(self, batch: Batch, tags: Tensor) -> Tensor:
        """Return the negative log-likelihood of ``tags`` (B, T), mean over sentences, not over tokens."""
        return self.head.nll(self(batch), tags, batch.mask)

    def fit(
        self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], **options: Any
    ) -> list[dict[str, Any]]:
        """Train in place; arguments, errors and records as in :func:`striate.tasks.tagging.training.fit_tagger`."""
        from striate.tasks.tagging.training import fit_tagger

        return fit_tagger(self, sentences, tags, **options)

    def predict(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the tags of each sentence.

        Sentences of like length are computed together; neither the batch nor the order changes anything.

        Raises:
            InputError: an empty sentence, or one that is text instead of tokens.
        """

        def decode(batch: Batch) -> list[list[str]]:
            return [self._spelled(row) for row in self.head.decode(self(batch), batch.mask)]

        return self._over(sentences, decode)

    def k_best(self, sentences: Sequence[Sequence[str]], k: int) -> list[list[tuple[list[str], float]]]:
        """Return the k best tag sequences of each sentence with their probabilities, best first.

        Raises:
            InputError: an empty sentence, k < 1, or a softmax head.
        """
        head = self.head
        if not isinstance(head, LinearChainCRF):
            raise InputError("head", "k_best", allowed="a CRF", got="softmax")

        def decode(batch: Batch) -> list[list[tuple[list[str], float]]]:
            found: list[list[TagPath]] = head.decode(self(batch), batch.mask, k)
            return [[(self._spelled(path.tags), math.exp(path.log_probability)) for path in row] for row in found]

        return self._over(sentences, decode)

    def predict_proba(self, sentences: Sequence[Sequence[str]]) -> list[Tensor]:
        """Return p(tag | sentence) of each token, (tokens, tags) on the CPU, in the order of :attr:`tags`."""

        def marginals(batch: Batch) -> list[Tensor]:
            found = self.head.marginals(self(batch), batch.mask).cpu()
            return [row[:size] for row, size in zip(found, batch.mask.sum(dim=1).tolist(), strict=True)]

        return self._over(sentences, marginals)

    def number(self, tags: Sequence[str]) -> list[int]:
        """Return the tags' numbers; with an ``output_scheme`` they are spelled in it.

        Raises:
            InputError: a tag that the network does not know.
        """
        tags = tags if self.output_scheme is None else iob1_to_bioes(tags)
        unknown = [tag for tag in tags if tag not in self._numbers]
        if unknown:
            raise InputError("tags", "the tagger", allowed=f"among its {len(self.tags)} tags", got=unknown[0])
        return [self._numbers[tag] for tag in tags]

    def add_words(self, words: Sequence[str], vectors: WordVectors) -> int:
        """Give rows to new words that have a vector, so that new text is read with it; return how many.

        With ``digits_to_zero`` it is the word with zeros that has a row, and needs a vector.
        """
        known = set(self.vocabulary.words)
        words = [zeros_for_digits(word) for word in words] if self.vocabulary.digits_to_zero else words
        new = sorted({word for word in words if word not in known and vectors.find(word) is not None})
        if vectors.dim != self.words.embedding_dim:
            allowed = f"{self.words.embedding_dim} numbers a word, as the tagger was trained on"
            raise InputError("vectors", "add_words", allowed=allowed, got=vectors.dim)
        old, first = self.words, self.vocabulary.num_words
        self.vocabulary = Vocabulary(
            (*self.vocabulary.words, *new), self.vocabulary.chars, self.vocabulary.digits_to_zero
        )
        self.words = nn.Embedding(first + len(new), old.embedding_dim, padding_idx=0).to(old.weight)
        with torch.no_grad():
            self.words.weight[:first] = old.weight
        self._fill(new, vectors, first)
        return len(new)

    def _spelled(self, numbers: Sequence[int]) -> list[str]:
        tags = [self.tags[number] for number in numbers]
        return tags if self.output_scheme is None else spans_to_tags(spans_of(tags), len(tags), self.output_scheme)

    def _over(self, sentences: Sequence[Sequence[str]], compute: Callable[[Batch], list[_T]]) -> list[_T]:
        """Call ``compute`` on batches of sentences of like length, in eval mode; results in the order of sentences."""
        for place, sentence in enumerate(sentences):
            if isinstance(sentence, str):  # whose letters would be the tokens
                raise InputError("sentences", "the tagger", allowed="lists of tokens, as of text.split()", got="text")
            if not sentence:
                got = f"sentence {place} is empty"
                raise InputError("sentences", "the tagger", allowed="one or more tokens each", got=got)
        found: dict[int, _T] = {}
        device = device_of(self)
        with inspected(self, warn=False), torch.no_grad():
            for places in _buckets([len(sentence) for sentence in sentences]):
                batch = self.vocabulary.batch([sentences[place] for place in places]).to(device)
                found.update(zip(places, compute(batch), strict=True))
        return [found[place] for place in range(len(sentences))]

    def _draw_words(self, rows: slice) -> None:
        bound = math.sqrt(3 / self.words.embedding_dim)
        nn.init.uniform_(self.words.weight.detach()[rows], -bound, bound)

    def _fill(self, words: Sequence[str], vectors: WordVectors, first: int) -> None:
        with torch.no_grad():
            for row, word in enumerate(words, start=first):
                vector = vectors.find(word)
                if vector is not None:
                    self.words.weight[row] = vector


def _refuse_nan(scores: Tensor) -> None:
    if bool(scores.isnan().any()):
        raise InputError("inputs", "TokenSoftmax", allowed="numbers", got="NaN", hint="Did the training diverge?")


def _buckets(lengths: Sequence[int], tokens: int = 4096) -> Iterator[list[int]]:
    """Yield places of sentences, longest first, at most ``tokens`` with padding in a bucket."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    start = 0
    while start < len(order):
        size = max(1, tokens // lengths[order[start]])
        yield order[start : start + size]
        start += size
