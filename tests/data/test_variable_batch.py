"""Batches are tied to the area, every image comes once, and the sizes are those of the authors' code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from striate.data.variable_batch import VariableBatchSampler, batch_sizes, resized_batch
from striate.errors import InputError

# apple/ml-cvnets at 77717569ab4a, data/sampler/utils.py, image_batch_pairs with these arguments.
GOLDEN = [
    ((256, 160, 320, 32, 5, 128), [(160, 160, 327), (192, 192, 227), (256, 256, 128), (288, 288, 101), (320, 320, 81)]),
    ((224, 128, 320, 32, 5, 32), [(128, 128, 98), (192, 192, 43), (224, 224, 32), (288, 288, 19), (320, 320, 15)]),
    ((64, 48, 80, 16, 3, 72), [(48, 48, 128), (64, 64, 72), (80, 80, 46)]),
]


@pytest.mark.parametrize(("arguments", "sizes"), GOLDEN)
def test_sizes_are_the_authors(arguments: tuple[int, ...], sizes: list[tuple[int, int, int]]) -> None:
    base, low, high, scale, n, batch = arguments
    assert batch_sizes(base, low, high, check_scale=scale, n_scales=n, base_batch=batch) == sizes


def test_sides_may_differ() -> None:
    sizes = batch_sizes((128, 256), (64, 128), (192, 384), check_scale=32, n_scales=3, base_batch=8)
    assert sizes == [(64, 128, 32), (128, 256, 8), (192, 384, 3)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 5), st.booleans())
def test_an_epoch_gives_every_image_once_in_batches_of_about_equal_area(
    n: int, batch: int, seed: int, shuffle: bool
) -> None:
    sampler = VariableBatchSampler(
        n, 64, 32, 96, check_scale=16, n_scales=4, base_batch=batch, seed=seed, shuffle=shuffle
    )
    batches = list(sampler)
    seen = [index for part in batches for _, _, index in part]
    assert sorted(seen) == list(range(n))
    assert shuffle or seen == list(range(n))
    assert len(batches) == len(sampler)
    for part in batches:
        height, width, _ = part[0]
        assert {(h, w) for h, w, _ in part} == {(height, width)}
        assert len(part) == 1 or len(part) * height * width <= 64 * 64 * batch
    assert batches == list(sampler)


def test_epochs_differ_and_processes_share_sizes_but_no_images() -> None:
    def batches(epoch: int, rank: int = 0) -> list[list[tuple[int, int, int]]]:
        sampler = VariableBatchSampler(101, 64, 32, 96, check_scale=16, base_batch=4, rank=rank, num_replicas=2)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(0) != batches(1)
    first, second = batches(0, 0), batches(0, 1)
    assert [part[0][:2] for part in first] == [part[0][:2] for part in second]
    indices = [index for part in first + second for _, _, index in part]
    assert len(indices) == 102
    assert set(indices) == set(range(101))


def test_a_loader_takes_it() -> None:
    class Sized(Dataset[torch.Tensor]):
        def __getitem__(self, key: tuple[int, int, int]) -> torch.Tensor:
            height, width, index = key
            return torch.full((1, height, width), float(index))

    sampler = VariableBatchSampler(20, 32, 16, 48, check_scale=16, n_scales=3, base_batch=4)
    batches = list(DataLoader(Sized(), batch_sampler=sampler))
    assert sorted(int(x[0, 0, 0]) for batch in batches for x in batch) == list(range(20))
    assert all(len(batch) <= 4 * 32 * 32 / batch[0].numel() for batch in batches)


def test_a_tensors_batch_is_cut_and_resized_with_its_labels() -> None:
    sizes = batch_sizes(32, 16, 48, check_scale=16, n_scales=3, base_batch=4)
    images = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 1, 32, 32)
    drawn = set()
    for seed in range(12):
        x, y = resized_batch(images, torch.arange(16), sizes, torch.Generator().manual_seed(seed))
        drawn.add((x.shape[2], x.shape[3], len(x)))
        torch.testing.assert_close(x[:, 0, 0, 0], y.float())
    assert drawn == set(sizes)
    with pytest.raises(InputError, match="at least 16"):
        resized_batch(images[:9], torch.arange(9), sizes, torch.Generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_size": 300}, "min_size <= base_size"),
        ({"check_scale": 0}, "check_scale"),
        ({"base_batch": 0}, "base_batch"),
        ({"rank": 1}, "rank"),
        ({"seed": -1}, "seed"),
        ({"n": 0}, "'n'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VariableBatchSampler(**{"n": 10, **options})
