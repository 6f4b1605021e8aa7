"""The library on a GPU, held against itself on the CPU.

Skipped where there is no GPU. ``STRIATE_TEST_DEVICE=cpu`` runs the same tests on the CPU, which checks their own logic.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

NAME = os.environ.get("STRIATE_TEST_DEVICE", "cuda")
MISSING = "no GPU that PyTorch can use is here (STRIATE_TEST_DEVICE=cpu runs these tests on the CPU)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.device(NAME).type != "cuda" or torch.cuda.is_available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Full float32: TF32 is PyTorch's default for cuDNN's convolutions (not for matmul) and keeps 3 digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def device() -> torch.device:
    """A tensor's own device names its number, which ``torch.device("cuda")`` does not."""
    return torch.empty(0, device=NAME).device


@pytest.fixture
def same(device: torch.device) -> Callable[..., None]:
    """``same(there, here)``: there is on the device and equals here but for rounding, as a share of the largest."""

    def compare(there: Tensor, here: Tensor, tolerance: float = 1e-4) -> None:
        assert there.device == device
        assert there.shape == here.shape
        assert there.dtype == here.dtype
        there, here = there.detach().cpu(), here.detach()
        if here.is_floating_point():
            apart = float((there - here).abs().max()) / max(float(here.abs().max()), 1e-12)
            assert apart <= tolerance, f"{apart:.2e} of the largest value apart"
        else:
            assert torch.equal(there, here)

    return compare


@pytest.fixture
def both(device: torch.device, same: Callable[..., None]) -> Callable[..., None]:
    """``both(function, *inputs)``: outputs and gradients of inputs and parameters are the same here and there."""

    def run(function: Callable[..., Any], *inputs: Tensor, dtype: torch.dtype = torch.float32) -> None:
        tolerance = 1e-9 if dtype == torch.float64 else 2e-4
        found = []
        for place in (torch.device("cpu"), device):
            moved = copy.deepcopy(function).to(place, dtype) if isinstance(function, nn.Module) else function
            leaves = [x.to(place, dtype).requires_grad_() if x.is_floating_point() else x.to(place) for x in inputs]
            outputs = moved(*leaves)
            outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            names = ["input"] * len(wanted)
            if isinstance(moved, nn.Module):
                trained = [(name, p) for name, p in moved.named_parameters() if p.requires_grad]
                names, wanted = names + [name for name, _ in trained], wanted + [p for _, p in trained]
            generator = torch.Generator().manual_seed(7)
            above = [torch.randn(y.shape, generator=generator).to(place, y.dtype) for y in outputs]
            total = sum((y * w).sum() for y, w in zip(outputs, above, strict=True))
            gradients = torch.autograd.grad(total, wanted, allow_unused=True) if wanted else ()
            found.append((outputs, dict(zip(range(len(names)), gradients, strict=True)), names))
        (here, slopes_here, names), (there, slopes_there, _) = found
        for y_there, y_here in zip(there, here, strict=True):
            same(y_there, y_here, tolerance)
        for i, name in enumerate(names):
            assert (slopes_there[i] is None) == (slopes_here[i] is None), name
            if slopes_here[i] is not None:
                scale = max(float(slope.abs().max()) for slope in slopes_here.values() if slope is not None)
                apart = float((slopes_there[i].cpu() - slopes_here[i]).abs().max())
                assert slopes_there[i].device == device, name
                assert apart <= tolerance * scale, f"gradient of {name}: {apart:.2e}, the largest is {scale:.2e}"

    return run
