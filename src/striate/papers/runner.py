"""Running a reproduction, judging its evidence, and judging it again.

A run writes ``OUT/<paper>/<scale>/``: one file a step, ``evidence.json`` after every step, figures, and at its end
``verdicts.json``. All files are written whole or not at all, so a run can be killed at any instant; the same command
continues it. Steps that were measured by another recipe (other code, packages, seeds or device) are never mixed with
new ones: they are moved aside, and the report says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from striate.engine.files import read_json, write_json
from striate.errors import InputError, RunError, StriateError
from striate.papers.base import Judgement, Predicate, Reproduction, Scale
from striate.papers.catalogue import find_paper, load_reproduction
from striate.papers.evidence import SET_ASIDE, Evidence, Step, read_evidence
from striate.papers.recorded import RecordedRun
from striate.papers.scoreboard import summary

__all__ = ["NOT_JUDGED", "Outcome", "Row", "VerifiedRow", "judge", "recall", "reproduce", "verify"]

NOT_JUDGED = "not judged"
_NOT_RUN = "This claim was left out of the run."


@dataclass(frozen=True)
class Row:
    """One line of the scoreboard: one predicate.

    Attributes:
        paper: key.
        claim: ``"C1"``.
        part: of the claim, where it has several predicates; else "".
        text: the claim in words.
        statement: the predicate in words.
        published: the published figure, or None.
        measured, control: as the predicate shows them.
        verdict: one of :data:`striate.papers.base.VERDICTS`, or :data:`NOT_JUDGED` at smoke scale.
        reason: why; "" where the verdict needs none.
        seconds: measuring time of the steps that the predicate read.
    """

    paper: str
    claim: str
    part: str
    text: str
    statement: str
    published: str | None
    measured: str
    control: str
    verdict: str
    reason: str
    seconds: float

    @property
    def name(self) -> str:
        """Claim and part, ``"C1 conservation"``."""
        return f"{self.claim} {self.part}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Outcome:
    """What a run came to.

    Attributes:
        paper: key.
        scale: that was run.
        folder: where the evidence is; None after a dry run, which keeps nothing.
        evidence: what was measured.
        rows: of the scoreboard; empty after a dry run.
    """

    paper: str
    scale: Scale
    folder: Path | None
    evidence: Evidence
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        came_to = f"dry run of {len(self.evidence.steps)} steps"
        if self.folder is not None:
            came_to = f"{summary(self.rows)}; {self.folder}"
        return f"<Outcome {self.paper} at {self.scale} scale: {came_to}>"


@dataclass(frozen=True)
class VerifiedRow:
    """One stored verdict against the one recomputed from the evidence.

    Attributes:
        paper, scale, folder: which evidence; of damaged evidence the paper is its folder.
        claim: claim and part.
        stored: the verdict on disk, None where there is none.
        recomputed: the verdict from the evidence, None where there is nothing to judge.
        same: whether verdict, figures and reasons are equal.
        note: what differs, or why nothing could be compared.
    """

    paper: str
    scale: str
    folder: Path
    claim: str
    stored: str | None
    recomputed: str | None
    same: bool
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {**asdict(self), "folder": str(self.folder)}


def reproduce(
    key: str | Reproduction,
    *,
    scale: Scale = "laptop",
    seeds: int | Sequence[int] | None = None,
    claims: Sequence[str] | None = None,
    out: str | Path = "reproductions",
    device: str = "cpu",
    dry_run: bool = False,
    data: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run a reproduction, or continue one that was cut off, and judge it.

    Args:
        key: a paper's key or number, or a reproduction.
        scale: ``"smoke"`` (no verdicts), ``"laptop"`` or ``"paper"``.
        seeds: how many, or which; default those of the reproduction at this scale.
        claims: only these, e.g. ``["C1"]``; default all.
        out: folder for the evidence; a folder by paper and scale is made in it.
        device: where networks run.
        dry_run: build everything, take one step on data of the real shape, keep nothing.
        data: root of the real data set, for the paper scale.
        report: called with each line of progress.

    Raises:
        InputError: no such paper, claim or scale.
        RunError: a step or a predicate failed; what was measured before stays.
    """
    from striate.engine.state import find_device

    reproduction = key if isinstance(key, Reproduction) else load_reproduction(key)
    paper = find_paper(reproduction.key)
    if scale not in reproduction.seeds:
        raise InputError("scale", paper.key, allowed=f"one of {', '.join(reproduction.seeds)}", got=scale)
    wanted = None if claims is None else frozenset(paper.claim(claim).id for claim in claims)
    root = None if data is None else Path(data)
    if root is not None and not root.is_dir():
        raise InputError("data", "reproduce", allowed="a folder that exists", got=str(root))
    chosen = _seeds(reproduction.seeds[scale], seeds)
    place = find_device(device, "reproduce")

    def perform(folder: Path) -> Evidence:
        run = RecordedRun(scale, chosen, folder, place, wanted, dry_run, root, report, paper=paper.key)
        return run.perform(reproduction)

    if dry_run:
        with tempfile.TemporaryDirectory(prefix="striate-dry-run.") as scratch:
            return Outcome(paper.key, scale, None, perform(Path(scratch)), ())
    folder = Path(out) / paper.key / scale
    evidence = perform(folder)
    rows = judge(reproduction, evidence)
    write_json(
        folder / "verdicts.json",
        {"paper": paper.key, "scale": scale, "evidence": evidence.mark, "verdicts": [row.to_dict() for row in rows]},
    )
    return Outcome(paper.key, scale, folder, evidence, rows)


