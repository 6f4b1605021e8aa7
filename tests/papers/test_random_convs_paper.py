"""The reproduction runs at smoke scale, and its predicates turn round when the control is swapped in."""

from __future__ import annotations

import pytest
import torch

from striate.papers.base import Run
from striate.papers.random_convs import _EXPANSIONS, _SMOKE, REPRODUCTION

PREDICATES = {f"{predicate.claim} {predicate.part}".strip(): predicate.judge for predicate in REPRODUCTION.predicates}
LAPTOP = {name for name in PREDICATES if "CIFAR" not in name and "full size" not in name}


def record(correct, train=950, attacked=400, entropy=0.6, ratio=1.0):
    return {
        "correct": correct,
        "n": 1000,
        "train_correct": train,
        "train_n": 1000,
        "fgsm_correct": attacked,
        "eps": 2 / 255,
        "entropy": entropy,
        "orthogonality": 0.8,
        "centre_to_border": ratio,
    }


@pytest.fixture
def steps():
    """Evidence on all data sets on which every claim holds."""
    found = {}
    for seed in range(3):
        for group in ("fashion", "cifar10", "fashion32"):
            arms = {
                "dense learned": record(850),
                "dense frozen": record(750),
                "mobile learned": record(860),
                "mobile frozen": record(850),
                "LCx1 k7 frozen": record(700, ratio=1.05),
                "LCx1 k7 learned": record(830, ratio=2.5),
                **{f"LCx1 k{k} {how}": record(r) for k, r in ((5, 740), (9, 600)) for how in ("frozen",)},
                "LCx1 k5 learned": record(810),
                "LCx1 k9 learned": record(830),
                **{f"{name} learned": record(900) for name in ("resnet50", "wide_resnet50_2", "mobilenet_v2")},
                **{f"{name} frozen": record(882) for name in ("resnet50", "wide_resnet50_2", "mobilenet_v2")},
                "resnext50_32x4d learned": record(900),
                "resnext50_32x4d frozen": record(884),
                **{
                    f"{name} {how}": record(r)
                    for name in ("resnet18", "resnet34")
                    for how, r in (("learned", 900), ("frozen", 740))
                },
            }
            for i, e in enumerate(_EXPANSIONS):
                arms[f"LCx{e} frozen"] = record(800 + 8 * i, train=860, attacked=450, entropy=0.8)
                arms[f"LCx{e} learned"] = record(810 + i, entropy=0.5)
            for e in (4, 64):
                base = arms[f"LCx{e} frozen"]["correct"]
                for between, more in (("relu", 10), ("bn", -2), ("bn-relu", 20)):
                    arms[f"LCx{e} {between} frozen"] = record(base + more)
            for name, found_record in arms.items():
                found_record["correct"] += seed
                found[f"{group}/{name}/seed{seed}"] = dict(found_record)
    return found


def verdicts(steps):
    return {name: judge(steps).verdict for name, judge in PREDICATES.items()}


def put(steps, arm, **values):
    for name in steps:
        if name.split("/")[1] == arm:
            steps[name].update(values)


def swap(steps, arm, by):
    for name in steps:
        if name.split("/")[1] == arm:
            steps[name] = dict(steps[name.replace(arm, by)])


def test_every_claim_can_be_reproduced(steps):
    found = verdicts(steps)
    assert {name for name in found if found[name] != "reproduced"} == set()


@pytest.mark.parametrize(
    ("arm", "by", "names"),
    [
        ("LCx16 frozen", "dense frozen", {"C1 combinations, Fashion-MNIST"}),
        ("dense frozen", "dense learned", {"C1 combinations, Fashion-MNIST", "C1 inverted residuals, Fashion-MNIST"}),
        ("resnet18 frozen", "resnet50 frozen", {"C1 CIFAR-10"}),
        ("LCx128 frozen", "LCx1 frozen", {"C2 CIFAR-10", "C4 CIFAR-10"}),
        ("LCx16 frozen", "dense learned", {"C3 robustness, Fashion-MNIST", "C3 diversity, Fashion-MNIST"}),
        ("LCx128 frozen", "dense learned", {"C3 robustness, CIFAR-10"}),
        ("LCx1 k7 learned", "LCx1 k7 frozen", {"C5 kernel size, Fashion-MNIST", "C5 kernel size, CIFAR-10"}),
        ("LCx16 learned", "dense learned", {"C5 expansion, Fashion-MNIST"}),
        ("LCx4 bn-relu frozen", "LCx4 bn frozen", {"C6 Fashion-MNIST"}),
        ("LCx64 bn-relu frozen", "LCx64 frozen", {"C6 CIFAR-10"}),
    ],
)
def test_verdicts_turn_when_the_control_takes_the_methods_place(steps, arm, by, names):
    swap(steps, arm, by)
    found = verdicts(steps)
    assert {found[name] for name in names} == {"not reproduced"}


