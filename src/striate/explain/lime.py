"""LIME on images: a weighted linear model of the probability over which superpixels are there.

Paper: Ribeiro, Singh, Guestrin 2016 (arXiv 1602.04938). Superpixels are SLIC; an absent one shows its mean colour; a
sample's weight is exp(-d^2 / 0.25^2) with d the cosine distance between its on/off vector and the intact image's. (The
authors' package takes the square root of that kernel.) As there, the intact image is the first sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.errors import InputError
from striate.explain.base import Explainer, RawMap, Target
from striate.explain.batching import Copies

__all__ = ["LIME", "superpixels"]


class LIME(Explainer):
    """Ridge coefficient of each superpixel, painted onto it; signed.

    The check is the weighted R^2 with which the linear model predicts samples *left out* of its fit (in closed form):
    where it is low the network is not linear in these superpixels, and the map explains little.

    Args:
        model: see :class:`Explainer`.
        n_segments: superpixels asked for; None is 150 for images of 112 pixels and more on the shorter side, else 50.
        n_samples: on/off samples an image, the intact image included.
        kernel_width: of the weight.
        alpha: ridge penalty on the coefficients, not on the intercept.
        segments: own superpixels, (H, W) or (N, H, W) whole numbers, instead of SLIC.
        batch_size: altered copies in one call of the model; None chooses by image size and device.
        seed: fixes the samples; an image's samples do not depend on the rest of its batch.
    """

    name = "lime"
    family = "perturbation"

    def __init__(
        self,
        model: nn.Module,
        *,
        n_segments: int | None = None,
        n_samples: int = 1000,
        kernel_width: float = 0.25,
        alpha: float = 1.0,
        segments: Tensor | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        for name, value, least in (("n_segments", n_segments or 2, 2), ("n_samples", n_samples, 2)):
            if value < least:
                raise InputError(name, "LIME", allowed=f">= {least}", got=value)
        if not kernel_width > 0:
            raise InputError("kernel_width", "LIME", allowed="> 0", got=kernel_width)
        if not alpha >= 0:
            raise InputError("alpha", "LIME", allowed=">= 0", got=alpha)
        self.n_segments, self.n_samples = n_segments, n_samples
        self.kernel_width, self.alpha = kernel_width, alpha
        self.segments = segments
        self.batch_size = batch_size

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        segments = self._segments(inputs)
        each = self.n_samples
        copies = Copies.of(self.model, inputs, target, "LIME", self.batch_size, backward=False, each=each)
        maps, fits = [], []
        for index, own in enumerate(segments):
            present = _draw(int(own.max()) + 1, self.n_samples, self.seed)
            answers = self._answers(copies, index, own, present)
            fit = fit_ridge(present, answers, self._weights(present), self.alpha)
            maps.append(torch.as_tensor(fit.coefficients, device=inputs.device)[own])
            fits.append(fit)
        worst = min(fit.left_out for fit in fits)
        notes: dict[str, Any] = {
            "segments": [len(fit.coefficients) for fit in fits],
            "r2_fitted": [fit.fitted for fit in fits],
            "r2_left_out": [fit.left_out for fit in fits],
        }
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        return RawMap(torch.stack(maps).to(dtype), copies.target, _fit_check(worst), notes=notes)

    def _segments(self, inputs: Tensor) -> Tensor:
        n, _, h, w = inputs.shape
        if self.segments is None:
            return superpixels(inputs, self.n_segments or (150 if min(h, w) >= 112 else 50))
        given = self.segments
        if given.is_floating_point() or given.shape[-2:] != (h, w) or given.dim() not in {2, 3}:
            got = f"{given.dtype} {tuple(given.shape)}"
            raise InputError("segments", "LIME", allowed=f"whole numbers, ({h}, {w}) or ({n}, {h}, {w})", got=got)
        if given.dim() == 3 and given.shape[0] not in {1, n}:
            raise InputError("segments", "LIME", allowed=f"one map or {n}", got=given.shape[0])
        each = given.expand(n, h, w)
        # Any labels will do; inside they count from 0 without gaps.
        return torch.stack([own.unique(return_inverse=True)[1] for own in each]).to(inputs.device)

    def _answers(self, copies: Copies, index: int, segments: Tensor, present: Tensor) -> Tensor:
        image = copies.inputs[index]
        off = _mean_colours(image, segments)
        answers = []
        for rows in present.split(copies.batch):
            shown = rows.to(image.device)[:, segments][:, None]  # (b, 1, H, W)
            which = torch.full((len(rows),), index, device=image.device)
            answers.append(copies.scores(torch.where(shown, image, off), which, probability=True))
        return torch.cat(answers)

    def _weights(self, present: Tensor) -> Tensor:
        # 1 - cos(z, 1) = 1 - sum(z) / (|z| sqrt(S)) = 1 - sqrt(sum(z) / S)
        distance = 1 - present.double().mean(dim=1).sqrt()
        return torch.exp(-(distance**2) / self.kernel_width**2)


@dataclass(frozen=True)
class RidgeFit:
    """A weighted ridge regression.

    Attributes:
        coefficients: (S,) float64.
        intercept: unpenalised.
        fitted: weighted R^2 on the samples that it was fitted to.
        left_out: weighted R^2 of predictions for each sample by the fit to all others.
    """

    coefficients: Tensor
    intercept: float
    fitted: float
    left_out: float


def fit_ridge(features: Tensor, answers: Tensor, weights: Tensor, alpha: float) -> RidgeFit:
    """Minimise sum_i w_i (y_i - b - z_i.c)^2 + alpha |c|^2 in closed form.

    Args:
        features: (n, S).
        answers: (n,).
        weights: (n,) non-negative.
        alpha: penalty.
    """
    z, y, w = features.double().cpu(), answers.double().cpu(), weights.double().cpu()
    z_mean, y_mean = (w[:, None] * z).sum(dim=0) / w.sum(), (w * y).sum() / w.sum()
    zc, yc = z - z_mean, y - y_mean
    root = w.sqrt()
    a = root[:, None] * zc
    # pinv, so that alpha = 0 with superpixels that are always there together still has the least solution
    inverse = torch.linalg.pinv(a.T @ a + alpha * torch.eye(z.shape[1], dtype=z.dtype), hermitian=True)
    coefficients = inverse @ (a.T @ (root * yc))
    residual = yc - zc @ coefficients
    # Leaving sample i out changes its residual by 1 / (1 - h_i); the intercept's share of h_i is w_i / sum(w).
    leverage = ((a @ inverse) * a).sum(dim=1) + w / w.sum()
    left_out = residual / (1 - leverage).clamp_min(1e-9)
    total = float((w * yc**2).sum())
    if total <= 1e-24 * float((w * y**2).sum()):
        return RidgeFit(coefficients, float(y_mean), float("nan"), float("nan"))
    shares = [1 - float((w * error**2).sum()) / total for error in (residual, left_out)]
    return RidgeFit(coefficients, float(y_mean - z_mean @ coefficients), *shares)


def superpixels(inputs: Tensor, n_segments: int) -> Tensor:
    """Return SLIC superpixels of each image, (N, H, W) long, counted from 0.

    Args:
        inputs: (N, C, H, W); each image is scaled to [0, 1] if it is not in it.
        n_segments: asked for; SLIC gives about as many where the image has the pixels for it.
    """
    from skimage.segmentation import slic

    labels = []
    for image in inputs.detach().double().cpu():
        low, high = float(image.min()), float(image.max())
        inside = low >= 0 and high <= 1
        scaled = image if inside else (image - low) / max(high - low, 1e-12)
        colour = image.shape[0] == 3
        pixels = scaled.permute(1, 2, 0).numpy()
        # SLIC weighs place by compactness against colour: 10 for Lab (0 to 100), 0.1 for plain values (0 to 1). On
        # noise the crumbs of colour are then merged, down to one segment; a higher weight of place keeps them apart.
        for factor in (1.0, 10.0, 100.0, 1000.0):
            found = slic(
                pixels,
                n_segments=n_segments,
                compactness=factor * (10.0 if colour else 0.1),
                convert2lab=colour,
                start_label=0,
                channel_axis=-1,
            )
            if len(np.unique(found)) >= n_segments / 2:
                break
        labels.append(torch.from_numpy(np.unique(found, return_inverse=True)[1].reshape(found.shape)))
    return torch.stack(labels).long().to(inputs.device)


def _draw(n_segments: int, n_samples: int, seed: int) -> Tensor:
    """Return on/off samples (n_samples, n_segments), the first all on."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(n_samples, n_segments, generator=generator) < 0.5
    present[0] = True
    return present


def _mean_colours(image: Tensor, segments: Tensor) -> Tensor:
    """Return the image with each superpixel in its mean colour, (C, H, W)."""
    flat, count = segments.flatten(), int(segments.max()) + 1
    pixels = image.flatten(1).double()  # (C, H*W)
    sums = torch.zeros(image.shape[0], count, dtype=pixels.dtype, device=image.device).index_add_(1, flat, pixels)
    means = sums / torch.bincount(flat, minlength=count)
    return means[:, flat].view_as(image).to(image.dtype)


def _fit_check(worst: float) -> Check:
    name, bound = "weighted R2", 0.5
    if not np.isfinite(worst):
        statement = "The network answers all samples alike: there is nothing to explain by superpixels."
        return Check(name, False, statement, None, bound)
    statement = (
        f"The linear model predicts left-out samples with a weighted R2 of {worst:.2f} in the worst image "
        f"(wanted: {bound:g})."
    )
    return Check(name, worst >= bound, statement, worst, bound)
