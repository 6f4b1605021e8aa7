"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import copy

import pytest
import torch

from striate.papers.base import Run
from striate.papers.efficient_vmamba import REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
UNTESTED = {"C1 ImageNet", "C4"}
MILLIONS = {"t": (6_493_660, 0.788), "s": (11_273_688, 1.318), "b": (33_717_136, 3.951)}


@pytest.fixture
def steps():
    """Evidence on which every claim holds."""
    sizes = {f"efficient_vmamba_{name}": {"parameters": p, "macs": 1e9 * g} for name, (p, g) in MILLIONS.items()}
    found = {"sizes": {**sizes, "yaml": {"parameters": 24_800_000, "macs": 2.8e9}}}
    for side in (56, 112):
        routes = {
            name: {"routes": 4, "length": side**2 // share, "macs": 384 * side**2 // share * 145}
            for name, share in (("atrous", 4), ("cross", 1))
        }
        seconds = {"atrous": 0.003, "cross": 0.01, "cross again": 0.0101}
        found[f"cost/{side}"] = {"side": side, "routes": routes, "seconds": seconds}
    accuracy = {"full": 0.85, "no scan": 0.82, "no convolution": 0.83, "no gate": 0.84, "scans late": 0.84}
    accuracy |= {"long scans": 0.851, "vmamba": 0.855, "mobile": 0.84}
    far = {"scan": 0.6, "convolution": 0.28, "scan and convolution": 0.8, "scan and gate": 0.9, "long scan": 0.99}
    for seed in range(3):
        for name, share in accuracy.items():
            macs = 50e6 if name == "vmamba" else 20e6
            record = {"correct": 2_000 * share + seed, "n": 2_000, "parameters": 1, "macs": macs}
            found[f"accuracy/{name}/seed{seed}"] = record
        for name, share in far.items():
            found[f"far-cue/{name}/seed{seed}"] = {"accuracy": share}
    return found


def verdicts(steps):
    return {name: judge(steps).verdict for name, judge in PREDICATES.items() if name not in UNTESTED}


def test_every_claim_can_be_reproduced(steps):
    assert set(verdicts(steps).values()) == {"reproduced"}
    assert {PREDICATES[name](steps).verdict for name in UNTESTED} == {"not testable here"}
    top1 = {"t": 76.4, "s": 78.6, "b": 81.8}
    published = {f"imagenet/efficient_vmamba_{name}": {"correct": 10 * v, "n": 1_000} for name, v in top1.items()}
    assert PREDICATES["C1 ImageNet"](published).verdict == "reproduced"
    published["imagenet/efficient_vmamba_s"]["correct"] = 730
    assert PREDICATES["C1 ImageNet"](published).verdict == "not reproduced"


def test_every_verdict_turns_when_the_control_takes_the_methods_place(steps):
    steps["sizes"]["efficient_vmamba_s"] = steps["sizes"]["yaml"]
    for side in (56, 112):
        record = steps[f"cost/{side}"]
        record["seconds"]["atrous"] = record["seconds"]["cross again"]
    for seed in range(3):
        worst = steps[f"accuracy/no scan/seed{seed}"]
        steps[f"accuracy/full/seed{seed}"] = {**worst, "macs": 50e6}
        steps[f"accuracy/mobile/seed{seed}"]["macs"] = 50e6
        steps[f"far-cue/scan and convolution/seed{seed}"] = steps[f"far-cue/scan/seed{seed}"]
    assert set(verdicts(steps).values()) == {"not reproduced"}


def test_the_scan_that_is_not_needed_proves_nothing(steps):
    for seed in range(3):
        steps[f"accuracy/no scan/seed{seed}"]["correct"] = 1_699
    assert PREDICATES["C2 accuracy"](steps).verdict == "inconclusive"


def test_seeds_that_disagree_and_small_losses(steps):
    kept = copy.deepcopy(steps)
    kept["accuracy/no gate/seed1"]["correct"] = 1_705
    assert PREDICATES["C3 together"](kept).verdict == "inconclusive"
    kept["accuracy/mobile/seed1"]["correct"] = 1_705
    assert PREDICATES["C1 against a light CNN"](kept).verdict == "inconclusive"
    for seed in range(3):
        steps[f"accuracy/scans late/seed{seed}"]["correct"] = 1_704 + seed
    assert PREDICATES["C3 early"](steps).verdict == "direction only"
    steps["accuracy/mobile/seed0"]["macs"] = 30e6
    assert PREDICATES["C1 against a light CNN"](steps).verdict == "inconclusive"


def test_costs_between_the_bounds_and_an_unsteady_clock(steps):
    steps["cost/56"]["seconds"]["atrous"] = 0.006
    assert PREDICATES["C2 cost"](steps).verdict == "direction only"
    steps["cost/56"]["seconds"]["cross again"] = 0.02
    assert PREDICATES["C2 cost"](steps).verdict == "inconclusive"
    assert PREDICATES["C1 against full scans"](steps).verdict == "reproduced"
    for seed in range(3):
        steps[f"accuracy/full/seed{seed}"]["macs"] = 40e6
    assert PREDICATES["C1 against full scans"](steps).verdict == "direction only"


def test_smoke_runs_every_step_and_every_predicate(tmp_path):
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    names = set(run.steps())
    assert {"sizes", "cost/28", "accuracy/full/seed0", "accuracy/mobile/seed0", "far-cue/scan/seed0"} <= names
    assert (tmp_path / "figures" / "far-cue.png").is_file()
    for judge in PREDICATES.values():
        judge(run.steps())
    full, vanilla = (run.steps()[f"accuracy/{name}/seed0"]["macs"] for name in ("full", "vmamba"))
    assert full < 0.6 * vanilla


def test_the_paper_scale_builds_and_takes_a_step(tmp_path):
    run = Run("paper", REPRODUCTION.seeds["paper"], tmp_path, torch.device("cpu"), dry_run=True)
    REPRODUCTION.run(run)
    assert {path.stem for path in (tmp_path / "dry-run").glob("*.json")} == {
        "training",
        *(f"imagenet--efficient_vmamba_{name}" for name in "tsb"),
    }
