"""Perturbing whole patches: natural corruptions in some cells of an image, and unbounded adversarial patches in cells.

Gu, Tresp, Qin, "Are Vision Transformers Robust to Patch Perturbations?", 2022, arXiv 2111.10659. What differs, and why:

* images that are misclassified when clean are never attacked and never counted;
* a row that is not fooled returns its last content with ``success`` False (the authors' code returns zeros);
* the answer after the last step is looked at too (the authors' loop ends with a step);
* rows that are fooled leave the batch and waiting rows take their places, so that the batch stays full;
* where cross entropy is saturated its logit form is climbed (:func:`striate.stress.objective.objective`); the sign of
  the gradient is that of cross entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.progress import progress_bar
from striate.errors import InputError
from striate.stress.corruptions import corrupt
from striate.stress.fooling import fooling_map, fooling_rate, predictions
from striate.stress.grid import Cells, PatchGrid
from striate.stress.objective import Bounds, attacked, check_images, check_labels, input_gradient

__all__ = ["PatchAttack", "PatchResult", "corrupt_patches", "fooling_map", "fooling_rate", "paste_cells"]

Forward = Callable[[Tensor], Tensor]


def paste_cells(x: Tensor, content: Tensor, cells: Cells, grid: PatchGrid, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Return x' = (1 − M) ⊙ x + M ⊙ content; outside the cells x' is bitwise x.

    Args:
        x, content: (N, C, H, W).
        cells: see :data:`striate.stress.grid.Cells`.
        grid, offset: where the cells are.
    """
    _check_size(x, grid, "paste_cells")
    return torch.where(grid.mask(cells, offset).to(x.device), content.to(x.dtype), x)


