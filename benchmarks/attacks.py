"""FGSM and PGD against torchattacks, and PGD against its own floor: steps x one forward and backward.

python benchmarks/attacks.py [--quick] [--threads 1 2] [--device cuda]
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from _timing import compare, options, print_head, print_summary
from torch import Tensor, nn

from striate.engine.load import load_model
from striate.engine.state import inspected
from striate.stress import fgsm, pgd

STEPS, EPS, STEP = 5, 4 / 255, 1 / 255


def floor(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The least that PGD can cost: forward and backward to the input with frozen parameters, and one update."""
    current = x
    with inspected(model):
        for _ in range(STEPS):
            leaf = current.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
            current = torch.minimum(torch.maximum(current + STEP * grad.sign(), x - EPS), x + EPS).clamp(0, 1)
    return current


def main() -> None:
    """Compare on EfficientNet-Lite0 and resnet18 at 224 x 224, batches of 4 (best on a CPU)."""
    import torchattacks

    chosen = options(__doc__ or "")
    print_head("Attacks", ["torchattacks"], chosen.device)
    torch.manual_seed(0)
    rows = []
    networks = {"lite0": load_model("lite0"), "resnet18": torchvision.models.resnet18(num_classes=1000).eval()}
    x = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(chosen.device)
    common = {
        "repeats": chosen.repeats, "threads": chosen.threads, "device": chosen.device, "difference": difference
    }  # fmt: skip
    for name, model in networks.items():
        model.to(chosen.device)
        with torch.no_grad():
            y = model(x).argmax(dim=1)
        our_fgsm = partial(fgsm, model, x, y, EPS)
        our_pgd = partial(pgd, model, x, y, EPS, steps=STEPS, step_size=STEP, random_start=False)
        for setting, trainable in (("defaults", True), ("frozen by hand", False)):
            model.requires_grad_(trainable)
            their_fgsm = partial(torchattacks.FGSM(model, eps=EPS), x, y)
            their_pgd = partial(torchattacks.PGD(model, EPS, STEP, STEPS, random_start=False), x, y)
            rows += compare(f"FGSM, {name}, torchattacks, {setting}", our_fgsm, their_fgsm, aim=1.0, **common)
            rows += compare(f"PGD-{STEPS}, {name}, torchattacks, {setting}", our_pgd, their_pgd, aim=1.0, **common)
        # PGD may cost 1.05 times its floor: a ratio of 0.952.
        rows += compare(
            f"PGD-{STEPS}, {name}, bare frozen loop", our_pgd, partial(floor, model, x, y), aim=0.952, **common
        )
    print_summary(rows)


def difference(ours: Tensor, peer: Tensor) -> float:
    """Share of pixel values that differ: where a gradient is all but zero, another memory layout may turn its sign."""
    return float(((ours - peer).abs() > 1e-6).double().mean())


if __name__ == "__main__":
    main()
