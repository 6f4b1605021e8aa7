"""The lab book of the explainability benchmark: it runs, its gate holds, and its verdicts flip when they should."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import models

from striate.papers.base import Judgement
from striate.papers.explainable_robust import REPRODUCTION
from striate.papers.explainable_robust_imagenet import _single_box

GRADIENT = ("gradient", "input-x-gradient", "integrated-gradients", "gradient-shap")
OTHER = ("cam", "grad-cam", "rise", "lime", "meaningful-perturbation")
NETWORKS = [f"{a}-{t}" for a in ("TinyAlex", "TinyRes", "TinyMobile") for t in ("vanilla", "robust", "advprop")]
NETWORKS.remove("TinyAlex-advprop")
N = 40


def steps(**change: Any) -> dict[str, Any]:
    """Evidence as the paper would have it; ``change`` overrides single quantities."""
    world: dict[str, Any] = {
        "gain": dict.fromkeys(GRADIENT, 0.2) | dict.fromkeys(OTHER, 0.0),
        "level": {"grad-cam": 0.7, "rise": 0.75} | dict.fromkeys(("cam", "lime", "meaningful-perturbation"), 0.5),
        "adversarial": {"vanilla": 0, "robust": 50, "advprop": 5},
        "clean": {"vanilla": 90, "robust": 70, "advprop": 92},
        "shifted": {"vanilla": 20, "robust": 30, "advprop": 25},
        "confidence": {"vanilla": 0.9, "robust": 0.5, "advprop": 0.8},
        "curve": {"vanilla": 0.6, "robust": 0.4, "advprop": 0.55},
        "cue_off_gain": 0.05,
        "centre": 0.3,
        "still": 0.0,
    } | change
    rng = np.random.default_rng(0)
    measured: dict[str, Any] = {}
    for name in NETWORKS:
        training = name.rpartition("-")[2]
        right = {key: world[key][training] for key in ("clean", "adversarial", "shifted")}
        measured[f"network/seed0/{name}"] = {"n": 100, "right": right}
        rows = []
        for method in (*GRADIENT, *OTHER):
            if method == "cam" and name.startswith("TinyAlex"):
                continue
            level = world["level"].get(method, 0.3) + (world["gain"][method] if training == "robust" else 0.0)
            for metric in ("pointing-game", "wsl", "energy-in-box", "insertion", "deletion"):
                curve = metric in {"insertion", "deletion"}
                mean = world["curve"][training] if curve else level
                values = np.clip(mean + 0.05 * rng.standard_normal(N), 0, 1).round(6).tolist()
                row = {"model": name, "method": method, "metric": metric, "values": values, "alpha": None}
                rows.append(row | {"temperature": 1.0})
                if name == "TinyRes-vanilla" and method in GRADIENT:
                    shift = 0.1 if curve else world["still"]
                    rows.append(row | {"temperature": 2.0, "values": [value + shift for value in values]})
        confidence = {name: [world["confidence"][training] + 0.001 * NETWORKS.index(name)] * N}
        measured[f"bench/seed0/{name}"] = {
            "rows": rows,
            "images": list(range(N)),
            "confidence": confidence,
            "accuracy": {name: 0.9},
            "skipped": [["TinyAlex", "cam", "no pooling"]],
            "checks": [],
        }
    measured["centre/seed0"] = {"pointing-game": [world["centre"]] * N, "wsl": [world["centre"]] * N, "alpha": 0.5}
    rows = [
        {"model": f"TinyRes-{t}", "method": m, "metric": metric, "values": [v] * N, "alpha": None, "temperature": 1.0}
        for t, v in (("vanilla", 0.3), ("robust", 0.3 + world["cue_off_gain"]))
        for m in GRADIENT
        for metric in ("pointing-game", "wsl", "energy-in-box")
    ]
    pair = {"TinyRes-vanilla": 0.9, "TinyRes-robust": 0.7}
    measured["cue-off/seed0"] = {
        "rows": rows,
        "images": list(range(N)),
        "confidence": {name: [0.5] * N for name in pair},
        "accuracy": pair,
        "skipped": [],
        "checks": [],
    }
    return measured


def judged(claim: str, evidence: dict[str, Any]) -> Judgement:
    (predicate,) = [predicate for predicate in REPRODUCTION.predicates if predicate.claim == claim]
    before = copy.deepcopy(evidence)
    judgement = predicate.judge(evidence)
    assert evidence == before
    return judgement


def swapped() -> dict[str, Any]:
    """The same evidence with the labels "robust" and "vanilla" exchanged in the maps' scores."""
    evidence = steps()
    for architecture in ("TinyAlex", "TinyRes", "TinyMobile"):
        first, second = (evidence[f"bench/seed0/{architecture}-{t}"] for t in ("vanilla", "robust"))
        values = [[row["values"] for row in table["rows"] if row["temperature"] == 1] for table in (first, second)]
        for table, other in ((first, values[1]), (second, values[0])):
            for row, new in zip((row for row in table["rows"] if row["temperature"] == 1), other, strict=True):
                row["values"] = new
    return evidence


