"""Reading images, with or without labels, from whatever a caller has at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["Batches", "batches"]

Batches = Tensor | tuple[Tensor, Tensor] | Iterable[Any]
"""Images (N, C, H, W); images with labels (N,); or an iterable of such batches, e.g. a DataLoader."""


def batches(source: Batches, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield (images, labels or None), in order.

    Args:
        source: see :data:`Batches`; an iterable keeps its own batches.
        batch_size: of images given as one tensor.
    """
    if isinstance(source, Tensor):
        for start in range(0, len(source), batch_size):
            yield source[start : start + batch_size], None
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor) and source[0].dim() == 4:
        images, labels = source[0], torch.as_tensor(source[1])
        if labels.shape != (len(images),):
            raise InputError("labels", "batches", allowed=f"one for each of {len(images)} images", got=labels.shape)
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size], labels[start : start + batch_size]
    else:
        for batch in source:
            yield (batch, None) if isinstance(batch, Tensor) else (batch[0], torch.as_tensor(batch[1]))
