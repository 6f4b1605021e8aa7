"""What every probe is given: the network, the images, and what has been computed on them already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from striate.data.images import ImageSet
from striate.engine.model import VisionModel
from striate.engine.state import inspected
from striate.engine.stats import wilson
from striate.errors import ModelError
from striate.explain.result import Attribution

__all__ = ["BATCH", "Subject"]

BATCH = 8
"""Images a forward pass; small batches keep a CPU's caches warm."""


@dataclass
class Subject:
    """One network on one set of images.

    Attributes:
        model: in eval mode, on its device.
        images: pixels in [0, 1] with names and, if known, labels.
        quick: measure less.
        seed: of everything drawn at random.
        say: called with a line of progress.
        explained: attributions of the shown images by method, filled by the first probe that needs them.
    """

    model: VisionModel
    images: ImageSet
    quick: bool = False
    seed: int = 0
    say: Callable[[str], None] = lambda line: None
    explained: dict[str, Attribution] = field(default_factory=dict)

    @property
    def pixels(self) -> Tensor:
        """All images, (N, C, H, W) in [0, 1]."""
        return self.images.images

    @cached_property
    def logits(self) -> Tensor:
        """Clean logits of all images, (N, classes)."""
        logits = self.predict(self.pixels)
        if logits.dim() != 2:
            raise ModelError(f"The network returned {tuple(logits.shape)}; a classifier returns (N, classes).")
        if not torch.isfinite(logits).all():
            raise ModelError(
                "The network returned NaN or infinite scores: look for NaN weights or a wrong input range."
            )
        return logits

    @property
    def predictions(self) -> Tensor:
        """Predicted class of each image, (N,)."""
        return self.logits.argmax(dim=1)

    @property
    def confidence(self) -> Tensor:
        """Probability of the predicted class, (N,)."""
        return self.logits.softmax(dim=1).amax(dim=1)

    @property
    def labels(self) -> Tensor:
        """True labels where the images have them, else the clean predictions; (N,)."""
        return self.predictions if self.images.labels is None else self.images.labels

    @property
    def shown(self) -> list[int]:
        """Indices of the images that appear as pictures."""
        return list(range(min(len(self.pixels), 4 if self.quick else 6)))

    @property
    def untrained(self) -> bool:
        """Whether the network is known, or looks, to have learned nothing."""
        return self.model.weights == "random" or (self.normalised_entropy > 0.98 and not self._right_beyond_chance)

    @property
    def _right_beyond_chance(self) -> bool:
        """Whether it is right more often than the commonest class alone would be: unsure, but it has learned."""
        labels = self.images.labels
        if labels is None:
            return False
        chance = max(1 / self.logits.shape[1], float(labels.bincount().max()) / len(labels))
        return wilson(int((self.predictions == labels).sum()), len(labels)).low > chance

    @property
    def normalised_entropy(self) -> float:
        """Mean entropy of the predictions over its largest possible value, in [0, 1]."""
        log_probability = self.logits.log_softmax(dim=1)
        entropy = -(log_probability.exp() * log_probability).sum(dim=1).mean()
        return float(entropy / np.log(self.logits.shape[1]))

    def predict(self, pixels: Tensor) -> Tensor:
        """Return logits of (N, C, H, W) images in small batches, without gradients."""
        with torch.inference_mode(), inspected(self.model, warn=False):
            device = self.model.mean.device
            return torch.cat([self.model(batch.to(device)).float().cpu() for batch in pixels.split(BATCH)])
