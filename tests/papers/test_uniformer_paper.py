"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import pytest
import torch

from striate.papers.base import Run
from striate.papers.uniformer import REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
ELSEWHERE = {"C1 ImageNet", "C2 Kinetics", "C3 Something-Something", "C4", "C5", "C6"}


def placed(correct: int, relation: int, macs: int) -> dict[str, object]:
    return {"n": 1000, "correct": correct, "texture": 990, "relation": relation, "macs": {"48": 1, "224": macs}}


@pytest.fixture
def steps():
    """Evidence on which every claim that can be tested here holds."""
    found = {}
    for seed in range(3):
        for name, correct in (("uniformer", 880), ("resnet", 879), ("deit", 780)):
            found[f"accuracy/{name}/seed{seed}"] = {"n": 1000, "correct": correct, "parameters": 100, "macs": 1}
        found[f"video/3-D/seed{seed}"] = {"n": 400, "correct": 390, "direction": 395}
        found[f"video/2-D/seed{seed}"] = {"n": 400, "correct": 200, "direction": 202}
        found[f"placement/LLGG/seed{seed}"] = placed(970, 980, 50)
        found[f"placement/GGGG/seed{seed}"] = placed(960, 975, 100)
        found[f"placement/GGLL/seed{seed}"] = placed(950, 965, 110)
        found[f"placement/LLLL/seed{seed}"] = placed(900, 905, 30)
    return found


def verdicts(steps):
    return {name: judge(steps).verdict for name, judge in PREDICATES.items() if name not in ELSEWHERE}


def test_every_claim_can_be_reproduced(steps):
    assert set(verdicts(steps).values()) == {"reproduced"}
    assert {PREDICATES[name](steps).verdict for name in ELSEWHERE} == {"not testable here"}


def test_every_verdict_turns_when_the_control_takes_the_methods_place(steps):
    for seed in range(3):
        steps[f"accuracy/uniformer/seed{seed}"]["correct"] = 700
        steps[f"video/3-D/seed{seed}"] = steps[f"video/2-D/seed{seed}"]
        steps[f"placement/LLGG/seed{seed}"], steps[f"placement/LLLL/seed{seed}"] = (
            steps[f"placement/LLLL/seed{seed}"],
            steps[f"placement/LLGG/seed{seed}"],
        )
    assert set(verdicts(steps).values()) == {"not reproduced"}


def test_seeds_that_disagree_are_inconclusive(steps):
    steps["accuracy/uniformer/seed0"]["correct"] = 870
    steps["accuracy/uniformer/seed1"]["correct"] = 890
    steps["video/3-D/seed0"] = steps["video/2-D/seed0"]
    steps["placement/LLLL/seed0"] = placed(975, 979, 30)
    steps["placement/GGGG/seed0"] = placed(985, 975, 100)
    assert set(verdicts(steps).values()) == {"inconclusive"}


def test_networks_of_other_sizes_are_no_comparison(steps):
    steps["accuracy/deit/seed0"]["parameters"] = 120
    assert verdicts(steps)["C1 small"] == "inconclusive"


def test_placements_that_all_answer_by_chance_cannot_be_told_apart(steps):
    for name in [name for name in steps if name.startswith("placement/")]:
        steps[name] = {**steps[name], "correct": 500, "relation": 505}
    steps["placement/GGLL/seed0"]["correct"] = 540
    assert {verdicts(steps)[name] for name in ("C7 placement", "C7 global factor")} == {"inconclusive"}


def test_attention_everywhere_at_a_like_cost_is_direction_only(steps):
    for seed in range(3):
        steps[f"placement/LLGG/seed{seed}"]["macs"]["224"] = 70
    assert verdicts(steps)["C7 placement"] == "direction only"


def test_smoke_runs_every_step_and_every_predicate(tmp_path):
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    steps = run.steps()
    assert {name.split("/")[0] for name in steps} == {"table", "placement", "video", "inflation", "accuracy"}
    for judge in PREDICATES.values():
        judge(steps)
    assert steps["table"]["uniformer3d_small"]["parameters"] == 21_400_400
    spread = steps["inflation"]["spread"]
    assert max(spread[6:-6]) < 1e-4 < max(spread)  # exact inside, wrong at both ends
