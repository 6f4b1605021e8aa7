"""The 52 papers: what each one claims, what it published, and whether its claims can be checked here."""

from __future__ import annotations

import importlib
import importlib.util
import tomllib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

from striate.errors import InputError, RunError, did_you_mean

if TYPE_CHECKING:
    from striate.papers.base import Reproduction

__all__ = ["Claim", "Paper", "find_paper", "load_reproduction", "papers", "search"]


class Claim(BaseModel):
    """One statement of a paper.

    Attributes:
        id: ``"C1"``, ``"C2"``, …
        text: the statement in one plain sentence.
        published: the figure behind it as published; None where no figure is on record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^C[1-9]\d*$")
    text: str = Field(min_length=1)
    published: str | None = None


class Paper(BaseModel):
    """A paper and its claims.

    Attributes:
        number: 1 to 52.
        key: in kebab case, ``"xgrad-cam"``.
        year: of the venue, else of the first version on arXiv.
        venue: None where there is none on record.
        arxiv: identifier, ``"2008.02312"``.
        links: what is there -> address; ``"code"`` is the authors' own.
        summary: two or three sentences.
        claims: in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=1)
    key: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str = Field(min_length=1)
    authors: tuple[str, ...] = Field(min_length=1)
    year: int
    venue: str | None = None
    arxiv: str = Field(pattern=r"^\d{4}\.\d{4,5}$")
    links: dict[str, str] = Field(default_factory=dict)
    summary: str = Field(min_length=1)
    claims: tuple[Claim, ...] = Field(min_length=1)

    @field_validator("summary")
    @classmethod
    def _one_line(cls, text: str) -> str:
        return " ".join(text.split())

    @property
    def module(self) -> str:
        """Name of the module that holds its reproduction, whether or not it is there."""
        return f"striate.papers.{self.key.replace('-', '_')}"

    @property
    def implemented(self) -> bool:
        """Whether its claims can be checked here."""
        return importlib.util.find_spec(self.module) is not None

    def claim(self, claim: str) -> Claim:
        """Return the claim of that id, in either case.

        Raises:
            InputError: the paper makes no such claim.
        """
        for item in self.claims:
            if item.id == claim.upper():
                return item
        raise InputError("claim", self.key, allowed=f"one of {', '.join(item.id for item in self.claims)}", got=claim)


@cache
def papers() -> tuple[Paper, ...]:
    """Return every paper, ordered by number.

    >>> len(papers())
    52
    """
    text = resources.files("striate.papers").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return tuple(Paper.model_validate(entry) for entry in tomllib.loads(text)["paper"])


def find_paper(key: str | int) -> Paper:
    """Return a paper by its key, its module's name or its number.

    Raises:
        InputError: no such paper; near keys are named.

    >>> find_paper("xgrad_cam").number, find_paper(24).key
    (24, 'xgrad-cam')
    """
    wanted = str(key).strip().lower().replace("_", "-")
    for paper in papers():
        if wanted in {paper.key, str(paper.number), f"{paper.number:02d}"}:
            return paper
    near = did_you_mean(wanted, [paper.key for paper in papers()])
    raise InputError(
        "paper",
        "the catalogue",
        allowed="a paper's key or number",
        got=str(key),
        hint=f"{near} See: striate papers".strip(),
    )


def search(words: str | list[str]) -> tuple[Paper, ...]:
    """Return the papers in which every word occurs: in key, title, authors, venue, summary or claims.

    >>> [paper.key for paper in search("mamba visual")]
    ['efficient-vmamba', 'mobile-mamba', 'vmamba']
    """
    wanted = (words if isinstance(words, str) else " ".join(words)).lower().split()
    return tuple(paper for paper in papers() if all(word in _text(paper) for word in wanted))


def load_reproduction(key: str | int) -> Reproduction:
    """Import and return the reproduction of a paper.

    Raises:
        InputError: no such paper.
        RunError: the paper is in the catalogue, but not implemented yet, or its module cannot be imported.
    """
    paper = find_paper(key)
    if not paper.implemented:
        ready = ", ".join(item.key for item in papers() if item.implemented) or "none yet"
        raise RunError(f"'{paper.key}' is in the catalogue but not implemented yet. Implemented: {ready}.")
    try:
        reproduction: Reproduction = importlib.import_module(paper.module).REPRODUCTION
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunError(f"The reproduction of '{paper.key}' cannot be imported: {reason}") from error
    return reproduction


def _text(paper: Paper) -> str:
    parts = [paper.key, paper.title, *paper.authors, str(paper.year), paper.venue or "", paper.arxiv, paper.summary]
    return " ".join([*parts, *(claim.text for claim in paper.claims)]).lower()
