"""The fifteen common corruptions of ImageNet-C, for images of any size, grey or colour.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019, arXiv
1903.12261. Strengths are the published ones, chosen by image size (:mod:`striate.stress.severities`). As published,
images go through 8 bits on the way in and are truncated to 8 bits on the way out. What differs, and why:

* ``frost`` pastes generated ice (feathered ridges over a cloudy film, with mean, spread and tint of the published
  photographs), because the photographs cannot be shipped. It is no pixel-for-pixel stand-in: compare models under it,
  not with published frost figures.
* ``motion_blur`` and ``snow`` smear along a half-Gaussian line as ImageMagick does, rounded to whole pixels.
* the random streams are NumPy's, one an image, so that a batch is reproducible and may be cut anywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from striate.errors import InputError, did_you_mean
from striate.stress.severities import SEVERITIES, severity_table

__all__ = ["CORRUPTIONS", "corrupt"]

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""Names in the published order."""

Floats = NDArray[np.float64]
Rngs = list[np.random.Generator]


def corrupt(
    images: Tensor,
    name: str,
    severity: int = 5,
    *,
    seed: int = 0,
    generator: torch.Generator | None = None,
    table: int | None = None,
) -> Tensor:
    """Apply one common corruption to a batch.

    Args:
        images: (N, C, H, W) floating point in [0, 1], C 1 or 3, sides of 8 pixels or more; rounded to 8 bits first.
        name: one of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: image i draws from stream (seed, i), so a batch gives what its first images alone would give.
        generator: draws the seed instead, and advances.
        table: 32, 64 or 224; default by :func:`severity_table`.

    Returns:
        (N, C, H, W) on the images' device and in their dtype, multiples of 1/255 in [0, 1].

    Raises:
        InputError: unknown name, severity, table; images of another kind.

    >>> corrupt(torch.full((1, 1, 32, 32), 0.2), "brightness", 5).unique()
    tensor([0.4980])
    """
    _check(images, name, severity, table)
    if generator is not None:
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    table = severity_table(min(images.shape[-2:])) if table is None else table
    pixels = (images.detach().double() * 255).round().byte().cpu().numpy()
    rngs = [np.random.default_rng((seed, i)) for i in range(images.shape[0])]
    corrupted = _FUNCTIONS[name](pixels, SEVERITIES[table][name][severity - 1], rngs)
    result = torch.from_numpy(np.clip(corrupted, 0, 255).astype(np.uint8))
    return (result.to(images.dtype) / 255).to(images.device)  # divided on the CPU: a GPU rounds its quotients otherwise


# Each function takes uint8 (N, C, H, W), the strength and one random stream an image; it returns 0..255.


def _gaussian_noise(x: NDArray[np.uint8], scale: float, rngs: Rngs) -> Floats:
    return _each(lambda image, rng: image + rng.normal(scale=scale, size=image.shape), x, rngs)


def _shot_noise(x: NDArray[np.uint8], photons: float, rngs: Rngs) -> Floats:
    return _each(lambda image, rng: rng.poisson(image * photons) / photons, x, rngs)


def _impulse_noise(x: NDArray[np.uint8], amount: float, rngs: Rngs) -> Floats:
    def salt_and_pepper(image: Floats, rng: np.random.Generator) -> Floats:
        salt = rng.random(image.shape) < 0.5
        return np.where(rng.random(image.shape) < amount, salt.astype(float), image)

    return _each(salt_and_pepper, x, rngs)


def _defocus_blur(x: NDArray[np.uint8], strength: tuple[float, float], rngs: Rngs) -> Floats:
    kernel = _disk(*strength)
    return 255 * np.clip(_filter(x / 255, kernel), 0, 1)


