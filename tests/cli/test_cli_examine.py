"""``striate examine``, ``explain``, ``attack`` and ``models`` as a person types them, errors too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from striate.cli import app

FACTORY = """
from striate.testing import sample_network
def network():
    return sample_network()
"""
SMALL = ["--input-size", "3x24x24"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_network_for_tests.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b", "c", "d", "<img src=x>"):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_examine_writes_a_report(folder: Path) -> None:
    done = run("examine", "my_network_for_tests:network", "photos", "--quick", "--out", "out", *SMALL)
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "out/report.json").read_text())
    assert [finding["status"] for finding in report["findings"]] == ["done"] * 7
    assert report["images"]["n"] == 5
    assert any("broken.jpg" in item for item in report["images"]["skipped"])
    page = (folder / "out/report.html").read_text()
    assert "<img src=x>" not in page
    assert len(page) < 5 * 2**20
    assert "report.html" in done.output


def test_examine_with_labels_and_some_probes(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label\na.png,0\nb.png,1\n")
    words = ["--labels", "labels.csv", "--probe", "predictions", "--probe", "speed", "--quick", "--out", "out"]
    done = run("examine", "my_network_for_tests:network", "photos", *words, *SMALL)
    assert done.exit_code == 0, done.output
    findings = json.loads((folder / "out/report.json").read_text())["findings"]
    assert [finding["probe"] for finding in findings] == ["predictions", "speed"]
    assert findings[0]["figures"][0]["name"] == "Accuracy"


def test_explain_draws_pictures_and_prints_the_checks(folder: Path) -> None:
    methods = ["--method", "xgrad-cam", "--method", "input-x-gradient"]
    done = run(
        "explain", "my_network_for_tests:network", "photos/a.png", "photos/b.png", *methods, "--out", "maps", *SMALL
    )
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (folder / "maps").iterdir()) == ["a.png", "b.png"]
    with Image.open(folder / "maps/a.png") as sheet:
        assert sheet.size == (3 * 24 + 2 * 6, 24)
    assert "xgrad-cam" in done.output


def test_attack_prints_controls_and_self_tests(folder: Path) -> None:
    words = ["--attack", "fgsm", "--attack", "pgd", "--attack", "patch", "--attack", "cells"]
    small = ["--eps", "1/255,8/255", "--steps", "3", "--size", "6", "--cell-size", "8", "--out", "attacked"]
    done = run("attack", "my_network_for_tests:network", "photos", *words, *small, *SMALL)
    assert done.exit_code == 0, done.output
    for part in ("random sign", "random patch", "eps 0", "random content"):
        assert part in done.output
    record = json.loads((folder / "attacked/attack.json").read_text())
    assert {"report", "cells"} <= set(record)
    assert (folder / "attacked/patch.png").is_file()


def test_what_was_measured_is_kept_where_the_cells_fail_and_any_cell_size_will_do(folder: Path) -> None:
    words = ["--attack", "fgsm", "--attack", "cells", "--eps", "1/255", "--steps", "2", "--out", "attacked"]
    done = run("attack", "my_network_for_tests:network", "photos", *words, "--cell-size", "7", *SMALL)
    assert done.exit_code == 0, done.output
    assert "3 x 3 cells of 7 x 7 px leave 3 px at the bottom" in done.output.replace("\n", " ")
    (folder / "attacked/attack.json").unlink()
    done = run("attack", "my_network_for_tests:network", "photos", *words, "--cell-size", "99", *SMALL)
    assert done.exit_code == 2
    assert "report" in json.loads((folder / "attacked/attack.json").read_text())


def test_a_patch_alone_is_an_attack(folder: Path) -> None:
    words = ["--attack", "patch", "--steps", "2", "--size", "6", "--out", "attacked"]
    done = run("attack", "my_network_for_tests:network", "photos", *words, *SMALL)
    assert done.exit_code == 0, done.output
    rows = json.loads((folder / "attacked/attack.json").read_text())["report"]["rows"]
    assert [row["attack"] for row in rows] == ["clean", "patch", "random patch"]


@pytest.mark.parametrize("command", ["examine", "explain", "attack"])
def test_where_nothing_can_be_written_is_said_before_anything_is_computed(folder: Path, command: str) -> None:
    done = run(command, "no-such-network", "photos", "--out", "photos/a.png/maps")
    assert done.exit_code == 2
    assert "'--out'" in done.output


def test_models_lists_what_is_embedded() -> None:
    done = run("models")
    assert done.exit_code == 0
    assert "lite0" in done.output
    assert "resnet18" in run("models", "resnet18").output
    assert run("models", "no-such-word").exit_code == 2
    assert "vit_tiny_patch16_224" in run("models", "ViT", "tiny").output
    refused = run("models", "resnet18", "--latency")
    assert refused.exit_code == 2
    assert "leave out the words" in refused.output


def test_a_word_finds_our_networks_in_a_fresh_process() -> None:
    """Here other tests have registered them already."""
    command = [sys.executable, "-m", "striate", "models", "vmamba"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vanilla_vmamba_tiny" in done.stdout.split()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["examine", "resnet81", "photos"], "resnet18"),
        (["examine", "my_network_for_tests:network", "nowhere"], "nowhere"),
        (["examine", "my_network_for_tests:network", "photos", "--probe", "fgmm"], "fgsm"),
        (["examine", "my_network_for_tests:network", "photos", "--input-size", "24"], "CxHxW"),
        (["explain", "my_network_for_tests:network", "photos", "--method", "grad-camm"], "grad-cam"),
        (["explain", "my_network_for_tests:network", "photos", "--target", "7", *SMALL], "0 to 4"),
        (["explain", "my_network_for_tests:network", "photos", "--target", "cat", *SMALL], "class index or name"),
        (["explain", "my_network_for_tests:network", "photos", "--target", "²", *SMALL], "class index or name"),
        (["examine", "my_network_for_tests:network", "photos", "--class-names", "photos/a.png", *SMALL], "UTF-8"),
        (["examine", "my_network_for_tests:network", "photos", "--mean", "nan,0,0", *SMALL], "finite"),
        (["explain", "my_network_for_tests:network", "photos", "--layer", "conv9", *SMALL], "conv"),
        (
            ["explain", "my_network_for_tests:network", "photos", "--input-size", "1x24x24"],
            "cannot be run on one image",
        ),
        (["attack", "my_network_for_tests:network", "photos", "--input-size", "1x24x24"], "cannot be run on one image"),
        (["attack", "my_network_for_tests:network", "photos", "--attack", "fgmm", *SMALL], "fgsm"),
        (["attack", "my_network_for_tests:network", "photos", "--eps", "1/0", *SMALL], "fraction"),
        (["attack", "my_network_for_tests:network", "photos", "--eps", "-1", *SMALL], "eps"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(words: list[str], part: str) -> None:
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert part in done.output
    assert "Traceback" not in done.output


def test_models_lists_those_of_published_papers() -> None:
    shown = run("models").output
    families = (
        "vanilla_vmamba_small",
        "efficient_vmamba_t",
        "mobile_mamba_b4",
        "striate_mobilevit_xxs",
        "uniformer_base",
    )
    assert all(name in shown for name in families)
    assert "50.1 M" in shown
