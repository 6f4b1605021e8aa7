"""Running the lower layers of a network only around a window in which an image was changed.

Away from the window a convolution returns what it returned for the image itself. So up to some layer the network is run
on a crop around the window, and what changed there is laid into the layer's response to the image; of that a crop goes
on to the next such layer, and behind the last one the whole. (Nakandala, Kumar and Papakonstantinou 2019, "Krypton", do
so at every layer, with kernels of their own; here a few layers divide the network, which leaves it to run as it is
written.)

Which layers those are is found by :mod:`striate.explain.reach`. Whether crops give the network's own scores is measured
before they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from striate.engine.model import layer_name
from striate.errors import StriateError
from striate.explain.batching import ROUNDING, Copies
from striate.explain.forwards import response_of
from striate.explain.reach import Level, buffers_kept, division
from striate.explain.tail import Tail

__all__ = ["Windowed"]

_MANY = 32
"""Copies from which on it pays to look for layers."""


class Windowed:
    """Scores of copies of images in which a window shows something else.

    Args:
        copies: the images.
        shown: (N, C, H, W) what the window of each shows.
        window: (height, width) in pixels.
        corners: (M, 2) first rows and columns of the windows to come; a window may end beyond the image.

    Attributes:
        batch: how many copies are best handed to :meth:`scores` at once.
    """

    def __init__(self, copies: Copies, shown: Tensor, window: tuple[int, int], corners: Tensor) -> None:
        self._copies, self._shown, self._window = copies, shown, window
        self._images = copies.inputs.contiguous(memory_format=copies.layout)
        self._levels: list[Level] = []
        self._tails: tuple[int, list[Tail]] = (-1, [])
        self.batch = copies.batch
        cpu = self._images.device.type == "cpu"  # where it was measured
        if cpu and len(corners) * len(self._images) >= _MANY:
            self._divide(corners)

    @property
    def layers(self) -> list[str]:
        """Paths of the layers up to which crops are run, from below; none where whole copies are."""
        return [layer_name(self._copies.model, level.module) for level in self._levels]

    def scores(self, images: Tensor, corners: Tensor) -> Tensor:
        """Return (b,) scores of copies, one of each of ``images`` (b,), with windows at ``corners`` (b, 2).

        With crops it is best to ask image by image: the network is recorded on each anew.
        """
        with torch.no_grad():
            logits = self._cropped(images, corners) if self._levels else self._whole(images, corners)
            return self._copies.score(logits, images)

    @torch.no_grad()
    def _divide(self, corners: Tensor) -> None:
        """Find layers at which crops give the network's own scores, at three of the places."""
        with self._copies.norms:
            first, above = division(self._copies.model, self._images[:1], self._window)
        if first is None:
            return
        some = corners[[0, len(corners) // 2, -1]]
        images = torch.arange(3).clamp_max(len(self._images) - 1)
        own = self._whole(images, some)
        rounding = ROUNDING * own.abs().amax(dim=1)
        if not bool(((own - self._copies.logits[images]).abs().amax(dim=1) > rounding).any()):
            return  # a window that does nothing tells nothing
        for end in range(len(above), -1, -1):  # something may go past an upper layer and not past the lower ones
            try:
                self._levels = self._divided(first, above[:end])
                if bool(((self._cropped(images, some) - own).abs().amax(dim=1) <= rounding).all()):
                    self.batch = self._at_once(first)
                    return
            except (RuntimeError, ValueError, IndexError, AssertionError, StriateError):
                pass  # a network that takes images of one size, say
        self._levels = []

    def _divided(self, first: Level, above: list[nn.Module]) -> list[Level]:
        """Return the levels of a network divided at these layers, without those that do not tell what they see."""
        with self._copies.norms, buffers_kept(self._copies.model):
            tails = Tail.several(self._copies.model, [first.module, *above], self._images[:1])
            levels, kept = [first], tails[:1]
            for tail in tails[1:]:
                window = (levels[-1].down.changes, levels[-1].across.changes)
                level = Level.of(partial(kept[-1].run, samples=0), tail.layer, kept[-1].response, window)
                if level is not None:
                    levels.append(level)
                    kept.append(tail)
        self._tails = 0, kept
        return levels

    def _whole(self, images: Tensor, corners: Tensor) -> Tensor:
        """Return logits, from whole copies."""
        size = (self._images.shape[-2], self._images.shape[-1])
        copies = [
            self._cut(self._images[image], [self._patch(image, corner)], [(0, 0)], size)
            for image, corner in zip(images.tolist(), corners.tolist(), strict=True)
        ]
        return self._copies.answers(torch.cat(copies))

    def _cropped(self, images: Tensor, corners: Tensor) -> Tensor:
        """Return logits, from crops up to each level."""
        with self._copies.norms:
            parts = [self._cropped_on(int(images[run[0]]), corners[run].tolist()) for run in _runs(images)]
        return torch.cat(parts)

    def _cropped_on(self, image: int, corners: list[list[int]]) -> Tensor:
        """Return logits of copies of one image."""
        base, patches = self._images[image], [self._patch(image, corner) for corner in corners]
        run: Callable[[Tensor], Tensor] = self._copies.model
        for level, tail in zip(self._levels, self._tails_on(image), strict=True):
            places = [(level.down.place(patch.row), level.across.place(patch.column)) for patch in patches]
            crops = self._cut(base, patches, [(down.start, across.start) for down, across in places], level.crop)
            changed = [response_of(run, level.module, part) for part in crops.split(self._at_once(level))]
            base = tail.response[0]
            patches = [
                _Patch(response[:, down.of_crop, across.of_crop], down.changed.start, across.changed.start)
                for response, (down, across) in zip(torch.cat(changed), places, strict=True)
            ]
            run = partial(tail.run, samples=0)
        whole = self._cut(base, patches, [(0, 0)] * len(patches), (base.shape[-2], base.shape[-1]))
        # Responses so far up are smaller than images.
        return torch.cat([run(part) for part in whole.split(2 * self._copies.batch)])

    def _at_once(self, level: Level) -> int:
        """Return how many crops are best run at once."""
        return max(1, int(self._copies.batch / level.share))

    def _tails_on(self, image: int) -> list[Tail]:
        """Return what runs above each level, recorded on one image: on all, it would keep all lower responses."""
        if self._tails[0] != image:
            modules = [level.module for level in self._levels]
            self._tails = image, Tail.several(self._copies.model, modules, self._images[image : image + 1])
        return self._tails[1]

    def _patch(self, image: int, corner: list[int]) -> _Patch:
        """Return what the window at ``corner`` shows of what it shows in one image."""
        row, column = corner
        return _Patch(
            self._shown[image, :, row : row + self._window[0], column : column + self._window[1]], row, column
        )

    def _cut(self, base: Tensor, patches: list[_Patch], starts: list[tuple[int, int]], size: tuple[int, int]) -> Tensor:
        """Return parts of ``base`` (C, H, W), (b, C, *size), each with what it shows of a patch laid in."""
        shape = (len(patches), len(base), *size)
        parts = torch.empty(shape, dtype=base.dtype, device=base.device, memory_format=self._copies.layout)
        for part, patch, (top, left) in zip(parts, patches, starts, strict=True):
            part.copy_(base[:, top : top + size[0], left : left + size[1]])
            # With a stride longer than the kernel some pixels are seen by nothing, and are in no crop.
            low = max(patch.row, top), max(patch.column, left)
            high = (
                min(patch.row + patch.values.shape[1], top + size[0]),
                min(patch.column + patch.values.shape[2], left + size[1]),
            )
            if low[0] < high[0] and low[1] < high[1]:
                shown = patch.values[
                    :, low[0] - patch.row : high[0] - patch.row, low[1] - patch.column : high[1] - patch.column
                ]
                part[:, low[0] - top : high[0] - top, low[1] - left : high[1] - left] = shown
        return parts


class _Patch(NamedTuple):
    """(C, h, w) values, and the row and column at which they stand in an image or a response."""

    values: Tensor
    row: int
    column: int


def _runs(images: Tensor) -> Iterator[list[int]]:
    """Yield the positions of neighbours that are copies of one image."""
    for _, group in groupby(range(len(images)), key=images.tolist().__getitem__):
        yield list(group)
