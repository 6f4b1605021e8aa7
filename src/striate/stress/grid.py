"""The grid of cells that patch perturbations are laid on: the patches of a ViT, and the same squares for a CNN.

Gu, Tresp, Qin, "Are Vision Transformers Robust to Patch Perturbations?", 2022, arXiv 2111.10659: images of 224 pixels
in patches of 16 give 14 x 14 = 196 cells, numbered along the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from striate.errors import InputError

__all__ = ["Cells", "PatchGrid"]

Cells = Sequence[int] | Tensor
"""Cells to perturb: a list, the same for every image, or (B, n) long, one row an image."""


@dataclass(frozen=True, init=False)
class PatchGrid:
    """Cells of equal size that cover an image.

    Args:
        image_size: side of the image in pixels, or (H, W).
        patch_size: side of a cell in pixels, or (h, w).
        cover: whether the cells have to cover the image; if not, what is left over lies at the bottom and the right.

    Attributes:
        image_size, patch_size: as pairs.
        shape: (rows, columns).

    Raises:
        InputError: the image is smaller than the patch, or has to be covered and is not divisible by it.

    >>> grid = PatchGrid(224, 16)
    >>> grid.cells, grid.mask([0, 15]).sum().item()
    (196, 512)
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    shape: tuple[int, int]

    def __init__(
        self, image_size: int | tuple[int, int], patch_size: int | tuple[int, int], *, cover: bool = True
    ) -> None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        h, w = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        if h < 1 or w < 1 or height < h or width < w or (cover and (height % h or width % w)):
            raise InputError(
                "patch_size",
                "PatchGrid",
                allowed=f"a divisor of the image's {height} x {width} pixels",
                got=f"{h} x {w}",
                hint=f"Near: {_nearest_divisor(height, h)} x {_nearest_divisor(width, w)}.",
            )
        object.__setattr__(self, "image_size", (height, width))
        object.__setattr__(self, "patch_size", (h, w))
        object.__setattr__(self, "shape", (height // h, width // w))

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.shape[0] * self.shape[1]

    @property
    def left_over(self) -> str:
        """What no cell covers, in a sentence; empty where the cells cover the image."""
        down, right = (side % part for side, part in zip(self.image_size, self.patch_size, strict=True))
        rows, columns = self.shape
        cells = f"The {rows} x {columns} cells of {self.patch_size[0]} x {self.patch_size[1]} px leave"
        return f"{cells} {down} px at the bottom and {right} px at the right alone." if down or right else ""

    @property
    def pixels_per_cell(self) -> int:
        """Number of pixels of one cell."""
        return self.patch_size[0] * self.patch_size[1]

    def mask(self, cells: Cells, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Return which pixels belong to ``cells``.

        Args:
            cells: see :data:`Cells`.
            offset: (dx, dy) pixels by which the squares are moved right and down, off the grid.

        Returns:
            Bool, (1, H, W) for a list, (B, 1, H, W) for a tensor (B, n).

        Raises:
            InputError: no such cell, the same cell twice, or a moved square that leaves the image.
        """
        index = self.pixels(cells, offset)
        mask = torch.zeros(
            index.shape[0], self.image_size[0] * self.image_size[1], dtype=torch.bool, device=index.device
        )
        mask.scatter_(1, index, True)
        mask = mask.view(-1, 1, *self.image_size)
        return mask if isinstance(cells, Tensor) and cells.dim() == 2 else mask[0]

    def pixels(self, cells: Cells, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Return the flat pixel indices row * W + column of ``cells``, cell by cell: (B or 1, n * h * w) long.

        Arguments and errors as :meth:`mask`.
        """
        chosen = self._checked(cells)
        columns, (h, w), (dx, dy) = self.shape[1], self.patch_size, offset
        top, left = chosen.div(columns, rounding_mode="floor") * h + dy, chosen.remainder(columns) * w + dx
        height, width = self.image_size
        if (top < 0).any() or (left < 0).any() or (top > height - h).any() or (left > width - w).any():
            raise InputError(
                "offset",
                "PatchGrid",
                allowed="small enough that every square stays within the image",
                got=offset,
                hint="sample(…, offset=offset) draws only cells that can be moved so.",
            )
        down, right = torch.arange(h, device=chosen.device), torch.arange(w, device=chosen.device)
        # (B, n, h, w) -> (B, n h w)
        return ((top[..., None, None] + down[:, None]) * width + left[..., None, None] + right).flatten(1)

    def sample(
        self, n: int, batch: int, generator: torch.Generator | None = None, *, offset: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Draw ``n`` cells for each image, uniformly without replacement.

        The same generator state gives nested draws: the cells for n = 10 are the first ten of those for n = 31.

        Args:
            n: 1 to :attr:`cells`.
            batch: number of images.
            generator: default: one seeded with 0.
            offset: (dx, dy); only cells whose moved square stays within the image are drawn.

        Returns:
            (batch, n) long on the generator's device.
        """
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        allowed = self._movable(offset).to(generator.device)
        if not 1 <= n <= len(allowed):
            where = "" if offset == (0, 0) else f" that can be moved by {offset}"
            raise InputError("n", "PatchGrid.sample", allowed=f"1 to the {len(allowed)} cells{where}", got=n)
        order = torch.rand(batch, len(allowed), generator=generator, device=generator.device).argsort(dim=1)
        return allowed[order[:, :n]]

    def _movable(self, offset: tuple[int, int]) -> Tensor:
        (rows, columns), (h, w), (dx, dy) = self.shape, self.patch_size, offset
        top, left = torch.arange(rows) * h + dy, torch.arange(columns) * w + dx
        fits = ((top >= 0) & (top <= self.image_size[0] - h))[:, None] & (left >= 0) & (left <= self.image_size[1] - w)
        return fits.flatten().nonzero()[:, 0]

    def _checked(self, cells: Cells) -> Tensor:
        chosen = torch.as_tensor(cells)
        chosen = chosen[None] if chosen.dim() == 1 else chosen
        if chosen.dim() != 2 or chosen.shape[1] == 0 or chosen.is_floating_point() or chosen.dtype == torch.bool:
            raise InputError("cells", "PatchGrid", allowed="a list of cells, or long (B, n)", got=str(cells))
        if (chosen < 0).any() or (chosen >= self.cells).any():
            worst = int(chosen[(chosen < 0) | (chosen >= self.cells)][0])
            raise InputError("cells", "PatchGrid", allowed=f"from 0 to {self.cells - 1}", got=worst)
        if (chosen.sort(dim=1).values.diff(dim=1) == 0).any():
            raise InputError("cells", "PatchGrid", allowed="each cell once", got="a cell twice")
        return chosen.long()


def _nearest_divisor(length: int, wanted: int) -> int:
    return min((d for d in range(1, length + 1) if length % d == 0), key=lambda d: abs(d - wanted))
