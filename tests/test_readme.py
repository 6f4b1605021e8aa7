"""The README's Python runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from striate.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=["explain", "attack", "reproduce"])
def test_the_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each works on the embedded ImageNet network; the last is a whole smoke reproduction, some ten seconds."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_the_commands_exist() -> None:
    named = set(re.findall(r"^striate (\w+)|`striate (\w+)", README, flags=re.MULTILINE))
    words = {first or second for first, second in named}
    assert words <= set(get_command(app).commands)  # type: ignore[attr-defined]
