"""How long a network takes: warmed up, many times, and two of them in turns, so that a busy machine slows both."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from striate.engine.state import device_of, inspected, seeded
from striate.errors import InputError

__all__ = ["Comparison", "compare_latency", "latency", "wall_seconds"]


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images, timed in turns.

    Attributes:
        first, second: median seconds.
        ratio: median over median, first / second: above 1 the second is faster.
        low, high: lower and upper quartile of the ratios of neighbouring runs.
        repeats: timed runs of each.
        threads: of PyTorch, while they were timed.
        training: whether a step forward and backward was timed.
    """

    first: float
    second: float
    ratio: float
    low: float
    high: float
    repeats: int
    threads: int
    training: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return dict(vars(self))


def latency(model: nn.Module, images: Tensor, *, repeats: int = 15, warmup: int = 3) -> np.ndarray:
    """Return wall seconds of single forward passes in eval mode, (repeats,), after a warm-up; take the median.

    Args:
        model: any network; it leaves as it came.
        images: (N, C, H, W), moved to where the model is.
        repeats: timed runs.
        warmup: runs before them.
    """
    x = images.to(device_of(model))
    with torch.inference_mode(), inspected(model, warn=False, exact=False):
        for _ in range(warmup):
            model(x)
        return np.array([wall_seconds(lambda: model(x), x.device) for _ in range(repeats)])


def compare_latency(
    first: nn.Module,
    second: nn.Module,
    images: Tensor,
    *,
    repeats: int = 15,
    warmup: int = 3,
    training: bool = False,
) -> Comparison:
    """Time two networks on the same images in turns, the order changing from turn to turn.

    Args:
        first, second: usually the original and the compressed network; they leave as they came.
        images: (N, C, H, W), moved to where each network is.
        repeats, warmup: see :func:`latency`.
        training: time forward and backward in train mode, on copies, instead of a forward pass in eval mode.
    """
    if repeats < 2:
        raise InputError("repeats", "compare_latency", allowed=">= 2", got=repeats)
    sides: list[tuple[Callable[[], Any], torch.device]] = []
    mode = torch.enable_grad() if training else torch.inference_mode()
    with (
        mode,
        seeded(0),
        inspected(first, warn=False, exact=False),
        inspected(second, warn=False, exact=False),
    ):
        for model in (first, second):
            x = images.to(device_of(model))
            sides.append((_step(model, x) if training else _pass(model, x), x.device))
        for call, _ in sides:
            for _ in range(warmup):
                call()
        times = np.empty((repeats, 2))
        for turn in range(repeats):
            for side in (0, 1) if turn % 2 else (1, 0):
                times[turn, side] = wall_seconds(*sides[side])
    one, two = np.median(times, axis=0)
    low, high = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.75])
    return Comparison(
        float(one), float(two), float(one / two), float(low), float(high), repeats, torch.get_num_threads(), training
    )


def wall_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return wall seconds of one call, what it left to do on ``device`` included."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _pass(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    return lambda: model(x)


def _step(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    twin = copy.deepcopy(model).train()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)

    def step() -> None:
        twin.zero_grad(set_to_none=True)
        sum(leaf.sum() for leaf in tree_leaves(twin(x)) if isinstance(leaf, Tensor)).backward()  # type: ignore[union-attr]

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
