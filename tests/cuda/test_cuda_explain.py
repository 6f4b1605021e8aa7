"""Every explainer draws on the GPU the map that it draws on the CPU, and judges it alike."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from striate.data.images import read_images
from striate.engine.load import load_model
from striate.errors import InputError, LayerError, ModelError
from striate.explain import deletion, insertion
from striate.explain.ablation_cam import channel_drops
from striate.explain.axioms import AXIOM_METHODS, axiom_reports, score_decomposition
from striate.explain.localisation import energy_in_box, energy_in_mask, pointing_game, tune_alpha, wsl
from striate.explain.registry import METHODS
from striate.explain.rollout import attention_rollout, feature_attention
from striate.explain.sanity import randomization_check
from striate.explain.tail import Tail
from striate.explain.target_layer import find_target_layer
from striate.testing import check_explainer, left_as_it_came, sample_network

FEW: dict[str, dict[str, Any]] = {
    "gradient-shap": {"n_samples": 6},
    "smoothgrad": {"n_samples": 6},
    "integrated-gradients": {"n_steps": 6},
    "rise": {"n_masks": 24},
    "lime": {"n_segments": 8, "n_samples": 40},
    "meaningful-perturbation": {"iterations": 4, "mask_size": 6},
    "occlusion": {"window": 40, "stride": 20},
    "score-cam": {"layer": "blocks.1.0"},  # few channels
    "ablation-cam": {"layer": "blocks.6.0"},
}
VIT = {"occlusion": {"window": 12, "stride": 8}, "score-cam": {}, "ablation-cam": {}}


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return read_images("embedded", load_model("lite0").preprocessing, limit=2).images


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    return load_model("lite0")


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=6)
    return load_model(model, input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3).eval()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def explained(method: str, here: nn.Module, x: Tensor, device, options: dict[str, Any]) -> None:
    """The map of a copy on the device, from images here and there, against the map on the CPU."""
    there = copy.deepcopy(here).to(device)
    try:
        wanted = METHODS[method].factory(here, **options).attribute(x)
    except (LayerError, ModelError):
        assert METHODS[method].needs is not None
        with pytest.raises((LayerError, ModelError)):
            METHODS[method].factory(there, **options).attribute(x.to(device))
        return
    for images in (x.to(device), x):
        with left_as_it_came(there):
            found = METHODS[method].factory(there, **options).attribute(images)
        assert found.map.device == device
        assert torch.equal(found.target, wanted.target)
        assert found.layer == wanted.layer
        assert found.check.passed == wanted.check.passed, (found.check, wanted.check)
        # By correlation and by the largest value: a ReLU at its kink may pass a single pixel's gradient or not.
        apart = (found.map.cpu().double() - wanted.map.double()).flatten(1)
        share = apart.norm(dim=1) / wanted.map.double().flatten(1).norm(dim=1).clamp_min(1e-12)
        # Adam makes whole steps of small gradients too.
        bound = 0.1 if method == "meaningful-perturbation" else 2e-2
        assert float(share.max()) < bound, f"{float(share.max()):.1e} of the map's length"


@pytest.mark.parametrize("method", METHODS)
def test_lite0(device, lite0, photos, method) -> None:
    explained(method, lite0, photos, device, FEW.get(method, {}))


@pytest.mark.parametrize("method", METHODS)
def test_a_transformer(device, vit, photos, method) -> None:
    small = nn.functional.interpolate(photos, 32, mode="area")
    explained(method, vit, small, device, VIT.get(method, FEW.get(method, {})))


@pytest.mark.parametrize("method", METHODS)
def test_the_contract(device, method) -> None:
    options = {**FEW.get(method, {}), **({"window": 6, "stride": 3} if method == "occlusion" else {})}
    options.pop("layer", None)
    check_explainer(METHODS[method].factory, model=sample_network().to(device), **options)


@pytest.mark.parametrize("method", ["grad-cam", "rise", "integrated-gradients"])
def test_under_bfloat16_autocast(device, lite0, photos, method) -> None:
    there = copy.deepcopy(lite0).to(device)
    plain = METHODS[method].factory(there, **FEW.get(method, {})).attribute(photos.to(device), 285)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        half = METHODS[method].factory(there, **FEW.get(method, {})).attribute(photos.to(device), 285)
    assert half.map.isfinite().all()
    a, b = (result.normalized.flatten(1).double().cpu() for result in (plain, half))
    assert float(torch.cosine_similarity(a, b, dim=1).min()) > 0.8


def test_curves(device, lite0, photos) -> None:
    there, maps = copy.deepcopy(lite0).to(device), METHODS["grad-cam"].factory(lite0).attribute(photos, 285).normalized
    for measure in (insertion, deletion):
        wanted = measure(lite0, photos, [285, 281], maps, step=8_000)
        for images, given in ((photos.to(device), maps.to(device)), (photos, maps), (photos.to(device), maps)):
            found = measure(there, images, [285, 281], given, step=8_000)
            assert torch.allclose(found.curve.cpu(), wanted.curve, atol=1e-4)
            assert torch.allclose(found.auc.cpu(), wanted.auc, atol=1e-4)
            assert found.check.passed, found.check


def test_the_anchor_holds_with_pytorchs_default_precision(device, lite0, photos) -> None:
    """Whoever lets convolutions run in TF32 still gets float32 while a network is looked at, and his setting back."""
    torch.backends.cudnn.allow_tf32 = True
    there = copy.deepcopy(lite0).to(device)
    maps = METHODS["grad-cam"].factory(there).attribute(photos.to(device), 285).normalized
    for measure in (insertion, deletion):
        found = measure(there, photos.to(device), 285, maps, step=8_000, batch_size=3)
        assert found.check.passed, found.check
    assert torch.backends.cudnn.allow_tf32


def test_axioms(device, lite0, photos) -> None:
    there = copy.deepcopy(lite0).to(device)
    wanted = axiom_reports(lite0, "blocks.6.0", photos, [285, 281])
    for images in (photos.to(device), photos):
        found = axiom_reports(there, "blocks.6.0", images, [285, 281])
        for method in AXIOM_METHODS:
            for name in ("score", "sensitivity_error", "conservation_error", "delta", "contribution", "bias_term"):
                a, b = getattr(found[method], name), getattr(wanted[method], name)
                # Errors are shares of the score, and rounding's own are some 1e-8.
                assert torch.allclose(a.cpu(), b, rtol=1e-2, atol=max(1e-6, 1e-3 * float(b.abs().max()))), (
                    method,
                    name,
                )
        assert isinstance(found["xgrad-cam"].to_dict(), dict)


def test_a_score_splits_exactly(device) -> None:
    """PyTorch records cuDNN's batch norm, convolution and pooling under names of their own."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            nn.init.normal_(module.bias, std=0.3)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    there = copy.deepcopy(model).to(device)
    wanted = score_decomposition(model, "layer2", x, [1, 3])
    for images in (x.to(device), x):
        found = score_decomposition(there, "layer2", images, [1, 3])
        assert float((found.residual / found.score).abs().max()) < 1e-8
        for a, b in zip(found, wanted, strict=True):
            assert torch.allclose(a.cpu(), b, rtol=1e-7, atol=1e-9)
    single = copy.deepcopy(there).float()
    found = score_decomposition(single, "layer2", x.float(), [1, 3])
    assert float((found.residual / found.score).abs().max()) < 1e-3


