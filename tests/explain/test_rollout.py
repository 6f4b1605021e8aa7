from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from striate.engine.model import Preprocessing, VisionModel
from striate.errors import InputError, ModelError
from striate.explain.rollout import attention_rollout, feature_attention, mass_inside, rollout_matrix, token_grid
from striate.layers.attention import attention_weights
from striate.models.mini import resnet_mini


def vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    settings_ = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 32, "depth": 3, "num_heads": 4}
    return timm.models.VisionTransformer(**(settings_ | options)).eval()


def random_attention(layers: int = 3, n: int = 6, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(3 * torch.randn(2, 4, n, n, generator=generator)).softmax(-1) for _ in range(layers)]


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 5),
    st.integers(2, 9),
    st.floats(0, 0.95),
    st.sampled_from(["mean", "max", "min"]),
    st.integers(0, 99),
)
def test_rows_sum_to_one(layers: int, n: int, residual: float, fusion: str, seed: int) -> None:
    rolled = rollout_matrix(random_attention(layers, n, seed), residual, fusion)  # type: ignore[arg-type]
    torch.testing.assert_close(rolled.sum(-1), torch.ones(2, n), atol=1e-5, rtol=0)


def test_uniform_attention_in_one_layer() -> None:
    """N patches and a class token: each patch gets 0.5 / (N + 1)."""
    rolled = rollout_matrix([torch.full((1, 3, 17, 17), 1 / 17)])
    torch.testing.assert_close(rolled[0, 0, 1:], torch.full((16,), 0.5 / 17))


def test_two_layers_by_hand() -> None:
    first, second = random_attention(2)
    eye = torch.eye(6)
    expected = (0.5 * second.mean(1) + 0.5 * eye) @ (0.5 * first.mean(1) + 0.5 * eye)
    torch.testing.assert_close(rollout_matrix([first, second]), expected)
    torch.testing.assert_close(rollout_matrix([first, second], start_layer=1), 0.5 * second.mean(1) + 0.5 * eye)
    torch.testing.assert_close(rollout_matrix([first, second], 0.0), second.mean(1) @ first.mean(1))


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_heads_are_fused_then_rows_normalised(fusion: str) -> None:
    (attention,) = random_attention(1)
    fused = {"mean": attention.mean(1), "max": attention.amax(1), "min": attention.amin(1)}[fusion]
    mixed = 0.5 * fused + 0.5 * torch.eye(6)
    got = rollout_matrix([attention], head_fusion=fusion)  # type: ignore[arg-type]
    torch.testing.assert_close(got, mixed / mixed.sum(-1, keepdim=True))


def test_discarding_keeps_the_largest_and_the_first_entry() -> None:
    attention = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.5, 0.2], [0.05, 0.15, 0.8]])[None, None]
    got = rollout_matrix([attention], discard_ratio=0.7)  # int(9 * 0.7) = 6 smallest go, except the first
    kept = torch.tensor([[0.1, 0.0, 0.7], [0.0, 0.5, 0.0], [0.0, 0.0, 0.8]])
    mixed = 0.5 * kept + 0.5 * torch.eye(3)
    torch.testing.assert_close(got[0], mixed / mixed.sum(-1, keepdim=True))


