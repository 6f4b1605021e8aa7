"""Activations computed again in the backward pass instead of being kept: time for memory."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from striate.engine.state import StillStatistics

__all__ = ["recomputed"]


def recomputed(part: nn.Module, *inputs: Any) -> Any:
    """Return ``part(*inputs)``, of which nothing but the inputs is kept for the backward pass.

    Batch norms count the batch once, in the forward pass: torch.utils.checkpoint alone moves their running statistics a
    second time when it computes again. Compiled code does not, and takes no context.
    """
    if torch.compiler.is_compiling():
        return checkpoint(part, *inputs, use_reentrant=False)
    return checkpoint(part, *inputs, use_reentrant=False, context_fn=partial(_counted_once, part))


def _counted_once(part: nn.Module) -> tuple[nullcontext[None], StillStatistics]:
    return nullcontext(), StillStatistics(part)
