"""Calling a model on many altered copies of a few images: small batches, flat memory, the layout that is fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.model import VisionModel
from striate.engine.pages import keep_pages
from striate.errors import InputError, ModelError
from striate.explain.base import Target, resolve_target, score
from striate.explain.folding import FoldedNorms
from striate.explain.forwards import responding
from striate.explain.packing import PackedConvolutions, can_pack

__all__ = [
    "ROUNDING",
    "Baseline",
    "Copies",
    "as_baseline",
    "correlation",
    "laid_out",
    "pairs",
    "reliability_check",
    "wide",
]

Baseline = float | Tensor | None
"""What stands for "nothing there": a number; (C or 1, H, W); (N, C, H, W); or None, the zero of the normalised input:
the preprocessing's mean for a :class:`striate.VisionModel`, which takes pixels, and 0 for a bare module."""

T = TypeVar("T")

# Measured on two x86 cores with EfficientNet-Lite0 and ResNet-18 at 224 x 224, with and without a graph. From 6 images
# on the responses of Lite0 (5 MB an image) are beyond what keep_pages can have kept: a tenth to a fifth more time.
# ResNet-18 would be 5 % faster with 8.
_CPU_PIXELS = 4 * 224 * 224
_ACCELERATOR_PIXELS = {False: 64 * 224 * 224, True: 32 * 224 * 224}
_LARGEST = 256

# Copies of one image from which on it pays to fold batch norms: reading the weights and comparing the scores costs
# about two forward passes, and folding saves a fifteenth (ResNet-18) to a quarter (EfficientNet-Lite0) of each. A copy
# with its gradient takes more than two forward passes, and saves as large a share of them.
_MANY = {False: 32, True: 16}
ROUNDING = 1e-5
"""Difference of the folded network's scores from its own, as a share of the largest, that is rounding."""


