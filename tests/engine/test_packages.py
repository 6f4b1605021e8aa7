"""Finding and fetching data that packages carry. No test here uses the network: the clients are stood in for."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from striate.data.catalogue import datasets
from striate.engine import packages
from striate.engine.packages import PACKAGES, Package, fetch, find, find_file
from striate.errors import DataError

HERE = {name: find(name) is not None for name in PACKAGES}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stand_in(source: str, inside: str = "folder/data.bin") -> Package:
    return Package("thing", source, "thing-data", inside, "A thing", "MIT", 3, "1.0")


def test_the_embedded_network_is_found() -> None:
    assert find_file("lite0").is_file()


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_every_record_is_complete(name: str) -> None:
    package = PACKAGES[name]
    assert package.name == name
    assert package.source in {"pypi", "debian", "npm"}
    assert package.what
    assert package.licence
    assert package.megabytes > 0
    assert not Path(package.inside).is_absolute()
    assert package.version or package.source == "debian"  # Debian's archive keeps one version only


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean 'fashion-mnist'"):
        find("fashion-mnits")


def test_what_is_missing_is_named_with_size_licence_and_command(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "thing", stand_in("debian"))
    assert find("thing") is None
    with pytest.raises(DataError, match=r"A thing is not on this machine.*3 MB, MIT.*striate data fetch thing"):
        find_file("thing")


def test_a_system_wide_install_is_found(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "usr").mkdir()
    monkeypatch.setitem(PACKAGES, "thing", replace(stand_in("debian"), installed_at=str(tmp_path / "usr")))
    assert find("thing") == tmp_path / "usr"
    assert fetch("thing") == tmp_path / "usr"  # nothing is fetched twice


def test_an_installed_python_package_is_found_without_importing_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib" / "thing_data").mkdir(parents=True)
    (tmp_path / "lib" / "thing_data" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "lib" / "thing_data" / "data.bin").write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.setitem(PACKAGES, "thing", stand_in("pypi", "thing_data/data.bin"))
    assert find("thing") == tmp_path / "lib" / "thing_data" / "data.bin"


def wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/data.bin", b"payload")
        archive.writestr("folder/__init__.py", "raise RuntimeError('imported')")


def source_archive(path: Path, top: str) -> None:
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo(f"{top}/folder/data.bin")
        entry.size = 7
        archive.addfile(entry, io.BytesIO(b"payload"))


@pytest.mark.parametrize("kind", ["wheel", "source", "debian", "npm"])
def test_a_package_is_unpacked_into_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    inside = "package/folder/data.bin" if kind == "npm" else "folder/data.bin"
    source = {"wheel": "pypi", "source": "pypi"}.get(kind, kind)
    monkeypatch.setitem(PACKAGES, "thing", stand_in(source, inside))
    commands = []

    def client(command: list[str], package: Package, cwd: Path | None = None) -> None:
        commands.append(command)
        if "download" in command and source == "pypi":
            folder = Path(command[command.index("--dest") + 1])
            if kind == "wheel":
                wheel(folder / "thing_data-1.0-py3-none-any.whl")
            else:
                source_archive(folder / "thing-data-1.0.tar.gz", "thing-data-1.0")
        elif command[0] == "apt-get":
            (cwd / "thing-data_1.0_all.deb").write_bytes(b"deb")
        elif command[0] == "dpkg-deb":
            (Path(command[-1]) / "folder").mkdir()
            (Path(command[-1]) / "folder" / "data.bin").write_bytes(b"payload")
        elif command[0] == "npm":
            source_archive(cwd / "thing-data-1.0.tgz", "package")

    monkeypatch.setattr(packages, "_run", client)
    path = fetch("thing")
    assert path.read_bytes() == b"payload"
    assert find("thing") == path
    assert path.is_relative_to(cache)
    assert [item.name for item in (cache / "packages").iterdir()] == ["thing"]  # no half-made folder is left
    count = len(commands)
    assert fetch("thing") == path
    assert len(commands) == count
    if source != "debian":
        assert any("1.0" in word for word in commands[0])  # the pinned version


def test_debian_lists_are_updated_where_the_first_try_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "thing", stand_in("debian"))
    said = []

    def client(command: list[str], package: Package, cwd: Path | None = None) -> None:
        said.append(command[1])
        if said == ["download"]:
            raise DataError("no such package")
        if command[1] == "download":
            (cwd / "thing.deb").write_bytes(b"deb")
        elif command[0] == "dpkg-deb":
            (Path(command[-1]) / "folder").mkdir()
            (Path(command[-1]) / "folder" / "data.bin").write_bytes(b"payload")

    monkeypatch.setattr(packages, "_run", client)
    fetch("thing")
    assert said == ["download", "update", "download", "--extract"]


def test_another_content_is_refused_and_nothing_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "thing", stand_in("pypi", "folder/other.bin"))

    def client(command: list[str], package: Package, cwd: Path | None = None) -> None:
        wheel(Path(command[command.index("--dest") + 1]) / "thing_data-1.0-py3-none-any.whl")

    monkeypatch.setattr(packages, "_run", client)
    with pytest.raises(DataError, match=r"holds no folder/other.bin"):
        fetch("thing")
    assert list((cache / "packages").iterdir()) == []


def test_an_archive_cannot_write_outside_its_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "thing", stand_in("npm"))

    def client(command: list[str], package: Package, cwd: Path | None = None) -> None:
        with tarfile.open(cwd / "thing.tgz", "w:gz") as archive:
            entry = tarfile.TarInfo("../../../evil")
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))

    monkeypatch.setattr(packages, "_run", client)
    with pytest.raises(tarfile.FilterError):
        fetch("thing")
    assert not list(cache.rglob("evil"))


def test_a_missing_client_and_a_refusal_are_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "thing", stand_in("npm"))
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="needs 'npm', which this machine does not have"):
        fetch("thing")
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    refused = subprocess.CompletedProcess([], 1, "", "line one\nnpm error 404 Not Found\n")
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: refused)
    with pytest.raises(DataError, match="npm could not fetch thing-data: npm error 404 Not Found"):
        fetch("thing")


def test_the_catalogue_lists_everything_and_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "thing", stand_in("debian"))
    listed = {dataset.name: dataset for dataset in datasets()}
    assert listed.keys() >= {*PACKAGES, "photographs", "digits", "mosaic", "placed-objects", "cut-out-scenes"}
    assert listed["thing"].found is None
    assert listed["thing"].get.startswith("striate data fetch thing")
    assert listed["lite0"].kind == "embedded"
    assert listed["lite0"].found is not None
    assert all(dataset.to_dict()["licence"] for dataset in listed.values())
