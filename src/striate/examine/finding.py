"""What a probe returns and a report holds: plain data, JSON in and out, nothing that needs a network to read.

Pictures are stored as what they show (a small photograph, a map of bytes, the points of a curve), never as finished
graphics: :mod:`striate.report` draws them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Advice",
    "Chart",
    "CheckRecord",
    "Figure",
    "Finding",
    "Gallery",
    "Level",
    "MapPicture",
    "Photo",
    "Report",
    "Series",
    "Table",
]

Level = Literal["good", "attention", "problem", "info"]
"""How a finding should be read at a glance: fine, worth a look, to be mended, or no judgement."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Record):
    """A measured number with its interval.

    ``unit`` is printed after the number; ``"%"`` means that value, low and high are shares in [0, 1].
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    n: int | None = None
    note: str = ""


class Table(_Record):
    """Rows of text and numbers."""

    title: str
    columns: list[str]
    rows: list[list[str | float | int | None]]
    note: str = ""


class Series(_Record):
    """One line of a chart; ``low`` and ``high`` draw a band."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    control: bool = False


class Chart(_Record):
    """A line chart as data."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    alt: str
    x_ticks: list[str] | None = None
    y_range: tuple[float, float] | None = None
    diagonal: bool = False


class Photo(_Record):
    """A small photograph: JPEG or PNG bytes in base64."""

    name: str
    mime: str
    base64: str
    caption: str = ""


class MapPicture(_Record):
    """A map over a photograph: ``height`` x ``width`` bytes in base64, 0..255 for 0..1.

    ``photo`` is the index in :attr:`Report.photos`, None for a map that stands alone.
    """

    photo: int | None
    height: int
    width: int
    base64: str
    title: str
    alt: str
    caption: str = ""


class Gallery(_Record):
    """Maps side by side, all on one colour scale from ``low_label`` to ``high_label``."""

    title: str
    maps: list[MapPicture] = Field(default_factory=list)
    photos: list[Photo] = Field(default_factory=list)
    note: str = ""
    low_label: str = "little"
    high_label: str = "much"


class CheckRecord(_Record):
    """A check that the finding carries about itself; ``passed`` is None where it does not apply."""

    name: str
    passed: bool | None
    statement: str
    value: float | None = None
    bound: float | None = None


class Advice(_Record):
    """What to do about it; ``command`` can be typed as it stands."""

    text: str
    command: str = ""


class Finding(_Record):
    """What one probe found.

    Attributes:
        probe: the probe's name, as given to ``--probe``.
        question: what it asks, in plain words.
        status: ``"done"``, ``"failed"`` (``headline`` says how) or ``"skipped"`` (``headline`` says why).
        level: how to read it at a glance.
        headline: the answer in one sentence.
        reading: what the figures mean, paragraph by paragraph.
        papers: keys of the papers that the method comes from.
        limits: what this probe did not test.
        seconds: wall time.
    """

    probe: str
    question: str
    status: Literal["done", "failed", "skipped"]
    level: Level
    headline: str
    reading: list[str] = Field(default_factory=list)
    figures: list[Figure] = Field(default_factory=list)
    tables: list[Table] = Field(default_factory=list)
    charts: list[Chart] = Field(default_factory=list)
    galleries: list[Gallery] = Field(default_factory=list)
    checks: list[CheckRecord] = Field(default_factory=list)
    advice: list[Advice] = Field(default_factory=list)
    papers: list[str] = Field(default_factory=list)
    limits: list[str] = Field(default_factory=list)
    seconds: float = 0.0


class Report(_Record):
    """Everything ``striate examine`` found; ``report.json`` is exactly this."""

    schema_version: int = 1
    title: str
    command: str
    model: dict[str, Any]
    images: dict[str, Any]
    photos: list[Photo]
    findings: list[Finding]
    not_tested: list[str]
    environment: dict[str, Any]
    seconds: float
    quick: bool = False
