"""The page is drawn from plain data alone, whole, offline, and safe against hostile names."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from striate.errors import InputError
from striate.examine.finding import (
    Advice,
    Chart,
    CheckRecord,
    Figure,
    Finding,
    Gallery,
    MapPicture,
    Photo,
    Report,
    Series,
    Table,
)
from striate.report.charts import svg
from striate.report.heatmap import colour, overlay
from striate.report.page import _figure, _number, render, write_report

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> {{ 7*7 }} $\\frac{1$"


def photo(name: str) -> Photo:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(buffer, "JPEG")
    return Photo(name=name, mime="image/jpeg", base64=base64.b64encode(buffer.getvalue()).decode(), caption=name)


def heat(photo: int | None, title: str) -> MapPicture:
    data = base64.b64encode(bytes(range(16))).decode()
    return MapPicture(photo=photo, height=4, width=4, base64=data, title=title, alt=title)


def report(text: str = "plain") -> Report:
    chart = Chart(
        title=text,
        x_label=text,
        y_label=text,
        alt=text,
        x_ticks=["0", text],
        series=[
            Series(name=text, x=[0, 1], y=[1, 0.5], low=[0.9, 0.4], high=[1, 0.6]),
            Series(name="c", x=[0, 1], y=[1, 1]),
        ],
    )
    finding = Finding(
        probe="where",
        question=text,
        status="done",
        level="attention",
        headline=text,
        reading=[text],
        figures=[Figure(name=text, value=0.5, low=0.4, high=0.6, unit="%", n=20, note=text)],
        tables=[Table(title=text, columns=[text], rows=[[text], [0.12345], [None]], note=text)],
        charts=[chart],
        galleries=[Gallery(title=text, maps=[heat(0, text), heat(None, text)], photos=[photo(text)], note=text)],
        checks=[CheckRecord(name=text, passed=state, statement=text) for state in (True, False, None)],
        advice=[Advice(text=text, command=text)],
        papers=["xgrad-cam"],
        limits=[text],
    )
    environment = {"python": "3", "packages": {"striate": "0", "torch": "2", "timm": "1"}, "git": None}
    machine = {"processor": text, "torch_threads": 2}
    return Report(
        title=text,
        command=text,
        model={
            "name": text,
            "source": text,
            "weights": text,
            "parameters": 12,
            "preprocessing": {"input_size": [3, 8, 8], "mean": [0.5], "std": [0.5], "source": text},
        },
        images={"n": 1, "source": text, "label_rule": text, "skipped": [text]},
        photos=[photo(text)],
        findings=[finding, finding.model_copy(update={"probe": "trust", "status": "failed", "level": "problem"})],
        not_tested=[text],
        environment=environment | {"machine": machine},
        seconds=61.2,
    )


class Page(HTMLParser):
    """Collects tags and outside references."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.without_text: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.attributes |= set(found)
        for name in ("src", "href"):
            value = found.get(name) or ""
            if value and not value.startswith(("data:", "#")):
                self.outside.append(value)
        if tag == "img" and "alt" not in found:
            self.without_text.append(tag)


def read(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    return parser


def test_the_page_is_one_file_without_outside_references() -> None:
    page = read(render(report()))
    assert not page.outside
    assert not page.without_text
    assert page.tags.count("svg") == 2
    assert page.tags.count("h1") == 1


def test_hostile_names_stay_text() -> None:
    plain, hostile = read(render(report())), read(render(report(HOSTILE)))
    assert hostile.tags.count("script") == plain.tags.count("script") == 1
    assert hostile.tags.count("img") == plain.tags.count("img")
    assert "onerror" not in hostile.attributes
    assert "49" not in re.findall(r">\s*(49)\s*<", render(report(HOSTILE)))


def test_the_page_can_be_drawn_again_from_its_json(tmp_path: Path) -> None:
    page = write_report(report(HOSTILE), tmp_path)
    again = Report.model_validate_json((tmp_path / "report.json").read_text())
    assert render(again) == page.read_text()


def test_a_chart_takes_the_colours_of_the_page() -> None:
    drawn = svg(report().findings[0].charts[0], identifier="a")
    assert drawn.startswith("<svg")
    assert "var(--ink)" in drawn
    assert "var(--series-1)" in drawn
    assert "#010203" not in drawn
    assert set(re.findall(r'id="(\w)-', drawn)) == {"a"}


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(name="a", value=0.85, low=0.64, high=0.95, unit="%"), "85 % (64 to 95)"),
        (Figure(name="a", value=41.23, low=40.0, high=44.0, unit="ms"), "41.2 ms (40.0 to 44.0)"),
        (Figure(name="a", value=None), "–"),
        (Figure(name="a", value=4.652), "4.65"),
    ],
)
def test_figures_read_as_a_person_would_write_them(figure: Figure, text: str) -> None:
    assert _figure(figure) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(4652008, "4,652,008"), (0.0, "0"), (0.1234, "0.123"), (1e-5, "1.0e-05"), (123.4, "123"), (None, "–"), ("a", "a")],
)
def test_numbers_have_three_digits(value: object, text: str) -> None:
    assert _number(value) == text


def test_a_heat_map_has_one_scale() -> None:
    values = np.array([[0.0, 1.0], [0.5, 0.25]])
    image = Image.new("RGB", (32, 32), "white")
    dark, bright = (np.asarray(colour(values)).sum(axis=2)[0, i] for i in (0, 1))
    assert bright > dark
    assert overlay(image, values).size == (32, 32)
    for wrong in (values + 1, values * np.nan, values[0]):
        with pytest.raises(InputError, match="values"):
            colour(wrong)
    with pytest.raises(InputError, match="opacity"):
        overlay(image, values, opacity=2)
