"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import copy

import pytest
import torch

from striate.papers.base import Run
from striate.papers.mobile_mamba import _MIXERS, _SIZES, REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
TESTABLE = {"C1 sizes", "C1 against a light CNN", "C2 CPU", "C3 split", "C3 fine detail"}


def grating(both, carrier, orientation=0.95, n=1000):
    values = {"both": both, "carrier": carrier, "orientation": orientation}
    return {**{key: round(n * value) for key, value in values.items()}, "n": n, "parameters": 1, "macs": 1}


@pytest.fixture
def steps():
    """Evidence on which every claim holds that can be tested here."""
    networks = {
        name: {"parameters": row[0], "trainable": row[1], "folded": row[2], "macs": 1e9 * row[3]}
        for name, row in _SIZES.items()
    }
    seconds = {"mobile_mamba_t2": 0.5, "mobile_mamba_s6": 1.0, "vmamba_tiny": 5.0, "efficient_vmamba_t": 2.0}
    macs = {"mobile_mamba_t2": 1, "mobile_mamba_s6": 1, "vmamba_tiny": 7, "efficient_vmamba_t": 1.2}
    found = {
        "sizes": {"networks": networks, "apart": 1e-6},
        "speed": {
            "batch": 16,
            "side": 224,
            "device": "cpu",
            "macs": macs,
            "seconds": {name: [value] * 5 for name, value in {**seconds, "unfolded": 1.1}.items()},
        },
    }
    for seed in range(3):
        for name in _MIXERS:
            found[f"gratings/{name}/seed{seed}"] = grating(0.9, 0.9) if name == "full" else grating(0.8, 0.8)
        found[f"accuracy/ours/seed{seed}"] = {"correct": 850, "n": 1000, "parameters": 4, "macs": 100}
        found[f"accuracy/mobile/seed{seed}"] = {"correct": 830, "n": 1000, "parameters": 2, "macs": 98}
    return found


def verdicts(steps):
    return {name: judge(steps).verdict for name, judge in PREDICATES.items()}


def test_every_claim_has_a_row():
    assert {name.split()[0] for name in PREDICATES} == {"C1", "C2", "C3", "C4"}


def test_what_can_be_tested_can_be_reproduced(steps):
    expected = {name: "reproduced" if name in TESTABLE else "not testable here" for name in PREDICATES}
    assert verdicts(steps) == expected
    for name in ("t2", "t4", "s6", "b1", "b2", "b4"):
        steps[f"imagenet/mobile_mamba_{name}"] = {"correct": 840, "n": 1000}
    assert verdicts(steps)["C1 ImageNet"] == "reproduced"
    steps["imagenet/mobile_mamba_b4"]["correct"] = 800
    assert verdicts(steps)["C1 ImageNet"] == "not reproduced"


def test_every_verdict_turns_when_the_control_takes_the_methods_place(steps):
    swapped = copy.deepcopy(steps)
    for seed in range(3):
        for first, second in (("gratings/full", "gratings/no wavelet"), ("accuracy/ours", "accuracy/mobile")):
            pair = f"{first}/seed{seed}", f"{second}/seed{seed}"
            swapped[pair[0]], swapped[pair[1]] = steps[pair[1]], steps[pair[0]]
    seconds = swapped["speed"]["seconds"]
    seconds["mobile_mamba_s6"], seconds["vmamba_tiny"] = seconds["vmamba_tiny"], seconds["mobile_mamba_s6"]
    swapped["sizes"]["networks"]["mobile_mamba_t2"] = swapped["sizes"]["networks"]["mobile_mamba_t4"]
    found = verdicts(swapped)
    assert {found[name] for name in TESTABLE} == {"not reproduced"}


def test_parts_that_make_no_difference_are_not_counted_as_gains(steps):
    for seed in range(3):
        steps[f"gratings/no scan/seed{seed}"] = grating(0.899, 0.9)
        steps[f"gratings/no wavelet/seed{seed}"] = grating(0.85, 0.89)
    assert verdicts(steps)["C3 split"] == "direction only"
    assert verdicts(steps)["C3 fine detail"] == "direction only"
    for name in _MIXERS:
        for seed in range(3):
            steps[f"gratings/{name}/seed{seed}"] = grating(0.9, 0.9)
    assert verdicts(steps)["C3 split"] == "inconclusive"


def test_slower_than_asked_is_direction_only_and_seeds_may_disagree(steps):
    steps["speed"]["seconds"]["vmamba_tiny"] = [2.0] * 5
    steps["sizes"]["apart"] = 1e-3
    steps["accuracy/ours/seed0"]["correct"] = 820
    steps["gratings/no wavelet/seed0"] = grating(0.91, 0.91)
    found = verdicts(steps)
    assert found["C2 CPU"] == "direction only"
    assert found["C1 sizes"] == "direction only"
    assert found["C1 against a light CNN"] == "inconclusive"
    assert found["C3 fine detail"] == "inconclusive"
    steps["accuracy/mobile/seed0"]["macs"] = 200
    assert verdicts(steps)["C1 against a light CNN"] == "inconclusive"


def test_smoke_runs_every_step_and_every_predicate(tmp_path):
    """Trains seven networks for two steps each: about 10 seconds on a free core."""
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    expected = {"sizes", "accuracy/ours/seed0", "accuracy/mobile/seed0"}
    assert set(run.steps()) == expected | {f"gratings/{name}/seed0" for name in _MIXERS}
    assert (tmp_path / "figures" / "receptive-fields.png").is_file()
    for judge in PREDICATES.values():
        judge(run.steps())
    assert PREDICATES["C1 sizes"](run.steps()).verdict == "reproduced"
