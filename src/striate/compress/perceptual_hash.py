"""Perceptual fingerprints: a number that near-identical images share, or rotated and mirrored ones too."""

from __future__ import annotations

import hashlib
import math
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from striate.errors import InputError

__all__ = [
    "FingerprintKind",
    "dhash",
    "exact_digest",
    "fingerprint_operations",
    "fingerprints",
    "invariant_key",
    "moment_invariants",
]

FingerprintKind = Literal["exact", "dhash", "invariants"]

_ORDER = 3
_SIDE = 32
# c_pq times c_12 to the power p - q does not change under rotation; the power of the root taken after it.
_PRODUCTS = (((1, 1), 1, "real"), ((2, 0), 3, "real"), ((2, 0), 3, "imag"), ((2, 1), 2, "real"), ((3, 0), 4, "real"),
             ((3, 0), 4, "imag"))  # fmt: skip
_MOMENTS = ((1, 1), (1, 2), (2, 0), (2, 1), (3, 0))


def fingerprints(images: Tensor, kind: FingerprintKind = "dhash") -> list[int | None]:
    """Return one whole number per image, equal for images that count as the same; None where an image has none.

    Args:
        images: (N, C, H, W) uint8, one or three channels.
        kind: ``"exact"``, the same bytes only; ``"dhash"``, see :func:`dhash`; ``"invariants"``, the
            :func:`invariant_key` in steps of a millionth of itself, which rotating by 90 degrees or mirroring leaves
            alone. Uniform images have no orientation and so no invariants: None.

    Raises:
        InputError: not uint8, another shape or another kind.
    """
    if kind == "exact":
        return exact_digest(images)
    if kind == "dhash":
        return [int(value) for value in dhash(images)]
    if kind == "invariants":
        values = moment_invariants(images)
        # Without c_12 the five other invariants are zero or undefined, and what is left is the image's mean.
        some = np.isfinite(values).all(1) & (np.abs(values[:, 1:]).max(1, initial=0.0) > 0)
        keys = _key(values)
        return [_in_steps(float(key)) if good and key != 0 else None for key, good in zip(keys, some, strict=True)]
    raise InputError("kind", "fingerprints", allowed=f"one of {', '.join(get_args(FingerprintKind))}", got=kind)


def fingerprint_operations(kind: FingerprintKind, size: tuple[int, int, int]) -> int:
    """Return the arithmetic operations of one fingerprint of a (C, H, W) image, to set beside multiply-accumulates.

    Counted are weights times pixels and comparisons; for the digest 11 operations a byte (BLAKE2b: 12 rounds of 8 times
    14 for 128 bytes).
    """
    channels, height, width = size
    if kind == "exact":
        return 11 * channels * height * width
    luma = 3 if channels == 3 else 0  # a pixel
    if kind == "dhash":
        return 4 * 8 * 9 * luma + 8 * 9 * 6 + 64
    if max(height, width) <= _SIDE:
        looked_at = luma * height * width
    else:
        looked_at, height, width = _SIDE * _SIDE * (4 * luma + 6), _SIDE, _SIDE
    moments = (_ORDER + 1) * height * width + (_ORDER + 1) ** 2 * width
    return looked_at + moments + 4 * _shift_terms()[1].size


def exact_digest(images: Tensor) -> list[int | None]:
    """Return 64 bits of the BLAKE2 digest of each image's bytes and shape."""
    pixels = _uint8(images).contiguous().cpu().numpy()
    seed = str(pixels.shape[1:]).encode()
    return [int.from_bytes(hashlib.blake2b(image.tobytes() + seed, digest_size=8).digest(), "big") for image in pixels]


def dhash(images: Tensor) -> np.ndarray:
    """Return the 64-bit difference hash of each image, (N,) uint64.

    Grey, shrunk to 9 x 8 pixels without smoothing, bit k set where the k-th pixel is darker than its right neighbour.
    Grey values and shrinking are rounded as OpenCV rounds them, which the authors use.

    >>> ramp = torch.arange(0, 252, 28, dtype=torch.uint8).expand(1, 1, 8, 9)
    >>> int(dhash(ramp)[0]) == 2**64 - 1
    True
    """
    small = _shrunk(_uint8(images).cpu().numpy(), 8, 9)
    bits = np.packbits((small[:, :, 1:] > small[:, :, :-1]).reshape(len(small), 64), axis=1, bitorder="little")
    return np.ascontiguousarray(bits).view("<u8").astype(np.uint64).reshape(len(small))


def moment_invariants(images: Tensor) -> np.ndarray:
    """Return six invariants of each image to rotation, up to third order, (N, 6) float64; NaN for a black image.

    Complex moments c_pq of the grey image (shrunk to 32 x 32 if larger), normalised for scale, multiplied by
    c_12^(p-q), and brought to a common degree by a root (Flusser 2000). The third and the sixth change sign when the
    image is mirrored. The sums are of whole numbers about the middle of the image, so that turning an image by 90
    degrees permutes exact numbers. Shrunk images are not rounded to whole grey levels, as the authors' are: rounding
    treats rows and columns differently, and a turned photograph would get another key.
    """
    pixels = _uint8(images).cpu().numpy()
    grey = _shrunk_exactly(pixels, _SIDE) if max(pixels.shape[2:]) > _SIDE else _grey(pixels)
    with np.errstate(divide="ignore", invalid="ignore"):
        moments = _complex_moments(grey.astype(np.float64))
        invariants = []
        for (p, q), degree, part in _PRODUCTS:
            product = getattr(moments[p, q] * moments[1, 2] ** (p - q), part)
            invariants.append(np.sign(product) * np.abs(product) ** (1 / degree))
    return np.stack(invariants, 1)


