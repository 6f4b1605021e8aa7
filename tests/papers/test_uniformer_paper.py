"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import pytest
import torch

from striate.data.texture_relation import texture_relation
from striate.models.uniformer import uniformer_micro
from striate.papers.base import Run
from striate.papers.uniformer import REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
ELSEWHERE = {"C1 ImageNet", "C2 Kinetics", "C3 Something-Something", "C4", "C5", "C6"}


def placed(correct: int, relation: int, macs: int) -> dict[str, object]:
    return {"n": 1000, "correct": correct, "texture": 990, "relation": relation, "macs": {"trained": 1, "224": macs}}


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
    parts = {"table", "reach", "placement", "video", "inflation", "accuracy"}
    assert {name.split("/")[0] for name in steps} == parts
    for judge in PREDICATES.values():
        judge(steps)
    assert steps["table"]["uniformer3d_small"]["parameters"] == 21_400_400
    spread = steps["inflation"]["spread"]
    assert max(spread[6:-6]) < 1e-4 < max(spread)  # exact inside, wrong at both ends


def marks(image):
    """Return the columns of both marks of an image without noise."""
    columns = ((image.float() - 128).abs() > 60).any(dim=0).nonzero()[:, 0]
    middle = len(image[0]) // 2
    return columns[columns < middle], columns[columns > middle]


def test_no_position_of_the_last_local_map_sees_both_marks():
    torch.manual_seed(0)
    network = uniformer_micro(1, 6, placement="LLLL").double().eval()
    data = texture_relation(24, seed=0, noise=0.0)
    x = torch.randn(1, 1, 32, 544, dtype=torch.float64).requires_grad_()
    features = network.forward_features(x)
    assert features.shape[2:] == (1, 17)
    for position in range(17):
        (gradient,) = torch.autograd.grad(features[..., position].sum(), x, retain_graph=True)
        seen = set(gradient.abs().sum(dim=(0, 1, 2)).nonzero()[:, 0].tolist())
        assert len(seen) <= 488
        for image in data.images[:, 0]:
            left, right = marks(image)
            assert len(left) == len(right) == 24
            assert not (seen & set(left.tolist()) and seen & set(right.tolist()))


@pytest.mark.parametrize("placement", ["LLLL", "LLGG", "GGGG", "GGLL"])
def test_only_all_local_logits_are_a_sum_over_the_marks(placement):
    """Turn either mark or both to their negatives: the alternating sum of the logits holds all of the relation."""
    torch.manual_seed(0)
    network = uniformer_micro(1, 6, placement=placement).double().eval()
    image = texture_relation(1, seed=0).images.double() - 128
    cases = image.repeat(4, 1, 1, 1)
    for bit, columns in enumerate((slice(0, 33), slice(511, 544))):  # beyond the texture's room
        for case in range(4):
            if case >> bit & 1:
                cases[case, ..., columns] *= -1
    with torch.no_grad():
        logits = network(cases / 80)
    mixed = (logits[0] - logits[1] - logits[2] + logits[3]).abs().max() / (logits[0] - logits[1]).abs().max()
    assert (mixed < 1e-9) == (placement == "LLLL")
