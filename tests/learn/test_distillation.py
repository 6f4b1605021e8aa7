"""Soft distillation against its closed form, and what it must leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from striate.engine.train import Recipe, fit
from striate.errors import InputError, ModelError
from striate.learn.distillation import DistillationLoss
from striate.models.mobile_mamba import MobileMamba


def network(seed: int, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


def batch(n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, 12, 12, generator=generator), torch.arange(n) % 4, generator


def test_it_is_the_formula() -> None:
    images, labels, generator = batch()
    student, teacher = network(0).eval(), network(1).eval()
    loss = DistillationLoss(teacher, weight=2.5, temperature=3.0, label_smoothing=0.1)
    p, q = (model(images) / 3 for model in (teacher, student))
    p, q = p.softmax(1), q.softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    want = F.cross_entropy(student(images), labels, label_smoothing=0.1) + 2.5 * 9 * divergence
    torch.testing.assert_close(loss(student, images, labels, generator), want)


def test_a_student_that_answers_as_the_teacher_pays_for_the_labels_alone() -> None:
    images, labels, generator = batch()
    teacher = network(1).eval()
    found = DistillationLoss(teacher)(copy.deepcopy(teacher), images, labels, generator)
    torch.testing.assert_close(found, F.cross_entropy(teacher(images), labels))


def test_soft_labels_and_a_teacher_that_sees_another_size() -> None:
    images, labels, generator = batch()
    shares = F.one_hot(labels, 4).float().lerp(torch.full((6, 4), 0.25), 0.3)
    student, teacher = network(0).eval(), network(1).eval()
    larger = F.interpolate(images, (20, 20), mode="bicubic", align_corners=False)
    found = DistillationLoss(teacher, teacher_size=20)(student, images, shares, generator)
    want = F.kl_div(student(images).log_softmax(1), teacher(larger).softmax(1), reduction="batchmean")
    torch.testing.assert_close(found, F.cross_entropy(student(images), shares) + 5 * want)


def test_a_second_head_learns_the_teacher() -> None:
    torch.manual_seed(0)
    student = MobileMamba(dims=(16, 24, 32), depths=(1, 1, 1), num_classes=4, distillation=True)
    teacher = network(1).eval()
    images, labels, generator = torch.rand(4, 3, 64, 64), torch.arange(4), torch.Generator()
    DistillationLoss(teacher)(student.train(), images, labels, generator).backward()
    first, second = student.head.l.weight.grad.clone(), student.head_dist.l.weight.grad.clone()
    student.zero_grad()
    DistillationLoss(teacher, weight=0.0)(student, images, labels, generator).backward()
    # The teacher reaches the second head alone.
    torch.testing.assert_close(student.head.l.weight.grad, first)
    assert second.abs().sum() > 0
    assert student.head_dist.l.weight.grad.abs().sum() == 0


def test_training_with_it_nears_the_teacher_and_leaves_it_as_it_came() -> None:
    images, labels, _ = batch(64)
    teacher = network(1).train()
    with torch.no_grad():
        teacher[5].weight.mul_(20)
    teacher[0].weight.requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    apart = []
    for weight in (0.0, 5.0):
        student, loss = network(0), DistillationLoss(teacher, weight=weight)
        fit(student, images, labels, Recipe(epochs=20, batch_size=32, lr=1e-2), loss=loss)
        apart.append(loss.divergence(student.eval()(images), images).item())
    assert apart[1] < apart[0] / 2
    assert teacher.training
    assert not teacher[0].weight.requires_grad
    assert teacher[5].weight.requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_refusals() -> None:
    teacher = network(1)
    for options, name in (
        ({"weight": -1.0}, "weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"teacher_size": 0}, "s"),
    ):
        with pytest.raises(InputError, match=name):
            DistillationLoss(teacher, **options)
    images, labels, generator = batch()
    with pytest.raises(ModelError, match="teacher answers"):
        DistillationLoss(network(1, classes=5))(network(0), images, labels, generator)


def test_auxiliary_heads_do_not_learn_from_the_teacher():
    import torchvision

    student = torchvision.models.googlenet(weights=None, init_weights=False, num_classes=2)
    loss = DistillationLoss(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)))
    with pytest.raises(ModelError, match="answers GoogLeNetOutputs"):
        loss(student, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), torch.Generator())
