from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from striate.cli import app
from striate.cli._jobs import run_side_by_side
from striate.papers import catalogue, runner
from striate.papers.base import Judgement, Predicate, Reproduction, Run

SCALES = {"smoke": (0,), "laptop": (0, 1), "paper": (0,)}


class Fakes:
    """Two fake reproductions; ``fail`` names those whose second step raises."""

    def __init__(self) -> None:
        self.fail: dict[str, BaseException] = {}

    def load(self, key: str | int) -> Reproduction:
        paper = catalogue.find_paper(key)

        def second() -> dict[str, float]:
            if paper.key in self.fail:
                raise self.fail[paper.key]
            return {"value": 2.0}

        def run(run: Run) -> None:
            run.step("one", lambda: {"value": 1.0})
            if run.wants("C2"):
                run.step("two", second)

        rules = [
            Predicate("C1", "one is one", lambda s: Judgement("reproduced", f"{s['one']['value']} [1, 1]", "0")),
            Predicate(
                "C2",
                "two exceeds three",
                lambda s: Judgement("not reproduced", str(s["two"]["value"]), "3", "The control is higher."),
            ),
        ]
        return Reproduction(paper.key, run, rules, SCALES, dict.fromkeys(SCALES, 1.0))  # type: ignore[arg-type]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    monkeypatch.setattr(catalogue, "load_reproduction", fakes.load)
    monkeypatch.setattr(runner, "load_reproduction", fakes.load)
    implemented = property(lambda paper: paper.key in {"das", "fgsm-patch"})
    monkeypatch.setattr(catalogue.Paper, "implemented", implemented)
    return fakes


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    return result.exit_code, result.stdout, result.stderr


def test_a_scoreboard_is_printed_and_the_verdict_is_no_exit_code(fakes: Fakes, tmp_path: Path) -> None:
    code, out, err = call("reproduce", "das", "--out", tmp_path)
    assert code == 0
    for text in ("+4.47 points top-1", "1.0 [1, 1]", "not reproduced", "The control is higher.", "1 reproduced, 1 not"):
        assert text in out
    assert "two …" in err
    assert (tmp_path / "das" / "laptop" / "verdicts.json").is_file()


def test_a_failing_paper_does_not_stop_the_others(fakes: Fakes, tmp_path: Path) -> None:
    fakes.fail["das"] = RuntimeError("no power")
    code, out, err = call("reproduce", "--all", "--out", tmp_path)
    assert code == 1
    assert "step 'two' failed: RuntimeError: no power" in err
    assert "1 of 2 failed to run: das." in err
    assert "fgsm-patch" in out
    assert (tmp_path / "das" / "laptop" / "steps" / "one.json").is_file()


def test_ctrl_c_says_what_is_kept_and_continues(fakes: Fakes, tmp_path: Path) -> None:
    fakes.fail["fgsm-patch"] = KeyboardInterrupt()
    code, out, err = call("reproduce", "das", "fgsm-patch", "--out", tmp_path)
    assert code == 130
    assert f"Finished steps are kept in {tmp_path / 'fgsm-patch' / 'laptop'}" in err
    assert "das" in out
    fakes.fail.clear()
    code, _, err = call("reproduce", "das", "fgsm-patch", "--out", tmp_path)
    assert code == 0
    assert err.count("already measured") == 3


def test_claims_seeds_and_scale_reach_the_run(fakes: Fakes, tmp_path: Path) -> None:
    code, _, _ = call("reproduce", "7", "--claim", "C1", "--seeds", "5", "--scale", "smoke", "--out", tmp_path)
    assert code == 0
    evidence = json.loads((tmp_path / "das" / "smoke" / "evidence.json").read_text())
    assert (evidence["claims"], evidence["seeds"], list(evidence["steps"])) == (["C1"], [0, 1, 2, 3, 4], ["one"])


def test_a_dry_run_keeps_nothing(fakes: Fakes, tmp_path: Path) -> None:
    code, _, err = call("reproduce", "das", "--scale", "paper", "--dry-run", "--out", tmp_path / "out")
    assert code == 0
    assert "nothing was kept" in err
    assert list(tmp_path.iterdir()) == []


