"""The words of a reproduction: claim, predicate, judgement, run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from striate.engine.files import read_json, write_bytes, write_json
from striate.errors import InputError, RunError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

__all__ = ["VERDICTS", "Judgement", "Predicate", "Reproduction", "Run", "Scale", "Verdict", "subplots"]

Scale = Literal["smoke", "laptop", "paper"]
Verdict = Literal["reproduced", "direction only", "not reproduced", "inconclusive", "not testable here"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "direction only", "not reproduced", "inconclusive", "not testable here")


@dataclass(frozen=True)
class Judgement:
    """What a predicate says of the evidence.

    Attributes:
        verdict: one of :data:`VERDICTS`.
        measured: the figure with its interval, as shown on the scoreboard.
        control: what the control gave, as shown on the scoreboard.
        reason: why, in one or two plain sentences; required unless reproduced.
    """

    verdict: Verdict
    measured: str
    control: str
    reason: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise InputError("verdict", "Judgement", allowed=f"one of {VERDICTS}", got=self.verdict)
        if self.verdict != "reproduced" and not self.reason:
            raise InputError("reason", "Judgement", allowed=f"given for '{self.verdict}'", got=self.reason)

    def to_dict(self) -> dict[str, str]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Predicate:
    """A rule, written before the run, that turns evidence into a verdict.

    Attributes:
        claim: the claim's number, ``"C1"``.
        statement: the rule in words, with its numbers and its control.
        judge: reads ``evidence["steps"]`` (step name -> what it measured) and nothing else.
        part: where one claim has several predicates: which part, e.g. ``"conservation"``.
    """

    claim: str
    statement: str
    judge: Callable[[Mapping[str, Any]], Judgement]
    part: str = ""


@dataclass(frozen=True)
class Reproduction:
    """The experiment behind a paper's claims.

    Attributes:
        key: the paper's key, ``"xgrad-cam"``.
        run: reads as a page of a lab book: data, model, method, measurement.
        predicates: one or more for every claim.
        seeds: seeds at each scale.
        minutes: expected minutes on 2 cores at each scale (``paper``: GPU minutes).
    """

    key: str
    run: Callable[[Run], None]
    predicates: Sequence[Predicate]
    seeds: Mapping[Scale, Sequence[int]]
    minutes: Mapping[Scale, float]


@dataclass
class Run:
    """One run of a reproduction: its scale, its seeds, and the lab book that it writes.

    Attributes:
        scale: ``"smoke"``, ``"laptop"`` or ``"paper"``.
        seeds: seeds to repeat over.
        folder: where the evidence is written.
        device: where networks run.
        claims: only these claims are wanted; None means all.
        dry_run: build everything, take one step on data of the real shape, keep nothing as evidence.
        data: root of the real data set, for the paper scale.
        report: called with each line of progress.
    """

    scale: Scale
    seeds: Sequence[int]
    folder: Path
    device: torch.device
    claims: frozenset[str] | None = None
    dry_run: bool = False
    data: Path | None = None
    report: Callable[[str], None] = lambda line: None
    setup: dict[str, Any] = field(default_factory=dict)

    def wants(self, *claims: str) -> bool:
        """Whether any of ``claims`` is to be measured in this run."""
        return self.claims is None or bool(self.claims & set(claims))

    def note(self, name: str, value: Any) -> None:
        """Record a fact of the set-up (which data, which network, sizes) in the evidence."""
        self.setup[name] = value

    def data_root(self, what: str) -> Path:
        """Return the root of the real data set.

        Args:
            what: is looked for there, in words.

        Raises:
            RunError: the run was given none.
        """
        if self.data is None:
            raise RunError(f"The paper scale needs {what}: --data FOLDER, or --dry-run.")
        return self.data

    def step(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Measure once: a finished step is read back instead of being run again.

        Args:
            name: unique in the reproduction, e.g. ``"pointing/seed0"``.
            measure: returns the JSON-ready measurement; nothing that depends on the clock, unless it is what
                is measured.

        Returns:
            The measurement as JSON gives it back, so that a resumed run continues from the very same values.
        """
        path = self.folder / "steps" / f"{name.replace('/', '--')}.json"
        if path.is_file() and not self.dry_run:
            self.report(f"{name}: already measured")
            return dict(read_json(path)["measured"])
        self.report(f"{name} …")
        start = time.perf_counter()
        measured = dict(measure())
        seconds = round(time.perf_counter() - start, 3)
        if self.dry_run:
            path = self.folder / "dry-run" / path.name
        write_json(path, {"step": name, "measured": measured, "seconds": seconds})
        self.report(f"{name}: {seconds:.1f} s")
        return dict(read_json(path)["measured"])

    def figure(self, name: str, draw: Callable[[], Figure]) -> None:
        """Draw a figure into the evidence folder as ``figures/NAME.png``."""
        import io

        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure = draw()
        buffer = io.BytesIO()
        # Without the software stamp the same figure gives the same bytes.
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        write_bytes(self.folder / "figures" / f"{name}.png", buffer.getvalue())

    def steps(self) -> dict[str, Any]:
        """Return every finished step: name -> measurement.

        Raises:
            RunError: a step's file is damaged.
        """
        measured = {}
        for path in sorted((self.folder / "steps").glob("*.json")):
            try:
                record = read_json(path)
                measured[record["step"]] = record["measured"]
            except (ValueError, KeyError) as error:
                raise RunError(f"{path} is damaged ({error}); delete it and run again.") from error
        return measured


def subplots(*shape: int, **options: Any) -> tuple[Figure, Any]:
    """Return figure and axes of ``matplotlib.pyplot.subplots``; matplotlib is imported only where a figure is drawn."""
    import matplotlib.pyplot as plt

    return plt.subplots(*shape, **options)
