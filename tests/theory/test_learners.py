"""The two-step rule, projected gradient descent, ridge and any network: what each is, and what all promise."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from striate.data.local_signal import DSD, SSD, patches_to_images
from striate.engine.train import Recipe
from striate.errors import InputError, ModelError
from striate.models.patch_net import PatchNet
from striate.theory.learners import Learner, NetworkLearner, RidgeLearner
from striate.theory.local_signal import linear_accuracy, predicted_cosine
from striate.theory.projected import ProjectedGD
from striate.theory.two_step import TwoStepGD, threshold


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


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)
def test_sets_side_by_side_are_what_each_gives_alone(learner: Learner) -> None:
    task = DSD(3, 4, 0.4)
    x, y = sets(task, 40, range(3))
    validation = sets(task, 60, range(50, 53))
    together = learner.fit(x, y, seeds=[5, 6, 9], validation=validation)
    assert not together.training
    test = task.sample(30, train=False)[0]
    with torch.no_grad():
        scores = together(test.expand(3, -1, -1, -1))
        assert scores.shape == (3, 30)
        for i, seed in enumerate((5, 6, 9)):
            alone = learner.fit(x[i], y[i], seeds=seed, validation=(validation[0][i], validation[1][i]))
            assert torch.allclose(alone(test), scores[i], atol=1e-4 * scores.abs().max().item())


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)
def test_a_seed_fixes_the_result_and_the_global_generator_stays(learner: Learner) -> None:
    x, y = DSD(3, 4, 0.4).sample(40)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = learner.fit(x, y, seeds=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    with torch.no_grad():
        assert torch.equal(learner.fit(x, y, seeds=2)(x), first(x))


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)
def test_what_is_no_sample_set_is_refused(learner: Learner) -> None:
    x, y = DSD(3, 4, 0.4).sample(40)
    for bad in ((x[0], y), (x, y[:-1]), (x, (y + 1) / 2), (x.long(), y), (x[:0], y[:0])):
        with pytest.raises(InputError):
            learner.fit(*bad)


def test_the_published_threshold() -> None:
    assert threshold(10, 10) == pytest.approx(0.02999, abs=5e-6)
    assert TwoStepGD("cnn").fit(*DSD(3, 4, 0.4).sample(8)).bias.item() == pytest.approx(1e-4)


@pytest.mark.parametrize("arch", ["cnn", "lcn"])
def test_two_steps_by_hand_with_autograd(arch: str) -> None:
    """Explicit gradients of -(1/n) sum y f(x) on fresh halves, b = 0 and then b1, filters projected after each."""
    task = DSD(4, 5, 0.3)
    x, y = (part.double() for part in task.sample(31))
    start = 0.01 * torch.randn(1 if arch == "cnn" else 4, 5, dtype=torch.float64)
    net = PatchNet(arch, 4, 5).double()
    net.weight = nn.Parameter(start.clone())
    halves = [(x[:16], y[:16], 1.0, 0.0), (x[16:], y[16:], 4_000.0, threshold(4, 5))]
    for part, labels, eta, bias in halves:
        net.bias.fill_(bias)
        (gradient,) = torch.autograd.grad(-(labels * net(part)).mean(), net.weight)
        net.weight = nn.Parameter(net.weight.detach() - eta * gradient)
        net.project_()
    assert torch.allclose(TwoStepGD(arch).fit(x, y, start=start).weight, net.weight, atol=1e-12)


@pytest.mark.parametrize(("arch", "n"), [("cnn", 107), ("lcn", 1066)])
def test_the_cosine_is_the_predicted_one(arch: str, n: int) -> None:
    """k = 10, d = 20, sigma = 0.25: 0.9 by theory, mean of 20 repeats."""
    task = DSD(10, 20, 0.25)
    found = TwoStepGD(arch).fit(*sets(task, n, range(20))).cosine(task.w).mean().item()
    assert predicted_cosine(arch, n, 10, 20, 0.25) == pytest.approx(0.9, abs=0.001)
    assert found == pytest.approx(0.9, abs=0.015)


def test_the_cnn_learns_where_the_lcn_does_not_yet() -> None:
    task = DSD(5, 5, 0.25)
    x, y = sets(task, 24, range(40))
    assert TwoStepGD("cnn").fit(x, y).cosine(task.w).mean() > 0.9
    assert TwoStepGD("lcn").fit(x, y).cosine(task.w).mean() < 0.8


def test_a_threshold_that_cuts_beats_the_linear_rule_and_old_samples_flatter() -> None:
    task = DSD(10, 20, 0.25)
    x, y = sets(task, 200, range(10))
    linear, cut = (TwoStepGD("cnn", threshold_scale=s).fit(x, y).cosine(task.w).mean() for s in (1 / 32, 1.0))
    assert cut > linear + 0.02
    assert TwoStepGD("cnn", split="same").fit(x, y).cosine(task.w).mean() > linear


def test_an_lcn_is_told_about_every_patch_only_by_signals_that_are_there() -> None:
    """SSD: only the filter of the signal's patch is learnt."""
    task = SSD(4, 10, 0.2, patch=1)
    cosine = TwoStepGD("lcn").fit(*task.sample(2_000)).cosine(task.w)
    assert cosine[1] > 0.95
    assert cosine[[0, 2, 3]].abs().max() < 0.8


