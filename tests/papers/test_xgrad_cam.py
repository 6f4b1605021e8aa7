"""The reproduction of XGrad-CAM: it runs at smoke scale, and its predicates follow the evidence, not the hope."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from striate.papers.base import Judgement, Run
from striate.papers.xgrad_cam import REPRODUCTION

JUDGES = {(predicate.claim, predicate.part): predicate.judge for predicate in REPRODUCTION.predicates}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path_factory.mktemp("xgrad"), torch.device("cpu"))
    REPRODUCTION.run(run)
    return run


def test_smoke_measures_every_step_once(smoke: Run) -> None:
    steps = smoke.steps()
    assert set(steps) == {"axioms/lite0", "axioms/vgg/seed0", "theorem/seed0", "places/seed0", "cost"}
    assert len(steps["theorem/seed0"]["residual"]) == 18
    lines: list[str] = []
    again = Run("smoke", smoke.seeds, smoke.folder, smoke.device, report=lines.append)
    REPRODUCTION.run(again)
    assert all(line.endswith("already measured") for line in lines)
    for predicate in REPRODUCTION.predicates:
        assert isinstance(predicate.judge(steps), Judgement)
    assert JUDGES["C1", "theorem"](steps).verdict == "reproduced"  # algebra: it holds for an untrained network too


def test_only_the_wanted_claims_are_measured(tmp_path: Path) -> None:
    run = Run("smoke", (0,), tmp_path, torch.device("cpu"), claims=frozenset({"C4"}))
    REPRODUCTION.run(run)
    assert set(run.steps()) == {"cost"}
    assert JUDGES["C1", "sensitivity"](run.steps()).verdict == "not testable here"


def evidence() -> dict[str, Any]:
    """Evidence on which every claim holds."""
    errors = {
        "xgrad-cam": {"sensitivity": [0.2, 0.3, 0.25, 0.2], "conservation": [0.3, 0.2, 0.3, 0.2]},
        "grad-cam": {"sensitivity": [0.5, 0.6, 0.5, 0.4], "conservation": [0.5, 0.6, 0.5, 0.4]},
        "shuffled": {"sensitivity": [1.5, 1.4, 1.5, 1.3]},
        "zeros": {"conservation": [1.0, 1.0, 1.0, 1.0]},
    }
    place = {
        "classes_found": 0.9,
        "xgrad-cam": {"hit": [1, 1, 0.5, 1], "energy": [0.5] * 4, "apart": [1, 1, 1, 1], "correlation": [0.1] * 4},
        "grad-cam": {"hit": [0.5, 0.5, 0, 0.5], "energy": [0.4] * 4, "apart": [1, 1, 1, 1], "correlation": [0.1] * 4},
        "grad-cam++": {"hit": [0.5] * 4, "energy": [0.4] * 4, "apart": [0.5, 0.5, 1, 0.5], "correlation": [0.9] * 4},
        "ablation-oracle": {"hit": [1] * 4, "energy": [0.5] * 4, "apart": [1] * 4, "correlation": [0.1] * 4},
        "random": {"hit": [0, 0.5, 0, 0], "energy": [0.14] * 4, "apart": [0.5] * 4, "correlation": [0.0] * 4},
        "centre": {"hit": [0] * 4, "energy": [0.1] * 4, "apart": [0] * 4, "correlation": [1.0] * 4},
    }
    seconds = {"xgrad-cam": [0.1], "grad-cam": [0.1], "plain ablation": [5.0], "batched ablation": [0.6]}
    steps: dict[str, Any] = {
        "axioms/lite0": {"layers": {"blocks.5": copy.deepcopy(errors), "blocks.4": copy.deepcopy(errors)}},
        "cost": {"layer": "blocks.5", "channels": 192, "seconds": seconds},
    }
    for seed in range(3):
        steps[f"axioms/vgg/seed{seed}"] = {"layers": {"features.14": copy.deepcopy(errors)}}
        steps[f"theorem/seed{seed}"] = {"residual": {"a": 1e-14}, "without_bias_term": {"a": 0.9}, "images": 2}
        steps[f"places/seed{seed}"] = copy.deepcopy(place)
    return steps


@pytest.mark.parametrize("which", JUDGES)
def test_every_verdict_flips_when_the_control_stands_in_for_the_method(which: tuple[str, str]) -> None:
    steps = evidence()
    assert JUDGES[which](steps).verdict == "reproduced"
    for name, measured in steps.items():
        if name.startswith("axioms/"):
            for layer in measured["layers"].values():
                layer["xgrad-cam"] = {**layer["shuffled"], **layer["zeros"]}
        elif name.startswith("theorem/"):
            measured["residual"] = measured["without_bias_term"]
        elif name.startswith("places/"):
            measured["xgrad-cam"] = measured["random"]
        else:
            measured["seconds"]["plain ablation"] = measured["seconds"]["batched ablation"] = [0.1]
    flipped = JUDGES[which](steps)
    assert flipped.verdict == "not reproduced"
    assert flipped.reason


def test_disagreeing_seeds_are_inconclusive() -> None:
    steps = evidence()
    layer = steps["axioms/vgg/seed1"]["layers"]["features.14"]
    layer["xgrad-cam"], layer["grad-cam"] = layer["grad-cam"], layer["xgrad-cam"]
    place = steps["places/seed2"]
    place["xgrad-cam"], place["grad-cam"] = place["grad-cam"], {**place["xgrad-cam"], "apart": [1.0] * 4}
    place["xgrad-cam"] = {**place["xgrad-cam"], "apart": [0.5] * 4}
    for which in (("C1", "sensitivity"), ("C1", "conservation, VGG"), ("C2", ""), ("C3", "")):
        assert JUDGES[which](steps).verdict == "inconclusive"
    assert JUDGES["C1", "conservation, Lite0"](steps).verdict == "reproduced"  # not merged with the VGG's


def test_a_sign_without_an_interval_is_direction_only() -> None:
    steps = evidence()
    for measured in (steps["axioms/lite0"]["layers"][name] for name in ("blocks.5", "blocks.4")):
        measured["xgrad-cam"]["sensitivity"] = [0.1, 0.9, 0.3, 0.3]
        measured["grad-cam"]["sensitivity"] = [0.6, 0.5, 0.4, 0.3]
    for seed in range(3):
        steps[f"places/seed{seed}"]["xgrad-cam"]["hit"] = [0.5, 0.5, 0, 1]
    assert JUDGES["C1", "sensitivity"](steps).verdict == "direction only"
    assert JUDGES["C2", ""](steps).verdict == "direction only"


def test_a_network_that_did_not_learn_gives_no_verdict_on_its_maps() -> None:
    steps = evidence()
    steps["places/seed0"]["classes_found"] = 0.2
    for claim in ("C2", "C3"):
        judgement = JUDGES[claim, ""](steps)
        assert judgement.verdict == "inconclusive"
        assert "training failed" in judgement.reason


def test_an_undefined_error_leaves_the_image_out() -> None:
    steps = evidence()
    steps["axioms/lite0"]["layers"]["blocks.4"]["xgrad-cam"]["conservation"][0] = None
    assert JUDGES["C1", "conservation, Lite0"](steps).verdict == "reproduced"
