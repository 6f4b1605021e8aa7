"""A run that can be killed at any instant: it keeps the evidence on disk up to date and continues what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from striate.engine.files import read_json
from striate.engine.record import environment, fingerprint
from striate.engine.state import seeded
from striate.errors import RunError, StriateError
from striate.papers.base import Reproduction, Run
from striate.papers.catalogue import find_paper
from striate.papers.evidence import Evidence, Step, read_evidence, recipe, set_aside, set_aside_step

__all__ = ["RecordedRun"]


@dataclass
class RecordedRun(Run):
    """A :class:`Run` of one paper, with its evidence.

    Making it opens the folder: evidence of the same recipe is continued, any other is set aside, and so is every step
    file that cannot be read.

    Attributes:
        paper: key.
    """

    paper: str = ""
    _recipe: str = ""
    _records: dict[str, Step] = field(default_factory=dict)
    _finished: frozenset[str] = frozenset()
    _now: dict[str, Any] = field(default_factory=dict)
    _environment: dict[str, Any] = field(default_factory=dict)
    _resumed_under: list[dict[str, Any]] = field(default_factory=list)
    _asked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._now = self._environment = environment()
        self._recipe = recipe(
            self.paper,
            scale=self.scale,
            seeds=tuple(self.seeds),
            device=self.device.type,
            environment=self._now,
        )
        if not self.dry_run:
            self._continue()
            self._save()

    def perform(self, reproduction: Reproduction) -> Evidence:
        """Run to the end and return the evidence.

        Raises:
            RunError: a step, or what stands between the steps, failed.
        """
        try:
            # Nothing outside a step should draw at random; if something does, it draws the same in a continued run.
            with seeded(0):
                reproduction.run(self)
        except RunError:
            raise
        except Exception as error:
            raise RunError(f"{self.paper} failed between its steps: {_named(error)}") from error
        wanted = self.claims if self.claims is not None else {claim.id for claim in find_paper(self.paper).claims}
        self._finished |= wanted
        self._save()
        return self.evidence()

    def note(self, name: str, value: Any) -> None:
        """Record a fact of the set-up.

        Raises:
            RunError: it is another one than in the run that is continued: data that was fetched in between, say.
        """
        before = self.setup.get(name, value)
        if fingerprint(before) != fingerprint(value):
            raise RunError(
                f"{self.paper}: {self.folder} was begun with {name} {before}, and now there is {value}. Name another "
                "--out, or delete that folder to measure everything anew."
            )
        super().note(name, value)

    def step(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Measure once, as :meth:`Run.step`; global random numbers depend on the step's name, not on what ran before.

        Raises:
            RunError: it failed, another step of this run has its name, or another run measures into the folder.
        """
        file = f"{name.replace('/', '--')}.json"
        if file in self._asked:
            raise RunError(f"{self.paper}: two steps are called '{name}'.")
        self._asked.add(file)
        path = self.folder / ("dry-run" if self.dry_run else "steps") / file
        new = not path.is_file()
        if not new and name not in self._records and not self.dry_run:
            raise RunError(f"{self.paper}: another run writes into {self.folder} too; stop one of them.")
        if new:
            # Verdicts that were given on less evidence must not lie beside more.
            (self.folder / "verdicts.json").unlink(missing_ok=True)
        try:
            with seeded(int(fingerprint([self.paper, name], 8), 16)):
                measured = super().step(name, measure)
        except Exception as error:
            raise RunError(f"{self.paper}: step '{name}' failed: {_named(error)}") from error
        if new:
            self._records[name] = Step.model_validate(read_json(path))
            self._note_environment()
            self._save()
        return measured

    def evidence(self) -> Evidence:
        """Return what is measured so far."""
        return Evidence(
            paper=self.paper,
            scale=self.scale,
            seeds=tuple(self.seeds),
            device=self.device.type,
            claims=tuple(sorted(self._finished)),
            recipe=self._recipe,
            setup=self.setup,
            environment=self._environment,
            resumed_under=tuple(self._resumed_under),
            steps={name: self._records[name] for name in sorted(self._records)},
            figures=tuple(sorted(path.name for path in (self.folder / "figures").glob("*.png"))),
        )

    def _save(self) -> None:
        if not self.dry_run:
            self.evidence().write(self.folder)

    def _continue(self) -> None:
        """Take over evidence of the same recipe; move anything else out of the way, and say so."""
        path = self.folder / "evidence.json"
        if not path.exists() and not (self.folder / "steps").exists():
            return
        try:
            before = read_evidence(path)
        except RunError as error:
            place = set_aside(self.folder, "unreadable")
            self.report(f"{error} What was there is kept in {place}; everything is measured anew.")
            return
        if before.recipe != self._recipe:
            place = set_aside(self.folder, before.recipe)
            self.report(
                f"{self.folder} was measured by another recipe (other code, packages, seeds or device). "
                f"It is kept in {place}; everything is measured anew."
            )
            return
        self._finished, self.setup = frozenset(before.claims), dict(before.setup)
        self._environment, self._resumed_under = before.environment, list(before.resumed_under)
        for path in sorted((self.folder / "steps").glob("*.json")):
            try:
                record = read_json(path)
                self._records[record["step"]] = Step.model_validate(record)
            except (ValueError, KeyError, TypeError):
                place = set_aside_step(path)
                self._finished = frozenset()
                self.report(f"{path.name} is damaged. It is kept in {place}; the step is measured anew.")

    def _note_environment(self) -> None:
        if len(self._records) == 1:
            self._now = self._environment = environment()
        elif self._now not in [self._environment, *self._resumed_under]:
            self._resumed_under.append(self._now)


def _named(error: Exception) -> str:
    return str(error) if isinstance(error, StriateError) else f"{type(error).__name__}: {error}"
