"""The basic augmentations of ImageNet and of CIFAR training, on batches: a random crop, and a mirror image of half."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.errors import InputError

__all__ = ["RandomResizedCrop", "ShiftedCrop"]


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop each image of a batch by itself and resize the crop to the image's size, bilinear; mirror half of them.

    The distribution is Szegedy et al.'s (2014, arXiv 1409.4842): area and the logarithm of the aspect ratio are
    uniform. A side that would stick out is cut to the image's, where torchvision draws again.

    Attributes:
        least: least share of the image's area, in (0, 1].
        ratio: largest width to height; the least is its inverse.
        flip: share of mirrored images.
    """

    least: float = 0.08
    ratio: float = 4 / 3
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.least <= 1 and self.ratio >= 1 and 0 <= self.flip <= 1):
            raise InputError("least", "RandomResizedCrop", allowed="in (0, 1], ratio >= 1, flip in [0, 1]", got=self)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return (N, C, H, W) for floating-point images (N, C, H, W); an augmentation of the training loop."""
        n, device = len(images), images.device
        area, ratio, x, y, mirror = torch.rand(5, n, generator=generator, device=device).to(images.dtype)
        side, stretch = (self.least + (1 - self.least) * area).sqrt(), self.ratio ** (ratio - 0.5)
        width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
        theta = images.new_zeros(n, 2, 3)
        theta[:, 0, 0] = torch.where(mirror < self.flip, -width, width)
        theta[:, 1, 1] = height
        theta[:, 0, 2], theta[:, 1, 2] = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class ShiftedCrop:
    """Surround each image of a batch with zeros, cut the old size out at a random place, and mirror half of them.

    He et al. 2015 (arXiv 1512.03385), Section 4.2, with 4 pixels.

    Attributes:
        pad: pixels of zeros on every side.
        flip: share of mirrored images.
    """

    pad: int = 4
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.pad < 0 or not 0 <= self.flip <= 1:
            raise InputError("pad", "ShiftedCrop", allowed=">= 0, flip in [0, 1]", got=self)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return (N, C, H, W) for images (N, C, H, W); an augmentation of the training loop."""
        n, _, height, width = images.shape
        places = 2 * self.pad + 1
        top, left = torch.randint(0, places, (2, n, 1), generator=generator, device=images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = left + torch.arange(width, device=images.device)
        mirrored = torch.rand(n, 1, generator=generator, device=images.device) < self.flip
        columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, (self.pad,) * 4)
        return padded[
            torch.arange(n, device=images.device)[:, None, None], :, rows[:, :, None], columns[:, None]
        ].permute(0, 3, 1, 2)
