"""One matrix over every network that is registered with timm: its record, and whatever timm's users expect of it.

Counts are taken on the meta device, so that the largest network costs no more than the smallest. What has to compute
does so on small images; what is slow (compile, export) on the smallest network of each family.
"""

from __future__ import annotations

import copy
import importlib
import io
import re

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

import striate
import striate.models.zoo
from striate.engine.macs import count_macs
from striate.errors import InputError
from striate.explain.target_layer import find_target_layer
from striate.models.variant import FAMILIES, variants
from striate.testing import check_model

VARIANTS = variants()
SMALLEST = [
    min(found, key=lambda name: found[name].parameters)
    for found in (importlib.import_module(f"striate.models.{family}").VARIANTS for family in FAMILIES)
]
SIDE = 64  # the least that every stem takes


def images(n: int = 2, h: int = SIDE, w: int = SIDE, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))


def small(name: str, **options: object) -> nn.Module:
    """A network whose last layers are not all zeros: batch norms that start at 0 would hide what a mixer does."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return model.eval()


def largest(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max().clamp_min(1e-6))


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_multiplications_are_the_published_ones(name: str) -> None:
    variant = VARIANTS[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == variant.parameters
    macs = count_macs(model, torch.zeros(1, *variant.input_size, device="meta"))
    assert macs / 1e9 == pytest.approx(variant.macs, rel=0.01)
    config = model.pretrained_cfg
    assert (config["input_size"], config["mean"], config["std"]) == (variant.input_size, variant.mean, variant.std)
    assert config["license"] == variant.licence
    assert isinstance(model.get_submodule(config["classifier"].rpartition(".")[0] or config["classifier"]), nn.Module)


@pytest.mark.parametrize("name", VARIANTS)
def test_features_have_the_declared_shapes(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True)
        maps = model(torch.zeros(1, 3, 256, 256))
    info = model.feature_info
    assert [feature.shape[1] for feature in maps] == info.channels()
    assert [feature.shape[-1] for feature in maps] == [256 // reduction for reduction in info.reduction()]
    with torch.device("meta"):
        last = timm.create_model(name, features_only=True, out_indices=(len(maps) - 1,))
        assert [feature.shape for feature in last(torch.zeros(1, 3, 256, 256))] == [maps[-1].shape]


@pytest.mark.parametrize("name", VARIANTS)
def test_other_classes_channels_and_no_head(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5, in_chans=1, drop_path_rate=0.1)
        assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 5)
        features = model.forward_features(torch.zeros(2, 1, 64, 64))
        assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
        model.reset_classifier(3)
        assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 3)
        model.reset_classifier(0)
        assert model(torch.zeros(2, 1, 64, 64)).shape == (2, model.num_features)


@pytest.mark.parametrize("name", SMALLEST)
def test_without_head_and_pooling_it_gives_its_last_map(name: str) -> None:
    model = timm.create_model(name, num_classes=0, global_pool="").eval()
    with torch.no_grad():
        last = model.forward_features(images())
        assert torch.equal(model(images()), last)
        assert torch.equal(model.forward_head(last, pre_logits=True), last)
        model.reset_classifier(0, "avg")
        torch.testing.assert_close(model(images()), last.mean(dim=(2, 3)))
        model.reset_classifier(0, "")
        assert torch.equal(model(images()), last)
    with pytest.raises(InputError, match="'global_pool' of"):
        model.reset_classifier(3)
    with pytest.raises(InputError, match="'global_pool' of"):
        model.reset_classifier(3, "max")
    model.reset_classifier(3, "avg")
    assert model(images()).shape == (2, 3)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_new_head_has_the_networks_mode(name: str) -> None:
    model = small(name)
    model.reset_classifier(3)
    assert not any(module.training for module in model.modules())
    assert model(images(1)).shape == (1, 3)  # one image is not enough for a batch norm in training


@pytest.mark.parametrize("name", SMALLEST)
def test_maps_on_the_way(name: str) -> None:
    model = small(name)
    features = timm.create_model(name, num_classes=7, features_only=True).eval()
    features["body"].load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        expected = features(images())
        last, maps = model.forward_intermediates(images())
        assert torch.equal(last, model.forward_features(images()))
        assert len(maps) == len(expected)
        assert all(torch.equal(first, second) for first, second in zip(maps, expected, strict=True))
        (normalised,) = model.forward_intermediates(images(), indices=1, norm=True, intermediates_only=True)
        assert torch.equal(normalised, last)
        first, final = model.forward_intermediates(images(), [-1, 0], intermediates_only=True)
        assert torch.equal(first, expected[0])
        assert torch.equal(final, expected[-1])
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(InputError, match=r"'indices' of .* maps"):
        model.forward_intermediates(images(), indices=[9])
    with pytest.raises(InputError, match="NCHW"):
        model.forward_intermediates(images(), output_fmt="NLC")


@pytest.mark.parametrize("name", SMALLEST)
def test_a_learning_rate_by_depth_takes_whole_blocks(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    depth = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(depth) == {key for key, _ in model.named_parameters()}
    stem, head = model.pretrained_cfg["first_conv"], model.pretrained_cfg["classifier"]
    assert depth[f"{stem}.weight"] == 0
    assert depth[f"{head}.weight"] == max(depth.values())
    stages = [entry["module"] for entry in model.feature_info]
    blocks = [re.match(r"(layers\.\d+\.blocks|blocks\d|stages\.\d+)\.\d+", key) for key in depth]
    of_block = [(found[0], depth[key]) for key, found in zip(depth, blocks, strict=True) if found]
    assert len(set(of_block)) == len({block for block, _ in of_block})  # a block lies at one depth
    assert [at for _, at in of_block] == sorted(at for _, at in of_block)  # and the later ones deeper
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len(stages) <= len(set(coarse.values())) <= len(stages) + 3
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", SMALLEST)
def test_no_images_give_no_logits(name: str) -> None:
    assert small(name)(images(0)).shape == (0, 7)


@pytest.mark.parametrize("name", SMALLEST)
def test_the_contract(name: str) -> None:
    """Forward, backward, batch 1, channels_last, bfloat16 autocast, state dict, nothing left behind."""
    check_model(small(name), images(), classes=7)


@pytest.mark.parametrize("size", [(65, 97), (70, 64), (96, 160)])
@pytest.mark.parametrize("name", SMALLEST)
def test_odd_sizes(name: str, size: tuple[int, int]) -> None:
    x = images(1, *size).requires_grad_()
    logits = small(name)(x)
    assert torch.isfinite(logits).all()
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    seen = gradient.abs().sum(dim=(0, 1)).gt(0).any(dim=0)
    assert seen[: size[1] // 4 * 4].all()  # a stem of separate 4 x 4 patches leaves a rest out


@pytest.mark.parametrize("name", SMALLEST)
def test_training_with_and_without_checkpointing_gives_the_same_gradients_and_statistics(name: str) -> None:
    model = small(name)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing(True)
    for network in (model, other):
        network.train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        network(images()).square().mean().backward()
    for (key, parameter), (_, twin) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert (parameter.grad is None) == (twin.grad is None), key
        if parameter.grad is not None:
            torch.testing.assert_close(twin.grad, parameter.grad, rtol=1e-3, atol=1e-5)
    for (key, buffer), (_, twin) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(twin, buffer, rtol=1e-3, atol=1e-5, msg=key)  # batch norms count the batch once


@pytest.mark.parametrize("name", SMALLEST)
def test_no_graph_breaks_under_compile(name: str) -> None:
    model = small(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert largest(compiled(images()), model(images())) < 1e-4
    torch.compiler.reset()


@pytest.mark.parametrize("name", SMALLEST)
def test_export(name: str) -> None:
    model = small(name)
    with torch.no_grad():
        exported = torch.export.export(model, (images(),)).module()
        assert largest(exported(images(seed=1)), model(images(seed=1))) < 1e-4


@pytest.mark.parametrize("name", SMALLEST)
def test_onnx(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, file = small(name), io.BytesIO()
    torch.onnx.export(model, (images(1),), file, dynamo=True, verbose=False, optimize=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    x = images(1, seed=1)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        apart = largest(torch.from_numpy(logits), model(x))
    with capsys.disabled():
        print(f"\n{name}: ONNX and PyTorch differ by at most {apart:.1e} of the largest logit")
    assert apart < 1e-3


@pytest.mark.parametrize("name", SMALLEST)
def test_a_layer_to_explain_is_found(name: str) -> None:
    model = small(name)
    found = find_target_layer(model, images(1, 128, 128))
    grid = found.to_grid(model.forward_features(images(1, 128, 128))) if found.kind == "nchw" else None
    assert found.to_grid.size[0] >= 2
    assert grid is None or grid.shape[-1] >= 2


@pytest.mark.parametrize("name", SMALLEST)
def test_load_model_knows_it_and_its_preprocessing(name: str) -> None:
    model = striate.load_model(name)
    assert model.preprocessing.input_size == VARIANTS[name].input_size
    assert model.preprocessing.mean == VARIANTS[name].mean
