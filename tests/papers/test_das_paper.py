"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import pytest
import torch

from striate.papers.base import Run
from striate.papers.das import REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
NOT_TESTABLE = {"C1 Stanford Dogs", "C2", "C3"}


@pytest.fixture
def steps():
    """Evidence on which every claim that can be tested holds."""
    found = {}
    for seed in range(3):
        for kind, correct in {"plain": 1500, "se": 1520, "cbam": 1530, "eca": 1510, "das": 1540}.items():
            found[f"accuracy/{kind}/seed{seed}"] = {"correct": correct + 3 * seed, "n": 2000}
        for kind, mass in {"plain": 0.2, "cbam": 0.22, "das": 0.3, "frozen": 0.25}.items():
            found[f"looks/{kind}/seed{seed}"] = {"cam_in_disc": mass + 0.01 * seed, "gate_in_disc": 1.2}
    large = {"plain": 4.1, "se": 4.1, "cbam": 4.1, "eca": 4.1, "das separable 0.2": 4.5, "das dense 0.2": 5.8}
    found["cost"] = {
        "resnet50": {name: {"macs": 1e9 * giga, "parameters": 25e6} for name, giga in large.items()},
        "small": {"plain": 13e6, "se": 13e6, "cbam": 13e6, "eca": 13e6, "das": 14e6},
    }
    pixels = [side**2 for side in (14, 28, 56)]
    found["scaling"] = {
        "sides": [14, 28, 56],
        "das": {"macs": [n * 100 for n in pixels], "seconds": [n * 1e-6 for n in pixels]},
        "attention": {"macs": [n**2 for n in pixels], "seconds": [n**2 * 1e-9 for n in pixels]},
    }
    return found


def verdicts(steps):
    return {name: judge(steps).verdict for name, judge in PREDICATES.items() if name not in NOT_TESTABLE}


def test_every_claim_has_a_row_and_those_out_of_reach_say_so(steps):
    assert {predicate.claim for predicate in REPRODUCTION.predicates} == {f"C{i}" for i in range(1, 7)}
    for name in NOT_TESTABLE:
        judged = PREDICATES[name](steps)
        assert judged.verdict == "not testable here"
        assert "cluttered" in judged.reason


def test_every_claim_can_be_reproduced(steps):
    assert set(verdicts(steps).values()) == {"reproduced"}


def test_every_verdict_turns_when_the_control_takes_the_methods_place(steps):
    for seed in range(3):
        steps[f"accuracy/das/seed{seed}"] = steps[f"accuracy/plain/seed{seed}"]
        steps[f"looks/das/seed{seed}"] = steps[f"looks/plain/seed{seed}"]
    steps["scaling"]["das"] = steps["scaling"]["attention"]
    steps["cost"]["resnet50"]["das separable 0.2"] = steps["cost"]["resnet50"]["das dense 0.2"]
    assert set(verdicts(steps).values()) == {"not reproduced"}


def test_partial_success_is_called_direction_only(steps):
    for seed in range(3):
        steps[f"accuracy/das/seed{seed}"]["correct"] = 1510 + 3 * seed
        steps[f"looks/das/seed{seed}"]["cam_in_disc"] = 0.21 + 0.01 * seed
    steps["scaling"]["das"]["seconds"] = steps["scaling"]["attention"]["seconds"]
    found = verdicts(steps)
    assert found["C1 cluttered canvases"] == found["C6"] == found["C5"] == "direction only"
    assert found["C4 accuracy"] == "not reproduced"
    for seed in range(3):
        steps[f"accuracy/das/seed{seed}"]["correct"] = 1600
    steps["cost"]["small"]["das"] = 20e6
    assert PREDICATES["C4 accuracy"](steps).verdict == "direction only"


def test_seeds_that_disagree_are_inconclusive(steps):
    for seed, change in enumerate((40, -45, 10)):
        steps[f"accuracy/das/seed{seed}"]["correct"] = steps[f"accuracy/plain/seed{seed}"]["correct"] + change
        steps[f"looks/das/seed{seed}"]["cam_in_disc"] = 0.2 + 0.002 * change
    found = verdicts(steps)
    assert found["C1 cluttered canvases"] == found["C6"] == "inconclusive"


def test_the_frozen_control_is_told(steps):
    for seed in range(3):
        steps[f"looks/frozen/seed{seed}"] = steps[f"looks/das/seed{seed}"]
    assert "deformation is not the cause" in PREDICATES["C6"](steps).reason


def test_dogs_are_judged_where_they_were_measured(steps):
    for correct, verdict in ((5000, "reproduced"), (4100, "direction only"), (3900, "not reproduced")):
        steps["dogs/plain/seed0"] = {"correct": 4000, "n": 8580}
        steps["dogs/das/seed0"] = {"correct": correct, "n": 8580}
        assert PREDICATES["C1 Stanford Dogs"](steps).verdict == verdict


def test_nothing_measured_is_nothing_judged():
    assert {judge({}).verdict for judge in PREDICATES.values()} == {"not testable here"}


def test_smoke_runs_every_step_and_every_predicate(tmp_path):
    """Trains four small networks for 20 steps and counts ResNet-50 fourteen times: about 15 seconds on a free core."""
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    assert set(run.steps()) == {
        "cost",
        "scaling",
        "accuracy/plain/seed0",
        "accuracy/das/seed0",
        "looks/plain/seed0",
        "looks/das/seed0",
    }
    for judge in PREDICATES.values():
        judge(run.steps())
    assert PREDICATES["C4 cost on ResNet-50"](run.steps()).verdict == "reproduced"
    looks = run.steps()["looks/das/seed0"]
    assert 0 < looks["gate_mean"] < 1
    assert 0 <= looks["cam_in_disc"] <= 1


def test_dry_run_of_the_paper_scale_takes_a_step(tmp_path):
    """One step of two ResNet-50 of the published shape: about 10 seconds."""
    run = Run("paper", (0,), tmp_path, torch.device("cpu"), claims=frozenset({"C1"}), dry_run=True)
    REPRODUCTION.run(run)
    assert not run.steps()
