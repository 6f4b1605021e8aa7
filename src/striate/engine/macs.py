"""Multiply-accumulates of one forward pass: convolutions, linear layers, attention products, selective scans."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["count_macs"]


def count_macs(model: nn.Module, inputs: Tensor) -> int:
    """Count the multiply-accumulates of ``model(inputs)``, the "FLOPs" of the vision literature.

    Counted are convolutions, matrix products (linear layers, both products of an attention) and, by the formula
    9 L D N + D L that published tables use, selective scans; not norms, activations or additions. Nothing is
    computed: the pass runs on shapes alone.

    Args:
        model: any network; it is not changed.
        inputs: (N, C, H, W); the count is for the whole batch.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    ghost = copy.deepcopy(model).to("meta").eval()
    # The plain attention kernel shows its two products; the fused ones are counted on some devices only.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        ghost(inputs.to("meta"))
    return counter.get_total_flops() // 2
