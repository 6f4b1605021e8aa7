"""``striate pair`` as a person types it, errors too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from striate.cli import app

# Each knows half of the images by the half of the picture that it looks at; "wide" costs more and knows all.
NETWORKS = """
import torch
from torch import nn
from striate.engine.model import Preprocessing, VisionModel

class Half(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.rows, self.cost = rows, nn.Conv2d(3, width, 3)

    def forward(self, x):
        x = x + 0 * self.cost(x).mean()
        red, green = x[:, 0, self.rows].mean((1, 2)), x[:, 1, self.rows].mean((1, 2))
        return 20 * torch.stack([red - green, green - red], 1)

def make(rows, width):
    preprocessing = Preprocessing((3, 32, 32), (0.0,) * 3, (1.0,) * 3, crop=1.0)
    return VisionModel(Half(rows, width), preprocessing, class_names=("green-less", "green"))

def upper(): return make(slice(0, 16), 2)
def lower(): return make(slice(16, 32), 4)
def wide(): return make(slice(0, 32), 64)
def three():
    model = make(slice(0, 32), 2)
    model.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    model.class_names = None
    return model
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks_to_pair.py").write_text(NETWORKS)
    for i in range(60):
        label = i % 2
        pixels = np.zeros((32, 32, 3), dtype=np.uint8)
        rows = slice(0, 16) if i % 4 < 2 else slice(16, 32)
        pixels[rows, :, label] = 120
        path = tmp_path / "photos" / ("green-less", "green")[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path


def run(*words: str) -> Result:
    names = [f"networks_to_pair:{word}" if word.isalpha() and word in NETWORKS else word for word in words]
    return CliRunner().invoke(app, ["pair", *names])


def test_it_chooses_judges_and_saves(folder: Path) -> None:
    done = run("lower", "upper", "--images", "photos", "--against", "wide")
    assert done.exit_code == 0, done.output
    record = json.loads((folder / "striate-pair/pair.json").read_text())
    assert (record["first"], record["second"]) == ("networks_to_pair:upper", "networks_to_pair:lower")
    judged = record["judged"]
    assert judged["accuracy"] == judged["union"] == 1.0
    assert 0.2 < judged["usage"] < 0.8
    macs = {network["name"][17:]: network["macs"] for network in record["networks"]}
    assert judged["macs"] == pytest.approx(macs["upper"] + judged["usage"] * macs["lower"])
    for word in ("complementarity of", "100.0 % right", "against networks_to_pair:wide alone: +0.0", "DualCNN(a, b"):
        assert word in done.output


def test_without_postcheck_and_by_another_score(folder: Path) -> None:
    done = run("lower", "upper", "--images", "photos", "--score", "entropy", "--no-postcheck", "--limit", "50")
    assert done.exit_code == 0, done.output
    record = json.loads((folder / "striate-pair/pair.json").read_text())
    assert (record["kind"], record["postcheck"], record["judged"]["n"]) == ("entropy", False, 25)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["upper"], "two networks or more"),
        (["upper", "upper"], "all different"),
        (["upper", "lower", "--against", "upper"], "all different"),
        (["upper", "three"], "needs the same classes"),
        (["upper", "lower", "--score", "diff"], "Did you mean 'difference'"),
        (["upper", "lower", "--limit", "30"], "at least 40 labelled images"),
    ],
)
def test_mistakes_get_one_sentence(words: list[str], message: str) -> None:
    done = run(*words, "--images", "photos")
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_images_without_labels_are_refused(folder: Path) -> None:
    flat = folder / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((folder / "photos").rglob("*.png"))):
        path.rename(flat / f"{i}.png")
    done = run("upper", "lower", "--images", "flat")
    assert done.exit_code == 2
    assert "labelled images" in " ".join(done.output.split())


def test_labels_of_another_order_are_noticed(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "photos").rglob("*.png"))
    table = folder / "labels.csv"
    table.write_text("file,label\n" + "\n".join(f"{name},{i % 2}" for i, name in enumerate(names)))
    flat = folder / "flat"
    flat.mkdir()
    for path in (folder / "photos").rglob("*.png"):
        path.rename(flat / path.name)
    done = run("upper", "lower", "--images", "flat", "--labels", "labels.csv")
    assert done.exit_code != 0
    assert "No network is right more often than by chance" in " ".join(done.output.split())
