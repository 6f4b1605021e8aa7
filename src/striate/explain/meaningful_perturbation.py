"""Meaningful Perturbation: the smallest smooth blur that takes the class away.

Paper: Fong and Vedaldi 2017 (arXiv 1704.03296). A mask m on a coarse grid is learned by gradient descent: where it is 0
the image is blurred, and the map is 1 - m.

What differs: no random jitter of the image during the optimisation, so that the result is the same in every batch. Both
regularisers are means over the mask, with the weights of the widely used PyTorch version of the method (0.01 and 0.2);
the paper's are for sums. The cheapest edge of a mask then climbs from 0 to 1 over 1.3 (3 l2 / l1)^(1/3) = 5 cells (the
paper's weights: 9). With 0.2 on the *sum* of the differences it would need 47 cells, more than the mask has.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.state import full_precision
from striate.errors import InputError
from striate.explain.base import Explainer, RawMap, Target
from striate.explain.batching import Copies

__all__ = ["MeaningfulPerturbation", "blurred"]

_RADII = 16  # circles tried for the start, from none to the whole image


class MeaningfulPerturbation(Explainer):
    """``1 - m`` for the mask m that minimises ``f_c(m x + (1 - m) blur(x)) + l1 |1 - m| + l2 |grad m|^power``.

    f_c is the softmax probability; images are optimised together, each with its own mask. The check is the share of the
    probability drop under the blur of everything that the learned mask reaches in the worst image;
    ``notes["area"]`` is the share of each image that it blurs for that.

    Args:
        model: see :class:`Explainer`.
        mask_size: side of the mask; no larger than the image.
        iterations: steps of Adam.
        lr: its step size.
        l1: weight of the mean blurred area.
        l2: weight of the roughness: mean over neighbours of |difference|^power, down plus across.
        power: see ``l2``.
        start: ``"ones"`` blurs nothing at first; ``"circle"`` blurs the smallest central circle that takes away 99 % of
            what blurring everything does.
        sigma: of the Gaussian blur in pixels; None is 10 at 224 pixels, in proportion at other sizes.
        batch_size: images optimised at a time; None chooses by image size and device.
    """

    name = "meaningful-perturbation"
    family = "perturbation"

    def __init__(
        self,
        model: nn.Module,
        *,
        mask_size: int = 28,
        iterations: int = 300,
        lr: float = 0.1,
        l1: float = 0.01,
        l2: float = 0.2,
        power: float = 3.0,
        start: Literal["ones", "circle"] = "ones",
        sigma: float | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed=seed)
        for name, value in (("mask_size", mask_size), ("iterations", iterations), ("power", power)):
            if value < 1:
                raise InputError(name, "MeaningfulPerturbation", allowed=">= 1", got=value)
        for name, value in (("l1", l1), ("l2", l2), ("sigma", sigma or 0.0)):
            if not value >= 0:
                raise InputError(name, "MeaningfulPerturbation", allowed=">= 0", got=value)
        if not lr > 0:
            raise InputError("lr", "MeaningfulPerturbation", allowed="> 0", got=lr)
        if start not in {"ones", "circle"}:
            raise InputError("start", "MeaningfulPerturbation", allowed="'ones' or 'circle'", got=start)
        self.mask_size, self.iterations, self.lr = mask_size, iterations, lr
        self.l1, self.l2, self.power = l1, l2, power
        self.start, self.sigma = start, sigma
        self.batch_size = batch_size

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        copies = Copies.of(self.model, inputs, target, "MeaningfulPerturbation", self.batch_size, backward=True)
        h, w = inputs.shape[-2:]
        blur = blurred(inputs, 10 / 224 * min(h, w) if self.sigma is None else self.sigma)
        whole = copies.scores(blur, copies.every, probability=True)
        grid = (min(self.mask_size, h), min(self.mask_size, w))
        masks = self._start(copies, blur, whole, grid)
        masks = torch.cat([self._optimised(copies, blur, masks, part) for part in copies.every.split(copies.batch)])
        own = copies.own_scores(probability=True)
        reached = copies.scores(_mixed(inputs, blur, masks), copies.every, probability=True)
        drop = {"before": own, "masked": reached, "blurred": whole}
        maps = 1 - masks[:, 0]
        notes = {**{key: value.tolist() for key, value in drop.items()}, "area": maps.mean(dim=(1, 2)).tolist()}
        return RawMap(maps, copies.target, _drop_check(own, reached, whole, maps), notes=notes)

    def _start(self, copies: Copies, blur: Tensor, whole: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the first masks, (N, 1, h, w)."""
        inputs = copies.inputs
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        masks = torch.ones(inputs.shape[0], 1, *grid, dtype=dtype, device=inputs.device)
        if self.start == "ones":
            return masks
        own = copies.own_scores(probability=True)
        down, across = (torch.arange(side, device=inputs.device) - (side - 1) / 2 for side in grid)
        distance = (down[:, None] ** 2 + across[None, :] ** 2).sqrt()
        waiting = copies.every  # images whose circle is not yet large enough
        for radius in torch.linspace(0, float(distance.max()), _RADII).tolist():
            masks[waiting] = (distance > radius).to(dtype)
            altered = _mixed(inputs[waiting], blur[waiting], masks[waiting])
            fall = own[waiting] - copies.scores(altered, waiting, probability=True)
            waiting = waiting[fall < 0.99 * (own - whole)[waiting]]
            if len(waiting) == 0:
                break
        return masks

    def _optimised(self, copies: Copies, blur: Tensor, masks: Tensor, images: Tensor) -> Tensor:
        """Return the learned masks of the images ``images`` (b,), (b, 1, h, w)."""
        inputs, blur = copies.inputs[images], blur[images]
        mask = masks[images].clone().requires_grad_()
        adam = torch.optim.Adam([mask], lr=self.lr)
        for _ in range(self.iterations):
            mixed = _mixed(inputs, blur, mask).contiguous(memory_format=copies.layout)
            scores = copies.score(copies.model(mixed), images, probability=True)
            # A sum over images: each mask's gradient is its own, and Adam works value by value.
            loss = (scores + self._regulariser(mask)).sum()
            (mask.grad,) = torch.autograd.grad(loss, mask)
            adam.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
        return mask.detach()

    def _regulariser(self, mask: Tensor) -> Tensor:
        """Return l1 mean|1 - m| + l2 (mean|down differences|^power + mean|across differences|^power), (b,)."""
        total = self.l1 * (1 - mask).abs().mean(dim=(1, 2, 3))
        for axis in (2, 3):
            if mask.shape[axis] > 1:
                total = total + self.l2 * mask.diff(dim=axis).abs().pow(self.power).mean(dim=(1, 2, 3))
        return total


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return images (N, C, H, W) blurred by a Gaussian of ``sigma`` pixels, cut at three sigma, borders reflected."""
    from torchvision.transforms.functional import gaussian_blur

    if sigma == 0:
        return images
    radii = [min(-(-int(3 * sigma * 1000) // 1000), side - 1) for side in (images.shape[-1], images.shape[-2])]
    wide = images.float() if images.dtype in {torch.float16, torch.bfloat16} else images
    return gaussian_blur(wide, [2 * radius + 1 for radius in radii], [sigma, sigma]).to(images.dtype)


def _mixed(images: Tensor, blur: Tensor, masks: Tensor) -> Tensor:
    """Return m x + (1 - m) blur(x) with the masks enlarged bilinearly."""
    down, across = (_enlarger(*sides, masks) for sides in zip(masks.shape[-2:], images.shape[-2:], strict=True))
    with full_precision(masks.device):
        # As two products: the gradient of PyTorch's own resizing is not repeatable on a GPU.
        large = down @ masks @ across.mT
    return torch.lerp(blur, images, large.to(images.dtype).expand_as(images))


def _enlarger(cells: int, pixels: int, like: Tensor) -> Tensor:
    """Return the matrix (pixels, cells) of linear enlargement along one side."""
    single = torch.eye(cells, dtype=like.dtype, device=like.device)
    return F.interpolate(single[None], size=pixels, mode="linear", align_corners=False)[0].T


def _drop_check(own: Tensor, reached: Tensor, whole: Tensor, maps: Tensor) -> Check:
    name, bound = "probability drop", 0.5
    possible = own - whole
    if (possible <= 0).any():
        which = torch.nonzero(possible <= 0)[:, 0].tolist()
        statement = f"Blurring everything does not lower the probability of image {which}: no blur can take it away."
        return Check(name, False, statement, None, bound)
    value = float(((own - reached) / possible).min())
    statement = (
        f"The learned mask takes away {value:.0%} of the probability that blurring everything does (worst image; "
        f"wanted: {bound:.0%}), by blurring {float(maps.mean()):.0%} of the image (mean)."
    )
    return Check(name, value >= bound, statement, value, bound)