def test_every_claim_is_reproduced_where_the_paper_is_right() -> None:
    for claim in ("C1", "C2", "C3", "C4", "C5"):
        judgement = judged(claim, steps())
        assert judgement.verdict == "reproduced", (claim, judgement)
        assert judgement.measured
        assert judgement.control
    assert "shrinks" in judged("C1", steps()).control
    assert "does not shrink" in judged("C1", steps(cue_off_gain=0.5)).control


def test_swapping_robust_and_normal_flips_the_verdicts() -> None:
    assert judged("C1", swapped()).verdict == "not reproduced"
    assert judged("C4", swapped()).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("claim", "change", "verdict"),
    [
        ("C1", {"gain": dict.fromkeys(GRADIENT, 0.1) | dict.fromkeys(OTHER, 0.3)}, "direction only"),
        (
            "C1",
            {"gain": dict.fromkeys(GRADIENT, 0.2) | dict.fromkeys(OTHER, 0.0) | {"gradient": -0.1}},
            "direction only",
        ),
        ("C1", {"gain": dict.fromkeys((*GRADIENT, *OTHER), -0.1)}, "not reproduced"),
        ("C2", {"clean": {"vanilla": 90, "robust": 70, "advprop": 80}}, "not reproduced"),
        ("C3", {"level": {"lime": 0.9, "cam": 0.9, "grad-cam": 0.8, "rise": 0.2}}, "direction only"),
        ("C3", {"level": {"lime": 0.9, "cam": 0.9, "meaningful-perturbation": 0.8, "rise": 0.1}}, "not reproduced"),
        ("C3", {"centre": 0.99}, "direction only"),
        ("C4", {"curve": {"vanilla": 0.4, "robust": 0.6, "advprop": 0.5}}, "not reproduced"),
        ("C4", {"still": 0.2}, "direction only"),
    ],
)
def test_other_worlds_get_other_verdicts(claim: str, change: dict[str, Any], verdict: str) -> None:
    judgement = judged(claim, steps(**change))
    assert judgement.verdict == verdict
    assert judgement.reason


def test_one_network_that_leads_everywhere_refutes_c5() -> None:
    evidence = steps()
    evidence["network/seed0/TinyRes-robust"]["right"] |= {"clean": 99, "shifted": 60}
    for row in evidence["bench/seed0/TinyRes-robust"]["rows"]:
        row["values"] = [min(1.0, value + 0.1) for value in row["values"]]
    assert judged("C5", evidence).verdict == "not reproduced"


def test_a_network_that_did_not_become_robust_is_a_failed_set_up() -> None:
    for claim in ("C1", "C2", "C3", "C4", "C5"):
        judgement = judged(claim, steps(adversarial={"vanilla": 40, "robust": 55, "advprop": 5}))
        assert judgement.verdict == "not testable here"
        assert "Set-up failed" in judgement.reason


def test_smoke_runs_every_step(tmp_path, monkeypatch) -> None:
    from striate.papers.runner import reproduce, verify

    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    outcome = reproduce("explainable-robust", scale="smoke", out=tmp_path / "evidence")
    assert {row.claim for row in outcome.rows} == {"C1", "C2", "C3", "C4", "C5"}
    assert {row.verdict for row in outcome.rows} == {"not judged"}
    assert all(row.same for row in verify(tmp_path / "evidence"))


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: models.alexnet(weights=None), 61_100_840),
        (lambda: models.googlenet(weights=None, aux_logits=False, init_weights=False), 6_624_904),
        (lambda: models.googlenet(weights=None, aux_logits=True, init_weights=False), 13_004_888),
        (lambda: models.resnet50(weights=None), 25_557_032),
        (lambda: models.densenet161(weights=None), 28_681_000),
        (lambda: models.mobilenet_v2(weights=None), 3_504_872),
    ],
)
def test_parameters_of_the_published_networks(build: Any, parameters: int) -> None:
    with torch.device("meta"):
        network = build()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def annotation(folder: Any, boxes: list[tuple[int, int, int, int]]) -> Any:
    objects = "".join(
        f"<object><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    path = folder / "image.xml"
    path.write_text(f"<annotation><size><width>512</width><height>256</height></size>{objects}</annotation>")
    return path


def test_boxes_follow_the_resize_and_the_crop(tmp_path) -> None:
    # 512 x 256 keeps its size; the crop takes columns 144 to 368 and rows 16 to 240.
    assert _single_box(annotation(tmp_path, [(150, 20, 250, 120)])) == [6, 4, 106, 104]
    assert _single_box(annotation(tmp_path, [(100, 0, 250, 120)])) == [0, 0, 106, 104]
    assert _single_box(annotation(tmp_path, [(150, 20, 250, 120)] * 2)) is None  # two objects
    assert _single_box(annotation(tmp_path, [(0, 0, 400, 256)])) is None  # covers more than half
    assert _single_box(annotation(tmp_path, [(0, 0, 100, 100)])) is None  # cropped away
    assert _single_box(tmp_path / "none.xml") is None
