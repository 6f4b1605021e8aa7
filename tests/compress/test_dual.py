"""A pair with a memory answers as the rule says, image by image, and runs no more than it must."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from striate.compress import DualCNN, PerceptualMemory, confidence, search_threshold
from striate.engine.energy import EnergyMeter
from striate.engine.macs import count_macs
from striate.errors import DataError, InputError, ModelError


def network(seed, classes=4, channels=3):
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )
    body(torch.rand(2, channels, 12, 12))
    with torch.no_grad():
        body[-1].weight.mul_(20)  # spread confidences over the range
    return body.eval()


def pictures(n, seed=0, side=12, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


def by_hand(a, b, images, threshold, kind, postcheck):
    """The rule, one image at a time."""
    rows = []
    with torch.no_grad():
        for image in images:
            x = image[None].float() / 255
            label, score, used = int(a(x).argmax()), float(confidence(a(x), kind)), False
            if score < threshold:
                used, other = True, float(confidence(b(x), kind))
                if other > score or not postcheck:
                    label, score = int(b(x).argmax()), other
            rows.append((label, score, used))
    return rows


@pytest.mark.parametrize("kind", ["maxp", "difference", "entropy"])
@pytest.mark.parametrize("postcheck", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
def test_the_rule(kind, postcheck, threshold):
    a, b, images = network(0), network(1), pictures(40)
    answer = DualCNN(a, b, threshold, kind, postcheck=postcheck).predict(images)
    label, score, used = zip(*by_hand(a, b, images, threshold, kind, postcheck), strict=True)
    assert answer.label.tolist() == list(label)
    assert answer.used_b.tolist() == list(used)
    assert answer.score.tolist() == pytest.approx(list(score), abs=1e-5)
    assert not answer.remembered.any()
    if threshold == 0.4:
        assert 0 < sum(used) < 40


def test_the_search_foretells_what_the_pair_does():
    a, b, images = network(0), network(1), pictures(300)
    y = torch.randint(4, (300,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        curve = search_threshold(a(images / 255), b(images / 255), y)
    answer = DualCNN(a, b, curve.best).predict(images)
    found = float((answer.label == y).double().mean()), float(answer.used_b.double().mean())
    assert found == pytest.approx(curve.at(curve.best))


def test_the_second_runs_on_the_unsure_images_alone():
    a, b, images = network(0), network(1), pictures(20)
    pair = DualCNN(a, b, 0.4)
    cost_a, cost_b = (count_macs(net, images[:1].float()) for net in (a, b))
    with EnergyMeter("macs") as meter:
        answer = pair.predict(images)
    assert meter.value == 20 * cost_a + int(answer.used_b.sum()) * cost_b
    pair.memory = PerceptualMemory("exact")
    with EnergyMeter("macs") as meter:
        first = pair.predict(images)
    with EnergyMeter("macs") as again:
        second = pair.predict(images)
    assert meter.value == 20 * cost_a + int(first.used_b.sum()) * cost_b
    assert again.value == 0
    assert second.remembered.all()
    assert not second.used_b.any()
    for part in ("label", "score"):
        assert torch.equal(getattr(second, part), getattr(first, part))


def test_a_pair_shows_its_rule_and_its_memory():
    pair = DualCNN(
        network(0), network(1), threshold=0.25, postcheck=False, memory=PerceptualMemory("exact", capacity=9)
    )
    pair.predict(pictures(3).repeat(2, 1, 1, 1))
    assert repr(pair) == (
        "DualCNN(Sequential, Sequential; second asked at difference under 0.25, no postcheck; "
        "PerceptualMemory(exact; 3 of at most 9 images, 3 hits))"
    )


def test_a_memory_changes_no_answer_where_all_images_differ():
    a, b, images = network(0), network(1), pictures(30)
    plain = DualCNN(a, b, 0.4).predict(images)
    for kind in ("exact", "dhash", "invariants"):
        answer = DualCNN(a, b, 0.4, memory=PerceptualMemory(kind)).predict(images)
        assert torch.equal(answer.label, plain.label)
        assert torch.equal(answer.used_b, plain.used_b)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
    st.integers(1, 7),
    st.one_of(st.none(), st.integers(1, 6)),
    st.sampled_from(["exact", "dhash", "invariants"]),
)
def test_batches_answer_as_if_images_came_one_by_one(rows, size, capacity, kind):
    images = pictures(6)[rows]
    images[:, :, 0, 0] = torch.randint(256, (len(rows), 3), generator=torch.Generator().manual_seed(0)).byte()
    calls = []

    def classify(x):
        calls.append(len(x))
        return x.flatten(1).long().sum(1), torch.full((len(x),), 0.5)

    together, alone = PerceptualMemory(kind, capacity), PerceptualMemory(kind, capacity)
    found = [together.answer(part, lambda rows, part=part: classify(part[rows])) for part in images.split(size)]
    ran = sum(calls)
    one_by_one = [alone.answer(image[None], lambda rows, image=image: classify(image[None])) for image in images]
    for part in range(3):
        assert torch.equal(torch.cat([x[part] for x in found]), torch.cat([x[part] for x in one_by_one]))
    assert together.counts == alone.counts
    assert ran == together.counts.asked - together.counts.hits
    assert len(together) == len(alone) <= (capacity or len(rows))


def test_the_least_recently_seen_is_forgotten_and_near_hits_are_counted():
    memory = PerceptualMemory("dhash", capacity=2)
    one, two, three = pictures(3)[:, None]

    def ask(image):
        return memory.answer(image, lambda rows: (torch.zeros(len(rows)).long(), torch.zeros(len(rows))))[2]

    assert [bool(ask(image)) for image in (one, two, one, three, one, two)] == [False, False, True, False, True, False]
    nearly = one.clone()
    nearly[0, 0, 0, 0] ^= 1
    assert bool(ask(nearly)) is True
    counts = memory.counts.to_dict()
    assert counts == {"asked": 7, "hits": 3, "near_hits": 1, "unmarked": 0, "evicted": 2}


def test_flat_images_have_no_invariants_and_are_always_classified():
    memory = PerceptualMemory("invariants")
    flat = torch.full((2, 3, 12, 12), 7, dtype=torch.uint8)
    pair = DualCNN(network(0), network(1), 0.4, memory=memory)
    assert not pair.predict(flat).remembered.any()
    assert memory.counts.unmarked == 2
    assert len(memory) == 0


def test_a_classifier_that_fails_leaves_nothing_behind():
    memory = PerceptualMemory()

    def fail(rows):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        memory.answer(pictures(3), fail)
    assert len(memory) == 0
    assert not memory.answer(pictures(3), lambda rows: (rows, rows.double()))[2].any()


def test_a_memory_is_kept_on_disk(tmp_path):
    a, b, images = network(0), network(1), pictures(10)
    pair = DualCNN(a, b, 0.4, memory=PerceptualMemory("dhash", capacity=8))
    first = pair.predict(images)
    path = pair.memory.save(tmp_path / "memory.json", classifier=pair.identity())
    again = DualCNN(a, b, 0.4, memory=PerceptualMemory.load(path, classifier=pair.identity()))
    second = again.predict(images[2:])
    assert second.remembered.all()
    assert torch.equal(second.label, first.label[2:])
    assert again.memory.capacity == 8
    assert not again.predict(images[:1]).remembered.any()


def test_memories_of_other_classifiers_and_damaged_ones_are_refused(tmp_path):
    a, b = network(0), network(1)
    pair = DualCNN(a, b, 0.4)
    other = copy.deepcopy(b)
    with torch.no_grad():
        other[0].bias[0] += 1e-3
    identities = {pair.identity(), DualCNN(a, other, 0.4).identity(), DualCNN(b, a, 0.4).identity()}
    identities |= {DualCNN(a, b, 0.5).identity(), DualCNN(a, b, 0.4, postcheck=False).identity()}
    assert len(identities) == 5
    assert pair.identity() == DualCNN(copy.deepcopy(a), b, 0.4).identity()
    path = PerceptualMemory().save(tmp_path / "memory.json", classifier=pair.identity())
    with pytest.raises(DataError, match="not of 'another'"):
        PerceptualMemory.load(path, classifier="another")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "entries": [["x"]]}))
    with pytest.raises(DataError, match="not a memory"):
        PerceptualMemory.load(path, classifier=pair.identity())
    path.write_text(path.read_text()[:20])
    with pytest.raises(DataError, match="not a memory"):
        PerceptualMemory.load(path)
    with pytest.raises(DataError, match="not a memory"):
        PerceptualMemory.load(tmp_path / "none.json")


def test_float_images_go_in_as_they_are():
    a, b = network(0), network(1)
    images = pictures(6)
    pair = DualCNN(a, b, 0.4)
    assert torch.equal(pair.predict(images).label, pair.predict(images.float() / 255).label)
    with torch.autocast("cpu", torch.bfloat16):
        assert pair.predict(images).score.dtype is torch.float64
    wide = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(pair.predict(wide).score, pair.predict(images).score, atol=1e-5, rtol=0)
    assert pair.predict(images[:0]).label.shape == (0,)


def test_refusals():
    a, b = network(0), network(1)
    for threshold in (-0.1, 1.1):
        with pytest.raises(InputError, match=r"in \[0, 1\]"):
            DualCNN(a, b, threshold)
    with pytest.raises(InputError, match="one of maxp"):
        DualCNN(a, b, 0.5, "sureness")
    with pytest.raises(ModelError, match="know 4 and 5 classes"):
        DualCNN(a, network(1, classes=5), 1.0).predict(pictures(3))
    with pytest.raises(ModelError, match="Network b of DualCNN is in training mode"):
        DualCNN(a, network(1).train(), 0.5)
    pair = DualCNN(a, b, 0.5, memory=PerceptualMemory())
    with pytest.raises(InputError, match="uint8"):
        pair.predict(torch.rand(2, 3, 12, 12))
    a.train()
    with pytest.raises(ModelError, match="Network a of DualCNN"):
        pair.predict(pictures(1))
    with pytest.raises(InputError, match=">= 1, or None"):
        PerceptualMemory(capacity=0)
    with pytest.raises(InputError, match="one of exact"):
        PerceptualMemory("phash")


def test_networks_that_give_no_numbers_are_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    broken = nn.Linear(2, 2).eval()
    broken.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN weights"):
        DualCNN(broken, nn.Linear(2, 2).eval(), 0.5).predict(torch.rand(3, 2))
    with pytest.raises(InputError, match="NaN weights"):
        search_threshold(torch.full((3, 2), float("nan")), torch.rand(3, 2), torch.zeros(3))
    with pytest.raises(ModelError, match="returns tuple"):
        DualCNN(Pair().eval(), broken, 0.5).predict(torch.rand(3, 2))


def test_no_images_have_no_labels_but_whole_numbers_they_would_be():
    label, _, _ = PerceptualMemory().answer(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), lambda rows: (rows, rows))
    assert (label.dtype, len(label)) == (torch.int64, 0)
