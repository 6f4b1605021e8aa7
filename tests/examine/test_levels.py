"""Levels: by the estimate when it is bad, by the interval when it is to be called good."""

from __future__ import annotations

import pytest

from striate.engine.stats import wilson
from striate.examine.levels import judge_share


@pytest.mark.parametrize(
    ("broken", "n", "level"),
    [
        (0, 2, "info"),  # up to 66 % may break
        (0, 16, "good"),
        (1, 16, "good"),
        (2, 16, "attention"),
        (8, 16, "problem"),
        (1, 1, "problem"),
    ],
)
def test_good_needs_images_enough(broken, n, level):
    found, reading = judge_share(wilson(broken, n), attention=0.1, problem=0.5)
    assert found == level
    assert bool(reading) == (level == "info")
    assert all(str(n) in line for line in reading)
