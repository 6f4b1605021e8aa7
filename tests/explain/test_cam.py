"""Class activation maps: closed forms, the identities that each rests on, parity with pytorch-grad-cam 1.5."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from striate.engine.check import Check
from striate.errors import InputError, LayerError, ModelError, TrainModeWarning, UnstableWarning
from striate.explain.cam import CAM, AblationCAM, GradCAM, GradCAMPlusPlus, ScoreCAM, XGradCAM
from striate.explain.result import normalize

EVERY = [GradCAM, XGradCAM, GradCAMPlusPlus, AblationCAM, ScoreCAM]


class Tiny(nn.Module):
    """Two 2 x 2 maps that are the image itself, and a linear score with the gradients wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 1, bias=False)
        self.layer.weight.data = torch.eye(2)[:, :, None, None]
        self.head = nn.Linear(8, 2, bias=False)
        self.head.weight.data = torch.tensor([[2.0, 5, 7, 4, 1, 1, 1, -1], [0.0] * 8])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).flatten(1))


TINY = torch.tensor([[[[1.0, 0], [0, 1]], [[1.0, 2], [3, 4]]]])


def vgg(seed: int = 0, classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(), nn.Linear(16, classes),
    ).eval()  # fmt: skip


def gap(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()  # fmt: skip


def test_tiny_closed_form() -> None:
    grad = GradCAM(Tiny().eval(), "layer").attribute(TINY, 0)
    xgrad = XGradCAM(Tiny().eval(), "layer").attribute(TINY, 0)
    torch.testing.assert_close(grad.weights, torch.tensor([[4.5, 0.5]]))
    torch.testing.assert_close(xgrad.weights, torch.tensor([[3.0, 0.2]]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(xgrad.map, torch.tensor([[[3.2, 0.4], [0.6, 3.8]]]), rtol=1e-5, atol=1e-5)
    shown = torch.tensor([[[0.8235, 0], [0.0588, 1]]])
    torch.testing.assert_close(xgrad.normalized, shown, rtol=0, atol=1e-4)
    assert xgrad.layer == "layer"
    torch.testing.assert_close(xgrad.activations, TINY)


def test_tiny_closed_form_of_the_others() -> None:
    # S = 2 + 4 + 1 + 2 + 3 - 4 = 8; without map 1 it falls by 6, without map 2 by 2.
    ablation = AblationCAM(Tiny().eval(), "layer").attribute(TINY, 0)
    torch.testing.assert_close(ablation.weights, torch.tensor([[6 / 8, 2 / 8]]))
    oracle = AblationCAM(Tiny().eval(), "layer", oracle=True).attribute(TINY, 0)
    torch.testing.assert_close(oracle.weights, torch.tensor([[6 / 2, 2 / 10]]))
    g, sums = torch.tensor([[2.0, 5, 7, 4], [1, 1, 1, -1]]), torch.tensor([[2.0], [10.0]])
    alpha = g**2 / (2 * g**2 + sums * g**3 + 1e-6)
    plus = GradCAMPlusPlus(Tiny().eval(), "layer").attribute(TINY, 0)
    torch.testing.assert_close(plus.weights[0], (alpha * g.clamp_min(0)).sum(dim=1))


def test_relu_false_gives_the_signed_map() -> None:
    images = torch.rand(2, 3, 16, 16)
    signed = XGradCAM(vgg(), "5", relu=False).attribute(images, 1)
    assert (signed.map < 0).any()
    assert torch.equal(XGradCAM(vgg(), "5").attribute(images, 1).map, signed.map.clamp_min(0))


def test_the_three_are_one_at_global_average_pooling() -> None:
    model, images = gap(), torch.rand(3, 3, 9, 7)
    maps = [method(model, relu=False).attribute(images, [0, 3, 1]) for method in (CAM, GradCAM, XGradCAM)]
    places = maps[0].map[0].numel()
    torch.testing.assert_close(maps[0].weights, model[4].weight[[0, 3, 1]].detach())
    torch.testing.assert_close(maps[0].map / places, maps[1].map)
    torch.testing.assert_close(maps[1].map, maps[2].map, rtol=1e-4, atol=1e-6)
    for result in maps[1:]:
        assert result.notes["gradients_constant_over_space"]
        assert result.check.passed
    assert "provably Grad-CAM's map" in maps[2].check.statement
    assert abs(maps[0].notes["bias"][1] - model[4].bias[3].item()) < 1e-6


def test_cam_refuses_another_head() -> None:
    with pytest.raises(LayerError, match="Use GradCAM"):
        CAM(vgg(), "5").attribute(torch.rand(1, 3, 16, 16))
    # A linear layer of fitting size is not enough: its weights have to give the logit.
    model = gap()
    model[2] = nn.AdaptiveMaxPool2d(1)
    with pytest.raises(LayerError, match="average pooling"):
        CAM(model, "1").attribute(torch.rand(1, 3, 9, 9))
    with pytest.raises(InputError, match="class index"):
        CAM(gap()).attribute(torch.rand(1, 3, 9, 9), lambda logits: logits[:, 0])


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 4), h=st.integers(8, 13), w=st.integers(8, 13), double=st.booleans(), last=st.booleans())
def test_xgrad_contributions_add_up_to_gradient_times_activation(
    n: int, h: int, w: int, double: bool, last: bool
) -> None:
    torch.manual_seed(h * w)
    dtype = torch.float64 if double else torch.float32
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(),
        nn.Linear(45, 4),
    ).to(dtype).eval()  # fmt: skip
    images = torch.rand(n, 3, h, w, dtype=dtype)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    result = XGradCAM(model, "1", relu=False).attribute(images, 2)
    leaf = result.activations.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model[2:](leaf)[:, 2].sum(), leaf)
    expected = (gradient * leaf).sum(dim=(1, 2, 3)).detach()
    torch.testing.assert_close(result.map.sum(dim=(1, 2)), expected, rtol=1e-3, atol=1e-4)
    assert result.map.dtype == dtype
    assert result.check.passed
    # A batch gives what its images give one by one.
    alone = torch.cat([XGradCAM(model, "1", relu=False).attribute(image[None], 2).map for image in images])
    torch.testing.assert_close(result.map, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", EVERY)
def test_each_sample_of_a_batch_has_its_own_target(method: type[GradCAM]) -> None:
    model, images, classes = vgg(), torch.rand(3, 3, 16, 16), [4, 0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableWarning)
        together = method(model, "5").attribute(images, classes)
        for i, target in enumerate(classes):
            alone = method(model, "5").attribute(images[i : i + 1], target)
            torch.testing.assert_close(together.map[i], alone.map[0], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(together.weights[i], alone.weights[0], rtol=1e-4, atol=1e-6)
        called = method(model, "5").attribute(
            images, lambda logits: logits.gather(1, torch.tensor([[4], [0], [2]]))[:, 0]
        )
    torch.testing.assert_close(called.map, together.map)
    assert together.map.shape == (3, 4, 4)
    assert isinstance(together.check, Check)
    assert together.normalized.shape == (3, 16, 16)
    assert 0 <= float(together.normalized.min()) <= float(together.normalized.max()) <= 1


def test_a_dead_channel_weighs_nothing_and_an_empty_map_is_zeros() -> None:
    model = vgg()
    nn.init.zeros_(model[3].weight[2])
    nn.init.constant_(model[3].bias, -9.0)
    model[3].bias.data[2] = -1.0
    model[3].bias.data[0] = 1.0
    result = XGradCAM(model, "5").attribute(torch.rand(1, 3, 16, 16), 0)
    assert result.weights[0, 2] == 0
    ablated = AblationCAM(model, "5", oracle=True).attribute(torch.rand(1, 3, 16, 16), 0)
    assert ablated.weights[0, 2] == 0
    assert ablated.notes["channels_run"][0] < 8
    assert not torch.isnan(normalize(torch.zeros(1, 4, 4))).any()


def test_negative_responses_that_cancel_are_warned_of() -> None:
    model = vgg()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        mean = model[:4](images).mean(dim=(0, 2, 3))
        model[3].bias -= mean
    with pytest.warns(UnstableWarning, match="cancel XGrad-CAM's denominator"):
        result = XGradCAM(model, "3").attribute(images[:1], 0)
    assert max(result.notes["unstable_channels"]) > 0


def test_ablation_is_the_whole_network_without_the_channel() -> None:
    model, images = vgg(), torch.rand(2, 3, 16, 16)
    scores = model(images).detach()
    result = AblationCAM(model, "2", batch_size=4, oracle=True).attribute(images, [1, 3])
    drops = result.weights * result.activations.sum(dim=(2, 3))
    for k in range(6):

        def without(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor, k: int = k) -> Tensor:
            output = output.clone()
            output[:, k] = 0
            return output

        handle = model[2].register_forward_hook(without)
        expected = (scores - model(images).detach())[[0, 1], [1, 3]]
        handle.remove()
        torch.testing.assert_close(drops[:, k], expected, rtol=1e-3, atol=1e-5)


def test_ablation_warns_where_its_division_turns_the_map_over() -> None:
    model, images = vgg(), torch.rand(1, 3, 16, 16)
    worst = int(model(images).argmin())
    model[9].bias.data[worst] = -5.0
    with pytest.warns(UnstableWarning, match="turns the map over"):
        AblationCAM(model, "5").attribute(images, worst)


def test_scores_weights_are_the_masked_images_scores() -> None:
    model, images = vgg(), torch.rand(1, 3, 16, 16)
    result = ScoreCAM(model, "5", batch_size=3).attribute(images, 2)
    expected = []
    for k in range(8):
        mask = torch.nn.functional.interpolate(result.activations[:, k : k + 1], size=(16, 16), mode="bilinear")
        expected.append(model(normalize(mask[:, 0])[:, None] * images)[0, 2].detach())
    torch.testing.assert_close(result.weights[0], torch.stack(expected).softmax(dim=0))


def parity_cases() -> list[tuple[str, type, dict[str, object]]]:
    return [
        ("GradCAM", GradCAM, {}),
        ("XGradCAM", XGradCAM, {}),
        ("GradCAMPlusPlus", GradCAMPlusPlus, {}),
        ("AblationCAM", AblationCAM, {}),
        ("ScoreCAM", ScoreCAM, {"align_corners": True}),
    ]


@pytest.mark.parametrize(("name", "method", "options"), parity_cases())
@pytest.mark.parametrize("layer", ["2", "5"])
def test_parity_with_pytorch_grad_cam(name: str, method: type[GradCAM], options: dict, layer: str) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = vgg()
    model[9].bias.data += 5  # a positive score, by which Ablation-CAM divides
    images = torch.rand(2, 3, 16, 16)
    ours = method(model, layer, **options).attribute(images, [1, 3])
    theirs_of = copy.deepcopy(model)
    explainer = getattr(peer, name)(theirs_of, [theirs_of.get_submodule(layer)])
    theirs = explainer(images, [ClassifierOutputTarget(1), ClassifierOutputTarget(3)])
    torch.testing.assert_close(ours.normalized, torch.from_numpy(theirs), rtol=0, atol=1e-4)


def test_parity_of_weights_with_pytorch_grad_cam() -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    model, images = vgg(), torch.rand(2, 3, 16, 16)
    ours = XGradCAM(model, "5", eps=1e-7).attribute(images, 1)
    leaf = ours.activations.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model[6:](leaf)[:, 1].sum(), leaf)
    theirs = peer.XGradCAM.get_cam_weights(
        None, images, None, None, ours.activations.numpy(), gradient.detach().numpy()
    )  # fmt: skip
    firm = ours.activations.sum(dim=(2, 3)) > 1e-3
    assert float((ours.weights - torch.from_numpy(theirs)).abs()[firm].max()) < 1e-5


def test_token_networks_have_cams() -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=4).eval()
    images = torch.rand(1, 3, 224, 224)
    for method in (GradCAM, AblationCAM):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnstableWarning)
            result = method(model).attribute(images, 2)
        assert result.layer == "blocks.1.norm1"
        assert result.map.shape == (1, 14, 14)
        assert (result.map != 0).any()


