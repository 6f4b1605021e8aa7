"""A network together with what it takes to use it rightly: preprocessing, class names, origin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from striate.engine.state import inspected, seeded
from striate.errors import InputError, LayerError, ModelError, did_you_mean

__all__ = ["Preprocessing", "SigmoidOutputs", "VisionModel", "are_probabilities", "count_classes", "get_layer",
           "imagenet_classes", "layer_name", "no_torchscript", "try_out"]  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input.

    Attributes:
        input_size: (C, H, W) of the network's input.
        mean, std: per channel, for pixels in [0, 1].
        crop: share of the resized shorter side that the centre crop keeps, in (0, 1].
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        source: who said so, in words; shown in every report.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 0.875
    interpolation: str = "bilinear"
    source: str = "given"

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        for name in ("mean", "std"):
            if len(getattr(self, name)) != channels:
                raise InputError(name, "Preprocessing", allowed=f"{channels} numbers", got=getattr(self, name))
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise InputError("mean, std", "Preprocessing", allowed="finite", got=(self.mean, self.std))
        if min(self.std) <= 0:
            raise InputError("std", "Preprocessing", allowed="> 0 in every channel", got=self.std)
        if not 0 < self.crop <= 1:
            raise InputError("crop", "Preprocessing", allowed="in (0, 1]", got=self.crop)
        if self.interpolation not in {"bilinear", "bicubic"}:
            raise InputError("interpolation", "Preprocessing", allowed="bilinear or bicubic", got=self.interpolation)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


class VisionModel(nn.Module):
    """A classifier that takes pixels in [0, 1] and normalises inside.

    Because the normalisation stands inside, an attack's eps is in pixel units and a gradient is with respect to
    pixels, by construction.

    Args:
        network: takes normalised (N, C, H, W), returns logits (N, classes).
        preprocessing: see :class:`Preprocessing`.
        class_names: one per output, or None.
        name: short name for reports.
        source: which library or file the network came from, in words.
        weights: where its weights come from, in words; ``"random"`` for an untrained network.

    Attributes:
        network: the person's own network; ``"network.layer4"`` and ``"layer4"`` both name its layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "model",
        source: str = "given as a module",
        weights: str = "as given",
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.class_names = None if class_names is None else tuple(class_names)
        self.name, self.source, self.weights = name, source, weights
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(shape), persistent=False)
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, C, H, W) in [0, 1], which meet a network of another precision."""
        normalised = (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)
        first = next(self.network.parameters(), None)
        if first is not None and first.dtype != images.dtype and first.is_floating_point():
            normalised = normalised.to(first.dtype)
        return self.network(normalised)

    def class_name(self, index: int) -> str:
        """Return the name of class ``index``, or ``"class 7"`` where no names are known."""
        if self.class_names is None or not 0 <= index < len(self.class_names):
            return f"class {index}"
        return self.class_names[index]

    def describe(self) -> dict[str, Any]:
        """Return name, origin, weights, preprocessing and parameter count, JSON-ready."""
        return {
            "name": self.name,
            "source": self.source,
            "weights": self.weights,
            "preprocessing": self.preprocessing.to_dict(),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
        }


def imagenet_classes() -> tuple[str, ...]:
    """Return the 1,000 ImageNet class names in their usual order."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(cast(Sequence[str], _IMAGENET_CATEGORIES))


