"""The scoreboard as one HTML page: every claim that was measured, its control, its verdict, and how to run it again.

The page is drawn from evidence files alone. Verdicts are recomputed from them, so that a page cannot say what its
evidence does not.
"""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from striate.errors import RunError
from striate.papers.base import VERDICTS
from striate.papers.catalogue import Paper, find_paper, load_reproduction, papers
from striate.papers.evidence import SET_ASIDE, Evidence, read_evidence
from striate.papers.runner import NOT_JUDGED, Row, judge
from striate.report.page import templates

__all__ = ["Entry", "read_entries", "render_scoreboard"]

_ORDER = ("not reproduced", "inconclusive", "direction only", "reproduced", "not testable here", NOT_JUDGED)
"""What the reader should see first comes first."""
_LEVELS = {
    "reproduced": "good",
    "direction only": "attention",
    "not reproduced": "problem",
    "inconclusive": "attention",
    "not testable here": "info",
    NOT_JUDGED: "info",
}


@dataclass(frozen=True)
class Entry:
    """One paper's evidence at one scale, judged.

    Attributes:
        paper: from the catalogue.
        evidence: what was measured.
        rows: the verdicts, recomputed.
        figures: title -> PNG in base64.
    """

    paper: Paper
    evidence: Evidence
    rows: tuple[Row, ...]
    figures: dict[str, str]

    @property
    def command(self) -> str:
        """What measures it again."""
        return f"striate reproduce {self.paper.key} --scale {self.evidence.scale}"


def read_entries(folder: str | Path) -> list[Entry]:
    """Read and judge all evidence in or below ``folder``, in the catalogue's order; smoke runs are passed over.

    Raises:
        RunError: there is none, or it is damaged.
    """
    folder = Path(folder)
    found = []
    for path in sorted(folder.rglob("evidence.json")):
        if SET_ASIDE in path.relative_to(folder).parts[:-1]:
            continue
        evidence = read_evidence(path)
        if evidence.scale == "smoke" or not evidence.claims:
            continue
        figures = {
            name.removesuffix(".png"): base64.b64encode((path.parent / "figures" / name).read_bytes()).decode()
            for name in evidence.figures
            if (path.parent / "figures" / name).is_file()
        }
        rows = judge(load_reproduction(evidence.paper), evidence)
        found.append(Entry(find_paper(evidence.paper), evidence, rows, figures))
    if not found:
        raise RunError(f"There is no evidence in or below {folder}. Make some with: striate reproduce --all")
    return sorted(found, key=lambda entry: (entry.paper.number, entry.evidence.scale))


def render_scoreboard(entries: list[Entry]) -> str:
    """Return the page; the claims that do not hold stand first."""
    rows = [(entry, row) for entry in entries for row in entry.rows]
    rows.sort(key=lambda pair: (_ORDER.index(pair[1].verdict), pair[0].paper.number, pair[1].name))
    counts = Counter(row.verdict for _, row in rows)
    covered = {entry.paper.key for entry in entries}
    return (
        templates()
        .get_template("scoreboard.html.j2")
        .render(
            entries=entries,
            rows=rows,
            counts=[(verdict, counts[verdict], _LEVELS[verdict]) for verdict in VERDICTS if counts[verdict]],
            levels=_LEVELS,
            missing=[paper for paper in papers() if paper.key not in covered],
            n_papers=len(papers()),
        )
    )
