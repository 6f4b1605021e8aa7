"""Theory and measurement are drawn together, and what was not reached leaves a gap."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure

from striate.errors import InputError
from striate.theory.figure import Curve, draw_curves


def test_points_theory_and_controls() -> None:
    axes = Figure().add_subplot()
    found = Curve("CNN", [1, 2, 4], [10, 20, math.inf], [8, 15, 0], [12, math.inf, 0], theory=[9, 18, 36])
    control = Curve("ridge", [1, 2, 4], [None, 30, 40], control=True)
    draw_curves(axes, [found, control], x_label="k", y_label="samples")
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["CNN, theory"].get_ydata()) == [9, 18, 36]
    measured, grey = (container.lines[0] for container in axes.containers)
    assert list(measured.get_ydata()) == [10, 20]
    assert list(grey.get_ydata()) == [30, 40]
    assert lines["CNN, theory"].get_color() == measured.get_color() != grey.get_color()
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "k", "samples")


def test_lengths_must_match() -> None:
    with pytest.raises(InputError, match="theory"):
        Curve("CNN", [1, 2], [1, 2], theory=[1])
    with pytest.raises(InputError, match="measured"):
        Curve("CNN", [1, 2], [])
