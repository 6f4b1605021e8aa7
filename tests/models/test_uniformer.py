"""UniFormer for images and video against the authors' code, and the traps of the method."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from striate.engine.macs import count_macs
from striate.errors import InputError
from striate.models.uniformer import (
    GlobalBlock,
    LocalBlock,
    SplitBlock,
    UniFormer,
    checkpoint_filter_fn,
    uniformer_micro,
)
from striate.models.uniformer_3d import UniFormer3D, inflate_2d_state_dict, uniformer3d_base, uniformer3d_small
from striate.testing import check_model

Authors = Callable[[nn.Module], dict[str, Tensor]]
MICRO = {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 96), "head_dim": 16, "num_classes": 3}

# Sense-X/UniFormer 52a0415: image_classification/models/uniformer.py and video_classification/slowfast/models/
# uniformer.py with the sizes of MICRO; every tensor filled as `authors` does; logits of `image` and `clip`. Beside them
# the number of tensors and the crc32 of all names with their shapes, sorted, a line each.
GOLDEN = {
    "plain": (0xA71B3CF5, 109, [3.066838, 1.089426, -1.015691, 2.746249, 0.170054, -1.406728]),
    "conv stem": (0x5290ADE3, 128, [1.168217, -3.933962, 11.772838, -1.486662, -0.689613, 10.607841]),
    "layer scale": (0x84C6ADC5, 115, [0.596374, 1.249088, -1.337956, 0.716299, 1.211856, -1.143478]),
    "video": (0xFD2F5CA0, 109, [1.77353, 2.713902, -0.98565, 1.468871, 2.524598, -1.145033]),
    "split": (0x02756735, 127, [1.098117, 1.684571, -0.473676, 1.306011, 1.560957, -0.68386]),
    "time embed": (0xF1588506, 109, [-1.665137, -2.099329, 1.211515, -1.09382, -1.446293, 0.796461]),
}
INFLATED = [2.535206, 1.767611, -2.795548, 2.443063, 1.497814, -2.665112]


def build(kind: str) -> UniFormer:
    options = {
        "conv stem": {"conv_stem": True},
        "layer scale": {"layer_scale": 1e-6},
        "split": {"split": True},
        "time embed": {"time_embed": True},
    }
    cls = UniFormer3D if kind in {"video", "split", "time embed"} else UniFormer
    return cls(**MICRO, **options.get(kind, {})).eval()


def image(n: int = 2, channels: int = 3, h: int = 64, w: int = 64) -> Tensor:
    return torch.rand(n, channels, h, w, generator=torch.Generator().manual_seed(0))


def clip() -> Tensor:
    return torch.rand(2, 3, 5, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_authors_names_and_numbers(kind: str, authors: Authors) -> None:
    model = build(kind)
    checkpoint = authors(model)
    names = sorted(f"{name} {tuple(value.shape)}" for name, value in checkpoint.items())
    checksum, n, logits = GOLDEN[kind]
    assert (len(names), zlib.crc32("\n".join(names).encode())) == (n, checksum)
    for wrapped in ({"model": checkpoint}, {"model_state": checkpoint}, checkpoint):
        model.load_state_dict(checkpoint_filter_fn(wrapped, model), strict=True)
    x = image() if kind in {"plain", "conv stem", "layer scale"} else clip()
    with torch.no_grad():
        torch.testing.assert_close(model(x).flatten(), torch.tensor(logits), rtol=1e-4, atol=1e-4)


def test_our_own_names_pass_through_the_filter() -> None:
    model = build("plain")
    model.load_state_dict(checkpoint_filter_fn(model.state_dict(), model), strict=True)


def test_inflation_is_the_authors(authors: Authors) -> None:
    images, video = build("plain"), build("video")
    images.load_state_dict(checkpoint_filter_fn(authors(images), images))
    video.load_state_dict(inflate_2d_state_dict(images.state_dict(), video))
    with torch.no_grad():
        torch.testing.assert_close(video(clip()).flatten(), torch.tensor(INFLATED), rtol=1e-4, atol=1e-4)


def test_one_frame_through_centred_kernels_is_the_image(authors: Authors) -> None:
    images, video = build("plain"), build("video")
    images.load_state_dict(checkpoint_filter_fn(authors(images), images))
    video.load_state_dict(inflate_2d_state_dict(images.state_dict(), video, center=True))
    with torch.no_grad():
        torch.testing.assert_close(video(image()[:, :, None]), images(image()), rtol=1e-4, atol=1e-4)


def test_inflation_keeps_another_head_and_refuses_other_widths() -> None:
    images = UniFormer(**MICRO)
    video = UniFormer3D(**{**MICRO, "num_classes": 5})
    inflated = inflate_2d_state_dict(images.state_dict(), video)
    assert torch.equal(inflated["head.weight"], video.head.weight)
    with pytest.raises(InputError, match="state_dict"):
        inflate_2d_state_dict(UniFormer(**{**MICRO, "dims": (16, 32, 64, 128)}).state_dict(), video)


@pytest.mark.parametrize(("make", "parameters"), [(uniformer3d_small, 21_400_400), (uniformer3d_base, 49_813_200)])
def test_video_networks_have_their_published_sizes(make, parameters: int) -> None:
    with torch.device("meta"):
        model = make()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    if make is uniformer3d_small:
        macs = count_macs(model, torch.zeros(1, 3, 16, 224, 224, device="meta"))
        assert macs / 1e9 == pytest.approx(41.66, abs=0.02)


@pytest.mark.parametrize("kind", ["video", "split", "time embed"])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_videos_of_any_length(kind: str, frames: int) -> None:
    model = build(kind)
    x = torch.rand(2, 3, frames, 64, 70)
    assert model.forward_features(x).shape[2] == (frames + 1) // 2
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


def test_split_attention_over_time_starts_at_zero_and_can_move() -> None:
    block = build("split").train().get_submodule("blocks3.0")
    assert isinstance(block, SplitBlock)
    x = torch.rand(1, 64, 3, 4, 4)
    y = block.t_attn(x[:, :, :, 0, 0].transpose(1, 2))
    assert y.abs().max() == 0
    block(x).square().mean().backward()
    assert block.t_attn.qkv.weight.grad is not None
    assert block.t_attn.qkv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("placement", ["LLLL", "LLGG", "GGGG", "GGLL"])
def test_every_placement_keeps_the_contract(placement: str) -> None:
    model = uniformer_micro(placement=placement)
    blocks = [model.get_submodule(f"blocks{i}.0") for i in (1, 2, 3, 4)]
    expected = [LocalBlock if letter == "L" else GlobalBlock for letter in placement]
    assert [type(block) for block in blocks] == expected
    check_model(model, image(), classes=10)


def test_norms_stand_where_the_paper_puts_them() -> None:
    model = timm.create_model("uniformer_base_ls", num_classes=2)
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert model.get_submodule("patch_embed1.norm").eps == 1e-5
    assert model.get_submodule("blocks3.0.norm1").eps == 1e-6
    assert isinstance(model.get_submodule("blocks1.0.norm1"), nn.BatchNorm2d)
    assert torch.equal(model.get_submodule("blocks4.0").gamma_1, torch.full((512,), 1e-6))
    assert not any("gamma" in name for name, _ in model.named_parameters() if name.startswith(("blocks1", "blocks2")))


def test_reach_of_a_block_is_seven_pixels_if_local_and_everything_if_global() -> None:
    torch.manual_seed(0)
    for block, seen in ((LocalBlock(8).eval(), 49), (GlobalBlock(8, 2).eval(), 225)):
        x = torch.randn(1, 8, 15, 15, requires_grad=True)
        block(x)[0, :, 7, 7].square().sum().backward()
        assert x.grad is not None
        assert int((x.grad.abs().sum(dim=(0, 1)) > 0).sum()) == seen


def test_without_position_embedding_global_blocks_do_not_know_places() -> None:
    torch.manual_seed(0)
    block, x = GlobalBlock(8, 2).double().eval(), torch.randn(1, 8, 5, 5, dtype=torch.float64)
    order = torch.randperm(25)

    def shuffled(y: Tensor) -> Tensor:
        return y.flatten(2)[:, :, order].view(y.shape)

    assert not torch.allclose(block(shuffled(x)), shuffled(block(x)))
    nn.init.zeros_(block.pos_embed.proj.weight)
    torch.testing.assert_close(block(shuffled(x)), shuffled(block(x)))


def test_dense_tasks_take_windows_or_every_fourth_block_global() -> None:
    depths = (1, 1, 8, 1)
    plain = uniformer_micro(depths=depths)
    for hybrid in (False, True):
        model = uniformer_micro(depths=depths, window=2, hybrid=hybrid)
        windows = [block.attn.window for block in model.get_submodule("blocks3")]
        assert windows == [2, 2, 2, None if hybrid else 2] * 2
        assert [block.attn.window for block in model.get_submodule("blocks4")] == [None]
        model.load_state_dict(plain.state_dict(), strict=True)  # the same weights
    maps = timm.create_model("uniformer_small", features_only=True, window=14, hybrid=True, drop_path_rate=0.1)
    assert [level.shape[-1] for level in maps.eval()(torch.rand(1, 3, 96, 80))] == [20, 10, 5, 2]


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(InputError, match="placement"):
        uniformer_micro(placement="LLGX")
    with pytest.raises(InputError, match="placement"):
        uniformer_micro(placement="LLG")
    with pytest.raises(InputError, match="dims"):
        uniformer_micro(head_dim=48)
    with pytest.raises(InputError, match="ndim"):
        UniFormer(split=True)
    with pytest.raises(InputError, match="ndim"):
        UniFormer3D(window=7)
    with pytest.raises(InputError, match="at least 32 pixels"):
        uniformer_micro()(torch.rand(1, 3, 31, 64))
    assert uniformer_micro(conv_stem=True).eval()(torch.rand(1, 3, 5, 3)).shape == (1, 10)
