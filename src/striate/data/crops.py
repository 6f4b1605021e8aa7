"""The basic augmentations of training, on batches: ImageNet's random crop, resized; CIFAR's shift; mirror images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.errors import InputError

__all__ = ["PaddedCrop", "RandomResizedCrop"]


@dataclass(frozen=True)
class PaddedCrop:
    """Shift each image of a batch by itself, black coming in, and mirror some of them: He et al. (2015) on CIFAR.

    The image is padded with zeros on every side, and a place of the old size is cut out of it.

    Attributes:
        padding: pixels, >= 0; each of the (2 padding + 1)² places is as likely.
        flip: share of mirrored images.
    """

    padding: int = 4
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.padding < 0 or not 0 <= self.flip <= 1:
            raise InputError("padding", "PaddedCrop", allowed=">= 0, flip in [0, 1]", got=self)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return (N, C, H, W) for floating-point images (N, C, H, W); an augmentation of the training loop."""
        n, _, height, width = images.shape
        device = images.device
        top, left = torch.randint(2 * self.padding + 1, (2, n, 1), generator=generator, device=device)
        rows = top + torch.arange(height, device=device)
        columns = left + torch.arange(width, device=device)
        mirrored = torch.rand(n, 1, generator=generator, device=device) < self.flip
        columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, [self.padding] * 4)
        which = torch.arange(n, device=device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
