from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from striate.cli import app
from striate.data import catalogue
from striate.engine import packages
from striate.errors import DataError


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr


def test_everything_is_listed_with_its_place_or_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = catalogue.Dataset("stars", "package", "1,000 stars", "/usr/share/stars", "CC0", "striate data fetch stars")
    missing = catalogue.Dataset("moons", "package", "80 moons", None, "MIT", "striate data fetch moons")
    monkeypatch.setattr(catalogue, "datasets", lambda: [missing, here])
    code, out, _ = call("data")
    assert code == 0
    assert "/usr/share/stars" in out
    assert "striate data fetch stars" not in out
    assert "not here; get it with: striate data fetch moons" in out


def test_every_package_and_generator_is_listed() -> None:
    code, out, _ = call("data", "list")
    assert code == 0
    for name in (*packages.PACKAGES, "photographs", "digits", "mosaic"):
        assert f"  {name}: " in out


def test_what_is_here_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "find", lambda name: tmp_path)
    code, out, err = call("data", "fetch", "fashion-mnist", "cut-outs")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"fashion-mnist: {tmp_path}", f"cut-outs: {tmp_path}"]


def test_nothing_is_fetched_if_one_name_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "fetch", lambda name: pytest.fail("fetched"))
    code, _, err = call("data", "fetch", "cut-outs", "fashionmnist")
    assert code == 2
    assert err == "striate: No data called 'fashionmnist'. Did you mean 'fashion-mnist'? See: striate data\n"


def test_a_client_that_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Path:
        raise DataError("apt-get could not fetch dataset-fashion-mnist: no network")

    monkeypatch.setattr(packages, "find", lambda name: None)
    monkeypatch.setattr(packages, "fetch", refuse)
    code, _, err = call("data", "fetch", "fashion-mnist")
    assert code == 2
    assert err.splitlines() == [
        "fashion-mnist: fetching 31 MB (debian: dataset-fashion-mnist) …",
        "striate: apt-get could not fetch dataset-fashion-mnist: no network",
    ]
