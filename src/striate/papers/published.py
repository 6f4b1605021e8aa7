"""The paper scale of classification backbones: the authors' weights on ImageNet, one step of their recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.data.picture import prepare
from striate.engine.load import load_model
from striate.engine.state import seeded
from striate.engine.train import Recipe, fit
from striate.errors import RunError
from striate.models.variant import variants
from striate.papers.base import Judgement, Run

__all__ = ["judge_published", "measure_published", "training_step"]


def measure_published(run: Run, name: str) -> dict[str, Any]:
    """Count the images of ImageNet's validation set that the authors' weights classify rightly.

    ``--data`` holds ``val/<wnid>/*.JPEG`` and ``checkpoints/NAME.pth`` (or ``.safetensors``). A dry run takes random
    weights and two random images.
    """
    if run.dry_run:
        model = load_model(name, device=run.device)
        batches: Any = [(torch.rand(2, *model.preprocessing.input_size), torch.tensor([0, 1]))]
    else:
        if run.data is None:
            raise RunError("The paper scale needs ImageNet and the authors' checkpoints: --data FOLDER, or --dry-run.")
        files = [run.data / "checkpoints" / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]
        file = next((path for path in files if path.is_file()), files[-1])
        model = load_model(str(file), architecture=name, num_classes=1000, device=run.device)
        batches = _validation(run, model)
    right = n = 0
    with torch.inference_mode():
        for images, labels in batches:
            right += int((model(images.to(run.device)).argmax(1).cpu() == labels).sum())
            n += len(labels)
    return {"correct": right, "n": n}


def _validation(run: Run, model: Any) -> Iterator[tuple[Tensor, Tensor]]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    assert run.data is not None  # the caller looked
    folder = ImageFolder(str(run.data / "val"), transform=lambda image: prepare(image, model.preprocessing))
    yield from DataLoader(folder, batch_size=128, num_workers=8)


def training_step(run: Run, name: str, recipe: Recipe, *, mixup: float = 0.8, **options: Any) -> dict[str, Any]:
    """Take one training step of a published recipe on two random images: mixup, CutMix, smoothed labels.

    Args:
        run: where.
        name: of the network, in timm's registry.
        recipe: optimiser, learning rate and clipping as published; one step is taken of it.
        mixup: strength; CutMix has strength 1.
        **options: of the network, e.g. ``drop_path_rate``.
    """
    import timm
    from timm.data import Mixup

    mix = Mixup(mixup_alpha=mixup, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=1000)
    with seeded(recipe.seed):
        model = timm.create_model(name, **options).to(run.device)
        images = torch.rand(2, *variants()[name].input_size)

    def loss(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        mixed, targets = mix(x.clone(), y)
        return F.cross_entropy(model(mixed), targets.to(x.device))

    return fit(model, images, torch.tensor([1, 2]), recipe, loss=loss)[-1]


def judge_published(names: tuple[str, ...], steps: Mapping[str, Any]) -> Judgement:
    """Hold top-1 of the authors' weights to the published figures, within 0.3 points (steps ``imagenet/NAME``)."""
    found = {name: steps[f"imagenet/{name}"] for name in names if f"imagenet/{name}" in steps}
    if len(found) < len(names):
        return Judgement("not testable here", "", "", "ImageNet and the authors' weights: the paper scale.")
    top1 = {name: 100 * record["correct"] / record["n"] for name, record in found.items()}
    published = {name: variants()[name].top1 for name in names}
    measured = "; ".join(f"{name} {value:.2f} %" for name, value in top1.items())
    control = "published: " + "; ".join(f"{name} {value} %" for name, value in published.items())
    off = {name: top1[name] - value for name, value in published.items() if value is not None}
    if all(abs(gap) <= 0.3 for gap in off.values()):
        return Judgement("reproduced", measured, control)
    reason = "; ".join(f"{name} is {gap:+.1f} points off" for name, gap in off.items() if abs(gap) > 0.3)
    return Judgement("not reproduced", measured, control, f"{reason}.")
