"""What reproductions measure alike: right answers, sizes, and the small images and photographs to measure on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.data.embedded import Photograph
from striate.data.picture import prepare
from striate.data.small import default_set
from striate.engine.macs import count_macs
from striate.engine.model import VisionModel
from striate.engine.state import device_of
from striate.engine.train import Augment, Loss, Recipe, cross_entropy, trained
from striate.papers.base import Run

__all__ = [
    "as_32",
    "count_correct",
    "count_parameters",
    "lazily_trained",
    "measure_accuracy",
    "photograph_batch",
    "predict",
    "resize_bilinear",
    "train_and_test",
]


def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Return the likeliest class of each image, or of each of its pixels, on the CPU.

    Args:
        model: in eval mode; images are moved to where it is.
        images: (N, C, H, W), uint8 (scaled to [0, 1] batch by batch) or float.
        batch_size: images at a time. It may move the last bits of a logit, so a reproduction stays with its own.

    Returns:
        (N,) long; (N, H, W) where the model answers for every pixel.
    """
    device = device_of(model)
    with torch.inference_mode():
        return torch.cat([model(_pixels(x.to(device))).argmax(1).cpu() for x in images.split(batch_size)])


def count_correct(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 250,
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
) -> int:
    """Return how many images are classified rightly, before or after ``attack(model, images, labels)``.

    Args:
        model, images, batch_size: as for :func:`predict`.
        labels: (N,) classes.
        attack: gets and returns images in [0, 1] on the model's device, a batch at a time.
    """
    device, right = device_of(model), 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        shown = x if attack is None else attack(model, _pixels(x.to(device)), y.to(device))
        right += int((predict(model, shown, batch_size) == y).sum())
    return right


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Return the number of a model's parameters, or of those that are trained.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trainable)


def measure_accuracy(network: Callable[[], nn.Module], images: Tensor, labels: Tensor) -> dict[str, int]:
    """Return right answers (``correct`` of ``n``), ``parameters``, and multiply-accumulates of one image (``macs``)."""
    model = network()
    return {
        "correct": count_correct(model, images, labels),
        "n": len(labels),
        "parameters": count_parameters(model),
        "macs": count_macs(model, images[:1].float()),
    }


def lazily_trained(
    run: Run,
    name: str,
    build: Callable[[], nn.Module],
    data: Callable[[], tuple[Tensor, Tensor]],
    recipe: Recipe,
    key: dict[str, Any],
    *,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
) -> Callable[[], nn.Module]:
    """Return what trains a network on the run's device when it is called, so that a finished step trains nothing.

    Args:
        run: where.
        name, build, data, recipe, key, loss, augment: see :func:`striate.engine.train.trained`.
    """
    return partial(trained, name, build, data, recipe, loss=loss, augment=augment, key=key, device=run.device)


def train_and_test(
    run: Run, n_train: int, n_test: int, sized: Callable[[Tensor], Tensor]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], str]:
    """Return the first images of Fashion-MNIST, or of the digits where it is not on this machine.

    Args:
        run: its evidence notes which images they are, as ``data``.
        n_train, n_test: how many.
        sized: gives uint8 images (N, 1, H, W) the size and the type that is wanted.

    Returns:
        Training images and labels; test images and labels; the origin of the training part, for a cache's key.
    """
    train, test = default_set(True), default_set(False)
    (images, labels), (test_images, test_labels) = (
        (sized(part.images[:n]), part.labels[:n]) for part, n in ((train, n_train), (test, n_test))
    )
    run.note("data", {"train": train.origin, "test": test.origin, "n": [len(images), len(test_images)]})
    return (images, labels), (test_images, test_labels), train.origin


def resize_bilinear(images: Tensor, side: int) -> Tensor:
    """Return uint8 images (N, C, H, W) as (N, C, side, side), bilinear, rounded to whole grey levels."""
    large = F.interpolate(images.float(), size=(side, side), mode="bilinear", align_corners=False)
    return large.round().to(torch.uint8)


def as_32(images: Tensor) -> Tensor:
    """Return uint8 images (N, C, H, W) as (N, C, 32, 32): 28 pixels get a border, other sizes are scaled."""
    return F.pad(images, (2, 2, 2, 2)) if images.shape[-1] == 28 else resize_bilinear(images, 32)


def photograph_batch(photos: Iterable[Photograph], model: VisionModel) -> Tensor:
    """Return photographs as ``model`` takes them, (N, C, H, W) in [0, 1] on its device."""
    return torch.stack([prepare(photo.image, model.preprocessing) for photo in photos]).to(device_of(model))


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
