"""The first convolution of a network, taken out of what is repeated along a path between two images.

A convolution is affine, so its response to a point between two images lies between its responses to them, and the
gradient of a sum through it is the sum of gradients. On a path it need not run at all, and going back it runs once, in
the end. With its three input channels that is dear: at stride 2 on 224 pixels it takes a sixth of ResNet-18's time on a
CPU, as much as five of its other convolutions.

Which convolution is the first is read from the order of the modules. Whether it is, whether what comes before it is
affine as well and nothing goes past it is measured before use is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from striate.explain.batching import ROUNDING, Copies
from striate.explain.forwards import responding, response_of

__all__ = ["Stem"]


@dataclass(frozen=True)
class Stem:
    """Straight paths to some of the images, between pixels or between responses of the first convolution.

    Attributes:
        copies: the images.
        images: (n,) which of them.
        start: (n, C, H, W) where the paths begin.
        layer: the convolution; None stands for the pixels.
    """

    copies: Copies
    images: Tensor
    start: Tensor
    layer: nn.Module | None = None

    def below(self, answers: Tensor) -> Stem:
        """Return these paths between responses of the first convolution, or these where that does not hold.

        Args:
            answers: (n, classes) the network's logits at the start.
        """
        layer = next((module for module in self.copies.model.modules() if isinstance(module, nn.Conv2d)), None)
        if layer is None:
            return self
        stem = replace(self, layer=layer)
        try:
            return stem if stem._holds(layer, answers) else self
        except RuntimeError:  # it is never called, or on another shape
            return self

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the images, or the responses to them, at both ends of the paths, (n, …) each."""
        return self._response(self.start), self._response(self._end)

    def gradients(self, points: Tensor, images: Tensor, weights: Tensor) -> Tensor:
        """Return ``weights`` (b,) times d score / d point, (b, …).

        Args:
            points: (b, …) one batch, between the ends.
            images: (b,) which of the images each belongs to.
            weights: (b,).
        """
        return self.copies.gradients(points, images, weights=weights, at=self.layer)

    def at_pixels(self, gradient: Tensor) -> Tensor:
        """Return the gradient at the pixels (n, C, H, W) from one between the ends, (n, …)."""
        if self.layer is None:
            return gradient
        with torch.enable_grad():
            middle = torch.lerp(self.start, self._end, 0.5).requires_grad_()
            return torch.autograd.grad(self._response(middle), middle, gradient)[0]

    @property
    def _end(self) -> Tensor:
        return self.copies.inputs[self.images]

    def _response(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self.copies.layout)
        if self.layer is None:
            return images
        with self.copies.norms:
            return response_of(self.copies.model, self.layer, images)

    @torch.no_grad()
    def _holds(self, layer: nn.Module, answers: Tensor) -> bool:
        """Whether responses lie on the straight line, and one put in gives the answer that the image gives."""
        start, end = self.ends()
        if start.dim() != 4 or len(start) != len(self.images):
            return False
        for place in (0.25, 0.5):  # a network may clip, round or scale what it is given
            between = self._response(torch.lerp(self.start, self._end, place))
            apart = (between - torch.lerp(start, end, place)).abs().amax(dim=(1, 2, 3))
            if not bool((apart <= ROUNDING * between.abs().amax(dim=(1, 2, 3))).all()):
                return False
        # Each end's response beside the other end's image shows what goes past the layer, and who asks image by image.
        rows, images = torch.cat([start, end]), torch.cat([self._end, self.start])
        own = torch.cat([answers, self.copies.logits[self.images].to(answers)])
        for row, image, answer in zip(*(t.split(self.copies.batch) for t in (rows, images, own)), strict=True):
            with self.copies.norms, responding(layer, row) as calls:
                apart = (self.copies.model(image.contiguous(memory_format=self.copies.layout)) - answer).abs()
            if len(calls) != 1 or not bool((apart.amax(dim=1) <= ROUNDING * answer.abs().amax(dim=1)).all()):
                return False
        return True
