"""The small worlds of ``theory`` with their learners on the GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from striate.data.local_signal import DSD, SSD
from striate.theory.equivariance import Symmetry
from striate.theory.learners import Learner, NetworkLearner, RidgeLearner
from striate.theory.projected import ProjectedGD
from striate.theory.sample_complexity import METRICS, sample_complexity
from striate.theory.two_step import TwoStepGD


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))


LEARNERS: dict[str, Learner] = {
    "two-step CNN": TwoStepGD("cnn"),
    "two-step LCN": TwoStepGD("lcn"),
    "projected CNN": ProjectedGD("cnn", steps=20),
    "projected LCN": ProjectedGD("lcn", steps=20),
    "projected FCN": ProjectedGD("fcn", steps=20),
    "ridge": RidgeLearner(),
    "a network": NetworkLearner(perceptron, steps=20),
}


def sets(task: DSD, n: int, seeds: range) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*(task.sample(n, seed) for seed in seeds), strict=True)
    return torch.stack(xs), torch.stack(ys)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("validated", [False, True])
def test_a_learner_learns_there_what_it_learns_here(device, name, validated) -> None:
    learner, task = LEARNERS[name], DSD(3, 4, 0.4)
    x, y = sets(task, 40, range(3))
    validation = sets(task, 60, range(50, 53)) if validated else None
    test = task.sample(200, train=False)[0].expand(3, -1, -1, -1)
    wanted = learner.fit(x, y, seeds=[5, 6, 9], validation=validation)
    moved = None if validation is None else tuple(part.to(device) for part in validation)
    found = learner.fit(x.to(device), y.to(device), seeds=[5, 6, 9], validation=moved)
    with torch.no_grad():
        there, here = found(test.to(device)), wanted(test)
    assert there.device == device
    # Weights start from the same draw on every device; two steps pass a threshold, where rounding may decide.
    agree = float((there.cpu().sign() == here.sign()).double().mean())
    assert agree > 0.97
    if name.startswith(("ridge", "projected")):
        assert float((there.cpu() - here).abs().max() / here.abs().max()) < 1e-2


@pytest.mark.parametrize("metric", METRICS)
def test_sample_complexity(device, metric) -> None:
    target = {"accuracy": 0.8, "cosine": 0.8}.get(metric, -0.9)
    options = {"target": target, "metric": metric, "repeats": 2, "n_max": 64, "test_samples": 200}
    found = sample_complexity(TwoStepGD("cnn"), DSD(3, 4, 0.3), device=str(device), **options)
    wanted = sample_complexity(TwoStepGD("cnn"), DSD(3, 4, 0.3), **options)
    assert {point.n for point in found.curve} & {point.n for point in wanted.curve}
    ours, theirs = ({p.n: p.mean for p in result.curve} for result in (found, wanted))
    for n in ours.keys() & theirs.keys():
        assert ours[n] == pytest.approx(theirs[n], abs=0.05)


def test_samples_that_come_in_pieces(device) -> None:
    task = SSD(3, 4, 0.3)
    there = TwoStepGD("cnn").fit_stream(
        ((x.to(device), y.to(device)) for x, y in task.stream(50, 0)), task.stream(50, 1), seed=2
    )
    here = TwoStepGD("cnn").fit_stream(task.stream(50, 0), task.stream(50, 1), seed=2)
    assert torch.allclose(there.weight.detach().cpu(), here.weight.detach(), atol=1e-4)


@pytest.mark.parametrize("group", ["common rotation", "patch permutation", "patch rotations", "rotation"])
def test_symmetries_move_images_on_their_device(device, same, group) -> None:
    x = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    symmetry = Symmetry(group, 3, 4, seed=2)
    same(symmetry.inputs(x.to(device)), symmetry.inputs(x), 1e-9)
    weight = torch.randn(1, 4, dtype=torch.float64)
    if group in {"common rotation", "patch permutation"}:
        same(symmetry.weights("cnn", weight.to(device)), symmetry.weights("cnn", weight), 1e-9)
