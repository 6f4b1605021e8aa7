"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import copy

import pytest
import torch

from striate.data.small import fashion_mnist_folder
from striate.papers.base import Run
from striate.papers.fgsm_patch import REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}


def curve(clean, fgsm, random, n=1000):
    counts = {key: [round(n * value) for value in values] for key, values in (("fgsm", fgsm), ("random", random))}
    return {"n": n, "epsilons": [1, 2, 4, 8, 16], "judged_at": 4, "clean": round(n * clean), **counts}


def patch(success, random, image=0.1):
    controls = {"random": {"top1": random}, "image": {"top1": image}}
    return {"top1": success, "top5": 1.0, "n": 500, "pixels": [], "controls": controls}


@pytest.fixture
def steps():
    """Evidence on which every claim holds; in C3's middle eps the cleanest network is the weakest."""
    random = [0.12, 0.13, 0.14, 0.15, 0.2]
    found = {}
    for seed in range(3):
        found[f"fgsm/resnet/seed{seed}"] = curve(0.10, [0.2, 0.4, 0.7, 0.8, 0.75], random)
        found[f"fgsm/inception/seed{seed}"] = curve(0.15, [0.2, 0.3, 0.5, 0.7, 0.9], [0.16, 0.17, 0.18, 0.2, 0.25])
    found["lite0/fgsm"] = {
        "photographs": [str(i) for i in range(20)],
        "kept_fgsm": [[1] * 2 + [0] * 18, [1] + [0] * 19],
        "kept_random": [[1] * 18 + [0] * 2, [1] * 14 + [0] * 6],
    }
    for family in ("resnet", "inception"):
        for target in (1, 8):
            found[f"patch/{family}/target{target}/size4"] = patch(0.3, 0.05)
            found[f"patch/{family}/target{target}/size8"] = patch(0.9, 0.10)
    found["transfer"] = {
        "networks": ["resnet", "inception"],
        "success": [[0.9, 0.5], [0.6, 0.95]],
        "random": [0.1, 0.1],
    }
    return found


def test_every_claim_can_be_reproduced(steps):
    assert {name: judge(steps).verdict for name, judge in PREDICATES.items()} == dict.fromkeys(PREDICATES, "reproduced")


def test_every_verdict_turns_when_the_control_takes_the_methods_place(steps):
    for record in steps.values():
        if "fgsm" in record:
            record["fgsm"] = record["random"]
        if "kept_fgsm" in record:
            record["kept_fgsm"] = record["kept_random"]
        if "controls" in record:
            record["top1"] = record["controls"]["random"]["top1"] = 0.1
    steps["transfer"]["success"] = [[0.1, 0.1], [0.1, 0.1]]
    assert {judge(steps).verdict for judge in PREDICATES.values()} == {"not reproduced"}


def test_partial_success_is_called_direction_only(steps):
    for seed in range(3):
        steps[f"fgsm/resnet/seed{seed}"]["fgsm"] = [120, 150, 180, 200, 250]
    assert PREDICATES["C1 three families"](steps).verdict == "direction only"
    for name in [name for name in steps if name.endswith("size8")]:
        steps[name]["top1"] = 0.5
    assert PREDICATES["C2"](steps).verdict == "direction only"
    steps["transfer"]["success"] = [[0.9, 0.15], [0.15, 0.95]]
    assert PREDICATES["C4"](steps).verdict == "direction only"
    steps["lite0/fgsm"]["kept_fgsm"] = [[1] * 10 + [0] * 10]
    assert PREDICATES["C1 ImageNet weights"](steps).verdict == "direction only"


def test_seeds_that_disagree_are_inconclusive(steps):
    steps["fgsm/resnet/seed0"]["fgsm"] = [120, 150, 180, 200, 201]
    steps["fgsm/resnet/seed1"]["fgsm"] = [120, 150, 180, 200, 220]
    assert PREDICATES["C1 three families"](steps).verdict == "inconclusive"


def test_error_may_fall_only_after_sixty_per_cent(steps):
    for seed in range(3):
        steps[f"fgsm/inception/seed{seed}"]["fgsm"] = [200, 500, 450, 700, 900]
    judged = PREDICATES["C1 three families"](steps)
    assert judged.verdict == "direction only"
    assert "not monotone" in judged.reason


def test_order_needs_every_seed_and_must_not_be_the_controls(steps):
    kept = copy.deepcopy(steps)
    kept["fgsm/resnet/seed2"]["fgsm"][2] = 450
    assert PREDICATES["C3"](kept).verdict == "inconclusive"
    for seed in range(3):
        steps[f"fgsm/resnet/seed{seed}"]["random"] = [300] * 5
    assert PREDICATES["C3"](steps).verdict == "inconclusive"


def test_claims_that_need_two_networks_say_so(steps):
    alone = {name: record for name, record in steps.items() if "inception" not in name and name != "transfer"}
    assert PREDICATES["C3"](alone).verdict == "not testable here"
    assert PREDICATES["C4"](alone).verdict == "not testable here"


@pytest.mark.skipif(fashion_mnist_folder(train=True) is None, reason="fashion-mnist: striate data fetch fashion-mnist")
def test_smoke_runs_every_step_and_every_predicate(tmp_path):
    """Trains a network on 2,000 images and loads the embedded one: about 10 seconds on a free core."""
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    assert set(run.steps()) == {
        "fgsm/resnet/seed0",
        "lite0/fgsm",
        "patch/resnet/target8/size8",
        "transfer",
        "lite0/patch",
    }
    assert (tmp_path / "figures" / "banana-patch.png").is_file()
    for judge in PREDICATES.values():
        judge(run.steps())
    record = run.steps()["fgsm/resnet/seed0"]
    assert record["clean"] < 0.5 * record["n"]  # the network did learn
