"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import copy

import pytest
import torch

from striate.papers.base import Run
from striate.papers.vmamba import _NETWORKS, REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
ELSEWHERE = {"C1 ImageNet", "C1 downstream"}


def sized(correct: int, drops: tuple[int, int]) -> dict[str, object]:
    macs = {"32": 1_000, "48": 2_250, "64": 4_000}
    counts = {"32": correct, "48": correct - drops[0], "64": correct - drops[1]}
    return {"n": 2_000, **{side: {"correct": counts[side], "macs": macs[side]} for side in macs}}


@pytest.fixture
def steps():
    """Evidence on which every claim that can be tested here holds."""
    rows = [
        {
            "side": side,
            "mixer": {"scan": side**2, "attention": side**3.8},
            "seconds": {"scan": side**2.2, "attention": side**3},
        }
        for side in (64, 128, 256)
    ]
    found = {
        "complexity": {"rows": rows},
        "reach/layer": {"scan": 1.0, "depthwise convolution": 0.02},
        "reach/network": {
            "untrained": {"share": 1.0, "area90": 0.3},
            "trained": {"share": 1.0, "area90": 0.5},
            "depthwise convolution": {"share": 0.7, "area90": 0.2},
        },
    }
    for seed in range(3):
        for routes in ("cross2d", "bidi"):
            found[f"routes/{routes}/seed{seed}"] = {"accuracy": 0.97, "cue earlier": 0.97, "cue later": 0.97}
        found[f"routes/unidi/seed{seed}"] = {"accuracy": 0.6, "cue earlier": 0.96, "cue later": 0.27}
        found[f"accuracy/vmamba/seed{seed}"] = sized(1_760, (20, 60))
        found[f"accuracy/resnet/seed{seed}"] = sized(1_765, (50, 300))
        found[f"accuracy/deit/seed{seed}"] = sized(1_700, (60, 200))
    return found


def verdicts(steps):
    return {name: judge(steps).verdict for name, judge in PREDICATES.items() if name not in ELSEWHERE}


def test_every_claim_can_be_reproduced(steps):
    assert set(verdicts(steps).values()) == {"reproduced"}
    assert {PREDICATES[name](steps).verdict for name in ELSEWHERE} == {"not testable here"}


def test_every_verdict_turns_when_the_control_takes_the_methods_place(steps):
    turned = copy.deepcopy(steps)
    for row in turned["complexity"]["rows"]:
        row["mixer"]["scan"], row["seconds"]["scan"] = row["mixer"]["attention"], row["seconds"]["attention"]
    turned["reach/layer"]["scan"] = turned["reach/layer"]["depthwise convolution"]
    for seed in range(3):
        for routes in ("cross2d", "bidi"):
            turned[f"routes/{routes}/seed{seed}"] = turned[f"routes/unidi/seed{seed}"]
        turned[f"accuracy/vmamba/seed{seed}"] = sized(1_690, (90, 300))
    found = verdicts(turned)
    assert found.pop("C3") == "not reproduced"
    assert set(found.values()) == {"not reproduced"}


def test_partial_success_is_called_direction_only(steps):
    for row in steps["complexity"]["rows"]:
        row["seconds"]["scan"] = row["side"] ** 2.6
    for seed in range(3):
        steps[f"routes/bidi/seed{seed}"]["accuracy"] = 0.9
        steps[f"accuracy/vmamba/seed{seed}"] = sized(1_760, (20, 400))
    found = verdicts(steps)
    assert (found["C2 cost"], found["C3"], found["C4"]) == ("direction only",) * 3


def test_a_control_that_reaches_everything_decides_nothing(steps):
    steps["reach/network"]["depthwise convolution"]["share"] = 1.0
    assert verdicts(steps)["C2 reach"] == "inconclusive"


def test_a_clock_that_does_not_see_attention_grow_decides_nothing(steps):
    for row in steps["complexity"]["rows"]:
        row["seconds"] = {"scan": 1.0, "attention": 1.0}
    assert verdicts(steps)["C2 cost"] == "inconclusive"


def test_published_weights_are_held_to_the_published_figures(steps):
    for name, top1 in (("tiny", 82.6), ("small", 83.6), ("base", 83.9)):
        steps[f"imagenet/vmamba_{name}"] = {"correct": round(500 * top1), "n": 50_000}
    assert PREDICATES["C1 ImageNet"](steps).verdict == "reproduced"
    steps["imagenet/vmamba_base"]["correct"] = 41_000
    judged = PREDICATES["C1 ImageNet"](steps)
    assert judged.verdict == "not reproduced"
    assert "vmamba_base is -1.9 points off" in judged.reason


def test_the_compared_networks_are_of_one_size():
    sizes = [sum(p.numel() for p in build().parameters()) for build in _NETWORKS.values()]
    assert max(sizes) <= 1.1 * min(sizes)


def test_smoke_runs_every_step_and_every_predicate(tmp_path):
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    steps = run.steps()
    assert {name.split("/")[0] for name in steps} == {"complexity", "reach", "routes", "accuracy"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"reach.png", "complexity.png", "routes.png"}
    for judge in PREDICATES.values():
        judge(steps)
    assert steps["reach/layer"]["scan"] == 1.0
    assert steps["reach/layer"]["depthwise convolution"] == pytest.approx(9 / 576)
    slopes = [row["mixer"]["scan"] / row["side"] ** 2 for row in steps["complexity"]["rows"]]
    assert max(slopes) == pytest.approx(min(slopes))
