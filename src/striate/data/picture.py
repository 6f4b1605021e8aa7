"""One picture: opened safely whatever a person's folder holds, and made into a network's input."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from striate.engine.model import Preprocessing
from striate.errors import ImageError, InputError

__all__ = ["MAX_PIXELS", "open_picture", "picture_suffixes", "prepare"]

MAX_PIXELS = 89_478_485  # where Pillow begins to warn
"""Larger pictures are refused before they are decoded: a small file can unpack to gigabytes."""

# Named one by one: Pillow would also hand a file to outside programs (Ghostscript) that read far more than pixels.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def open_picture(path: str | Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Open a picture as 8-bit RGB or grey, upright.

    What is not plain is handled like this, and said in the notes: the camera's orientation (EXIF) is applied;
    transparency is laid on white; CMYK and other colour spaces become RGB without a colour profile; 16-bit grey is
    scaled by 65,535; float grey must lie in [0, 1]; of several frames or pages the first is taken.

    Returns:
        The picture, mode ``"RGB"`` or ``"L"``, and one note for each thing that was done to it.

    Raises:
        ImageError: empty, unreadable, truncated, no picture, over :data:`MAX_PIXELS`, or of an unknown range.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise ImageError("the file is empty (0 bytes)")
        picture = Image.open(path, formats=_known_formats())
    except FileNotFoundError as error:
        raise ImageError("there is no such file" if not path.is_symlink() else "a link that leads nowhere") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"it has more than the {MAX_PIXELS:,} pixels that are allowed") from error
    except UnidentifiedImageError as error:
        raise ImageError("it is not an image of a known kind") from error
    except _BROKEN as error:
        raise ImageError(f"it cannot be read ({_first_line(error)})") from error
    with picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that are allowed")
        notes = []
        try:
            if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
                notes.append(f"first of {picture.n_frames} frames")  # type: ignore[attr-defined]
                picture.seek(0)
            picture.load()
        except _BROKEN as error:
            raise ImageError(f"it is damaged or truncated ({_first_line(error)})") from error
        upright: Image.Image = picture
        try:
            if picture.getexif().get(0x0112, 1) in range(2, 9):
                upright = ImageOps.exif_transpose(picture)
                notes.append("turned upright by its EXIF orientation")
        except _BROKEN:
            notes.append("EXIF unreadable, its orientation ignored")
        plain, note = _eight_bit(upright)
        if plain is picture:
            plain = picture.copy()
    return plain, (*notes, note) if note else tuple(notes)


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Make a picture into a network's input, short of the normalisation, which stands inside the model.

    The picture is resized, with antialiasing, so that it just covers the input size divided by ``crop`` (for a square
    input: its shorter side becomes ``round(size / crop)``), and the centre is cut out.

    Args:
        image: any mode that :func:`open_picture` returns, or another that Pillow converts.
        preprocessing: of the network; 1 or 3 channels.

    Returns:
        (C, H, W) float32 in [0, 1].

    Raises:
        ImageError: so long and narrow that covering the input would take more than :data:`MAX_PIXELS`.
    """
    channels, height, width = preprocessing.input_size
    if channels not in {1, 3}:
        raise InputError("input_size", "prepare", allowed="of 1 or 3 channels to take pictures", got=channels)
    image = image.convert("L" if channels == 1 else "RGB")
    cover_w, cover_h = (round(side / preprocessing.crop) for side in (width, height))
    # The side that needs the larger factor gets its size exactly; the other is rounded down, as torchvision does.
    if cover_w * image.height >= cover_h * image.width:
        size = (cover_w, max(cover_h, int(cover_w * image.height / image.width)))
    else:
        size = (max(cover_w, int(cover_h * image.width / image.height)), cover_h)
    if size[0] * size[1] > MAX_PIXELS:
        shape = f"{image.width} x {image.height} pixels are too long and narrow"
        raise ImageError(f"{shape}: covering the input of {width} x {height} would take {size[0]} x {size[1]}")
    if size != image.size:
        image = image.resize(size, _RESAMPLING[preprocessing.interpolation])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.uint8)
    # (H, W) or (H, W, 3) -> (C, H, W)
    return torch.from_numpy(pixels.reshape(height, width, channels).transpose(2, 0, 1).copy()).float() / 255


def _eight_bit(image: Image.Image) -> tuple[Image.Image, str]:
    if image.mode in {"RGB", "L"} and not image.has_transparency_data:
        return image, ""
    if image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64) / 65_535
        return _from_unit(values), "16-bit grey scaled to 8 bits"
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            span = f"{values.min():g} to {values.max():g}"
            raise ImageError(f"its float pixels run from {span}; only [0, 1] is understood")
        return _from_unit(values), "float grey in [0, 1] scaled to 8 bits"
    if image.mode == "I":
        raise ImageError("its 32-bit integer pixels have no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        opaque = rgba.getchannel("A").getextrema() == (255, 255)
        note = "" if opaque else "transparency laid on white"
        return Image.alpha_composite(white, rgba).convert("RGB"), note
    try:
        note = "" if image.mode in {"P", "1"} else f"{image.mode} converted to RGB without a colour profile"
        return image.convert("L" if image.mode == "1" else "RGB"), note
    except ValueError as error:
        raise ImageError(f"its colour mode {image.mode} cannot be converted to RGB") from error


def _from_unit(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(values * 255).astype(np.uint8))


def picture_suffixes() -> set[str]:
    """Return the suffixes, in lower case with their dot, of the kinds of picture that are opened."""
    known = set(_known_formats())
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in known}


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