def corrupt_patches(
    x: Tensor,
    corruption: str,
    severity: int,
    cells: int | Cells,
    grid: PatchGrid,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Corrupt the whole image, then lay the chosen cells of it over the clean one.

    Cropping the corruption, not corrupting the crop: blurs see beyond the cell's border. With all cells this is the
    ImageNet-C image. For many n on the same images, corrupt once and use :func:`paste_cells` with nested cells.

    Args:
        x: (N, C, H, W) in [0, 1].
        corruption: one of :data:`striate.stress.corruptions.CORRUPTIONS`.
        severity: 1 to 5.
        cells: how many cells, drawn anew for each image, or which.
        grid: their geometry.
        generator: of cells and corruption; default: one seeded with 0. Equal states give nested cells.

    Returns:
        Like ``x``, in [0, 1].
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    _check_size(x, grid, "corrupt_patches")
    chosen = grid.sample(cells, len(x), generator) if isinstance(cells, int) else cells
    return paste_cells(x, corrupt(x, corruption, severity, generator=generator), chosen, grid)


@dataclass(frozen=True)
class PatchResult:
    """What an attack on patches found. One row is one image with one choice of cells.

    Attributes:
        x: (N, C, H, W) clean images.
        image: (R,) long, which image the row attacks; 0 … N − 1 unless cells were ``"all"``.
        cells: (R, n) long.
        content: (R, C, n * h * w), what stands in the cells, in the order of :meth:`PatchGrid.pixels`.
        evaluated: (R,) bool: classified correctly when clean (targeted: not yet as the target). The others are left
            as they are and count nowhere.
        success: (R,) bool.
        steps_used: (R,) long, gradient steps taken.
        loss: (R,) cross entropy of ``y`` on the final content; NaN where not evaluated.
        grid, offset: geometry.
        checks: self-tests of the attack.
    """

    x: Tensor
    image: Tensor
    cells: Tensor
    content: Tensor
    evaluated: Tensor
    success: Tensor
    steps_used: Tensor
    loss: Tensor
    grid: PatchGrid
    offset: tuple[int, int]
    checks: tuple[Check, ...]

    @property
    def x_adv(self) -> Tensor:
        """(R, C, H, W) attacked images, composed when asked for: 196 cells of one photograph take 118 MB."""
        return _compose(self.x[self.image], self.grid.pixels(self.cells, self.offset), self.content)

    @property
    def fooling_rate(self) -> float:
        """Percentage of evaluated rows that are fooled; NaN without any."""
        n = int(self.evaluated.sum())
        return 100 * int(self.success.sum()) / n if n else float("nan")

    def map(self) -> Tensor:
        """(rows, columns) fooling rate by place, in percent: see :func:`fooling_map`."""
        return fooling_map(self.cells, self.success, self.grid, evaluated=self.evaluated)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the pixels, JSON-ready."""
        return {
            "cells": self.cells.tolist(),
            "evaluated": self.evaluated.tolist(),
            "success": self.success.tolist(),
            "steps_used": self.steps_used.tolist(),
            "loss": self.loss.tolist(),
            "offset": list(self.offset),
            "checks": [check.to_dict() for check in self.checks],
        }

    def __repr__(self) -> str:
        return (
            f"<PatchResult: {int(self.success.sum())} of {int(self.evaluated.sum())} fooled with {self.cells.shape[1]} "
            f"of {self.grid.cells} cells, {self.fooling_rate:.1f} %>"
        )


class PatchAttack:
    """Sign-gradient attack on whole cells: maximise CE(f((1 − M) ⊙ x + M ⊙ δ), y) over δ in [0, 1].

    δ ← clip(δ + step_size · sign ∇δ CE) from a uniform start. There is no norm bound inside the cells unless ``eps`` is
    given.

    Args:
        model: classifier of pixels in ``bounds`` (a :class:`striate.VisionModel`, or any module that normalises
            inside). Attack a smoothed or otherwise defended network through its defence.
        grid: geometry.
        steps: gradient steps; 0 leaves the random start, the control that any attack has to beat.
        step_size: in pixel units.
        n: cells an image, drawn if ``cells`` is ``"random"``.
        cells: ``"random"``; a list of cells for every image; ``"all"``: every cell alone, in parallel, as rows of one
            attack; or long (N, n).
        targeted: y is the class to reach, and its cross entropy falls.
        bounds: of pixel values.
        early_stop: a fooled row leaves the batch; else all steps are taken and the last content counts.
        momentum: decay μ of accumulated gradients, each normalised by its mean magnitude; 0 is plain sign ascent.
        eps: keep |δ − x| <= eps inside the cells (the imperceptible variant); None does not.
        pixels: budget of pixels a row that may change, those with the largest clean |gradient| in the cells; None
            changes all.
        offset: (dx, dy) pixels off the grid.
        batch_size: rows at once; None chooses about 1 million numbers (16 million on a GPU).
        progress: True shows a bar, None where stderr is a terminal.
    """

    def __init__(
        self,
        model: nn.Module | Forward,
        grid: PatchGrid,
        steps: int = 10_000,
        step_size: float = 2 / 255,
        n: int = 1,
        cells: Literal["random", "all"] | Cells = "random",
        *,
        targeted: bool = False,
        bounds: Bounds = (0.0, 1.0),
        early_stop: bool = True,
        momentum: float = 0.0,
        eps: float | None = None,
        pixels: int | None = None,
        offset: tuple[int, int] = (0, 0),
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> None:
        limits: dict[str, tuple[Any, bool, str]] = {
            "steps": (steps, steps >= 0, ">= 0"),
            "step_size": (step_size, step_size > 0, "> 0"),
            "n": (n, 1 <= n <= grid.cells, f"1 to the grid's {grid.cells} cells"),
            "bounds": (bounds, bounds[0] < bounds[1], "(low, high) with low < high"),
            "momentum": (momentum, momentum >= 0, ">= 0"),
            "eps": (eps, eps is None or eps >= 0, ">= 0 or None"),
            "pixels": (pixels, pixels is None or pixels >= 1, ">= 1 or None"),
            "batch_size": (batch_size, batch_size is None or batch_size >= 1, ">= 1 or None"),
        }
        for name, (value, held, words) in limits.items():
            if not held:
                raise InputError(name, "PatchAttack", allowed=words, got=value)
        if isinstance(cells, str) and cells not in {"random", "all"}:
            raise InputError("cells", "PatchAttack", allowed='"random", "all", a list or (N, n)', got=cells)
        if isinstance(cells, str) and cells == "all" and n != 1:
            raise InputError("n", "PatchAttack", allowed='1 where cells is "all"', got=n)
        self.model, self.grid, self.cells, self.n = model, grid, cells, n
        self.steps, self.step_size, self.momentum, self.early_stop = steps, step_size, momentum, early_stop
        self.targeted, self.bounds, self.eps, self.pixels = targeted, bounds, eps, pixels
        self.offset, self.batch_size, self.progress = offset, batch_size, progress

    def attack(self, x: Tensor, y: Tensor, *, seed: int = 0) -> PatchResult:
        """Attack images, each in its own cells.

        Args:
            x: (N, C, H, W) floating point in ``bounds``; moved to where the model is.
            y: (N,) true classes; with ``targeted`` the classes to reach.
            seed: of cells and start; the same seed gives the same cells whatever the model, nested over n.

        Raises:
            InputError: images of another size or range, labels out of range.
            ModelError: no gradient reaches the input.
        """
        x = check_images(x, "PatchAttack", self.bounds, self.model)
        y = check_labels(y, x, "PatchAttack")
        _check_size(x, self.grid, "PatchAttack")
        generator = torch.Generator().manual_seed(seed)
        image, cells = self._rows(len(x), generator)
        image, cells = image.to(x.device), cells.to(x.device)
        index = self.grid.pixels(cells, self.offset)
        with attacked(self.model) as forward:
            in_eval = (
                not any(module.training for module in self.model.modules())
                if isinstance(self.model, nn.Module)
                else None
            )
            with torch.no_grad():
                said = predictions(forward, x, self._size(x), y, owner="PatchAttack")
            evaluated = ((said == y) != self.targeted)[image]
            state = _Rows(self, x, y, image, index, generator)
            unmoved = state.run(forward, evaluated.nonzero()[:, 0])
        result = PatchResult(
            x=x,
            image=image,
            cells=cells,
            content=state.content,
            evaluated=evaluated,
            success=state.success,
            steps_used=state.steps_used,
            loss=state.loss,
            grid=self.grid,
            offset=self.offset,
            checks=(),
        )
        checks = _self_tests(result, self.bounds, unmoved, in_eval)
        return PatchResult(**{**vars(result), "checks": checks})

    __call__ = attack

    def _rows(self, n_images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        image = torch.arange(n_images)
        if isinstance(self.cells, str) and self.cells == "all":
            places = self.grid._movable(self.offset)
            return image.repeat_interleave(len(places)), places.repeat(n_images)[:, None]
        if isinstance(self.cells, str):
            return image, self.grid.sample(self.n, n_images, generator, offset=self.offset)
        chosen = torch.as_tensor(self.cells)
        chosen = chosen.expand(n_images, -1) if chosen.dim() == 1 else chosen
        if chosen.dim() != 2 or len(chosen) != n_images:
            raise InputError(
                "cells", "PatchAttack", allowed=f"a list, or one row for each of {n_images} images", got=chosen.shape
            )
        return image, chosen

    def _size(self, x: Tensor) -> int:
        if self.batch_size is not None:
            return self.batch_size
        # Measured on x86 cores: beyond 64 small images, or about 6 of 3 x 224 x 224, activations leave the cache.
        numbers, most = (2**24, 512) if x.device.type == "cuda" else (2**20, 64)
        return max(1, min(most, numbers // x[0].numel()))


class _Rows:
    """The rows of one attack: contents, what is allowed, and how far each has come."""

    def __init__(
        self, options: PatchAttack, x: Tensor, y: Tensor, image: Tensor, index: Tensor, generator: torch.Generator
    ) -> None:
        self.options, self.x, self.image, self.index = options, x, image, index
        self.y = y[image]
        low, high = options.bounds
        clean = x.flatten(2)[image].gather(2, index[:, None].expand(-1, x.shape[1], -1))
        eps = float("inf") if options.eps is None else options.eps
        self.low, self.high = (clean - eps).clamp_min(low), (clean + eps).clamp_max(high)
        # Drawn for all rows at once on the CPU, so that a row's start depends on the seed alone.
        start = torch.rand(clean.shape, generator=generator).to(x.device, x.dtype)
        self.start = torch.minimum(torch.maximum(self.low + (self.high - self.low) * start, self.low), self.high)
        self.content = clean
        self.velocity = torch.zeros_like(clean) if options.momentum else None
        rows = (len(image),)
        self.success = torch.zeros(rows, dtype=torch.bool, device=x.device)
        self.steps_used = torch.zeros(rows, dtype=torch.long, device=x.device)
        self.loss = torch.full(rows, float("nan"), device=x.device)

    def run(self, forward: Forward, waiting: Tensor) -> int:
        """Attack the ``waiting`` rows; return how many of them had a zero gradient at some step."""
        options, unmoved = self.options, torch.zeros_like(self.success)
        size = options._size(self.x)
        self._begin(forward, waiting, size)
        active, waiting = waiting[:size], waiting[size:]
        with progress_bar(len(active) + len(waiting), "patch attack", show=options.progress) as advance:
            while len(active):
                xb = _compose(self.x[self.image[active]], self.index[active], self.content[active])
                ended = self.steps_used[active] >= options.steps
                if bool(ended.all()):
                    with torch.no_grad():
                        logits, grad = forward(xb).float(), None
                else:
                    found = input_gradient(forward, xb, self.y[active], targeted=options.targeted, owner="PatchAttack")
                    logits, grad = found.logits.float(), found.grad
                y = self.y[active]
                fooled = (logits.argmax(dim=1) == y) == options.targeted
                self.loss[active] = F.cross_entropy(logits, y, reduction="none")
                self.success[active] = fooled
                leaving = ended | fooled if options.early_stop else ended
                if grad is not None:
                    going = (~leaving).nonzero()[:, 0]
                    unmoved[active[going]] |= self._step(active[going], grad[going])
                advance(int(leaving.sum()), "")
                active = active[~leaving]
                room = size - len(active)
                active, waiting = torch.cat([active, waiting[:room]]), waiting[room:]
        return int(unmoved.sum())

    def _begin(self, forward: Forward, rows: Tensor, size: int) -> None:
        """Put the random start into the rows; under a pixel budget, freeze all but the most sensitive pixels."""
        if self.options.pixels is None:
            self.content[rows] = self.start[rows]
            return
        for part in rows.split(size):
            xb = self.x[self.image[part]]
            found = input_gradient(forward, xb, self.y[part], targeted=self.options.targeted, owner="PatchAttack")
            strength = self._inside(found.grad, part).abs().sum(dim=1)  # (r, n h w)
            kept = strength.topk(min(self.options.pixels, strength.shape[1]), dim=1).indices
            free = torch.zeros_like(strength, dtype=torch.bool).scatter_(1, kept, True)[:, None]
            clean = self.content[part]
            self.low[part], self.high[part] = (torch.where(free, bound[part], clean) for bound in (self.low, self.high))
            self.content[part] = torch.where(free, self.start[part], clean)

    def _step(self, rows: Tensor, grad: Tensor) -> Tensor:
        """Take one step; return which rows had no gradient inside their cells."""
        inside = self._inside(grad, rows).to(self.content.dtype)
        size = inside.abs().mean(dim=(1, 2), keepdim=True)
        if self.velocity is not None:
            inside = self.options.momentum * self.velocity[rows] + inside / size.clamp_min(torch.finfo(size.dtype).tiny)
            self.velocity[rows] = inside
        moved = self.content[rows] + self.options.step_size * inside.sign()
        self.content[rows] = torch.minimum(torch.maximum(moved, self.low[rows]), self.high[rows])
        self.steps_used[rows] += 1
        return size[:, 0, 0] == 0

    def _inside(self, grad: Tensor, rows: Tensor) -> Tensor:
        """Return (r, C, n h w), the part of an image's gradient that lies in the rows' cells."""
        return grad.flatten(2).gather(2, self.index[rows][:, None].expand(-1, grad.shape[1], -1))


def _compose(x: Tensor, index: Tensor, content: Tensor) -> Tensor:
    """Write (R, C, K) contents to flat pixels (R, K) of (R, C, H, W)."""
    return x.flatten(2).scatter(2, index[:, None].expand(-1, x.shape[1], -1), content).view(x.shape)


def _check_size(x: Tensor, grid: PatchGrid, owner: str) -> None:
    if x.dim() != 4 or tuple(x.shape[-2:]) != grid.image_size:
        raise InputError("x", owner, allowed=f"(N, C, {grid.image_size[0]}, {grid.image_size[1]})", got=tuple(x.shape))


def _self_tests(result: PatchResult, bounds: Bounds, unmoved: int, in_eval: bool | None) -> tuple[Check, ...]:
    n, (low, high) = int(result.evaluated.sum()), (float(v) for v in result.content.aminmax())
    return (
        Check(
            "gradient",
            None if n == 0 else unmoved < n,
            f"{unmoved} of {n} attacked rows had no gradient in their cells at some step.",
            float(unmoved),
            float(n),
        ),
        Check("bounds", bounds[0] <= low and high <= bounds[1], f"Contents lie within {low:.3f} and {high:.3f}."),
        Check(
            "eval mode",
            in_eval,
            "The model was attacked in eval mode."
            if in_eval
            else "The model is a plain function, so its mode cannot be seen.",
        ),
    )
