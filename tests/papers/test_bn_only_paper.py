"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import copy

import pytest
import torch

from striate.papers.base import Run
from striate.papers.bn_only import _ARMS, REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
FASHION = {name for name in PREDICATES if "Fashion" in name}


def record(correct, small=0.0, dead=0.0):
    return {
        "correct": correct,
        "n": 1000,
        "trained": 1384,
        "start": {"0.01": 0.01, "0.05": 0.05},
        "below": {"0.01": small, "0.05": small + 0.1},
        "dead": dead,
        "pruned": {"0.01": correct - 1, "0.05": correct - 40},
    }


@pytest.fixture
def steps():
    """Evidence on both data sets on which every claim holds."""
    found = {}
    for seed in range(3):
        for group, shapes in (
            ("fashion", {(8, 8): 600, (14, 8): 650, (26, 8): 700, (8, 24): 660}),
            ("cifar10", {(14, 16): 480, (110, 16): 700, (866, 16): 820, (14, 128): 600}),
        ):
            deep = "26x8" if group == "fashion" else "866x16"
            for (depth, width), correct in shapes.items():
                found[f"{group}/bn/{depth}x{width}/seed{seed}"] = record(correct + seed, 0.33)
                if (depth, width) not in {(8, 24), (14, 128)}:
                    found[f"{group}/random/{depth}x{width}/seed{seed}"] = record(correct - 200 + seed)
            found[f"{group}/all/{deep}/seed{seed}"] = record(870 + seed, 0.02)
            found[f"{group}/output/{deep}/seed{seed}"] = record(350 + seed)
            found[f"{group}/frozen bn/{deep}/seed{seed}"] = record(860 + seed)
            found[f"{group}/small/{deep}/seed{seed}"] = record(500 + seed)
    return found


def verdicts(steps):
    return {name: judge(steps).verdict for name, judge in PREDICATES.items()}


def replaced(steps, arm, by):
    """Put one arm's figures in the place of another's."""
    return {name: copy.deepcopy(steps.get(name.replace(f"/{arm}/", f"/{by}/"), steps[name])) for name in steps}


def test_every_claim_can_be_reproduced(steps):
    assert set(verdicts(steps).values()) == {"reproduced"}


def test_every_verdict_turns_when_the_control_takes_the_methods_place(steps):
    assert verdicts(replaced(steps, "bn", "output"))["C1 Fashion-MNIST"] == "not reproduced"
    assert verdicts(replaced(steps, "bn", "output"))["C1 CIFAR-10"] == "not reproduced"
    assert verdicts(replaced(steps, "bn", "random"))["C2 Fashion-MNIST"] == "not reproduced"
    assert verdicts(replaced(steps, "bn", "all"))["C4 Fashion-MNIST"] == "not reproduced"
    assert verdicts(replaced(steps, "frozen bn", "bn"))["C5 CIFAR-10"] == "not reproduced"
    for name in list(steps):
        for shallow, others in (("8x8", ("14x8", "26x8", "8x24")), ("14x16", ("110x16", "866x16", "14x128"))):
            for other in others:
                if f"/bn/{other}/" in name:
                    steps[name] = steps[name.replace(other, shallow)]
    found = verdicts(steps)
    assert {found[name] for name in found if name.startswith("C3")} == {"not reproduced"}


def test_partial_success_is_called_direction_only(steps):
    for seed in range(3):
        steps[f"fashion/bn/26x8/seed{seed}"] = record(655 + seed, 0.03)
        steps[f"fashion/bn/8x24/seed{seed}"] = record(670 + seed)
        steps[f"fashion/random/8x8/seed{seed}"] = record(570 + seed)
        steps[f"fashion/frozen bn/26x8/seed{seed}"] = record(840 + seed)
        steps[f"fashion/all/26x8/seed{seed}"]["correct"] = 880
        steps[f"fashion/all/26x8/seed{seed}"]["below"]["0.01"] = 0.015
    found = verdicts(steps)
    for name in FASHION - {"C1 Fashion-MNIST"}:
        assert found[name] == "direction only", name
    for seed in range(3):
        steps[f"fashion/bn/26x8/seed{seed}"]["correct"] = 480
    assert verdicts(steps)["C1 Fashion-MNIST"] == "direction only"


def test_seeds_that_disagree_are_inconclusive(steps):
    steps["fashion/bn/26x8/seed0"]["correct"] = 500
    found = verdicts(steps)
    assert found["C3 depth, Fashion-MNIST"] == found["C3 width, Fashion-MNIST"] == "inconclusive"
    steps["fashion/random/8x8/seed0"]["correct"] = 601
    assert verdicts(steps)["C2 Fashion-MNIST"] == "inconclusive"


def test_scales_that_matter_are_not_switched_off(steps):
    steps["fashion/bn/26x8/seed1"]["pruned"]["0.01"] -= 10
    assert verdicts(steps)["C4 Fashion-MNIST"] == "not reproduced"


def test_a_third_is_asked_for_on_cifar_only(steps):
    for seed in range(3):
        for name in ("fashion/bn/26x8", "cifar10/bn/866x16"):
            steps[f"{name}/seed{seed}"]["below"]["0.01"] = 0.1
    found = verdicts(steps)
    assert (found["C4 Fashion-MNIST"], found["C4 CIFAR-10"]) == ("reproduced", "direction only")


def test_nothing_measured_is_nothing_judged():
    assert {judge({}).verdict for judge in PREDICATES.values()} == {"not testable here"}
    assert "paper scale" in PREDICATES["C1 CIFAR-10"]({}).reason


def test_smoke_runs_every_arm_and_every_predicate(tmp_path, monkeypatch):
    """Eight networks of depth 8 on digits for 77 steps: about 8 seconds on a free core."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    steps = run.steps()
    assert set(steps) == {f"fashion/{arm}/8x8/seed0" for arm in _ARMS}
    trained = {arm: steps[f"fashion/{arm}/8x8/seed0"]["trained"] for arm in _ARMS}
    assert trained["bn"] == trained["random"] == 336
    assert trained["frozen bn"] + trained["bn"] == trained["all"]
    assert trained["small"] >= trained["bn"]
    assert trained["output"] == 330
    accuracy = {arm: steps[f"fashion/{arm}/8x8/seed0"]["correct"] for arm in _ARMS}
    assert accuracy["all"] > accuracy["bn"] > accuracy["random"]
    for judge in PREDICATES.values():
        judge(steps)


def test_dry_run_of_the_paper_scale_takes_a_step(tmp_path, monkeypatch):
    """One step of ResNet-866, its blocks computed again in the backward pass."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    run = Run("paper", (0,), tmp_path, torch.device("cpu"), dry_run=True)
    REPRODUCTION.run(run)
    assert not run.steps()
