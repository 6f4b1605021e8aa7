"""The CRF layer: worked numbers, the brute force, pytorch-crf, constraints, masks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from striate.errors import InputError
from striate.layers.crf import LinearChainCRF

EMISSIONS = torch.tensor([[1, 0, -1], [0.5, 0.2, 0.1], [-0.3, 0.8, 0], [0, 0, 1]], dtype=torch.float64)[None]


@pytest.fixture
def worked() -> LinearChainCRF:
    crf = LinearChainCRF(3).double()
    with torch.no_grad():
        crf.transitions.copy_(torch.tensor([[0.1, -0.2, 0.3], [0, 0.5, -0.5], [-0.1, 0.2, 0.4]]))
        crf.start_transitions.copy_(torch.tensor([0.2, 0, -0.2]))
        crf.end_transitions.copy_(torch.tensor([0, 0.1, -0.1]))
    return crf


def random_case(batch: int, steps: int, tags: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    emissions = torch.randn(batch, steps, tags, generator=chance)
    gold = torch.randint(0, tags, (batch, steps), generator=chance)
    lengths = torch.randint(1, steps + 1, (batch,), generator=chance)
    lengths[0] = steps
    return emissions, gold, torch.arange(steps) < lengths[:, None]


def test_the_worked_example(worked: LinearChainCRF) -> None:
    assert worked.log_partition(EMISSIONS).item() == pytest.approx(6.1039665413, abs=1e-6)
    assert worked.decode(EMISSIONS) == [[0, 0, 2, 2]]
    (best, *_), *_ = worked.decode(EMISSIONS, k=5)
    assert best.tags == [0, 0, 2, 2]
    assert best.score == pytest.approx(3.4)
    assert worked.nll(EMISSIONS, torch.tensor([[0, 1, 1, 2]])).item() == pytest.approx(3.2039665413, abs=1e-6)
    marginals = worked.marginals(EMISSIONS)[0]
    torch.testing.assert_close(marginals[0], torch.tensor([0.7137, 0.2158, 0.0705]).double(), atol=5e-5, rtol=0)
    torch.testing.assert_close(marginals[3], torch.tensor([0.2027, 0.3162, 0.4811]).double(), atol=5e-5, rtol=0)


def test_the_gradient_of_log_z_is_the_marginals(worked: LinearChainCRF) -> None:
    emissions = EMISSIONS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(worked.log_partition(emissions).sum(), emissions)
    torch.testing.assert_close(gradient, worked.marginals(EMISSIONS))


@pytest.mark.parametrize("features", [None, 5])
def test_parameters(features: int | None) -> None:
    for tags, width, first, bigram in ((17, 400, 7_140, 129_924), (45, 400, None, 848_516)):
        found = sum(p.numel() for p in LinearChainCRF(tags, bigram_features=width).parameters())
        assert found == bigram
        if first is not None:
            plain = sum(p.numel() for p in LinearChainCRF(tags).parameters())
            assert plain + width * tags + tags == first  # with the linear layer in front of it


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_loss_and_decoding_equal_pytorch_crf(reduction: str) -> None:
    torchcrf = pytest.importorskip("torchcrf", exc_type=ImportError)
    emissions, gold, mask = random_case(7, 9, 6)
    ours, peer = LinearChainCRF(6), torchcrf.CRF(6, batch_first=True)
    ours.load_state_dict(peer.state_dict())
    with torch.no_grad():
        ours.transitions.mul_(20)  # far from nothing
        peer.transitions.mul_(20)
    found = ours.nll(emissions, gold, mask, reduction=reduction)  # type: ignore[arg-type]
    torch.testing.assert_close(found, -peer(emissions, gold, mask, reduction=reduction), atol=1e-5, rtol=1e-5)
    assert ours.decode(emissions, mask) == peer.decode(emissions, mask)
    gradients = [
        torch.autograd.grad(loss, list(crf.parameters()))
        for crf, loss in (
            (ours, ours.nll(emissions, gold, mask)),
            (peer, -peer(emissions, gold, mask, reduction="mean")),
        )
    ]
    by_name = [
        dict(zip(dict(c.named_parameters()), g, strict=True)) for c, g in zip((ours, peer), gradients, strict=True)
    ]
    for name, value in by_name[0].items():
        torch.testing.assert_close(value, by_name[1][name], atol=1e-5, rtol=1e-5)


def test_time_may_come_first_as_in_pytorch_crf() -> None:
    emissions, gold, mask = random_case(4, 6, 3)
    first, second = LinearChainCRF(3), LinearChainCRF(3, batch_first=False)
    second.load_state_dict(first.state_dict())
    turned = (emissions.transpose(0, 1), mask.T)
    torch.testing.assert_close(second.nll(turned[0], gold.T, turned[1]), first.nll(emissions, gold, mask))
    assert second.decode(*turned) == first.decode(emissions, mask)
    torch.testing.assert_close(second.marginals(*turned).transpose(0, 1), first.marginals(emissions, mask))


def test_without_transitions_it_is_softmax() -> None:
    emissions, gold, mask = random_case(5, 8, 4)
    crf = LinearChainCRF(4)
    torch.nn.init.zeros_(crf.transitions), torch.nn.init.zeros_(crf.start_transitions)
    torch.nn.init.zeros_(crf.end_transitions)
    losses = F.cross_entropy(emissions.transpose(1, 2), gold, reduction="none")
    torch.testing.assert_close(crf.nll(emissions, gold, mask, reduction="none"), (losses * mask).sum(1))
    expected = [row[:n] for row, n in zip(emissions.argmax(2).tolist(), mask.sum(1).tolist(), strict=True)]
    assert crf.decode(emissions, mask) == expected
    torch.testing.assert_close(crf.marginals(emissions, mask), emissions.softmax(2) * mask[:, :, None])


@given(tags=st.integers(1, 3), steps=st.integers(1, 4), seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_the_bigram_form_is_its_definition(tags: int, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    crf = LinearChainCRF(tags, bigram_features=5).double()
    torch.nn.init.normal_(crf.bias)
    z = torch.randn(1, steps, 5, dtype=torch.float64)
    energies = torch.einsum("tf,fij->tij", z[0], crf.weight) + crf.bias

    def score(path: tuple[int, ...]) -> Tensor:
        total = energies[0, tags, path[0]]  # the first tag follows the pad
        for t in range(1, steps):
            total = total + energies[t, path[t - 1], path[t]]
        return total

    # The training partition runs over the pad too, decoding over the tags alone.
    every = torch.stack([score(path) for path in itertools.product(range(tags + 1), repeat=steps)])
    torch.testing.assert_close(crf.log_partition(z), torch.logsumexp(every, 0)[None])
    allowed = {path: score(path).item() for path in itertools.product(range(tags), repeat=steps)}
    best = max(allowed, key=lambda path: allowed[path])
    assert crf.decode(z) == [list(best)]
    torch.testing.assert_close(crf.nll(z, torch.tensor([best])), torch.logsumexp(every, 0) - allowed[best])
    log_z = math.log(sum(math.exp(value) for value in allowed.values()))
    (found, *_), *_ = crf.decode(z, k=1)
    assert found.log_probability == pytest.approx(allowed[best] - log_z)
    marginals = crf.marginals(z)[0]
    expected = torch.zeros(steps, tags, dtype=torch.float64)
    for path, value in allowed.items():
        for t, j in enumerate(path):
            expected[t, j] += math.exp(value - log_z)
    torch.testing.assert_close(marginals, expected)


@pytest.mark.parametrize("features", [None, 4])
def test_gradients_in_float64(features: int | None) -> None:
    crf = LinearChainCRF(3, bigram_features=features).double()
    x = torch.randn(2, 4, features or 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gold, mask = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

    def loss(x: Tensor, *parameters: Tensor) -> Tensor:
        values = dict(zip(dict(crf.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(crf, values, (x, gold, mask))

    inputs = (x.requires_grad_(), *(p.detach().clone().requires_grad_() for p in crf.parameters()))
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("features", [None, 4])
def test_masked_steps_and_the_rest_of_the_batch_change_nothing(features: int | None) -> None:
    crf = LinearChainCRF(5, bigram_features=features)
    x, gold, mask = random_case(4, 7, features or 5)
    gold = gold % 5
    losses = crf.nll(x, gold, mask, reduction="none")
    longer = [F.pad(x, (0, 0, 0, 3), value=1e4), F.pad(gold, (0, 3), value=-100), F.pad(mask, (0, 3))]
    torch.testing.assert_close(crf.nll(longer[0], longer[1], longer[2], reduction="none"), losses)
    assert crf.decode(longer[0], longer[2]) == crf.decode(x, mask)
    for b, n in enumerate(mask.sum(1).tolist()):
        alone = x[b : b + 1, :n]
        torch.testing.assert_close(crf.nll(alone, gold[b : b + 1, :n]), losses[b])
        assert crf.decode(alone) == crf.decode(x, mask)[b : b + 1]


def test_gaps_chain_the_tokens_that_are_there() -> None:
    emissions, gold, _ = random_case(2, 6, 3)
    mask = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 1]])
    crf = LinearChainCRF(3)
    with pytest.raises(InputError, match=r"holes in row 0.*gaps=True"):
        crf.nll(emissions, gold, mask)
    gapped = LinearChainCRF(3, gaps=True)
    gapped.load_state_dict(crf.state_dict())
    rows = [mask[b].bool() for b in range(2)]
    expected = [crf.nll(emissions[b][rows[b]][None], gold[b][rows[b]][None]) for b in range(2)]
    torch.testing.assert_close(gapped.nll(emissions, gold, mask, reduction="none"), torch.stack(expected))
    assert gapped.decode(emissions, mask) == [crf.decode(emissions[b][rows[b]][None])[0] for b in range(2)]
    marginals = gapped.marginals(emissions, mask)
    for b in range(2):
        torch.testing.assert_close(marginals[b][rows[b]], crf.marginals(emissions[b][rows[b]][None])[0])
        assert marginals[b][~rows[b]].abs().sum() == 0


CHAIN = torch.tensor([[True, True, False], [False, True, True], [True, False, True]])
START, END = torch.tensor([True, False, False]), torch.tensor([False, False, True])


@pytest.mark.parametrize("features", [None, 4])
def test_constraints_leave_what_is_allowed(features: int | None) -> None:
    crf = LinearChainCRF(3, bigram_features=features)
    x = torch.randn(3, 5, features or 3, generator=torch.Generator().manual_seed(0))
    free = crf.decode(x, k=3**5)
    crf.constrain(CHAIN, START, END)

    def fits(tags: list[int]) -> bool:
        return bool(START[tags[0]] and END[tags[-1]]) and all(CHAIN[a, b] for a, b in itertools.pairwise(tags))

    for before, after in zip(free, crf.decode(x, k=3**5), strict=True):
        kept = [path for path in before if fits(path.tags)]
        assert [path.tags for path in after] == [path.tags for path in kept]
        assert sum(math.exp(path.log_probability) for path in after) == pytest.approx(1, abs=1e-4)
    assert crf.decode(x) == [paths[0].tags for paths in crf.decode(x, k=1)]
    marginals = crf.marginals(x)
    torch.testing.assert_close(marginals.sum(2), torch.ones(3, 5))
    assert marginals[:, 0, 1:].abs().sum() == 0


def test_constrained_training_gives_the_forbidden_no_probability() -> None:
    crf = LinearChainCRF(3).constrain(CHAIN, START, END, in_training=True)
    x = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    losses = [
        crf.nll(x, torch.tensor([path])).item()
        for path in itertools.product(range(3), repeat=4)
        if START[path[0]] and END[path[-1]] and all(CHAIN[a, b] for a, b in itertools.pairwise(path))
    ]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1, abs=1e-4)
    loss = crf.nll(x, torch.tensor([[0, 1, 2, 2]]))
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in crf.parameters() if parameter.grad is not None)
    with pytest.raises(InputError, match=r"constraints allow.*row 0"):
        crf.nll(x, torch.tensor([[1, 1, 2, 2]]))
    plain = LinearChainCRF(3).constrain(CHAIN)  # in decoding alone
    assert torch.isfinite(plain.nll(x, torch.tensor([[0, 2, 2, 2]])))


def test_constraints_that_no_length_meets_are_said() -> None:
    crf = LinearChainCRF(2).constrain(torch.eye(2).bool(), torch.tensor([True, False]), torch.tensor([False, True]))
    for call in (crf.decode, crf.marginals):
        with pytest.raises(InputError, match="none of length 3"):
            call(torch.zeros(1, 3, 2))


def test_halves_and_autocast_are_summed_in_float32() -> None:
    emissions, gold, mask = random_case(3, 6, 4)
    crf, bigram = LinearChainCRF(4), LinearChainCRF(4, bigram_features=4)
    for layer in (crf, bigram):
        layer.constrain(~torch.eye(4).bool())
        expected = layer.nll(emissions.bfloat16().float(), gold, mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer.nll(emissions.bfloat16(), gold, mask)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)
        assert len(layer.decode(emissions.half(), mask)) == 3


def twice(layer: LinearChainCRF) -> torch.Tensor:
    """The gradient of the gradient's length."""
    x = torch.ones(1, 3, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(layer.double().nll(x, torch.tensor([[0, 1, 2]])), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


def test_second_derivatives_are_right_where_they_are_given() -> None:
    torch.manual_seed(0)
    layers = [LinearChainCRF(4, backend=backend) for backend in ("reference", "scan")]
    layers[1].load_state_dict(layers[0].state_dict())
    found = [twice(layer) for layer in layers]
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0.01


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda crf: crf.decode(torch.zeros(2, 3, 5)), "inputs"),
        (lambda crf: crf.decode(torch.zeros(3, 4)), "inputs"),
        (lambda crf: crf.decode(torch.zeros(2, 0, 4)), "inputs"),
        (lambda crf: crf.decode(torch.zeros(2, 3, 4), torch.ones(3, 2)), "mask"),
        (lambda crf: crf.decode(torch.zeros(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]])), "only 0 in row 1"),
        (lambda crf: crf.decode(torch.zeros(2, 3, 4), torch.tensor([[1, 1, 0], [0, 1, 1]])), "holes in row 1"),
        (lambda crf: crf.nll(torch.zeros(1, 2, 4), torch.tensor([[0, 4]])), r"in \[0, 4\).*Got 4"),
        (lambda crf: crf.nll(torch.zeros(1, 2, 4), torch.tensor([[-1, 0]])), "Got -1"),
        (lambda crf: crf.nll(torch.zeros(1, 2, 4), torch.tensor([[0]])), "tags"),
        (lambda crf: crf.nll(torch.zeros(1, 2, 4), torch.zeros(1, 2)), "integers"),
        (lambda crf: crf.nll(torch.zeros(1, 1, 4), torch.zeros(1, 1).long(), reduction="max"), "reduction"),
        (lambda crf: crf.decode(torch.zeros(1, 2, 4), k=0), "'k'"),
        (lambda crf: crf.decode(torch.tensor([[[0.0, 1, 2, torch.nan]]])), "NaN in row 0"),
        (lambda crf: crf.marginals(torch.tensor([[[0.0, 1, 2, torch.nan]]])), "NaN in row 0"),
        (lambda crf: crf.decode(torch.full((1, 2, 4), -torch.inf)), "none of length 2"),
        (lambda crf: crf.marginals(torch.full((1, 2, 4), -torch.inf)), "none of length 2"),
        (twice, "second derivatives"),
        (lambda crf: crf.constrain(torch.ones(4, 4)), "boolean"),
        (lambda crf: crf.constrain(torch.ones(4, 4).bool(), torch.ones(3).bool()), "may_start"),
        (lambda crf: LinearChainCRF(0), "num_tags"),
    ],
)
def test_what_does_not_fit_is_named(call, match: str) -> None:
    with pytest.raises(InputError, match=match):
        call(LinearChainCRF(4))


def test_what_the_layer_is_stands_in_its_name() -> None:
    crf = LinearChainCRF(4, bigram_features=8, batch_first=False, gaps=True).constrain(torch.ones(4, 4).bool())
    assert repr(crf) == "LinearChainCRF(4, bigram_features=8, batch_first=False, gaps=True, constrained)"
