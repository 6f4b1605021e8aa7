"""The runner, on a reproduction small enough to see through: it measures numbers that its seeds draw."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from striate.engine.files import write_json
from striate.engine.stats import bootstrap_mean
from striate.errors import DataError, InputError, RunError
from striate.papers import evidence as evidence_module
from striate.papers import recorded, runner
from striate.papers.base import Judgement, Predicate, Reproduction, Run
from striate.papers.evidence import read_evidence, sources
from striate.papers.runner import judge, reproduce, verify
from striate.papers.scoreboard import markdown_table, reasons, rich_table, summary, text_blocks


class Experiment:
    """A reproduction of xgrad-cam's first two claims that counts its measurements and fails where it is told to."""

    def __init__(self) -> None:
        self.measured: list[str] = []
        self.fail_at: str | None = None
        self.error: BaseException = RuntimeError("the power went")

    def draw(self, name: str, seed: int) -> dict[str, Any]:
        if name == self.fail_at:
            raise self.error
        self.measured.append(name)
        generator = torch.Generator().manual_seed(seed)
        return {"method": torch.rand(8, generator=generator) + 1, "control": torch.rand(8, generator=generator)}

    def run(self, run: Run) -> None:
        run.note("data", {"images": 8})
        for seed in run.seeds:
            if run.wants("C1"):
                run.step(f"first/seed{seed}", partial(self.draw, f"first/seed{seed}", seed))
        if run.wants("C2"):
            run.step("second", lambda: self.draw("second", 100))
            run.figure("bars", partial(Figure, figsize=(1, 1)))

    def reproduction(self) -> Reproduction:
        claims = [
            Predicate("C1", "method above control, mean over seeds", first_beats_control, part="sensitivity"),
            Predicate("C2", "method above control", second_beats_control),
        ]
        scales = {"smoke": (0,), "laptop": (0, 1, 2), "paper": (0, 1, 2)}
        return Reproduction("xgrad-cam", self.run, claims, scales, dict.fromkeys(scales, 0.1))  # type: ignore[arg-type]


def verdict(method: list[float], control: list[float]) -> Judgement:
    better = sum(method) > sum(control)
    return Judgement(
        "reproduced" if better else "not reproduced",
        str(bootstrap_mean(method, resamples=200)),
        f"{sum(control) / len(control):.3g}",
        "" if better else "The control is as good.",
    )


def first_beats_control(steps: Mapping[str, Any]) -> Judgement:
    seeds = [step for name, step in steps.items() if name.startswith("first/")]
    if not seeds:
        raise KeyError("first/*")
    return verdict([v for step in seeds for v in step["method"]], [v for step in seeds for v in step["control"]])


def second_beats_control(steps: Mapping[str, Any]) -> Judgement:
    return verdict(steps["second"]["method"], steps["second"]["control"])


