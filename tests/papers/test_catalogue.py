from __future__ import annotations

import re
from importlib import resources

import pytest

from striate.errors import InputError, RunError
from striate.papers.catalogue import Claim, Paper, find_paper, load_reproduction, papers, search

IMPLEMENTED = [paper.key for paper in papers() if paper.implemented]


def test_there_are_52_papers_in_order_with_keys_of_their_own() -> None:
    assert [paper.number for paper in papers()] == list(range(1, 53))
    assert len({paper.key for paper in papers()}) == 52
    assert len({paper.arxiv for paper in papers()}) == 52
    assert len({paper.title for paper in papers()}) == 52


def test_nothing_unsure_is_printed() -> None:
    text = resources.files("striate.papers").joinpath("catalogue.toml").read_text(encoding="utf-8")
    assert "(?)" not in text
    assert "?" not in "".join(claim.published or "" for paper in papers() for claim in paper.claims)


@pytest.mark.parametrize("paper", papers(), ids=lambda paper: paper.key)
def test_every_paper_says_what_it_is_and_claims(paper: Paper) -> None:
    assert [claim.id for claim in paper.claims] == [f"C{index + 1}" for index in range(len(paper.claims))]
    for claim in paper.claims:
        assert claim.text[0].isupper()
        assert claim.text.endswith(".")
        assert claim.published != ""
    assert 2 <= len(re.findall(r"[.?](?: |$)", paper.summary)) <= 3
    assert len(paper.summary) > 150
    assert all(address.startswith("https://") for address in paper.links.values())
    assert 2015 <= paper.year <= 2026


@pytest.mark.parametrize(
    ("number", "claim", "figure"),
    [(7, "C1", "4.47"), (28, "C1", "82 %"), (42, "C1", "78.4 %"), (26, "C2", "91.21"), (44, "C3", "37 points")],
)
def test_published_figures_are_the_papers_own(number: int, claim: str, figure: str) -> None:
    published = find_paper(number).claim(claim).published
    assert published is not None
    assert figure in published


@pytest.mark.parametrize("key", ["xgrad-cam", "explainable-robust", "fgsm-patch", "patch-perturbation", "das"])
def test_figures_that_are_not_on_record_are_absent(key: str) -> None:
    published = {claim.id for claim in find_paper(key).claims if claim.published}
    assert published == ({"C1", "C2", "C3"} if key == "das" else set())


def test_only_a_few_papers_have_no_venue() -> None:
    without = {paper.key for paper in papers() if paper.venue is None}
    assert without == {
        "patch-mixing", "das", "lapp", "ufo", "explainable-robust", "precortical", "mhex", "precropping",
        "shape-simplicity", "football-gnn", "random-convs",
    }  # fmt: skip


@pytest.mark.parametrize("spelling", ["xgrad-cam", "xgrad_cam", "XGrad-CAM", " xgrad-cam ", "24", 24])
def test_a_paper_is_found_by_key_module_or_number(spelling: str | int) -> None:
    assert find_paper(spelling).number == 24


def test_a_number_below_ten_may_have_a_zero() -> None:
    assert find_paper("07") is find_paper(7)


@pytest.mark.parametrize(
    ("wrong", "near"), [("xgradcam", "'xgrad-cam'"), ("vmambas", "'vmamba'"), ("53", "striate papers")]
)
def test_an_unknown_paper_names_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(InputError, match=near):
        find_paper(wrong)


def test_an_unknown_claim_names_those_there_are() -> None:
    assert find_paper(24).claim("c2").id == "C2"
    with pytest.raises(InputError, match=r"C1, C2, C3, C4\. Got C9"):
        find_paper(24).claim("C9")


def test_search_wants_every_word() -> None:
    assert {paper.key for paper in search(["MAMBA"])} == {"vmamba", "efficient-vmamba", "mobile-mamba"}
    assert [paper.key for paper in search("mamba wavelet")] == ["mobile-mamba"]
    assert search("mamba football") == ()
    assert len(search("")) == 52


def test_a_claim_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="text"):
        Claim(id="C1", text="")
    with pytest.raises(ValueError, match="id"):
        Claim(id="1", text="It works.")


def test_a_paper_that_is_not_implemented_says_so() -> None:
    missing = next(paper for paper in papers() if not paper.implemented)
    with pytest.raises(RunError, match="not implemented yet"):
        load_reproduction(missing.key)


def test_a_reproduction_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = next(paper for paper in papers() if not paper.implemented)
    monkeypatch.setattr(Paper, "implemented", True)
    words = rf"of '{missing.key}' cannot be imported: ModuleNotFoundError: .*{missing.module.rpartition('.')[2]}"
    with pytest.raises(RunError, match=words):
        load_reproduction(missing.key)


@pytest.mark.parametrize("key", IMPLEMENTED)
def test_an_implemented_paper_judges_each_of_its_claims(key: str) -> None:
    reproduction = load_reproduction(key)
    assert reproduction.key == key
    assert {rule.claim for rule in reproduction.predicates} == {claim.id for claim in find_paper(key).claims}
    names = [(rule.claim, rule.part) for rule in reproduction.predicates]
    assert len(set(names)) == len(names)
    assert all(rule.statement for rule in reproduction.predicates)
    assert set(reproduction.seeds) == set(reproduction.minutes) == {"smoke", "laptop", "paper"}
    assert all(reproduction.seeds.values())
