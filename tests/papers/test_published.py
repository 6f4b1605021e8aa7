"""One step of a published recipe."""

from __future__ import annotations

import random

import numpy as np
import torch

import striate.models.zoo  # noqa: F401
from striate.engine.train import Recipe
from striate.papers.base import Run
from striate.papers.published import training_step


def test_the_step_is_the_same_again_and_draws_from_nobody_elses_generators(tmp_path):
    run = Run("paper", (0,), tmp_path, torch.device("cpu"), dry_run=True)
    recipe = Recipe(1, 2, "adamw", 1e-3)

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    expected = drawn()
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    first = training_step(run, "striate_mobilevit_xxs", recipe)
    assert drawn() == expected
    second = training_step(run, "striate_mobilevit_xxs", recipe)
    assert first["loss"] == second["loss"]