@pytest.fixture(autouse=True)
def fixed_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who edits a method while the tests run must not set their evidence aside."""
    monkeypatch.setattr(evidence_module, "sources", lambda key: "fixed")


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Experiment:
    experiment = Experiment()
    monkeypatch.setattr(runner, "load_reproduction", lambda key: experiment.reproduction())
    return experiment


def content(folder: Path) -> dict[str, Any]:
    """The evidence without what a clock wrote."""
    found = json.loads((folder / "evidence.json").read_text())
    found["steps"] = {name: step["measured"] for name, step in found["steps"].items()}
    return found


def test_a_run_leaves_evidence_figures_and_verdicts(experiment: Experiment, tmp_path: Path) -> None:
    outcome = reproduce("xgrad-cam", out=tmp_path)
    assert outcome.folder == tmp_path / "xgrad-cam" / "laptop"
    found = content(outcome.folder)
    assert found["schema_version"] == 1
    assert (found["paper"], found["scale"], found["seeds"], found["device"]) == (
        "xgrad-cam",
        "laptop",
        [0, 1, 2],
        "cpu",
    )
    assert found["claims"] == ["C1", "C2", "C3", "C4"]
    assert sorted(found["steps"]) == ["first/seed0", "first/seed1", "first/seed2", "second"]
    assert found["setup"] == {"data": {"images": 8}}
    assert found["figures"] == ["bars.png"]
    assert found["environment"]["packages"]["torch"]
    assert found["resumed_under"] == []
    assert [(row.name, row.verdict) for row in outcome.rows] == [("C1 sensitivity", "reproduced"), ("C2", "reproduced")]
    stored = json.loads((outcome.folder / "verdicts.json").read_text())
    assert stored["verdicts"] == [row.to_dict() for row in outcome.rows]


def test_a_row_knows_how_long_its_own_steps_took(experiment: Experiment, tmp_path: Path) -> None:
    outcome = reproduce("xgrad-cam", out=tmp_path)
    seconds = {name: step.seconds for name, step in outcome.evidence.steps.items()}
    first, second = outcome.rows
    assert second.seconds == pytest.approx(seconds["second"], abs=2e-3)
    assert first.seconds == pytest.approx(sum(seconds.values()) - seconds["second"], abs=2e-3)


@pytest.mark.parametrize("killed_at", ["first/seed0", "first/seed1", "second"])
def test_a_killed_run_continues_to_the_same_evidence(experiment: Experiment, tmp_path: Path, killed_at: str) -> None:
    whole = reproduce("xgrad-cam", out=tmp_path / "whole")
    steps = list(experiment.measured)
    experiment.measured.clear()
    experiment.fail_at, experiment.error = killed_at, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        reproduce("xgrad-cam", out=tmp_path / "cut")
    folder = tmp_path / "cut" / "xgrad-cam" / "laptop"
    assert content(folder)["claims"] == []
    assert not (folder / "verdicts.json").exists()
    experiment.fail_at = None
    cut = reproduce("xgrad-cam", out=tmp_path / "cut")
    assert experiment.measured == steps  # each step once, over both runs
    assert whole.folder is not None
    assert content(folder) == content(whole.folder)
    assert [(row.measured, row.verdict) for row in cut.rows] == [(row.measured, row.verdict) for row in whole.rows]


KILLED = """
import os, signal, sys
from pathlib import Path
from striate.papers import evidence
from striate.papers.base import Judgement, Predicate, Reproduction
from striate.papers.runner import reproduce

evidence.sources = lambda key: "fixed"

def two():
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": 2}

def run(run):
    run.step("one", lambda: {"value": os.getpid()})
    run.step("two", two)

marker = Path(sys.argv[1]) / "killed"
rule = Predicate("C1", "any", lambda steps: Judgement("reproduced", str(steps["one"]["value"]), ""))
fake = Reproduction("xgrad-cam", run, [rule], {"laptop": (0,)}, {"laptop": 0.1})
print(os.getpid(), reproduce(fake, out=sys.argv[1]).rows[0].measured)
"""


def test_a_process_that_is_killed_outright_is_continued(tmp_path: Path) -> None:
    """Two processes have to import torch for this: it is the one test of a real SIGKILL."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGKILL
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    process, measured_by = second.stdout.split()
    assert process != measured_by  # the first step is the killed process's own


def test_a_run_that_was_begun_on_other_data_is_not_continued(experiment: Experiment, tmp_path: Path) -> None:
    reproduce("xgrad-cam", out=tmp_path, claims=["C1"])

    def run(run: Run) -> None:
        run.note("data", {"images": 9})
        run.step("second", lambda: experiment.draw("second", 100))

    later = dataclasses.replace(experiment.reproduction(), run=run)
    with pytest.raises(RunError, match=r"begun with data \{'images': 8\}, and now there is \{'images': 9\}"):
        reproduce(later, out=tmp_path)
    assert "second" not in experiment.measured


def test_a_step_that_another_run_writes_is_not_taken_for_a_measurement(experiment: Experiment, tmp_path: Path) -> None:
    def run(run: Run) -> None:
        write_json(run.folder / "steps" / "second.json", {"step": "second", "measured": {}, "seconds": 1})
        run.step("second", lambda: experiment.draw("second", 100))

    with pytest.raises(RunError, match="another run writes into"):
        reproduce(dataclasses.replace(experiment.reproduction(), run=run), out=tmp_path)


def test_a_finished_run_measures_nothing_again(experiment: Experiment, tmp_path: Path) -> None:
    first = reproduce("xgrad-cam", out=tmp_path)
    experiment.measured.clear()
    second = reproduce("xgrad-cam", out=tmp_path)
    assert experiment.measured == []
    assert second.rows == first.rows
    assert second.evidence == first.evidence