def _glass_blur(x: NDArray[np.uint8], strength: tuple[float, int, int], rngs: Rngs) -> Floats:
    sigma, reach, rounds = strength
    out = (255 * _gaussian(x / 255, sigma)).astype(np.uint8)
    h, w = out.shape[-2:]
    rows, columns = np.arange(h - reach, reach, -1), np.arange(w - reach, reach, -1)
    # Meant as swaps of neighbours, but the published set holds copies: its swap reads a view that it has just
    # overwritten. One stream of jumps an image; the walk itself goes through all images at once.
    jumps = np.stack([rng.integers(-reach, reach, size=(rounds, rows.size, columns.size, 2)) for rng in rngs])
    who = np.arange(out.shape[0])
    for turn in range(rounds):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                dx, dy = jumps[:, turn, i, j].T
                out[:, :, row, column] = out[who, :, row + dy, column + dx]
    return 255 * np.clip(_gaussian(out / 255, sigma), 0, 1)


def _motion_blur(x: NDArray[np.uint8], strength: tuple[int, float], rngs: Rngs) -> Floats:
    return _each(lambda image, rng: _smear(image, *strength, rng.uniform(-45, 45)), x, rngs)


def _zoom_blur(x: NDArray[np.uint8], strength: tuple[float, float], rngs: Rngs) -> Floats:
    stop, step = strength
    factors = np.arange(1, stop, step)
    images = torch.from_numpy(x / 255)
    total = images + sum(_zoom(images, float(factor)) for factor in factors)
    return 255 * np.clip((total / (len(factors) + 1)).numpy(), 0, 1)


def _snow(x: NDArray[np.uint8], strength: tuple[float, ...], rngs: Rngs) -> Floats:
    mean, scale, zoom, threshold, radius, sigma, share = strength

    def snowed(image: Floats, rng: np.random.Generator) -> Floats:
        flakes = rng.normal(mean, scale, size=(1, *image.shape[1:]))
        flakes = _zoom(torch.from_numpy(flakes)[None], zoom)[0].numpy()
        flakes = np.round(np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255) / 255
        flakes = np.round(_smear(flakes, int(radius), sigma, rng.uniform(-135, -45)) * 255) / 255
        whitened = np.maximum(image, _luma(image) * 1.5 + 0.5)
        return share * image + (1 - share) * whitened + flakes + flakes[:, ::-1, ::-1]

    return _each(snowed, x, rngs)


def _frost(x: NDArray[np.uint8], strength: tuple[float, float], rngs: Rngs) -> Floats:
    own, ice = strength
    return _each(lambda image, rng: own * image + ice * _ice(image.shape, rng), x, rngs)


def _fog(x: NDArray[np.uint8], strength: tuple[float, float], rngs: Rngs) -> Floats:
    thickness, decay = strength
    h, w = x.shape[-2:]
    side = 1 << (max(h, w) - 1).bit_length()
    side = max(side, 512) if side > 128 else side  # published maps: 32, 64, and 512 for 224 pixels
    maps = np.stack([_plasma(side, decay, rng)[:h, :w] for rng in rngs])[:, None]
    images = x / 255
    peak = images.max(axis=(1, 2, 3), keepdims=True)
    return 255 * np.clip((images + thickness * maps) * peak / (peak + thickness), 0, 1)


def _brightness(x: NDArray[np.uint8], shift: float, rngs: Rngs) -> Floats:
    images = x / 255
    value = images.max(axis=1, keepdims=True)  # V of HSV; hue and saturation stay, so all channels scale alike
    raised = np.clip(value + shift, 0, 1)
    ratio = np.divide(images, value, out=np.ones_like(images), where=value > 0)
    return 255 * raised * ratio


def _contrast(x: NDArray[np.uint8], factor: float, rngs: Rngs) -> Floats:
    images = x / 255
    means = images.mean(axis=(2, 3), keepdims=True)
    return 255 * np.clip((images - means) * factor + means, 0, 1)


