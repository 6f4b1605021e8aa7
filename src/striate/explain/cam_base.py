"""What all class activation maps share: a layer, its responses, and one weight for each of its channels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.model import get_layer, layer_name
from striate.errors import LayerError
from striate.explain.base import Explainer, RawMap, Target, resolve_target, score
from striate.explain.tail import respond
from striate.explain.target_layer import TargetLayer, find_target_layer, grid_of

__all__ = [
    "CamExplainer",
    "GradientCam",
    "Responses",
    "Scorer",
    "full_precision",
    "layer_gradients",
    "located",
    "row_scores",
]

Scorer = Callable[[Tensor], Tensor]


class Responses(NamedTuple):
    """A layer's responses to a batch and how the scores depend on them.

    Attributes:
        activations: (N, K, h, w) F, detached.
        gradients: (N, K, h, w) G = dS/dF.
        scores: (N,) S, the logit explained.
        logits: (N, classes).
        target: (N,) classes, or a callable.
        layer: where.
    """

    activations: Tensor
    gradients: Tensor
    scores: Tensor
    logits: Tensor
    target: Tensor | Scorer
    layer: TargetLayer


class CamExplainer(Explainer):
    """Base of the CAMs: finds the layer once for each input size and remembers it.

    Args:
        model: any classifier.
        layer: path or module; None takes the last layer with a grid that a gradient reaches, and the result names it.
        relu: keep the positive part of the map, as the methods define it; False gives the signed map.
        seed: unused by methods that draw nothing.
    """

    family = "cam"

    def __init__(
        self, model: nn.Module, layer: str | nn.Module | None = None, *, relu: bool = True, seed: int = 0
    ) -> None:
        super().__init__(model, seed=seed)
        self.layer = None if layer is None else get_layer(model, layer)
        self.relu = relu
        self._found: dict[tuple[int, ...], TargetLayer] = {}

    def _locate(self, inputs: Tensor) -> nn.Module:
        if self.layer is not None:
            return self.layer
        size = tuple(inputs.shape[1:])
        if size not in self._found:
            self._found[size] = find_target_layer(self.model, inputs)
        return self._found[size].module

    def _weighted(self, weights: Tensor, activations: Tensor) -> Tensor:
        """Return M = sum_k w_k F^k (N, h, w), rectified where the method says so."""
        signed = (weights[:, :, None, None] * activations).sum(dim=1)  # no matmul: autocast would round it
        return signed.clamp_min(0) if self.relu else signed


class GradientCam(CamExplainer):
    """Base of the CAMs whose weights come from one backward pass that ends at the layer."""

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        seen = layer_gradients(self.model, self._locate(inputs), inputs, target, owner=type(self).__name__)
        weights = self.channel_weights(seen)
        check, notes = self._judge(seen, weights)
        return RawMap(
            map=self._weighted(weights, seen.activations),
            target=seen.target,
            check=check,
            layer=seen.layer.name,
            weights=weights,
            activations=seen.activations,
            notes=notes,
        )

    @abstractmethod
    def channel_weights(self, seen: Responses) -> Tensor:
        """Return the channel weights (N, K)."""

    @abstractmethod
    def _judge(self, seen: Responses, weights: Tensor) -> tuple[Check, dict[str, Any]]:
        """Return the method's check on this result, and further figures."""


def layer_gradients(
    model: nn.Module, layer: str | nn.Module, inputs: Tensor, target: Target, *, owner: str = "layer_gradients"
) -> Responses:
    """Return a layer's responses and the gradients of the scores there: one forward and one truncated backward pass.

    Call inside :func:`striate.engine.state.inspected`. Half-precision responses are handed back as float32.

    Args:
        model: any classifier.
        layer: path or module.
        inputs: (N, C, H, W).
        target: see :data:`striate.explain.base.Target`.
        owner: named in errors.

    Raises:
        LayerError: the layer has no grid, or no gradient reaches it.
    """
    module = layer if isinstance(layer, nn.Module) else get_layer(model, layer)  # respond looks whether it is there
    logits, leaf, _ = respond(model, module, inputs)
    resolved = resolve_target(logits, target, owner)
    scores = score(logits, resolved)
    where = located(model, module, leaf, inputs)
    gradient: Tensor | None = None
    if scores.requires_grad:
        (gradient,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
    gradients = None if gradient is None else where.to_grid(full_precision(gradient)).contiguous()
    if gradients is None or not bool((gradients != 0).any()):
        find_target_layer(model, inputs, module)  # says why, if the network is the reason
        raise LayerError(f"No gradient of this target reaches '{where.name}': the score does not depend on it here.")
    # Sums over places are several times faster where a channel's places are neighbours.
    activations = where.to_grid(full_precision(leaf.detach())).contiguous()
    return Responses(activations, gradients, scores.detach(), logits.detach(), resolved, where)


def located(model: nn.Module, module: nn.Module, response: Tensor, inputs: Tensor) -> TargetLayer:
    """Return a layer with the grid of the response it gave.

    Raises:
        LayerError: the response has no grid; a layer that has one is named.
    """
    grid = grid_of(response, (inputs.shape[-2], inputs.shape[-1]), model)
    if grid is None:
        return find_target_layer(model, inputs, module)  # raises, and names a better layer
    return TargetLayer(layer_name(model, module), module, grid.kind, grid)


def full_precision(tensor: Tensor) -> Tensor:
    """Return half-precision tensors as float32: sums over a map need it."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def row_scores(rows: Tensor, target: Tensor | Scorer, logits: Tensor, i: int) -> Tensor:
    """Return the scores (M,) of M logit rows that belong to image i.

    Args:
        rows: (M, classes) logits of altered versions of image i.
        target: as resolved for the whole batch. A callable may treat each image of the batch differently, so it is
            shown the batch with row i replaced.
        logits: (N, classes) of the unaltered batch.
        i: the image.
    """
    if isinstance(target, Tensor):
        return rows[:, target[i]]
    batches = logits.expand(len(rows), *logits.shape).clone()
    batches[:, i] = rows
    return torch.stack([score(batch, target)[i] for batch in batches])
