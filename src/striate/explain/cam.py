"""Class activation maps from gradients: CAM, Grad-CAM, Grad-CAM++ and XGrad-CAM.

A CAM is a weighted sum of one layer's feature maps, M = sum_k w_k F^k; the methods differ in the weights.
With G = dS/dF, S the logit explained:

* CAM (Zhou et al. 2016, arXiv 1512.04150): the classifier's own weights, where the head is average pooling + linear.
* Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): w_k = mean G^k.
* Grad-CAM++ (Chattopadhyay et al. 2018, arXiv 1710.11063): w_k = sum a^k ReLU(G^k).
* XGrad-CAM (Fu et al. 2020, arXiv 2008.02312): w_k = sum F^k G^k / sum F^k.

Here a batch may have one target for each sample, the backward pass ends at the layer, and each result is checked by
the identity that its method rests on. Grad-CAM++ uses the closed form of its paper, which presumes exp(S) as the score.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.errors import InputError, LayerError, UnstableWarning
from striate.explain.ablation_cam import AblationCAM
from striate.explain.cam_base import GradientCam, Responses
from striate.explain.score_cam import ScoreCAM

__all__ = ["CAM", "AblationCAM", "GradCAM", "GradCAMPlusPlus", "ScoreCAM", "XGradCAM"]

_CANCELLED = 20.0
"""A channel whose positive and negative responses cancel to less than 1/20 has no stable denominator."""


class CAM(GradientCam):
    """Class activation mapping: the classifier's weights, for networks that end in average pooling + linear.

    The layer must feed the pooling; whether it does is verified against the logit, S = mean(M) + b.

    Raises:
        LayerError: the head is of another form; use :class:`GradCAM`, which equals CAM where CAM exists.
    """

    name = "cam"

    def channel_weights(self, seen: Responses) -> Tensor:
        """Return the channel weights (N, K)."""
        return self._head(seen)[0]

    def _judge(self, seen: Responses, weights: Tensor) -> tuple[Check, dict[str, Any]]:
        _, error, bias = self._head(seen)
        statement = f"mean of the signed map + bias equals the logit to {error:.1e} of its terms"
        return Check("logit", True, statement, error, _CAM_TOLERANCE), {"bias": bias.tolist()}

    def _head(self, seen: Responses) -> tuple[Tensor, float, Tensor]:
        """Return weights (N, K), the error of the logit's identity and biases (N,) of the head that fulfils it."""
        if not isinstance(seen.target, Tensor):
            raise InputError("target", "CAM", allowed="a class index: CAM reads the classifier's row", got="a callable")
        k, classes = seen.activations.shape[1], seen.logits.shape[1]
        pooled = seen.activations.mean(dim=(2, 3))
        for module in self.model.modules():
            if not isinstance(module, nn.Linear) or (module.in_features, module.out_features) != (k, classes):
                continue
            weights = module.weight.detach()[seen.target].to(pooled.dtype)
            bias = torch.zeros_like(pooled[:, 0]) if module.bias is None else module.bias.detach()[seen.target]
            terms = weights * pooled
            error = (terms.sum(dim=1) + bias - seen.scores).abs() / (terms.abs().sum(dim=1) + bias.abs() + 1e-12)
            if float(error.max()) <= _CAM_TOLERANCE:
                return weights, float(error.max()), bias
        raise LayerError(
            f"CAM needs a head of global average pooling and one linear layer right above '{seen.layer.name}'; this "
            "network's logit is not that. Use GradCAM, which equals CAM where CAM exists."
        )


_CAM_TOLERANCE = 1e-4


class GradCAM(GradientCam):
    """Grad-CAM: each channel weighs as much as its gradient on average over space.

    Checked where an identity holds: with gradients that are constant over space its contributions add up to
    gradient x activation. Elsewhere nothing ties the map to the score, and the check says by how much they differ.
    """

    name = "grad-cam"

    def channel_weights(self, seen: Responses) -> Tensor:
        """Return the channel weights (N, K)."""
        return seen.gradients.mean(dim=(2, 3))

    def _judge(self, seen: Responses, weights: Tensor) -> tuple[Check, dict[str, Any]]:
        error, notes = _conservation(seen, weights)
        if not notes["gradients_constant_over_space"]:
            statement = (
                "gradients vary over space, so no identity ties Grad-CAM to the score; its contributions differ from "
                f"gradient x activation by {error:.3g} of the terms' size (XGrad-CAM's do not)"
            )
            return Check("gradient x activation", None, statement, error), notes
        statement = (
            "gradients are constant over space (pooling + linear above the layer): Grad-CAM, XGrad-CAM and CAM are the "
            f"same map, and its contributions equal gradient x activation to {error:.1e}"
        )
        return Check("gradient x activation", error <= 1e-4, statement, error, 1e-4), notes


