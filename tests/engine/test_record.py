"""What stands in every record."""

from __future__ import annotations

from striate.engine.record import environment, fingerprint


def test_environment_names_versions_and_machine() -> None:
    found = environment()
    assert found["packages"]["torch"]
    assert found["machine"]["cores"] >= 1
    assert found["git"] is None or len(found["git"]["commit"]) == 40


def test_fingerprint_depends_on_values_not_on_order() -> None:
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
