"""The selective scan against the ways that run on a CPU elsewhere: the same numbers first, then the time.

Peers: the loop over time that mamba-ssm gives as its reference (mamba-ssm itself cannot be imported without CUDA, so
the loop is written here after the same formulation), as it stands and with the steps taken apart once: it indexes at
each step, and autograd then fills a whole tensor with zeros a step; mambapy's parallel scan, the fastest in plain
PyTorch; and transformers' Mamba layer, whose slow path is what runs without CUDA. "Bytes" is a copy of as many bytes as
the scan has to read and write at least once: u, delta, y, B, C forward; those inputs, dy and all five gradients
backward. With gradient means forward and backward from a given gradient of y, for both sides alike.

On a GPU (``--device cuda``) ours is the Triton kernel, and mamba-ssm's own kernel is a peer where it is installed; the
loops are left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _timing import Row, compare, options, print_head, print_summary
from torch import Tensor

from striate.layers import native_scan
from striate.layers.selective_scan import selective_scan

SHAPES = {"N=1": (2, 384, 4, 1, 3136), "N=1, L=784": (2, 384, 4, 1, 784), "N=16": (2, 384, 4, 16, 784)}
LARGE = {"N=1, B=64, L=784": (64, 384, 4, 1, 784), "N=16, B=8, L=3136": (8, 384, 4, 16, 3136)}  # fill a GPU


def problem(
    batch: int, dim: int, groups: int, states: int, length: int, device: str | torch.device = "cpu"
) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    u, delta = (torch.randn(batch, dim, length, generator=g) for _ in range(2))
    A = -torch.arange(1, states + 1.0).repeat(dim, 1)
    B, C = (torch.randn(batch, groups, states, length, generator=g) for _ in range(2))
    D, bias = torch.ones(dim), torch.full((dim,), -3.0)
    return [tensor.to(device).requires_grad_() for tensor in (u, delta, A, B, C, D, bias)]


def coefficients(p: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Decay, drive and C, each (B, D, L, N), as both peers make them."""
    u, delta, A, B, C, _, bias = p
    dt = torch.nn.functional.softplus(delta + bias[:, None])
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1).transpose(2, 3) for t in (B, C))
    return torch.exp(dt[..., None] * A[:, None]), (dt * u)[..., None] * B, C


def reference(p: list[Tensor]) -> Tensor:
    decay, drive, C = coefficients(p)
    h, ys = torch.zeros_like(drive[:, :, 0]), []
    for t in range(drive.shape[2]):
        h = decay[:, :, t] * h + drive[:, :, t]
        ys.append((h * C[:, :, t]).sum(dim=-1))
    return torch.stack(ys, dim=2) + p[5][:, None] * p[0]


def loop(p: list[Tensor]) -> Tensor:
    decay, drive, C = (tensor.unbind(2) for tensor in coefficients(p))
    h, ys = torch.zeros_like(drive[0]), []
    for keep, add, read in zip(decay, drive, C, strict=True):
        h = keep * h + add
        ys.append((h * read).sum(dim=-1))
    return torch.stack(ys, dim=2) + p[5][:, None] * p[0]


def parallel(p: list[Tensor]) -> Tensor:
    from mambapy.pscan import pscan

    decay, drive, C = coefficients(p)
    h = pscan(decay.transpose(1, 2), drive.transpose(1, 2)).transpose(1, 2)
    return (h * C).sum(dim=-1) + p[5][:, None] * p[0]


def ours(p: list[Tensor], backend: str = "auto") -> Tensor:
    u, delta, A, B, C, D, bias = p
    return selective_scan(u, delta, A, B, C, D, None, bias, True, backend=backend)  # type: ignore[arg-type]


