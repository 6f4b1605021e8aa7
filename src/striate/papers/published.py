"""The paper scale of classification backbones: the authors' weights on ImageNet, one step of their recipe."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from striate.data.picture import prepare
from striate.engine.load import load_model
from striate.engine.model import Preprocessing, VisionModel
from striate.engine.state import seeded
from striate.engine.train import Loss, Recipe, cross_entropy, fit
from striate.learn.distillation import DistillationLoss
from striate.models.variant import variants
from striate.papers.base import Judgement, Run
from striate.papers.judge import not_testable, percent

__all__ = [
    "count_right",
    "imagenet_top1",
    "judge_published",
    "measure_published",
    "training_step",
    "validation_folder",
    "validation_images",
]


def measure_published(run: Run, name: str) -> dict[str, Any]:
    """Count the images of ImageNet's validation set that the authors' weights classify rightly.

    ``--data`` holds ``val/<wnid>/*.JPEG`` and ``checkpoints/NAME.pth`` (or ``.safetensors``). A dry run takes random
    weights and two random images.
    """
    if run.dry_run:
        model = load_model(name, device=run.device)
        return count_right(model, [(torch.rand(2, *model.preprocessing.input_size), torch.tensor([0, 1]))], run.device)
    root = run.data_root("ImageNet and the authors' checkpoints")
    files = [root / "checkpoints" / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]
    file = next((path for path in files if path.is_file()), files[-1])
    model = load_model(str(file), architecture=name, num_classes=1000, device=run.device)
    return count_right(model, validation_images(root, model.preprocessing), run.device)


def validation_folder(run: Run) -> Path:
    """Return where the class folders of ImageNet's validation set are: ``val`` under ``--data``, or ``--data`` itself.

    Raises:
        RunError: no ``--data``.
    """
    root = run.data_root("the ImageNet validation set")
    return root / "val" if (root / "val").is_dir() else root


def validation_images(root: Path, preprocessing: Preprocessing) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of (N, C, H, W) pixels in [0, 1] and (N,) labels from ``root/val/<wnid>/*.JPEG``."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(str(root / "val"), transform=lambda image: prepare(image, preprocessing))
    yield from DataLoader(folder, batch_size=128, num_workers=8)


def count_right(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> dict[str, int]:
    """Return how many of ``n`` images get the right class, as ``correct``; the model is in eval mode."""
    correct = n = 0
    with torch.inference_mode():
        for images, labels in batches:
            correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
            n += len(labels)
    return {"correct": correct, "n": n}


def training_step(
    run: Run, name: str, recipe: Recipe, *, mixup: float = 0.8, teacher: str | None = None, **options: Any
) -> dict[str, Any]:
    """Take one training step of a published recipe on two random pictures.

    They go through timm's RandAugment (m9-mstd0.5-inc1) and random erasing (0.25, by pixels), then mixup, CutMix
    and smoothed labels.

    Args:
        run: where.
        name: of the network, in timm's registry.
        recipe: optimiser, learning rate and clipping as published; one step is taken of it.
        mixup: strength; CutMix has strength 1.
        teacher: a network of timm's whose answers are learnt too, with weight 5; it sees pixels in [0, 1], 224 x 224.
        **options: of the network, e.g. ``drop_path_rate``.
    """
    import timm
    from timm.data import Mixup, create_transform

    mix = Mixup(mixup_alpha=mixup, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=1000)
    variant = variants()[name]
    augment = create_transform(
        variant.input_size,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation=variant.interpolation,
        mean=variant.mean,
        std=variant.std,
        re_prob=0.25,
        re_mode="pixel",
    )
    learn: Loss = cross_entropy
    with seeded(recipe.seed), _others_seeded(recipe.seed):
        model = timm.create_model(name, **options).to(run.device)
        pictures = torch.randint(256, (2, 256, 256, 3), dtype=torch.uint8).numpy()
        images = torch.stack([augment(Image.fromarray(picture)) for picture in pictures])
        if teacher is not None:
            # The pictures were normalised for the student; this takes it back.
            back = Preprocessing(
                (3, 224, 224),
                tuple(-mean / std for mean, std in zip(variant.mean, variant.std, strict=True)),
                tuple(1 / std for std in variant.std),
            )
            master = VisionModel(timm.create_model(teacher), back).to(run.device)
            learn = DistillationLoss(master, weight=5.0, temperature=1.0, teacher_size=224)

        def loss(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            mixed, targets = mix(x.clone(), y)
            return learn(model, mixed, targets.to(x.device), generator)

        return fit(model, images, torch.tensor([1, 2]), recipe, loss=loss)[-1]


@contextmanager
def _others_seeded(seed: int) -> Iterator[None]:
    """Seed Python's and NumPy's global generators, which timm's augmentation draws from, and put them back after."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def imagenet_top1(steps: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Return the top-1 of each network in per cent (steps ``imagenet/NAME``); empty unless all were measured."""
    if any(f"imagenet/{name}" not in steps for name in names):
        return {}
    return {name: percent(steps[f"imagenet/{name}"]) for name in names}


def judge_published(names: tuple[str, ...], steps: Mapping[str, Any]) -> Judgement:
    """Hold top-1 of the authors' weights to the published figures, within 0.3 points (steps ``imagenet/NAME``)."""
    top1 = imagenet_top1(steps, names)
    if not top1:
        return not_testable("ImageNet and the authors' weights: the paper scale.")
    published = {name: variants()[name].top1 for name in names}
    measured = "; ".join(f"{name} {value:.2f} %" for name, value in top1.items())
    control = "published: " + "; ".join(f"{name} {value} %" for name, value in published.items())
    off = {name: top1[name] - value for name, value in published.items() if value is not None}
    if all(abs(gap) <= 0.3 for gap in off.values()):
        return Judgement("reproduced", measured, control)
    reason = "; ".join(f"{name} is {gap:+.1f} points off" for name, gap in off.items() if abs(gap) > 0.3)
    return Judgement("not reproduced", measured, control, f"{reason}.")
