"""What is saved loads again as the same network, by its name or as anybody's."""

from __future__ import annotations

import json

import pytest
import torch

from striate import load_model
from striate.compress.precropping import precrop
from striate.compress.save import save_network
from striate.engine.checkpoint import read_note
from striate.engine.resize import resize, size_changes
from striate.engine.train import Recipe, fit
from striate.errors import ModelError, WeightsError
from striate.models.micro import ResNetMicro


def images(side=64):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_a_published_network_trained_and_loaded_again(tmp_path):
    original = load_model("torchvision:shufflenet_v2_x0_5", num_classes=7)
    small = precrop(original.network, 0.4, images())
    fit(small, images(), torch.tensor([1, 2]), Recipe(epochs=1, batch_size=2))
    path = save_network(small, tmp_path / "out", "torchvision:shufflenet_v2_x0_5")
    again = load_model(str(path))
    assert again.preprocessing == original.preprocessing
    assert torch.equal(again.network(images()), small.eval()(images()))
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert recipe["architecture"] == "torchvision:shufflenet_v2_x0_5"
    assert recipe["num_classes"] == 7
    assert recipe["crop_report"]["params"] == list(small.crop_report.params)
    assert read_note(path)["network"]["changes"] == recipe["changes"]


def test_weights_trained_since_load_with_the_saved_network_as_their_architecture(tmp_path):
    original = load_model("mobilenetv3_small_050", num_classes=2)
    path = save_network(precrop(original.network, 0.5, images()), tmp_path, "mobilenetv3_small_050")
    model = load_model(str(path))
    fit(model.network, images(), torch.tensor([0, 1]), Recipe(epochs=1, batch_size=2))
    torch.save(model.state_dict(), tmp_path / "trained.pth")
    again = load_model(str(tmp_path / "trained.pth"), architecture=str(path))
    assert again.weights == "file trained.pth"
    assert torch.equal(again(images()), model.eval()(images()))


def test_a_cropped_network_is_cropped_again(tmp_path):
    original = load_model("mobilenetv3_small_050", num_classes=2)
    first = save_network(precrop(original.network, 0.5, images()), tmp_path / "one", "mobilenetv3_small_050")
    small = precrop(load_model(str(first)).network, 0.5, images())
    second = save_network(small, tmp_path / "two", str(first))
    assert read_note(second)["network"]["architecture"] == "mobilenetv3_small_050"
    first.unlink()
    assert torch.equal(load_model(str(second)).network(images()), small.eval()(images()))


def test_preprocessing_and_names_come_along(tmp_path):
    original = load_model(
        "mobilenetv3_small_050", num_classes=2, class_names=["cat", "dog"], input_size=(3, 64, 64), mean=[0.4] * 3
    )
    original.network = precrop(original.network, 0.5, images())
    again = load_model(str(save_network(original, tmp_path, "mobilenetv3_small_050")))
    assert again.class_names == ("cat", "dog")
    assert again.preprocessing.mean == (0.4,) * 3
    assert torch.equal(again(images()), original.eval()(images()))


def test_a_network_without_a_name_needs_its_architecture(tmp_path, monkeypatch):
    original = ResNetMicro((8, 16))
    small = precrop(original, 0.5, images(16))
    path = save_network(small, tmp_path, original)
    with pytest.raises(ModelError, match="architecture"):
        load_model(str(path))
    (tmp_path / "my_small_factory.py").write_text(
        "from striate.models.micro import ResNetMicro\ndef build():\n    return ResNetMicro((8, 16))\n"
    )
    monkeypatch.chdir(tmp_path)
    loaded = load_model(str(path), architecture="my_small_factory:build")
    assert torch.equal(loaded.network(images(16)), small.eval()(images(16)))
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    by_hand = resize(ResNetMicro((8, 16)), recipe["changes"])
    by_hand.load_state_dict(small.state_dict())


def test_another_architecture_is_refused(tmp_path):
    small = precrop(ResNetMicro((8, 16)), 0.5, images(16))
    with pytest.raises(ModelError, match="more than layer sizes"):
        save_network(small, tmp_path, ResNetMicro((8, 16, 32)))
    path = save_network(small, tmp_path, ResNetMicro((8, 16)))
    with pytest.raises((ModelError, WeightsError)):
        load_model(str(path), architecture="torchvision:resnet18")


def test_changes_that_do_not_apply_are_named():
    changes = size_changes(ResNetMicro((8, 16)), precrop(ResNetMicro((8, 16)), 0.5, images(16)))
    with pytest.raises(ModelError, match="has no layer"):
        resize(torch.nn.Linear(3, 3), changes)
    with pytest.raises(ModelError, match="has no tensor"):
        resize(torch.nn.Linear(3, 3), {"layers": {}, "tensors": {"fc.weight": [3, 3]}})