class Fixed(nn.Module):
    """A token network whose attention is what the test says: logits through q against an identity key."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Identity(), nn.Identity(), nn.Identity()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        n = len(self.logits)
        q, k = self.q(self.logits.expand(len(x), 1, n, n)), self.k(torch.eye(n).expand(len(x), 1, n, n))
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ self.v(torch.ones(len(x), 1, n, 2)))[:, 0, 0]


def test_identity_attention_gives_zeros_and_no_nan() -> None:
    stuck = torch.full((17, 17), -torch.inf).fill_diagonal_(0)
    maps = attention_rollout(Fixed(stuck), torch.rand(2, 3, 16, 16))
    assert torch.equal(maps, torch.zeros(2, 4, 4))


def test_the_map_is_the_class_row_at_the_patches() -> None:
    model, x = vit(), torch.rand(2, 3, 16, 16)
    maps = attention_rollout(model, x)
    row = rollout_matrix([item.weights for item in attention_weights(model, x)])[:, 0, 1:]
    torch.testing.assert_close(maps.flatten(1), row / row.sum(1, keepdim=True))
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(2))
    assert not maps.requires_grad


@pytest.mark.parametrize(
    ("model", "shape", "grid"),
    [
        (vit, (2, 3, 16, 16), (4, 4)),
        (lambda: vit(reg_tokens=4), (1, 3, 16, 16), (4, 4)),
        (lambda: vit(class_token=False, global_pool="avg"), (1, 3, 16, 16), (4, 4)),
        (lambda: vit(img_size=(16, 24)), (1, 3, 16, 24), (4, 6)),
        (lambda: torchvision.models.VisionTransformer(16, 4, 2, 2, 16, 32).eval(), (2, 3, 16, 16), (4, 4)),
        (
            lambda: VisionModel(vit(), Preprocessing((3, 16, 16), (0.5,) * 3, (0.5,) * 3)),
            (1, 3, 16, 16),
            (4, 4),
        ),
    ],
)
def test_vits_of_every_kind(model: object, shape: tuple[int, ...], grid: tuple[int, int]) -> None:
    network = model()  # type: ignore[operator]
    maps = attention_rollout(network, torch.rand(shape), discard_ratio=0.5)
    assert maps.shape == (shape[0], *grid)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(shape[0]))


def test_batches_do_not_mix() -> None:
    model, x = vit(), torch.rand(3, 3, 16, 16)
    together = attention_rollout(model, x, discard_ratio=0.5)
    apart = torch.cat([attention_rollout(model, image[None], discard_ratio=0.5) for image in x])
    torch.testing.assert_close(together, apart)


def test_token_grid_says_when_nothing_fits() -> None:
    assert token_grid(nn.Identity(), 197, (224, 224)) == (1, (14, 14))
    assert token_grid(nn.Identity(), 196, (224, 224)) == (0, (14, 14))
    assert token_grid(nn.Identity(), 201, (224, 224)) == (5, (14, 14))
    with pytest.raises(ModelError, match="do not form a grid"):
        token_grid(nn.Identity(), 31, (224, 224))


def test_what_cannot_be_rolled_out_is_refused() -> None:
    swin = timm.models.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4)
    )
    with pytest.raises(ModelError, match="same tokens"):
        attention_rollout(swin.eval(), torch.rand(1, 3, 32, 32))
    with pytest.raises(ModelError, match="no self-attention"):
        attention_rollout(resnet_mini(), torch.rand(1, 1, 28, 28))
    for options in ({"residual": 1.0}, {"head_fusion": "sum"}, {"start_layer": 3}, {"discard_ratio": 1.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            attention_rollout(vit(), torch.rand(1, 3, 16, 16), **options)  # type: ignore[arg-type]


def test_feature_attention_is_the_channel_mean_of_the_last_map() -> None:
    torch.manual_seed(0)
    model, x = resnet_mini().eval(), torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        expected = model.layer3(model.layer2(model.layer1(model.stem(x)))).mean(1)
    torch.testing.assert_close(feature_attention(model, x), expected)
    torch.testing.assert_close(feature_attention(model, x, "layer1.bn2", absolute=True).shape, torch.Size((2, 28, 28)))
    assert (feature_attention(model, x, "layer1.bn2") < 0).any()


def test_mass_inside_by_hand() -> None:
    maps = torch.tensor([[[1.0, 3.0], [0.0, 4.0]], [[1.0, -5.0], [1.0, 0.0]]])
    masks = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    masks[:, :, :2, 2:] = True  # the upper right place
    masks[1, :, 2:, 0] = True  # and half of the lower left one
    torch.testing.assert_close(mass_inside(maps, masks), torch.tensor([3 / 8, 0.5 / 2]))
    assert mass_inside(torch.zeros(1, 2, 2), masks[:1]).isnan().all()
    with pytest.raises(InputError, match="masks"):
        mass_inside(maps, masks[:, :, :3])
