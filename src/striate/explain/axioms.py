"""How well a CAM keeps the axioms, measured by real ablation, and what of a score no CAM weight can explain.

Fu et al. 2020, arXiv 2008.02312. With C_k = w_k sum F^k, a channel's contribution to the signed, un-rectified map:

* sensitivity: C_k equals the fall of the score when channel k is removed,
* conservation: the C_k add up to the score.

Where all above the layer is piecewise linear, S = sum G F + bias term holds exactly (the paper's Eq. 5), with the bias
term summed over every bias above the layer times its gradient. XGrad-CAM's contributions add up to sum G F, so that its
conservation error *is* the bias term, however large the network makes it. Beyond the paper: batch normalisation counts
with its folded bias, and a ReLU6 or another clamp with the constants at which it saturates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from striate.engine.model import get_layer, layer_name
from striate.engine.state import device_of, inspected
from striate.errors import InputError, LayerError, did_you_mean
from striate.explain.ablation_cam import AblationCAM, channel_drops
from striate.explain.base import Target, resolve_target, score
from striate.explain.cam import GradCAM, GradCAMPlusPlus
from striate.explain.cam_base import layer_gradients
from striate.explain.graph import Node, above
from striate.explain.tail import respond

__all__ = ["AXIOM_METHODS", "AxiomReport", "ScoreDecomposition", "axiom_report", "axiom_reports", "score_decomposition"]

AXIOM_METHODS = ("grad-cam", "xgrad-cam", "grad-cam++", "ablation-cam", "ablation-oracle")
"""CAMs whose contributions can be held against the axioms."""

_SMALL = 1e-6


@dataclass(frozen=True)
class AxiomReport:
    """How one CAM keeps the axioms on a batch.

    Attributes:
        method: one of :data:`AXIOM_METHODS`.
        layer: path of the layer.
        score: (N,) S, the logit explained.
        sensitivity_error: (N,) sum_k |Delta_k - C_k| / sum_k |Delta_k|; NaN where no channel matters.
        conservation_error: (N,) |S - sum_k C_k| / |S|; NaN where \\|S\\| < 1e-6.
        delta: (N, K) fall of the score when channel k is removed, by running the network without it.
        contribution: (N, K) C_k; for XGrad-CAM this is gradient x activation and free of its division.
        bias_term: (N,) S - sum G F, what gradient x activation leaves of the score.
        skipped: images whose conservation error is undefined.
    """

    method: str
    layer: str
    score: Tensor
    sensitivity_error: Tensor
    conservation_error: Tensor
    delta: Tensor
    contribution: Tensor
    bias_term: Tensor
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        """Return all but the (N, K) tensors, JSON-ready."""
        return {
            "method": self.method,
            "layer": self.layer,
            "score": self.score.tolist(),
            "sensitivity_error": self.sensitivity_error.tolist(),
            "conservation_error": self.conservation_error.tolist(),
            "bias_term": self.bias_term.tolist(),
            "skipped": self.skipped,
        }


class ScoreDecomposition(NamedTuple):
    """S = G . F + bias term + residual, each (N,).

    Attributes:
        score: S, the logit explained.
        grad_dot_activation: sum over the layer's response of gradient times response.
        bias_term: every bias above the layer times the gradient at its place; found without looking at S.
        residual: what is left; 0 up to rounding where the theorem holds.
    """

    score: Tensor
    grad_dot_activation: Tensor
    bias_term: Tensor
    residual: Tensor


def axiom_report(
    model: nn.Module,
    layer: str | nn.Module,
    inputs: Tensor,
    target: Target = None,
    method: str = "xgrad-cam",
    batch_size: int | None = None,
) -> AxiomReport:
    """Measure the axioms for one CAM. Arguments as of :func:`axiom_reports`."""
    return axiom_reports(model, layer, inputs, target, methods=(method,), batch_size=batch_size)[method]


def axiom_reports(
    model: nn.Module,
    layer: str | nn.Module,
    inputs: Tensor,
    target: Target = None,
    *,
    methods: Sequence[str] = AXIOM_METHODS,
    batch_size: int | None = None,
) -> dict[str, AxiomReport]:
    """Measure the axioms for several CAMs on one and the same ablation of every channel.

    Args:
        model: any classifier; it is evaluated in eval mode (dropout would make the axioms meaningless).
        layer: path or module.
        inputs: (N, C, H, W); moved to where the model is.
        target: see :data:`striate.explain.base.Target`; the score is the logit, never a softmax.
        methods: of :data:`AXIOM_METHODS`.
        batch_size: ablated responses in one pass of the network's tail; None chooses.

    Raises:
        InputError: unknown method.
        LayerError: as :func:`striate.explain.target_layer.find_target_layer`.
    """
    for method in methods:
        if method not in AXIOM_METHODS:
            allowed = f"one of {', '.join(AXIOM_METHODS)}"
            raise InputError(
                "method", "axiom_report", allowed=allowed, got=method, hint=did_you_mean(method, AXIOM_METHODS)
            )
    inputs = inputs.to(device_of(model, inputs.device))
    with torch.inference_mode(False), inspected(model):
        seen = layer_gradients(model, layer, inputs, target, owner="axiom_report")
        measured = channel_drops(model, layer, inputs, seen.target, batch_size=batch_size)
        sums = seen.activations.sum(dim=(2, 3))
        terms = (seen.gradients * seen.activations).sum(dim=(2, 3))
        contributions = {}
        for method in methods:
            if method == "xgrad-cam":
                # w_k sum F^k with delta = 0: the same number without the division, hence without its instability.
                contributions[method] = terms
            elif method in _GRADIENT:
                contributions[method] = _GRADIENT[method](model, layer).channel_weights(seen) * sums
            else:
                oracle = method == "ablation-oracle"
                contributions[method] = AblationCAM(model, layer, oracle=oracle).channel_weights(measured) * sums
    scores, delta = measured.scores, measured.drops
    defined, moved = scores.abs() >= _SMALL, delta.abs().sum(dim=1) > 0
    nan = torch.full_like(scores, float("nan"))
    return {
        method: AxiomReport(
            method=method,
            layer=measured.layer.name,
            score=scores,
            sensitivity_error=torch.where(moved, (delta - own).abs().sum(dim=1) / delta.abs().sum(dim=1), nan),
            conservation_error=torch.where(defined, (scores - own.sum(dim=1)).abs() / scores.abs(), nan),
            delta=delta,
            contribution=own,
            bias_term=scores - terms.sum(dim=1),
            skipped=int((~defined).sum()),
        )
        for method, own in contributions.items()
    }


_GRADIENT: dict[str, type[Any]] = {"grad-cam": GradCAM, "grad-cam++": GradCAMPlusPlus}


def score_decomposition(
    model: nn.Module, layer: str | nn.Module, inputs: Tensor, target: Target = None
) -> ScoreDecomposition:
    """Split a score into gradient x activation at a layer and the biases above it (Eq. 5 of the paper).

    The bias term is found in the autograd graph, operation by operation, so that functional and reused layers count as
    often as they ran; the residual says whether anything was missed.

    Args:
        model: a classifier that is piecewise linear above ``layer``.
        layer: path or module.
        inputs: (N, C, H, W); moved to where the model is.
        target: see :data:`striate.explain.base.Target`.

    Raises:
        LayerError: an operation above the layer is not piecewise linear (GELU, attention, layer normalisation,
            a sigmoid gate, a softmax score); it is named.
    """
    module = get_layer(model, layer)
    with torch.inference_mode(False), inspected(model):
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # so that the graph shows whose bias is whose
        logits, leaf, _ = respond(model, module, inputs.detach().to(device_of(model, inputs.device)))
        scores = score(logits, resolve_target(logits, target, "score_decomposition"))
        found = above(scores, leaf)
        if not found:
            raise LayerError(f"No gradient of the score reaches '{layer_name(model, module)}'.")
        parts: list[Tensor] = []
        for node in found:
            _refuse(node, found, layer_name(model, module))
            node.register_prehook(_biases_of(node, found, len(scores), parts))
        (gradient,) = torch.autograd.grad(scores.sum(), leaf)
        scores = scores.detach()
        product = (gradient * leaf.detach()).flatten(1).sum(dim=1)
        bias = torch.stack(parts).sum(dim=0) if parts else torch.zeros_like(scores)
    return ScoreDecomposition(scores, product, bias, scores - product - bias)


_LINEAR = frozenset({
    "Clone", "Alias", "Contiguous", "ToCopy", "AsStrided",
    "View", "UnsafeView", "ReshapeAlias", "T", "Transpose", "Permute", "Expand", "Squeeze", "Unsqueeze", "Unfold",
    "Slice", "Select", "Split", "SplitWithSizes", "Chunk", "Unbind", "Stack", "Cat", "Gather", "Index", "IndexSelect",
    "Flip", "Roll", "PixelShuffle", "PixelUnshuffle", "ConstantPadNd", "ReflectionPad2D", "ReplicationPad2D",
    "Sum", "Mean", "Neg", "Add", "Sub", "Convolution", "Addmm",
    "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm",
    "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnAdaptiveAvgPool2D", "MaxPool2DWithIndices", "AdaptiveMaxPool2D",
    "UpsampleNearest2D", "UpsampleBilinear2D", "UpsampleBicubic2D",
    "Relu", "Hardtanh", "Clamp", "ClampMin", "ClampMax", "Threshold", "LeakyRelu", "PreluKernel", "Abs",
    "Maximum", "Minimum", "Amax", "Max", "Where",
})  # fmt: skip
_BILINEAR = frozenset({"Mul", "Mm", "Bmm", "Mv", "Dot", "Baddbmm", "Convolution", "Addmm"})
"""Linear in either factor: allowed where only one of them comes from the layer."""


def _refuse(node: Node, found: set[Node], name: str) -> None:
    """Raise unless a node is piecewise linear in what comes from the layer."""
    operation = node.name().split("Backward")[0]
    reached = sum(_comes(node, position, found) for position in range(len(node.next_functions)))
    if operation in _BILINEAR:
        allowed = reached == 1
    elif operation == "Div":
        allowed = not _comes(node, 1, found)
    else:
        allowed = operation in _LINEAR and not getattr(node, "_saved_training", False)
    if allowed:
        return
    raise LayerError(
        f"'{operation}' above '{name}' is not piecewise linear, so that the score does not split into gradient x "
        "activation and a bias term. axiom_report measures the axioms for any network."
    )


def _biases_of(node: Node, found: set[Node], n: int, parts: list[Tensor]) -> Any:
    """Return a hook that takes the gradient at a node's output and notes the share (N,) of what is added there."""
    operation = node.name().split("Backward")[0]

    def note(gradient: Tensor, constant: Tensor) -> None:
        # A gradient (N, …) may have its batch folded with other axes, as a linear layer's on tokens has.
        parts.append((gradient * constant).detach().reshape(n, -1).sum(dim=1))

    def hook(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[0]
        if gradient is None:
            return
        if operation == "Convolution" and (bias := _parameter(node, 2)) is not None:
            note(gradient, bias[:, None, None])
        elif operation == "Addmm" and (bias := _parameter(node, 0)) is not None:
            note(gradient, bias)
        elif operation in {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"}:
            note(gradient, _folded_bias(node, gradient).view(-1, *[1] * (gradient.dim() - 2)))
        elif operation in {"Hardtanh", "Clamp", "ClampMin", "ClampMax"}:
            note(gradient, _saturation(node, operation))
        elif operation == "Add":
            for side in (0, 1):
                if (added := _parameter(node, side)) is not None:
                    note(gradient, added * (1.0 if side == 0 else float(getattr(node, "_saved_alpha", 1.0))))

    return hook


def _parameter(node: Node, position: int) -> Tensor | None:
    """Return the parameter that enters a node at a place, if a parameter does."""
    if position >= len(node.next_functions):
        return None
    variable = getattr(node.next_functions[position][0], "variable", None)
    return variable if isinstance(variable, nn.Parameter) else None


def _folded_bias(node: Node, like: Tensor) -> Tensor:
    """Return beta - gamma mean / sqrt(var + eps) of an eval-mode batch normalisation."""
    mean, var = node._saved_running_mean, node._saved_running_var
    eps = node._saved_eps if hasattr(node, "_saved_eps") else node._saved_epsilon
    scale = (var + eps).rsqrt()
    if node._saved_weight is not None:
        scale = scale * node._saved_weight
    beta = _parameter(node, 2)
    return (like.new_zeros(()) if beta is None else beta) - scale * mean


def _saturation(node: Node, operation: str) -> Tensor:
    """Return the constants at which a clamp holds its output, 0 where it does not."""
    x = node._saved_self
    names = {"Hardtanh": ("_saved_min_val", "_saved_max_val")}.get(operation, ("_saved_min", "_saved_max"))
    low, high = (getattr(node, name, None) for name in names)
    # On the bound itself hardtanh passes no gradient, clamp does.
    held = torch.zeros_like(x)
    if low is not None:
        held = torch.where(x <= low if operation == "Hardtanh" else x < low, float(low), held)
    if high is not None:
        held = torch.where(x >= high if operation == "Hardtanh" else x > high, float(high), held)
    return held


def _comes(node: Node, position: int, found: set[Node]) -> bool:
    """Whether what enters a node at a place comes from the layer."""
    if position >= len(node.next_functions):
        return False
    following = node.next_functions[position][0]
    variable = getattr(following, "variable", None)
    return following in found or (variable is not None and not isinstance(variable, nn.Parameter))