def test_replaced_responses(device, same) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5).eval()
    there, x = copy.deepcopy(model).to(device), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        tails = Tail(there, "layer3", x.to(device)), Tail(model, "layer3", x)
        responses = torch.randn(3, *tails[1].response.shape[1:])
        same(tails[0](responses.to(device), 1), tails[1](responses, 1), 1e-3)
        assert tails[0].exact
        drops = [channel_drops(m, "layer4", images, [1, 2]).drops for m, images in ((there, x.to(device)), (model, x))]
        same(*drops, 1e-3)
    assert find_target_layer(there, x).name == find_target_layer(model, x).name


def test_localisation(device) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(5, 17, 23, generator=generator)
    maps[1] = 0.6  # a tie everywhere: the seed decides
    boxes = torch.tensor([[2, 3, 9, 11], [0, 0, 23, 8], [4, 4, 20, 16], [1, 2, 3, 4], [10, 0, 23, 17]])
    for given in (boxes, boxes.to(device)):
        there = maps.to(device)
        assert torch.equal(pointing_game(there, given, 2).cpu(), pointing_game(maps, boxes, 2))
        assert torch.allclose(energy_in_box(there, given).cpu(), energy_in_box(maps, boxes))
        assert torch.equal(wsl(there, given, 0.4).boxes.cpu(), wsl(maps, boxes, 0.4).boxes)
        assert tune_alpha(there, given) == tune_alpha(maps, boxes)
    assert torch.allclose(energy_in_mask(maps.to(device), maps > 0.5).cpu(), energy_in_mask(maps, maps > 0.5))


@pytest.mark.parametrize("method", ["gradient", "grad-cam"])
def test_the_randomisation_check(device, method) -> None:
    """The new weights are drawn on the device, so the figures differ; what is kept and what falls does not."""
    model, x = sample_network(), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    there = copy.deepcopy(model).to(device)
    wanted = randomization_check(model, x, method, target=[1, 2, 3])
    for images in (x.to(device), x):
        with left_as_it_came(there):
            found = randomization_check(there, images, method, target=[1, 2, 3])
        assert found.stages == wanted.stages
        assert found.spearman.shape == wanted.spearman.shape
        assert (found.spearman.abs() <= 1 + 1e-9).all()
    again = randomization_check(there, x, method, target=[1, 2, 3])
    assert torch.allclose(again.spearman, found.spearman, atol=1e-3)


def test_rollout(device, vit, photos, same) -> None:
    x = nn.functional.interpolate(photos, 32, mode="area")
    there = copy.deepcopy(vit).to(device)
    for images in (x.to(device), x):
        same(attention_rollout(there, images), attention_rollout(vit, x))
    model = sample_network()
    same(feature_attention(copy.deepcopy(model).to(device), x), feature_attention(model, x))


def test_targets_out_of_range_are_refused_by_name(device, lite0, photos) -> None:
    there = copy.deepcopy(lite0).to(device)
    with pytest.raises(InputError, match="0 to 999"):
        METHODS["gradient"].factory(there).attribute(photos, 1000)
    with pytest.raises(InputError, match="finite"):
        METHODS["gradient"].factory(there).attribute(photos * torch.nan)
