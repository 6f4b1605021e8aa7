"""Stanford Dogs: 20,580 photographs of 120 breeds.

Khosla, Jayadevaprakash, Yao, Li, "Novel Dataset for Fine-Grained Image Categorization", 2011. Research use. Unverified
against the real files; the layout is the published one: ``Images/n02085620-Chihuahua/*.jpg`` and
``lists/train_list.mat``, ``lists/test_list.mat`` (12,000 and 8,580 photographs).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from striate.data.small import LabelledImages
from striate.errors import DataError

__all__ = ["random_resized_crop", "stanford_dogs"]


def stanford_dogs(root: str | Path, train: bool, *, size: int = 256) -> LabelledImages:
    """Read one part into memory, (N, 3, size, size) uint8: 2.4 GB for the training part at 256.

    The shorter side is scaled to ``size`` and the middle cut out.

    Args:
        root: the folder that holds ``Images`` and ``lists``.
        train: the training part, else the test part.
        size: side in pixels.

    Raises:
        DataError: a list or a photograph is missing or malformed.
    """
    from scipy.io import loadmat

    name = Path(root) / "lists" / f"{'train' if train else 'test'}_list.mat"
    try:
        lists = loadmat(str(name))
        files = [str(entry[0]) for entry in lists["file_list"][:, 0]]
        labels = torch.from_numpy(lists["labels"][:, 0].astype(np.int64)) - 1
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{name} is not a list of Stanford Dogs: {error}.") from error
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for i, file in enumerate(files):
        try:
            with Image.open(Path(root) / "Images" / file) as picture:
                images[i] = _square(picture.convert("RGB"), size)
        except OSError as error:
            raise DataError(f"{Path(root) / 'Images' / file} of {name.name} cannot be read: {error}.") from error
    breeds = {int(label): file.split("/")[0].partition("-")[2] for label, file in zip(labels, files, strict=True)}
    names = tuple(breeds.get(label, str(label)) for label in range(int(labels.max()) + 1))
    return LabelledImages(images, labels, names, f"Stanford Dogs, {'training' if train else 'test'} part")


def random_resized_crop(images: Tensor, generator: torch.Generator, size: int = 224) -> Tensor:
    """Cut out 8 % to 100 % of each image's area at an aspect from 3/4 to 4/3, scale it to ``size``, mirror half.

    The augmentation of ImageNet training (Szegedy et al. 2014), bilinear and on a whole batch.

    Args:
        images: (N, C, H, W) float.
        generator: on the images' device.
        size: side of the result.
    """
    n, device = len(images), images.device

    def draw() -> Tensor:
        return torch.rand(n, generator=generator, device=device)

    area = 0.08 + 0.92 * draw()
    aspect = torch.exp((2 * draw() - 1) * math.log(4 / 3)).sqrt()
    wide, high = (area.sqrt() * aspect).clamp(max=1), (area.sqrt() / aspect).clamp(max=1)
    x, y = (2 * draw() - 1) * (1 - wide), (2 * draw() - 1) * (1 - high)
    mirror = torch.where(draw() < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(x)
    affine = torch.stack([torch.stack([mirror * wide, zero, x], 1), torch.stack([zero, high, y], 1)], 1)
    grid = F.affine_grid(affine, [n, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _square(picture: Image.Image, size: int) -> Tensor:
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    cut = scaled.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1)
