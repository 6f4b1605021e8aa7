"""Stanford Dogs in its published layout, written here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from striate.data.stanford_dogs import random_resized_crop, stanford_dogs
from striate.errors import DataError


def test_reads_lists_and_photographs(tmp_path) -> None:
    files = ["n1-Chihuahua/a.jpg", "n2-Afghan_hound/b.jpg"]
    for i, file in enumerate(files):
        path = tmp_path / "Images" / file
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40 + 20 * i, 50), (200 * i, 100, 0)).save(path)
    (tmp_path / "lists").mkdir()
    cells = np.empty((2, 1), dtype=object)
    cells[:, 0] = files
    savemat(tmp_path / "lists" / "train_list.mat", {"file_list": cells, "labels": np.array([[1], [2]])})
    found = stanford_dogs(tmp_path, True, size=32)
    assert found.images.shape == (2, 3, 32, 32)
    assert found.labels.tolist() == [0, 1]
    assert found.class_names == ("Chihuahua", "Afghan_hound")
    assert abs(int(found.images[1, 0, 16, 16]) - 200) < 4
    with pytest.raises(DataError, match="test_list"):
        stanford_dogs(tmp_path, False)
    (tmp_path / "Images" / files[1]).write_bytes(b"no")
    with pytest.raises(DataError, match=r"b\.jpg"):
        stanford_dogs(tmp_path, True)


def test_crops_are_seeded_and_inside() -> None:
    images = torch.rand(8, 3, 40, 40)
    first, again = (random_resized_crop(images, torch.Generator().manual_seed(0), 24) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (8, 3, 24, 24)
    assert first.min() >= 0
    assert first.max() <= 1
    ramp = torch.linspace(0, 1, 40).expand(64, 1, 40, 40).contiguous()
    cut = random_resized_crop(ramp, torch.Generator().manual_seed(0), 24)
    mirrored = (cut[:, 0, 0, 0] > cut[:, 0, 0, -1]).float().mean()
    assert 0.3 < mirrored < 0.7