def count_classes(model: VisionModel) -> int:
    """Return how many classes a network tells apart, asked with two single images.

    Raises:
        InputError: it carries another number of class names.
        ModelError: it cannot be run on its input size, returns no (N, classes) with two classes or more, or returns
            probabilities, of a softmax or of sigmoids, on which every figure that takes a softmax would be wrong.
    """
    with SigmoidOutputs() as sigmoids:
        answers = try_out(model)
    for answer in answers:
        if not isinstance(answer, Tensor) or answer.dim() != 2 or answer.shape[0] != 1:
            got = tuple(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
            raise ModelError(
                f"For one image the network returned {got}; a classifier returns (1, classes). Wrap it so that "
                "forward() returns the logits alone, with their batch dimension."
            )
    scores = torch.cat(answers)
    if scores.shape[1] < 2:
        raise ModelError(
            f"The network returns {scores.shape[1]} score an image, and at least two classes are needed. Where it is "
            "the logit z of the second of two classes, return torch.cat([torch.zeros_like(z), z], dim=1)."
        )
    if are_probabilities(scores):
        raise ModelError(
            "The network returns probabilities (its scores add up to 1), so that confidence, calibration, attacks and "
            "maps, which take the softmax themselves, would be wrong. Hand it over without its last softmax, or return "
            "the logarithm."
        )
    if sigmoids.hold(answers[-1]):
        raise ModelError(
            "The network returns a sigmoid's probability for each class by itself, so that confidence, calibration, "
            "attacks and maps, which take a softmax over the classes, would be wrong. Hand it over without its last "
            "sigmoid."
        )
    n = int(scores.shape[1])
    if model.class_names is not None and len(model.class_names) != n:
        allowed = f"one for each of the network's {n} classes"
        raise InputError("class_names", "VisionModel", allowed=allowed, got=f"{len(model.class_names)} names")
    return n


def try_out(model: VisionModel) -> list[Any]:
    """Return what a network answers to two single images of noise, a bright and a dark one.

    Raises:
        ModelError: it cannot be run on its input size.
    """
    shape = model.preprocessing.input_size
    pixels = torch.rand((2, 1, *shape), generator=torch.Generator().manual_seed(0))
    pixels[1] /= 4
    try:
        with torch.no_grad(), inspected(model, warn=False), seeded(0):
            return [model(image.to(model.mean.device)) for image in pixels]
    except Exception as error:  # whatever a person's network raises
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "no reason given"
        size = " x ".join(str(number) for number in shape)
        raise ModelError(
            f"The network cannot be run on one image of {size}: {type(error).__name__}: {reason}. Is that its input "
            "size (input_size=…, --input-size CxHxW)?"
        ) from error


def are_probabilities(scores: Tensor) -> bool:
    """Whether (N, classes) scores went through a softmax already: none negative, each row adds up to 1."""
    near = 1e-2 if scores.dtype in {torch.float16, torch.bfloat16} else 1e-4
    return bool((scores >= 0).all() and ((scores.float().sum(dim=1) - 1).abs() <= near).all())


class SigmoidOutputs(TorchDispatchMode):
    """Remembers what sigmoids return inside a ``with`` block, to tell probabilities class by class from logits.

    The values alone could not: logits may lie in [0, 1] as well, after a ReLU or with small weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in {torch.ops.aten.sigmoid.default, torch.ops.aten.sigmoid_.default}:
            self._seen.append(out)
        return out

    def hold(self, scores: Tensor) -> bool:
        """Whether ``scores`` are one of them, number by number, in any shape."""
        flat = scores.flatten().float()
        return any(seen.numel() == flat.numel() and torch.equal(seen.flatten().float(), flat) for seen in self._seen)


def no_torchscript(model: nn.Module, owner: str) -> None:
    """Raise :class:`~striate.errors.LayerError` where a part of the network is TorchScript, which takes no hooks."""
    scripted = next(
        (name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)), None
    )
    if scripted is not None:
        raise LayerError(
            f"{owner} looks inside a network, and '{scripted or type(model).__name__}' is TorchScript, which shows "
            "nothing of its inside. Give the network that it was made from."
        )


def get_layer(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    """Return a layer by its path, in which :class:`VisionModel`'s ``network.`` and torch.compile's may be left out.

    Raises:
        LayerError: no such layer; the nearest paths are named.
    """
    if isinstance(layer, nn.Module):
        layer_name(model, layer)
        return layer
    modules = dict(model.named_modules())
    bare = {_bare(model, path): module for path, module in modules.items()}
    for names in (modules, bare):
        if layer and layer in names:
            return names[layer]
    known = [path for path in bare if path]
    raise LayerError(f"The model has no layer '{layer}'.{did_you_mean(layer, known)} List them: model.named_modules().")


def layer_name(model: nn.Module, layer: nn.Module) -> str:
    """Return the path of ``layer`` in ``model``, without a :class:`VisionModel`'s leading ``network.``."""
    for path, module in model.named_modules():
        if module is layer:
            return _bare(model, path)
    raise LayerError(f"That {type(layer).__name__} is not a layer of the model; take it from model.named_modules().")


def _bare(model: nn.Module, path: str) -> str:
    """Return a path as a person writes it, without the wrappers around the network."""
    path = path.replace("_orig_mod.", "")  # torch.compile's
    return path.removeprefix("network.") if isinstance(model, VisionModel) else path