def recall(key: str | Reproduction, *, scale: Scale, out: str | Path = "reproductions") -> Outcome:
    """Return what a finished run came to, from its evidence; nothing is measured.

    Raises:
        RunError: there is no evidence, or it is damaged.
    """
    reproduction = key if isinstance(key, Reproduction) else load_reproduction(key)
    folder = Path(out) / reproduction.key / scale
    evidence = read_evidence(folder / "evidence.json")
    return Outcome(reproduction.key, scale, folder, evidence, judge(reproduction, evidence))


def judge(reproduction: Reproduction, evidence: Evidence) -> tuple[Row, ...]:
    """Give the verdict of every predicate from the evidence alone.

    Claims that were left out of the run are not testable from it. At smoke scale every predicate is computed and its
    figures are shown, but no verdict is given: seconds of measurement support none.

    Raises:
        RunError: a predicate cannot read the evidence of a claim that was run.
    """
    paper = find_paper(reproduction.key)
    rows = []
    for predicate in reproduction.predicates:
        claim = paper.claim(predicate.claim)
        judgement, seconds = _judged(paper.key, predicate, evidence)
        smoke = evidence.scale == "smoke" and judgement.reason != _NOT_RUN
        rows.append(
            Row(
                paper=paper.key,
                claim=claim.id,
                part=predicate.part,
                text=claim.text,
                statement=predicate.statement,
                published=claim.published,
                measured=judgement.measured,
                control=judgement.control,
                verdict=NOT_JUDGED if smoke else judgement.verdict,
                reason="" if smoke else judgement.reason,
                seconds=round(seconds, 3),
            )
        )
    return tuple(rows)


def verify(folder: str | Path) -> tuple[VerifiedRow, ...]:
    """Recompute every verdict below ``folder`` from its evidence, and compare with the stored ones.

    Nothing is trained or measured. Evidence that was set aside is not looked at. Evidence that is damaged, or that its
    paper cannot judge, is a row that is not the same, with the reason; the rest is judged.

    Raises:
        RunError: there is no evidence below ``folder``.
    """
    folder = Path(folder)
    found = [
        path for path in sorted(folder.rglob("evidence.json")) if SET_ASIDE not in path.relative_to(folder).parts[:-1]
    ]
    if not found:
        raise RunError(f"There is no evidence.json in or below {folder}. Make some with: striate reproduce")
    return tuple(row for path in found for row in _verified(path.parent))


