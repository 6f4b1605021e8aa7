"""Placed objects: boxes, the cue and its switch, disjoint sources, the shifted set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.data.placed import CANVAS, CUE, class_cues, placed_objects
from striate.data.small import digits, fashion_mnist_folder
from striate.errors import InputError


@given(st.integers(1, 30), st.integers(0, 2**31), st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_every_canvas_is_as_described(n: int, seed: int, cue: bool, ood: bool) -> None:
    placed = placed_objects(n, seed, cue=cue, ood=ood, source="digits")
    assert placed.images.shape == (n, 3, CANVAS, CANVAS)
    assert placed.images.min() >= 0
    assert placed.images.max() <= 1
    x1, y1, x2, y2 = placed.boxes.unbind(-1)
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= CANVAS) & (y1 >= 0) & (y1 < y2) & (y2 <= CANVAS)).all()
    assert ((x2 - x1 <= 20) & (y2 - y1 <= 20)).all()


def test_the_switch_changes_the_cue_and_nothing_else() -> None:
    on, off = (placed_objects(30, 4, cue=cue, source="digits") for cue in (True, False))
    torch.testing.assert_close(on.images - off.images, class_cues(10)[on.labels], atol=1e-6, rtol=0)
    assert torch.equal(on.boxes, off.boxes)


def test_cues_have_the_stated_size_and_differ_by_class() -> None:
    cues = class_cues(10)
    assert torch.equal(cues, class_cues(10))
    assert cues.unique().tolist() == pytest.approx([-CUE, CUE])
    assert cues[0].norm().item() == pytest.approx(0.02 * 4800**0.5, rel=1e-5)  # 1.386
    halves = torch.cdist(cues.flatten(1), cues.flatten(1)) / 2
    assert halves[~torch.eye(10, dtype=torch.bool)].min() > 0.93  # what an L2 attacker needs to swap two cues
    # Fine, not coarse: half of all neighbours differ.
    assert 0.45 < (cues.diff(dim=-1) != 0).float().mean() < 0.55


def test_a_linear_filter_reads_the_class_off_the_cue() -> None:
    on, off = (placed_objects(300, 5, cue=cue, source="digits", train=False) for cue in (True, False))
    score = torch.einsum("nchw,kchw->nk", on.images - on.images.mean((2, 3), keepdim=True), class_cues(10))
    assert (score.argmax(1) == on.labels).float().mean() > 0.9
    score = torch.einsum("nchw,kchw->nk", off.images - off.images.mean((2, 3), keepdim=True), class_cues(10))
    assert (score.argmax(1) == off.labels).float().mean() < 0.25


def test_the_box_is_tight_around_what_was_pasted() -> None:
    # Two canvases of the same seed that differ in their source: the object alone changes, inside its box.
    placed = placed_objects(200, 0, cue=False, source="digits")
    spread = placed.images.std(dim=1)  # grey noise is coloured too, but the object is saturated
    inside = torch.zeros(200, CANVAS, CANVAS, dtype=torch.bool)
    for i, (x1, y1, x2, y2) in enumerate(placed.boxes.tolist()):
        inside[i, y1:y2, x1:x2] = True
    assert spread[inside].mean() > 1.5 * spread[~inside].mean()


def test_parts_use_different_source_images(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[set[int]] = []
    source = digits(False)

    class Spy:
        def __getitem__(self, chosen: torch.Tensor) -> torch.Tensor:
            used.append(set(chosen.tolist()))
            return source.images[chosen]

    def watched(train: bool, name: str) -> object:
        found = digits(train)
        object.__setattr__(found, "images", Spy() if not train else found.images)
        monkeypatch.setattr(type(found), "__len__", lambda self: self.labels.shape[0])
        return found

    monkeypatch.setattr("striate.data.placed.default_set", watched)
    placed_objects(400, 0, train=False)
    placed_objects(400, 0, train=False, held_out=True)
    test, tuning = used
    assert test
    assert tuning
    assert test.isdisjoint(tuning)


def test_the_shifted_set_has_stripes_no_cue_and_half_inverted() -> None:
    shifted = placed_objects(60, 9, ood=True, source="digits")
    assert torch.equal(shifted.images, placed_objects(60, 9, ood=True, cue=False, source="digits").images)
    assert "shifted" in shifted.origin
    assert shifted.images.mean() > placed_objects(60, 9, source="digits").images.mean()


@pytest.mark.skipif(fashion_mnist_folder(train=True) is None, reason="fashion-mnist is not on this machine")
def test_areas_with_fashion_mnist() -> None:
    boxes = placed_objects(600, 0).boxes
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).float() / CANVAS**2
    assert 0.16 < area.median() < 0.20
    assert area.max() <= 0.36


def test_the_seed_decides_everything() -> None:
    first, again, other = (placed_objects(5, seed, source="digits") for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match="'n'"):
        placed_objects(0, 0)
    with pytest.raises(InputError, match="held_out"):
        placed_objects(1, 0, held_out=True)
