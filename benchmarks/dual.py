"""Pairs of classifiers: fingerprints and the threshold search, against what one would use instead.

The difference hash against the authors' three lines of OpenCV (the same 64 bits) and against imagehash, which smooths
while it shrinks, so that some bits differ (printed: the share). The search for a threshold against one vectorised pass
over the images per threshold, which is what the authors' loops come to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import imagehash
import numpy as np
import torch
from _timing import Row, compare, options, print_head, print_summary
from PIL import Image
from torch import Tensor

from striate.compress import confidence, fingerprints, search_threshold


def opencv(pixels: np.ndarray) -> list[int]:
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (9, 8))
    bits = (small[:, 1:] > small[:, :-1]).flatten()
    return [sum(2**i for i, bit in enumerate(bits) if bit)]


def peer(pixels: np.ndarray) -> list[int]:
    bits = imagehash.dhash(Image.fromarray(pixels)).hash.flatten()
    return [sum(2**i for i, bit in enumerate(bits) if bit)]


def bits_apart(first: list[int | None], second: list[int]) -> float:
    return sum(((a or 0) ^ b).bit_count() for a, b in zip(first, second, strict=True)) / (64 * len(second))


def each_threshold(a: Tensor, b: Tensor, y: Tensor, grid: int = 2000) -> np.ndarray:
    score_a, score_b = (confidence(logits).double().numpy() for logits in (a, b))
    right_a, right_b = ((logits.argmax(1) == y).numpy() for logits in (a, b))
    surer = score_b > score_a
    return np.array([np.where((score_a < t) & surer, right_b, right_a).mean() for t in np.linspace(0, 1, grid)])


def main() -> None:
    asked = options(__doc__ or "", device=False)
    rows: list[Row] = []
    print_head("Fingerprints of one image, and a threshold for 10,000 images of 10 classes", ("ImageHash",))
    rest = {"repeats": 51, "threads": 1}
    for side in (32, 224):
        smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8), (0, 0), 3)
        image = torch.from_numpy(smooth).permute(2, 0, 1).contiguous()[None]
        ours: Callable[[], list[int | None]] = partial(fingerprints, image, "dhash")
        rows += compare(f"dhash {side} px, OpenCV", ours, partial(opencv, smooth), difference=bits_apart, **rest)
        rows += compare(f"dhash {side} px, imagehash", ours, partial(peer, smooth), difference=bits_apart, **rest)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(10_000, 10, generator=generator), torch.randn(10_000, 10, generator=generator)
    y = torch.randint(10, (10_000,), generator=generator)
    rows += compare(
        "threshold of 2,000, a pass for each",
        partial(search_threshold, a, b, y),
        partial(each_threshold, a, b, y),
        difference=lambda curve, slow: float(np.abs(curve.accuracy - slow).max()),
        repeats=asked.repeats,
        threads=asked.threads,
    )
    print_summary(rows)


if __name__ == "__main__":
    main()
