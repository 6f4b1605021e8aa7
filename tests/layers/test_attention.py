"""Attention matrices and temperature, over every way in which networks compute attention."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from striate.errors import InputError, ModelError
from striate.layers.attention import (
    LayerAttention,
    SmoothedAttention,
    attention_entropy,
    attention_modules,
    attention_weights,
    smooth_attention,
)


def vit(fused: bool = True, **options: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=4, in_chans=3, num_classes=7, embed_dim=32, depth=3, num_heads=4, **options
    ).eval()
    _sharpen(model)
    return _fuse(model, fused)


def swin(fused: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = timm.models.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=7
    ).eval()
    _sharpen(model)
    return _fuse(model, fused)


def torchvision_vit() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 4, 3, 4, 32, 64, num_classes=7).eval()
    nn.init.normal_(model.heads[0].weight)
    _sharpen(model)
    return model


def torchvision_swin() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=7).eval()
    _sharpen(model)
    return model


def encoder() -> nn.Module:
    """torch.nn.TransformerEncoderLayer, whose compiled path in eval mode never calls its attention module."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    _sharpen(model)
    return nn.Sequential(nn.Flatten(2), model, nn.Flatten(1))


class HuggingStyle(nn.Module):
    """query, key, value as separate layers, eager softmax: the way of Hugging Face's ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / 2.0
        return (nn.functional.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)


def _sharpen(model: nn.Module) -> None:
    """Random networks attend almost uniformly; larger projections make the temperature visible."""
    for name, parameter in model.named_parameters():
        if ("qkv" in name or "in_proj" in name) and parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5)


def _fuse(model: nn.Module, fused: bool) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return model


MODELS = {
    "timm vit fused": (lambda: vit(True), (2, 3, 16, 16), 3),
    "timm vit unfused": (lambda: vit(False), (2, 3, 16, 16), 3),
    "timm vit qk norm": (lambda: vit(True, qk_norm=True), (2, 3, 16, 16), 3),
    "timm swin fused": (lambda: swin(True), (2, 3, 32, 32), 4),
    "timm swin unfused": (lambda: swin(False), (2, 3, 32, 32), 4),
    "torchvision vit": (torchvision_vit, (2, 3, 16, 16), 3),
    "torchvision swin": (torchvision_swin, (2, 3, 32, 32), 4),
    "torch encoder": (encoder, (2, 5, 32), 2),
    "hugging style": (HuggingStyle, (2, 5, 8), 1),
}


@pytest.fixture(params=MODELS, name="case")
def _case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, int]:
    build, shape, count = MODELS[request.param]
    return build().eval(), torch.rand(shape, generator=torch.Generator().manual_seed(1)), count


@pytest.mark.parametrize(
    ("temperature", "first", "rest", "entropy"),
    [(1.0, 0.711235, 0.096255, 0.918284), (1.4, 0.581749, 0.139417, 1.139216), (2.0, 0.475367, 0.174878, 1.268302)],
)
def test_softmax_at_a_temperature_by_hand(temperature: float, first: float, rest: float, entropy: float) -> None:
    """One head, one channel: query 1 against keys (2, 0, 0, 0), so the logits are exactly (2, 0, 0, 0)."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Identity(), nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.q(torch.ones_like(x)), self.k(x), self.v(torch.eye(4)[None, None])
            return F.scaled_dot_product_attention(q, k, v)

    keys = torch.tensor([2.0, 0, 0, 0]).view(1, 1, 4, 1)
    model = Single()
    with smooth_attention(model, temperature):
        out = model(keys)
        (seen,) = attention_weights(model, keys)
    expected = torch.tensor([first, rest, rest, rest])
    torch.testing.assert_close(out[0, 0, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.weights[0, 0, 0], expected, atol=1e-6, rtol=0)
    assert attention_entropy([seen])[""] == pytest.approx(entropy, abs=1e-6)


def test_infinite_temperature_is_the_plain_mean() -> None:
    model, x = vit(), torch.rand(1, 3, 16, 16)
    with smooth_attention(model, 1e9):
        weights = attention_weights(model, x)
    for item in weights:
        torch.testing.assert_close(item.weights, torch.full_like(item.weights, 1 / 17), atol=1e-6, rtol=0)


@torch.no_grad()
def test_every_attention_is_found_and_temperature_one_changes_nothing(case: tuple[nn.Module, Tensor, int]) -> None:
    model, x, count = case
    clean = model(x)
    with smooth_attention(model, 1.0) as smoothed:
        assert smoothed.count == count == len(smoothed.layers)
        # Rounding alone: PyTorch's attention and the one written out add in another order, layer after layer.
        torch.testing.assert_close(model(x), clean, atol=5e-5 * float(clean.abs().max()), rtol=0)
    assert torch.equal(model(x), clean)  # and nothing stays behind


@torch.no_grad()
def test_temperature_changes_the_output(case: tuple[nn.Module, Tensor, int]) -> None:
    model, x, _ = case
    clean = model(x)
    with smooth_attention(model, 5.0):
        assert (model(x) - clean).abs().max() > 1e-3


@torch.no_grad()
def test_setting_scale_does_nothing_while_fused_but_the_temperature_does() -> None:
    """The trap: timm hands no scale to the fused kernel."""
    model, x = vit(True), torch.rand(2, 3, 16, 16)
    clean = model(x)
    changed = copy.deepcopy(model)
    for module in attention_modules(changed).values():
        module.scale /= 5.0
    assert torch.equal(changed(x), clean)
    unfused = _fuse(changed, False)
    with smooth_attention(model, 5.0):
        torch.testing.assert_close(model(x), unfused(x), atol=1e-5, rtol=0)
    assert (unfused(x) - clean).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("build", [vit, swin])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.4, 5.0])
