"""All ways to sum over a chain agree with enumeration, in value and gradient; so do the maxima."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from striate.errors import InputError
from striate.layers import native_chain
from striate.layers.linear_chain import chain_marginals, k_best, log_partition, viterbi

needs_native = pytest.mark.skipif(not native_chain.available(), reason=f"no kernel: {native_chain.why_not()}")
BACKENDS = [pytest.param("native", marks=needs_native), "sequential", "scan", "reference"]
CLOSED = BACKENDS[:2]


def enumerated(unary: Tensor, pairwise: Tensor, length: int) -> dict[tuple[int, ...], float]:
    """Score of every path of one chain."""
    states = unary.shape[1]
    found = {}
    for path in itertools.product(range(states), repeat=length):
        score = sum(float(unary[t, j]) for t, j in enumerate(path))
        for t in range(1, length):
            matrix = pairwise if pairwise.dim() == 2 else pairwise[t - 1]
            score += float(matrix[path[t - 1], path[t]])
        found[path] = score
    return found


def scores(
    batch: int, steps: int, states: int, *, shared: bool, seed: int, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    unary = scale * torch.randn(batch, steps, states, generator=chance, dtype=torch.float64)
    shape = (states, states) if shared else (batch, steps - 1, states, states)
    return unary, scale * torch.randn(shape, generator=chance, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    steps=st.integers(1, 5),
    states=st.integers(1, 4),
    shared=st.booleans(),
    forbidden=st.booleans(),
    scale=st.sampled_from([1.0, 30.0, 400.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=25, deadline=None)
def test_log_z_is_the_sum_over_all_paths(
    backend: str, steps: int, states: int, shared: bool, forbidden: bool, scale: float, seed: int
) -> None:
    unary, pairwise = scores(3, steps, states, shared=shared, seed=seed, scale=scale)
    if forbidden:
        chance = torch.Generator().manual_seed(seed)
        pairwise = pairwise.masked_fill(torch.rand(pairwise.shape, generator=chance) < 0.4, -math.inf)
    lengths = torch.tensor([steps, max(1, steps - 1), 1])
    found = log_partition(unary, pairwise, lengths, backend=backend)
    for b in range(3):
        table = enumerated(unary[b], pairwise if shared else pairwise[b], int(lengths[b]))
        expected = torch.logsumexp(torch.tensor(list(table.values()), dtype=torch.float64), 0)
        torch.testing.assert_close(found[b], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_what_finite_differences_find(backend: str, shared: bool) -> None:
    unary, pairwise = scores(3, 4, 3, shared=shared, seed=1)
    lengths = torch.tensor([4, 2, 1])

    def weighted(u: Tensor, p: Tensor) -> Tensor:
        return log_partition(u, p, lengths, backend=backend) * torch.tensor([1.0, -2.0, 0.5])

    assert torch.autograd.gradcheck(weighted, (unary.requires_grad_(), pairwise.requires_grad_()))


@pytest.mark.parametrize("backend", CLOSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("scale", "forbidden"), [(1.0, 0.0), (1.0, 0.3), (60.0, 0.0), (300.0, 0.3)])
def test_value_and_gradient_equal_the_slow_twin(
    backend: str, dtype: torch.dtype, shared: bool, scale: float, forbidden: float
) -> None:
    # Scales beyond 40 and forbidden steps leave the fast way, which works on probabilities.
    unary, pairwise = scores(5, 30, 11, shared=shared, seed=2, scale=scale)
    chance = torch.Generator().manual_seed(3)
    pairwise = pairwise.masked_fill(torch.rand(pairwise.shape, generator=chance) < forbidden, -math.inf)
    lengths = torch.tensor([30, 1, 17, 2, 29])
    results = []
    for name, kind in (("reference", torch.float64), (backend, dtype)):
        leaves = [tensor.to(kind).requires_grad_() for tensor in (unary, pairwise)]
        logz = log_partition(leaves[0], leaves[1], lengths, backend=name)  # type: ignore[arg-type]
        results.append([logz.detach().double(), *(g.double() for g in torch.autograd.grad(logz.sum(), leaves))])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("backend", CLOSED)
def test_long_chains_in_float32_lose_nothing(backend: str) -> None:
    unary, pairwise = scores(1, 3_000, 5, shared=True, seed=4, scale=2.0)
    length = torch.tensor([3_000])
    exact = log_partition(unary, pairwise, length, backend="sequential")
    found, node = chain_marginals(unary.float(), pairwise.float(), length, backend=backend)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(node.sum(dim=2), torch.ones(1, 3_000))


@pytest.mark.parametrize("backend", CLOSED)
def test_a_state_that_underflows_is_found_again_where_only_it_can_go_on(backend: str) -> None:
    # At step 0 label 1 is e^-150 of label 0, and label 0 may not go anywhere.
    unary = torch.tensor([[[0.0, -150.0], [0.0, 0.0]]])
    pairwise = torch.tensor([[-math.inf, -math.inf], [0.0, 0.0]])
    logz, node = chain_marginals(unary, pairwise, torch.tensor([2]), backend=backend)
    assert logz.item() == pytest.approx(-150 + math.log(2), rel=1e-6)
    torch.testing.assert_close(node, torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]))


@pytest.mark.parametrize("backend", CLOSED)
def test_no_allowed_path_is_minus_infinity_without_marginals(backend: str) -> None:
    logz, node = chain_marginals(
        torch.zeros(2, 3, 2), torch.full((2, 2), -math.inf), torch.tensor([3, 1]), backend=backend
    )
    assert logz.tolist() == [-math.inf, pytest.approx(math.log(2))]
    assert node[0].abs().sum() == 0
    torch.testing.assert_close(node[1, 0], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [True, False])
def test_what_follows_a_chains_end_is_not_looked_at(backend: str, shared: bool) -> None:
    unary, pairwise = scores(2, 4, 3, shared=shared, seed=5)
    lengths = torch.tensor([2, 3])
    expected = log_partition(unary, pairwise, lengths, backend=backend)
    for b, length in enumerate((2, 3)):
        unary[b, length:] = 7e7
        if not shared:
            pairwise[b, length - 1 :] = -9e9
    torch.testing.assert_close(log_partition(unary, pairwise, lengths, backend=backend), expected)
    if backend in {"native", "sequential"}:  # the others multiply by it, so that only finite numbers pass
        unary[0, 2:] = math.nan
        torch.testing.assert_close(log_partition(unary, pairwise, lengths, backend=backend), expected)


@pytest.mark.parametrize("backend", CLOSED)
def test_nan_scores_stay_nan(backend: str) -> None:
    unary, pairwise = scores(2, 3, 3, shared=True, seed=6)
    unary[0, 1, 1] = math.nan
    found = log_partition(unary, pairwise, torch.tensor([3, 3]), backend=backend)
    assert found.isnan().tolist() == [True, False]


@pytest.mark.parametrize("backend", CLOSED)
@given(
    steps=st.integers(1, 5),
    states=st.integers(1, 4),
    shared=st.booleans(),
    k=st.integers(1, 9),
    seed=st.integers(0, 999),
)
@settings(max_examples=30, deadline=None)
def test_the_best_paths_are_those_of_the_enumeration(
    backend: str, steps: int, states: int, shared: bool, k: int, seed: int
) -> None:
    unary, pairwise = scores(2, steps, states, shared=shared, seed=seed)
    lengths = torch.tensor([steps, max(1, steps - 2)])
    path, score = viterbi(unary, pairwise, lengths, backend=backend)
    paths, best = k_best(unary, pairwise, lengths, k)
    for b, length in enumerate(lengths.tolist()):
        table = enumerated(unary[b], pairwise if shared else pairwise[b], length)
        order = sorted(table, key=lambda item: -table[item])
        assert tuple(path[b, :length].tolist()) == order[0]
        assert path[b, length:].tolist() == [-1] * (steps - length)
        assert score[b].item() == pytest.approx(table[order[0]])
        for rank in range(k):
            if rank < len(order):
                assert tuple(paths[b, rank, :length].tolist()) == order[rank]
                assert best[b, rank].item() == pytest.approx(table[order[rank]])
            else:
                assert best[b, rank].item() == -math.inf


def test_of_equal_paths_every_backend_takes_the_same() -> None:
    unary, pairwise = torch.zeros(1, 6, 4), torch.zeros(4, 4)
    for backend in ("native", "sequential") if native_chain.available() else ("sequential",):
        assert viterbi(unary, pairwise, torch.tensor([6]), backend=backend)[0].tolist() == [[0] * 6]  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_transforms_of_torch_func(backend: str) -> None:
    unary, pairwise = scores(2, 4, 3, shared=True, seed=3)
    lengths = torch.tensor([4, 2])

    def log_z(unary: Tensor) -> Tensor:
        return log_partition(unary, pairwise, lengths, backend=backend)

    _, expected = chain_marginals(unary, pairwise, lengths)
    torch.testing.assert_close(torch.func.grad(lambda x: log_z(x).sum())(unary), expected)
    ones = torch.ones_like(unary)  # one more for each label is one more for each step
    torch.testing.assert_close(torch.func.jvp(log_z, (unary,), (ones,))[1], lengths.double())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(log_z(forward_ad.make_dual(unary, ones))).tangent
        marginals = chain_marginals(forward_ad.make_dual(unary, unary), pairwise, lengths, backend=backend)[1]
        moved = forward_ad.unpack_dual(marginals).tangent
    torch.testing.assert_close(tangent, lengths.double())
    further = chain_marginals((1 + 1e-6) * unary, pairwise, lengths)[1]
    torch.testing.assert_close(moved, (further - expected) / 1e-6, rtol=1e-4, atol=1e-4)


def test_marginals_are_differentiable_where_asked_for() -> None:
    unary, pairwise = scores(2, 3, 3, shared=True, seed=7)
    lengths = torch.tensor([3, 2])

    def node(u: Tensor, p: Tensor) -> Tensor:
        return chain_marginals(u, p, lengths)[1]

    assert torch.autograd.gradcheck(node, (unary.requires_grad_(), pairwise.requires_grad_()))
    with torch.no_grad():
        torch.testing.assert_close(chain_marginals(unary, pairwise, lengths)[1], node(unary, pairwise))


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
def test_the_operator_keeps_pytorchs_rules(native: bool) -> None:
    for shared in (True, False):
        unary, pairwise = (tensor.requires_grad_() for tensor in scores(2, 3, 3, shared=shared, seed=8))
        for marginals in (True, False):
            inputs = (unary.detach(), pairwise.detach(), torch.tensor([3, 2]), marginals, native)
            torch.library.opcheck(torch.ops.striate.chain_partition, inputs)


@needs_native
def test_it_compiles() -> None:
    unary, pairwise = (tensor.float() for tensor in scores(2, 4, 3, shared=True, seed=9))
    lengths = torch.tensor([4, 3])
    compiled = torch.compile(log_partition, backend="eager")
    torch.testing.assert_close(compiled(unary, pairwise, lengths), log_partition(unary, pairwise, lengths))


@needs_native
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [True, False])
def test_autocast_rounds_nothing(backend: str, shared: bool) -> None:
    g = torch.Generator().manual_seed(0)
    unary = torch.randn(3, 7, 5, generator=g).requires_grad_()
    pairwise = torch.randn(*(() if shared else (3, 6)), 5, 5, generator=g).requires_grad_()
    lengths, found = torch.tensor([7, 3, 1]), []
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logz = log_partition(unary, pairwise, lengths, backend=backend)
            found.append([logz, *torch.autograd.grad(logz.sum(), (unary, pairwise))])
    for plain, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, plain, rtol=0, atol=0)


def test_threads_change_nothing() -> None:
    unary, pairwise = (tensor.float() for tensor in scores(40, 60, 9, shared=True, seed=10))
    lengths = torch.randint(1, 61, (40,), generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append((*chain_marginals(unary, pairwise, lengths), *viterbi(unary, pairwise, lengths)))
    finally:
        torch.set_num_threads(before)
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"unary": torch.zeros(2, 3)}, "unary"),
        ({"unary": torch.zeros(2, 3, 2).long()}, "unary"),
        ({"pairwise": torch.zeros(3, 3)}, "pairwise"),
        ({"pairwise": torch.zeros(2, 3, 2, 2)}, "pairwise"),
        ({"lengths": torch.tensor([3])}, "lengths"),
        ({"lengths": torch.tensor([3, 0])}, "lengths"),
        ({"lengths": torch.tensor([4, 1])}, "lengths"),
        ({"lengths": torch.tensor([3.0, 1.0])}, "lengths"),
        ({"backend": "fast"}, "backend"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, name: str) -> None:
    arguments = {
        "unary": torch.zeros(2, 3, 2),
        "pairwise": torch.zeros(2, 2),
        "lengths": torch.tensor([3, 1]),
        **change,
    }
    with pytest.raises(InputError, match=f"'{name}'"):
        log_partition(**arguments)
