"""Networks that are mostly frozen: what frozen weights save, and random filters combined before or after convolving.

No package offers either, so the peers are what one would write in plain PyTorch. Training only batch norms: gradients
of all weights computed, those of the frozen ones thrown away. LCConv2d: the path that it takes by itself against the
one that it leaves (direct: all random filters, then 1 x 1; kernel: one convolution with the combined kernel). Whole
networks: all layers on the direct path, and the ordinary network without random filters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from _timing import Row, compare, options, print_head, print_summary
from torch import Tensor, nn

from striate.layers.lc_conv import LCConv2d
from striate.layers.to_lc import collapse_model, to_lc
from striate.learn.freezing import freeze_except
from striate.models.cifar_resnet import cifar_resnet

SHAPES = {16: 32, 32: 16, 64: 8, 256: 4}  # channels: side, the last as small as a deep network gets


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest difference of any result, in units of that result's largest value."""
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(ours, theirs, strict=True))


def step(model: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> Callable[[], list[Tensor]]:
    """A training step without the update; the gradients of ``names``, or the logits.

    Batch norms of batches amplify float32's rounding, so gradients of two ways through a whole network differ by a few
    per cent of the largest; that they are equal is tested in float64.
    """
    model.train()
    parameters = dict(model.named_parameters())

    def run() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        logits = model(x)
        F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()
        return [logits.detach()] if names is None else [parameters[name].grad for name in names]

    return run


def layer_step(layer: LCConv2d, x: Tensor, above: Tensor) -> Callable[[], list[Tensor]]:
    """Forward, and backward to the combination and to the features."""
    leaf = x.clone().requires_grad_()

    def run() -> list[Tensor]:
        out = layer(leaf)
        return [out.detach(), *torch.autograd.grad(out, [leaf, layer.combine.weight], above)]

    return run


def forward(model: nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        with torch.no_grad():
            return [model(x)]

    return run


def main() -> None:
    chosen = options(__doc__ or "")
    place = chosen.device
    print_head("Frozen weights and random filters against plain PyTorch", device=place)
    torch.manual_seed(0)
    rows: list[Row] = []
    timing = {"difference": difference, "repeats": chosen.repeats, "threads": chosen.threads, "device": place}

    x = torch.rand(32, 3, 32, 32).to(place)
    for depth in (20,) if chosen.quick else (20, 56):
        plain = cifar_resnet(depth).to(place)
        ours = copy.deepcopy(plain)
        names = freeze_except(ours).names
        rows += compare(
            f"BN only, ResNet-{depth} x 32: step", step(ours, x, names), step(plain, x, names), aim=1.2, **timing
        )

    for channels, side in SHAPES.items():
        for n in (32,) if chosen.quick else (1, 32):
            for expansion in (1, 16) if chosen.quick else (1, 4, 16, 64):
                if channels * expansion > 4096:
                    continue
                x, above = (torch.randn(n, channels, side, side).to(place) for _ in range(2))
                layers = {
                    path: LCConv2d(channels, channels, 3, expansion, padding=1, seed=0, path=path).to(place)
                    for path in ("auto", "direct", "kernel")
                }
                for path in ("auto", "kernel"):
                    layers[path].load_state_dict(layers["direct"].state_dict())
                taken = "kernel" if layers["auto"].takes_kernel_path(x.clone().requires_grad_()) else "direct"
                other = "direct" if taken == "kernel" else "kernel"
                label = f"LC {channels} at {side} x {n}, E {expansion}: {taken}/{other}"
                calls = {path: layer_step(layer, x, above) for path, layer in layers.items()}
                rows += compare(label, calls["auto"], calls[other], aim=1, **timing)

    x = torch.rand(32, 3, 32, 32).to(place)
    for expansion in (16,) if chosen.quick else (1, 16, 64):
        plain = cifar_resnet(20).to(place)
        auto = to_lc(cifar_resnet(20), expansion, seed=0).to(place)
        direct = to_lc(cifar_resnet(20), expansion, seed=0, path="direct").to(place)
        direct.load_state_dict(auto.state_dict())
        label = f"ResNet-LC-20-16x{expansion} x 32: step"
        rows += compare(f"{label}, direct", step(auto, x), step(direct, x), aim=1, **timing)
        note = {**timing, "difference": lambda a, b: float("nan")}  # another network: nothing to compare but time
        rows += compare(f"{label}, plain ResNet-20", step(auto, x), step(plain, x), **note)
        auto.eval()
        rows += compare(
            f"ResNet-LC-20-16x{expansion} x 32: collapsed",
            forward(collapse_model(auto), x),
            forward(auto, x),
            aim=1,
            **timing,
        )
    print_summary(rows)


if __name__ == "__main__":
    main()
