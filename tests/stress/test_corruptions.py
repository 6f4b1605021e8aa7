"""Corruptions: closed forms, statistics of the noises, and figures of the published code.

Figures marked "published" were taken from the authors' module (hendrycks/robustness, ImageNet-C/imagenet_c, as shipped
in JindongGu/ViT_Patch_Robustness) on four scikit-image photographs at 224 pixels.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from striate.errors import InputError
from striate.stress.corruptions import CORRUPTIONS, corrupt
from striate.stress.severities import SEVERITIES, severity_table

STOCHASTIC = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
}


def picture(n: int = 2, channels: int = 3, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    """Smooth blobs with edges, exact multiples of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(n, channels, 6, 6, generator=generator)
    large = torch.nn.functional.interpolate(small, size=size, mode="bilinear")
    large[:, :, size[0] // 3 : size[0] // 2] = 0.9
    return (large * 255).round() / 255


def test_there_are_fifteen_in_the_published_order() -> None:
    assert len(CORRUPTIONS) == 15
    assert (CORRUPTIONS[0], CORRUPTIONS[7], CORRUPTIONS[14]) == ("gaussian_noise", "snow", "jpeg_compression")
    for table in SEVERITIES.values():
        assert tuple(sorted(table)) == tuple(sorted(CORRUPTIONS))
        assert all(len(strengths) == 5 for strengths in table.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_range_and_eight_bits(name: str) -> None:
    for x in (picture(), picture(1, 1, (28, 28)), picture(1, 3, (30, 41)), picture(1, 1, (65, 130))):
        before = x.clone()
        out = corrupt(x, name, 3)
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert 0 <= out.min() <= out.max() <= 1
        torch.testing.assert_close((out * 255).round(), out * 255, atol=1e-4, rtol=0)
        assert not torch.equal(out, x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_seed_gives_the_same_and_batches_may_be_cut(name: str) -> None:
    x, state = picture(3), torch.get_rng_state()
    whole = corrupt(x, name, 4, seed=7)
    assert torch.equal(whole, corrupt(x, name, 4, seed=7))
    torch.testing.assert_close(whole[:2], corrupt(x[:2], name, 4, seed=7), atol=1.01 / 255, rtol=0)
    same = torch.equal(whole, corrupt(x, name, 4, seed=8))
    assert same == (name not in STOCHASTIC)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_moves_images_further_away(name: str) -> None:
    x = picture(4, 3, (96, 96) if name == "glass_blur" else (128, 128))
    away = [float((corrupt(x, name, severity, table=224) - x).abs().mean()) for severity in (1, 5)]
    # Published too: elastic severities 1 and 2 are stronger than 3 to 5.
    assert (away[0] < away[1]) == (name != "elastic_transform")


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(CORRUPTIONS),
    st.integers(1, 5),
    st.sampled_from([1, 3]),
    st.tuples(st.integers(8, 40), st.integers(8, 40)),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_any_size_channel_and_float(
    name: str, severity: int, channels: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    out = corrupt(torch.rand(1, channels, *size).to(dtype), name, severity)
    assert out.shape == (1, channels, *size)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


def test_channels_last_and_generators() -> None:
    x = picture()
    assert torch.equal(corrupt(x.contiguous(memory_format=torch.channels_last), "fog", 2), corrupt(x, "fog", 2))
    draw = torch.Generator().manual_seed(3)
    first, second = corrupt(x, "shot_noise", 2, generator=draw), corrupt(x, "shot_noise", 2, generator=draw)
    assert not torch.equal(first, second)
    assert torch.equal(first, corrupt(x, "shot_noise", 2, generator=torch.Generator().manual_seed(3)))


def test_tables_by_size() -> None:
    assert [severity_table(size) for size in (28, 32, 48, 49, 64, 112, 113, 224, 1024)] == [32] * 3 + [64] * 3 + [
        224
    ] * 3
    x = picture(1, 3, (64, 64))
    assert torch.equal(corrupt(x, "contrast", 2), corrupt(x, "contrast", 2, table=64))
    assert not torch.equal(corrupt(x, "contrast", 2), corrupt(x, "contrast", 2, table=32))


@pytest.mark.parametrize(("severity", "scale"), enumerate((0.08, 0.12, 0.18, 0.26, 0.38), 1))
def test_gaussian_noise_has_the_published_spread(severity: int, scale: float) -> None:
    x = torch.full((4, 3, 128, 128), 128 / 255)
    noise = (corrupt(x, "gaussian_noise", severity, table=224) - x).double()
    z = 127 / 255 / scale  # clipped at both ends: variance of a clipped normal
    normal = torch.distributions.Normal(0.0, 1.0)
    outside = 2 * float(normal.cdf(torch.tensor(-z)))
    density = float(torch.tensor(-z * z / 2).exp()) / (2 * np.pi) ** 0.5
    clipped = scale * (1 - outside - 2 * z * density + z * z * outside) ** 0.5
    assert float(noise.std()) == pytest.approx(clipped, rel=0.02)


def test_shot_noise_is_poisson() -> None:
    x = torch.full((4, 3, 128, 128), 51 / 255)
    out = corrupt(x, "shot_noise", 1, table=224).double()  # 60 photons at 1.0
    assert float(out.mean()) == pytest.approx(0.2, abs=0.003)  # truncated to 8 bits: up to 1/255 lower
    assert float(out.var()) == pytest.approx(0.2 / 60, rel=0.03)


def test_impulse_noise_is_half_salt_half_pepper() -> None:
    x = torch.full((4, 3, 128, 128), 102 / 255)
    out = corrupt(x, "impulse_noise", 5, table=224)
    assert float((out == 1).float().mean()) == pytest.approx(0.135, abs=0.003)
    assert float((out == 0).float().mean()) == pytest.approx(0.135, abs=0.003)
    assert float((out == x).float().mean()) == pytest.approx(0.73, abs=0.004)


def test_blurs_keep_a_constant_image() -> None:
    x = torch.full((1, 3, 96, 96), 100 / 255)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):
        for severity in (1, 4):
            out = corrupt(x, name, severity, table=224)
            truncations = 2 if name == "glass_blur" else 1  # each to 8 bits
            assert (out * 255 - 100).abs().max() <= truncations + 1e-3, name


def test_defocus_is_a_disk() -> None:
    x = torch.zeros(1, 1, 65, 65)
    x[..., 32, 32] = 1.0
    seen = corrupt(x, "defocus_blur", 1, table=224)[0, 0]
    ys, xs = torch.meshgrid(torch.arange(-32, 33), torch.arange(-32, 33), indexing="ij")
    assert torch.equal(seen > 0, ys**2 + xs**2 <= 9)
    assert (seen[seen > 0] * 255).round().unique().tolist() == [8.0]  # 255 / 29 pixels, truncated


def test_motion_blur_smears_along_one_line() -> None:
    x = torch.zeros(1, 1, 65, 65)
    x[..., 32, 32] = 1.0
    seen = corrupt(x, "motion_blur", 3, table=224, seed=5)[0, 0] > 0
    ys, xs = seen.nonzero().T.float()
    assert len(ys) > 10
    assert len(xs.unique()) == len(xs)  # one pixel a column: within 45 degrees of the horizontal
    line = np.polyfit(xs.numpy(), ys.numpy(), 1)
    assert np.abs(np.polyval(line, xs.numpy()) - ys.numpy()).max() < 1


def test_contrast_and_brightness_by_hand() -> None:
    x = torch.tensor([0.2, 0.4]).repeat(32).view(1, 1, 8, 8)
    expected = ((x - 0.3) * 0.4 + 0.3) * 255
    assert torch.equal(corrupt(x, "contrast", 1, table=224) * 255, (expected + 1e-4).floor())
    colour = torch.zeros(1, 3, 8, 8)
    colour[:, 0], colour[:, 1] = 102 / 255, 51 / 255  # V 0.4, saturation 1, hue 30 degrees
    out = corrupt(colour, "brightness", 2, table=224)[0, :, 0, 0] * 255
    assert out.round().tolist() == [153.0, 76.0, 0.0]


def test_jpeg_is_pillows() -> None:
    x = picture(1)
    array = (x[0].permute(1, 2, 0) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=80)
    expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
    assert torch.equal((corrupt(x, "jpeg_compression", 1)[0] * 255).round().byte(), expected)


def test_pixelate_has_as_many_blocks_as_published() -> None:
    x = picture(1, 1, (224, 224))
    out = corrupt(x, "pixelate", 5)[0, 0]  # 224 * 0.25 = 56 blocks of 4
    blocks = out.view(56, 4, 56, 4)
    assert torch.equal(blocks, blocks[:, :1, :, :1].expand_as(blocks))


def test_snow_and_fog_brighten_and_frost_covers() -> None:
    x = picture(4, 3, (224, 224)) * 0.3
    assert corrupt(x, "snow", 5).mean() > x.mean() + 0.3
    assert corrupt(x, "frost", 5).mean() > x.mean() + 0.1
    fog = corrupt(x, "fog", 5)
    assert (fog.amax(dim=(1, 2, 3)) <= x.amax(dim=(1, 2, 3)) + 1e-6).all()  # rescaled to the image's own peak
    assert fog.std() < x.std()


def photographs() -> Tensor:
    from skimage import data

    pictures = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    arrays = [np.asarray(p.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)) for p in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(
    ("name", "severity", "mean", "spread", "psnr", "slack"),
    [
        ("gaussian_noise", 5, 105.8, 87.3, 10.59, 0.1),
        ("shot_noise", 5, 90.4, 91.6, 10.57, 0.1),
        ("impulse_noise", 5, 106.3, 86.8, 10.56, 0.1),
        ("defocus_blur", 5, 99.0, 55.8, 19.84, 0.02),
        ("glass_blur", 5, 97.5, 56.6, 20.24, 0.2),
        ("zoom_blur", 3, 98.5, 58.2, 18.65, 0.02),
        ("brightness", 5, 168.1, 71.9, 10.12, 0.02),
        ("contrast", 5, 98.0, 34.7, 13.97, 0.02),
        ("pixelate", 5, 98.7, 61.8, 23.70, 0.02),
        ("jpeg_compression", 5, 98.8, 63.0, 24.77, 0.1),
    ],
)
def test_photographs_come_out_as_published(
    name: str, severity: int, mean: float, spread: float, psnr: float, slack: float
) -> None:
    x = photographs()
    out = corrupt(x, name, severity)
    assert float(255 * out.mean()) == pytest.approx(mean, abs=0.06 + 3 * slack)
    assert float(255 * out.std()) == pytest.approx(spread, abs=0.06 + 3 * slack)
    assert float(-10 * ((out - x) ** 2).mean().log10()) == pytest.approx(psnr, abs=slack)


def test_errors_name_what_is_wrong() -> None:
    x = picture(1)
    for arguments, message in (
        ((x, "gausian_noise", 1), "gaussian_noise"),
        ((x, "fog", 0), "severity"),
        ((x, "fog", 6), "severity"),
        ((x * 2, "fog", 1), r"\[0, 1\]"),
        ((x * torch.nan, "fog", 1), r"\[0, 1\]"),
        ((x[0], "fog", 1), "N, C, H, W"),
        ((x.byte(), "fog", 1), "float"),
        ((torch.rand(1, 4, 32, 32), "fog", 1), "grey or RGB"),
        ((torch.rand(1, 3, 7, 32), "fog", 1), "8 x 8"),
    ):
        with pytest.raises(InputError, match=message):
            corrupt(*arguments)
    with pytest.raises(InputError, match="table"):
        corrupt(x, "fog", 1, table=100)
