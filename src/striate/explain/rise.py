"""RISE: the mean of random masks, weighed by the probability that the network gives the masked image.

Paper: Petsiuk, Das, Saenko 2018 (arXiv 1806.07421). Their code keeps all masks at full size (1.6 GB for 8,000 at 224 x
224); here only the s x s grids and shifts are kept, and masks are enlarged a batch at a time by two small matrix
products. The masks follow from the seed alone: every image and every network of one input size gets the same ones,
which lowers the variance of comparisons, and a map does not depend on the batch that its image came in. Enlarging is
bilinear with clamped borders (PyTorch's), where theirs reflects (scikit-image's).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.state import full_precision
from striate.errors import InputError
from striate.explain.base import Explainer, RawMap, Target
from striate.explain.batching import Baseline, Copies, as_baseline, reliability_check

__all__ = ["RISE", "Masks"]


class RISE(Explainer):
    """``1 / (N p) sum_i f_c(x * M_i) M_i`` with f_c the softmax probability and N masks M_i of mean p.

    The check is the map's reliability: the maps from the two halves of the masks are correlated, as in
    :func:`striate.explain.batching.reliability_check`.

    Args:
        model: see :class:`Explainer`.
        n_masks: None is 8,000 for images of 112 pixels and more on the shorter side, else 2,000.
        grid: cells of a mask along each side (s).
        p: chance that a cell shows the image, in (0, 1].
        baseline: what shows where a mask is 0, see :data:`striate.explain.batching.Baseline`.
        batch_size: masked copies in one call of the model; None chooses by image size and device.
        seed: fixes the masks.
    """

    name = "rise"
    family = "perturbation"

    def __init__(
        self,
        model: nn.Module,
        *,
        n_masks: int | None = None,
        grid: int = 7,
        p: float = 0.5,
        baseline: Baseline = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        if n_masks is not None and n_masks < 2:
            raise InputError("n_masks", "RISE", allowed=">= 2", got=n_masks)
        self.n_masks = n_masks
        self.grid, self.p = grid, p
        self.baseline = baseline
        self.batch_size = batch_size

    def masks(self, size: tuple[int, int]) -> Masks:
        """Return the masks for images of ``size`` (H, W)."""
        count = self.n_masks or (8000 if min(size) >= 112 else 2000)
        return Masks.draw(count, self.grid, self.p, size, self.seed)

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        n, h, w = inputs.shape[0], inputs.shape[-2], inputs.shape[-1]
        masks = self.masks((h, w)).to(inputs.device)
        baseline = as_baseline(self.baseline, inputs, "RISE", self.model).expand_as(inputs)
        copies = Copies.of(self.model, inputs, target, "RISE", self.batch_size, backward=False, each=len(masks))
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        sums = torch.zeros(2, n, h * w, dtype=dtype, device=inputs.device)  # even and odd masks
        at_once = max(1, copies.batch // n)
        for start in range(0, len(masks), at_once):
            chosen = range(start, min(start + at_once, len(masks)))
            shown = masks.enlarged(chosen).to(inputs.dtype)  # (m, H, W)
            scores = self._scores(copies, shown, baseline).to(dtype)  # (m, N)
            for half in (0, 1):
                mine = slice((half - start) % 2, None, 2)
                sums[half].addmm_(scores[mine].T, shown[mine].flatten(1).to(dtype))
        sums = sums.view(2, n, h, w)
        counts = [len(range(half, len(masks), 2)) for half in (0, 1)]
        halves = (sums[half] / (counts[half] * self.p) for half in (0, 1))
        notes = {"masks": len(masks), "grid": self.grid, "p": self.p}
        return RawMap(sums.sum(dim=0) / (len(masks) * self.p), copies.target, reliability_check(*halves), notes=notes)

    def _scores(self, copies: Copies, shown: Tensor, baseline: Tensor) -> Tensor:
        """Return the (m, N) scores of all images under the masks ``shown`` (m, H, W)."""
        columns = []
        for images in copies.every.split(max(1, copies.batch // len(shown))):
            image = images.repeat(len(shown))  # mask by mask over these images
            mask = shown.repeat_interleave(len(images), dim=0)[:, None]
            masked = torch.lerp(copies.pick(baseline, image), copies.pick(copies.inputs, image), mask)
            columns.append(copies.scores(masked, image, probability=True).view(len(shown), len(images)))
        return torch.cat(columns, dim=1)


@dataclass(frozen=True)
class Masks:
    """Random masks, kept small: a grid and a shift each.

    Attributes:
        cells: (N, s, s) bool.
        shifts: (N, 2) rows and columns cut off at the top and the left.
        size: (H, W) of the enlarged masks.
    """

    cells: Tensor
    shifts: Tensor
    size: tuple[int, int]

    @classmethod
    def draw(cls, count: int, grid: int, p: float, size: tuple[int, int], seed: int) -> Masks:
        """Draw ``count`` masks of ``grid`` x ``grid`` cells, each shown with chance ``p``, for images of ``size``."""
        if not 1 <= grid <= min(size):
            raise InputError("grid", "RISE", allowed=f"from 1 to the image's shorter side ({min(size)})", got=grid)
        if not 0 < p <= 1:
            raise InputError("p", "RISE", allowed="in (0, 1]", got=p)
        generator = torch.Generator().manual_seed(seed)
        cells = torch.rand(count, grid, grid, generator=generator) < p
        shifts = [torch.randint(-(-side // grid), (count,), generator=generator) for side in size]
        return cls(cells, torch.stack(shifts, dim=1), size)

    def __len__(self) -> int:
        return len(self.cells)

    def to(self, device: torch.device) -> Masks:
        """Return the masks on ``device``; they are always drawn on the CPU, so that they are the same everywhere."""
        return Masks(self.cells.to(device), self.shifts.to(device), self.size)

    def enlarged(self, chosen: range) -> Tensor:
        """Return masks ``chosen`` at full size, (m, H, W) in [0, 1]: bilinear to (s + 1) cells, cut at the shift."""
        grid = self.cells.shape[-1]
        picked = slice(chosen.start, chosen.stop)
        device = self.cells.device
        down, across = (
            _enlarger(grid, side).to(device)[self.shifts[picked, axis, None] + torch.arange(side, device=device)]
            for axis, side in enumerate(self.size)
        )  # (m, H, s) and (m, W, s)
        with full_precision(down.device):
            return down @ self.cells[picked].to(down.dtype) @ across.transpose(1, 2)


def _enlarger(grid: int, side: int) -> Tensor:
    """Return the matrix ((s + 1) ceil(side / s), s) of bilinear enlargement along one side."""
    length = (grid + 1) * -(-side // grid)
    return F.interpolate(torch.eye(grid)[None], size=length, mode="linear", align_corners=False)[0].T
