"""Running the lower layers of a network only around a window in which an image was changed.

Away from the window a convolution returns what it returned for the image itself. So up to some layer the network is run
on a crop around the window, what changed there is laid over the layer's response to the image, and the rest is run on
that. (Nakandala, Kumar and Papakonstantinou 2019, "Krypton", do so layer by layer; here one layer divides the network,
which leaves it to run as it is written.)

What a layer sees is found by running the network on the image with a few pixels that are not numbers: what has seen
one is no number either, whatever the layers are. After attention or a pooled gate that is everything, and nothing is
gained. Whether crops give the network's own scores is measured before they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from striate.engine.model import layer_name
from striate.errors import StriateError
from striate.explain.batching import ROUNDING, Copies
from striate.explain.forwards import response_of
from striate.explain.tail import Tail

__all__ = ["Windowed"]

_WORTH = 0.1
"""Share of the network's work that has to be saved: finding the layer and comparing scores costs several passes."""
_NUMBER = 50
"""Multiplications that take as long as writing one number, in order of magnitude, on two x86 cores."""
_PROBE = 16
"""Pixels that are not numbers, along each side; the step of a layer that is worth dividing at is no longer."""
_MANY = 32
"""Copies from which on it pays to look for the layer."""


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
        self._layer: _Layer | None = None
        self._tail: tuple[int, Tail] | None = None
        self.batch = copies.batch
        cpu = self._images.device.type == "cpu"  # where it was measured
        if cpu and len(corners) * len(self._images) >= _MANY:
            with torch.no_grad(), copies.norms:
                layer = _best_layer(copies, self._images, window)
            if layer is not None and self._gives_own_scores(layer, corners):
                self._layer = layer
                self.batch *= max(1, self._images[0, 0].numel() // (layer.down.crop * layer.across.crop))

    @property
    def layer(self) -> str | None:
        """Path of the layer up to which crops are run; None where whole copies are."""
        return None if self._layer is None else layer_name(self._copies.model, self._layer.module)

    def scores(self, images: Tensor, corners: Tensor) -> Tensor:
        """Return (b,) scores of copies, one of each of ``images`` (b,), with windows at ``corners`` (b, 2).

        With crops it is best to ask image by image: the network is recorded on each anew.
        """
        with torch.no_grad():
            if self._layer is None:
                return self._copies.score(self._whole(images, corners), images)
            with self._copies.norms:
                return self._copies.score(self._cropped(self._layer, images, corners), images)

    def _gives_own_scores(self, layer: _Layer, corners: Tensor) -> bool:
        """Whether crops up to ``layer`` give the network's own scores at three of the places."""
        some = corners[[0, len(corners) // 2, -1]]
        images = torch.arange(3).clamp_max(len(self._images) - 1)
        with torch.no_grad():
            own = self._whole(images, some)
            try:
                with self._copies.norms:
                    apart = (self._cropped(layer, images, some) - own).abs().amax(dim=1)
            except (RuntimeError, ValueError, IndexError, AssertionError, StriateError):
                return False  # a network that takes images of one size, say
        rounding = ROUNDING * own.abs().amax(dim=1)
        told = bool(((own - self._copies.logits[images]).abs().amax(dim=1) > rounding).any())  # a window does something
        return told and bool((apart <= rounding).all()) and self._tail is not None and self._tail[1].exact

    def _whole(self, images: Tensor, corners: Tensor) -> Tensor:
        """Return logits, from whole copies."""
        size = (self._images.shape[-2], self._images.shape[-1])
        return self._copies.answers(self._altered(images, corners, torch.zeros_like(corners), size))

    def _cropped(self, layer: _Layer, images: Tensor, corners: Tensor) -> Tensor:
        """Return logits, from crops up to ``layer``."""
        places = [(layer.down.place(y), layer.across.place(x)) for y, x in corners.tolist()]
        starts = torch.tensor([(rows.start, columns.start) for rows, columns in places])
        crops = self._altered(images, corners, starts, (layer.down.crop, layer.across.crop))
        changed = response_of(self._copies.model, layer.module, crops)
        logits = []
        for part in _runs(images, 2 * self._copies.batch):  # responses above are smaller than images
            tail = self._tail_on(int(images[part[0]]), layer)
            responses = tail.response.expand(len(part), *tail.response.shape[1:]).clone()
            for response, i in zip(responses, part, strict=True):
                rows, columns = places[i]
                response[:, rows.changed, columns.changed] = changed[i][:, rows.of_crop, columns.of_crop]
            logits.append(tail(responses, 0))
        return torch.cat(logits)

    def _tail_on(self, image: int, layer: _Layer) -> Tail:
        """Return what runs above ``layer``, recorded on one image: on all, it would keep all lower responses."""
        if self._tail is None or self._tail[0] != image:
            self._tail = image, Tail(self._copies.model, layer.module, self._images[image : image + 1])
        return self._tail[1]

    def _altered(self, images: Tensor, corners: Tensor, starts: Tensor, size: tuple[int, int]) -> Tensor:
        """Return parts of copies, (b, C, *size), from the rows and columns ``starts`` (b, 2) on."""
        shape, own = (len(images), self._images.shape[1], *size), self._images
        parts = torch.empty(shape, dtype=own.dtype, device=own.device, memory_format=self._copies.layout)
        for part, image, corner, start in zip(parts, images.tolist(), corners.tolist(), starts.tolist(), strict=True):
            rows, columns = (slice(first, first + length) for first, length in zip(start, size, strict=True))
            part.copy_(self._images[image, :, rows, columns])
            # Of the window, what the crop shows: with a stride longer than the kernel some pixels are seen by nothing.
            low = [max(pair) for pair in zip(corner, start, strict=True)]
            high = [min(c + w, s + n) for c, w, s, n in zip(corner, self._window, start, size, strict=True)]
            if low[0] < high[0] and low[1] < high[1]:
                shown = self._shown[image, :, low[0] : high[0], low[1] : high[1]]
                part[:, low[0] - start[0] : high[0] - start[0], low[1] - start[1] : high[1] - start[1]] = shown
        return parts


class _Place(NamedTuple):
    """Along one side: where the crop starts, what of the response changes, and where that is in the crop's."""

    start: int
    changed: slice
    of_crop: slice


@dataclass(frozen=True)
class _Side:
    """What a layer sees along one side of the image: output j sees pixels from j step - before to j step + after.

    Attributes:
        pixels, outputs: of the whole side.
        step, before, after: in pixels.
        window: length of what is changed.
        crop: pixels around a window that everything that changes sees.
    """

    pixels: int
    outputs: int
    step: int
    before: int
    after: int
    window: int

    @classmethod
    def of(cls, pixels: int, touched: Tensor, probe: slice, window: int) -> Self | None:
        """Read it from which outputs (outputs,) have seen a pixel of ``probe``; None if that does not tell."""
        outputs = len(touched)
        step = max(1, round(pixels / outputs))
        seen = touched.nonzero()[:, 0].tolist()
        if not seen or seen[0] == 0 or seen[-1] == outputs - 1:
            return None
        # A step's length of pixels has one at the edge of what an output sees, also where it does not see all between;
        # and so few outputs that another step would give as many do not tell the step.
        if step > probe.stop - probe.start or step * (step + 1) > pixels:
            return None
        # The largest numbers that agree with what was seen: a little more is computed than changes.
        before, after = step * (seen[-1] + 1) - probe.stop, probe.start - step * (seen[0] - 1) - 1
        return cls(pixels, outputs, step, before, after, window)

    @property
    def crop(self) -> int:
        most = (self.window - 1 + self.before + self.after) // self.step  # outputs that change, less one
        needed = (most - -self.before // self.step) * self.step + self.after + 1
        # Padding in front and behind depends on what is left over by the steps: that has to be the image's.
        return min(self.pixels, needed + (self.pixels - needed) % self.step)

    def place(self, first: int) -> _Place:
        """Return where things are for a window that begins at pixel ``first``."""
        last = min(first + self.window, self.pixels) - 1
        begin = max(0, -((self.after - first) // self.step))
        end = min(self.outputs, (last + self.before) // self.step + 1)
        start = min(max(0, begin - -(-self.before // self.step)) * self.step, self.pixels - self.crop)
        skipped = start // self.step
        return _Place(start, slice(begin, end), slice(begin - skipped, end - skipped))


class _Layer(NamedTuple):
    """A layer that may divide the network, and the share of the network's work that crops up to it save."""

    module: nn.Module
    down: _Side
    across: _Side
    saved: float


def _best_layer(copies: Copies, images: Tensor, window: tuple[int, int]) -> _Layer | None:
    """Return the layer that saves most, or None where none saves enough."""
    probe = images[:1].clone()
    rows, columns = (slice(length // 2, length // 2 + min(_PROBE, length // 8)) for length in images.shape[-2:])
    probe[:, :, rows, columns] = torch.nan
    work, calls = 0.0, dict.fromkeys(_in_a_row(copies.model), 0)
    found: dict[nn.Module, tuple[float, _Side | None, _Side | None]] = {}

    def count(module: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal work
        if isinstance(output, Tensor):
            weight = module._parameters.get("weight")
            work += output.numel() * (_NUMBER + (0 if weight is None or weight.dim() < 2 else weight[0].numel()))

    def look(module: nn.Module, arguments: Any, output: Any) -> None:
        calls[module] += 1
        if isinstance(output, Tensor) and output.dim() == 4 and len(output) == 1:
            touched = output[0].isnan().any(dim=0)
            down = _Side.of(images.shape[-2], touched.any(dim=1), rows, window[0])
            found[module] = work, down, _Side.of(images.shape[-1], touched.any(dim=0), columns, window[1])

    with ExitStack() as hooks:
        hooks.enter_context(_buffers_kept(copies.model))
        for module in copies.model.modules():
            if not any(True for _ in module.children()):
                hooks.callback(module.register_forward_hook(count).remove)
        for module in calls:
            hooks.callback(module.register_forward_hook(look).remove)
        try:
            copies.model(probe)
        except Exception:  # a network may refuse such an image in any way it likes
            return None
    size = images[0, 0].numel()
    layers = [
        _Layer(module, down, across, below / work * (1 - down.crop * across.crop / size))
        for module, (below, down, across) in found.items()
        if calls[module] == 1 and down is not None and across is not None
    ]
    best = max(layers, key=lambda layer: layer.saved, default=None)
    return best if best is not None and best.saved >= _WORTH else None


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put buffers back: a statistic that a network keeps in eval mode, too, must not learn of numbers that are none."""
    before = [
        (m, name, own, own.clone()) for m in model.modules() for name, own in m._buffers.items() if own is not None
    ]
    try:
        yield
    finally:
        for module, name, own, values in before:
            module._buffers[name] = own
            if not torch.equal(own, values):
                own.copy_(values)


def _in_a_row(model: nn.Module) -> Iterator[nn.Module]:
    """Yield modules that are likely to hand on all that comes after: the network's own children, and what is in a row.

    A layer inside a residual block is none: the shortcut goes past it.
    """
    children = list(model.children())
    if len(children) == 1 and not isinstance(model, nn.Sequential):  # a wrapper
        yield from _in_a_row(children[0])
        return
    for child in children:
        yield child
        if isinstance(child, nn.Sequential):
            yield from _in_a_row(child)


def _runs(images: Tensor, most: int) -> Iterator[list[int]]:
    """Yield positions of neighbours that are copies of one image, at most so many at once."""
    for _, group in groupby(range(len(images)), key=images.tolist().__getitem__):
        run = list(group)
        yield from (run[start : start + most] for start in range(0, len(run), most))
