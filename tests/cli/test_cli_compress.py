"""``striate compress`` as a person types it, errors too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from striate import load_model
from striate.cli import app

FACTORY = """
from striate.models.micro import ResNetMicro
def network():
    return ResNetMicro((16, 32), num_classes=2)
"""
SMALL = ["--input-size", "3x32x32", "--repeats", "3"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network_to_compress.py").write_text(FACTORY)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["compress", *words])


@pytest.mark.parametrize(
    "options",
    [
        ["--density", "0.3"],
        ["--flops", "0.5", "--residual", "stage", "--divisor", "4"],
        ["--density", "0.5", "--layers", "erk", "--divisor", "auto"],
        ["--method", "preconfig", "--flops", "1"],
    ],
)
def test_it_prints_what_it_is_worth_and_saves_what_loads_again(folder: Path, options: list[str]) -> None:
    done = run("network_to_compress:network", *options, *SMALL)
    assert done.exit_code == 0, done.output
    for word in ("parameters", "multiply-accumulates", "latency, measured", "times as fast", "cropped = masked"):
        assert word in done.output
    again = load_model("striate-compress/model.safetensors")
    assert again.preprocessing.input_size == (3, 32, 32)
    assert again(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    recipe = json.loads((folder / "striate-compress/recipe.json").read_text())
    assert recipe["architecture"] == "network_to_compress:network"


def test_layers_that_keep_their_widths_are_named_with_the_reason(folder: Path) -> None:
    (folder / "half.py").write_text(
        "import torch\n\n\n"
        "class Half(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.stem, self.conv = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(4, 6, 3)\n"
        "        self.head = torch.nn.Linear(6, 2)\n\n"
        "    def forward(self, x):\n"
        "        return self.head(self.conv(self.stem(x).chunk(2, 1)[0]).mean((2, 3)))\n"
    )
    done = run("half:Half", "--density", "0.7", *SMALL)
    assert "1 of 3 layers keep their widths; first stem: split along channels in the network" in done.output


def test_a_slower_network_is_called_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.engine import latency

    def slower(first: object, second: object, *rest: object, **options: object) -> latency.Comparison:
        return latency.Comparison(1.0, 1.25, 0.8, 0.75, 0.85, 3, 1, False)

    monkeypatch.setattr(latency, "compare_latency", slower)
    assert (
        "SLOWER: smaller on paper, but only 0.80 times as fast"
        in run("network_to_compress:network", "--density", "0.5", *SMALL).output
    )


def test_snip_reads_labelled_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat/a", "cat/b", "dog/a", "dog/b"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / "photos" / f"{name}.png")
    words = ["network_to_compress:network", "--density", "0.5", "--layers", "snip", *SMALL]
    assert run(*words, "--images", "photos").exit_code == 0
    done = run(*words)
    assert done.exit_code == 2
    assert "'--images' of striate compress must be given for snip" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "precorp", "--density", "0.5"], "Did you mean 'precrop'"),
        (["--density", "2"], "in (0, 1]"),
        ([], "'--density' of striate compress must be given, or --flops"),
        (["--density", "0.5", "--divisor", "eight"], "or 'auto'"),
        (["--density", "0.5", "--layers", "best"], "one of synexp"),
        (["--density", "0.5", "--batch-size", "0"], ">= 1"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(words: list[str], message: str) -> None:
    done = run("network_to_compress:network", *words, "--input-size", "3x32x32")
    assert done.exit_code == 2
    assert message in done.output
