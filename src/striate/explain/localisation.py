"""Does a map point at the object? The pointing game, energy inside the object, and weakly supervised localisation.

- Pointing game: Zhang, Lin, Brandt, Shen, Sclaroff, "Top-down Neural Attention by Excitation Backprop", 2016,
  arXiv 1608.00507.
- Energy in the box: Wang et al., "Score-CAM", 2020, arXiv 1910.01279.
- WSL, a box from a thresholded map: Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning Deep Features for
  Discriminative Localization", 2016, arXiv 1512.04150; as a benchmark of methods on robust networks: Nourelahi,
  Kotthoff, Chen, Nguyen, "How explainable are adversarially-robust CNNs?", 2022, arXiv 2205.13042.

Two conventions that the papers leave open. A map whose maximum is not unique (every superpixel map) points at one of
its maxima drawn by a seed, not at the first in reading order, which would favour objects at the top left. A constant
map carries no position: its WSL box is the whole image, its energy is spread evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from striate.errors import InputError

__all__ = ["ALPHAS", "Localisation", "energy_in_box", "energy_in_mask", "pointing_game", "tune_alpha", "wsl"]

ALPHAS: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds that :func:`tune_alpha` tries: 0.05, 0.10, …, 0.95."""

_EIGHT_NEIGHBOURS_IN_ONE_IMAGE = np.zeros((3, 3, 3), dtype=bool)
_EIGHT_NEIGHBOURS_IN_ONE_IMAGE[1] = True


@dataclass(frozen=True)
class Localisation:
    """What a threshold makes of a batch of maps.

    Attributes:
        hit: (N,) bool, whether the predicted box overlaps the object's enough.
        iou: (N,) intersection over union in [0, 1], float64.
        boxes: (N, 4) long, the predicted boxes, xyxy half-open.
        alpha: the threshold, as a share of each map's maximum.
    """

    hit: Tensor
    iou: Tensor
    boxes: Tensor
    alpha: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "hit": self.hit.tolist(),
            "iou": self.iou.tolist(),
            "boxes": self.boxes.tolist(),
            "alpha": self.alpha,
        }

    def __repr__(self) -> str:
        share, overlap = self.hit.double().mean().item(), self.iou.mean().item()
        return f"<Localisation of {len(self.hit)}: {share:.1%} hit, mean IoU {overlap:.3f}, alpha {self.alpha:g}>"


def pointing_game(maps: Tensor, boxes: Tensor, tolerance: float = 0, *, seed: int = 0) -> Tensor:
    """Tell for each map whether its maximum lies in the object's box.

    Args:
        maps: (N, H, W), finite, any sign.
        boxes: (N, 4) long, x0 y0 x1 y1 in pixels; x1 and y1 are outside (half-open).
        tolerance: a maximum this many pixels away from the box still hits; the original game on photographs took 15.
        seed: of the draw among equal maxima; the same draw for every image, so a result does not depend on the batch.

    Returns:
        (N,) bool.

    Raises:
        InputError: a box outside its image or empty, maps not finite, sizes that do not match, tolerance < 0.

    >>> peak = torch.zeros(1, 4, 4)
    >>> peak[0, 1, 2] = 1
    >>> pointing_game(peak, torch.tensor([[2, 0, 4, 2]])).tolist()
    [True]
    """
    boxes = _checked(maps, boxes, "pointing_game")
    if tolerance < 0:
        raise InputError("tolerance", "pointing_game", allowed=">= 0 pixels", got=tolerance)
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(maps.device)
    shuffled = flat[:, shuffle]
    # The first maximum in shuffled order; argmax alone does not promise which of several it returns.
    first = (shuffled == shuffled.amax(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1)
    peak = shuffle[first]
    y, x = peak // maps.shape[2], peak % maps.shape[2]
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    # Distance to the nearest pixel of the box, along each axis.
    dx = torch.maximum((x0 - x).clamp_min(0), (x - (x1 - 1)).clamp_min(0)).double()
    dy = torch.maximum((y0 - y).clamp_min(0), (y - (y1 - 1)).clamp_min(0)).double()
    return torch.hypot(dx, dy) <= tolerance


def energy_in_box(maps: Tensor, boxes: Tensor) -> Tensor:
    """Return the share of each map's mass that lies in the object's box.

    Args:
        maps: (N, H, W), finite, >= 0. A map of zeros counts as evenly spread: the share is the box's area.
        boxes: (N, 4) long, xyxy half-open.

    Returns:
        (N,) float64 in [0, 1].

    Raises:
        InputError: as :func:`pointing_game`; negative values.
    """
    boxes = _checked(maps, boxes, "energy_in_box", positive=True)
    x = torch.arange(maps.shape[2], device=maps.device)
    y = torch.arange(maps.shape[1], device=maps.device)
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)
    inside = ((x >= x0) & (x < x1))[:, None, :] & ((y >= y0) & (y < y1))[:, :, None]  # (N, H, W)
    return _share(maps, inside)


