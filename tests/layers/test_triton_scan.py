"""Triton's kernels against the plain loop in float64: on the GPU where there is one, else in Triton's interpreter.

The interpreter is chosen by an environment variable before Triton is imported, so it gets a process of its own, for all
cases together (some 15 seconds).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from striate.errors import InputError
from striate.layers import triton_scan
from striate.layers.selective_scan import selective_scan

pytest.importorskip("triton", reason="Triton cannot be had here")

# Batch, channels, groups, states, length, softplus, skip and bias: channels and states that fill no tile, one step,
# blocks that are full and that are not.
CASES = {
    "one state": (2, 6, 2, 1, 300, True, True),
    "three states, one group": (1, 5, 1, 3, 257, True, False),
    "sixteen states": (1, 2, 2, 16, 128, False, True),
    "one step": (2, 3, 1, 2, 1, True, True),
    "small steps": (1, 2, 1, 1, 40, True, False),
}


def largest_difference(case: str, device: str) -> dict[str, float]:
    """Outputs, last state and every gradient against the loop in float64, by the largest value of each."""
    batch, dim, groups, states, length, softplus, extras = CASES[case]
    g = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    p = {"u": normal(batch, dim, length), "delta": normal(batch, dim, length), "A": -torch.rand(dim, states) - 0.1}
    p |= {name: normal(batch, groups, states, length) for name in ("B", "C")}
    if extras:
        p |= {"D": normal(dim), "delta_bias": normal(dim)}
    if case == "small steps":
        p["delta"] -= 18.0  # softplus is 1.5e-8, which 1 + exp(x) would round away
    if not softplus:
        p["delta"], p["delta_bias"] = p["delta"].abs(), p["delta_bias"].abs()
    weights = normal(batch, dim, length), normal(batch, dim, states)

    def run(backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {name: tensor.to(device, dtype).requires_grad_() for name, tensor in p.items()}
        y, last = selective_scan(**leaves, delta_softplus=softplus, return_last_state=True, backend=backend)
        loss = (y * weights[0].to(y)).sum() + (last * weights[1].to(last)).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)  # one step does not use A
        found = dict(zip(leaves, gradients, strict=True))
        return {"y": y.detach(), "last": last.detach(), **found}

    ours, exact = run("triton", torch.float32), run("reference", torch.float64)
    # What is 0 but for rounding (one step does not use A) is held against a tenth of the largest gradient.
    least = 0.1 * max(exact[name].abs().max() for name in p)
    scale = {name: tensor.abs().max().clamp_min(least if name in p else 0) for name, tensor in exact.items()}
    return {name: float((ours[name] - exact[name]).abs().max() / scale[name]) for name in exact}


@pytest.fixture(scope="module")
def differences() -> dict[str, dict[str, float]]:
    if torch.cuda.is_available():
        return {case: largest_difference(case, "cuda") for case in CASES}
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_the_loops(case: str, differences: dict[str, dict[str, float]]) -> None:
    assert set(differences[case]) >= {"y", "last", "u", "delta", "A", "B", "C"}
    assert max(differences[case].values()) < 2e-5, differences[case]


def test_a_tile_covers_the_states_and_fits_registers() -> None:
    for dim, groups, states in ((384, 4, 1), (96, 1, 16), (7, 7, 5), (3, 1, 256)):
        channels, padded, steps, _ = triton_scan.tile(dim, groups, states)
        assert padded >= states
        assert channels <= 2 * (dim // groups)
        assert channels * padded * steps <= 4096


def test_where_it_cannot_run_it_says_so() -> None:
    one = torch.ones(1, 1, 3)
    with pytest.raises(InputError, match="on CUDA, and the tensors are on cpu"):
        selective_scan(one, one, -torch.ones(1, 1), one, one, backend="triton")
    double = torch.ones(1, 1, 3, dtype=torch.float64, device="meta")
    assert "float64" in str(triton_scan.why_not(double))


if __name__ == "__main__":
    print(json.dumps({case: largest_difference(case, "cpu") for case in CASES}))
