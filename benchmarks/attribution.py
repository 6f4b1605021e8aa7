"""Integrated Gradients and Occlusion against captum, RISE against the published code's algorithm.

    python benchmarks/attribution.py            # Lite0 and ResNet-18 at 224 x 224, 1 and 2 threads
    python benchmarks/attribution.py --quick    # few steps, large windows, 1 thread

"default" is captum as it comes; "best" is the fastest that its own options and a channels_last image give. The
published RISE code multiplies the image by masks kept at full size, 100 at a time; it calls .cuda(), so its few lines
are written out here. Masks are handed to it for nothing: drawing and resizing them is not in its time.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import torch
from _timing import Row, compare, options, print_head, print_summary
from captum import attr as captum_attr
from torch import Tensor, nn

from striate.engine.load import load_model
from striate.engine.state import inspected
from striate.explain.gradient import IntegratedGradients
from striate.explain.occlusion import Occlusion
from striate.explain.rise import RISE


def main() -> None:
    chosen = options(__doc__ or "")
    timed = partial(
        compare, repeats=chosen.repeats, threads=chosen.threads, device=chosen.device, difference=largest_difference
    )
    print_head("Attribution at the input", ["captum"], chosen.device)
    rows: list[Row] = []
    for name in ("lite0", "torchvision:resnet18"):
        model = load_model(name, device=chosen.device).eval()
        image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(chosen.device)
        with torch.no_grad():
            target = int(model(image).argmax())
        short = name.rsplit(":", maxsplit=1)[-1]
        rows += integrated_gradients(timed, short, model, image, target, n_steps=16 if chosen.quick else 50)
        rows += occlusion(timed, short, model, image, target, window=56 if chosen.quick else 32)
        rows += rise(timed, short, model, image, target, n_masks=60 if chosen.quick else 400)
    if chosen.device.type == "cpu":
        memory((10, 40) if chosen.quick else (10, 50, 200))
    print_summary(rows)


def integrated_gradients(timed, name: str, model: nn.Module, image: Tensor, target: int, n_steps: int) -> list[Row]:
    explainer = IntegratedGradients(model, n_steps=n_steps, baseline=0.0)
    peer = captum_attr.IntegratedGradients(model)
    theirs = partial(peer.attribute, target=target, n_steps=n_steps, method="gausslegendre")

    def ours() -> Tensor:
        return explainer.input_attribution(image, target)

    def default() -> Tensor:
        return theirs(image)

    def best() -> Tensor:
        with inspected(model):
            return theirs(image.contiguous(memory_format=torch.channels_last), internal_batch_size=4)

    title = f"IG, {n_steps} steps, {name}"
    return [*timed(f"{title}, captum default", ours, default, aim=1.5), *timed(f"{title}, captum best", ours, best)]


def occlusion(timed, name: str, model: nn.Module, image: Tensor, target: int, window: int) -> list[Row]:
    explainer = Occlusion(model, window=window, stride=window // 2, baseline=0.0)
    peer = captum_attr.Occlusion(model)
    theirs = partial(
        peer.attribute,
        target=target,
        sliding_window_shapes=(3, window, window),
        strides=(3, window // 2, window // 2),
        baselines=0.0,
    )

    def ours() -> Tensor:
        return explainer.attribute(image, target).map

    def default() -> Tensor:
        return theirs(image)[:, 0]

    def best() -> Tensor:
        with inspected(model):
            return theirs(image.contiguous(memory_format=torch.channels_last), perturbations_per_eval=8)[:, 0]

    title = f"Occlusion, window {window}, {name}"
    return [*timed(f"{title}, captum default", ours, default, aim=1.5), *timed(f"{title}, captum best", ours, best)]


def rise(timed, name: str, model: nn.Module, image: Tensor, target: int, n_masks: int) -> list[Row]:
    explainer = RISE(model, n_masks=n_masks, baseline=0.0)
    full = explainer.masks((224, 224)).enlarged(range(n_masks)).to(image.device)

    def ours() -> Tensor:
        return explainer.attribute(image, target).map

    def published(batch: int) -> Tensor:
        with torch.no_grad():
            stack = full[:, None] * image
            answers = torch.cat([model(part).softmax(dim=1) for part in stack.split(batch)])
            return (answers.T @ full.flatten(1)).view(-1, 1, 224, 224)[target] / n_masks / 0.5

    title = f"RISE, {n_masks} masks, {name}"
    return [
        *timed(f"{title}, published (100 a batch)", ours, partial(published, 100), aim=1.0),
        *timed(f"{title}, published at 8 a batch", ours, partial(published, 8)),
    ]


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def memory(steps: tuple[int, ...]) -> None:
    """Print by how much Integrated Gradients raises the process's memory, on Lite0, for several numbers of steps."""
    print(f"\nPeak memory that Integrated Gradients adds (Lite0, MB) at {', '.join(map(str, steps))} steps")
    call = {
        "ours": "IntegratedGradients(model, n_steps={n}, baseline=0.0).input_attribution(image, 0)",
        "captum": "captum_attr.IntegratedGradients(model).attribute(image, target=0, n_steps={n})",
    }
    for who, line in call.items():
        added = [_peak(line.format(n=n)) for n in steps]
        print(f"  {who:8}" + "".join(f"{value:9.0f}" for value in added), flush=True)


def _peak(line: str) -> float:
    code = f"""
import resource, torch
from captum import attr as captum_attr
from striate.engine.load import load_model
from striate.explain.gradient import IntegratedGradients
model, image = load_model("lite0"), torch.rand(1, 3, 224, 224)
torch.autograd.grad(model(image.requires_grad_())[0, 0], image)
image = image.detach()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{line}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