def energy_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of each map's mass that lies in the object's mask.

    Args:
        maps: (N, H, W), finite, >= 0. A map of zeros counts as evenly spread: the share is the mask's area.
        masks: (N, H, W) bool, none empty.

    Returns:
        (N,) float64 in [0, 1].

    Raises:
        InputError: maps not finite or negative, masks of another size or type, an empty mask.
    """
    _check_maps(maps, "energy_in_mask", positive=True)
    if masks.shape != maps.shape or masks.dtype != torch.bool:
        got = f"{masks.dtype} {tuple(masks.shape)}"
        raise InputError("masks", "energy_in_mask", allowed=f"bool {tuple(maps.shape)}, as the maps", got=got)
    empty = ~masks.flatten(1).any(dim=1)
    if empty.any():
        raise InputError("masks", "energy_in_mask", allowed="not empty", got=f"an empty mask at {_first(empty)}")
    return _share(maps, masks.to(maps.device))


def wsl(maps: Tensor, boxes: Tensor, alpha: float, *, threshold: float = 0.5) -> Localisation:
    """Localise by a map: keep what exceeds alpha times its maximum, box the largest connected part, compare.

    Pixels that touch at a corner are connected; of equally large parts the first in reading order is taken.

    Args:
        maps: (N, H, W), finite, >= 0. A constant map gives the whole image.
        boxes: (N, 4) long, xyxy half-open.
        alpha: in [0, 1); tune it with :func:`tune_alpha` on images that are not among these.
        threshold: a hit is an IoU of at least this, in (0, 1].

    Raises:
        InputError: as :func:`pointing_game`; negative values, alpha or threshold outside its range.
    """
    boxes = _checked(maps, boxes, "wsl", positive=True)
    if not 0 <= alpha < 1:
        raise InputError("alpha", "wsl", allowed="in [0, 1)", got=alpha)
    if not 0 < threshold <= 1:
        raise InputError("threshold", "wsl", allowed="in (0, 1]", got=threshold)
    predicted = _boxes_above(maps, alpha).to(boxes.device)
    iou = _iou(predicted, boxes)
    return Localisation(iou >= threshold, iou, predicted, alpha)


def tune_alpha(maps: Tensor, boxes: Tensor, *, threshold: float = 0.5) -> float:
    """Return the alpha among :data:`ALPHAS` with the most WSL hits; among equals the one with the highest mean IoU.

    To be called on held-out images, once for each network and method: a gradient map is spiky and wants a low
    threshold, a CAM a high one, and one alpha for all would decide the comparison.

    Args:
        maps: (N, H, W), finite, >= 0; of the held-out images.
        boxes: (N, 4) long, xyxy half-open.
        threshold: see :func:`wsl`.
    """
    results = [wsl(maps, boxes, alpha, threshold=threshold) for alpha in ALPHAS]
    best = max(results, key=lambda result: (int(result.hit.sum()), result.iou.mean().item()))
    return best.alpha


def _share(maps: Tensor, inside: Tensor) -> Tensor:
    mass = maps.double()
    total = mass.sum(dim=(1, 2))
    area = inside.double().mean(dim=(1, 2))
    share = (mass * inside).sum(dim=(1, 2)) / torch.where(total > 0, total, 1)
    return torch.where(total > 0, share, area)


def _boxes_above(maps: Tensor, alpha: float) -> Tensor:
    """Return (N, 4) long, the tight box of the largest part of each map above alpha times its maximum."""
    # In float64, so that alpha * max rounds alike for every dtype of the maps.
    values = maps.detach().cpu().double().numpy()
    peak = values.max(axis=(1, 2), keepdims=True)
    constant = peak == values.min(axis=(1, 2), keepdims=True)
    keep = (values > alpha * peak) | constant
    # One call labels the whole batch: parts never connect across images.
    labels, count = ndimage.label(keep, structure=_EIGHT_NEIGHBOURS_IN_ONE_IMAGE)
    size = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    places = ndimage.find_objects(labels)
    owner = np.array([place[0].start for place in places])
    boxes = np.zeros((len(maps), 4), dtype=np.int64)
    # Sorted so that each image's largest part, the first of equals, is written last.
    for part in np.lexsort((-np.arange(count), size)):
        _, rows, columns = places[part]
        boxes[owner[part]] = columns.start, rows.start, columns.stop, rows.stop
    return torch.from_numpy(boxes)


def _iou(first: Tensor, second: Tensor) -> Tensor:
    corner = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    overlap = corner.clamp_min(0).prod(dim=1).double()
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1).double() for boxes in (first, second)]
    return overlap / (area[0] + area[1] - overlap)


def _check_maps(maps: Tensor, owner: str, *, positive: bool = False) -> None:
    if not isinstance(maps, Tensor) or maps.dim() != 3 or not maps.is_floating_point() or maps.numel() == 0:
        got = f"{maps.dtype} {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError("maps", owner, allowed="a float tensor (N, H, W)", got=got)
    finite = torch.isfinite(maps).flatten(1).all(dim=1)
    if not finite.all():
        raise InputError("maps", owner, allowed="finite", got=f"NaN or infinity in map {_first(~finite)}")
    if positive and (maps < 0).any():
        worst = maps.min().item()
        raise InputError("maps", owner, allowed=">= 0", got=worst, hint="Take Attribution.normalized, not .map.")


def _checked(maps: Tensor, boxes: Tensor, owner: str, *, positive: bool = False) -> Tensor:
    _check_maps(maps, owner, positive=positive)
    n, height, width = maps.shape
    if not isinstance(boxes, Tensor) or boxes.shape != (n, 4) or boxes.is_floating_point() or boxes.dtype == torch.bool:
        got = f"{boxes.dtype} {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else type(boxes).__name__
        raise InputError("boxes", owner, allowed=f"whole numbers ({n}, 4), one box a map", got=got)
    boxes = boxes.to(maps.device).long()
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    empty = (x1 <= x0) | (y1 <= y0)
    if empty.any():
        at = _first(empty)
        raise InputError("boxes", owner, allowed="x0 < x1 and y0 < y1", got=f"box {at}: {boxes[at].tolist()}")
    outside = (x0 < 0) | (y0 < 0) | (x1 > width) | (y1 > height)
    if outside.any():
        at = _first(outside)
        raise InputError(
            "boxes", owner, allowed=f"inside the {width} x {height} image", got=f"box {at}: {boxes[at].tolist()}"
        )
    return boxes


def _first(flags: Tensor) -> int:
    return int(flags.nonzero()[0])
