"""Cutting any image into square cells."""

from __future__ import annotations

import math

from striate.errors import RunError
from striate.stress.grid import PatchGrid

__all__ = ["square_cells"]


def square_cells(height: int, width: int, wanted: int) -> PatchGrid:
    """Return a grid of square cells, nearly ``wanted`` along the shorter side.

    Where no such square divides both sides, what is left over at the bottom and the right is in no cell.

    Raises:
        RunError: a side of fewer than 4 pixels.

    >>> [square_cells(*size, 14).patch_size[0] for size in ((224, 224), (28, 28), (97, 110))]
    [16, 2, 6]
    """
    common, shorter = math.gcd(height, width), min(height, width)
    if shorter < 4:
        raise RunError(f"Images of {height} x {width} are too small to be cut into cells.")
    sides = [side for side in range(2, common + 1) if common % side == 0 and 2 / 3 <= shorter / side / wanted <= 3 / 2]
    side = min(sides, key=lambda side: abs(shorter / side - wanted)) if sides else max(2, shorter // wanted)
    return PatchGrid((height, width), side, cover=False)
