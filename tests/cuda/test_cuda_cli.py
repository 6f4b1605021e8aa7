"""The commands with ``--device``, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from striate.cli import app
from striate.data.named_entities import named_entities
from striate.data.tagged import write_tagged
from striate.tasks.tagging.scheme import bioes_to_bio

FACTORY = """
from torch import nn
from striate.engine.model import Preprocessing, VisionModel
from striate.models.micro import ResNetMicro
from striate.testing import sample_network

def network():
    return sample_network()

def small():
    return ResNetMicro((16, 32), num_classes=2)

class Half(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.rows, self.cost = rows, nn.Conv2d(3, width, 3)

    def forward(self, x):
        import torch
        x = x + 0 * self.cost(x).mean()
        red, green = x[:, 0, self.rows].mean((1, 2)), x[:, 1, self.rows].mean((1, 2))
        return 20 * torch.stack([red - green, green - red], 1)

def half(rows, width):
    preprocessing = Preprocessing((3, 32, 32), (0.0,) * 3, (1.0,) * 3, crop=1.0)
    return VisionModel(Half(rows, width), preprocessing, class_names=("green-less", "green"))

def upper(): return half(slice(0, 16), 2)
def lower(): return half(slice(16, 32), 4)
"""
SMALL = ["--input-size", "3x24x24"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks_on_a_gpu.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in "abcde":
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path


def run(device: torch.device, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--device", str(device)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    return done.output


def test_examine_the_embedded_network(folder, device) -> None:
    run(device, "examine", "--quick", "--out", "out")
    report = json.loads((folder / "out/report.json").read_text())
    assert [finding["status"] for finding in report["findings"]] == ["done"] * len(report["findings"])
    machine = report["environment"]["machine"]
    assert machine["gpu"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else None)
    speed = next(finding for finding in report["findings"] if finding["probe"] == "speed")
    assert ("CPU threads" if device.type == "cpu" else torch.cuda.get_device_name()) in speed["headline"]
    failed = [
        (finding["probe"], check["statement"])
        for finding in report["findings"]
        for check in finding["checks"]
        if check["passed"] is False and check["name"] != "quiet machine"
    ]
    on_the_cpu = examined_here(folder)
    assert {probe for probe, _ in failed} <= on_the_cpu, failed
    assert (folder / "out/report.html").stat().st_size < 5 * 2**20


def examined_here(folder: Path) -> set[str]:
    """Probes with a check that fails on the CPU too."""
    done = CliRunner().invoke(app, ["examine", "--quick", "--out", "here"])
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "here/report.json").read_text())
    return {f["probe"] for f in report["findings"] if any(check["passed"] is False for check in f["checks"])}


def test_explain(folder, device) -> None:
    methods = [word for method in ("xgrad-cam", "rise", "integrated-gradients") for word in ("--method", method)]
    out = run(device, "explain", "networks_on_a_gpu:network", "photos/a.png", *methods, "--out", "maps", *SMALL)
    assert "xgrad-cam" in out
    assert (folder / "maps/a.png").is_file()


def test_attack(folder, device) -> None:
    words = [word for attack in ("fgsm", "pgd", "patch", "cells") for word in ("--attack", attack)]
    small = ["--eps", "1/255,8/255", "--steps", "3", "--size", "6", "--cell-size", "8", "--out", "attacked"]
    out = run(device, "attack", "networks_on_a_gpu:network", "photos", *words, *small, *SMALL)
    for part in ("random sign", "random patch", "eps 0", "random content"):
        assert part in out
    assert {"report", "cells"} <= set(json.loads((folder / "attacked/attack.json").read_text()))


@pytest.mark.parametrize(
    "options", [["--density", "0.3"], ["--flops", "0.5", "--residual", "stage", "--divisor", "auto"]]
)
def test_compress(folder, device, options) -> None:
    words = ["networks_on_a_gpu:small", *options, "--input-size", "3x32x32", "--repeats", "3"]
    out = run(device, "compress", *words)
    for word in ("parameters", "latency, measured", "cropped = masked"):
        assert word in out
    assert (folder / "striate-compress/model.safetensors").is_file()


def test_pair(folder, device) -> None:
    for i in range(60):
        pixels = np.zeros((32, 32, 3), dtype=np.uint8)
        pixels[slice(0, 16) if i % 4 < 2 else slice(16, 32), :, i % 2] = 120
        path = folder / "labelled" / ("green-less", "green")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    run(device, "pair", "networks_on_a_gpu:lower", "networks_on_a_gpu:upper", "--images", "labelled")
    record = json.loads((folder / "striate-pair/pair.json").read_text())
    assert record["judged"]["accuracy"] == record["judged"]["union"] == 1.0


def test_tag(folder, device) -> None:
    for part, n in (("train", 40), ("dev", 12)):
        made = [item.with_tags(bioes_to_bio(item.tags or ())) for item in named_entities(part, n).sentences]
        write_tagged(folder / f"{part}.conll", made)
    sizes = ["--hidden", "12", "--word-dim", "10", "--char-filters", "6", "--epochs", "2", "--lr", "0.05"]
    out = run(device, "tag", "train", "train.conll", *sizes, "--test", "dev.conll", "--out", "m")
    assert "best on held-out text" in out
    assert run(device, "tag", "evaluate", "dev.conll", "--model", "m").startswith("processed")
    there = run(device, "tag", "predict", "dev.conll", "--model", "m")
    assert there == run(torch.device("cpu"), "tag", "predict", "dev.conll", "--model", "m")


@pytest.mark.parametrize("name", ["cuda:77", "warp"])
def test_a_device_that_is_not_there_gets_one_sentence(name) -> None:
    commands = (
        ["explain", "networks_on_a_gpu:network", "photos/a.png", *SMALL],
        ["examine", "--quick"],
        ["reproduce", "das", "--scale", "smoke"],
    )
    for words in commands:
        done = CliRunner().invoke(app, [*words, "--device", name])
        assert done.exit_code in {1, 2}
        assert "'device' of" in " ".join(done.output.split())
        assert "Traceback" not in done.output