def test_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        result = XGradCAM(vgg(), "5").attribute(torch.rand(1, 3, 16, 16), 0)
    assert result.map.dtype == torch.float32
    assert torch.isfinite(result.map).all()


def test_the_model_leaves_as_it_came() -> None:
    model = vgg().train()
    model[9].bias.data += 5  # a positive score, by which Ablation-CAM divides
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    for method in EVERY:
        with pytest.warns(TrainModeWarning), torch.no_grad():
            method(model, "5").attribute(torch.full((1, 3, 16, 16), 0.5), 0)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("method", EVERY)
def test_errors(method: type[GradCAM]) -> None:
    model, images = vgg(), torch.rand(1, 3, 16, 16)
    with pytest.raises(LayerError, match="no layer 'fives'"):
        method(model, "fives")
    with pytest.raises(LayerError, match="no spatial grid"):
        method(model, "9").attribute(images)
    with pytest.raises(InputError, match="from 0 to 4"):
        method(model, "5").attribute(images, 5)
    with pytest.raises(InputError, match=r"\(N, C, H, W\)"):
        method(model, "5").attribute(images[0])
    model[9].bias.data[0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        method(model, "5").attribute(images, 0)


def test_errors_of_gradients_and_options() -> None:
    model, images = vgg(), torch.rand(1, 3, 16, 16)
    with pytest.raises(LayerError, match="No gradient of this target"):
        GradCAM(model, "5").attribute(images, lambda logits: logits[:, 0] * 0)
    with pytest.raises(InputError, match="eps"):
        XGradCAM(model, eps=-1)
    for method in (AblationCAM, ScoreCAM):
        with pytest.raises(InputError, match="batch_size"):
            method(model, batch_size=0)


def test_vgg16_is_the_published_network() -> None:
    with torch.device("meta"):
        model = torchvision.models.vgg16()
        assert sum(parameter.numel() for parameter in model.parameters()) == 138_357_544
        assert model.features[:31](torch.empty(1, 3, 224, 224)).shape == (1, 512, 7, 7)
        assert isinstance(model.features[30], nn.MaxPool2d)
