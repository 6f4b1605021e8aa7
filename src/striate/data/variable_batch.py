"""The multi-scale sampler with variable batch size: image sizes are drawn, batches hold about as many pixels each.

Mehta and Rastegari, "MobileViT", ICLR 2022, arXiv 2110.02178, section 3.2 and appendix B. Small images come in large
batches, so that the memory of a step stays, and an epoch has fewer steps than at the largest or the base size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Sampler

from striate.errors import InputError

__all__ = ["ScaledBatch", "VariableBatchSampler", "batch_sizes", "resized_batch"]

ScaledBatch = tuple[int, int, int]
"""Height, width, number of images."""


def batch_sizes(
    base_size: int | tuple[int, int] = 256,
    min_size: int | tuple[int, int] = 160,
    max_size: int | tuple[int, int] = 320,
    *,
    check_scale: int = 32,
    n_scales: int = 5,
    base_batch: int = 128,
) -> list[ScaledBatch]:
    """Return every (height, width, images) that a batch may have, smallest first.

    ``n_scales`` equally spaced sizes, rounded to multiples of ``check_scale``, and always the base size. The number of
    images is ``base_batch`` x base area / area, rounded down, at least 1. The paper's equation has the largest area
    in place of the base's; this follows the authors' code.

    Args:
        base_size, min_size, max_size: (height, width), or one number for both.
        check_scale: sides are multiples of it.
        n_scales: sizes between the least and the largest.
        base_batch: images at the base size.

    >>> batch_sizes()
    [(160, 160, 327), (192, 192, 227), (256, 256, 128), (288, 288, 101), (320, 320, 81)]
    """
    base, low, high = (np.broadcast_to(np.asarray(size), 2) for size in (base_size, min_size, max_size))
    if not ((low > 0) & (low <= base) & (base <= high)).all():
        allowed = "0 < min_size <= base_size <= max_size"
        raise InputError("base_size", "batch_sizes", allowed=allowed, got=(min_size, base_size, max_size))
    for name, value in (("check_scale", check_scale), ("n_scales", n_scales), ("base_batch", base_batch)):
        if value < 1:
            raise InputError(name, "batch_sizes", allowed=">= 1", got=value)
    spaced = [*np.linspace(low, high, n_scales), base]
    rounded = {tuple(max(1, int(side / check_scale + 0.5)) * check_scale for side in size) for size in spaced}
    pixels = int(base.prod()) * base_batch
    return sorted((h, w, max(1, pixels // (h * w))) for h, w in rounded)


class VariableBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of (height, width, index) for a data set whose ``__getitem__`` takes such a triple.

    Hand it to a ``DataLoader`` as ``batch_sampler``. An epoch gives every image once; its last batch may be short.
    Each batch is a function of (seed, epoch) alone: call :meth:`set_epoch` before each.

    Args:
        n: images of the data set.
        base_size, min_size, max_size, check_scale, n_scales, base_batch: see :func:`batch_sizes`.
        seed: of order and sizes.
        shuffle: False keeps the order of the data set; sizes are drawn all the same.
        rank, num_replicas: this process and how many there are. All draw the same sizes; each has its own images,
            the first ones given again where they cannot be divided evenly.
    """

    def __init__(
        self,
        n: int,
        base_size: int | tuple[int, int] = 256,
        min_size: int | tuple[int, int] = 160,
        max_size: int | tuple[int, int] = 320,
        *,
        check_scale: int = 32,
        n_scales: int = 5,
        base_batch: int = 128,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        if n < 1:
            raise InputError("n", "VariableBatchSampler", allowed=">= 1", got=n)
        if seed < 0:
            raise InputError("seed", "VariableBatchSampler", allowed=">= 0", got=seed)
        if not 0 <= rank < num_replicas:
            raise InputError("rank", "VariableBatchSampler", allowed=f"from 0 to {num_replicas - 1}", got=rank)
        self.sizes = batch_sizes(
            base_size, min_size, max_size, check_scale=check_scale, n_scales=n_scales, base_batch=base_batch
        )
        self.n, self.seed, self.shuffle, self.epoch = n, seed, shuffle, 0
        self.rank, self.num_replicas = rank, num_replicas

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass is of."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.n) if self.shuffle else np.arange(self.n)
        share = -(-self.n // self.num_replicas)
        own = np.resize(order, share * self.num_replicas)[self.rank :: self.num_replicas]
        start = 0
        while start < share:
            height, width, images = self.sizes[generator.integers(len(self.sizes))]
            yield [(height, width, int(index)) for index in own[start : start + images]]
            start += images

    def __len__(self) -> int:
        """Batches of the current epoch."""
        return sum(1 for _ in self)


def resized_batch(
    images: Tensor, labels: Tensor, sizes: Sequence[ScaledBatch], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw one of ``sizes`` and return the first so many images of the batch, resized (bilinear), with their labels.

    For training loops whose images are one tensor: the batch must be as large as the largest of ``sizes``.

    Args:
        images: (N, C, H, W) floating point.
        labels: (N, …).
        sizes: see :func:`batch_sizes`.
        generator: decides which size.
    """
    most = max(count for _, _, count in sizes)
    if len(images) < most:
        raise InputError("images", "resized_batch", allowed=f"at least {most}, the largest batch", got=len(images))
    drawn = int(torch.randint(len(sizes), (), generator=generator, device=generator.device))
    height, width, count = sizes[drawn]
    images = images[:count]
    if images.shape[-2:] != (height, width):
        images = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return images, labels[:count]
