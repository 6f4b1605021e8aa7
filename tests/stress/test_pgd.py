"""PGD: its ball and box, its manners, and parity with torchattacks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.errors import InputError, ModelError, TrainModeWarning
from striate.stress import fgsm, pgd, pgd_steps
from striate.stress.objective import objective

LINEAR = torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, -1.0]])


def network(seed=0):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    return nn.Sequential(*layers).eval()


def images(n=4, size=9):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@settings(max_examples=25, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0.0, 1.0),
    steps=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    targeted=st.booleans(),
    random_start=st.booleans(),
)
def test_stays_in_ball_and_box(norm, eps, steps, dtype, targeted, random_start):
    x = images(2).to(dtype)
    y = torch.tensor([0, 1])
    moved = pgd(network().to(dtype), x, y, eps, norm=norm, steps=steps, targeted=targeted, random_start=random_start)
    step = (moved - x).flatten(1)
    length = step.abs().amax(dim=1) if norm == "linf" else step.norm(dim=1)
    assert moved.dtype == dtype
    assert moved.shape == x.shape
    assert not moved.requires_grad
    assert length.max() <= eps + (torch.finfo(dtype).eps if norm == "linf" else 1e-6)
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_one_step_of_eps_is_fgsm():
    model, x, y = network(), images(), torch.tensor([0, 1, 2, 3])
    assert torch.equal(pgd(model, x, y, 0.03, steps=1, step_size=0.03, random_start=False), fgsm(model, x, y, 0.03))
    assert torch.equal(
        pgd(model, x, y, 0.03, steps=1, step_size=0.03, random_start=False, targeted=True),
        fgsm(model, x, y, 0.03, targeted=True),
    )


def test_l2_step_on_a_linear_model_follows_the_weights():
    x, y = torch.full((1, 3), 0.5), torch.tensor([0])
    weight = LINEAR[1] - LINEAR[0]
    moved = pgd(lambda z: z @ LINEAR.T, x, y, 0.2, norm="l2", steps=1, step_size=0.2, random_start=False)
    torch.testing.assert_close(moved - x, (0.2 * weight / weight.norm())[None])


def test_l2_step_survives_gradients_whose_squares_underflow():
    x, y = torch.full((1, 3), 0.5), torch.tensor([0])
    moved = pgd(lambda z: 1e-30 * (z @ LINEAR.T), x, y, 0.2, norm="l2", steps=1, step_size=0.2, random_start=False)
    assert (moved - x).norm().item() == pytest.approx(0.2, abs=1e-6)


def test_more_steps_raise_the_loss_and_targeted_lowers_it():
    model, x = network(), images()
    y = model(x).argmax(dim=1)

    def loss(z):
        return F.cross_entropy(model(z), y).item()

    assert loss(x) < loss(fgsm(model, x, y, 0.05)) <= loss(pgd(model, x, y, 0.05, random_start=False)) + 1e-6
    assert loss(pgd(model, x, y, 0.05, targeted=True)) < loss(x)


def test_saturated_images_are_attacked():
    x, y = torch.tensor([[1.0, 0.5]]), torch.tensor([0])
    moved = pgd(lambda z: 60 * torch.stack([z[:, 0], -z[:, 0]], 1), x, y, 0.3, steps=3, random_start=False)
    assert moved[0].tolist() == pytest.approx([0.7, 0.5])


def test_objective_is_cross_entropy_up_to_a_positive_factor_an_image():
    logits = (
        torch.randn(6, 4, dtype=torch.float64) * torch.tensor([[0.1], [1], [3], [20], [40], [400]])
    ).requires_grad_()
    y = torch.randint(0, 4, (6,))
    total, saturated = objective(logits, y)
    (ours,) = torch.autograd.grad(total, logits)
    u = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1) - logits.gather(1, y[:, None])[:, 0]
    (direction,) = torch.autograd.grad(u.sum(), logits)
    torch.testing.assert_close(F.normalize(ours), F.normalize(direction))
    assert (saturated == (u.sigmoid() < 2**-26)).all()


def test_torchattacks_takes_the_same_steps():
    """torchattacks 3.5.1 averages its loss; a batch of 4 makes that an exact scaling."""
    torchattacks = pytest.importorskip("torchattacks")
    model, x = network().double(), images().double()
    y = model(x).argmax(dim=1)
    theirs = torchattacks.PGD(model, eps=0.03, alpha=0.01, steps=5, random_start=False)(x, y)
    ours = pgd(model, x, y, 0.03, steps=5, step_size=0.01, random_start=False)
    assert (ours - theirs).abs().max() <= 1e-6
    assert (fgsm(model, x, y, 0.03) - torchattacks.FGSM(model, eps=0.03)(x, y)).abs().max() <= 1e-6


def test_random_start_is_seeded_and_leaves_the_global_generator():
    model, x = network(), images()
    state = torch.get_rng_state()
    first = pgd(model, x, eps=0.1, steps=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, pgd(model, x, eps=0.1, steps=0))
    other = pgd(model, x, eps=0.1, steps=0, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(first, other)


def test_low_level_steps_change_no_mode_and_keep_no_gradients():
    model, x = network().train(), images()
    statistics = model[1].running_mean.clone()
    pgd_steps(model, x, torch.zeros(4, dtype=torch.long), eps=0.03, steps=2)
    assert model.training
    assert not torch.equal(model[1].running_mean, statistics)  # train mode is the caller's wish
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_high_level_attack_leaves_a_training_model_as_it_was():
    model, x = network().train(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(TrainModeWarning):
        pgd(model, x)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_no_classifier_is_refused_without_labels_too():
    with pytest.raises(ModelError, match="returned dict"):
        pgd(lambda z: {"logits": z.flatten(1)}, torch.rand(2, 1, 4, 4))


def test_half_precision_steps_are_not_lost():
    model, x = network().bfloat16(), images().bfloat16()
    moved = pgd(model, x, torch.zeros(4, dtype=torch.long), 0.03, steps=30, step_size=0.001, random_start=False)
    assert moved.dtype == torch.bfloat16
    assert (moved - x).abs().float().max() > 0.015  # one step of 0.001 is below bfloat16's resolution near 1


@pytest.mark.parametrize(
    "wrong",
    [{"eps": -1}, {"norm": "l1"}, {"steps": -1}, {"step_size": 0.0}, {"bounds": (1.0, 0.0)}, {"targeted": True}],
)
def test_refuses(wrong):
    with pytest.raises(InputError):
        pgd(network(), images(), **wrong)


class OnlyClassical(nn.Module):
    """Flattens by .view(), which channels_last activations do not allow."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 49, 5)

    def forward(self, x):
        return self.fc(self.conv(x).relu().view(len(x), -1))


def test_a_network_that_takes_only_the_classical_layout_is_attacked_all_the_same():
    torch.manual_seed(0)
    model, x, y = OnlyClassical().eval(), images(), torch.tensor([0, 1, 2, 3])
    same = nn.Sequential(model.conv, nn.ReLU(), nn.Flatten(), model.fc).eval()
    assert torch.allclose(pgd(model, x, y, steps=3), pgd(same, x, y, steps=3), atol=1e-6)
    with pytest.raises(RuntimeError, match="shape"):  # a cause of another kind still reaches the caller
        pgd(model, torch.rand(2, 3, 20, 20), torch.tensor([0, 1]))
