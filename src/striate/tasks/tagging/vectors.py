"""Word vectors: read from a file (GloVe, Senna, word2vec), or made from text of one's own."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from striate.errors import DataError, InputError

__all__ = ["WordVectors", "ppmi_vectors", "read_vectors"]


@dataclass(frozen=True)
class WordVectors:
    """A vector a word.

    Attributes:
        rows: word -> row.
        matrix: (words, d) float32.
    """

    rows: dict[str, int]
    matrix: Tensor

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.matrix.shape[1]

    def find(self, word: str) -> Tensor | None:
        """Return the vector of the word as it is, else of its lower-case form, else None."""
        row = self.rows.get(word, self.rows.get(word.lower()))
        return None if row is None else self.matrix[row]


def read_vectors(path: str | Path, words: Collection[str] | None = None) -> WordVectors:
    """Read ``word f1 … fd`` a line (GloVe, Senna, word2vec text with or without its head), or word2vec's ``.bin``.

    Args:
        path: plain or ``.gz``, UTF-8.
        words: keep only these and their lower-case forms; GloVe's 400,000 words need minutes and gigabytes otherwise.

    Raises:
        DataError: unreadable, or a line holds another number of values than the first, or one that is not finite.
    """
    path = Path(path)
    wanted = None if words is None else {*words, *(word.lower() for word in words)}
    rows: dict[str, int] = {}
    values: list[np.ndarray] = []
    name = path.name.removesuffix(".gz")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for word, vector in (_binary if name.endswith(".bin") else _text)(file, path, wanted):  # type: ignore[arg-type]
                if word not in rows:
                    rows[word] = len(values)
                    values.append(vector)
    except (OSError, EOFError) as error:
        raise DataError(f"The word vectors in {path} cannot be read: {error}.") from error
    if not values:
        raise DataError(f"{path} holds no vector of any word that is needed.")
    return WordVectors(rows, torch.from_numpy(np.stack(values)))


def ppmi_vectors(
    sentences: Iterable[Sequence[str]], dim: int = 50, *, window: int = 2, at_least: int = 2, seed: int = 0
) -> WordVectors:
    """Make word vectors from untagged text: which words stand near which, factorised.

    Positive pointwise mutual information of words within ``window`` of one another, its truncated singular value
    decomposition U sqrt(S) (Levy, Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", NIPS 2014),
    each row scaled to length 1, which is the mean size of a random vector as the tagger draws them.

    Args:
        sentences: tokens of each, used as they are.
        dim: length of a vector.
        window: words to either side.
        at_least: how often a word must occur to get a vector.
        seed: of the decomposition's start.

    Raises:
        InputError: fewer than ``dim + 2`` words are left.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import svds

    text = [list(sentence) for sentence in sentences]
    counts = Counter(word for sentence in text for word in sentence)
    words = sorted(word for word, n in counts.items() if n >= at_least)
    if len(words) < dim + 2:
        raise InputError("sentences", "ppmi_vectors", allowed=f"with >= {dim + 2} words", got=len(words))
    rows = {word: row for row, word in enumerate(words)}
    pairs: Counter[tuple[int, int]] = Counter()
    for sentence in text:
        known = [rows.get(word, -1) for word in sentence]
        for place, first in enumerate(known):
            for second in known[place + 1 : place + 1 + window]:
                if first >= 0 and second >= 0:
                    pairs[first, second] += 1
                    pairs[second, first] += 1
    places = np.array(list(pairs), dtype=np.int64).reshape(-1, 2).T
    together = np.array(list(pairs.values()), dtype=np.float64)
    alone = np.bincount(places[0], weights=together, minlength=len(words))
    information = np.log(together * together.sum() / (alone[places[0]] * alone[places[1]]))
    positive = coo_array((np.maximum(information, 0), places), shape=(len(words), len(words))).tocsr()
    start = np.random.default_rng(seed).standard_normal(len(words))
    u, s, _ = svds(positive, k=dim, v0=start)
    found = u * np.sqrt(s)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return WordVectors(rows, torch.from_numpy(found.astype(np.float32)))


def _text(file: BinaryIO, path: Path, wanted: set[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    width = 0
    for number, raw in enumerate(file, start=1):
        line = raw.decode("utf-8", errors="replace").rstrip()
        if number == 1 and len(line.split(" ")) == 2:  # word2vec's head: how many, how long
            continue
        if not line:
            continue
        width = width or len(line.split(" ")) - 1
        word, *values = line.rsplit(" ", width)  # from the right: GloVe's largest files hold words with blanks
        if wanted is not None and word not in wanted:
            continue
        try:
            vector = np.array(values, dtype=np.float32)
        except ValueError:
            vector = np.empty(0, dtype=np.float32)
        if width == 0 or len(vector) != width or not np.isfinite(vector).all():
            raise DataError(f"{path} line {number}: a word and {width or 'some'} finite numbers were expected.")
        yield word, vector


def _binary(file: BinaryIO, path: Path, wanted: set[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    head = file.readline().split()
    if len(head) != 2 or not all(part.isdigit() for part in head):
        raise DataError(f"{path} is no binary file of word2vec: its first line should hold two numbers.")
    count, width = (int(part) for part in head)
    for _ in range(count):
        word = bytearray()
        while (letter := file.read(1)) not in {b" ", b""}:
            word += letter
        values = file.read(4 * width)
        if len(values) != 4 * width:
            raise DataError(f"{path} ends in the middle of a vector.")
        text = word.decode("utf-8", errors="replace").lstrip("\n")
        if wanted is None or text in wanted:
            vector = np.frombuffer(values, dtype="<f4").astype(np.float32)
            if not np.isfinite(vector).all():
                raise DataError(f"{path}: the vector of '{text}' holds what is no finite number.")
            yield text, vector
