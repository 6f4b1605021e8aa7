"""Networks of which most is frozen, trained on small images: what bn-only and random-convs share.

Data, normalisation, cache and measurement are common to both. Every trained network is kept under its full recipe
(architecture, start, what is trained, data, optimisation, seed), so a run that both ask for is trained once. With the
papers' own recipes, which differ in start and schedule, there is no such run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.data.cifar import cifar10
from striate.data.small import default_set, fashion_mnist, fashion_mnist_folder
from striate.engine.model import Preprocessing, VisionModel
from striate.engine.train import Augment, Loss, Recipe, cross_entropy, trained
from striate.papers.base import Run

__all__ = ["SmallImages", "cifar10_images", "fashion_images", "random_images", "train_arm"]


@dataclass(frozen=True)
class SmallImages:
    """Images to train and test on.

    Attributes:
        name: of the set and its size, for the cache's key.
        train, test: images (N, C, H, W), uint8 or in [0, 1], and labels (N,).
        mean, std: per channel, for the normalisation in front of the network.
        origin: in words.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    @property
    def channels(self) -> int:
        """Of an image."""
        return len(self.mean)

    def describe(self) -> dict[str, Any]:
        """Return what stands in the evidence about them."""
        n, size = [len(self.train[1]), len(self.test[1])], list(self.train[0].shape[1:])
        return {"origin": self.origin, "n": n, "size": size}


def fashion_images(run: Run, n_train: int, n_test: int, side: int = 14) -> SmallImages:
    """Return the first images of Fashion-MNIST, averaged down to 14 x 14, or scikit-learn's digits.

    Digits serve the smoke scale, and any scale on a machine without Fashion-MNIST.

    Args:
        run: at paper scale Fashion-MNIST is wanted, and looked for under ``--data`` first.
        n_train, n_test: how many.
        side: 14, 28 (as it is) or 32 (enlarged, as the paper of random convolutions does).
    """
    if run.scale == "paper":
        root = run.data if run.data is not None and fashion_mnist_folder(True, run.data) else None
        parts = [fashion_mnist(part, root) for part in (True, False)]
    else:
        parts = [default_set(part, "digits" if run.scale == "smoke" else "auto") for part in (True, False)]
    images = [part.images[:n] for part, n in zip(parts, (n_train, n_test), strict=True)]
    if images[0].shape[-1] == 28 and side != 28:
        images = [_resized(pixels.float() / 255, side) for pixels in images]
    labels = [part.labels[:n] for part, n in zip(parts, (n_train, n_test), strict=True)]
    pixels = images[0].double() / (255 if images[0].dtype == torch.uint8 else 1)
    mean, std = round(pixels.mean().item(), 4), round(pixels.std().item(), 4)
    name = f"{parts[0].origin.split(',')[0]} {tuple(images[0].shape)} {tuple(images[1].shape)}"
    return SmallImages(name, (images[0], labels[0]), (images[1], labels[1]), (mean,), (std,), parts[0].origin)


def cifar10_images(run: Run) -> SmallImages:
    """Return all of CIFAR-10 from under ``--data``.

    Raises:
        RunError: no ``--data``.
    """
    root = run.data_root("CIFAR-10 (python version)")
    train, test = cifar10(root, True), cifar10(root, False)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as open_lth normalises CIFAR-10
    return SmallImages("CIFAR-10", (train.images, train.labels), (test.images, test.labels), mean, std, train.origin)


def random_images(n: int, channels: int = 3, side: int = 32) -> SmallImages:
    """Return random pixels of the real data's shape, for a dry run."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, channels, side, side), dtype=torch.uint8, generator=generator)
    part = (images, torch.arange(n) % 10)
    return SmallImages("random", part, part, (0.5,) * channels, (0.25,) * channels, "random pixels")


def train_arm(
    run: Run,
    name: str,
    build: Callable[[], nn.Module],
    data: SmallImages,
    recipe: Recipe,
    *,
    arm: str,
    augment: Augment | None = None,
    loss: Loss = cross_entropy,
) -> VisionModel:
    """Return the network of one arm, trained now or taken from the cache, in eval mode.

    Args:
        run: where.
        name: of the architecture, for the cache.
        build: returns the network for normalised images, frozen as the arm wants it; called under the recipe's seed.
        data: to train on.
        recipe, augment, loss: how.
        arm: how it starts and what is trained, in words; part of the cache's key.
    """

    def normalising() -> nn.Module:
        # Channels last: convolutions of few channels are a quarter faster so on a CPU.
        network = build().to(memory_format=torch.channels_last)
        size = (data.channels, *data.train[0].shape[-2:])
        return VisionModel(network, Preprocessing(size, data.mean, data.std))

    model = trained(
        f"frozen-{name}",
        normalising,
        lambda: data.train,
        recipe,
        augment=augment,
        loss=loss,
        key={"data": data.name, "arm": arm, "normalisation": [data.mean, data.std], "version": 1},
        device=run.device,
    )
    assert isinstance(model, VisionModel)
    return model


def _resized(images: Tensor, side: int) -> Tensor:
    if 28 % side == 0:
        return F.avg_pool2d(images, 28 // side)
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