def test_fused_and_unfused_agree(build: object, temperature: float) -> None:
    fused, unfused = build(True), build(False)  # type: ignore[operator]
    x = torch.rand(2, 3, 32, 32) if build is swin else torch.rand(2, 3, 16, 16)
    clean = unfused(x)
    with smooth_attention(fused, temperature), smooth_attention(unfused, temperature):
        torch.testing.assert_close(fused(x), unfused(x), atol=1e-5, rtol=0)
        if temperature == 1.0:
            assert torch.equal(unfused(x), clean)  # bitwise


@torch.no_grad()
def test_torchvision_vit_equals_its_formula() -> None:
    """Dividing the query projection by T is the definition where nothing stands between it and the product."""
    model, x = torchvision_vit(), torch.rand(2, 3, 16, 16)
    scaled = copy.deepcopy(model)
    for module in attention_modules(scaled).values():
        module.in_proj_weight[:32] /= 3.0
        module.in_proj_bias[:32] /= 3.0
    with smooth_attention(model, 3.0):
        torch.testing.assert_close(model(x), scaled(x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_windows_keep_their_mask_at_any_temperature() -> None:
    """Dividing the mask too would let shifted windows look at each other."""
    model, x = swin(), torch.rand(1, 3, 32, 32)
    before = attention_weights(model, x)[1].weights
    with smooth_attention(model, 1000.0):
        after = attention_weights(model, x)[1].weights
    assert (before < 1e-12).any()
    assert torch.equal(before < 1e-12, after < 1e-12)


@torch.no_grad()
def test_weights_are_distributions_and_leave_the_model_alone(case: tuple[nn.Module, Tensor, int]) -> None:
    model, x, count = case
    clean, hooks = model(x), [len(module._forward_hooks) for module in model.modules()]
    model.train()
    weights = attention_weights(model, x)
    assert model.training
    model.eval()
    assert [item.layer for item in weights] == list(attention_modules(model))
    assert len(weights) == count
    for item in weights:
        assert item.weights.dim() == 4
        torch.testing.assert_close(item.weights.sum(-1), torch.ones(item.weights.shape[:-1]))
    assert torch.equal(model(x), clean)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_weights_equal_timms_own_unfused_matrices() -> None:
    model, x = vit(False), torch.rand(2, 3, 16, 16)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(x)
        expected = list(seen)
        got = attention_weights(_fuse(model, True), x)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.weights, theirs, atol=1e-6, rtol=0)


def test_multihead_weights_equal_torchs_own() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.rand(3, 5, 8)
    expected = attention(x, x, x, average_attn_weights=False)[1]

    class Once(nn.Module):
        def __init__(self, need: bool) -> None:
            super().__init__()
            self.attention, self.need = attention, need

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=self.need)[0]

    for need in (False, True):
        (item,) = attention_weights(Once(need), x)
        torch.testing.assert_close(item.weights, expected)


def test_gradients_flow_through_the_temperature(case: tuple[nn.Module, Tensor, int]) -> None:
    """An adaptive attacker differentiates the smoothed network: compare with finite differences."""
    model, x, _ = case
    model, x = model.double(), x.double().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    with smooth_attention(model, 2.0):
        (grad,) = torch.autograd.grad(model(x).sum(), x)
        with torch.no_grad():
            step = 1e-6 * direction
            slope = (model(x + step).sum() - model(x - step).sum()) / 2e-6
    assert float((grad * direction).sum()) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


