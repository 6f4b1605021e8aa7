"""Every reproduction runs at smoke scale on the GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from striate.errors import DataError
from striate.papers.catalogue import load_reproduction, papers
from striate.papers.evidence import read_evidence
from striate.papers.runner import NOT_JUDGED, reproduce, verify

# The longest first, so that workers side by side end together.
KEYS = sorted(
    (paper.key for paper in papers() if paper.implemented), key=lambda key: -load_reproduction(key).minutes["smoke"]
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty one: nothing in it was trained on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRIATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("key", KEYS)
def test_a_reproduction(device, tmp_path, key) -> None:
    try:
        outcome = reproduce(key, scale="smoke", out=tmp_path / "out", device=str(device))
    except DataError as missing:
        pytest.skip(str(missing))
    predicates = load_reproduction(key).predicates
    assert [row.claim for row in outcome.rows] == [predicate.claim for predicate in predicates]
    assert {row.verdict for row in outcome.rows} <= {NOT_JUDGED, "not testable here"}
    evidence = read_evidence(tmp_path / "out" / key / "smoke" / "evidence.json")
    assert evidence.device == device.type
    assert evidence.steps
    assert all(row.same for row in verify(tmp_path / "out"))
