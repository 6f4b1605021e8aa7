"""The page says what the evidence says, the failures first, and shows hostile text as text."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from striate.cli import app
from striate.engine.files import write_bytes
from striate.errors import RunError
from striate.papers import runner
from striate.papers.base import Judgement, Predicate, Reproduction, Run, Scale
from striate.report import scoreboard
from striate.report.scoreboard import read_entries, render_scoreboard

HOSTILE = "<script>alert(1)</script>"
SCALES: dict[Scale, tuple[int, ...]] = {"smoke": (0,), "laptop": (0,), "paper": (0,)}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


def made(key: str, verdict: str) -> Reproduction:
    def run(run: Run) -> None:
        run.step("one", lambda: {"value": 1.5})
        write_bytes(run.folder / "figures" / "curve.png", PNG)

    def rule(steps):
        return Judgement(verdict, f"value {steps['one']['value']} {HOSTILE}", "control 0.2", "because")  # type: ignore[arg-type]

    return Reproduction(key, run, [Predicate("C1", "the value exceeds one", rule)], SCALES, dict.fromkeys(SCALES, 1.0))


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = {"das": made("das", "reproduced"), "vmamba": made("vmamba", "not reproduced")}
    for module in (scoreboard, runner):
        monkeypatch.setattr(module, "load_reproduction", lambda key: found[key])
    for reproduction in found.values():
        runner.reproduce(reproduction, scale="laptop", claims=["C1"], out=tmp_path)
    runner.reproduce(found["das"], scale="smoke", out=tmp_path)
    return tmp_path


def test_the_page(evidence: Path) -> None:
    entries = read_entries(evidence)
    assert [(entry.paper.key, entry.evidence.scale) for entry in entries] == [("das", "laptop"), ("vmamba", "laptop")]
    page = render_scoreboard(entries)
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    assert body.index("vmamba") < body.index("das")  # what does not hold stands first
    for text in (
        "not reproduced",
        "value 1.5",
        "control 0.2",
        "because",
        "the value exceeds one",
        "+4.47 points top-1",
    ):
        assert text in page
    assert "striate reproduce vmamba --scale laptop" in page
    assert "2 of 52 papers" in page
    assert "xgrad-cam" in page[page.index('id="missing"') :]
    assert HOSTILE not in page
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)  # offline
    assert page.count('data-is="measured"') == page.count("<tr><td>")  # on a narrow screen each cell names itself


def test_the_command(evidence: Path) -> None:
    done = CliRunner().invoke(app, ["scoreboard", str(evidence)])
    assert done.exit_code == 0
    assert "1 reproduced, 1 not reproduced" in done.stdout
    assert (evidence / "scoreboard.html").is_file()
    done = CliRunner().invoke(app, ["scoreboard", str(evidence), "--markdown"])
    short, full = done.stdout.split("\n\n")
    assert short.splitlines() == [
        "| paper | reproduced | not reproduced |",
        "|---|---|---|",
        "| das | C1 | – |",
        "| vmamba | – | C1 |",
    ]
    assert full.count("\n| ") == 2
    assert full.index("| das | C1") < full.index("| vmamba | C1")


def test_no_evidence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="striate reproduce"):
        read_entries(tmp_path)
    done = CliRunner().invoke(app, ["scoreboard", str(tmp_path)])
    assert done.exit_code == 2
    assert "no evidence" in done.stderr
