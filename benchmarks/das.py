"""Deformable convolution and the DAS gate on the CPU against torchvision's kernel: equal numbers first, then time.

The shapes are those of the gate in ResNet-50 at 224 x 224, alpha 0.2: r compressed channels, depthwise (r -> r, the
separable gate) and dense (r -> c). Offsets are normal with a deviation of 2 pixels, as after training. A dense
convolution of many channels is nearly all matrix product, which both sides leave to the same library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from _timing import Row, compare, options, print_head, print_summary
from torch import Tensor, nn
from torchvision.ops import deform_conv2d as peer

from striate.layers.das import DAS
from striate.layers.deform_conv import deform_conv2d, has_native_deform_conv

STAGES = {256: 56, 512: 28, 1024: 14, 2048: 7}


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest difference of any result, in units of that result's largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def of_peer(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return peer(x, offset, weight, padding=1)


def of_ours(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return deform_conv2d(x, offset, weight, padding=1)


def forward(call: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        with torch.no_grad():
            return [call(*tensors)]

    return run


def both_ways(call: Callable[..., Tensor], tensors: Sequence[Tensor], above: Tensor) -> Callable[[], list[Tensor]]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]

    def run() -> list[Tensor]:
        out = call(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, above)]

    return run


def with_peer(gate: nn.Module, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same gate with torchvision's kernel inside."""
    from striate.layers import deform_conv

    def call() -> Any:
        own = deform_conv.deform_conv2d

        def other(x, offset, weight, bias, mask, *, stride, padding, dilation):
            return peer(x, offset, weight, bias, stride, padding, dilation, mask)

        deform_conv.deform_conv2d = other
        try:
            return run()
        finally:
            deform_conv.deform_conv2d = own

    return call


def main() -> None:
    chosen = options(__doc__ or "")
    if chosen.device.type != "cpu" or not has_native_deform_conv():
        why = "No compiler here" if chosen.device.type == "cpu" else f"On {chosen.device}"
        print(f"{why}: Striate uses torchvision's kernel itself, and there is nothing to compare.")
        return
    print_head("Deformable convolution 3 x 3 against torchvision", ("torchvision",))
    torch.manual_seed(0)
    rows: list[Row] = []
    timing = {"difference": difference, "repeats": chosen.repeats, "threads": chosen.threads}
    for n in (1,) if chosen.quick else (1, 8):
        for c, side in STAGES.items():
            r = int(0.2 * c)
            for kind, out, groups in (("depthwise", r, r), ("dense", c, 1)):
                x, offset = torch.randn(n, r, side, side), 2 * torch.randn(n, 18, side, side)
                tensors = (x, offset, torch.randn(out, r // groups, 3, 3))
                above = torch.randn(n, out, side, side)
                label = f"{kind} {r} -> {out} at {side} x {n}"
                aim = 5 if kind == "depthwise" else 1
                rows += compare(f"{label}", forward(of_ours, tensors), forward(of_peer, tensors), aim=aim, **timing)
                rows += compare(
                    f"{label}, with backward",
                    both_ways(of_ours, tensors, above),
                    both_ways(of_peer, tensors, above),
                    aim=aim,
                    **timing,
                )
    for c, side in STAGES.items():
        gate, x = DAS(c).eval(), torch.randn(1, c, side, side)
        nn.init.normal_(gate.deform.conv_offset.weight, std=0.05)
        run = forward(gate, (x,))
        rows += compare(f"whole gate, {c} at {side} x 1", run, with_peer(gate, run), aim=1, **timing)
    print_summary(rows)


if __name__ == "__main__":
    main()
