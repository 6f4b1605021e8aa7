"""Records are found by the names of their steps, and figures are written as the scoreboard shows them."""

from __future__ import annotations

import pytest

from striate.papers.base import Predicate
from striate.papers.catalogue import papers
from striate.papers.judge import (
    accuracies,
    differences,
    find_records,
    group_records,
    never_testable,
    not_testable,
    percent,
    shares,
    show_range,
    show_signed,
    standard_error,
)
from striate.papers.runner import load_reproduction

IMPLEMENTED = [paper.key for paper in papers() if paper.implemented]
STEPS = {
    "accuracy/das/seed1": {"correct": 70, "n": 200},
    "accuracy/das/seed0": {"correct": 50, "n": 200, "texture": 20},
    "accuracy/das wide/seed0": {"correct": 1, "n": 2},
    "accuracy/mask/0.2/seed0": {"correct": 3, "n": 4},
    "accuracy": {"correct": 9, "n": 9},
    "cost": {"macs": 1},
}


def test_records_are_those_of_one_arm_by_name_of_their_step():
    assert [record["correct"] for record in find_records(STEPS, "accuracy/das")] == [50, 70]
    assert find_records(STEPS, "accuracy/mas") == []
    assert find_records(STEPS, "cost") == []
    assert len(find_records(STEPS, "accuracy")) == 4


def test_records_are_grouped_by_what_stands_before_the_seed():
    found = group_records(STEPS, "accuracy")
    assert {arm: len(records) for arm, records in found.items()} == {"das": 2, "das wide": 1, "mask/0.2": 1}
    assert [record["correct"] for record in found["das"]] == [50, 70]
    assert accuracies(STEPS, "accuracy") == {"das": [25.0, 35.0], "das wide": [50.0], "mask/0.2": [75.0]}
    assert group_records(STEPS, "looks") == {}


def test_shares_and_per_cent_are_of_what_is_asked():
    assert shares(STEPS, "accuracy/das") == [0.25, 0.35]
    assert percent(STEPS["accuracy/das/seed0"], "texture") == 10
    assert percent({"right": 1, "tokens": 8}, "right", "tokens") == 12.5


def test_differences_are_of_pairs():
    assert differences([3, 5], [1, 9]) == [2, -4]
    with pytest.raises(ValueError, match="shorter"):
        differences([1, 2], [1])


def test_the_error_of_a_mean_falls_with_the_number_of_values():
    assert standard_error([1, 3]) == pytest.approx(1)
    assert standard_error([1, 3] * 50) == pytest.approx(0.1, rel=0.02)
    assert standard_error([7]) == 0


def test_figures_are_shown_with_range_and_sign():
    assert show_range([90, 92.04, 91.5]) == "91.2 % [90.0, 92.0]"
    assert show_range([0.9, 0.9204], digits=2, scale=100) == "91.02 % [90.00, 92.04]"
    assert show_signed([1.25, -0.04, 0]) == "+1.2, -0.0, +0.0"


def test_what_is_not_measured_is_not_judged():
    assert not_testable("No data.").to_dict() == {
        "verdict": "not testable here",
        "measured": "",
        "control": "",
        "reason": "No data.",
    }
    predicate = Predicate("C1", "Top-1 on Kinetics.", never_testable("No data.", "–"))
    assert predicate.judge(STEPS) == predicate.judge({}) == not_testable("No data.", "–")


@pytest.mark.parametrize("key", IMPLEMENTED)
def test_nothing_measured_is_nothing_shown(key):
    """A run that was cut off, or one at another scale, is judged all the same."""
    verdicts = {predicate.judge({}).verdict for predicate in load_reproduction(key).predicates}
    assert verdicts <= {"not testable here", "inconclusive"}
