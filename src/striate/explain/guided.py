"""Guided backprop, and its product with a CAM: Guided Grad-CAM and Guided XGrad-CAM.

Springenberg et al. 2015, arXiv 1412.6806: on the way back, a gradient that is negative is set to zero at every ReLU.
The product with an upsampled map is of Selvaraju et al. 2017 (arXiv 1610.02391) and Fu et al. 2020 (arXiv 2008.02312).

The rule is applied at the ReLU *operations* in the autograd graph, not at modules, so that functional, reused and
in-place ReLUs are all treated; libraries that hook ``nn.ReLU`` modules skip or falsify these without a word. A network
without any ReLU has no guided gradient, and is refused. Known of the method: it is nearly the same for every class and
survives randomised weights (Adebayo et al. 2018), so read it as a picture of edges that the network can see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.state import device_of, inspected
from striate.errors import ModelError
from striate.explain.base import Explainer, RawMap, Target, resolve_target, score
from striate.explain.cam import GradCAM, XGradCAM
from striate.explain.cam_base import CamExplainer, GradientCam
from striate.explain.graph import Node, is_relu, nodes

__all__ = ["GuidedBackprop", "GuidedGradCAM", "GuidedGradients", "GuidedXGradCAM", "guided_gradients"]

_OTHER = (
    "Gelu", "Silu", "Elu", "LeakyRelu", "Hardswish", "Hardsigmoid", "Sigmoid", "Tanh", "Mish", "Softplus", "Prelu",
    "Rrelu", "LogSigmoid", "Where",
)  # fmt: skip


class GuidedGradients(NamedTuple):
    """Gradients at the input with negative ones set to zero at every ReLU on the way back.

    Attributes:
        gradients: (N, C, H, W).
        target: as resolved.
        relus: ReLU operations that the rule was applied to.
        lowest: smallest gradient that left any of them; not negative if the rule was kept.
        others: other nonlinear operations, which the rule leaves alone.
    """

    gradients: Tensor
    target: Tensor | Callable[[Tensor], Tensor]
    relus: int
    lowest: float
    others: tuple[str, ...]


def guided_gradients(model: nn.Module, inputs: Tensor, target: Target = None) -> GuidedGradients:
    """Return guided gradients at the input, in colour.

    Args:
        model: any classifier with ReLUs.
        inputs: (N, C, H, W); moved to where the model is.
        target: see :data:`striate.explain.base.Target`.

    Raises:
        ModelError: no ReLU on the way from the score to the image, or they are hidden in a checkpointed block.
    """
    with torch.inference_mode(False), torch.enable_grad(), inspected(model, warn=False):
        images = inputs.detach().to(device_of(model, inputs.device), copy=True).requires_grad_()
        logits = model(images)
        resolved = resolve_target(logits, target, "guided_gradients")
        total = score(logits, resolved).sum()
        every = nodes(total)
        hidden = [node.name() for node in every if "Checkpoint" in node.name()]
        if hidden:
            raise ModelError(
                "Guided backprop cannot see the ReLUs inside a re-entrant checkpoint; switch checkpointing off."
            )
        relus = [node for node in every if is_relu(node)]
        others = sorted({_plain(node.name()) for node in every if node.name().startswith(_OTHER)})
        if not relus:
            found = f" (it has {', '.join(others)})" if others else ""
            raise ModelError(
                f"Guided backprop is a rule for ReLUs and {type(model).__name__} has none{found}. Use a gradient "
                "method that is defined for it, such as integrated gradients."
            )
        passed: list[float] = []
        for node in relus:
            _guide(node, passed)
        (gradients,) = torch.autograd.grad(total, images)
    return GuidedGradients(gradients, resolved, len(relus), min(passed, default=0.0), tuple(others))


def _guide(node: Node, passed: list[float]) -> None:
    """Apply the rule at one ReLU; the hooks live and die with the graph."""

    def before(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(None if gradient is None else gradient.clamp_min(0) for gradient in gradients)

    def after(inner: tuple[Tensor | None, ...], outer: tuple[Tensor | None, ...]) -> None:
        passed.extend(float(gradient.min()) for gradient in inner if gradient is not None)

    node.register_prehook(before)
    node.register_hook(after)


def _plain(name: str) -> str:
    return name.split("Backward", maxsplit=1)[0]


class GuidedBackprop(Explainer):
    """Guided backprop; the map is the largest absolute guided gradient over the colour channels.

    Raises:
        ModelError: the network has no ReLU.
    """

    name = "guided-backprop"
    family = "gradient"

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        guided = guided_gradients(self.model, inputs, target)
        return RawMap(
            map=guided.gradients.abs().amax(dim=1), target=guided.target, check=_check(guided), notes=_notes(guided)
        )


class _GuidedCam(CamExplainer):
    """A CAM, upsampled to the image and multiplied by the guided gradient."""

    cam: type[GradientCam]

    def __init__(
        self, model: nn.Module, layer: str | nn.Module | None = None, *, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(model, layer, seed=seed)
        self._cam = self.cam(model, layer, seed=seed, **options)

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        raw = self._cam._explain(inputs, target)
        guided = guided_gradients(self.model, inputs, raw.target)
        size = (inputs.shape[-2], inputs.shape[-1])
        upsampled = nn.functional.interpolate(raw.map[:, None], size=size, mode="bilinear", align_corners=False)
        product = upsampled * guided.gradients  # (N, C, H, W)
        return RawMap(
            map=product.abs().amax(dim=1),
            target=raw.target,
            check=_check(guided),
            layer=raw.layer,
            weights=raw.weights,
            activations=raw.activations,
            notes={**raw.notes, **_notes(guided), "cam_check": raw.check.to_dict()},
        )


class GuidedGradCAM(_GuidedCam):
    """Grad-CAM times guided backprop: what Grad-CAM points at, at the resolution of the image."""

    name = "guided-grad-cam"
    cam = GradCAM


class GuidedXGradCAM(_GuidedCam):
    """XGrad-CAM times guided backprop. Options as of :class:`striate.explain.cam.XGradCAM`."""

    name = "guided-xgrad-cam"
    cam = XGradCAM


def _check(guided: GuidedGradients) -> Check:
    statement = f"the smallest gradient that left any of {guided.relus} ReLU operations is {guided.lowest:.3g}"
    if guided.others:
        statement += f"; the rule says nothing of {', '.join(guided.others)}, which pass gradients as they are"
    return Check("guided at every ReLU", guided.lowest >= 0, statement, guided.lowest, 0.0)


def _notes(guided: GuidedGradients) -> dict[str, Any]:
    return {"relu_operations": guided.relus, "other_nonlinearities": list(guided.others)}