def trained(scan: Callable[[list[Tensor]], Tensor], p: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Forward, and backward from a given gradient of y, as a layer gets it: a loss would add passes of its own."""
    above = torch.linspace(-1, 1, p[0].numel(), device=p[0].device).view_as(p[0])

    def call() -> list[Tensor]:
        y = scan(p)
        return [y.detach(), *torch.autograd.grad(y, p, above)]

    return call


def tested(scan: Callable[[list[Tensor]], Tensor], p: list[Tensor]) -> Callable[[], list[Tensor]]:
    def call() -> list[Tensor]:
        with torch.no_grad():
            return [scan(p)]

    return call


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True))


def copy_of(p: list[Tensor], backward: bool) -> Callable[[], list[Tensor]]:
    u, delta, _, B, C, *_ = p
    streams = [u, delta, u, B, C] + ([u, delta, u, u, delta, B, C, B, C] if backward else [])
    source = torch.cat([tensor.detach().flatten() for tensor in streams])
    half = len(source) // 2  # a copy reads one half and writes the other
    target = torch.empty(half, device=source.device)

    def call() -> list[Tensor]:
        target.copy_(source[:half])
        return []

    return call


def mixer() -> tuple[Any, Tensor, Callable[[Any, Tensor], Tensor]]:
    """transformers' Mamba layer, and the same layer with our scan in it."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    layer = MambaMixer(MambaConfig(hidden_size=192, state_size=16, num_hidden_layers=1), layer_idx=0).eval()

    def faster(layer: Any, x: Tensor) -> Tensor:
        u, z = layer.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        u = layer.act(layer.conv1d(u)[..., : x.shape[1]])
        rank, states = layer.time_step_rank, layer.ssm_state_size
        dt, B, C = layer.x_proj(u.transpose(1, 2)).split([rank, states, states], dim=-1)
        y = selective_scan(
            u,
            (layer.dt_proj.weight @ dt.transpose(1, 2)),
            -torch.exp(layer.A_log.float()),
            B.transpose(1, 2),
            C.transpose(1, 2),
            layer.D.float(),
            z,
            layer.dt_proj.bias.float(),
            True,
        )
        return layer.out_proj(y.transpose(1, 2))

    return layer, torch.randn(2, 784, 192), faster


def on_gpu(device: torch.device, repeats: int) -> None:
    """The Triton kernel against what else runs there."""
    here = [name for name in ("mambapy", "mamba_ssm") if importlib.util.find_spec(name)]
    print_head("Selective scan on a GPU, float32, B = 2, D = 384 unless named", here, device)
    settings: dict[str, Any] = {"difference": difference, "repeats": 5 * repeats, "device": device}
    rows: list[Row] = []
    for name, shape in (SHAPES | LARGE).items():
        p = problem(*shape, device)
        kernel = trained(partial(ours, backend="triton"), p)
        rows += compare(f"{name}: our chunked", kernel, trained(partial(ours, backend="chunked"), p), **settings)
        if "mambapy" in here and shape[3] * shape[4] < 20_000:  # its buffers are 40 GB beyond
            rows += compare(f"{name}: mambapy pscan", kernel, trained(parallel, p), aim=3, **settings)
        if "mamba_ssm" in here:
            peer = trained(partial(ours, backend="mamba-ssm"), p)
            rows += compare(f"{name}: mamba-ssm's kernel", kernel, peer, **settings)
        alone = settings | {"difference": lambda *_: 0.0}
        rows += compare(f"{name}: copy of its bytes", kernel, copy_of(p, backward=True), **alone)
    print_summary(rows)


def main() -> None:
    chosen = options(__doc__ or "")
    if chosen.device.type != "cpu":
        on_gpu(chosen.device, chosen.repeats)
        return
    here = {name for name in ("mambapy", "transformers") if importlib.util.find_spec(name)}
    print_head("Selective scan, float32, B, D, groups, N, L as named", sorted(here))
    print(f"kernel: {native_scan.why_not() or 'compiled C++'}; ours is backend='auto'")
    rows: list[Row] = []
    settings: dict[str, Any] = {"difference": difference, "repeats": chosen.repeats, "threads": chosen.threads}
    alone = {**settings, "difference": lambda *_: 0.0}  # not two ways to one result
    for name, shape in SHAPES.items():
        p = problem(*shape)
        few = {**settings, "repeats": 3}  # the loop takes seconds
        aims = (40.0, 3.0) if name == "N=1" else (None, None)
        if shape[3] == 1:  # at N=16 a single call takes minutes
            once = {**settings, "repeats": 1}
            label = f"{name}: reference loop, with gradient"
            rows += compare(label, trained(ours, p), trained(reference, p), **once, aim=aims[0])
        rows += compare(f"{name}: loop, forward", tested(ours, p), tested(loop, p), **few)
        rows += compare(f"{name}: loop, with gradient", trained(ours, p), trained(loop, p), **few)
        if "mambapy" in here:
            rows += compare(
                f"{name}: mambapy pscan, with gradient", trained(ours, p), trained(parallel, p), **few, aim=aims[1]
            )
        for backend in ("chunked", "sequential"):
            other = trained(lambda q, b=backend: ours(q, b), p)
            rows += compare(f"{name}: our {backend}, with gradient", trained(ours, p), other, **few)
        for backward in (False, True):
            call = (trained if backward else tested)(ours, p)
            label = f"{name}: copy of its bytes, {'with gradient' if backward else 'forward'}"
            rows += compare(label, call, copy_of(p, backward), **alone, aim=1 / 3 if backward else None)
    long, short = (trained(ours, problem(*SHAPES[name])) for name in ("N=1", "N=1, L=784"))
    rows += compare("linear in L: time of L=784 / of L=3136", long, short, **alone, aim=0.2)
    if "transformers" in here:
        layer, x, faster = mixer()

        def quiet(call: Callable[[], Tensor]) -> Callable[[], list[Tensor]]:
            def run() -> list[Tensor]:
                with torch.no_grad():
                    return [call()]

            return run

        peer = quiet(lambda: layer(x))  # without CUDA its slow path
        rows += compare(
            "transformers Mamba layer, slow path, N=16, L=784", quiet(lambda: faster(layer, x)), peer, **settings
        )
    for missing in {"mambapy", "transformers"} - here:
        print(f"{missing} is not installed: its rows are left out (pip install {missing})")
    print_summary(rows)


if __name__ == "__main__":
    main()