def test_learned_filters_that_are_better_refute_the_claim_that_they_hurt(steps):
    put(steps, "LCx16 learned", correct=900)
    assert verdicts(steps)["C4 Fashion-MNIST"] == "not reproduced"
    put(steps, "LCx16 learned", correct=834)
    assert verdicts(steps)["C4 Fashion-MNIST"] == "inconclusive"


def test_no_gain_with_expansion_is_no_reproduction(steps):
    for e in (1, 4, 16):
        put(steps, f"LCx{e} frozen", correct=850 - e)
    assert verdicts(steps)["C2 Fashion-MNIST"] == "not reproduced"
    put(steps, "LCx16 frozen", correct=900)
    assert verdicts(steps)["C2 Fashion-MNIST"] == "direction only"
    steps["fashion/LCx16 frozen/seed0"]["correct"] = 800
    assert verdicts(steps)["C2 Fashion-MNIST"] == "inconclusive"


def test_partial_success_is_called_direction_only(steps):
    put(steps, "LCx16 frozen", correct=800, fgsm_correct=300)
    put(steps, "mobile frozen", correct=800)
    put(steps, "LCx4 bn-relu frozen", correct=822)
    put(steps, "LCx1 k7 learned", centre_to_border=1.1)
    put(steps, "LCx128 frozen", correct=845)
    found = verdicts(steps)
    for name in (
        "C1 combinations, Fashion-MNIST",
        "C1 inverted residuals, Fashion-MNIST",
        "C2 CIFAR-10",
        "C3 robustness, Fashion-MNIST",
        "C5 kernel size, Fashion-MNIST",
        "C6 Fashion-MNIST",
    ):
        assert found[name] == "direction only", name


def test_seeds_that_disagree_are_inconclusive(steps):
    steps["fashion/LCx16 frozen/seed1"]["entropy"] = 0.1
    steps["fashion/LCx4 bn-relu frozen/seed1"]["correct"] = 600
    steps["fashion/LCx16 learned/seed1"]["correct"] = 860
    found = verdicts(steps)
    assert found["C3 diversity, Fashion-MNIST"] == "inconclusive"
    assert found["C5 expansion, Fashion-MNIST"] == "inconclusive"


def test_nothing_measured_is_nothing_judged():
    assert {judge({}).verdict for judge in PREDICATES.values()} == {"not testable here"}
    assert "paper scale" in PREDICATES["C2 CIFAR-10"]({}).reason


def test_smoke_runs_and_every_predicate_reads_it(tmp_path, monkeypatch):
    """Six networks on digits for 55 steps: about 8 seconds on a free core."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    run = Run("smoke", REPRODUCTION.seeds["smoke"], tmp_path, torch.device("cpu"))
    REPRODUCTION.run(run)
    steps = run.steps()
    assert set(steps) == {f"fashion/{arm.name}/seed0" for arm in _SMOKE}
    dense, frozen, lc = (steps[f"fashion/{name}/seed0"] for name in ("dense learned", "dense frozen", "LCx1 frozen"))
    assert dense["frozen"] == 0
    assert dense["correct"] > frozen["correct"]
    # The plain network's spatial weights are LCx1's frozen ones; LCx1 learns one matrix a layer more.
    assert frozen["frozen"] == lc["frozen"] == dense["learned"] - frozen["learned"]
    assert lc["learned"] - frozen["learned"] == 3 * 8 * 8 + 2 * 16 * 16 + 2 * 32 * 32
    assert dense["fgsm_correct"] <= dense["correct"]
    assert len(steps["fashion/LCx1 k7 frozen/seed0"]["variance"]) == 7
    for judge in PREDICATES.values():
        judge(steps)


def test_dry_run_of_the_paper_scale_takes_a_step(tmp_path, monkeypatch):
    """ResNet-LC-20-16x128 and the largest kernels, one step each."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    run = Run("paper", (0,), tmp_path, torch.device("cpu"), claims=frozenset({"C2", "C5"}), dry_run=True)
    REPRODUCTION.run(run)
    assert not run.steps()
