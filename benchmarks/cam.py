"""Class activation maps against pytorch-grad-cam: the same maps first, then the time.

The peer's default is its own batch size (Ablation-CAM 32, Score-CAM 16); its best setting here is batch size 8 and, for
gradient CAMs, parameters frozen beforehand, so that it computes no parameter gradients either. The peer's Ablation-CAM
runs the whole network for every channel: one timed run of it is enough.

"bare forward" is the network's forward pass alone, without gradients: the floor of a CAM that runs the network as it is
given. (Ours can get below it, since it hands the images over channels-last.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_grad_cam as peer
import torch
from _timing import Row, compare, options, print_head, print_summary
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from striate.engine.load import load_model
from striate.explain.base import Explainer
from striate.explain.cam import AblationCAM, GradCAM, GradCAMPlusPlus, ScoreCAM, XGradCAM
from striate.explain.result import Attribution

GRADIENT = {"GradCAM": GradCAM, "XGradCAM": XGradCAM, "GradCAMPlusPlus": GradCAMPlusPlus}

NOTHING = {"difference": lambda ours, other: float("nan")}
"""For two sides that compute different things."""


def bare(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Return the network's forward pass alone."""
    return torch.no_grad()(lambda: model(images))


def difference(ours: Attribution, theirs: np.ndarray) -> float:
    return float(np.abs(ours.normalized.cpu().numpy() - theirs).max())


def of_peer(name: str, model: nn.Module, layer: nn.Module, images: Tensor, target: int, **options: Any) -> Callable:
    if name == "AblationCAM":
        # The peer keeps one ablation layer for all instances unless it is given one.
        from pytorch_grad_cam.ablation_layer import AblationLayer

        explainer = peer.AblationCAM(model, [layer], ablation_layer=AblationLayer(), **options)
    else:
        explainer = getattr(peer, name)(model, [layer])
        for option, value in options.items():
            setattr(explainer, option, value)

    def call() -> np.ndarray:
        # Its weights are left with the gradients of the last call; that is how it is used.
        return explainer(images, [ClassifierOutputTarget(target)] * len(images))

    return call


def of_ours(explainer: Explainer, images: Tensor, target: int) -> Callable[[], Attribution]:
    return lambda: explainer.attribute(images, target)


def frozen(model: nn.Module, call: Callable[[], Any]) -> Callable[[], Any]:
    """Run the peer with frozen parameters; the images then have to require a gradient for it to have one."""

    def run() -> Any:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        try:
            return call()
        finally:
            for parameter in model.parameters():
                parameter.requires_grad_(True)

    return run


def main() -> None:
    chosen = options(__doc__ or "")
    warnings.simplefilter("ignore")
    print_head("CAM against pytorch-grad-cam, 224 x 224, one image unless said", ("grad-cam", "timm"), chosen.device)
    torch.manual_seed(0)
    networks = {
        "lite0": (load_model("lite0", device=chosen.device), "bn2", "blocks.5"),
        "resnet18": (load_model("torchvision:resnet18", device=chosen.device), "layer4", "layer3"),
    }
    common = {"difference": difference, "threads": chosen.threads, "device": chosen.device}
    rows: list[Row] = []
    for title, (model, late, earlier) in networks.items():
        for n in (1, 8):
            images = torch.rand(n, 3, 224, 224).to(chosen.device)
            target = int(model(images[:1]).argmax())
            module = model.network.get_submodule(late)
            timing = common | {"repeats": chosen.repeats}
            run = of_ours(GradCAM(model, late), images, target)
            rows += compare(f"{title} GradCAM x {n}, bare forward", run, bare(model, images), **timing | NOTHING)
            for name, ours in GRADIENT.items():
                run = of_ours(ours(model, late), images, target)
                theirs = of_peer(name, model, module, images, target)
                label = f"{title} {late} {name} x {n}"
                rows += compare(f"{label}, peer's default", run, theirs, aim=3, **timing)
                if not chosen.quick:
                    images_with_grad = images.clone().requires_grad_()
                    best = frozen(model, of_peer(name, model, module, images_with_grad, target))
                    rows += compare(f"{label}, peer frozen", run, best, aim=1, **timing)
            if chosen.quick:
                break
        image = torch.rand(1, 3, 224, 224).to(chosen.device)
        target = int(model(image).argmax())
        timing = common | {"repeats": 1}
        for layer in (late,) if chosen.quick else (late, earlier):
            module = model.network.get_submodule(layer)
            for batch in (8,) if chosen.quick else (32, 8):
                theirs = of_peer("AblationCAM", model, module, image, target, batch_size=batch)
                label = f"{title} {layer} AblationCAM, peer's batch {batch}"
                if chosen.quick:
                    theirs = on_few_channels(model, module, image, target)
                    label = f"{title} {layer} AblationCAM, peer's 1/16 x 16"
                aim = 100 if layer == late else None
                run = of_ours(AblationCAM(model, layer), image, target)
                rows += compare_ablation(label, run, theirs, timing, aim, quick=chosen.quick)
        if not chosen.quick:
            module = model.network.get_submodule(late)
            run = of_ours(ScoreCAM(model, late, align_corners=True), image, target)
            for batch in (16, 8):
                theirs = of_peer("ScoreCAM", model, module, image, target, batch_size=batch)
                rows += compare(f"{title} {late} ScoreCAM, peer's batch {batch}", run, theirs, aim=1.3, **timing)
    print_summary(rows)


def on_few_channels(model: nn.Module, layer: nn.Module, image: Tensor, target: int) -> Callable[[], float]:
    """Return what the peer's loop does for a sixteenth of the channels: whole forward passes, nothing else."""
    del target
    channels = {}
    handle = layer.register_forward_hook(lambda module, arguments, output: channels.update(k=output.shape[1]))
    with torch.no_grad():
        model(image)
    handle.remove()

    def call() -> float:
        with torch.no_grad():
            for _ in range(channels["k"] // 16 // 8):
                model(image.expand(8, -1, -1, -1))
        return float("nan")

    return call


def compare_ablation(
    label: str, run: Callable, theirs: Callable, timing: dict[str, Any], aim: float | None, *, quick: bool
) -> list[Row]:
    if not quick:
        return compare(label, run, theirs, aim=aim, **timing)
    # Quick: a sixteenth of the peer's forward passes against all of ours, so the printed ratio is 1/16 of the real one.
    return compare(label, run, theirs, aim=None if aim is None else aim / 16, **timing | NOTHING)


if __name__ == "__main__":
    main()
