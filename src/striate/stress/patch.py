"""Adversarial patch: a printable square that makes a network see one chosen class, wherever it lies.

Brown, Mané, Roy, Abadi, Gilmer, "Adversarial Patch", 2017, arXiv 1712.09665, in the location-only form of Sen,
Dasgupta, 2023, arXiv 2307.02055; the original's random scale and rotation, round shape, ensemble and smoothness are
options, off by default. What differs, and why:

* offsets are drawn over their full range (the public tutorial that the study follows leaves out the last two);
* every evaluation starts from the clean image (there, the four placements pile up in one batch and help each other);
* an image of the target class counts neither for nor against the patch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.files import write_bytes
from striate.engine.state import device_of
from striate.errors import InputError, ModelError
from striate.stress.batches import Batches, batches
from striate.stress.curve import top_hits
from striate.stress.objective import attacked, check_images
from striate.stress.patch_score import PatchScore
from striate.stress.placement import draw_corners, paste, warp

__all__ = ["AdversarialPatch"]

Model = nn.Module | Callable[[Tensor], Tensor]


class AdversarialPatch:
    """A square (or round) patch of trained pixels for one target class.

    Args:
        size: side k of the patch in pixels, at scale 1.
        target: the class that it should make a network see.
        image_size: H and W of the images, or one number for both.
        mean, std: per channel, if the images that it is laid on are normalised already; leave them out for images in
            [0, 1], e.g. for a :class:`striate.VisionModel`.
        init: ``"zeros"`` (grey, as published), ``"uniform"`` (i.i.d. pixels), or pixels (C, k, k) in [0, 1].
        rotation: each placement is turned by up to this many degrees either way.
        scale: each placement is scaled by a factor from this range.
        shape: ``"square"`` or ``"circle"`` (the disc inside the square).
        channels: 3, or 1 for grey images; taken from ``mean`` or ``init`` where those are given.
        per_image: one pattern for every image of the one batch it is fitted on, instead of one for all images.
        generator: of ``init="uniform"``; None draws from a generator seeded with 0.

    Attributes:
        pattern: the parameter p, (C, k, k), or (N, C, k, k) per image. A pixel is (tanh(p) + 1) / 2.

    >>> patch = AdversarialPatch(2, target=1, image_size=4, channels=1)
    >>> patch.apply(torch.zeros(1, 1, 4, 4), top_left=torch.tensor([[0, 1]]))[0, 0, :2]
    tensor([[0.0000, 0.5000, 0.5000, 0.0000],
            [0.0000, 0.5000, 0.5000, 0.0000]])
    """

    def __init__(
        self,
        size: int,
        target: int,
        *,
        image_size: int | tuple[int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        init: Literal["zeros", "uniform"] | Tensor = "zeros",
        rotation: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shape: Literal["square", "circle"] = "square",
        channels: int | None = None,
        per_image: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.size, self.target = int(size), int(target)
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        self.mean = None if mean is None else tuple(float(value) for value in mean)
        self.std = None if std is None else tuple(float(value) for value in std)
        self.rotation, self.scale = float(rotation), (float(scale[0]), float(scale[1]))
        self.shape, self.per_image = shape, per_image
        self.channels = channels or (len(self.mean) if self.mean else init.shape[-3] if isinstance(init, Tensor) else 3)
        self._validate()
        self.pattern = self._initial(init, generator)

    # ------------------------------------------------------------------------------------------- pixels

    def pixels(self) -> Tensor:
        """Return the patch in [0, 1], (C, k, k), or (N, C, k, k) per image."""
        return (self.pattern.detach().tanh() + 1) / 2

    def apply(
        self,
        x: Tensor,
        top_left: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
    ) -> Tensor:
        """Lay the patch on every image, each at its own place; ``x`` itself is left alone.

        Args:
            x: (N, C, H, W), pixels or normalised as the patch was told.
            top_left: (N, 2) long, rows and columns of the upper left corner (turned or scaled: of its bounding box);
                None draws uniformly over all places where the patch fits.
            generator: of place, angle and scale; None draws from a generator seeded with 0.
            index: (N,) which pattern belongs to which image, for a per-image patch; None is 0 … N-1.

        Returns:
            Like ``x``; outside the patch its very bits.

        Raises:
            InputError: images of another size, or outside [0, 1] without ``mean`` and ``std``.
        """
        self._check_batch(x)
        generator = _default(generator)
        values = self._values(x, index)
        disc = self.shape == "circle"
        if self.rotation == 0 and self.scale == (1.0, 1.0):
            side = torch.full((len(x),), self.size)
            return paste(x, values, draw_corners(self.image_size, side, generator, top_left), disc=disc)
        angle = math.radians(self.rotation) * (2 * torch.rand(len(x), generator=generator, device=generator.device) - 1)
        low, high = self.scale
        factor = low + (high - low) * torch.rand(len(x), generator=generator, device=generator.device)
        extent = factor * self.size * (1 if disc else angle.cos().abs() + angle.sin().abs())
        # A rounding error must not turn a box of exactly k pixels into one of k + 1.
        corner = draw_corners(self.image_size, (extent - 1e-4).ceil().long(), generator, top_left)
        centre = corner + extent.cpu()[:, None] / 2
        return warp(x, values, centre, angle, factor * self.size / 2, disc=disc)

    # ------------------------------------------------------------------------------------------ training

    @torch.inference_mode(False)
    def fit(
        self,
        models: Model | Sequence[Model],
        loader: Batches,
        steps: int | None = None,
        *,
        epochs: int | None = None,
        lr: float = 0.1,
        momentum: float = 0.8,
        total_variation: float = 0.0,
        batch_size: int = 32,
        generator: torch.Generator | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> list[float]:
        """Train the pixels to make every model see the target; only ``pattern`` changes.

        Args:
            models: one or several (the mean of their losses); evaluated in eval mode, they leave as they came.
            loader: see :data:`striate.stress.batches.Batches`; labels are not used. A tensor is shuffled
                into batches of ``batch_size``, an incomplete last one dropped. Per image: one tensor, taken whole.
            steps: gradient steps, over as many passes as they need.
            epochs: passes instead of steps; 5, as published, if neither is given.
            lr, momentum: of SGD, without schedule or weight decay.
            total_variation: weight of the mean absolute difference of neighbouring pixels.
            generator: of batches and placements; None draws from a generator seeded with 0.
            progress: called with step and loss.

        Returns:
            The loss at each step.
        """
        group: list[Model] = list(models) if isinstance(models, list | tuple) else [models]  # type: ignore[list-item]
        if not group:
            raise InputError("models", "AdversarialPatch.fit", allowed="at least one model", got=models)
        if steps is not None and epochs is not None:
            raise InputError("steps, epochs", "AdversarialPatch.fit", allowed="one of the two", got=(steps, epochs))
        if steps is None:
            passes, limit = (5.0 if epochs is None else epochs), math.inf
        else:
            passes, limit = math.inf, steps
        generator = _default(generator)
        if self.per_image:
            self._one_pattern_each(loader)
        device = next((device_of(model) for model in group if isinstance(model, nn.Module)), self.pattern.device)
        pattern = self.pattern.detach().to(device, copy=True).requires_grad_()
        optimizer = torch.optim.SGD([pattern], lr=lr, momentum=momentum)
        history: list[float] = []
        with ExitStack() as stack:
            ready = [stack.enter_context(attacked(model)) for model in group]
            stack.callback(self._keep, pattern)  # also what was reached before an interruption
            self.pattern = pattern
            while len(history) < limit and passes > 0:
                passes -= 1
                before = len(history)
                for images in self._training_batches(loader, batch_size, generator):
                    if len(history) >= limit:
                        break
                    placed = self.apply(images.to(device), generator=generator)
                    loss = torch.stack([self._loss(forward(placed)) for forward in ready]).mean()
                    if total_variation:
                        loss = loss + total_variation * _total_variation((pattern.tanh() + 1) / 2)
                    (grad,) = torch.autograd.grad(loss, pattern, allow_unused=True) if loss.requires_grad else (None,)
                    if grad is None:
                        raise ModelError(
                            "AdversarialPatch: the scores do not depend on the patch differentiably; is there a "
                            "detach()?"
                        )
                    pattern.grad = grad
                    optimizer.step()
                    history.append(float(loss.detach()))
                    if not math.isfinite(history[-1]):
                        raise ModelError("The loss of the patch is not finite; look for NaN weights, or lower lr.")
                    if progress is not None:
                        progress(len(history), history[-1])
                if len(history) == before:
                    raise InputError("loader", "AdversarialPatch.fit", allowed="at least one batch", got="none")
        return history

    def evaluate(
        self,
        model: Model,
        loader: Batches,
        placements: int = 4,
        *,
        batch_size: int = 64,
        generator: torch.Generator | None = None,
    ) -> PatchScore:
        """Measure how often ``model`` sees the target, over images that are not of the target class.

        Args:
            model: the model fooled, the one trained on or another (transfer).
            loader: see :data:`striate.stress.batches.Batches`. Without labels, an image is of the class
                that it is predicted as.
            placements: random placements per image, each laid on the clean image.
            batch_size: of images given as a tensor.
            generator: of the placements; None draws from a generator seeded with 0, so that patches compared on the
                same images meet the same places.

        Raises:
            InputError: every image is of the target class, so that there is nothing to fool.
        """
        if placements < 1:
            raise InputError("placements", "AdversarialPatch.evaluate", allowed=">= 1", got=placements)
        generator = _default(generator)
        hits1 = hits5 = counted = excluded = seen = 0
        with attacked(model) as forward, torch.no_grad():
            for batch, given in batches(loader, batch_size):
                images = batch.to(device_of(model)) if isinstance(model, nn.Module) else batch
                labels = forward(images).argmax(dim=1) if given is None else given.to(images.device)
                others = (labels != self.target).nonzero()[:, 0]
                index = seen + others
                seen += len(images)
                excluded += len(images) - len(others)
                if len(others) == 0:
                    continue
                counted += len(others)
                for _ in range(placements):
                    logits = forward(self.apply(images[others], generator=generator, index=index))
                    self._check_logits(logits)
                    first, five = top_hits(logits, torch.full_like(others, self.target)).sum(dim=1).tolist()
                    hits1, hits5 = hits1 + first, hits5 + five
        if counted == 0:
            raise InputError(
                "loader",
                "AdversarialPatch.evaluate",
                allowed=f"images that are not all of the target class {self.target}",
                got=f"{excluded} images, nothing to fool",
            )
        trials = counted * placements
        return PatchScore(hits1 / trials, hits5 / trials, counted, placements, excluded)

    # ------------------------------------------------------------------------------------------ controls

    def random_control(self, generator: torch.Generator | None = None) -> AdversarialPatch:
        """Return an untrained patch of i.i.d. uniform pixels with the same geometry."""
        return self._like("uniform", generator)

    def image_control(self, image: Tensor) -> AdversarialPatch:
        """Return a patch that shows a real image (C, H, W) in [0, 1], e.g. of the target class, shrunk to k x k."""
        if image.dim() != 3 or image.shape[0] != self.channels or image.min() < 0 or image.max() > 1:
            allowed = f"({self.channels}, H, W) in [0, 1]"
            raise InputError("image", "AdversarialPatch.image_control", allowed=allowed, got=tuple(image.shape))
        small = F.interpolate(image[None].float(), size=(self.size, self.size), mode="bilinear", antialias=True)
        return self._like(small[0].clamp(0, 1), None)

    # ----------------------------------------------------------------------------------------- keeping it

    def state_dict(self) -> dict[str, Any]:
        """Return pattern and settings: tensors, numbers and strings only, safe for ``weights_only`` loading."""
        settings = {
            name: getattr(self, name)
            for name in ("size", "target", "image_size", "mean", "std", "rotation", "scale", "shape", "channels")
        }
        return {"pattern": self.pattern.detach().clone(), **settings, "per_image": self.per_image}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> AdversarialPatch:
        """Return the patch that :meth:`state_dict` described."""
        settings = {key: value for key, value in state.items() if key != "pattern"}
        patch = cls(settings.pop("size"), settings.pop("target"), **settings)
        patch.load_state_dict(state)
        return patch

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the pattern of another patch of the same size and channels."""
        pattern = state["pattern"]
        if pattern.shape[-3:] != self.pattern.shape[-3:] or (pattern.dim() == 4) > self.per_image:
            allowed = f"a pattern {tuple(self.pattern.shape)}"
            raise InputError("state", "AdversarialPatch.load_state_dict", allowed=allowed, got=tuple(pattern.shape))
        self.pattern = pattern.detach().clone()

    def printable(self, path: str | Path, *, dpi: int = 300, centimetres: float = 10.0, index: int = 0) -> Path:
        """Write the patch as a PNG that prints at ``centimetres`` a side; a round one is transparent outside its disc.

        Args:
            path: of the PNG.
            dpi: dots per inch of the printer, stored in the file.
            centimetres: physical side.
            index: which image's pattern, for a per-image patch.
        """
        from PIL import Image

        side = round(centimetres / 2.54 * dpi)
        if side < self.size:
            allowed = f"so large that {self.size} pixels fit"
            raise InputError("dpi, centimetres", "printable", allowed=allowed, got=(dpi, centimetres))
        pixels = self.pixels()[index] if self.per_image else self.pixels()
        array = (pixels.float().cpu() * 255).round().byte().permute(1, 2, 0).numpy()
        picture = Image.fromarray(array[..., 0] if self.channels == 1 else array).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        if self.shape == "circle":
            centre = torch.arange(side) + 0.5 - side / 2
            disc = (centre[:, None] ** 2 + centre[None] ** 2 <= (side / 2) ** 2).byte() * 255
            picture.putalpha(Image.fromarray(disc.numpy()))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", dpi=(dpi, dpi))
        return write_bytes(path, buffer.getvalue())

    # ------------------------------------------------------------------------------------------ internals

    def _validate(self) -> None:
        owner = "AdversarialPatch"
        if self.size < 1:
            raise InputError("size", owner, allowed=">= 1", got=self.size)
        if self.target < 0:
            raise InputError("target", owner, allowed=">= 0", got=self.target)
        if (self.mean is None) != (self.std is None):
            raise InputError("mean, std", owner, allowed="given together or not at all", got=(self.mean, self.std))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise InputError(name, owner, allowed=f"{self.channels} numbers", got=values)
        if self.std is not None and min(self.std) <= 0:
            raise InputError("std", owner, allowed="> 0 in every channel", got=self.std)
        if self.shape not in {"square", "circle"}:
            raise InputError("shape", owner, allowed="'square' or 'circle'", got=self.shape)
        if not 0 <= self.rotation <= 180:
            raise InputError("rotation", owner, allowed="from 0 to 180 degrees", got=self.rotation)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError("scale", owner, allowed="(low, high) with 0 < low <= high", got=self.scale)
        turned = 1.0
        if self.shape == "square":
            worst = math.radians(min(self.rotation, 45.0))
            turned = math.cos(worst) + math.sin(worst)
        if self.size * self.scale[1] * turned > min(self.image_size) + 1e-6:
            got = f"{self.size} at scale {self.scale[1]:g}, turned by up to {self.rotation:g} degrees"
            raise InputError("size", owner, allowed=f"such that it fits an image of {self.image_size}", got=got)

    def _initial(self, init: str | Tensor, generator: torch.Generator | None) -> Tensor:
        shape = (self.channels, self.size, self.size)
        if isinstance(init, Tensor):
            if init.shape != shape or init.min() < 0 or init.max() > 1:
                raise InputError("init", "AdversarialPatch", allowed=f"pixels {shape} in [0, 1]", got=tuple(init.shape))
            pixels = init.detach().float()
        elif init == "uniform":
            generator = _default(generator)
            pixels = torch.rand(shape, generator=generator, device=generator.device)
        elif init == "zeros":
            return torch.zeros(shape)
        else:
            raise InputError("init", "AdversarialPatch", allowed="'zeros', 'uniform' or pixels", got=init)
        return torch.atanh((pixels * 2 - 1).clamp(-1 + 1e-6, 1 - 1e-6))

    def _values(self, x: Tensor, index: Tensor | None) -> Tensor:
        """Pixels as the images hold them, (1 or N, C, k, k): (tanh(p) + 1 − 2m) / 2s where they are normalised."""
        pattern = self.pattern.to(x.device)
        if pattern.dim() == 4:
            index = torch.arange(len(x)) if index is None else index
            if len(index) != len(x) or int(index.max()) >= len(pattern):
                allowed = f"one of its {len(pattern)} images for each pattern"
                raise InputError("x", "AdversarialPatch.apply", allowed=allowed, got=f"{len(x)} images")
            pattern = pattern[index.to(pattern.device)]
        else:
            pattern = pattern[None]
        values = (pattern.tanh() + 1) / 2
        if self.mean is not None and self.std is not None:
            mean, std = (values.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
            values = (values - mean) / std
        return values.to(x.dtype)

    def _loss(self, logits: Tensor) -> Tensor:
        self._check_logits(logits)
        logits = logits.float() if logits.dtype in {torch.float16, torch.bfloat16} else logits
        return F.cross_entropy(logits, torch.full((len(logits),), self.target, device=logits.device))

    def _check_logits(self, logits: Tensor) -> None:
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise ModelError("AdversarialPatch needs classifiers that return (N, classes).")
        if self.target >= logits.shape[1]:
            allowed = f"a class from 0 to {logits.shape[1] - 1}"
            raise InputError("target", "AdversarialPatch", allowed=allowed, got=self.target)

    def _check_batch(self, x: Tensor) -> None:
        wanted = (self.channels, *self.image_size)
        if self.mean is None:
            check_images(x, "AdversarialPatch.apply", (0.0, 1.0))
        if x.dim() != 4 or tuple(x.shape[1:]) != wanted or not x.is_floating_point():
            got = f"{x.dtype} {tuple(x.shape)}"
            raise InputError(
                "x", "AdversarialPatch.apply", allowed=f"float (N, {', '.join(map(str, wanted))})", got=got
            )

    def _keep(self, pattern: Tensor) -> None:
        self.pattern = pattern.detach()

    def _one_pattern_each(self, loader: Batches) -> None:
        images = loader[0] if isinstance(loader, tuple) else loader
        if not isinstance(images, Tensor):
            raise InputError(
                "loader", "AdversarialPatch.fit", allowed="one tensor, per image", got=type(loader).__name__
            )
        if self.pattern.dim() == 3:
            self.pattern = self.pattern.expand(len(images), -1, -1, -1).clone()

    def _training_batches(self, loader: Batches, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        images = loader[0] if isinstance(loader, tuple) and len(loader) == 2 else loader
        if not isinstance(images, Tensor):
            for batch, _ in batches(loader, batch_size):
                yield batch
        elif self.per_image:
            yield images
        else:
            order = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
            size = min(batch_size, len(images))
            for start in range(0, len(images) - size + 1, size):
                yield images[order[start : start + size]]

    def _like(self, init: Any, generator: torch.Generator | None) -> AdversarialPatch:
        settings = {key: value for key, value in self.state_dict().items() if key not in {"pattern", "per_image"}}
        size, target = settings.pop("size"), settings.pop("target")
        return AdversarialPatch(size, target, init=init, generator=generator, **settings)

    def __repr__(self) -> str:
        kind = "per image" if self.per_image else "universal"
        size = f"{self.size} x {self.size} {self.shape}"
        return f"<AdversarialPatch {size} on {self.image_size}, target {self.target}, {kind}>"


def _total_variation(pixels: Tensor) -> Tensor:
    return (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean() + (pixels[..., 1:] - pixels[..., :-1]).abs().mean()


def _default(generator: torch.Generator | None) -> torch.Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator
