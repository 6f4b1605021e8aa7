from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from striate.models.mini import resnet_mini
from striate.papers import patch_perturbation
from striate.papers.base import Judgement, Predicate, Run
from striate.papers.patch_perturbation import _PUBLISHED, REPRODUCTION, _vit

SEEDS = (0, 1)
COUNTS = [8, 24, 40, 49]


def outcome(percent: float, n: int = 200) -> dict[str, list[int]]:
    fooled = round(percent * n / 100)
    return {"success": [1] * fooled + [0] * (n - fooled), "evaluated": [1] * n, "steps_used": [3] * n}


def shares(natural: float, adversarial: float, random: float) -> dict[str, list[float]]:
    ratios = {"clean": 1.0, "natural": natural, "adversarial": adversarial, "random": random}
    return {name: [0.02 * ratio] * 9 for name, ratio in ratios.items()}


def evidence() -> dict[str, Any]:
    """What a run would hold if everything in the paper were so."""
    steps: dict[str, Any] = {}
    for seed in SEEDS:
        steps[f"models/seed{seed}"] = {
            "vit": {"accuracy": 75.0 + seed, "n": 5000},
            "cnn": {"accuracy": 76.0 + seed, "n": 5000},
            "attention_entropy": {"blocks.0.attn": 3.0},
            "uniform_entropy": 3.9,
        }
        steps[f"natural/seed{seed}"] = {
            "n": 500,
            "counts": COUNTS,
            "fooled": {
                "vit": {"contrast": [20 + seed, 60, 100, 140 - seed], "pixelate": [20, 60, 100 + seed, 140]},
                "cnn": {"contrast": [40, 90 + seed, 150, 200], "pixelate": [40, 90, 150 + seed, 200]},
            },
        }
        for n, vit, cnn in ((1, 60, 30), (2, 90, 60), (4, 100, 80)):
            steps[f"adversarial/seed{seed}/{n}"] = {
                "cells": n,
                "vit": {**outcome(vit), "random": outcome(5)["success"], "shares": shares(1.0, 2.5, 1.2)},
                "cnn": {**outcome(cnn - seed), "random": outcome(4)["success"], "shares": shares(1.0, 1.3, 1.1)},
            }
        rows = [
            {"temperature": t, "accuracy": a, "adaptive": outcome(f), "transfer": 40.0, "natural": 12.0}
            for t, a, f in ((1.0, 75.0, 61), (1.5, 74.0, 50 + seed), (3.0, 60.0, 20))
        ]
        steps[f"temperature/seed{seed}"] = {"plain": outcome(60), "natural_cells": 24, "rows": rows}
        steps[f"alignment/seed{seed}"] = {
            "offset": [2, 2],
            "vit": {"aligned": outcome(60), "shifted": outcome(40)},
            "cnn": {"aligned": outcome(30), "shifted": outcome(29)},
        }
    return steps


def predicate(claim: str, part: str = "") -> Predicate:
    (found,) = [p for p in REPRODUCTION.predicates if (p.claim, p.part) == (claim, part)]
    return found


def judged(steps: dict[str, Any], claim: str, part: str = "") -> Judgement:
    return predicate(claim, part).judge(steps)


def test_every_claim_has_a_predicate() -> None:
    assert REPRODUCTION.key == "patch-perturbation"
    assert {p.claim for p in REPRODUCTION.predicates} == {"C1", "C2", "C3", "C4", "C5"}


@pytest.mark.parametrize(("claim", "part"), [("C1", ""), ("C2", ""), ("C3", ""), ("C4", ""), ("C5", "alignment")])
def test_the_papers_own_findings_are_called_reproduced(claim: str, part: str) -> None:
    judgement = judged(evidence(), claim, part)
    assert judgement.verdict == "reproduced", judgement
    assert judgement.measured
    assert judgement.control


def test_verdicts_flip_when_the_controls_values_are_swapped_in() -> None:
    steps = evidence()
    for seed in SEEDS:
        natural = steps[f"natural/seed{seed}"]["fooled"]
        natural["vit"] = copy.deepcopy(natural["cnn"])  # a CNN in the ViT's place
        for n in (1, 2, 4):
            for name in ("vit", "cnn"):
                record = steps[f"adversarial/seed{seed}/{n}"][name]
                record["success"] = record["random"]  # random content in the attack's place
                record["shares"]["adversarial"] = record["shares"]["random"]
        record = steps[f"temperature/seed{seed}"]
        for row in record["rows"][1:]:
            row["adaptive"] = record["rows"][0]["adaptive"]  # a second start in the temperature's place
        alignment = steps[f"alignment/seed{seed}"]
        alignment["vit"] = alignment["cnn"]
    for claim, part in (("C1", ""), ("C2", ""), ("C4", ""), ("C5", "alignment")):
        assert judged(steps, claim, part).verdict == "not reproduced", claim
    assert judged(steps, "C3").verdict in {"direction only", "not reproduced"}


