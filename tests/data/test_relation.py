"""Relation images: half are the same, far apart, and no glyph alone gives the answer away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from striate.data.relation import GLYPHS, relation_images
from striate.errors import InputError


@pytest.mark.parametrize("scale", [1, 2])
def test_two_glyphs_stand_where_the_label_says_they_may(scale: int) -> None:
    found = relation_images(60, 3, noise=0.0, scale=scale)
    assert found.images.shape == (60, 1, 64, 64)
    assert found.images.dtype == torch.uint8
    assert found.labels.sum() == 30
    for image, label in zip(found.images[:, 0].numpy(), found.labels, strict=True):
        windows = sliding_window_view((image > 128).astype(np.uint8), (6 * scale, 6 * scale))
        places = [
            (kind, row, column)
            for kind, glyph in enumerate(np.kron(GLYPHS, np.ones((1, scale, scale), dtype=np.uint8)))
            for row, column in zip(*np.where((windows == glyph).all(axis=(2, 3))), strict=True)
        ]
        assert len(places) == 2
        (a, *first), (b, *second) = places
        assert (a == b) == bool(label)
        assert np.hypot(*(np.subtract(first, second))) >= 32


def test_no_kind_is_more_frequent_under_one_label() -> None:
    found = relation_images(2_000, 0, noise=0.0)
    lit = (found.images > 128).float().sum(dim=(1, 2, 3))
    same, different = lit[found.labels == 1], lit[found.labels == 0]
    assert abs(float(same.mean() - different.mean())) < 1.0  # of about 40 lit pixels


def test_seeds_fix_everything() -> None:
    assert torch.equal(relation_images(5, 1).images, relation_images(5, 1).images)
    assert not torch.equal(relation_images(5, 1).images, relation_images(5, 2).images)


@pytest.mark.parametrize("options", [{"n": 0}, {"distance": 80.0}, {"size": 5}, {"scale": 0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        relation_images(**{"n": 4, "seed": 0, **options})