def test_a_stream_gives_what_the_samples_give() -> None:
    task = DSD(6, 7, 0.3)
    x, y = task.sample(1_000, 0)
    u, v = task.sample(1_000, 1)
    streamed = TwoStepGD("lcn").fit_stream(task.stream(1_000, 0), task.stream(1_000, 1), seed=3)
    whole = TwoStepGD("lcn").fit(torch.cat([x, u]), torch.cat([y, v]), seeds=3)
    assert torch.allclose(streamed.weight, whole.weight, atol=1e-5)
    with pytest.raises(InputError, match="first"):
        TwoStepGD().fit_stream([], task.stream(4))
    with pytest.raises(InputError, match="second"):
        TwoStepGD().fit_stream(task.stream(4), [])


@pytest.mark.parametrize("arch", ["cnn", "lcn", "fcn"])
def test_projected_descent_lowers_its_loss_and_keeps_filters_on_the_sphere(arch: str) -> None:
    task = DSD(4, 5, 0.25)
    x, y = task.sample(300)

    def loss(net: PatchNet) -> float:
        return nn.functional.softplus(-4 * y * net(x)).mean().item()

    with torch.no_grad():
        short, long = (ProjectedGD(arch, steps=steps, bias=0.2).fit(x, y) for steps in (1, 100))
        assert loss(long) < loss(short)
    assert long.weight.norm(dim=-1).sub(1).abs().max() < 1e-5
    assert long.bias.item() == pytest.approx(0.2)


def test_one_step_of_projected_descent_by_hand() -> None:
    x, y = (part.double() for part in DSD(3, 4, 0.5).sample(20))
    start = torch.randn(3, 12, dtype=torch.float64)
    net = PatchNet("fcn", 3, 4, bias=0.1).double()
    net.weight = nn.Parameter(nn.functional.normalize(start, dim=1))
    loss = nn.functional.softplus(-4 * y * net(x)).mean()
    (gradient,) = torch.autograd.grad(loss, net.weight)
    expected = nn.functional.normalize(net.weight.detach() - 0.3 * 3 * gradient, dim=1)
    got = ProjectedGD("fcn", steps=1, bias=0.1, anneal=0).fit(x, y, start=start)
    assert torch.allclose(got.weight, expected, atol=1e-12)


def test_early_stopping_keeps_the_best_step_of_every_set() -> None:
    task = DSD(4, 6, 0.5)
    x, y = sets(task, 12, range(4))
    validation = sets(task, 400, range(90, 94))
    learner = ProjectedGD("fcn", steps=60)

    def right(net: PatchNet) -> Tensor:
        with torch.no_grad():
            return (net(validation[0]).sign() == validation[1]).double().mean(dim=1)

    stopped, last = learner.fit(x, y, validation=validation), learner.fit(x, y)
    assert (right(stopped) >= right(last)).all()
    assert (right(stopped) > right(last)).any()


def test_ridge_is_least_squares_and_cannot_pass_the_linear_limit() -> None:
    task = DSD(8, 4, 0.25)
    x, y = task.sample(5_000)
    flat = x.flatten(1)
    net = RidgeLearner([1e-6]).fit(x, y)
    expected = torch.linalg.lstsq(flat, y[:, None]).solution[:, 0]
    assert torch.allclose(net.weight[0], expected, atol=1e-4)
    test, labels = task.sample(20_000, train=False)
    with torch.no_grad():
        accuracy = (net(test).sign() == labels).double().mean().item()
    assert accuracy == pytest.approx(linear_accuracy(8, 0.25), abs=0.01)


class TwoLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 2)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.conv(x).relu()).amax(dim=(2, 3)))


def test_any_network_of_images_learns_by_the_one_loop() -> None:
    prepare = partial(patches_to_images, grid=(2, 2), patch=(3, 3))
    recipe = Recipe(epochs=1, batch_size=16, lr=0.02)
    task = DSD(4, 9, 0.2)
    model = NetworkLearner(TwoLogits, recipe, steps=150, prepare=prepare).fit(*task.sample(200))
    x, y = task.sample(500, train=False)
    with torch.no_grad():
        assert (model(x).sign() == y).double().mean() > 0.85


def test_the_number_of_steps_does_not_follow_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def fit(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, *, loss: object) -> None:
        taken.append(recipe.epochs * max(1, len(x) // min(recipe.batch_size, len(x))))

    monkeypatch.setattr("striate.theory.learners.fit", fit)
    for n in (4, 32, 100, 1_000):
        NetworkLearner(perceptron, steps=90).fit(*DSD(3, 4, 1).sample(n))
    NetworkLearner(perceptron, Recipe(epochs=2, batch_size=10), steps=None).fit(*DSD(3, 4, 1).sample(50))
    assert taken == [90, 90, 90, 93, 10]


def test_refusals() -> None:
    x, y = DSD(3, 4, 0.4).sample(40)
    for call in (
        lambda: TwoStepGD("fcn"),
        lambda: TwoStepGD(eta1=0),
        lambda: TwoStepGD(threshold_scale=-1),
        lambda: TwoStepGD(split="thirds"),
        lambda: TwoStepGD().fit(x[:1], y[:1]),
        lambda: TwoStepGD().fit(x, y, start=torch.zeros(2, 4)),
        lambda: TwoStepGD().fit(x, y, seeds=[1, 2]),
        lambda: ProjectedGD(steps=0),
        lambda: ProjectedGD("fcn").fit(x, y, start=torch.zeros(3, 4)),
        lambda: RidgeLearner([]),
        lambda: NetworkLearner(perceptron, steps=0),
        lambda: NetworkLearner(nn.Linear(12, 1)),
        lambda: NetworkLearner(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), steps=1).fit(x, y),
    ):
        with pytest.raises(InputError):
            call()
    for network in (lambda: nn.Conv2d(3, 4, 3), lambda: nn.BatchNorm2d(3)):
        with pytest.raises(ModelError, match="patches_to_images"):
            NetworkLearner(network, steps=1).fit(x, y)
