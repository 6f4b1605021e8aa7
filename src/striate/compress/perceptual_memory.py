"""A memory of past images: an image that was seen before is answered without running any network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from striate.compress.perceptual_hash import FingerprintKind, exact_digest, fingerprints
from striate.engine.files import read_json, write_json
from striate.errors import DataError, InputError

__all__ = ["MemoryCounts", "PerceptualMemory"]


@dataclass
class MemoryCounts:
    """What a memory was asked and what it answered.

    Attributes:
        asked: images looked up.
        hits: answered from the memory.
        near_hits: hits whose bytes differ from those of the image that was stored: a rotated or slightly changed copy,
            or another image with the same fingerprint. Only labels can tell which.
        unmarked: images without a fingerprint, which always go to the classifier.
        evicted: images forgotten because the memory was full.
    """

    asked: int = 0
    hits: int = 0
    near_hits: int = 0
    unmarked: int = 0
    evicted: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return a JSON-ready dictionary."""
        return dict(vars(self))


@dataclass
class _Entry:
    digest: int
    label: int = -1
    score: float = 0.0


class PerceptualMemory:
    """Answers of a classifier, kept by the fingerprint of the image (Kinnas et al. 2025, arXiv 2412.01039, section 3).

    It repeats what it stored: a wrong first answer stays wrong, and images that share a fingerprint share an answer.
    ``"exact"`` tells all but the same bytes apart.

    Args:
        kind: see :func:`~striate.compress.perceptual_hash.fingerprints`.
        capacity: images kept; the least recently seen is forgotten first. None for no bound.

    Attributes:
        counts: see :class:`MemoryCounts`.
    """

    def __init__(self, kind: FingerprintKind = "dhash", capacity: int | None = None) -> None:
        if capacity is not None and capacity < 1:
            raise InputError("capacity", "PerceptualMemory", allowed=">= 1, or None for no bound", got=capacity)
        fingerprints(torch.zeros(0, 1, 1, 1, dtype=torch.uint8), kind)  # an unknown kind is refused now, not later
        self.kind: FingerprintKind = kind
        self.capacity = capacity
        self.counts = MemoryCounts()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def __repr__(self) -> str:
        room = "" if self.capacity is None else f" of at most {self.capacity:,}"
        return f"PerceptualMemory({self.kind}; {len(self):,}{room} images, {self.counts.hits:,} hits)"

    def __len__(self) -> int:
        """Return how many images are kept."""
        return len(self._entries)

    def answer(
        self, images: Tensor, classify: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answer a batch as if its images came one by one, calling ``classify`` at most once.

        Args:
            images: (N, C, H, W) uint8, as they came in: before any normalisation.
            classify: called with the rows of the unknown images, (K,) long; returns their labels and scores, (K,) each.

        Returns:
            Labels (N,) long, scores (N,) float64 as they were when first given, and which images were remembered,
            (N,) bool; all on the CPU.

        Raises:
            InputError: images are not uint8. Whatever ``classify`` raises, too; no answer of that batch is kept then,
                but what its images pushed out of a full memory stays forgotten.
        """
        keys = fingerprints(images, self.kind)
        digests = keys if self.kind == "exact" else exact_digest(images)
        entries: list[_Entry] = []
        rows: list[int] = []
        for row, (key, digest) in enumerate(zip(keys, digests, strict=True)):
            entry = None if key is None else self._entries.get(key)
            if entry is not None and key is not None:
                self._entries.move_to_end(key)
                self.counts.hits += 1
                self.counts.near_hits += entry.digest != digest
            else:
                entry = _Entry(digest or 0)
                rows.append(row)
                self._keep(key, entry)
            entries.append(entry)
        self.counts.asked += len(keys)
        remembered = torch.ones(len(keys), dtype=torch.bool)
        remembered[rows] = False
        if rows:
            try:
                labels, scores = classify(torch.tensor(rows))
                for row, label, score in zip(rows, labels.tolist(), scores.tolist(), strict=True):
                    entries[row].label, entries[row].score = label, score
            except BaseException:
                self._forget([keys[row] for row in rows])
                raise
        label_list, score_list = [entry.label for entry in entries], [entry.score for entry in entries]
        return torch.tensor(label_list, dtype=torch.long), torch.tensor(score_list, dtype=torch.float64), remembered

    def _keep(self, key: int | None, entry: _Entry) -> None:
        if key is None:
            self.counts.unmarked += 1
            return
        self._entries[key] = entry
        if self.capacity is not None and len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
            self.counts.evicted += 1

    def _forget(self, keys: list[int | None]) -> None:
        for key in keys:
            if key is not None:
                self._entries.pop(key, None)

    def save(self, path: str | Path, *, classifier: str = "") -> Path:
        """Write the memory as JSON, whole or not at all, with the name of the classifier whose answers it holds."""
        entries = [[key, entry.label, entry.score, entry.digest] for key, entry in self._entries.items()]
        content = {"kind": self.kind, "capacity": self.capacity, "classifier": classifier, "entries": entries}
        return write_json(path, content)

    @classmethod
    def load(cls, path: str | Path, *, classifier: str = "") -> PerceptualMemory:
        """Read what :meth:`save` wrote; counts start at zero.

        Raises:
            DataError: the file is damaged, or holds the answers of another classifier.
        """
        try:
            content = read_json(path)
            memory = cls(content["kind"], content["capacity"])
            for key, label, score, digest in content["entries"]:
                memory._entries[int(key)] = _Entry(int(digest), int(label), float(score))
            owner = str(content["classifier"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a memory that can be read ({error}); start with a new one.") from error
        if owner != classifier:
            raise DataError(
                f"{path} holds the answers of classifier '{owner}', not of '{classifier}'; start with a new memory."
            )
        return memory
