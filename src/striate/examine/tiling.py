"""Cutting any image into square cells."""

from __future__ import annotations

import math

from striate.errors import RunError

__all__ = ["cell_side"]


def cell_side(height: int, width: int, wanted: int) -> int:
    """Return the side of a square cell that divides both sides and gives nearly ``wanted`` cells a shorter side.

    Raises:
        RunError: no square cell divides the image into more than one part.

    >>> cell_side(224, 224, 14), cell_side(28, 28, 14), cell_side(24, 36, 7)
    (16, 2, 3)
    """
    common, shorter = math.gcd(height, width), min(height, width)
    sides = [side for side in range(2, common + 1) if common % side == 0 and shorter // side > 1]
    if not sides:
        raise RunError(
            f"Images of {height} x {width} cannot be cut into square cells; resize them, e.g. to a multiple of 8."
        )
    return min(sides, key=lambda side: abs(shorter / side - wanted))
