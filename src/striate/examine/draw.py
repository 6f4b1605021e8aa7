"""From tensors and intervals to the plain records of a finding."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from striate.engine.stats import Interval
from striate.examine.finding import Figure, MapPicture, Photo, Series
from striate.explain.result import normalize

__all__ = ["line", "map_picture", "percent", "photo", "share"]

_PHOTO_SIDE = 176
_MAP_SIDE = 28


def photo(pixels: Tensor, name: str, caption: str = "", side: int = _PHOTO_SIDE) -> Photo:
    """Return a (C, H, W) image in [0, 1] as a small JPEG for the report."""
    array = (pixels.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(array if array.shape[2] == 3 else array[..., 0])
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=84, optimize=True)
    return Photo(
        name=name, mime="image/jpeg", base64=base64.b64encode(buffer.getvalue()).decode("ascii"), caption=caption
    )


def map_picture(
    values: Tensor, title: str, alt: str, *, photo: int | None, caption: str = "", side: int = _MAP_SIDE
) -> MapPicture:
    """Return an (H, W) map in [0, 1] as bytes for the report.

    It is averaged down to at most ``side`` pixels and then stretched to [0, 1] again: a map of single pixels would
    otherwise be drawn nearly black.
    """
    height, width = min(values.shape[0], side), min(values.shape[1], side)
    small = torch.nn.functional.adaptive_avg_pool2d(values[None, None].float(), (height, width))[0, 0]
    small = normalize(small[None])[0]
    data = (small * 255).round().byte().cpu().numpy().tobytes()
    encoded = base64.b64encode(data).decode("ascii")
    return MapPicture(photo=photo, height=height, width=width, base64=encoded, title=title, alt=alt, caption=caption)


def share(name: str, interval: Interval, note: str = "") -> Figure:
    """Return a share in [0, 1] with its interval as a figure in percent."""
    return Figure(
        name=name, value=interval.value, low=interval.low, high=interval.high, unit="%", n=interval.n, note=note
    )


def line(name: str, values: Sequence[Interval], *, control: bool = False) -> Series:
    """Return a line with its band over equally spaced places 0, 1, 2, …."""
    return Series(
        name=name,
        x=[float(place) for place in range(len(values))],
        y=[item.value for item in values],
        low=[item.low for item in values],
        high=[item.high for item in values],
        control=control,
    )


def percent(interval: Interval) -> str:
    """Write a share with its interval: ``"85 % (64 to 95)"``."""
    return f"{100 * interval.value:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"