class _Watched(dict[str, Any]):
    """One step's measurement, which says when it is read; a predicate may pass over other claims' steps unread."""

    def __init__(self, step: Step, read: Callable[[], None]) -> None:
        super().__init__(step.measured)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read()
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read()
        return super().get(name, default)

    def items(self) -> Any:
        self._read()
        return super().items()

    def values(self) -> Any:
        self._read()
        return super().values()


def _judged(paper: str, predicate: Predicate, evidence: Evidence) -> tuple[Judgement, float]:
    """Return the judgement and the measuring time of the steps that it rests on."""
    if predicate.claim not in evidence.claims:
        return Judgement("not testable here", "", "", _NOT_RUN), 0.0
    read = set[str]()
    steps = {name: _Watched(step, partial(read.add, name)) for name, step in evidence.steps.items()}
    try:
        judgement = predicate.judge(steps)
    except Exception as error:
        name = f"{predicate.claim} {predicate.part}".rstrip()
        reason = f"{type(error).__name__}: {error}"
        raise RunError(f"{paper}: the predicate of {name} cannot judge this evidence: {reason}") from error
    return judgement, sum(evidence.steps[name].seconds for name in read)


_COMPARED = ("verdict", "measured", "control", "reason", "published", "statement")


def _verified(folder: Path) -> Sequence[VerifiedRow]:
    try:
        return tuple(_verify(folder))
    except StriateError as error:
        return (VerifiedRow(str(folder), "", folder, "", stored=None, recomputed=None, same=False, note=str(error)),)


def _verify(folder: Path) -> Iterator[VerifiedRow]:
    evidence = read_evidence(folder / "evidence.json")
    place: dict[str, Any] = {"paper": evidence.paper, "scale": evidence.scale, "folder": folder}
    if not evidence.claims:
        note = "The run was cut off, so there is nothing to judge; the same command continues it."
        yield VerifiedRow(**place, claim="", stored=None, recomputed=None, same=False, note=note)
        return
    mark, stored = _stored(folder / "verdicts.json")
    changed = "" if mark in {None, evidence.mark} else "The evidence changed after it was judged."
    for row in judge(load_reproduction(evidence.paper), evidence):
        now, then = row.to_dict(), stored.pop(row.name, None)
        if then is None:
            yield VerifiedRow(
                **place, claim=row.name, stored=None, recomputed=row.verdict, same=False, note="Not stored."
            )
            continue
        other = [name for name in _COMPARED if then.get(name) != now[name]]
        differs = f"Stored and recomputed differ in: {', '.join(other)}." if other else ""
        yield VerifiedRow(
            **place,
            claim=row.name,
            stored=str(then.get("verdict")),
            recomputed=row.verdict,
            same=not other and not changed,
            note=f"{changed} {differs}".strip(),
        )
    for name, then in stored.items():
        note = "No predicate gives this verdict."
        yield VerifiedRow(**place, claim=name, stored=str(then.get("verdict")), recomputed=None, same=False, note=note)


def _stored(path: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Return the mark of the evidence that was judged, and claim -> stored row."""
    try:
        content = read_json(path)
        rows = {f"{row['claim']} {row['part']}".rstrip(): row for row in content["verdicts"]}
        return str(content["evidence"]), rows
    except FileNotFoundError:
        return None, {}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}); delete it and run again.") from error


def _seeds(default: Sequence[int], asked: int | Sequence[int] | None) -> tuple[int, ...]:
    if asked is None:
        return tuple(default)
    if isinstance(asked, int):
        if asked < 1:
            raise InputError("seeds", "reproduce", allowed=">= 1", got=asked)
        start = max(default) + 1
        return (*default, *range(start, start + asked))[:asked]
    chosen = tuple(asked)
    if not chosen or len(set(chosen)) != len(chosen):
        raise InputError("seeds", "reproduce", allowed="a number, or different seeds", got=list(asked))
    return chosen
