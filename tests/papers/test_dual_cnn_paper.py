"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import copy

import pytest
import torch

from striate.papers.base import Run
from striate.papers.dual_cnn import REPRODUCTION

PREDICATES = {predicate.claim: predicate.judge for predicate in REPRODUCTION.predicates}


def pair(complementarity, accuracy, gain, validation):
    kind = {"threshold": 0.5, "accuracy": accuracy, "usage": 0.2, "macs": 12.0}
    return {
        "complementarity": complementarity, "unbalanced": complementarity, "validation": validation, "gain": gain,
        "difference": kind, "maxp": kind, "entropy": kind, "union": 0.95, "alone": [accuracy - gain, 0.7],
    }  # fmt: skip


def stream(n, share, copies, strangers):
    kinds = {
        kind: {
            "macs": share * 12 * n,
            "operations": 0.1 * n,
            "agreement": 1.0,
            "accuracy": 0.88,
            "copies found": copies[kind],
            "strangers": strangers,
            "counts": {},
        }
        for kind in ("exact", "dhash", "invariants")
    }
    return {"n": n, "macs": 12 * n, "accuracy": 0.88, **kinds}


@pytest.fixture
def steps():
    """Evidence on which every claim that can be tested holds."""
    found = {}
    for seed in range(3):
        pairs = {
            "a + b": pair(0.02, 0.84, 0.002, 0.83),
            "a + c": pair(0.05, 0.86, 0.010, 0.80),
            "b + c": pair(0.09, 0.88, 0.020, 0.81),
        }
        found[f"pairs/seed{seed}"] = {
            "chosen": ["b", "c"], "large": "l", "best alone": "b", "pairs": pairs,
            "macs": {"a": 10, "b": 10, "c": 10, "l": 100},
            "accuracy": {"a": 0.8, "b": 0.86, "c": 0.85, "l": 0.885},
            "same twice": pair(0.0, 0.86, 0.0, 0.86),
        }  # fmt: skip
        every = dict.fromkeys(("exact", "dhash", "invariants"), 1.0)
        found[f"memory/seed{seed}"] = {
            "large": 100,
            "once": stream(1000, 1.0, every, 0.0),
            "twice": stream(2000, 0.5, every, 0.0),
            "turned": stream(2000, 0.5, {"exact": 0.0, "dhash": 0.01, "invariants": 0.99}, 0.0),
        }
    return found


def verdicts(steps):
    return {claim: PREDICATES[claim](steps).verdict for claim in ("C1", "C2", "C3")}


def test_every_claim_has_a_row_and_can_be_reproduced(steps):
    assert set(PREDICATES) == {"C1", "C2", "C3", "C4"}
    assert set(verdicts(steps).values()) == {"reproduced"}
    assert PREDICATES["C4"](steps).verdict == "not testable here"


def test_a_small_network_that_needs_no_second_shows_nothing(steps):
    for seed in range(3):
        steps[f"pairs/seed{seed}"]["accuracy"]["b"] = 0.88
    assert PREDICATES["C1"](steps).verdict == "inconclusive"


def test_a_pair_as_bad_or_as_dear_as_one_network_is_not_reproduced(steps):
    worse, dearer = copy.deepcopy(steps), copy.deepcopy(steps)
    for seed in range(3):
        worse[f"pairs/seed{seed}"]["pairs"]["b + c"] = pair(0.09, 0.86, 0.0, 0.81)
        dearer[f"pairs/seed{seed}"]["macs"]["l"] = 19
    assert PREDICATES["C1"](worse).verdict == PREDICATES["C1"](dearer).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("stream", "kind", "part", "value", "reason"),
    [
        ("twice", "dhash", "macs", 24_000, "saves too little"),
        ("twice", "dhash", "agreement", 0.99, "changes labels"),
        ("turned", "invariants", "copies found", 0.5, "miss turned copies"),
        ("turned", "dhash", "copies found", 0.5, "shows nothing"),
    ],
)
def test_every_part_of_the_memorys_rule_can_fail(steps, stream, kind, part, value, reason):
    for seed in range(3):
        steps[f"memory/seed{seed}"][stream][kind][part] = value
    judged = PREDICATES["C2"](steps)
    assert judged.verdict == "not reproduced"
    assert reason in judged.reason


def test_the_criterion_against_its_controls(steps):
    plain, reverse, copied = (copy.deepcopy(steps) for _ in range(3))
    for seed in range(3):
        for better, name in enumerate(("a + b", "a + c", "b + c")):
            plain[f"pairs/seed{seed}"]["pairs"][name]["validation"] = better
            reverse[f"pairs/seed{seed}"]["pairs"][name]["complementarity"] = -better
        copied[f"pairs/seed{seed}"]["same twice"]["gain"] = 0.01
    assert PREDICATES["C3"](plain).verdict == "direction only"
    assert PREDICATES["C3"](reverse).verdict == "not reproduced"
    assert PREDICATES["C3"](copied).verdict == "inconclusive"


def test_nothing_measured_is_nothing_judged():
    assert {judge({}).verdict for judge in PREDICATES.values()} == {"not testable here"}


def test_smoke_runs_every_step_and_every_predicate(tmp_path, monkeypatch):
    """Trains three small networks for a few steps: some seconds."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    steps = run.steps()
    assert set(steps) == {"pairs/seed0", "memory/seed0", "clock"}
    memory, pairs = steps["memory/seed0"], steps["pairs/seed0"]
    cost = pairs["pairs"]["plain + kernel 7"]["difference"]
    once, twice, turned = memory["once"], memory["twice"], memory["turned"]
    # What was foretold is what ran, and the second time nothing runs.
    assert once["macs"] / once["n"] == pytest.approx(cost["macs"])
    assert once["accuracy"] == pytest.approx(cost["accuracy"])
    assert twice["macs"] == 2 * once["macs"] == 2 * twice["exact"]["macs"]
    assert twice["exact"]["agreement"] == twice["exact"]["copies found"] == 1.0
    assert turned["invariants"]["copies found"] > 0.95
    assert turned["exact"]["copies found"] < 0.05
    for predicate in REPRODUCTION.predicates:
        assert predicate.judge(steps).verdict
