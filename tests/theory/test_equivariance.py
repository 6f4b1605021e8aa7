"""Each learner is equivariant under its own group and under no larger one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.data.local_signal import DSD
from striate.engine.train import Recipe
from striate.errors import InputError
from striate.models.patch_net import PatchNet
from striate.theory.equivariance import Symmetry, check_equivariance
from striate.theory.learners import NetworkLearner, RidgeLearner
from striate.theory.projected import ProjectedGD
from striate.theory.two_step import TwoStepGD

OWN = {
    "cnn": {"common rotation", "patch permutation"},
    "lcn": {"common rotation", "patch permutation", "patch rotations"},
    "fcn": {"common rotation", "patch permutation", "patch rotations", "rotation"},
}
GROUPS = ("common rotation", "patch permutation", "patch rotations", "rotation")


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("arch", OWN)
def test_transformed_weights_undo_transformed_images(arch: str, group: str) -> None:
    symmetry = Symmetry(group, 3, 4, seed=1)
    net, x = PatchNet(arch, 3, 4, bias=0.1).double(), torch.randn(9, 3, 4, dtype=torch.float64)
    expected = net(x)
    net.weight = nn.Parameter(symmetry.weights(arch, net.weight.detach()))
    assert torch.allclose(net(symmetry.inputs(x)), expected, atol=1e-12) == (group in OWN[arch])


@pytest.mark.parametrize("group", GROUPS)
def test_a_symmetry_is_orthogonal(group: str) -> None:
    basis = torch.eye(12, dtype=torch.float64).reshape(12, 3, 4)
    moved = Symmetry(group, 3, 4, seed=2).inputs(basis).flatten(1)
    assert torch.allclose(moved @ moved.T, torch.eye(12, dtype=torch.float64), atol=1e-12)
    assert not torch.allclose(moved, basis.flatten(1))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "learner",
    [TwoStepGD("cnn"), TwoStepGD("lcn"), *(ProjectedGD(arch, steps=40) for arch in OWN)],
    ids=lambda learner: f"{type(learner).__name__} {learner.arch}",
)
def test_training_is_equivariant_under_the_architectures_group_only(learner: TwoStepGD, group: str) -> None:
    check = check_equivariance(learner, group)
    assert check.passed == (group in OWN[learner.arch]), check.statement
    assert check.value is not None
    assert check.value < 1e-10 if check.passed else check.value > 0.01


def test_ridge_is_equivariant_in_distribution() -> None:
    check = check_equivariance(RidgeLearner(), "rotation")
    assert check.passed
    assert "in distribution" in check.statement


def test_signs_of_gradients_are_not() -> None:
    """Adam on a sparse signal along an axis, few steps: a rotation of the image costs it accuracy."""
    w = torch.zeros(64)
    w[5] = 1
    task = DSD(1, 64, 0.35, w)

    def make() -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
        nn.init.zeros_(net[1].weight)
        return net

    learner = NetworkLearner(make, Recipe(epochs=1, batch_size=32, optimizer="adam", lr=0.05), steps=20)
    check = check_equivariance(learner, "rotation", task=task, n=64, repeats=6)
    assert not check.passed, check.statement


def test_refusals() -> None:
    with pytest.raises(InputError, match="patch rotations"):
        check_equivariance(TwoStepGD(), "translation")
    with pytest.raises(InputError, match="no spread"):  # whose interval would be a point
        check_equivariance(RidgeLearner(), "rotation", repeats=1)
