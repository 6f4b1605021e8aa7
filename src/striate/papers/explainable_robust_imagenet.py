"""The paper scale of explainable-robust: the twelve ImageNet networks on photographs with one object each.

``--data`` holds ``val/<wnid>/*.JPEG``, ``Annotations/CLS-LOC/val/*.xml``, ``ood/<wnid>/*`` (the shifted images, class
folders as in ``val``) and ``checkpoints/<network>.pt``. Unverified against the real data set; the dry run builds all
twelve with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor, nn

from striate.data.images import read_images
from striate.data.picture import open_picture, prepare
from striate.engine.load import load_model
from striate.engine.model import Preprocessing
from striate.engine.train import cross_entropy
from striate.errors import RunError
from striate.explain.bench import METRICS, ExplainabilityBench
from striate.explain.curves import insertion
from striate.explain.registry import get_method
from striate.layers.dual_bn import convert_dual_bn
from striate.learn.adversarial import AdversarialLoss, AdvPropLoss
from striate.papers.base import Run
from striate.papers.measure import count_correct, count_parameters
from striate.stress.pgd import pgd

__all__ = ["run_published"]

_PUBLISHED = {
    **{
        f"{name}-{training}": f"torchvision:{architecture}"
        for name, architecture in (
            ("alexnet", "alexnet"),
            ("googlenet", "googlenet"),
            ("resnet50", "resnet50"),
            ("densenet161", "densenet161"),
            ("mobilenet-v2", "mobilenet_v2"),
        )
        for training in ("vanilla", "robust")
    },
    "resnet50-advprop1": "torchvision:resnet50",
    "resnet50-advprop5": "torchvision:resnet50",
}
_NEEDED = "ImageNet and twelve checkpoints"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PUBLISHED_ROBUST = AdversarialLoss("l2", 3.0, steps=7, step_size=0.5)
_PUBLISHED_ADVPROP = {name: AdvPropLoss("linf", 4 / 255, n, 1 / 255) for name, n in (("advprop1", 1), ("advprop5", 5))}


@dataclass(frozen=True)
class _Boxed:
    """Images with one labelled box each."""

    images: Tensor
    labels: Tensor
    boxes: Tensor


def run_published(run: Run, methods: Sequence[str], centre: Callable[..., Mapping[str, Any]]) -> None:
    """Measure twelve ImageNet networks on 2,000 photographs; with ``dry_run`` random weights and images, and one step.

    Args:
        run: where.
        methods: names of the explainers.
        centre: measures the control that looks at no image, from the judged images, which of them count, and those
            to tune on.
    """
    options: dict[str, dict[str, Any]] = {
        **{name: {} for name in methods},
        "integrated-gradients": {"n_steps": 50},
        "gradient-shap": {"n_samples": 50},
        "lime": {"n_segments": 150, "n_samples": 1_000},
        "rise": {"n_masks": 8_000, "grid": 7},
        "meaningful-perturbation": {"iterations": 300, "mask_size": 28},
    }
    metrics = tuple(METRICS)
    if run.dry_run:
        # A curve costs 225 forward passes an image at this size; the training step below takes a short one.
        metrics = tuple(metric for metric in METRICS if metric not in {"insertion", "deletion"})
        small = {"n_steps": 1, "n_samples": 2, "n_masks": 2, "iterations": 1}
        options = {name: {key: small.get(key, value) for key, value in o.items()} for name, o in options.items()}
    judged, held_out, shifted = _imagenet(run)

    @cache
    def network(name: str) -> nn.Module:
        return _published_network(run, name)

    for name in _PUBLISHED:
        if run.dry_run:
            run.step(f"training/{name}", partial(_published_step, name, network(name), judged))
        run.step(
            f"network/seed0/{name}",
            partial(_published_accuracies, network(name), judged, shifted, steps=1 if run.dry_run else 20),
        )
    models = {name: network(name) for name in _PUBLISHED}
    bench = ExplainabilityBench(
        models,
        {name: partial(get_method(name), **chosen) for name, chosen in options.items()},
        metrics,
        judged,
        held_out=held_out,
        only_correct=not run.dry_run,
        temperatures=() if run.dry_run else (0.5, 1.0, 2.0, 4.0),
        temperature_models=["resnet50-vanilla"],
        batch_size=8,
        report=run.report,
    )
    for name in _PUBLISHED:
        run.step(f"bench/seed0/{name}", lambda name=name: bench.run([name]).to_dict())  # type: ignore[misc]
    run.step("centre/seed0", lambda: centre(judged, bench.run([]).images, held_out))


def _published_network(run: Run, name: str) -> nn.Module:
    if run.dry_run:
        return load_model(_PUBLISHED[name], num_classes=1000, device=run.device)
    file = run.data_root(_NEEDED) / "checkpoints" / f"{name}.pt"
    return load_model(str(file), architecture=_PUBLISHED[name], mean=_MEAN, std=_STD, device=run.device)


def _published_step(name: str, model: nn.Module, data: _Boxed) -> dict[str, Any]:
    """The gradient of the published recipe's loss, and a short insertion curve; nothing is changed."""
    training = name.rpartition("-")[2]
    loss: Any = {"vanilla": cross_entropy, "robust": _PUBLISHED_ROBUST, **_PUBLISHED_ADVPROP}[training]
    copy = convert_dual_bn(model) if training in _PUBLISHED_ADVPROP else model
    value = loss(copy, data.images, data.labels, torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(value, [p for p in copy.parameters() if p.requires_grad], allow_unused=True)
    curve = insertion(model, data.images, data.labels, data.images.mean(dim=1), step=224 * 56)
    return {
        "insertion": curve.curve[0].tolist(),
        "parameters": count_parameters(model),
        "loss": value.item(),
        "gradient": sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5,
    }


def _published_accuracies(model: nn.Module, judged: _Boxed, shifted: _Boxed, *, steps: int) -> dict[str, Any]:
    attack = partial(pgd, eps=3.0, norm="l2", steps=steps, step_size=0.5, random_start=False)
    correct = partial(count_correct, model, batch_size=32)
    right = {
        "clean": correct(judged.images, judged.labels),
        "adversarial": correct(judged.images, judged.labels, attack=attack),
        "shifted": correct(shifted.images, shifted.labels),
    }
    return {"n": len(judged.labels), "n_shifted": len(shifted.labels), "right": right}


def _imagenet(run: Run) -> tuple[_Boxed, _Boxed, _Boxed]:
    """Photographs with one object whose box covers less than half: 2,000 judged, 500 to tune on; 2,000 shifted."""
    if run.dry_run:
        images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        boxes, labels = torch.tensor([[40, 50, 160, 170]] * 2), torch.tensor([1, 2])
        first, second = (_Boxed(images[i : i + 1], labels[i : i + 1], boxes[i : i + 1]) for i in (0, 1))
        return first, second, first
    root = run.data_root(_NEEDED)
    preprocessing = Preprocessing((3, 224, 224), _MEAN, _STD)
    classes = sorted(folder.name for folder in (root / "val").iterdir() if folder.is_dir())
    found: list[tuple[Tensor, int, list[int]]] = []
    files = sorted((root / "val").glob("*/*.JPEG"))
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    for file in (files[i] for i in order):
        box = _single_box(root / "Annotations" / "CLS-LOC" / "val" / f"{file.stem}.xml")
        if box is not None:
            found.append((prepare(open_picture(file)[0], preprocessing), classes.index(file.parent.name), box))
        if len(found) == 2_500:
            break
    if len(found) < 600:
        raise RunError(f"{root} holds only {len(found)} photographs with one small enough box; 2,500 are wanted.")
    images, labels, boxes = (
        torch.stack([image for image, _, _ in found]),
        torch.tensor([label for _, label, _ in found]),
        torch.tensor([box for _, _, box in found]),
    )
    shifted = read_images(root / "ood", preprocessing, limit=2_000, class_names=classes)
    if shifted.labels is None:
        raise RunError(f"{root / 'ood'} has no class folders; name them as in val.")
    cut = len(found) - 500
    return (
        _Boxed(images[:cut], labels[:cut], boxes[:cut]),
        _Boxed(images[cut:], labels[cut:], boxes[cut:]),
        _Boxed(shifted.images, shifted.labels, torch.zeros(len(shifted.labels), 4, dtype=torch.long)),
    )


def _single_box(annotation: Path) -> list[int] | None:
    """Return the box after resizing to 256 and cropping 224, if it is the only one, covers < 50 % and stays in view."""
    if not annotation.is_file():
        return None
    tree = ElementTree.parse(annotation)
    objects = tree.findall("object/bndbox")
    width, height = (int(tree.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    if len(objects) != 1 or width == 0 or height == 0:
        return None
    x0, y0, x1, y1 = (int(objects[0].findtext(edge) or 0) for edge in ("xmin", "ymin", "xmax", "ymax"))
    if (x1 - x0) * (y1 - y0) >= 0.5 * width * height:
        return None
    scale = 256 / min(width, height)
    left, top = (width * scale - 224) / 2, (height * scale - 224) / 2
    corners = [x0 * scale - left, y0 * scale - top, x1 * scale - left, y1 * scale - top]
    box = [min(224, max(0, round(corner))) for corner in corners]
    return box if box[0] < box[2] and box[1] < box[3] else None