def test_networks_of_unequal_accuracy_are_not_compared() -> None:
    steps = evidence()
    steps["models/seed1"]["cnn"]["accuracy"] += 5
    for claim, part in (("C1", ""), ("C2", ""), ("C5", "alignment")):
        judgement = judged(steps, claim, part)
        assert judgement.verdict == "inconclusive"
        assert "76.0 and 82.0 %" in judgement.reason


def test_reversed_findings_are_called_not_reproduced_with_the_entropy() -> None:
    steps = evidence()
    for seed in SEEDS:
        for n in (1, 2, 4):
            record = steps[f"adversarial/seed{seed}/{n}"]
            record["vit"], record["cnn"] = record["cnn"], record["vit"]
            record["cnn"]["random"] = record["vit"]["random"] = [0] * 200
    judgement = judged(steps, "C2")
    assert judgement.verdict == "not reproduced"
    assert "77 % of the uniform entropy" in judgement.reason


def test_disagreeing_seeds_and_floors_are_inconclusive() -> None:
    steps = evidence()
    steps["adversarial/seed0/1"]["vit"].update(outcome(29))
    assert judged(steps, "C2").verdict == "inconclusive"
    steps = evidence()
    for seed in SEEDS:
        for n in (1, 2, 4):
            for name in ("vit", "cnn"):
                steps[f"adversarial/seed{seed}/{n}"][name].update(outcome(100))
        steps[f"temperature/seed{seed}"]["plain"] = steps[f"temperature/seed{seed}"]["rows"][0]["adaptive"] = outcome(2)
    assert judged(steps, "C2").verdict == "inconclusive"
    assert judged(steps, "C4").verdict == "inconclusive"
    steps = evidence()
    steps["adversarial/seed1/1"]["vit"]["shares"] = shares(1.0, 1.4, 1.2)
    assert judged(steps, "C3").verdict == "inconclusive"
    steps["adversarial/seed0/1"]["vit"]["shares"] = shares(1.0, 1.4, 1.2)
    assert judged(steps, "C3").verdict == "direction only"


def test_a_temperature_that_costs_accuracy_does_not_count() -> None:
    steps = evidence()
    for seed in SEEDS:
        steps[f"temperature/seed{seed}"]["rows"][1]["adaptive"] = outcome(57)
    assert judged(steps, "C4").verdict == "direction only"
    for seed in SEEDS:
        steps[f"temperature/seed{seed}"]["rows"][1]["accuracy"] = 70.0
    assert judged(steps, "C4").verdict == "not reproduced"


def test_parameter_counts() -> None:
    import timm

    def count(model: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    larger = {"patch_size": 4, "num_classes": 10, "embed_dim": 96, "depth": 4, "num_heads": 4}
    assert count(_vit()) == 155_082
    assert count(resnet_mini(1, 10)) == 77_754
    assert count(timm.models.VisionTransformer(img_size=28, in_chans=1, **larger)) == 455_050
    assert count(timm.models.VisionTransformer(img_size=32, in_chans=3, **larger)) == 459_562
    assert _PUBLISHED.steps == 10_000
    assert _PUBLISHED.counts == (32, 96, 160, 196)


@pytest.fixture(name="cache")
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("cache")

    def apart(*parts: str) -> Path:
        folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)
        return folder.joinpath(*parts)

    monkeypatch.setattr("striate.engine.train.cache_dir", apart)


def test_smoke(tmp_path: Path, cache: None) -> None:
    """Every step, figures included; the predicates read what it leaves. Trains two small networks: about 10 s."""
    run = Run("smoke", (0,), tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    steps = run.steps()
    assert {name.split("/")[0] for name in steps} == {
        "models",
        "natural",
        "adversarial",
        "temperature",
        "alignment",
        "lite0",
    }
    assert steps["models/seed0"]["parameters"] == {"vit": 155_082, "cnn": 77_754}
    assert steps["temperature/seed0"]["rows"][0]["modules"] == 3
    # At T = 1 the smoothed network is the network.
    assert steps["temperature/seed0"]["rows"][0]["accuracy"] == steps["models/seed0"]["vit"]["accuracy"]
    assert (tmp_path / "figures" / "fooling-rates.png").stat().st_size > 5_000
    for each in REPRODUCTION.predicates:
        assert each.judge(steps).verdict


def test_dry_run_of_the_published_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeiT-tiny and ResNet-18 at 224 pixels with random weights: one step of each part. The larger pair is left out."""
    monkeypatch.setattr(patch_perturbation, "_PAIRS", {"deit_tiny": patch_perturbation._PAIRS["deit_tiny"]})
    run = Run("paper", (0,), tmp_path, torch.device("cpu"), dry_run=True)
    REPRODUCTION.run(run)
    written = {path.stem for path in (tmp_path / "dry-run").glob("*.json")}
    parts = ("models", "natural", "adversarial", "temperature", "alignment")
    assert written == {f"{part}--deit_tiny{'--1' * (part == 'adversarial')}" for part in parts}