@dataclass(frozen=True)
class Copies:
    """A model made ready to be called on altered copies of some images.

    Attributes:
        model: in eval mode, parameters frozen.
        inputs: (N, C, H, W) the images.
        target: resolved for the N images.
        logits: (N, classes) of the images themselves, at least float32.
        batch: copies in one call.
        layout: memory format in which copies are handed to the model.
        norms: inside it the model runs with batch norms folded and on packed weights, where that pays.
    """

    model: nn.Module
    inputs: Tensor
    target: Tensor | Callable[[Tensor], Tensor]
    logits: Tensor
    batch: int
    layout: torch.memory_format
    norms: AbstractContextManager[None]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Tensor,
        target: Target,
        owner: str,
        batch_size: int | None,
        *,
        backward: bool,
        each: int = 1,
    ) -> Self:
        """Run the images once, resolve the target, choose batch and layout.

        Args:
            model: any classifier.
            inputs: (N, C, H, W).
            target: see :data:`striate.explain.base.Target`.
            owner: named in errors.
            batch_size: copies in one call; None chooses by image size and device.
            backward: whether calls will keep a graph.
            each: how many copies of each image will be run: of many, batch norms are folded
                (:mod:`striate.explain.folding`).
        """
        if batch_size is not None and batch_size < 1:
            raise InputError("batch_size", owner, allowed=">= 1, or None to have it chosen", got=batch_size)
        budget = _CPU_PIXELS if inputs.device.type == "cpu" else _ACCELERATOR_PIXELS[backward]
        size = inputs.shape[-2] * inputs.shape[-1]
        batch = batch_size or min(_LARGEST, max(1, budget // size))
        # no_grad, not inference_mode: a model that keeps a tensor from its forward pass (an attention mask, a position
        # table) would be left with one that cannot be trained through.
        with torch.no_grad():
            logits, layout = laid_out(lambda layout: _in_batches(model, inputs, batch, layout), inputs)
        resolved = resolve_target(logits, target, owner)
        plain = cls(model, inputs, resolved, wide(logits), batch, layout, nullcontext())
        foldable = (
            inputs.device.type == "cpu" and inputs.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        )
        return plain.folded(backward=backward) if foldable and each >= _MANY[backward] else plain

    def folded(self, *, backward: bool) -> Self:
        """Return these with batch norms folded, or these where that does not give the network's own scores.

        Args:
            backward: see :meth:`of`.
        """
        folded = FoldedNorms(self.model, self.layout)
        packs = can_pack() and self.layout == torch.channels_last
        norms = PackedConvolutions(self.model, folded) if packs else folded
        if not norms:
            return self
        # With a graph where there will be one: what cannot be run with it is to be seen here.
        with torch.set_grad_enabled(backward), norms:
            images = self.inputs.detach().requires_grad_(backward)
            try:
                logits = _in_batches(lambda part: self.model(part).detach(), images, self.batch, self.layout)
            except RuntimeError:  # a transform of torch.func, say
                return self
        apart = (logits - self.logits).abs().amax(dim=1)
        same = bool((apart <= ROUNDING * self.logits.abs().amax(dim=1)).all())
        return replace(self, logits=logits, norms=norms) if same else self

    def target_of(self, images: Tensor) -> Tensor | Callable[[Tensor], Tensor]:
        """Return the target for copies of the images with indices ``images`` (b,)."""
        return self.target if callable(self.target) else self.target[images.to(self.target.device)]

    def score(self, logits: Tensor, images: Tensor, *, probability: bool = False) -> Tensor:
        """Return (b,) scores: the target's logit, or its softmax probability; a callable's value is taken as it is."""
        logits = wide(logits)
        if probability and not callable(self.target):
            logits = logits.softmax(dim=1)
        return score(logits, self.target_of(images))

    def own_scores(self, *, probability: bool = False) -> Tensor:
        """Return the (N,) scores of the unaltered images."""
        return self.score(self.logits, self.every, probability=probability)

    @property
    def every(self) -> Tensor:
        """Indices of all images, (N,)."""
        return torch.arange(self.inputs.shape[0], device=self.inputs.device)

    def answers(self, copies: Tensor) -> Tensor:
        """Return the (b, classes) logits of ``copies`` (b, C, H, W), in batches."""
        with self.norms:
            return _in_batches(self.model, copies, self.batch, self.layout)

    def scores(self, copies: Tensor, images: Tensor, *, probability: bool = False) -> Tensor:
        """Return (b,) scores of ``copies`` (b, C, H, W), without a graph, in batches."""
        with torch.no_grad():
            return self.score(self.answers(copies), images, probability=probability)

    def gradients(
        self, copies: Tensor, images: Tensor, *, weights: Tensor | None = None, at: nn.Module | None = None
    ) -> Tensor:
        """Return d score / d copy, (b, C, H, W), for one batch of copies, times ``weights`` (b,).

        Args:
            copies: (b, C, H, W), or with ``at`` what that layer is to respond to the images, (b, …).
            images: (b,) which image each is a copy of.
            weights: None is 1 for each.
            at: a layer at whose response the gradient is taken, in place of the pixels.
        """
        copies = copies.detach().contiguous(memory_format=self.layout).requires_grad_()
        # A clone: what is above a layer may change its response in place.
        replaced = nullcontext() if at is None else responding(at, copies.clone())
        with self.norms, replaced:  # around the backward pass too: a checkpointed block runs again in it
            values = self.score(self.model(copies if at is None else self.pick(self.inputs, images)), images)
            if not values.requires_grad:
                raise ModelError(
                    f"The score of {type(self.model).__name__} has no gradient with respect to its input: something in "
                    "forward() cuts the graph (no_grad, detach, rounding). Use a perturbation method, e.g. RISE."
                )
            return torch.autograd.grad(values, copies, torch.ones_like(values) if weights is None else weights)[0]

    def pick(self, values: Tensor, images: Tensor) -> Tensor:
        """Return ``values[images]`` of values (N, …) that each image has; without copying where there is one image."""
        return values.expand(len(images), *values.shape[1:]) if len(values) == 1 else values[images]


def as_baseline(baseline: Baseline, inputs: Tensor, owner: str, model: nn.Module) -> Tensor:
    """Return the baseline as a tensor that broadcasts to ``inputs``: (1 or N, C, H, W), same dtype and device."""
    if baseline is None:
        baseline = model.mean if isinstance(model, VisionModel) else 0.0
    given = torch.as_tensor(baseline).detach().to(inputs)
    try:
        spread = torch.broadcast_to(given, inputs.shape)
    except RuntimeError:
        allowed = f"a number or a tensor that broadcasts to {tuple(inputs.shape)}"
        raise InputError("baseline", owner, allowed=allowed, got=tuple(given.shape)) from None
    if not torch.isfinite(given).all():
        raise InputError("baseline", owner, allowed="finite", got="NaN or infinity")
    return spread if given.dim() == 4 and given.shape[0] > 1 else spread[:1]


def laid_out(run: Callable[[torch.memory_format], T], inputs: Tensor) -> tuple[T, torch.memory_format]:
    """Return ``run(layout)`` and the layout, the fastest one for ``inputs`` that the network takes.

    Args:
        run: calls the network on images in the layout it is given; may be called twice.
        inputs: what says which layouts are worth trying: on a CPU float32 convolutions are faster channels-last.
    """
    if inputs.device.type == "cpu" and inputs.dtype == torch.float32:
        keep_pages()
        try:
            return run(torch.channels_last), torch.channels_last
        except RuntimeError:
            # A network that flattens with .view() takes only the classical layout. If the cause is another one, the
            # same error comes again, now to the caller.
            pass
    return run(torch.contiguous_format), torch.contiguous_format


def pairs(samples: int, images: int, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (sample, image) index pairs, (b,) each, sample by sample over all images, ``batch`` at a time."""
    for start in range(0, samples * images, batch):
        flat = torch.arange(start, min(start + batch, samples * images), device=device)
        yield flat // images, flat % images


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32 at least."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's r of each pair of maps, (N,); NaN where one of them is constant.

    Args:
        first, second: (N, H, W).
    """
    a, b = first.flatten(1).double(), second.flatten(1).double()
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


def reliability_check(*halves: Tensor) -> Check:
    """Judge a sampled map by the agreement of the maps from two halves of its samples, (N, H, W) each."""
    agreement = correlation(*halves)
    if torch.isnan(agreement).any():
        return Check("split-half", False, "A half of the samples gives a constant map: nothing was found.", None, 0.7)
    worst = float(agreement.min())
    reliable = 2 * worst / (1 + worst) if worst > 0 else worst  # Spearman-Brown: both halves together
    passed = reliable >= 0.7
    advice = "" if passed else " More samples make it steadier."
    return Check(
        "split-half",
        passed,
        f"Two halves of the samples give maps that correlate at {worst:.2f} (worst image): reliability {reliable:.2f} "
        f"(wanted: 0.7).{advice}",
        reliable,
        0.7,
    )


def _in_batches(model: Callable[[Tensor], Tensor], images: Tensor, batch: int, layout: torch.memory_format) -> Tensor:
    chunks = images.split(batch)
    answers = [model(chunk.contiguous(memory_format=layout)) for chunk in chunks]
    # What is no (n, classes) tensor goes back as it is: resolve_target says what is wrong with it.
    if len(answers) == 1 or not all(isinstance(answer, Tensor) for answer in answers):
        return answers[0]
    return torch.cat(answers)
