"""LIME: closed forms, the ridge against scikit-learn 1.9, superpixels, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import nn

from striate.errors import InputError
from striate.explain.lime import LIME, fit_ridge, superpixels


class Quarters(nn.Module):
    """Class 0's probability is linear in which quarters of a half-bright image are there."""

    def forward(self, x):
        h, w = x.shape[2] // 2, x.shape[3] // 2
        parts = [x[:, 0, i * h : (i + 1) * h, j * w : (j + 1) * w].std(dim=(1, 2)) > 0 for i in (0, 1) for j in (0, 1)]
        share = 0.1 + 0.5 * parts[0] + 0.2 * parts[1] + 0.1 * parts[3]
        share = share.to(x.dtype)
        return torch.stack([share, 1 - share], 1).log()


def images(n=2, channels=3, size=(16, 20), dtype=torch.float32):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def quarters(h=16, w=20):
    return (torch.arange(h)[:, None] >= h // 2) * 2 + (torch.arange(w)[None, :] >= w // 2) * 1


def small_net(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)
    ).eval()


def test_a_network_linear_in_its_superpixels_gives_its_coefficients():
    result = LIME(Quarters().eval(), segments=quarters(), n_samples=200, alpha=0.0).attribute(images(), 0)
    expected = torch.tensor([0.5, 0.2, 0.0, 0.1])[quarters()]
    torch.testing.assert_close(result.map, expected.expand(2, -1, -1), rtol=1e-4, atol=1e-5)
    assert result.check.passed
    assert result.check.value == pytest.approx(1.0, abs=1e-6)
    assert result.notes["segments"] == [4, 4]


def test_the_ridge_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    z, y, w = rng.random((60, 7)) < 0.5, rng.random(60), rng.random(60)
    theirs = Ridge(alpha=1.0).fit(z, y, sample_weight=w)
    ours = fit_ridge(torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(w), 1.0)
    np.testing.assert_allclose(ours.coefficients.numpy(), theirs.coef_, rtol=1e-8)
    assert ours.intercept == pytest.approx(theirs.intercept_)
    assert ours.fitted == pytest.approx(theirs.score(z, y, sample_weight=w))


def test_left_out_r2_is_that_of_fits_without_the_sample():
    rng = np.random.default_rng(1)
    z, y, w = (rng.random((25, 4)) < 0.5).astype(float), rng.random(25), rng.random(25)
    errors = []
    for i in range(25):
        rest = np.arange(25) != i
        errors.append(y[i] - Ridge(alpha=1.0).fit(z[rest], y[rest], sample_weight=w[rest]).predict(z[i : i + 1])[0])
    total = (w * (y - np.average(y, weights=w)) ** 2).sum()
    expected = 1 - (w * np.square(errors)).sum() / total
    ours = fit_ridge(torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(w), 1.0)
    assert ours.left_out == pytest.approx(expected)


def test_the_kernel_is_the_cosine_one():
    present = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    weights = LIME(Quarters())._weights(present)
    cosine = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(weights, torch.exp(-((1 - cosine) ** 2) / 0.25**2))


def test_an_absent_superpixel_shows_its_mean_colour():
    seen = []

    class Spy(Quarters):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    x = images(1)
    LIME(Spy().eval(), segments=quarters(), n_samples=30).attribute(x, 0)
    altered = torch.cat(seen[1:])
    torch.testing.assert_close(altered[:1], x)  # the first sample is the intact image
    corner = altered[:, :, :8, :10]
    off = corner.std(dim=(2, 3)).amax(1) < 1e-6
    assert 5 < off.sum() < 25
    torch.testing.assert_close(corner[off].mean((2, 3)), x[:, :, :8, :10].mean((2, 3)).expand(int(off.sum()), 3))
    torch.testing.assert_close(corner[~off], x[:, :, :8, :10].expand(int((~off).sum()), -1, -1, -1))


def test_superpixels_count_without_gaps_and_follow_edges():
    x = torch.zeros(2, 3, 30, 30)
    x[0, 0, :, 15:] = 1.0
    x[1] = torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(0)) * 4 - 2  # as after normalisation
    labels = superpixels(x, 20)
    assert labels.dtype == torch.long
    for own in labels:
        assert own.unique().tolist() == list(range(int(own.max()) + 1))
        assert 8 <= int(own.max()) + 1 <= 40
    left, right = set(labels[0, :, :14].flatten().tolist()), set(labels[0, :, 16:].flatten().tolist())
    assert not left & right


def test_a_batch_gives_what_single_images_give_at_any_inner_batch():
    net, x, target = small_net(), images(3), [3, 0, 1]
    together = LIME(net, n_segments=9, n_samples=40).attribute(x, target).map
    for batch_size in (1, 7, None):
        one = LIME(net, n_segments=9, n_samples=40, batch_size=batch_size)
        alone = torch.cat([one.attribute(x[i : i + 1], target[i]).map for i in range(3)])
        torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(1, 2),
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(6, 17),
    width=st.integers(6, 17),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape_and_precision(n, channels, height, width, dtype):
    net = small_net(channels).to(dtype)
    result = LIME(net, n_segments=6, n_samples=12).attribute(images(n, channels, (height, width), dtype))
    assert result.map.shape == (n, height, width)
    assert result.map.dtype == dtype
    assert torch.isfinite(result.map).all()


def test_channels_last_and_bf16_autocast():
    net, x = small_net(), images()
    explainer = LIME(net, n_segments=6, n_samples=20)
    plain = explainer.attribute(x, 1).map
    last = explainer.attribute(x.to(memory_format=torch.channels_last), 1).map
    torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = explainer.attribute(x, 1).map
    assert low.dtype == torch.float32
    assert torch.isfinite(low).all()


def test_a_network_that_answers_all_alike_fails_its_check():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 3)

    result = LIME(Constant().eval(), segments=quarters(), n_samples=20).attribute(images(), 0)
    assert result.check.passed is False
    assert (result.map.abs() < 1e-9).all()


def test_the_global_generators_are_left_alone():
    net = small_net()
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    LIME(net, n_segments=6, n_samples=10).attribute(images())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n_samples": 1}, "n_samples"),
        ({"n_segments": 1}, "n_segments"),
        ({"kernel_width": 0.0}, "kernel_width"),
        ({"alpha": -1.0}, "alpha"),
        ({"segments": torch.zeros(3, 3).long()}, "segments"),
        ({"segments": torch.zeros(5, 16, 20).long()}, "segments"),
        ({"segments": torch.zeros(16, 20)}, "segments"),
    ],
)
def test_what_is_not_allowed_is_named(options, word):
    with pytest.raises(InputError, match=f"'{word}'"):
        LIME(small_net(), **options).attribute(images())
