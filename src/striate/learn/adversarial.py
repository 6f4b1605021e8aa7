"""Adversarial training and AdvProp, as losses for the one training loop.

- Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
  arXiv 1706.06083: min over weights of E max_{|d| <= eps} CE(f(x + d), y).
- Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial Examples Improve Image Recognition" (AdvProp), 2020, arXiv 1911.09665:
  CE(f_main(x), y) + CE(f_aux(x_adv), y), two sets of batch norms, all other weights shared.

Images are pixels in [0, 1] and the model normalises inside, so eps is in pixel units. Adversarial images are crafted in
eval mode, as the ``robustness`` toolbox does whose ImageNet checkpoints are the common ones: batch norms use their
running statistics, which the crafting leaves alone. ``crafting="train"`` uses the statistics of the batch instead, as
Madry's own code did; running statistics are left alone then too. The toolbox starts at the clean image
(``random_start=False``), Madry's code at a random point of the ball.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.state import StillStatistics
from striate.engine.train import Augment, Recipe, fit
from striate.errors import InputError
from striate.layers.dual_bn import DualBatchNorm, bn_branch, convert_dual_bn
from striate.stress.pgd import Norm, pgd_steps

__all__ = ["AdvPropLoss", "AdvPropTrainer", "AdversarialLoss", "AdversarialTrainer"]


@dataclass(frozen=True)
class AdversarialLoss:
    """``loss(model, images, labels, generator)`` for :func:`striate.engine.train.fit`: CE on PGD images.

    Attributes:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball around each image, in pixels of [0, 1].
        steps: PGD steps a batch; each costs one forward and one backward to the input.
        step_size: length of a step, in the same units as eps.
        random_start: start at a random point of the ball instead of at the image.
        crafting: the mode of the network while images are crafted, ``"eval"`` or ``"train"``.
    """

    norm: Norm = "l2"
    eps: float = 3.0
    steps: int = 7
    step_size: float = 0.5
    random_start: bool = False
    crafting: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        owner = type(self).__name__
        if self.norm not in {"l2", "linf"}:
            raise InputError("norm", owner, allowed="'l2' or 'linf'", got=self.norm)
        if not 0 <= self.eps < float("inf"):
            raise InputError("eps", owner, allowed=">= 0 and finite", got=self.eps)
        if self.norm == "linf" and self.eps > 1:
            hint = f"Images are in [0, 1]; for images of 0 to 255 that would be {self.eps / 255:.4g}."
            raise InputError("eps", owner, allowed="at most 1 for linf", got=self.eps, hint=hint)
        if self.steps < 1:
            raise InputError("steps", owner, allowed=">= 1", got=self.steps)
        if not 0 < self.step_size < float("inf"):
            raise InputError("step_size", owner, allowed="> 0 and finite", got=self.step_size)
        if self.crafting not in {"eval", "train"}:
            raise InputError("crafting", owner, allowed="'eval' or 'train'", got=self.crafting)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean cross entropy on the adversarial images of this batch."""
        return F.cross_entropy(model(self.craft(model, images, labels, generator)), labels)

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return adversarial images against ``model`` as it is now; its modes and statistics are left as they were."""
        if images.min() < 0 or images.max() > 1:
            low, high = images.min().item(), images.max().item()
            hint = "eps is in units of [0, 1]: give pixels and let the model normalise inside (striate.VisionModel)."
            raise InputError("images", type(self).__name__, allowed="in [0, 1]", got=f"{low:g} to {high:g}", hint=hint)
        with _crafting(model, self.crafting):
            return pgd_steps(
                model,
                images,
                labels,
                norm=self.norm,
                eps=self.eps,
                steps=self.steps,
                step_size=self.step_size,
                random_start=self.random_start,
                generator=generator,
            )


@dataclass(frozen=True)
class AdvPropLoss(AdversarialLoss):
    """AdvProp's loss: CE of the main branch on clean images plus CE of the auxiliary branch on adversarial ones.

    For a network converted by :func:`striate.layers.dual_bn.convert_dual_bn`; images are crafted against its auxiliary
    branch. Defaults are the paper's PGD-1: linf, eps 4/255, step 1/255.
    """

    norm: Norm = "linf"
    eps: float = 4 / 255
    steps: int = 1
    step_size: float = 1 / 255

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sum of the two mean cross entropies."""
        with bn_branch(model, "aux"):
            adversarial = F.cross_entropy(model(self.craft(model, images, labels, generator)), labels)
        with bn_branch(model, "main"):
            return F.cross_entropy(model(images), labels) + adversarial


class AdversarialTrainer:
    """Train a network to hold against PGD.

    Args:
        model: takes pixels in [0, 1]; trained in place.
        norm, eps, steps, step_size, options: see :class:`AdversarialLoss`. The defaults are the ImageNet recipe of the
            ``robustness`` toolbox (L2, eps 3, 7 steps of 0.5).

    Attributes:
        model: the network.
        loss: what is minimised; goes into :func:`striate.engine.train.trained` as well.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: Norm = "l2",
        eps: float = 3.0,
        steps: int = 7,
        step_size: float = 0.5,
        **options: Any,
    ) -> None:
        self.model = model
        self.loss = AdversarialLoss(norm, eps, steps, step_size, **options)

    def fit(
        self,
        images: Tensor,
        labels: Tensor,
        recipe: Recipe,
        *,
        augment: Augment | None = None,
        checkpoint: str | Path | None = None,
        progress: bool | None = False,
    ) -> list[dict[str, Any]]:
        """Train, and return one record an epoch; arguments are those of :func:`striate.engine.train.fit`."""
        return fit(
            self.model,
            images,
            labels,
            recipe,
            loss=self.loss,
            augment=augment,
            checkpoint=checkpoint,
            progress=progress,
        )


class AdvPropTrainer(AdversarialTrainer):
    """Train a network by AdvProp.

    Args:
        model: takes pixels in [0, 1]. A plain network is converted; the copy to be trained is ``trainer.model``, and
            :func:`striate.layers.dual_bn.drop_aux_bn` makes the plain network of it that is deployed.
        norm, eps, steps, step_size, options: see :class:`AdvPropLoss`; the paper also trains with 5 steps.

    Raises:
        LayerError: the network has no batch norm.
    """

    loss: AdvPropLoss

    def __init__(
        self,
        model: nn.Module,
        norm: Norm = "linf",
        eps: float = 4 / 255,
        steps: int = 1,
        step_size: float = 1 / 255,
        **options: Any,
    ) -> None:
        dual = any(isinstance(module, DualBatchNorm) for module in model.modules())
        self.model = model if dual else convert_dual_bn(model)
        self.loss = AdvPropLoss(norm, eps, steps, step_size, **options)


@contextmanager
def _crafting(model: nn.Module, mode: str) -> Iterator[None]:
    """Hold the network in the crafting mode, its running statistics untouched, and put every flag back after."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, training in modes:
            module.training = training and mode == "train"
        with StillStatistics(model) if mode == "train" else nullcontext():
            yield
    finally:
        for module, training in modes:
            module.training = training
