"""The scan against closed forms and its plain loop: every backend, every gradient, every option."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from striate.engine.macs import count_macs
from striate.errors import InputError, UnstableWarning
from striate.layers import native_scan, triton_scan
from striate.layers import selective_scan as module
from striate.layers.linear_scan import linear_scan
from striate.layers.selective_scan import best_backend, selective_scan, selective_state_update

HERE = [
    name for name in ("sequential", "chunked", "associative", "native") if name != "native" or native_scan.available()
]
EVERY = ["reference", *HERE]


def problem(
    batch: int = 2, dim: int = 6, groups: int = 2, states: int = 3, length: int = 37, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(length + states)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "u": normal(batch, dim, length),
        "delta": normal(batch, dim, length),
        "A": -torch.rand(dim, states, generator=g, dtype=torch.float64).to(dtype) - 0.1,
        "B": normal(batch, groups, states, length),
        "C": normal(batch, groups, states, length),
        "D": normal(dim),
        "z": normal(batch, dim, length),
        "delta_bias": normal(dim),
    }


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().abs().max() / second.detach().abs().max().clamp_min(1e-12))


# ------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("backend", EVERY)
def test_halving(backend: str) -> None:
    """A = -1 and steps of ln 2 halve the state: h_t = ln 2 (2 - 2^(1 - t)) with t from 1."""
    one = torch.ones(1, 1, 12)
    y = selective_scan(one, one * math.log(2), -torch.ones(1, 1), one, one, backend=backend)
    expected = math.log(2) * (2 - 2.0 ** (1 - torch.arange(1, 13)))
    torch.testing.assert_close(y[0, 0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", EVERY)
def test_no_step_leaves_the_skip_and_no_memory_leaves_the_input(backend: str) -> None:
    p = problem()
    p |= {"delta_bias": None, "z": None}
    still = selective_scan(**{**p, "delta": torch.zeros_like(p["delta"])}, backend=backend)
    torch.testing.assert_close(still, p["D"][:, None] * p["u"])
    p |= {"A": torch.full_like(p["A"], -1e6), "delta": p["delta"].abs() + 0.1}
    y = selective_scan(**p, backend=backend)
    direct = (p["B"] * p["C"]).sum(dim=2).repeat_interleave(3, dim=1)  # G = 2 groups of 3 channels
    torch.testing.assert_close(y, direct * p["delta"] * p["u"] + p["D"][:, None] * p["u"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", EVERY)
def test_constant_coefficients_are_a_causal_convolution(backend: str) -> None:
    u, ones, length = problem()["u"], torch.ones(2, 6, 37), 37
    A, dt, b, c = -torch.linspace(0.2, 1.2, 6)[:, None], 0.4, 1.5, 0.7
    y = selective_scan(u, ones * dt, A, b * ones[:, :1], c * ones[:, :1], backend=backend)
    kernel = c * torch.exp(dt * A) ** torch.arange(length) * dt * b  # (D, L)
    expected = F.conv1d(F.pad(u, (length - 1, 0)), kernel.flip(1)[:, None], groups=6)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", EVERY)
def test_the_past_does_not_see_the_future(backend: str) -> None:
    p = problem()
    before = selective_scan(**p, delta_softplus=True, backend=backend)
    for name in ("u", "delta", "B", "C", "z"):
        p[name] = torch.cat([p[name][..., :20], p[name][..., 20:] + 1], dim=-1)
    after = selective_scan(**p, delta_softplus=True, backend=backend)
    torch.testing.assert_close(after[..., :20], before[..., :20])
    assert not torch.allclose(after[..., 20:], before[..., 20:])


@pytest.mark.parametrize("backend", HERE)
def test_a_long_sequence_with_extreme_steps_stays_finite(backend: str) -> None:
    """20,000 steps of 0 to 100: decays from 1 to 0, where divided cumulative products would overflow."""
    length = 20_000
    g = torch.Generator().manual_seed(0)
    delta = (100 * torch.rand(1, 2, length, generator=g)) * (torch.rand(1, 2, length, generator=g) > 0.5)
    u, B, C = (torch.randn(1, size, length, generator=g).requires_grad_() for size in (2, 1, 1))
    A = torch.tensor([[-1e-4], [-50.0]])
    y = selective_scan(u, delta, A, B, C, backend=backend)
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(found).all() for found in torch.autograd.grad(y.sum(), (u, B, C)))
    exact = selective_scan(*(t.detach().double() for t in (u, delta, A, B, C)), backend="sequential")
    assert apart(y.double(), exact) < 1e-4


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("channels", [3, 16])  # narrow and wide vectors
def test_decays_at_the_ends_of_the_numbers(channels: int, softplus: bool) -> None:
    A = -torch.tensor([math.inf, 3e38, 1e30, 1e6, 200.0, 1.0, 1e-30, 0.0]).repeat_interleave(channels)[:, None]
    sizes = torch.tensor([0.7, 1e-6, 1.0, 20.0, 89.0, 104.0, 1e4, 1e30, 0.5]).expand(1, len(A), 9)
    one = torch.ones(1, len(A), 9)
    B = torch.ones(1, 8, 1, 9)
    y, exact = (
        selective_scan(one, sizes, A, B, B, delta_softplus=softplus, backend=backend)
        for backend in ("auto", "reference")
    )
    torch.testing.assert_close(y, exact)


@pytest.mark.parametrize("backend", HERE)
def test_results_larger_than_a_cache(backend: str) -> None:
    """2.2 MB in rows of whole cache lines, which are written past the caches; the last channels fill no vector."""
    p = problem(2, 344, 2, 1, 784)
    found = selective_scan(**p, delta_softplus=True, backend=backend)
    exact = selective_scan(**{key: value.double() for key, value in p.items()}, delta_softplus=True, backend="chunked")
    assert apart(found.double(), exact) < 1e-5
    u = p["u"].requires_grad_()
    gradients = [
        torch.autograd.grad(selective_scan(**p, delta_softplus=True, backend=name).sum(), u)[0]
        for name in (backend, "chunked")
    ]
    assert apart(*gradients) < 1e-5


def test_no_channels_give_no_channels():
    none, B = torch.zeros(1, 0, 4), torch.zeros(1, 2, 4)
    assert selective_scan(none, none, torch.zeros(0, 2), B, B, backend="reference").shape == (1, 0, 4)


@pytest.mark.parametrize("backend", HERE)
def test_no_images_give_gradients_of_zero(backend: str) -> None:
    p = {key: value.requires_grad_() for key, value in problem(batch=0).items()}
    y, last = selective_scan(**p, delta_softplus=True, return_last_state=True, backend=backend)
    assert (y.shape, last.shape) == ((0, 6, 37), (0, 6, 3))
    y.sum().backward()
    assert all(value.grad is not None and (value.grad == 0).all() for value in p.values())


@pytest.mark.parametrize("backend", HERE)
def test_a_gradient_of_the_last_state_alone(backend: str) -> None:
    p = problem(dtype=torch.float64)
    delta = p["delta"].requires_grad_()
    gradients = []
    for name in (backend, "reference"):
        _, last = selective_scan(**p, delta_softplus=True, return_last_state=True, backend=name)
        gradients.append(torch.autograd.grad(last.sum(), delta)[0])
    torch.testing.assert_close(*gradients)


# ----------------------------------------------------------------------------------- backends against the loop


@pytest.mark.parametrize("backend", HERE)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 11),
    states=st.sampled_from([1, 2, 16]),
    length=st.sampled_from([1, 2, 31, 128, 129, 300]),
    softplus=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_backends_and_gradients_agree_with_the_loop(
    backend: str, batch: int, groups: int, per_group: int, states: int, length: int, softplus: bool
) -> None:
    p = problem(batch, groups * per_group, groups, states, length)
    if not softplus:  # a negative step would let the state grow
        p |= {"delta": p["delta"].abs(), "delta_bias": p["delta_bias"].abs()}

    def run(p: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        p = {key: value.clone().requires_grad_() for key, value in p.items()}
        y, last = selective_scan(**p, delta_softplus=softplus, return_last_state=True, backend=backend)
        loss = (y * torch.linspace(-1, 1, y.numel()).to(y).view_as(y)).sum() + last.square().sum()
        # A counts from the second step on.
        gradients = torch.autograd.grad(loss, list(p.values()), materialize_grads=True)
        return {"y": y.detach(), "last": last.detach()} | dict(zip(p, gradients, strict=True))

    wide = {key: value.double() for key, value in p.items()}
    exact, found = run(wide, "reference"), run(p, backend)
    # Gradients that are sums may cancel: their rounding is that of their terms, which a group for each channel shows.
    alone = {key: value.repeat_interleave(per_group, dim=1) for key, value in wide.items() if key in {"B", "C"}}
    terms = {key: run(wide | alone, "reference")[key].unflatten(1, (groups, -1)).abs().sum(dim=2) for key in alone}
    weight = torch.linspace(-1, 1, exact["y"].numel(), dtype=torch.float64).view_as(exact["y"])
    terms["D"] = (weight * F.silu(wide["z"]) * wide["u"]).abs().sum(dim=(0, 2))
    terms["delta_bias"] = exact["delta"].abs().sum(dim=(0, 2))
    for key, value in exact.items():
        largest = float(terms.get(key, value).abs().max().clamp_min(1e-9))
        assert float((found[key] - value).abs().max()) < 2e-5 * largest, key


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("grouped", [True, False])
def test_gradcheck(backend: str, grouped: bool) -> None:
    p = problem(2, 4, 2 if grouped else 1, 2, 5, torch.float64)
    if not grouped:
        p["B"], p["C"] = p["B"][:, 0], p["C"][:, 0]
    names = list(p)

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        options = {"delta_softplus": True, "return_last_state": True, "backend": backend}
        return selective_scan(**dict(zip(names, tensors, strict=True)), **options)

    assert torch.autograd.gradcheck(call, [tensor.requires_grad_() for tensor in p.values()])


@pytest.mark.parametrize("size", [*range(1, 40), 64])
def test_every_chunk_size_gives_the_sequential_result(size: int) -> None:
    p = problem()
    expected = selective_scan(**p, delta_softplus=True, backend="sequential")
    assert apart(selective_scan(**p, delta_softplus=True, backend="chunked", chunk_size=size), expected) < 1e-6


def test_the_recurrence_itself_in_four_ways() -> None:
    a, b = torch.rand(50, 2, 3, dtype=torch.float64), torch.randn(50, 2, 3, dtype=torch.float64)
    loop = linear_scan(a, b, backend="loop")
    for backend in ("sequential", "chunked", "associative"):
        torch.testing.assert_close(linear_scan(a, b, backend=backend), loop)
    with pytest.raises(InputError, match="chunked"):
        linear_scan(a, b, backend="magic")


@pytest.mark.parametrize("backend", EVERY)
def test_second_derivatives(backend: str) -> None:
    p = problem(1, 2, 1, 2, 4, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in p.values()]

    def scan(*tensors: Tensor) -> Any:
        named = dict(zip(p, tensors, strict=True))
        return selective_scan(**named, delta_softplus=True, return_last_state=True, backend=backend)  # type: ignore[arg-type]

    assert torch.autograd.gradgradcheck(scan, leaves)
    (first,) = torch.autograd.grad(scan(*leaves)[0].square().sum(), leaves[2], create_graph=True)
    assert first.requires_grad


@pytest.mark.parametrize("backend", [*HERE, "auto"])
@pytest.mark.filterwarnings("error::UserWarning")  # as vmap gives where an operator is called once a sample
def test_transforms_are_those_of_the_loop(backend: str) -> None:
    p = problem(2, 2, 1, 2, 4, torch.float64)

    def found(backend: str) -> list[Tensor]:
        def scan(A: Tensor) -> Tensor:
            return selective_scan(**{**p, "A": A}, delta_softplus=True, backend=backend)  # type: ignore[arg-type]

        def energy(A: Tensor) -> Tensor:
            return scan(A).square().sum()

        A, many = p["A"], torch.stack([p["A"], 2 * p["A"]])
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(scan(forward_ad.make_dual(A, torch.ones_like(A)))).tangent
        return [
            torch.func.grad(energy)(A),
            torch.func.jvp(scan, (A,), (torch.ones_like(A),))[1],
            torch.func.vmap(torch.func.grad(energy))(many),
            torch.func.hessian(energy)(A),
            tangent,
        ]

    for ours, plain in zip(found(backend), found("reference"), strict=True):
        assert plain.abs().max() > 0.01
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("sizes", [{"states": 0}, {"dim": 0, "groups": 1}], ids=str)
def test_without_states_or_channels_no_gradient_is_left_unset(backend: str, sizes: dict[str, int]) -> None:
    p = {name: tensor.requires_grad_() for name, tensor in problem(**sizes).items() if name != "z"}
    filler = [torch.full((n,), 7.0) for n in range(1, 500)]  # what would be found in memory that nobody sets
    del filler
    y, last = selective_scan(**p, return_last_state=True, backend=backend)  # type: ignore[arg-type]
    torch.testing.assert_close(y, p["D"][:, None] * p["u"])
    found = torch.autograd.grad(y.sum() + last.sum(), list(p.values()), allow_unused=True)
    expected = {"u": p["D"][:, None].expand_as(p["u"]), "D": p["u"].sum(dim=(0, 2))}
    for name, gradient in zip(p, found, strict=True):
        torch.testing.assert_close(
            torch.zeros_like(p[name]) if gradient is None else gradient, expected.get(name, torch.zeros_like(p[name]))
        )


# ------------------------------------------------------------------------------------------- precision, stepping


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_have_float32_states(backend: str, dtype: torch.dtype) -> None:
    half = {key: value.to(dtype) if key != "A" else value for key, value in problem(length=300).items()}
    wide = {key: value.float() for key, value in half.items()}
    y, last = selective_scan(**half, delta_softplus=True, return_last_state=True, backend=backend)
    exact, state = selective_scan(**wide, delta_softplus=True, return_last_state=True, backend=backend)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(last, state)
    assert apart(y.float(), exact) < (1e-3 if dtype == torch.float16 else 1e-2)


@pytest.mark.parametrize("grouped", [True, False])
def test_stepping_gives_the_scan_and_its_state(grouped: bool) -> None:
    p = problem(groups=2 if grouped else 1)
    if not grouped:
        p["B"], p["C"] = p["B"][:, 0], p["C"][:, 0]
    y, last = selective_scan(**p, delta_softplus=True, return_last_state=True)
    state = torch.zeros(2, 6, 3)
    for t in range(37):
        now = [p[name][..., t] for name in ("u", "delta", "B", "C", "z")]
        step = selective_state_update(
            state, now[0], now[1], p["A"], now[2], now[3], p["D"], now[4], p["delta_bias"], dt_softplus=True
        )
        torch.testing.assert_close(step, y[..., t], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- compile, export, counting


class Scan(nn.Module):
    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u, delta, A, B, C, delta_softplus=True)


def test_compile_and_export() -> None:
    p = [value for key, value in problem().items() if key in {"u", "delta", "A", "B", "C"}]
    expected = Scan()(*p)
    compiled = torch.compile(Scan(), fullgraph=True, backend="aot_eager")
    leaves = [tensor.clone().requires_grad_() for tensor in p]
    torch.testing.assert_close(compiled(*leaves), expected)
    compiled(*leaves).sum().backward()
    torch.compiler.reset()
    exported = torch.export.export(Scan(), tuple(p))
    assert not any("striate" in str(node.target) for node in exported.graph.nodes)  # runs where Striate is not
    torch.testing.assert_close(exported.module()(*p), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_traced_graph_that_learns_can_be_saved() -> None:
    p = [value.requires_grad_() for key, value in problem().items() if key in {"u", "delta", "A", "B", "C"}]
    traced, file = torch.jit.trace(Scan(), tuple(p)), io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(*p), Scan()(*p))


def test_multiplications_are_counted_as_published() -> None:
    class OneImage(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return selective_scan(x, x, -torch.ones(8, 4), torch.ones(3, 2, 4, 10), torch.ones(3, 2, 4, 10))

    assert count_macs(OneImage(), torch.ones(3, 8, 10)) == 3 * (9 * 10 * 8 * 4 + 10 * 8)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delta": torch.zeros(2, 6, 36)}, "of u's shape"),
        ({"A": -torch.ones(5, 3)}, r"\(6, N\)"),
        ({"B": torch.zeros(2, 4, 3, 37), "C": torch.zeros(2, 4, 3, 37)}, "G dividing 6"),
        ({"B": torch.zeros(2, 2, 3, 36)}, "37"),
        ({"u": torch.zeros(2, 6, 37, dtype=torch.long)}, "floating point"),
        ({"D": torch.zeros(5)}, r"\(6,\)"),
        ({"B": torch.zeros(2, 0, 3, 37), "C": torch.zeros(2, 0, 3, 37)}, "G dividing 6"),
        ({"A": -torch.ones(6, 3) + 1j}, "'A' .* real"),
        ({"A": torch.empty(6, 3, device="meta")}, "'A' .* on cpu"),
        ({"backend": "chunked", "chunk_size": -1}, "chunk_size"),
        ({"backend": "magic"}, "chunked"),
        ({"backend": "mamba-ssm"}, "mamba-ssm cannot be imported"),
    ],
)
def test_refusals(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        selective_scan(**{**problem(), **change})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="L > 0"):
        selective_scan(**{key: value[..., :0] if value.dim() > 2 else value for key, value in problem().items()})
    with pytest.raises(InputError, match="state"):
        selective_state_update(torch.zeros(2, 6, 2), *(torch.zeros(2, 6) for _ in range(2)), *([torch.zeros(6, 3)] * 3))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"x": torch.zeros(2, 6, dtype=torch.long)}, "x"),
        ({"state": torch.zeros(2, 6, 3, dtype=torch.long)}, "state"),  # would be cut off at every step
        ({"A": torch.zeros(6, 3, dtype=torch.cfloat)}, "A"),
        ({"dt": torch.zeros(2, 5)}, "dt"),
        ({"z": torch.zeros(2, 1)}, "z"),
        ({"D": torch.zeros(5)}, "D"),
        ({"B": torch.zeros(2, 4, 3)}, "B"),
        ({"C": torch.zeros(2, 5)}, "C"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(change: dict[str, Tensor], name: str) -> None:
    p = {key: value[..., 0] if value.dim() > 2 else value for key, value in problem().items()}
    step = {"x": p["u"], "dt": p["delta"], "A": p["A"], "B": p["B"], "C": p["C"], "D": p["D"], "z": p["z"]}
    with pytest.raises(InputError, match=f"'{name}' of selective_state_update"):
        selective_state_update(**{"state": torch.zeros(2, 6, 3), **step, **change})


def test_what_auto_takes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU:
        device, dtype = torch.device("cuda"), torch.float32

    class Wide(OnGPU):
        dtype = torch.float64

    ours = "triton" if triton_scan.available(OnGPU()) else "chunked"
    monkeypatch.setattr(module, "_mamba_ssm_kernel", lambda: None)
    assert (best_backend(OnGPU()), best_backend(Wide())) == (ours, "chunked")
    monkeypatch.setattr(module, "_mamba_ssm_kernel", object)
    assert (best_backend(OnGPU()), best_backend(Wide())) == ("mamba-ssm", "chunked")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert best_backend(OnGPU()) == ours  # mamba-ssm adds in any order


def test_mamba_ssm_gets_the_dtypes_that_its_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network in bfloat16: its kernel wants float32 for what belongs to a channel, and one dtype for the rest."""
    seen: list[torch.dtype | None] = []

    def kernel(*tensors: Any) -> Tensor:
        seen.extend(None if tensor is None else tensor.dtype for tensor in tensors[:8])
        return tensors[0]

    monkeypatch.setattr(module, "_mamba_ssm_kernel", lambda: kernel)
    half = {key: value.bfloat16() for key, value in problem().items()}
    with FakeTensorMode():
        fake = {key: torch.empty(value.shape, dtype=value.dtype, device="cuda") for key, value in half.items()}
        selective_scan(**{**fake, "B": fake["B"].float()}, backend="mamba-ssm")
    step, channel = torch.bfloat16, torch.float32
    assert seen == [step, step, channel, step, step, channel, step, channel]  # u, delta, A, B, C, D, z, delta_bias


def test_growing_states_are_warned_of() -> None:
    p = problem()
    with pytest.warns(UnstableWarning, match="-exp"):
        selective_scan(**{**p, "A": p["A"] + 1})
