"""The CRF layer against pytorch-crf and span F1 against seqeval: equal numbers first, then time.

Both layers hold the same weights and get the same scores. "loss + gradient" is the mean negative log-likelihood of a
batch and its gradient by scores and weights; "decode" is Viterbi from scores to lists of tags. Sizes: a small batch as
the paper trains (10 sentences), usual ones, and the 45 tags of the Penn Treebank. "plain" is our fallback without a
compiler. Peers have no counterpart to marginals, k-best and the bigram form; those are timed by themselves.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from _timing import Row, compare, options, print_head, print_summary
from seqeval.metrics import classification_report, f1_score
from torch import Tensor
from torchcrf import CRF

from striate.layers import native_chain
from striate.layers.crf import LinearChainCRF
from striate.tasks.tagging.metrics import span_report

SIZES = ((10, 15, 17), (32, 50, 17), (32, 50, 45), (64, 120, 9), (1, 25, 17))


def case(batch: int, steps: int, tags: int) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    lengths = torch.randint(steps // 3, steps + 1, (batch,), generator=chance)
    lengths[0] = steps
    scores = torch.randn(batch, steps, tags, generator=chance, requires_grad=True)
    return scores, torch.randint(tags, (batch, steps), generator=chance), torch.arange(steps) < lengths[:, None]


def gradients(loss: Callable[[], Tensor], crf: torch.nn.Module, scores: Tensor) -> Callable[[], list[Tensor]]:
    weights = dict(crf.named_parameters())

    def run() -> list[Tensor]:
        value = loss()
        return [value.detach(), *torch.autograd.grad(value, [scores, *(weights[name] for name in sorted(weights))])]

    return run


def largest(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest difference of any result, in units of that result's largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def others(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """How many sentences are tagged otherwise."""
    return float(sum(a != b for a, b in zip(ours, theirs, strict=True)))


def against_pytorch_crf(timing: dict[str, Any], quick: bool) -> list[Row]:
    backends = ("native", "sequential") if native_chain.available() else ("sequential",)
    rows: list[Row] = []
    for size in SIZES[:2] if quick else SIZES:
        for backend in backends:
            rows += one_size(size, backend, timing, judged=backend == backends[0])
    return rows


def one_size(size: tuple[int, int, int], backend: Any, timing: dict[str, Any], *, judged: bool) -> list[Row]:
    batch, steps, tags = size
    scores, gold, mask = case(batch, steps, tags)
    plain = scores.detach()
    ours, peer = LinearChainCRF(tags, backend=backend), CRF(tags, batch_first=True)
    ours.load_state_dict(peer.state_dict())
    label = f"{batch} x {steps}, {tags} tags{'' if backend == 'native' else ', plain'}"
    rows = compare(
        f"loss + gradient, {label}",
        gradients(lambda: ours.nll(scores, gold, mask), ours, scores),
        gradients(lambda: -peer(scores, gold, mask, reduction="mean"), peer, scores),
        difference=largest,
        aim=2.5 if judged else None,
        **timing,
    )
    return rows + compare(
        f"decode, {label}",
        lambda: ours.decode(plain, mask),
        lambda: peer.decode(plain, mask),
        difference=others,
        aim=3 if judged else None,
        **timing,
    )


def against_seqeval(timing: dict[str, Any]) -> list[Row]:
    chance = random.Random(0)

    def tags(n: int) -> list[str]:
        return [
            p if p == "O" else f"{p}-{chance.choice(('LOC', 'PER', 'ORG', 'MISC'))}"
            for p in chance.choices("OOOBI", k=n)
        ]

    gold = [tags(chance.randint(5, 25)) for _ in range(3_000)]
    guess = [[tag if chance.random() < 0.9 else tags(1)[0] for tag in row] for row in gold]

    def report() -> float:
        return classification_report(gold, guess, output_dict=True)["micro avg"]["f1-score"]  # type: ignore[no-any-return]

    def apart(ours: float, theirs: float) -> float:
        return abs(ours - float(theirs))

    warnings.simplefilter("ignore")
    call: Callable[[], float] = lambda: span_report(gold, guess).f1  # noqa: E731
    once = {**timing, "threads": 1, "difference": apart, "aim": 2}
    rows = compare("span F1, 3,000 sentences, seqeval f1_score", call, lambda: f1_score(gold, guess), **once)
    return rows + compare("report by type, seqeval classification_report", call, report, **once)


def alone() -> None:
    """What the peers do not have: median of seven, one thread."""
    torch.set_num_threads(1)
    scores, gold, mask = case(32, 50, 17)
    scores = scores.detach()
    features = torch.randn(10, 15, 400)
    crf, bigram = LinearChainCRF(17), LinearChainCRF(17, bigram_features=400)
    calls = {
        "marginals, 32 x 50, 17 tags": lambda: crf.marginals(scores, mask),
        "5 best, 32 x 50, 17 tags": lambda: crf.decode(scores, mask, 5),
        "bigram loss + gradient, 10 x 15, 17 tags": lambda: bigram.nll(features, gold[:10, :15]).backward(),
    }
    print("\nwithout a peer:")
    for name, call in calls.items():
        call()
        times = []
        for _ in range(7):
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
        print(f"{name:46} {1e3 * median(times):.2f} ms")


def main() -> None:
    chosen = options(__doc__ or "", device=False)
    print_head("CRF layer against pytorch-crf, span F1 against seqeval", ("pytorch-crf", "seqeval"))
    torch.manual_seed(0)
    timing = {"repeats": chosen.repeats, "threads": chosen.threads}
    rows = against_pytorch_crf(timing, chosen.quick) + against_seqeval({"repeats": chosen.repeats})
    print_summary(rows)
    alone()


if __name__ == "__main__":
    main()
