"""Evidence on disk: what one reproduction measured at one scale, and the recipe that it was measured by."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from striate.engine.files import read_json, write_json
from striate.engine.record import fingerprint
from striate.errors import RunError
from striate.papers.base import Scale

__all__ = [
    "SET_ASIDE",
    "Evidence",
    "Step",
    "read_evidence",
    "recipe",
    "set_aside",
    "set_aside_step",
    "sources",
]

SET_ASIDE = "set-aside"

_METHODS = (
    "errors.py",
    "layers",
    "data",
    "engine",
    "models",
    "explain",
    "stress",
    "compress",
    "learn",
    "theory",
    "tasks",
)
_MACHINERY = frozenset({"__init__.py", "catalogue.py", "evidence.py", "judge.py", "runner.py", "scoreboard.py"})


class Step(BaseModel):
    """One finished measurement.

    Attributes:
        measured: what it gave, as JSON.
        seconds: how long it took.
    """

    model_config = ConfigDict(frozen=True)

    measured: dict[str, Any]
    seconds: float


class Evidence(BaseModel):
    """All that a verdict rests on.

    Attributes:
        schema_version: of this file's format.
        paper: key.
        scale, seeds, device: what was run.
        claims: those whose measurement came to its end; empty while the first run is under way.
        recipe: fingerprint of sources, package versions, seeds, scale and device (:func:`recipe`).
        setup: facts that the reproduction noted: data, networks, sizes.
        environment: versions, machine and git state under which the first step was measured.
        resumed_under: other environments under which later steps were measured; usually empty.
        steps: step name -> measurement.
        figures: file names under ``figures/``.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    paper: str
    scale: Scale
    seeds: tuple[int, ...]
    device: str
    claims: tuple[str, ...]
    recipe: str
    setup: dict[str, Any]
    environment: dict[str, Any]
    resumed_under: tuple[dict[str, Any], ...] = ()
    steps: dict[str, Step]
    figures: tuple[str, ...]

    @property
    def measured(self) -> dict[str, Any]:
        """Step name -> what it measured: all that a predicate sees."""
        return {name: step.measured for name, step in self.steps.items()}

    @property
    def seconds(self) -> float:
        """Sum over the steps."""
        return sum(step.seconds for step in self.steps.values())

    @property
    def mark(self) -> str:
        """Fingerprint of what was measured: a stored verdict names the evidence that it was given on."""
        return fingerprint({"scale": self.scale, "seeds": self.seeds, "steps": self.measured})

    def write(self, folder: Path) -> None:
        """Write ``evidence.json`` into ``folder``, whole or not at all."""
        write_json(folder / "evidence.json", self.model_dump())


def read_evidence(path: Path) -> Evidence:
    """Read an ``evidence.json``.

    Raises:
        RunError: it is missing, damaged, or of a format that this version does not know.
    """
    try:
        return Evidence.model_validate(read_json(path))
    except FileNotFoundError:
        raise RunError(f"There is no evidence at {path}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{path} is not evidence that this version can read: {where}: {first['msg']}.") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from error


def recipe(key: str, *, scale: Scale, seeds: tuple[int, ...], device: str, environment: dict[str, Any]) -> str:
    """Return the fingerprint of everything that could change a measurement.

    Which claims are wanted is no part of it: they choose among steps and change none.

    Args:
        key: of the paper.
        scale, seeds, device: what is to be run.
        environment: as :func:`striate.engine.record.environment` gives it; its package versions count.
    """
    packages = {name: version for name, version in environment["packages"].items() if name != "striate"}
    return fingerprint(
        {"sources": sources(key), "packages": packages, "scale": scale, "seeds": list(seeds), "device": device}
    )


def sources(key: str) -> str:
    """Return a hash of the code that a reproduction can use: every method below it, and its own module.

    Other papers' modules and the machinery that runs and judges do not count, so that a new paper or a new
    scoreboard leaves measured evidence valid.
    """
    root = Path(__file__).parents[1]
    files = [path for part in _METHODS for path in _source_files(root / part)]
    files += [
        path
        for path in _source_files(root / "papers")
        if path.name not in _MACHINERY and _paper_of(path.stem) in {None, key}
    ]
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def set_aside(folder: Path, name: str) -> Path:
    """Move all that a run wrote in ``folder`` into ``set-aside/NAME`` below it, and return that folder."""
    target = _unused(folder / SET_ASIDE / name)
    target.mkdir(parents=True)
    # The evidence goes last: after a kill in between the old recipe still stands, and the next run moves the rest.
    for item in ("verdicts.json", "figures", "steps", "evidence.json"):
        if (folder / item).exists():
            os.replace(folder / item, target / item)
    return target


def set_aside_step(path: Path) -> Path:
    """Move one damaged step file out of the way, and return where it is now."""
    folder = path.parents[1] / SET_ASIDE / "damaged"
    folder.mkdir(parents=True, exist_ok=True)
    target = _unused(folder / path.name)
    os.replace(path, target)
    return target


def _unused(path: Path) -> Path:
    return next(
        candidate
        for count in itertools.count(1)
        if not (candidate := path if count == 1 else path.with_name(f"{path.name}-{count}")).exists()
    )


def _source_files(path: Path) -> list[Path]:
    kinds = {".py", ".cpp", ".hpp"}
    return [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.suffix in kinds)


def _paper_of(stem: str) -> str | None:
    """Return the key of the paper that a module is of, as ``das`` and ``das_dogs`` would be of das, or None."""
    from striate.papers.catalogue import papers

    name = stem.replace("_", "-")
    return next((paper.key for paper in papers() if f"{name}-".startswith(f"{paper.key}-")), None)
