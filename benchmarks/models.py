"""Forward passes: each small network of a published family against the timm networks of its paper.

Not two ways to one result, so nothing is compared but time: 224 x 224, no gradient, batch norms folded where the
network offers it. On a CPU float32 and batch 4; on a GPU (``--device cuda``) batch 64, in float32, where convolutions
run in TF32 (PyTorch's default), and under bfloat16 autocast. Parameters and multiplications stand beside the times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import timm
import torch
from _timing import Row, compare, options, print_head, print_summary
from torch import nn

import striate.models.zoo  # noqa: F401 (registers ours)
from striate.engine.macs import count_macs

PAIRS = {
    "vmamba_tiny": ("swin_tiny_patch4_window7_224", "convnext_tiny"),
    "efficient_vmamba_t": ("mobilevit_xs", "pvt_v2_b0"),
    "mobile_mamba_t2": ("mobilenetv3_small_100", "mobilevit_xxs"),
    "mobile_mamba_s6": ("mobilenetv3_large_100", "mobilevit_xxs"),
    "striate_mobilevit_s": ("mobilevit_s", "mobilenetv3_large_100"),
    "uniformer_small": ("swin_tiny_patch4_window7_224", "resnet50"),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    fuse = getattr(model, "fuse", None)
    return fuse().eval() if callable(fuse) else model


def size(model: nn.Module) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{parameters / 1e6:.1f} M, {count_macs(model, torch.zeros(1, 3, 224, 224)) / 1e9:.2f} G"


def main() -> None:
    chosen = options(__doc__ or "")
    gpu = chosen.device.type != "cpu"
    batch = 64 if gpu else 4
    title = f"Networks, batch {batch}, 224 x 224; a ratio above 1 means that ours is faster"
    print_head(title, ["timm"], chosen.device)
    rows: list[Row] = []
    x = torch.rand(batch, 3, 224, 224, device=chosen.device)
    for ours, peers in PAIRS.items():
        model = network(ours)
        print(f"{ours}: {size(model)}")
        for peer in peers:
            other = network(peer)
            print(f"   {peer}: {size(other)}")

            def run(which: nn.Module, half: bool) -> None:
                with torch.inference_mode(), torch.autocast(chosen.device.type, torch.bfloat16, enabled=half):
                    which(x)

            moved = [copy.deepcopy(which).to(chosen.device) for which in (model, other)]
            for half in (False, True) if gpu else (False,):
                calls: list[Callable[[], None]] = [partial(run, which, half) for which in moved]
                rows += compare(
                    f"{ours} against {peer}" + (", bfloat16" if half else ""),
                    *calls,
                    difference=lambda *_: 0.0,
                    repeats=chosen.repeats,
                    threads=chosen.threads,
                    device=chosen.device,
                )
    print_summary(rows)


if __name__ == "__main__":
    main()
