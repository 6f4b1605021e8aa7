"""Every attribution method by name, and one call that runs any of them.

Nothing here imports torch until a method is used, so that a command line can list the names at once.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from striate.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from striate.explain.base import Explainer, Target

__all__ = ["METHODS", "Factory", "MethodInfo", "attribute", "get_method"]


@dataclass(frozen=True)
class Factory:
    """A method's class, imported when it is first needed; calling it makes the explainer.

    Attributes:
        module: where the class is.
        cls: its name.
    """

    module: str
    cls: str

    def load(self) -> type[Explainer]:
        """Return the class."""
        return cast("type[Explainer]", getattr(importlib.import_module(self.module), self.cls))

    def __call__(self, model: nn.Module, **options: Any) -> Explainer:
        """Return the explainer for ``model``.

        Raises:
            InputError: an option that the method does not have.
        """
        explainer = self.load()
        parameters = inspect.signature(explainer).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            known = [name for name in parameters if name != "model"]
            for option in options:
                if option not in known:
                    allowed = f"among {', '.join(known)}"
                    raise InputError("options", self.cls, allowed=allowed, got=option, hint=did_you_mean(option, known))
        return explainer(model, **options)


@dataclass(frozen=True)
class MethodInfo:
    """What is to be known of a method before it is run.

    Attributes:
        name: key in :data:`METHODS`.
        factory: ``factory(model, **options)`` makes the explainer.
        family: ``"gradient"``, ``"cam"`` or ``"perturbation"``.
        needs: ``"gap"`` (a head of average pooling and one linear layer), ``"relu"`` (ReLU networks), or None.
        forwards: forward passes for one image of 224 x 224 with default options, its check included; None where
            there is one for each channel of the layer.
        backwards: backward passes likewise; a CAM's stops at its layer and costs a small part of one.
    """

    name: str
    factory: Factory
    family: Literal["gradient", "cam", "perturbation"]
    needs: Literal["gap", "relu"] | None
    forwards: int | None
    backwards: int


def _method(
    name: str,
    home: str,
    family: Literal["gradient", "cam", "perturbation"],
    *,
    forwards: int | None,
    backwards: int = 0,
    needs: Literal["gap", "relu"] | None = None,
) -> MethodInfo:
    module, cls = home.split(":")
    return MethodInfo(name, Factory(f"striate.explain.{module}", cls), family, needs, forwards, backwards)


METHODS: dict[str, MethodInfo] = {
    method.name: method
    for method in (
        _method("gradient", "gradient:Gradient", "gradient", forwards=4, backwards=1),
        _method("input-x-gradient", "gradient:InputXGradient", "gradient", forwards=4, backwards=1),
        _method("integrated-gradients", "gradient:IntegratedGradients", "gradient", forwards=52, backwards=50),
        _method("gradient-shap", "gradient:GradientSHAP", "gradient", forwards=101, backwards=50),
        _method("smoothgrad", "gradient:SmoothGrad", "gradient", forwards=51, backwards=50),
        _method("guided-backprop", "guided:GuidedBackprop", "gradient", forwards=1, backwards=1, needs="relu"),
        _method("cam", "cam:CAM", "cam", forwards=1, needs="gap"),
        _method("grad-cam", "cam:GradCAM", "cam", forwards=1, backwards=1),
        _method("grad-cam++", "cam:GradCAMPlusPlus", "cam", forwards=1, backwards=1),
        _method("xgrad-cam", "cam:XGradCAM", "cam", forwards=1, backwards=1),
        _method("ablation-cam", "cam:AblationCAM", "cam", forwards=None),
        _method("score-cam", "cam:ScoreCAM", "cam", forwards=None),
        _method("guided-grad-cam", "guided:GuidedGradCAM", "cam", forwards=2, backwards=2, needs="relu"),
        _method("guided-xgrad-cam", "guided:GuidedXGradCAM", "cam", forwards=2, backwards=2, needs="relu"),
        _method("lime", "lime:LIME", "perturbation", forwards=1001),
        _method("rise", "rise:RISE", "perturbation", forwards=8001),
        _method(
            "meaningful-perturbation",
            "meaningful_perturbation:MeaningfulPerturbation",
            "perturbation",
            forwards=303,
            backwards=300,
        ),
        _method("occlusion", "occlusion:Occlusion", "perturbation", forwards=173),
    )
}
"""Name -> :class:`MethodInfo`."""


def get_method(name: str) -> type[Explainer]:
    """Return the class of a method: ``get_method("rise")(model, n_masks=500).attribute(images)``.

    Raises:
        InputError: no such method; the nearest names are given.
    """
    return _info(name).factory.load()


def attribute(model: nn.Module, x: Tensor, target: Target = None, method: str = "rise", **options: Any) -> Tensor:
    """Return maps at the image's size, positive part, scaled to [0, 1] each, (N, H, W).

    Args:
        model: any classifier that returns (N, classes).
        x: (N, C, H, W) in the space that the model takes.
        target: see :data:`striate.explain.base.Target`.
        method: key of :data:`METHODS`.
        **options: of the method.

    Raises:
        InputError: no such method or option.
    """
    return _info(method).factory(model, **options).attribute(x, target).normalized


def _info(name: str) -> MethodInfo:
    if name not in METHODS:
        allowed = f"one of {', '.join(METHODS)}"
        raise InputError("method", "striate.explain", allowed=allowed, got=name, hint=did_you_mean(name, METHODS))
    return METHODS[name]
