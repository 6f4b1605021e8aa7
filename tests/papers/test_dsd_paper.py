"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import math

import pytest
import torch

from striate.papers.base import Run
from striate.papers.dsd import REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
SIZES = [(5, 20), (10, 20), (20, 20), (10, 5), (10, 10), (10, 40)]
TESTABLE = set(PREDICATES) - {"C4 tools"}


def needed(n: float, k: int, d: int, sigma: float = 0.25, n_max: int = 16_384, reach: float = 0.97) -> dict:
    """A record as a search leaves it: below the target before n, above from there on."""
    n = math.ceil(n)
    curve = [{"n": max(1, n // 2), "scores": [0.5] * 4}, {"n": n, "scores": [reach] * 4}]
    return {
        "k": k, "d": d, "sigma": sigma, "n": n if n <= n_max else None, "target": 0.9, "metric": "accuracy",
        "n_min": 2, "n_max": n_max, "curve": curve,
    }  # fmt: skip


@pytest.fixture
def steps() -> dict:
    """Evidence on which every claim that can be tested holds."""
    found = {}
    for k, d in SIZES:
        variance = 0.0625 * 10 / k
        found[f"two-step/cnn/k{k}-d{d}"] = needed(0.53 * k * d, k, d)
        found[f"two-step/lcn/k{k}-d{d}"] = needed(0.53 * k * k * d, k, d)
        law = variance * (k + d) * math.log(k * d)
        found[f"regime/cnn/k{k}-d{d}"] = needed(4 * law, k, d, variance**0.5)
        found[f"regime/lcn/k{k}-d{d}"] = needed(4 * k * law, k, d, variance**0.5)
    for k in (5, 10, 20):
        found[f"other-samples/cnn/k{k}"] = needed(0.53 * k * 20, k, 20)
    found["same-samples/cnn"] = needed(60, 10, 20)
    for k in (4, 8, 12):
        for kind, n in {"cnn": 4, "lcn": k**2, "fcn": k**3, "ridge": 10**6}.items():
            found[f"practical/{kind}/k{k}"] = needed(n, k, 8, reach=0.92 if kind == "ridge" else 0.97)
    for kind, n in {"cnn": 50, "lcn": 500, "fcn": 10**6, "ridge": 10**6}.items():
        found[f"digits/{kind}"] = needed(n, 8, 64, n_max=8_192)
        found[f"no-validation/{kind}"] = needed(n, 8, 8)
    found["equivariance"] = {
        "own": {"two-step CNN": {"common rotation": 1e-15}},
        "foreign": {"two-step CNN": {"rotation": 0.4}},
    }
    failed = [{"value": v, "low": v - 0.05, "high": v + 0.05} for v in (0.95, 0.8, 0.1)]
    found["fano"] = {
        "n": [1, 2, 3], "bound": [0.8, 0.5, 0.0], "failed": {"maximum likelihood": failed},
        "told": [{"value": 0.0, "low": 0.0, "high": 0.02}] * 3,
    }  # fmt: skip
    return found


def verdicts(steps: dict) -> dict[str, str]:
    return {name: PREDICATES[name](steps).verdict for name in TESTABLE}


def test_every_claim_has_a_row() -> None:
    assert {predicate.claim for predicate in REPRODUCTION.predicates} == {"C1", "C2", "C3", "C4"}


def test_every_claim_can_be_reproduced_but_a_proof(steps: dict) -> None:
    assert set(verdicts(steps).values()) == {"reproduced"}
    assert PREDICATES["C4 tools"](steps).verdict == "not testable here"


def test_every_verdict_turns_when_the_control_takes_the_methods_place(steps: dict) -> None:
    for k, d in SIZES:
        cnn, lcn = f"two-step/cnn/k{k}-d{d}", f"two-step/lcn/k{k}-d{d}"
        steps[cnn], steps[lcn] = steps[lcn], steps[cnn]
        steps[f"regime/cnn/k{k}-d{d}"] = needed(3 * k * d * 0.0625 * 10 / k, k, d, (0.0625 * 10 / k) ** 0.5)
    for k in (4, 8, 12):
        steps[f"practical/cnn/k{k}"] = steps[f"practical/fcn/k{k}"]
        steps[f"practical/fcn/k{k}"] = steps[f"practical/lcn/k{k}"]
    steps["digits/cnn"] = steps["digits/ridge"]
    steps["equivariance"]["own"] = steps["equivariance"]["foreign"]
    steps["fano"]["failed"]["maximum likelihood"] = steps["fano"]["told"]
    assert set(verdicts(steps).values()) == {"not reproduced"}


def test_small_factors_are_a_direction(steps: dict) -> None:
    steps["practical/lcn/k8"] = needed(300, 8, 8)
    steps["digits/lcn"] = needed(80, 8, 64, n_max=8_192)
    for k, d in SIZES:
        steps[f"two-step/lcn/k{k}-d{d}"] = needed(0.53 * k * d * (1.5 + 0.1 * k), k, d)
    found = verdicts(steps)
    assert found["C3 order"] == found["C3 real digits"] == found["C2 ratio"] == "direction only"


def test_an_fcn_that_never_arrives_counts_as_more_than_was_tried(steps: dict) -> None:
    assert "FCN > 8192" in PREDICATES["C3 real digits"](steps).measured
    steps["practical/fcn/k12"] = needed(10**6, 12, 8)
    assert PREDICATES["C3 slope in k"](steps).verdict == "inconclusive"
    steps["digits/lcn"] = steps["digits/fcn"]
    assert PREDICATES["C3 real digits"](steps).verdict == "inconclusive"


def test_a_target_that_is_not_reached_is_no_slope(steps: dict) -> None:
    for part in ("two-step", "regime"):
        steps[f"{part}/cnn/k20-d20"] = needed(10**6, 20, 20)
    found = verdicts(steps)
    assert found["C1 sweeps"] == found["C1 sum, not product"] == found["C2 ratio"] == "not reproduced"


def test_repeats_that_disagree_are_inconclusive(steps: dict) -> None:
    for k, d in SIZES:
        record = steps[f"regime/cnn/k{k}-d{d}"]
        n = record["n"]
        record["curve"] = [
            {"n": max(1, n // 3), "scores": [0.0, 0.95, 0.95, 0.95]},
            {"n": n, "scores": [0.6, 1.0, 1.0, 1.0]},
            {"n": 3 * n, "scores": [0.95] * 4},
        ]
    assert PREDICATES["C1 sum, not product"](steps).verdict == "inconclusive"
    steps["fano"]["told"] = steps["fano"]["failed"]["maximum likelihood"]
    assert PREDICATES["C4 Fano on a packing"](steps).verdict == "inconclusive"


def test_a_check_that_passes_everything_is_no_check(steps: dict) -> None:
    steps["equivariance"]["foreign"] = steps["equivariance"]["own"]
    assert "passes what it should not" in PREDICATES["C3 equivariance"](steps).reason


def test_nothing_measured_is_nothing_judged() -> None:
    assert {judge({}).verdict for judge in PREDICATES.values()} == {"not testable here"}


def test_smoke_runs_every_step_and_every_predicate(tmp_path) -> None:
    """Searches of at most 256 samples, two repeats, and three figures: about 6 seconds on a free core."""
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    steps = run.steps()
    assert {name.split("/")[0] for name in steps} == {
        "two-step", "regime", "same-samples", "other-samples", "practical", "no-validation", "digits", "equivariance",
        "fano",
    }  # fmt: skip
    for judge in PREDICATES.values():
        judge(steps)
    assert PREDICATES["C3 equivariance"](steps).verdict == "reproduced"
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"two-step.png", "practical.png", "fano.png"}


def test_dry_run_of_the_paper_scale_takes_a_step(tmp_path) -> None:
    """One size of every search at the published k and d: about 2 seconds."""
    run = Run("paper", (0,), tmp_path, torch.device("cpu"), dry_run=True)
    REPRODUCTION.run(run)
    assert not run.steps()