def test_a_step_that_draws_from_the_global_generator_continues_the_same(tmp_path: Path) -> None:
    """Resuming skips finished steps; what they drew must not shift what later steps draw."""
    failing = True

    def run(run: Run) -> None:
        run.step("one", lambda: {"value": torch.rand(3)})
        if failing:
            raise KeyboardInterrupt
        run.step("two", lambda: {"value": torch.rand(3), "body": body})
        run.note("outside", torch.rand(1))

    body = 0.5
    rule = Predicate("C1", "any", lambda steps: Judgement("reproduced", str(steps["two"]["value"]), ""))
    fake = Reproduction("xgrad-cam", run, [rule], {"laptop": (0,)}, {"laptop": 0.1})
    with pytest.raises(KeyboardInterrupt):
        reproduce(fake, out=tmp_path / "cut")
    failing = False
    state = torch.get_rng_state()
    cut = reproduce(fake, out=tmp_path / "cut")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    whole = reproduce(fake, out=tmp_path / "whole")
    assert cut.evidence.measured == whole.evidence.measured
    assert cut.folder is not None
    assert whole.folder is not None
    assert content(cut.folder)["setup"] == content(whole.folder)["setup"]


@pytest.mark.parametrize("change", ["source", "package", "seeds"])
def test_steps_of_another_recipe_are_set_aside_with_a_word(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    folder = tmp_path / "xgrad-cam" / "laptop"
    old = reproduce("xgrad-cam", out=tmp_path, seeds=2 if change == "seeds" else None)
    experiment.measured.clear()
    if change == "source":
        monkeypatch.setattr(evidence_module, "sources", lambda key: "something else")
    if change == "package":
        real = recorded.environment()
        other = {**real, "packages": {**real["packages"], "torch": "1.0"}}
        monkeypatch.setattr(recorded, "environment", lambda: other)
    lines: list[str] = []
    new = reproduce("xgrad-cam", out=tmp_path, report=lines.append)
    kept = folder / "set-aside" / old.evidence.recipe
    assert len(experiment.measured) == 4
    assert new.evidence.recipe != old.evidence.recipe
    assert read_evidence(kept / "evidence.json") == old.evidence
    assert (kept / "verdicts.json").is_file()
    assert (kept / "figures" / "bars.png").is_file()
    assert [line for line in lines if "another recipe" in line and str(kept) in line]
    assert {row.folder for row in verify(tmp_path)} == {folder}


def test_another_machine_that_continues_is_recorded(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce("xgrad-cam", out=tmp_path, claims=["C2"])
    real = recorded.environment()
    other = {**real, "machine": {**real["machine"], "cores": 1000}}
    monkeypatch.setattr(recorded, "environment", lambda: other)
    outcome = reproduce("xgrad-cam", out=tmp_path)
    assert outcome.evidence.environment == real
    assert outcome.evidence.resumed_under == (other,)


def test_steps_without_evidence_are_of_no_known_recipe(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "xgrad-cam" / "laptop"
    reproduce("xgrad-cam", out=tmp_path)
    (folder / "evidence.json").unlink()
    experiment.measured.clear()
    lines: list[str] = []
    reproduce("xgrad-cam", out=tmp_path, report=lines.append)
    assert len(experiment.measured) == 4
    assert (folder / "set-aside" / "unreadable" / "steps").is_dir()
    assert any("measured anew" in line for line in lines)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"step": "second"}', '{"measured": {}, "seconds": 1}'])
def test_a_damaged_step_is_set_aside_and_measured_again(experiment: Experiment, tmp_path: Path, damage: str) -> None:
    first = reproduce("xgrad-cam", out=tmp_path)
    assert first.folder is not None
    (first.folder / "steps" / "second.json").write_text(damage)
    experiment.measured.clear()
    lines: list[str] = []
    again = reproduce("xgrad-cam", out=tmp_path, report=lines.append)
    assert experiment.measured == ["second"]
    assert again.evidence.measured == first.evidence.measured
    assert (first.folder / "set-aside" / "damaged" / "second.json").read_text() == damage
    assert any("second.json is damaged" in line for line in lines)


def test_claims_choose_steps_and_are_added_up(experiment: Experiment, tmp_path: Path) -> None:
    one = reproduce("xgrad-cam", out=tmp_path, claims=["c2"])
    assert experiment.measured == ["second"]
    assert [(row.claim, row.verdict) for row in one.rows] == [("C1", "not testable here"), ("C2", "reproduced")]
    assert one.rows[0].reason == "This claim was left out of the run."
    both = reproduce("xgrad-cam", out=tmp_path, claims=["C1"])
    assert experiment.measured == ["second", "first/seed0", "first/seed1", "first/seed2"]
    assert both.evidence.claims == ("C1", "C2")
    assert [row.verdict for row in both.rows] == ["reproduced", "reproduced"]


def test_a_claim_that_was_cut_off_is_not_judged_by_a_later_run_of_another(
    experiment: Experiment, tmp_path: Path
) -> None:
    experiment.fail_at = "first/seed2"
    with pytest.raises(RunError):
        reproduce("xgrad-cam", out=tmp_path, claims=["C1"])
    outcome = reproduce("xgrad-cam", out=tmp_path, claims=["C2"])
    assert "first/seed1" in outcome.evidence.steps
    assert [row.verdict for row in outcome.rows] == ["not testable here", "reproduced"]


def test_a_failing_step_is_named_and_earlier_ones_are_kept(experiment: Experiment, tmp_path: Path) -> None:
    experiment.fail_at = "second"
    with pytest.raises(RunError, match=r"xgrad-cam: step 'second' failed: RuntimeError: the power went"):
        reproduce("xgrad-cam", out=tmp_path)
    assert len(content(tmp_path / "xgrad-cam" / "laptop")["steps"]) == 3
    experiment.error = DataError("Fashion-MNIST is not on this machine.")
    with pytest.raises(RunError, match=r"step 'second' failed: Fashion-MNIST is not on this machine\.$"):
        reproduce("xgrad-cam", out=tmp_path)


def test_a_failure_between_the_steps_is_a_run_error(tmp_path: Path) -> None:
    def run(run: Run) -> None:
        raise ValueError("no such layer")

    fake = Reproduction("xgrad-cam", run, [], {"smoke": (0,)}, {"smoke": 0.1})
    with pytest.raises(RunError, match="xgrad-cam failed between its steps: ValueError: no such layer"):
        reproduce(fake, scale="smoke", out=tmp_path)


def test_two_steps_of_one_name_are_an_error(tmp_path: Path) -> None:
    def run(run: Run) -> None:
        run.step("a/b", lambda: {"value": 1})
        run.step("a--b", lambda: {"value": 2})

    fake = Reproduction("xgrad-cam", run, [], {"smoke": (0,)}, {"smoke": 0.1})
    with pytest.raises(RunError, match="two steps are called 'a--b'"):
        reproduce(fake, scale="smoke", out=tmp_path)


def test_new_measurements_withdraw_old_verdicts(experiment: Experiment, tmp_path: Path) -> None:
    first = reproduce("xgrad-cam", out=tmp_path, claims=["C2"])
    assert first.folder is not None
    experiment.fail_at = "first/seed1"
    with pytest.raises(RunError):
        reproduce("xgrad-cam", out=tmp_path)
    assert not (first.folder / "verdicts.json").exists()


def test_smoke_gives_figures_but_no_verdict(experiment: Experiment, tmp_path: Path) -> None:
    outcome = reproduce("xgrad-cam", scale="smoke", out=tmp_path)
    assert {row.verdict for row in outcome.rows} == {"not judged"}
    assert all(row.measured for row in outcome.rows)
    assert not any(row.reason for row in outcome.rows)


def test_a_dry_run_keeps_nothing(experiment: Experiment, tmp_path: Path) -> None:
    outcome = reproduce("xgrad-cam", scale="paper", out=tmp_path / "out", dry_run=True)
    assert outcome.folder is None
    assert outcome.rows == ()
    assert len(outcome.evidence.steps) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_leaves_earlier_evidence_alone(experiment: Experiment, tmp_path: Path) -> None:
    before = reproduce("xgrad-cam", out=tmp_path)
    assert before.folder is not None
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    reproduce("xgrad-cam", out=tmp_path, dry_run=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_predicate_that_cannot_read_the_evidence_of_its_claim_is_an_error(tmp_path: Path) -> None:
    rule = Predicate("C1", "reads a step that nobody measured", lambda steps: steps["absent"], part="theorem")
    fake = Reproduction("xgrad-cam", lambda run: None, [rule], {"laptop": (0,)}, {"laptop": 0.1})
    with pytest.raises(RunError, match="the predicate of C1 theorem cannot judge this evidence: KeyError: 'absent'"):
        reproduce(fake, out=tmp_path)
    assert reproduce(fake, out=tmp_path / "other", claims=["C2"]).rows[0].verdict == "not testable here"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "huge"}, "'scale' of xgrad-cam must be one of smoke, laptop, paper"),
        ({"claims": ["C9"]}, "'claim' of xgrad-cam must be one of C1, C2, C3, C4"),
        ({"seeds": 0}, "'seeds' of reproduce must be >= 1"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"device": "warp"}, "'device' of reproduce"),
        ({"data": "/nowhere"}, "'data' of reproduce must be a folder that exists"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    experiment: Experiment, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        reproduce("xgrad-cam", out=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("asked", "given"), [(None, (0, 1, 2)), (2, (0, 1)), (5, (0, 1, 2, 3, 4)), ([7, 9], (7, 9))])
def test_seeds_are_counted_or_named(experiment: Experiment, tmp_path: Path, asked: Any, given: tuple[int, ...]) -> None:
    assert reproduce("xgrad-cam", out=tmp_path, seeds=asked, claims=["C2"]).evidence.seeds == given


def test_verify_agrees_with_an_honest_run(experiment: Experiment, tmp_path: Path) -> None:
    reproduce("xgrad-cam", out=tmp_path)
    reproduce("xgrad-cam", scale="smoke", out=tmp_path)
    experiment.measured.clear()
    rows = verify(tmp_path)
    assert [(row.scale, row.claim, row.stored, row.same) for row in rows] == [
        ("laptop", "C1 sensitivity", "reproduced", True),
        ("laptop", "C2", "reproduced", True),
        ("smoke", "C1 sensitivity", "not judged", True),
        ("smoke", "C2", "not judged", True),
    ]
    assert experiment.measured == []


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("field", ["verdict", "measured", "control", "published"])
def test_verify_detects_a_tampered_verdict(experiment: Experiment, tmp_path: Path, field: str) -> None:
    folder = reproduce("xgrad-cam", out=tmp_path).folder
    assert folder is not None
    edit(folder / "verdicts.json", lambda value: value["verdicts"][1].update({field: "not reproduced"}))
    first, second = verify(folder)
    assert first.same
    assert not second.same
    assert field in second.note
    assert second.recomputed == "reproduced"


def test_verify_detects_evidence_that_changed_after_it_was_judged(experiment: Experiment, tmp_path: Path) -> None:
    folder = reproduce("xgrad-cam", out=tmp_path).folder
    assert folder is not None
    edit(folder / "evidence.json", lambda value: value["steps"]["second"]["measured"].update(control=[9.0] * 8))
    rows = verify(folder)
    assert not any(row.same for row in rows)
    assert rows[1].recomputed == "not reproduced"
    assert all("evidence changed" in row.note for row in rows)


def test_verify_detects_invented_and_missing_verdicts(experiment: Experiment, tmp_path: Path) -> None:
    folder = reproduce("xgrad-cam", out=tmp_path).folder
    assert folder is not None
    edit(folder / "verdicts.json", lambda value: value["verdicts"][1].update(claim="C4"))
    rows = {row.claim: row for row in verify(folder)}
    assert rows["C1 sensitivity"].same
    assert (rows["C2"].stored, rows["C2"].same) == (None, False)
    assert (rows["C4"].recomputed, rows["C4"].same) == (None, False)
    (folder / "verdicts.json").unlink()
    assert not any(row.same for row in verify(folder))


def test_verify_does_not_judge_a_run_that_was_cut_off(experiment: Experiment, tmp_path: Path) -> None:
    experiment.fail_at = "second"
    with pytest.raises(RunError):
        reproduce("xgrad-cam", out=tmp_path)
    (row,) = verify(tmp_path)
    assert not row.same
    assert "cut off" in row.note


@pytest.mark.parametrize(
    ("damage", "message"),
    [("{", "damaged"), ("{}", "not evidence"), ('{"schema_version": 2}', "schema_version")],
)
def test_verify_names_damaged_evidence(experiment: Experiment, tmp_path: Path, damage: str, message: str) -> None:
    folder = reproduce("xgrad-cam", out=tmp_path).folder
    assert folder is not None
    (folder / "evidence.json").write_text(damage)
    reproduce("xgrad-cam", out=tmp_path / "sound")
    rows = verify(tmp_path)
    assert len(rows) == 3
    (bad,) = (row for row in rows if not row.same)
    assert message in bad.note
    assert bad.folder == folder


def test_verify_wants_evidence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There is no evidence\.json"):
        verify(tmp_path)


def test_a_verdict_flips_when_method_and_control_change_places(experiment: Experiment, tmp_path: Path) -> None:
    outcome = reproduce("xgrad-cam", out=tmp_path)
    step = outcome.evidence.steps["second"]
    swapped = step.model_copy(
        update={"measured": {"method": step.measured["control"], "control": step.measured["method"]}}
    )
    evidence = outcome.evidence.model_copy(update={"steps": {**outcome.evidence.steps, "second": swapped}})
    assert [row.verdict for row in judge(experiment.reproduction(), evidence)] == ["reproduced", "not reproduced"]


def test_the_recipe_counts_methods_and_not_other_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "striate"
    source = Path(evidence_module.__file__).parents[1]
    for part in ("errors.py", "engine", "papers"):
        copy = shutil.copytree if (source / part).is_dir() else shutil.copy
        root.mkdir(exist_ok=True)
        copy(source / part, root / part)
    monkeypatch.setattr(evidence_module, "__file__", str(root / "papers" / "evidence.py"))
    before = sources("xgrad-cam")
    other_papers = ("papers/das.py", "papers/explainable_robust_imagenet.py")
    for harmless in (*other_papers, "papers/scoreboard.py", "papers/judge.py", "papers/catalogue.toml"):
        with (root / harmless).open("a") as file:
            file.write("\n# another line\n")
    assert sources("xgrad-cam") == before
    for telling in ("papers/xgrad_cam.py", "papers/base.py", "papers/measure.py", "engine/stats.py"):
        with (root / telling).open("a") as file:
            file.write("\n# another line\n")
        after = sources("xgrad-cam")
        assert after != before
        before = after
    whole = sources("explainable-robust")
    with (root / "papers/explainable_robust_imagenet.py").open("a") as file:
        file.write("\n# another line\n")
    assert sources("explainable-robust") != whole


def test_an_outcome_is_short_to_look_at(experiment: Experiment, tmp_path: Path) -> None:
    outcome = reproduce("xgrad-cam", out=tmp_path)
    assert repr(outcome) == f"<Outcome xgrad-cam at laptop scale: 2 reproduced; {outcome.folder}>"
    dry = reproduce("xgrad-cam", out=tmp_path, dry_run=True)
    assert repr(dry) == "<Outcome xgrad-cam at laptop scale: dry run of 4 steps>"


def test_scoreboards_show_what_the_rows_say(experiment: Experiment, tmp_path: Path) -> None:
    from rich.console import Console

    outcome = reproduce("xgrad-cam", out=tmp_path, claims=["C2"])
    console = Console(width=200, record=True, file=(tmp_path / "sink").open("w"))
    console.print(rich_table(outcome.rows))
    shown = console.export_text()
    markdown = markdown_table(outcome.rows)
    for text in (
        "C1 sensitivity",
        "not testable here",
        "reproduced",
        outcome.rows[1].measured,
        outcome.rows[1].control,
    ):
        assert text in shown
        assert text in markdown
    narrow = text_blocks(outcome.rows, 60)
    assert max(len(line) for line in narrow.splitlines()) <= 60
    assert " ".join(outcome.rows[1].measured.split()) in " ".join(narrow.split())
    assert len(markdown.splitlines()) == 4
    assert len({line.count("|") for line in markdown.splitlines()}) == 1
    assert reasons(outcome.rows) == ["xgrad-cam C1 sensitivity, not testable here: This claim was left out of the run."]
    assert summary(outcome.rows) == "1 reproduced, 1 not testable here"
