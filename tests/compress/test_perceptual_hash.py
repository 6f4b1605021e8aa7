"""Fingerprints: golden numbers of the authors' code, OpenCV, and what turning an image must not change.

Golden numbers: utils/perceptual_hashing.py of the paper's repository (commit a693ba3), run with OpenCV 5.0 and NumPy 2
on the images that ``picture`` makes (with one ``.item()`` added, which NumPy 2 wants).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from striate.compress import fingerprints
from striate.compress.perceptual_hash import (
    dhash,
    fingerprint_operations,
    invariant_key,
    moment_invariants,
)
from striate.errors import InputError


def picture(seed, height, width, channels=3):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def turns(image):
    return [mirrored for k in range(4) for turned in [image.rot90(k, (2, 3))] for mirrored in (turned, turned.flip(3))]


@pytest.mark.parametrize(
    ("image", "want_dhash", "want_key", "want"),
    [
        (
            (0, 32, 32),
            6099829251138431078,
            0.008208908552199239,
            [8.20902978e-03, -1.96695543e-05, -9.44043401e-06, 1.01655387e-05, 9.38278399e-06, -9.77914558e-06],
        ),
        (
            (1, 28, 20),
            10039976797727565901,
            0.008708832456285365,
            [8.54427933e-03, 1.16204962e-04, -8.16134914e-05, 2.38328191e-05, 2.45153423e-05, 1.19823340e-05],
        ),
    ],
)
def test_golden_numbers_of_the_authors(image, want_dhash, want_key, want):
    pixels = picture(*image)
    assert int(dhash(pixels)[0]) == want_dhash
    assert float(invariant_key(pixels)[0]) == pytest.approx(want_key, rel=1e-12)
    np.testing.assert_allclose(moment_invariants(pixels)[0], want, rtol=1e-8)


@pytest.mark.parametrize("size", [(28, 28), (64, 48), (150, 150), (7, 5), (9, 8)])
def test_grey_and_shrinking_are_opencvs(size):
    cv2 = pytest.importorskip("cv2")
    for seed in range(10):
        pixels = picture(seed, *size)
        grey = cv2.cvtColor(pixels[0].permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (9, 8))
        bits = (small[:, 1:] > small[:, :-1]).reshape(-1)
        assert int(dhash(pixels)[0]) == sum(2**i for i, bit in enumerate(bits) if bit)


def test_ramps_and_flat_images():
    ramp = torch.arange(0, 252, 7, dtype=torch.uint8).expand(1, 1, 32, 36)
    assert dhash(ramp).tolist() == [2**64 - 1]
    assert dhash(ramp.flip(3)).tolist() == [0]
    assert dhash(torch.full((1, 3, 40, 30), 9, dtype=torch.uint8)).tolist() == [0]
    for value in (7, 70):
        flat = torch.full((1, 1, 32, 32), value, dtype=torch.uint8)
        assert float(invariant_key(flat)[0]) == pytest.approx(0.14945355676 * 7 / value, rel=1e-9)
        assert fingerprints(flat, "invariants") == [None]
    assert fingerprints(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "invariants") == [None, None]


@given(st.integers(2, 40), st.integers(2, 40), st.sampled_from([1, 3]), st.integers(0, 1000))
def test_turning_leaves_the_invariants_and_not_the_other_fingerprints(height, width, channels, seed):
    image = picture(seed, height, width, channels)
    turned = turns(image)
    keys = [invariant_key(other)[0] for other in turned]
    np.testing.assert_allclose(keys, keys[0], rtol=1e-9, equal_nan=True)
    assert len({fingerprints(other, "invariants")[0] for other in turned}) == 1
    if height > 8 and width > 8:
        assert len({fingerprints(other, "dhash")[0] for other in turned}) > 1
        assert len({fingerprints(other, "exact")[0] for other in turned}) > 1


def test_the_third_and_the_sixth_invariant_tell_an_image_from_its_mirror_image():
    image = picture(3, 32, 32)
    first, mirrored = moment_invariants(image)[0], moment_invariants(image.flip(3))[0]
    np.testing.assert_allclose(mirrored, first * [1, 1, -1, 1, 1, -1], rtol=1e-9)


@given(st.integers(1, 6), st.integers(0, 1000), st.sampled_from(["exact", "dhash", "invariants"]))
def test_a_batch_gives_what_its_images_give(n, seed, kind):
    images = torch.cat([picture(seed + i, 20, 24) for i in range(n)])
    assert fingerprints(images, kind) == [fingerprints(image[None], kind)[0] for image in images]
    assert fingerprints(images.to(memory_format=torch.channels_last), kind) == fingerprints(images, kind)


def test_sizes_make_a_difference_to_the_exact_one():
    flat = torch.zeros(1, 1, 4, 9, dtype=torch.uint8)
    assert fingerprints(flat, "exact") != fingerprints(flat.view(1, 1, 6, 6), "exact")


def test_what_a_fingerprint_costs():
    assert fingerprint_operations("dhash", (1, 28, 28)) < fingerprint_operations("dhash", (3, 28, 28)) < 2_000
    assert fingerprint_operations("dhash", (3, 28, 28)) == fingerprint_operations("dhash", (3, 224, 224))
    assert fingerprint_operations("invariants", (3, 224, 224)) > fingerprint_operations("invariants", (1, 28, 28))
    assert fingerprint_operations("exact", (3, 10, 10)) == 3300


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(1, 4, 8, 8).byte()]
)
@pytest.mark.parametrize("kind", ["exact", "dhash", "invariants"])
def test_refusals(images, kind):
    with pytest.raises(InputError, match="uint8, pixels 0 to 255"):
        fingerprints(images, kind)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="one of exact, dhash, invariants"):
        fingerprints(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "phash")
