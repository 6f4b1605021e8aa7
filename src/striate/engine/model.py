"""A network together with what it takes to use it rightly: preprocessing, class names, origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from striate.errors import InputError, LayerError, did_you_mean

__all__ = ["Preprocessing", "VisionModel", "get_layer", "imagenet_classes", "layer_name"]


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
        """Return logits (N, classes) for images (N, C, H, W) in [0, 1]."""
        return self.network((images - self.mean.to(images.dtype)) / self.std.to(images.dtype))

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