def _elastic_transform(x: NDArray[np.uint8], strength: tuple[float, float, float], rngs: Rngs) -> Floats:
    h, w = x.shape[-2:]
    alpha, sigma, jitter = (share * min(h, w) for share in strength)
    ys, xs = np.mgrid[:h, :w].astype(float)

    def bent(image: Floats, rng: np.random.Generator) -> Floats:
        centre, third = np.array([w // 2, h // 2], float), min(h, w) // 3
        corners = np.array([centre + third, [centre[0] + third, centre[1] - third], centre - third])
        moved = corners + rng.uniform(-jitter, jitter, size=corners.shape)
        # The affine map takes corners to moved; pixels are fetched along its inverse.
        inverse = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners).T  # (2, 3)
        at_x, at_y = (a * xs + b * ys + c for a, b, c in inverse)
        image = np.stack([ndimage.map_coordinates(plane, (at_y, at_x), order=1, mode="mirror") for plane in image])
        dx, dy = (
            alpha * ndimage.gaussian_filter(rng.uniform(-1, 1, size=(h, w)), sigma, mode="reflect", truncate=3)
            for _ in range(2)
        )
        return np.stack(
            [ndimage.map_coordinates(plane, (ys + dy, xs + dx), order=1, mode="reflect") for plane in image]
        )

    return _each(bent, x, rngs)


def _pixelate(x: NDArray[np.uint8], factor: float, rngs: Rngs) -> Floats:
    h, w = x.shape[-2:]
    small = (max(1, int(w * factor)), max(1, int(h * factor)))

    def coarse(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize((w, h), Image.Resampling.BOX)

    return _through_pil(coarse, x)


def _jpeg_compression(x: NDArray[np.uint8], quality: int, rngs: Rngs) -> Floats:
    def compressed(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _through_pil(compressed, x)


_FUNCTIONS: dict[str, Callable[..., Floats]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}


def _each(function: Callable[[Floats, np.random.Generator], Floats], x: NDArray[np.uint8], rngs: Rngs) -> Floats:
    """Apply ``function`` to each (C, H, W) in [0, 1]; back to 0..255."""
    return np.stack([255 * np.clip(function(image / 255, rng), 0, 1) for image, rng in zip(x, rngs, strict=True)])


def _through_pil(function: Callable[[Image.Image], Image.Image], x: NDArray[np.uint8]) -> Floats:
    grey = x.shape[1] == 1
    pictures = [Image.fromarray(image[0] if grey else image.transpose(1, 2, 0)) for image in x]
    arrays = [np.asarray(function(picture), dtype=float) for picture in pictures]
    return np.stack([array[None] if grey else array.transpose(2, 0, 1) for array in arrays])


def _gaussian(x: Floats, sigma: float) -> Floats:
    return ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode="nearest", truncate=4)


def _filter(x: Floats, kernel: Floats) -> Floats:
    """Correlate each plane with ``kernel``; the border is mirrored about the edge pixel's centre."""
    images = torch.from_numpy(x).float().flatten(0, 1)[:, None]
    reach = kernel.shape[0] // 2
    near = min(reach, min(x.shape[-2:]) - 1)  # one reflection covers no more than the image
    if near < reach:
        kernel = kernel[reach - near : reach + near + 1, reach - near : reach + near + 1]
        kernel = kernel / kernel.sum()
    padded = torch.nn.functional.pad(images, (near,) * 4, mode="reflect")
    out = torch.nn.functional.conv2d(padded, torch.from_numpy(kernel).float()[None, None])
    return out.view(x.shape).double().numpy()


def _disk(radius: float, blur: float) -> Floats:
    """A disk of radius pixels, its edge softened by a Gaussian of ``blur`` pixels in a 3 x 3 (5 x 5) window."""
    half = 8 if radius <= 8 else int(radius)
    window = 1 if radius <= 8 else 2
    ys, xs = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (xs**2 + ys**2 <= radius**2).astype(float)
    line = np.exp(-(np.arange(-window, window + 1) ** 2) / (2 * blur**2))
    soft = ndimage.correlate(disk / disk.sum(), np.outer(line, line) / line.sum() ** 2, mode="mirror")
    return soft


def _smear(x: Floats, radius: int, sigma: float, angle: float) -> Floats:
    """Average (C, H, W) along a line of 2 radius + 1 pixels at ``angle`` degrees with half-Gaussian weights."""
    h, w = x.shape[-2:]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    down = -np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    right = -np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    rows, columns = np.arange(h), np.arange(w)
    out = np.zeros_like(x)
    for weight, dy, dx in zip(weights, down, right, strict=True):
        # Beyond the border the edge pixel goes on.
        out += weight * x[:, np.clip(rows - dy, 0, h - 1)][:, :, np.clip(columns - dx, 0, w - 1)]
    return out


def _zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge the centre of (N, C, H, W) so that it fills the image again."""
    h, w = images.shape[-2:]
    ch, cw = int(np.ceil(h / factor)), int(np.ceil(w / factor))
    top, left = (h - ch) // 2, (w - cw) // 2
    size = (max(h, round(ch * factor)), max(w, round(cw * factor)))
    crop = images[..., top : top + ch, left : left + cw]
    large = torch.nn.functional.interpolate(crop, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    return large[..., top : top + h, left : left + w]


def _luma(image: Floats) -> Floats:
    """ITU-R 601 grey of (C, H, W), kept as one channel."""
    return image if image.shape[0] == 1 else np.tensordot([0.299, 0.587, 0.114], image, axes=1)[None]


def _plasma(side: int, decay: float, rng: np.random.Generator) -> Floats:
    """Cloud heights in [0, 1] by the diamond-square recursion on a torus; ``side`` is a power of two."""
    heights = np.zeros((side, side))
    step, wobble = side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        square = corners + np.roll(corners, -1, 0)
        square = square + np.roll(square, -1, 1)
        heights[half::step, half::step] = square / 4 + wobble * rng.uniform(-wobble, wobble, corners.shape)
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        across = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = across / 4 + wobble * rng.uniform(-wobble, wobble, corners.shape)
        along = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        heights[half::step, ::step] = along / 4 + wobble * rng.uniform(-wobble, wobble, corners.shape)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


def _ice(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """A frosted pane (C, H, W) in [0, 1]: feathered ridges over a cloudy film, faintly blue."""
    channels, h, w = shape
    side = max(h, w)
    film = ndimage.gaussian_filter(rng.normal(size=(h, w)), side / 8, mode="wrap")
    ridges = np.zeros((h, w))
    for octave in range(4):
        # Noise stretched along a random direction; its zero crossings are the needles of the crystal.
        size = max(side / 2.0 ** (octave + 2), 1.0)
        angle, grain = rng.uniform(0, np.pi), ndimage.gaussian_filter(rng.normal(size=(h, w)), 0.5, mode="wrap")
        needles = sum(
            np.roll(grain, (round(t * np.sin(angle)), round(t * np.cos(angle))), (0, 1)) for t in np.arange(size)
        )
        needles = ndimage.gaussian_filter(np.asarray(needles), size / 8, mode="wrap")
        ridges += (1 - np.minimum(1, np.abs(needles) / (needles.std() + 1e-12))) ** 2 / (octave + 1)
    pane = film / (film.std() + 1e-12) + ridges / (ridges.std() + 1e-12)
    pane = rng.uniform(*_ICE_MEAN) + _ICE_SPREAD * (pane - pane.mean()) / (pane.std() + 1e-12)
    tint = np.array([1.0]) if channels == 1 else _ICE_TINT
    return np.clip(tint[:, None, None] * pane, 0, 1)


# Range of means, spread, and tint of red, green, blue over the five photographs of frost that the published code draws.
_ICE_MEAN, _ICE_SPREAD = (0.48, 0.81), 0.105
_ICE_TINT = np.array([0.89, 1.02, 1.09])


def _check(images: Tensor, name: str, severity: int, table: int | None) -> None:
    if name not in CORRUPTIONS:
        raise InputError(
            "name",
            "corrupt",
            allowed=f"one of {', '.join(CORRUPTIONS)}",
            got=name,
            hint=did_you_mean(name, CORRUPTIONS).strip(),
        )
    if severity not in range(1, 6):
        raise InputError("severity", "corrupt", allowed="1, 2, 3, 4 or 5", got=severity)
    if table is not None and table not in SEVERITIES:
        raise InputError("table", "corrupt", allowed="32, 64 or 224", got=table)
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or not images.shape[0]:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError("images", "corrupt", allowed="a non-empty float tensor (N, C, H, W)", got=got)
    if images.shape[1] not in {1, 3} or min(images.shape[-2:]) < 8:
        raise InputError("images", "corrupt", allowed="grey or RGB, at least 8 x 8", got=str(tuple(images.shape)))
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError("images", "corrupt", allowed="in [0, 1]", got=f"values from {low:.3g} to {high:.3g}")
