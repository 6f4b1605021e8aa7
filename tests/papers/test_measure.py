"""What reproductions measure alike gives the same answers as a plain loop, on any kind of image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from striate.data.embedded import photographs
from striate.data.small import digits
from striate.engine import train
from striate.engine.model import Preprocessing, VisionModel
from striate.engine.train import Recipe, cross_entropy
from striate.papers import measure
from striate.papers.base import Run
from striate.papers.measure import (
    as_32,
    count_correct,
    count_parameters,
    lazily_trained,
    measure_accuracy,
    photograph_batch,
    predict,
    resize_bilinear,
    train_and_test,
)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run("smoke", (0,), tmp_path, torch.device("cpu"))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()


def test_bytes_and_floats_of_the_same_images_get_the_same_classes(model):
    images = torch.randint(256, (23, 1, 8, 8), dtype=torch.uint8)
    expected = model(images.float() / 255).argmax(1)
    for batch_size in (5, 250):
        assert torch.equal(predict(model, images, batch_size), expected)
        assert torch.equal(predict(model, images.float() / 255, batch_size), expected)
    assert not predict(model, images).requires_grad


def test_a_model_may_answer_for_every_pixel():
    assert predict(nn.Conv2d(3, 5, 1), torch.rand(4, 3, 6, 7)).shape == (4, 6, 7)


def test_right_answers_are_counted_before_and_after_an_attack(model):
    images = torch.randint(256, (23, 1, 8, 8), dtype=torch.uint8)
    labels = model(images.float() / 255).argmax(1)
    assert count_correct(model, images, labels) == 23
    labels[:3] = (labels[:3] + 1) % 10
    assert count_correct(model, images, labels, batch_size=4) == 20

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert x.is_floating_point()
        assert 0 <= x.min() <= x.max() <= 1
        assert len(x) == len(y) <= 4
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
        return (x + 10 * gradient.sign()).detach()

    assert count_correct(model, images, labels, batch_size=4, attack=attack) < 20


def test_parameters_are_counted_frozen_or_not(model):
    model[0].requires_grad_(False)
    assert count_parameters(model) == 4 * 9 + 4 + 4 * 36 * 10 + 10
    assert count_parameters(model, trainable=True) == 4 * 36 * 10 + 10


def test_accuracy_comes_with_the_size_of_the_network(model):
    images, labels = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8), torch.zeros(6, dtype=torch.long)
    record = measure_accuracy(lambda: model, images, labels)
    assert record == {
        "correct": count_correct(model, images, labels),
        "n": 6,
        "parameters": count_parameters(model),
        "macs": 4 * 9 * 36 + 4 * 36 * 10,
    }


def test_nothing_is_trained_before_it_is_asked_for_and_nothing_twice(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path))
    asked = []

    def data() -> tuple[Tensor, Tensor]:
        asked.append(True)
        return torch.rand(8, 1, 8, 8), torch.arange(8)

    recipe = Recipe(1, 4, seed=3)
    network = lazily_trained(run, "some", lambda: model, data, recipe, {"data": "random"})
    assert not asked
    first = network()
    assert asked == [True]
    again = train.trained("some", lambda: model, data, recipe, loss=cross_entropy, key={"data": "random"})
    assert asked == [True]
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_first_images_are_sized_and_noted(run, monkeypatch):
    monkeypatch.setattr(measure, "default_set", digits)
    (images, labels), (test_images, test_labels), origin = train_and_test(
        run, 20, 1_000, lambda images: images.float() / 255
    )
    assert torch.equal(images, digits(True).images[:20].float() / 255)
    assert torch.equal(labels, digits(True).labels[:20])
    assert len(test_images) == len(test_labels) == 360
    assert origin == digits(True).origin
    assert run.setup["data"] == {"train": origin, "test": digits(False).origin, "n": [20, 360]}


def test_images_are_resized_to_whole_grey_levels():
    images = torch.tensor([[0, 100], [100, 255]], dtype=torch.uint8)[None, None]
    large = resize_bilinear(images, 4)
    assert large.dtype == torch.uint8
    assert large.shape == (1, 1, 4, 4)
    assert large[0, 0, 0].tolist() == [0, 25, 75, 100]
    assert large[0, 0, 3, 3] == 255


def test_photographs_come_as_the_model_takes_them():
    model = VisionModel(nn.Conv2d(3, 2, 1), Preprocessing((3, 40, 40), (0.5,) * 3, (0.25,) * 3))
    batch = photograph_batch(photographs(["chelsea", "coffee"]), model)
    assert batch.shape == (2, 3, 40, 40)
    assert 0 <= batch.min() < batch.max() <= 1


def test_as_32_borders_28_pixels_and_scales_others() -> None:
    images = torch.full((2, 1, 28, 28), 200, dtype=torch.uint8)
    bordered = as_32(images)
    assert bordered.shape == (2, 1, 32, 32)
    assert int(bordered.sum()) == int(images.sum())
    assert bool((as_32(images[..., :8, :8]) == 200).all())