class XGradCAM(GradientCam):
    """XGrad-CAM: gradients averaged with the responses as weights, after the axioms sensitivity and conservation.

    w_k = sum_xy F^k(x,y) / (sum F^k + eps) * G^k(x,y). A dead channel gets weight 0. A channel's contribution
    C_k = w_k sum F^k is then gradient x activation, and what these leave of the score is the bias term
    (:func:`striate.explain.axioms.score_decomposition`).

    Args:
        eps: added to the denominator; the authors' 1e-6.

    Warns:
        UnstableWarning: the layer has negative responses that cancel the denominators. The contributions
            (:func:`striate.explain.axioms.axiom_report`) do not divide and stay sound.

    Example:
        >>> from striate.engine.load import load_model
        >>> result = XGradCAM(load_model("lite0"), "blocks.5.0.bn1").attribute(torch.rand(2, 3, 64, 64), [281, 7])
        >>> result.map.shape, result.weights.shape, result.check.passed
        (torch.Size([2, 4, 4]), torch.Size([2, 672]), True)
    """

    name = "xgrad-cam"

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        eps: float = 1e-6,
        relu: bool = True,
        seed: int = 0,
    ) -> None:
        if eps < 0:
            raise InputError("eps", "XGradCAM", allowed=">= 0", got=eps)
        super().__init__(model, layer, relu=relu, seed=seed)
        self.eps = eps

    def channel_weights(self, seen: Responses) -> Tensor:
        """Return the channel weights (N, K)."""
        denominator = seen.activations.sum(dim=(2, 3)) + self.eps
        summed = (seen.gradients * seen.activations).sum(dim=(2, 3))
        return torch.where(denominator == 0, torch.zeros_like(summed), summed / denominator)

    def _judge(self, seen: Responses, weights: Tensor) -> tuple[Check, dict[str, Any]]:
        error, notes = _conservation(seen, weights)
        mass = seen.activations.abs().sum(dim=(2, 3))
        cancelled = (mass > 0) & (mass > _CANCELLED * (seen.activations.sum(dim=(2, 3)) + self.eps).abs())
        spread = weights.abs() * mass
        share = float(((spread * cancelled).sum(dim=1) / spread.sum(dim=1).clamp_min(1e-30)).max())
        notes |= {"unstable_channels": cancelled.sum(dim=1).tolist(), "unstable_share": share}
        if bool((seen.activations < 0).any()) and share > 0.05:
            warnings.warn(
                f"'{seen.layer.name}' has negative responses: in {int(cancelled.sum(dim=1).max())} of "
                f"{weights.shape[1]} channels they cancel XGrad-CAM's denominator, and these make up {share:.0%} of "
                "the map. Choose a layer after a ReLU, use GradCAM, or read axiom_report(...).contribution, which "
                "does not divide.",
                UnstableWarning,
                stacklevel=4,
            )
        parts = [f"contributions add up to gradient x activation to {error:.1e} of the terms' size"]
        bias = notes["bias_term"]
        parts.append(f"the bias term leaves {max(map(abs, bias)):.3g} of the score unexplained (largest in the batch)")
        if notes["gradients_constant_over_space"]:
            parts.append("gradients are constant over space, so that this is provably Grad-CAM's map")
        return Check("gradient x activation", error <= 1e-3, "; ".join(parts), error, 1e-3), notes


class GradCAMPlusPlus(GradientCam):
    """Grad-CAM++: positive gradients only, weighted by a = G² / (2 G² + (sum F^k) G³ + 1e-6) where G is not 0.

    Checked by what its form implies: no channel counts against a class, so no weight is negative (at layers without
    negative responses). That is also why its maps for two classes in one image look alike.
    """

    name = "grad-cam++"

    def channel_weights(self, seen: Responses) -> Tensor:
        """Return the channel weights (N, K)."""
        gradients = seen.gradients
        square = gradients**2
        sums = seen.activations.sum(dim=(2, 3), keepdim=True)
        alpha = square / (2 * square + sums * square * gradients + 1e-6)
        alpha = torch.where(gradients != 0, alpha, torch.zeros_like(alpha))
        return (alpha * gradients.clamp_min(0)).sum(dim=(2, 3))

    def _judge(self, seen: Responses, weights: Tensor) -> tuple[Check, dict[str, Any]]:
        _, notes = _conservation(seen, weights)
        lowest = float(weights.min())
        if bool((seen.activations < 0).any()):
            statement = f"the layer has negative responses, where alpha has no bound; the lowest weight is {lowest:.3g}"
            return Check("weights not negative", None, statement, lowest), notes
        return Check("weights not negative", lowest >= 0, f"the lowest weight is {lowest:.3g}", lowest, 0.0), notes


def _conservation(seen: Responses, weights: Tensor) -> tuple[float, dict[str, Any]]:
    """Return |sum_k C_k - sum G F| relative to the terms' size, and the figures every gradient CAM reports."""
    products = (seen.gradients * seen.activations).flatten(2)
    terms = products.sum(dim=2)
    contributions = weights * seen.activations.sum(dim=(2, 3))
    size = torch.linalg.vector_norm(products, ord=1, dim=(1, 2)).clamp_min(1e-30)
    error = float(((contributions - terms).sum(dim=1).abs() / size).max())
    low, high = seen.gradients.flatten(2).aminmax(dim=2)
    largest = torch.maximum(high, -low).amax(dim=1, keepdim=True)
    notes = {
        "score": seen.scores.tolist(),
        "bias_term": (seen.scores - terms.sum(dim=1)).tolist(),
        "gradients_constant_over_space": bool((high - low <= 1e-6 * largest).all()),
        "layer_kind": seen.layer.kind,
    }
    return error, notes
