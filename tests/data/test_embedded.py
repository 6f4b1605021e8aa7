"""The photographs that installed packages carry."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from striate.data.embedded import PHOTOGRAPHS, photographs
from striate.errors import DataError, InputError


def test_all_twenty_two_open_as_rgb_with_licence_and_origin() -> None:
    found = photographs()
    assert [photograph.name for photograph in found] == list(PHOTOGRAPHS)
    assert len(found) == 22
    for photograph in found:
        assert photograph.image.mode == "RGB", photograph.name
        assert min(photograph.image.size) >= 170
        assert photograph.licence
        assert "shipped with scikit-" in photograph.origin


def test_pixels_are_the_packages_own() -> None:
    chelsea, camera = photographs(["chelsea", "camera"])
    np.testing.assert_array_equal(np.asarray(chelsea.image), skimage.data.chelsea())
    np.testing.assert_array_equal(np.asarray(camera.image)[..., 1], skimage.data.camera())


def test_transparency_is_laid_on_white() -> None:
    (logo,) = photographs(["logo"])
    assert logo.image.getpixel((0, 0)) == (255, 255, 255)


def test_natural_only_leaves_out_scans_drawings_micrographs_and_sky() -> None:
    natural = {photograph.name for photograph in photographs(natural_only=True)}
    assert natural.isdisjoint({"page", "text", "cell", "logo", "horse", "retina", "moon", "hubble_deep_field"})
    assert {"chelsea", "coffee", "rocket", "china", "flower"} <= natural
    assert photographs(["logo"], natural_only=True) == []


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'chelsea'"):
        photographs(["chelsae"])


def test_a_package_without_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"scikit-image does not hold chelsea.png"):
        photographs(["chelsea"])
