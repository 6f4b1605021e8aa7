"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import pytest
import torch

from striate.papers.base import Run
from striate.papers.precropping import REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
TESTABLE = ("C1", "C2", "C3", "C4 architectures")


@pytest.fixture
def steps():
    """Evidence on which every claim that can be tested holds."""
    found = {}
    percents = {"dense": 85, "mask": 82, "reshuffled": 82.3, "wrong": 70, "precrop": 83, "synexp": 83.5, "uniform": 80}
    for seed in range(3):
        for arm, value in percents.items():
            for density in (1.0,) if arm == "dense" else (0.2, 0.05):
                found[f"accuracy/{arm}/{density:g}/seed{seed}"] = {
                    "correct": round(20 * value) + 3 * seed,
                    "n": 2000,
                    "weights": int(170_000 * density),
                    "macs": 1e6,
                }
    for network in ("mobilenet", "shufflenet"):
        for arm in ("mask", "wrong", "precrop"):
            found[f"{network}/{arm}/0.2/seed0"] = found[f"accuracy/{arm}/0.2/seed0"]
    timed = {"ratio": 1.6, "low": 1.5, "high": 1.7}
    same = {"ratio": 1.0, "low": 0.98, "high": 1.02}
    found["cost"] = {
        "activations": 100,
        "macs": 10,
        "mask 0.2": {"training": same, "inference": same, "activations": 100, "macs": 10},
        "precrop 0.2": {"training": timed, "inference": timed, "activations": 80, "macs": 5},
    }
    return found


def verdicts(steps):
    return {name: PREDICATES[name](steps).verdict for name in TESTABLE}


def replace(steps, arm, other, densities=(0.2, 0.05)):
    for name in list(steps):
        parts = name.split("/")
        if len(parts) == 4 and parts[1] == arm and float(parts[2]) in densities:
            steps[name] = steps["/".join([parts[0], other, *parts[2:]])]


def test_every_claim_has_a_row_and_imagenet_is_out_of_reach(steps):
    assert {predicate.claim for predicate in REPRODUCTION.predicates} == {f"C{i}" for i in range(1, 5)}
    assert PREDICATES["C4 ImageNet"](steps).verdict == "not testable here"


def test_every_claim_can_be_reproduced(steps):
    assert set(verdicts(steps).values()) == {"reproduced"}


def test_every_verdict_turns_when_the_control_takes_the_methods_place(steps):
    replace(steps, "reshuffled", "wrong")
    replace(steps, "precrop", "wrong")
    steps["cost"]["precrop 0.2"] = steps["cost"]["mask 0.2"]
    found = verdicts(steps)
    assert found.pop("C1") == "inconclusive"  # the control is no worse than what it is compared with
    assert set(found.values()) == {"not reproduced"}


def test_reshuffling_that_hurts_is_not_reproduced(steps):
    for name in steps:
        if name.startswith("accuracy/reshuffled/"):
            steps[name] = {**steps[name], "correct": steps[name]["correct"] - 60}
    assert PREDICATES["C1"](steps).verdict == "not reproduced"


def test_a_control_that_is_as_good_shows_nothing(steps):
    replace(steps, "wrong", "mask")
    found = verdicts(steps)
    assert found["C1"] == found["C2"] == found["C4 architectures"] == "inconclusive"
    assert "Not discriminative" in PREDICATES["C2"](steps).reason


def test_partial_success_is_called_direction_only(steps):
    replace(steps, "precrop", "wrong", densities=(0.05,))
    for seed in range(3):
        steps[f"accuracy/reshuffled/0.2/seed{seed}"] = steps[f"accuracy/uniform/0.2/seed{seed}"]
    steps["shufflenet/precrop/0.2/seed0"] = steps["shufflenet/wrong/0.2/seed0"]
    steps["cost"]["precrop 0.2"] = {
        **steps["cost"]["precrop 0.2"],
        "training": {"ratio": 1.2, "low": 1.1, "high": 1.3},
    }
    assert set(verdicts(steps).values()) == {"direction only"}


def test_another_number_of_weights_does_not_count(steps):
    for name in steps:
        if name.startswith("accuracy/precrop/"):
            steps[name] = {**steps[name], "weights": steps[name]["weights"] * 1.05}
    judged = PREDICATES["C2"](steps)
    assert judged.verdict == "not reproduced"
    assert "+5.0%" in judged.measured


def test_a_clock_that_is_not_to_be_trusted(steps):
    steps["cost"]["mask 0.2"]["training"] = {"ratio": 1.4, "low": 1.3, "high": 1.5}
    assert PREDICATES["C3"](steps).verdict == "inconclusive"


def test_nothing_measured_is_nothing_judged():
    assert {judge({}).verdict for judge in PREDICATES.values()} == {"not testable here"}


def test_smoke_runs_every_step_and_every_predicate(tmp_path):
    """Trains eight small networks for a few dozen steps: a few seconds on a free core."""
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    arms = ("mask", "reshuffled", "wrong", "precrop")
    assert set(run.steps()) == {
        "accuracy/dense/1/seed0",
        *(f"accuracy/{arm}/0.2/seed0" for arm in arms),
        "cost",
        "mobilenet/dense/1/seed0",
        *(f"mobilenet/{arm}/0.2/seed0" for arm in ("mask", "wrong", "precrop")),
    }
    for judge in PREDICATES.values():
        judge(run.steps())
    weights = {arm: run.steps()[f"accuracy/{arm}/0.2/seed0"]["weights"] for arm in arms}
    assert all(abs(weights[arm] / weights["mask"] - 1) < 0.01 for arm in arms)


def test_dry_run_of_the_paper_scale_takes_a_step(tmp_path):
    """Seven ResNet-20 and a cropped MobileNetV2 of published shape, a step each: about 10 seconds."""
    run = Run("paper", (0,), tmp_path, torch.device("cpu"), dry_run=True)
    REPRODUCTION.run(run)
    assert not run.steps()
