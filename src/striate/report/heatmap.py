"""The one way to draw a heat map: the same colours and the same scale everywhere."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib import colormaps
from PIL import Image

from striate.errors import InputError

__all__ = ["COLORMAP", "colour", "overlay", "png_base64", "scale_bar"]

COLORMAP = "inferno"
"""Perceptually even, readable in grey and for the colour-blind."""


def colour(values: np.ndarray) -> Image.Image:
    """Return a map in [0, 1], shape (H, W), as an RGB image."""
    if values.ndim != 2 or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise InputError("values", "colour", allowed="a finite (H, W) map in [0, 1]", got=f"shape {values.shape}")
    painted = colormaps[COLORMAP](values, bytes=True)[..., :3]
    return Image.fromarray(np.ascontiguousarray(painted))


def overlay(image: Image.Image, values: np.ndarray, opacity: float = 0.6) -> Image.Image:
    """Lay a map over a photograph.

    Args:
        image: any mode and size; drawn in grey, so that colour means the map alone.
        values: (h, w) in [0, 1]; resized bilinearly to the image.
        opacity: of the map, in [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise InputError("opacity", "overlay", allowed="in [0, 1]", got=opacity)
    painted = colour(values).resize(image.size, Image.Resampling.BILINEAR)
    return Image.blend(image.convert("L").convert("RGB"), painted, opacity)


def png_base64(image: Image.Image) -> str:
    """Return an image as base64 of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def scale_bar(width: int = 128) -> Image.Image:
    """Return the colour scale from 0 (left) to 1 (right), one pixel high."""
    return colour(np.linspace(0, 1, width)[None, :])