def test_markdown_on_request(fakes: Fakes, tmp_path: Path) -> None:
    code, out, _ = call("reproduce", "das", "--out", tmp_path, "--markdown")
    assert code == 0
    assert out.startswith("| paper | claim | published |")
    assert len(out.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--all"),
        (["das", "--all"], "--all"),
        (["fgsm"], "Did you mean 'fgsm-patch'"),
        (["das", "--scale", "huge"], "one of smoke, laptop, paper"),
        (["das", "--data", "/nowhere"], "'data' of reproduce"),
    ],
)
def test_wrong_arguments_are_one_sentence(fakes: Fakes, arguments: list[str], message: str, tmp_path: Path) -> None:
    code, out, err = call("reproduce", *arguments, "--out", tmp_path)
    assert code != 0
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_paper_without_reproduction_is_refused(tmp_path: Path) -> None:
    missing = next(paper.key for paper in catalogue.papers() if not paper.implemented)
    code, _, err = call("reproduce", missing, "--out", tmp_path)
    assert code == 2
    assert "not implemented yet" in err


def test_verify_agrees_then_finds_a_tampered_verdict(fakes: Fakes, tmp_path: Path) -> None:
    call("reproduce", "das", "--out", tmp_path)
    code, out, _ = call("verify", tmp_path)
    assert code == 0
    assert "2 of 2 stored verdicts follow from the evidence." in out
    path = tmp_path / "das" / "laptop" / "verdicts.json"
    path.write_text(path.read_text().replace('"not reproduced"', '"reproduced"'))
    code, out, _ = call("verify", tmp_path)
    assert code == 1
    assert "1 of 2 stored verdicts follow from the evidence." in out
    assert "NO" in out


def test_where_nothing_can_be_written_is_one_sentence(fakes: Fakes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["reproduce", "xgrad-cam", "--scale", "smoke", "--out", str(tmp_path / "file")])
    assert done.exit_code == 2, done.output
    assert "Name a place that can be written to" in done.output
    assert "Traceback" not in done.output


def test_verify_without_evidence_is_one_sentence(tmp_path: Path) -> None:
    code, _, err = call("verify", tmp_path / "nothing")
    assert code == 2
    assert "There is no evidence.json" in err


def test_side_by_side_gives_the_scoreboard_of_one_after_the_other(tmp_path: Path) -> None:
    """Two processes that import PyTorch and run a smoke reproduction: some seconds."""
    keys = ("fgsm-patch", "vmamba")
    options = ("--scale", "smoke", "--claim", "C2")
    code, out, err = call("reproduce", *keys, *options, "--out", tmp_path / "two", "--jobs", "2")
    assert code == 0, err
    assert "2 papers, smoke scale, 2 side by side" in err
    assert all(f"   {key}: " in err for key in keys)
    _, again, progress = call("reproduce", *keys, *options, "--out", tmp_path / "two")
    assert progress.count("already measured") >= 2
    assert out.splitlines() == again.splitlines()


def test_side_by_side_names_what_failed(tmp_path: Path) -> None:
    code, _, err = call("reproduce", "vmamba", "uniformer", "--scale", "paper", "--out", tmp_path, "--jobs", "2")
    assert code == 1
    assert "--data FOLDER" in err  # the child's own sentence
    assert "2 of 2 failed to run: vmamba, uniformer" in err


PARENT = """
from striate.cli import _jobs

_jobs._CHILD = "import os, sys; print('    child', os.getpid(), file=sys.stderr, flush=True); sys.stdin.read()"
_jobs.run_side_by_side({"paper": []}, 1, lambda line: print(line, flush=True), 1)
"""


def test_processes_side_by_side_end_with_their_parent() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PARENT], **pipes, text=True) as parent:  # type: ignore[call-overload]
        child = int(parent.stdout.readline().split()[-1])
        parent.terminate()
        assert parent.wait() == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def test_processes_side_by_side_report_their_lines_and_codes() -> None:
    lines: list[str] = []
    codes = run_side_by_side({"first": ["--version"], "second": ["no-such-command"]}, 2, lines.append, threads=1)
    assert codes["first"] == 0
    assert codes["second"] != 0
