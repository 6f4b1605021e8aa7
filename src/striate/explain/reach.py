"""What a layer sees, and at which layers a network is best divided for running it around a window only.

It is found by running the network on an image with a few pixels that are not numbers: what has seen one is no number
either, whatever the layers are. After attention or a pooled gate that is everything, and nothing is gained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from striate.explain.forwards import response_of

__all__ = ["Level", "Side", "buffers_kept", "division"]

_WORTH = 0.1
"""Share of the network's work that has to be saved: finding the layers and comparing scores costs several passes."""
_LEVEL = 0.02
"""Share of the network's work that another level has to save: crops are cut out and laid in once more."""
_NUMBER = 50
"""Multiplications that take as long as writing one number, in order of magnitude, on two x86 cores."""
_PROBE = 16
"""Places that are not numbers, along each side; the step of a layer that is worth dividing at is no longer."""


class Place(NamedTuple):
    """Along one side: where the crop starts, what of the response changes, and where that is in the crop's response."""

    start: int
    changed: slice
    of_crop: slice


@dataclass(frozen=True)
class Side:
    """What a layer sees along one side of what comes in: output j sees places j step - before to j step + after of it.

    Attributes:
        pixels, outputs: lengths of the whole side, before and behind.
        step, before, after: in places of what comes in.
        window: length of what is changed in it.
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
    def changes(self) -> int:
        """Length of what changes behind, at most."""
        return min(self.outputs, (self.window - 1 + self.before + self.after) // self.step + 1)

    @property
    def crop(self) -> int:
        """Length around a window that everything that changes sees."""
        most = (self.window - 1 + self.before + self.after) // self.step  # outputs that change, less one
        needed = (most - -self.before // self.step) * self.step + self.after + 1
        # Padding in front and behind depends on what is left over by the steps: that has to be the image's.
        return min(self.pixels, needed + (self.pixels - needed) % self.step)

    def place(self, first: int) -> Place:
        """Return where things are for a window that begins at ``first``."""
        last = min(first + self.window, self.pixels) - 1
        begin = max(0, -((self.after - first) // self.step))
        end = min(self.outputs, (last + self.before) // self.step + 1)
        start = min(max(0, begin - -(-self.before // self.step)) * self.step, self.pixels - self.crop)
        skipped = start // self.step
        return Place(start, slice(begin, end), slice(begin - skipped, end - skipped))


class Level(NamedTuple):
    """A layer, and what it sees of the image or of the response of the level below."""

    module: nn.Module
    down: Side
    across: Side

    @classmethod
    def of(cls, run: Callable[[Tensor], Any], module: nn.Module, below: Tensor, window: Sequence[int]) -> Self | None:
        """Find what ``module`` sees of ``below`` (1, C, H, W), which goes into ``run``; None if that does not tell."""
        probe, rows, columns = _probed(below)
        response = response_of(run, module, probe)
        return cls.seen(module, response, below.shape, (rows, columns), window)

    @classmethod
    def seen(
        cls, module: nn.Module, response: Any, size: torch.Size, probe: tuple[slice, slice], window: Sequence[int]
    ) -> Self | None:
        """Read it from the response (1, C, H, W) to a probe of ``size``."""
        if not isinstance(response, Tensor) or response.dim() != 4 or len(response) != 1:
            return None
        touched = response[0].isnan().any(dim=0)
        down = Side.of(size[-2], touched.any(dim=1), probe[0], window[0])
        across = Side.of(size[-1], touched.any(dim=0), probe[1], window[1])
        return None if down is None or across is None else cls(module, down, across)

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of crops of what comes in."""
        return self.down.crop, self.across.crop

    @property
    def share(self) -> float:
        """Share of what comes in that a crop has."""
        return self.down.crop * self.across.crop / (self.down.pixels * self.across.pixels)


class _Candidate(NamedTuple):
    """A layer that may divide the network, and the share of the network's work that is done up to it."""

    level: Level
    below: float


def division(model: nn.Module, image: Tensor, window: Sequence[int]) -> tuple[Level | None, list[nn.Module]]:
    """Return the layers at which it pays most to divide a network for windows in ``image`` (1, C, H, W), from below.

    Each part is thought to cost the share of the image that has to be run for what changes at its upper end.

    Returns:
        What the first layer sees of the image, and the layers above it; None and nothing where too little is saved.
    """
    ways: list[tuple[float, list[_Candidate]]] = []  # the best that ends at each candidate
    for upper in _candidates(model, image, window):
        below = [(0.0, 0.0, []), *((saved, chain[-1].below, chain) for saved, chain in ways)]
        ending = [
            (saved - _LEVEL + (upper.below - done) * (1 - upper.level.share), [*chain, upper])
            for saved, done, chain in below
        ]
        ways.append(max(ending, key=lambda way: way[0]))
    saved, chain = max(ways, key=lambda way: way[0], default=(0.0, []))
    if saved < _WORTH:
        return None, []
    return chain[0].level, [candidate.level.module for candidate in chain[1:]]


def _candidates(model: nn.Module, image: Tensor, window: Sequence[int]) -> list[_Candidate]:
    """Return the layers in a row that tell what they see, in the order in which they are called."""
    probe, rows, columns = _probed(image)
    work, calls = 0.0, dict.fromkeys(_in_a_row(model), 0)
    found: dict[nn.Module, tuple[Level | None, float]] = {}

    def count(module: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal work
        if isinstance(output, Tensor):
            weight = module._parameters.get("weight")
            work += output.numel() * (_NUMBER + (0 if weight is None or weight.dim() < 2 else weight[0].numel()))

    def look(module: nn.Module, arguments: Any, output: Any) -> None:
        calls[module] += 1
        found[module] = Level.seen(module, output, image.shape, (rows, columns), window), work

    try:
        with ExitStack() as hooks:
            hooks.enter_context(buffers_kept(model))
            for module in model.modules():
                if not any(True for _ in module.children()):
                    hooks.callback(module.register_forward_hook(count).remove)
            for module in calls:
                hooks.callback(module.register_forward_hook(look).remove)
            model(probe)
    except Exception:  # TorchScript takes no hooks, and a network may refuse such an image in any way it likes
        return []
    return [
        _Candidate(level, below / work)
        for module, (level, below) in found.items()
        if calls[module] == 1 and level is not None
    ]


def _probed(below: Tensor) -> tuple[Tensor, slice, slice]:
    """Return a copy with numbers that are none in its middle, and where: rows and columns."""
    rows, columns = (slice(n // 2, n // 2 + max(1, min(_PROBE, n // 8))) for n in below.shape[-2:])
    probe = below.clone()
    probe[:, :, rows, columns] = torch.nan
    return probe, rows, columns


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
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
