"""Multiply-accumulates of one forward pass: convolutions, linear layers, attention products, selective scans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from striate.engine.state import device_of, inspected

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_macs", "counting_flops"]


def count_macs(model: nn.Module, inputs: Tensor) -> int:
    """Count the multiply-accumulates of ``model(inputs)``, the "FLOPs" of the vision literature.

    Counted are convolutions, matrix products (linear layers, both products of an attention) and, by the formula
    9 L D N + D L that published tables use, selective scans; not norms, activations or additions.

    Args:
        model: any network; it leaves as it came. One built under ``torch.device("meta")`` is counted without
            computing anything.
        inputs: (N, C, H, W), moved to where the model is; the count is for the whole batch.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 4, 4))
    3456
    """
    with torch.no_grad(), inspected(model, warn=False), counting_flops() as counter:
        model(inputs.to(device_of(model)))
    return int(counter.get_total_flops()) // 2


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """Count what runs in the ``with`` block; two operations are one multiply-accumulate."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The plain attention kernel shows its two products; the fused ones are counted on some devices only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter
