"""Which layer a class activation map is drawn on, and where its spatial grid is.

CNNs answer with (N, K, h, w); Swin-like networks with (N, h, w, K); ViTs with tokens (N, L, K), some of which (class
and register tokens) have no place in the image. A CAM needs the grid (N, K, h, w) and a gradient that reaches it. In a
ViT that classifies by its class token no gradient reaches the patch tokens of the last block's output, so that the map
there is zero: the usual silent mistake. Here the gradient is measured, not assumed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from striate.engine.model import get_layer, layer_name, no_torchscript
from striate.engine.state import device_of, inspected
from striate.errors import LayerError, StriateError

__all__ = ["Grid", "Kind", "TargetLayer", "find_target_layer", "grid_of"]

Kind = Literal["nchw", "nhwc", "tokens"]

_PREFIXES = (0, 1, 2, 5)
"""Tokens before the patches: none, class, class + distillation, class + four registers."""

_NOT_A_LAYER = (nn.Dropout, nn.Dropout2d, nn.Identity)


@dataclass(frozen=True)
class Grid:
    """How a layer's output becomes a grid of responses, and back.

    Attributes:
        kind: ``"nchw"``, ``"nhwc"`` or ``"tokens"``.
        size: (h, w).
        prefix: tokens without a place in the image, at the front; 0 unless ``"tokens"``.
    """

    kind: Kind
    size: tuple[int, int]
    prefix: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        """Return the grid (N, K, h, w) of a layer's output."""
        if self.kind == "nchw":
            return output
        if self.kind == "nhwc":
            return output.permute(0, 3, 1, 2)
        # (N, prefix + h w, K) -> (N, K, h, w)
        return output[:, self.prefix :].transpose(1, 2).unflatten(2, self.size)

    def back(self, grid: Tensor, output: Tensor) -> Tensor:
        """Return a layer output that holds ``grid`` (M, K, h, w).

        Args:
            grid: what the places of the image answer.
            output: (M or 1, …) a layer's output, which gives the prefix tokens; used for ``"tokens"`` only.
        """
        if self.kind == "nchw":
            return grid
        if self.kind == "nhwc":
            return grid.permute(0, 2, 3, 1)
        tokens = grid.flatten(2).transpose(1, 2)
        if self.prefix == 0:
            return tokens
        return torch.cat([output[:, : self.prefix].expand(len(grid), -1, -1), tokens], dim=1)


@dataclass(frozen=True)
class TargetLayer:
    """The layer that a map is drawn on.

    Attributes:
        name: its path in the model, without a :class:`striate.VisionModel`'s leading ``network.``.
        module: the layer.
        kind: layout of its output, ``"nchw"``, ``"nhwc"`` or ``"tokens"``.
        to_grid: maps its output to (N, K, h, w), and back with ``to_grid.back``.
    """

    name: str
    module: nn.Module
    kind: Kind
    to_grid: Grid


def find_target_layer(model: nn.Module, inputs: Tensor, layer: str | nn.Module | None = None) -> TargetLayer:
    """Return the layer to explain: the given one, or the last one that has a grid and that a gradient reaches.

    Without ``layer`` the last response with a grid of more than one place is taken, of the outermost module that
    gives it; pooling, dropout and mere reshaping do not count. In token networks only layers as wide as the last tokens
    are looked at, so that the answer for a class-token ViT is the last block's first norm.

    Args:
        model: any classifier.
        inputs: (N, C, H, W); only the first image is used, moved to where the model is.
        layer: path or module; None searches.

    Raises:
        LayerError: no such layer (near names are given); it was not called; its output has no grid, as that of a
            fully connected layer; no gradient reaches its grid. The layer that would have been found is named.
    """
    no_torchscript(model, "A CAM")
    module = None if layer is None else get_layer(model, layer)
    with torch.inference_mode(False), torch.enable_grad(), inspected(model, warn=False):
        # Detached at the door, so that a graph is built through the whole network from a leaf of our own.
        image = inputs[:1].detach().to(device_of(model, inputs.device), copy=True).requires_grad_()
        answers, logits = _answers(model, image)
        if not isinstance(logits, Tensor):
            raise LayerError(
                f"The model returns a {type(logits).__name__}; a CAM needs the scores. Wrap it so that forward() "
                "returns the logits alone."
            )
        if not logits.requires_grad:
            raise LayerError(
                "No gradient reaches the model's output from its input: what it returns does not depend on the image "
                "differentiably (an argmax, a detach, or torch.no_grad inside forward?)."
            )
        # Distinct weights: the plain sum of a softmax is constant and has no gradient.
        weights = torch.cos(torch.arange(logits.numel(), device=logits.device, dtype=logits.dtype))
        score = (logits.flatten() * weights).sum()
        if module is None:
            return _search(model, answers, score, image)
        return _given(model, module, answers, score, image)


def grid_of(output: Any, size: tuple[int, int], model: nn.Module | None = None) -> Grid | None:
    """Return the grid of a layer's output, or None if it has none.

    Args:
        output: what the layer returned.
        size: (H, W) of the input: of two readings of a shape, the one with the image's proportions is right.
        model: asked for ``num_prefix_tokens`` (timm's word for it) where the output is tokens.
    """
    if not isinstance(output, Tensor):
        return None
    shape = tuple(output.shape)
    if len(shape) == 4:
        if _fits(shape[2], shape[3], size):
            return Grid("nchw", (shape[2], shape[3])) if shape[2] * shape[3] > 1 else None
        if _fits(shape[1], shape[2], size):
            return Grid("nhwc", (shape[1], shape[2])) if shape[1] * shape[2] > 1 else None
        return Grid("nchw", (shape[2], shape[3])) if shape[2] * shape[3] > 1 else None
    if len(shape) == 3:
        return _token_grid(shape[1], size, _declared_prefix(model))
    return None


def _token_grid(length: int, size: tuple[int, int], declared: int | None) -> Grid | None:
    found = []
    for prefix in _PREFIXES if declared is None else (declared,):
        patches = length - prefix
        if patches < 2:
            continue
        stride = math.sqrt(size[0] * size[1] / patches)
        h, w = max(1, round(size[0] / stride)), max(1, round(size[1] / stride))
        if h * w == patches:
            whole = size[0] % h == 0 and size[1] % w == 0
            found.append((not whole, prefix, Grid("tokens", (h, w), prefix)))
    return min(found, key=lambda item: item[:2])[2] if found else None


def _declared_prefix(model: nn.Module | None) -> int | None:
    for module in model.modules() if model is not None else ():
        declared = getattr(module, "num_prefix_tokens", None)
        if isinstance(declared, int):
            return declared
    return None


def _fits(h: int, w: int, size: tuple[int, int]) -> bool:
    """Whether h x w has the image's proportions, up to the rounding of strides and borders."""
    return abs(w - size[1] * h / size[0]) <= 1 + 0.02 * w and h <= 4 * size[0]


@dataclass
class _Answer:
    module: nn.Module
    output: Any
    reshaped: bool


def _answers(model: nn.Module, image: Tensor) -> tuple[list[_Answer], Any]:
    """Run the model once and list what every module returned, in the order of returning."""
    answers: list[_Answer] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        answers.append(_Answer(module, output, _only_reshaped(arguments, output)))

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        logits = model(image)
    finally:
        for handle in handles:
            handle.remove()
    return answers, logits


def _only_reshaped(arguments: tuple[Any, ...], output: Any) -> bool:
    """Whether a module handed its input on, or a view of another shape of it."""
    if not isinstance(output, Tensor):
        return False
    for argument in arguments:
        if argument is output:
            # An in-place ReLU also returns its input; that did compute something.
            return output.grad_fn is None or output._version == 0
        if isinstance(argument, Tensor) and argument.shape != output.shape:
            same = argument.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
            if same and argument.numel() == output.numel():
                return True
    return False


def _candidates(model: nn.Module, answers: list[_Answer], image: Tensor) -> Iterator[tuple[_Answer, Grid]]:
    size = (image.shape[-2], image.shape[-1])
    last: Grid | None = None
    width = 0
    for answer in reversed(answers):
        module, output = answer.module, answer.output
        # A max-pool counts: its response is the published layer of VGG-16.
        pooling = "Pool" in type(module).__name__ and not isinstance(module, nn.MaxPool2d)
        if module is model or answer.reshaped or pooling or isinstance(module, _NOT_A_LAYER):
            continue
        grid = grid_of(output, size, model)
        if grid is None or not output.requires_grad:
            continue
        if grid.kind == "nchw" and not _fits(*grid.size, size):
            continue  # (N, heads, tokens, width) inside an attention
        if last is None:
            last = grid
            width = 0 if grid.kind == "nchw" else _token_width(model, answers, grid, size)
        if width and (grid.kind != last.kind or output.shape[-1] != width):
            continue
        yield answer, grid


def _token_width(model: nn.Module, answers: list[_Answer], last: Grid, size: tuple[int, int]) -> int:
    """Return the commonest width of responses on the last grid: the tokens', not that of queries, keys or an MLP."""
    grids = [(answer.output, grid_of(answer.output, size, model)) for answer in answers]
    same = [output.shape[-1] for output, grid in grids if grid and (grid.kind, grid.size) == (last.kind, last.size)]
    return Counter(same).most_common(1)[0][0]


def _search(model: nn.Module, answers: list[_Answer], score: Tensor, image: Tensor) -> TargetLayer:
    for answer, grid in _candidates(model, answers, image):
        if _reached(score, answer.output, grid):
            return TargetLayer(layer_name(model, answer.module), answer.module, grid.kind, grid)
    raise LayerError(
        "No layer of the model has a spatial grid that a gradient of the output reaches. A CAM needs a convolution or "
        "image tokens before the classifier, and scores that depend on them: those of a saturated softmax, of dead "
        "units or of a classifier that is still all zeros (as in untrained ViTs of torchvision) do not."
    )


def _given(model: nn.Module, module: nn.Module, answers: list[_Answer], score: Tensor, image: Tensor) -> TargetLayer:
    name = layer_name(model, module) or "the whole model"
    own = [answer for answer in answers if answer.module is module]

    def refuse(reason: str) -> LayerError:
        try:
            better = f" Try '{_search(model, answers, score, image).name}'."
        except StriateError:
            better = ""
        return LayerError(f"'{name}' {reason}{better}")

    if not own:
        raise refuse("was not called in the forward pass, so it has no response to explain.")
    output = own[-1].output
    size = (image.shape[-2], image.shape[-1])
    grid = grid_of(output, size, model)
    if grid is None:
        raise refuse(f"returns {_shape(output)}: no spatial grid (N, K, h, w), (N, h, w, K) or (N, tokens, K) in it.")
    if not output.requires_grad or not _reached(score, output, grid):
        raise refuse(_unreached(grid))
    return TargetLayer(name, module, grid.kind, grid)


def _unreached(grid: Grid) -> str:
    if grid.prefix:
        return "gets no gradient at its patch tokens (only the class token is read above it), so its map would be zero."
    return "gets no gradient from the output: it is not on the path to the score, or every unit above it is dead."


def _shape(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _reached(score: Tensor, output: Tensor, grid: Grid) -> bool:
    (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
    return gradient is not None and bool((grid(gradient) != 0).any())