def test_attention_weights_are_differentiable() -> None:
    model, x = vit(), torch.rand(1, 3, 16, 16, requires_grad=True)
    attention_weights(model, x)[-1].weights[0, :, 0, 3].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@torch.no_grad()
def test_permanent_until_removed_and_as_a_module() -> None:
    model, x = vit(), torch.rand(2, 3, 16, 16)
    clean = model(x)
    handle = smooth_attention(model, 2.0)
    smoothed = model(x)
    assert (smoothed - clean).abs().max() > 1e-3
    assert torch.equal(copy.deepcopy(model)(x), smoothed)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), smoothed)
    handle.remove()
    handle.remove()
    assert torch.equal(model(x), clean)
    wrapped = SmoothedAttention(model, 2.0)
    assert wrapped.count == 3
    assert not wrapped.training
    assert torch.equal(wrapped(x), smoothed)
    assert "temperature=2" in repr(wrapped)


@torch.no_grad()
def test_two_temperatures_multiply() -> None:
    for model in (vit(True), vit(False)):
        x = torch.rand(2, 3, 16, 16)
        with smooth_attention(model, 6.0):
            expected, matrices = model(x), attention_weights(model, x)
        with smooth_attention(model, 2.0), smooth_attention(model, 3.0):
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(attention_weights(model, x)[0].weights, matrices[0].weights)


def test_an_exception_inside_leaves_no_mode_behind() -> None:
    model = vit()
    with smooth_attention(model, 2.0), pytest.raises(RuntimeError):
        model.blocks[0].attn(torch.rand(1, 4, 5))  # wrong width
    x = torch.rand(1, 3, 16, 16)
    clean = vit()(x)
    assert torch.equal(model(x), clean)
    assert not torch.overrides._get_current_function_mode_stack()


@torch.no_grad()
def test_autocast_and_other_floats() -> None:
    model, x = vit(), torch.rand(1, 3, 16, 16)
    with smooth_attention(model, 2.0):
        full = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = attention_weights(model, x)
            torch.testing.assert_close(model(x).float(), full, atol=0.1, rtol=0.1)
        torch.testing.assert_close(model.double()(x.double()).float(), full, atol=1e-4, rtol=1e-4)
    assert len(half) == 3


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("eva02_tiny_patch14_224", 12),
        ("efficientvit_m0", 6),
        ("levit_128s", 11),
    ],
)
@torch.no_grad()
def test_other_families_of_timm(name: str, count: int) -> None:
    model = timm.create_model(name).eval()
    x = torch.rand(1, *model.default_cfg["input_size"])
    clean = model(x)
    with smooth_attention(model, 1.0) as smoothed:
        torch.testing.assert_close(model(x), clean, atol=1e-5, rtol=1e-5)
        assert smoothed.count == count
    for item in attention_weights(model, x):
        assert isinstance(item, LayerAttention)


def test_what_cannot_be_smoothed_is_refused() -> None:
    for bad in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="temperature"):
            smooth_attention(vit(), bad)
    resnet = torchvision.models.resnet18()
    with pytest.raises(ModelError, match="no self-attention"):
        smooth_attention(resnet, 2.0)
    with pytest.raises(ModelError, match="no self-attention"):
        attention_weights(resnet, torch.rand(1, 3, 64, 64))
    linear = timm.create_model("efficientvit_b0").eval()  # attention without a softmax
    with smooth_attention(linear, 2.0), pytest.raises(ModelError, match=r"no softmax of Q Kᵀ"):
        linear(torch.rand(1, 3, 224, 224))


@pytest.mark.parametrize("fused", [True, False])
def test_compiled_code_takes_the_temperature_once_or_is_refused(fused: bool) -> None:
    vit = timm.models.VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    for block in vit.blocks:
        block.attn.fused_attn = fused
        torch.nn.init.normal_(block.attn.qkv.weight)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.compiler.reset()
    compiled = torch.compile(vit.eval(), backend="eager")
    with torch.no_grad():
        plain = compiled(images)
        with pytest.raises(ModelError, match=r"torch\.compile"):
            smooth_attention(compiled, 5.0)
        with smooth_attention(vit, 5.0):
            smoothed = vit(images)
            assert (smoothed - plain).abs().max() > 1e-4
            torch.compiler.reset()
            assert torch.equal(torch.compile(vit, backend="eager")(images), smoothed)
    torch.compiler.reset()