def invariant_key(images: Tensor) -> np.ndarray:
    """Return the sum of the four invariants that mirroring leaves alone too, (N,) float64; NaN for a black image."""
    return _key(moment_invariants(images))


def _key(invariants: np.ndarray) -> np.ndarray:
    return invariants[:, 0] + invariants[:, 1] + invariants[:, 3] + invariants[:, 4]


def _in_steps(key: float, relative: float = 1e-6) -> int:
    """Return which geometric step ``key`` falls in; floats themselves would differ in their last bits."""
    step = round(math.log(abs(key)) / math.log1p(relative))
    return 2 * step + (key < 0)


def _moments_about_middle(grey: np.ndarray) -> np.ndarray:
    """Return the moments about the middle of the image, (4, 4, N): exact, since 2x - (n + 1) is a whole number."""
    rows, columns = (_powers(n) for n in grey.shape[1:])
    doubled = (columns @ (rows @ grey).transpose(0, 2, 1)).transpose(1, 2, 0)
    order = np.add.outer(np.arange(_ORDER + 1), np.arange(_ORDER + 1))
    return doubled / 2.0 ** order[:, :, None]


@cache
def _powers(n: int) -> np.ndarray:
    doubled = 2.0 * np.arange(1, n + 1) - (n + 1)
    return doubled[None] ** np.arange(_ORDER + 1)[:, None]


def _complex_moments(grey: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Return the complex moments that the invariants need, about the centroid and normalised for scale, each (N,)."""
    about_middle = _moments_about_middle(grey)
    m00 = about_middle[0, 0]
    powers = np.arange(_ORDER + 1)[:, None]
    x, y = (-about_middle[1, 0] / m00) ** powers, (-about_middle[0, 1] / m00) ** powers
    terms, weights = _shift_terms()
    k, w, x_power, y_power = terms
    # Rounding makes a symmetric image's vanishing moments exactly zero.
    totals = np.round(weights @ (x[x_power] * y[y_power] * about_middle[k, w]), 5)
    half = np.array([[(p + q) / 2] for p, q in _MOMENTS])
    return dict(zip(_MOMENTS, totals / m00 ** (half + 1) * (half + 1) * math.pi**half, strict=True))


@cache
def _shift_terms() -> tuple[np.ndarray, np.ndarray]:
    """Return the terms that lead from moments about the middle to complex ones about the centroid.

    c_pq is a sum over central moments m_ij, and each of these over moments about the middle m_kw times powers of the
    centroid. Terms are rows (k, w, power of x, power of y), (4, T); the weights of each c_pq, (moments, T), complex.
    """
    terms: dict[tuple[int, int, int, int], int] = {}
    weights: list[dict[int, complex]] = []
    for p, q in _MOMENTS:
        row: dict[int, complex] = {}
        for r, s in ((r, s) for r in range(p + 1) for s in range(q + 1)):
            i, j = r + s, p + q - r - s
            if i + j == 1:
                continue  # zero about the centroid
            factor = math.comb(p, r) * math.comb(q, s) * (-1) ** (q - s) * 1j ** (p + q - r - s)
            for k, w in ((k, w) for k in range(i + 1) for w in range(j + 1)):
                term = terms.setdefault((k, w, i - k, j - w), len(terms))
                row[term] = row.get(term, 0) + factor * math.comb(i, k) * math.comb(j, w)
        weights.append(row)
    matrix = np.zeros((len(weights), len(terms)), dtype=np.complex128)
    for i, weight in enumerate(weights):
        matrix[i, list(weight)] = list(weight.values())
    return np.array(list(terms)).T, matrix


def _uint8(images: Tensor) -> Tensor:
    if images.dtype is not torch.uint8 or images.dim() != 4 or images.shape[1] not in {1, 3} or 0 in images.shape[1:]:
        allowed = "(N, 1 or 3, H, W) uint8, pixels 0 to 255"
        raise InputError("images", "fingerprints", allowed=allowed, got=f"{tuple(images.shape)} {images.dtype}")
    return images


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Return the luma of ITU-R BT.601 of (N, C, …) pixels, (N, …) uint8, in OpenCV's 15-bit fixed point."""
    if pixels.shape[1] == 1:
        return pixels[:, 0]
    red, green, blue = (pixels[:, channel].astype(np.uint32) for channel in range(3))
    return ((red * 9798 + green * 19235 + blue * 3735 + (1 << 14)) >> 15).astype(np.uint8)


def _shrunk(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return grey (N, height, width): two-tap bilinear, without smoothing, rounded as OpenCV does in fixed point."""
    across, weights = _across(pixels, height, width)
    return (((across >> 4) * weights >> 16).sum(1) + 2) >> 2


def _shrunk_exactly(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return grey (N, side, side) as :func:`_shrunk` before rounding, float64: it commutes with turning the image."""
    across, weights = _across(pixels, side, side)
    return (across * weights).sum(1) / float(1 << 22)


def _across(pixels: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two rows that each target row lies between, interpolated across, (N, 2, height, width), and weights.

    Only the pixels that are needed are looked at.
    """
    (rows, down), (columns, right) = _taps(pixels.shape[2], height), _taps(pixels.shape[3], width)
    grey = _grey(pixels[:, :, rows[:, :, None, None], columns]).astype(np.int64)
    return (grey * right).sum(3), down[:, :, None]


@cache
def _taps(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two source positions of each target position and their weights out of 2048, each (2, wanted)."""
    centre = ((np.arange(wanted) + 0.5) * (size / wanted) - 0.5).clip(0, size - 1)
    first = np.floor(centre).astype(np.int64)
    share = np.rint((centre - first) * 2048).astype(np.int64)
    return np.stack([first, np.minimum(first + 1, size - 1)]), np.stack([2048 - share, share])
