"""Cut-out scenes: exact masks, control of size, place and rotation, the split by source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from striate.data import cutouts as module
from striate.data.cutouts import GROUPS, cutout_scenes, cutouts
from striate.engine.packages import find
from striate.errors import DataError, InputError

pytestmark = pytest.mark.skipif(find("cut-outs") is None, reason="the package cut-outs is not on this machine")


def test_there_are_enough_and_none_is_a_drawing_by_name() -> None:
    found = cutouts()
    assert len(found) >= 190
    assert {cutout.tree[0] for cutout in found} <= set(GROUPS)
    for cutout in found:
        assert not any(word in str(cutout.path).lower() for word in ("cartoon", "mirror", "flip", "symbols"))
        assert max(cutout.size) >= 128


def test_train_and_test_share_no_source_whatever_the_size_limit() -> None:
    everything = {c.path for c in cutouts(min_side=1)}
    train, test = ({c.path for c in cutouts(part=part, min_side=1)} for part in ("train", "test"))
    assert train.isdisjoint(test)
    assert train | test == everything
    assert 0.2 < len(test) / len(everything) < 0.4
    assert {c.path for c in cutouts(part="test")} <= test
    scenes = cutout_scenes(20, 0, 32, part="test")
    assert set(scenes.names) <= {c.name for c in cutouts(part="test")}


def test_the_mask_is_the_objects_pixels_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    # On one flat colour, what is not masked is that colour, up to the half-transparent rim.
    flat = [("grey", Image.new("RGB", (300, 300), (10, 200, 90)))]
    monkeypatch.setattr(module, "_backgrounds", lambda: (flat, "one colour"))
    scenes = cutout_scenes(30, 1, 96, rotation=(-45, 45))
    colour = torch.tensor([10, 200, 90]).view(1, 3, 1, 1) / 255
    far = (scenes.images - colour).abs().amax(1)  # (N, S, S)
    masks = scenes.masks[:, None].float()
    rim = torch.nn.functional.max_pool2d(masks, 7, 1, 3)[:, 0] > 0
    assert (far[~rim] < 0.5).all()
    assert (far[~rim] > 0.02).float().mean() < 0.01  # thin half-transparent hairs and shadows
    assert (far[scenes.masks] > 0.02).float().mean() > 0.97


def test_boxes_are_tight_and_half_open() -> None:
    scenes = cutout_scenes(40, 2, 64, area=(0.02, 0.6))
    for mask, (x1, y1, x2, y2) in zip(scenes.masks, scenes.boxes.tolist(), strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        assert (x1, y1, x2, y2) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_area_centre_and_rotation_are_as_asked() -> None:
    names = ["avocado", "kiwi"]
    scenes = cutout_scenes(6, 0, 200, names=names, area=(0.1, 0.1), centre=(0.5, 0.5))
    assert set(scenes.names) == {*names}
    share = scenes.masks.float().mean((1, 2))
    assert ((share - 0.1).abs() < 0.005).all()
    middle = (scenes.boxes[:, :2] + scenes.boxes[:, 2:]).float() / 2
    assert ((middle - 100).abs() <= 3).all()
    corner = cutout_scenes(2, 0, 200, names=names, area=(0.1, 0.1), centre=(0.0, 1.0))
    assert (corner.boxes[:, 0] <= 2).all()
    assert (corner.boxes[:, 3] >= 198).all()
    thin = {"names": ["violin"], "area": (0.05, 0.05)}
    upright, turned = (cutout_scenes(1, 0, 200, rotation=(angle, angle), **thin) for angle in (0, 90))
    w0, h0 = (upright.boxes[0, 2:] - upright.boxes[0, :2]).tolist()
    w1, h1 = (turned.boxes[0, 2:] - turned.boxes[0, :2]).tolist()
    assert abs(w0 - h1) <= 4
    assert abs(h0 - w1) <= 4


def test_every_cut_out_is_used_before_any_is_used_again() -> None:
    count = len(cutouts(["food"]))
    scenes = cutout_scenes(2 * count, 0, 16, groups=["food"])
    assert len(set(scenes.names[:count])) == count
    assert sorted(scenes.names[:count]) == sorted(scenes.names[count:])
    assert {tree[0] for tree in scenes.trees} == {"food"}


def test_the_seed_decides_everything_and_global_state_is_untouched() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (cutout_scenes(4, seed, 48) for seed in (5, 5, 6))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert first.names == again.names
    assert not torch.equal(first.images, other.images)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_without_the_backgrounds_the_embedded_textures_are_used_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module._backgrounds.cache_clear()
    monkeypatch.setattr(module, "find", lambda name: None)
    scenes = cutout_scenes(3, 0, 32)
    module._backgrounds.cache_clear()
    assert set(scenes.backgrounds) <= {"grass", "brick", "gravel"}
    assert "not on this machine" in scenes.origin


def test_without_the_cut_outs_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("striate.engine.packages.find", lambda name: None)
    with pytest.raises(DataError, match="striate data fetch cut-outs"):
        cutouts()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "'n'"),
        ({"size": 8}, "size"),
        ({"area": (0.0, 0.1)}, "area"),
        ({"area": (0.3, 0.1)}, "area"),
        ({"rotation": (5, -5)}, "rotation"),
        ({"centre": (0.5, 1.5)}, "centre"),
        ({"groups": ["animal"]}, "Did you mean 'animals'"),
        ({"part": "val"}, "part"),
        ({"names": ["koalla"]}, "Did you mean 'koala'"),
        ({"min_side": 100_000}, "min_side"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        cutout_scenes(**{"n": 1, "seed": 0, "size": 32, **options})
