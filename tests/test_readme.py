"""The README's Python runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from striate.cli import app
from striate.data import small
from striate.engine.packages import find

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=["explain", "attack", "reproduce", "train", "backbone", "freeze", "pair"])
def test_the_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for the size of the training set; a whole smoke reproduction among them takes ten seconds."""
    whole = small.default_set
    few = {True: 256, False: 64}

    def part(train: bool) -> small.LabelledImages:
        data = whole(train)
        n = few[train]
        return small.LabelledImages(data.images[:n], data.labels[:n], data.class_names, data.origin)

    if "mobilenet-v2" in code and find("mobilenet-v2") is None:
        pytest.skip("MobileNetV2's weights: striate data fetch mobilenet-v2")
    if "fit(" in code:
        monkeypatch.setattr(small, "default_set", part)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_the_commands_exist() -> None:
    named = set(re.findall(r"^striate (\w+)|`striate (\w+)", README, flags=re.MULTILINE))
    words = {first or second for first, second in named}
    assert words <= set(get_command(app).commands)  # type: ignore[attr-defined]
