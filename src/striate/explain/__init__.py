"""Explaining a network's answer: attribution maps, each with its own check, and the metrics that judge them.

Every method is called alike: ``Method(model, **options).attribute(inputs, target)`` returns an
:class:`~striate.explain.result.Attribution`. :data:`METHODS` lists them by name, :func:`attribute` runs one by name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from striate.explain.axioms import AxiomReport, ScoreDecomposition, axiom_report, score_decomposition
    from striate.explain.base import Explainer, RawMap, Target, resolve_target, score
    from striate.explain.bench import ExplainabilityBench, confidence_confound
    from striate.explain.cam import CAM, AblationCAM, GradCAM, GradCAMPlusPlus, ScoreCAM, XGradCAM
    from striate.explain.curves import Curve, deletion, insertion
    from striate.explain.gradient import Gradient, GradientSHAP, InputXGradient, IntegratedGradients, SmoothGrad
    from striate.explain.guided import GuidedBackprop, GuidedGradCAM, GuidedXGradCAM
    from striate.explain.lime import LIME
    from striate.explain.localisation import energy_in_box, energy_in_mask, pointing_game, tune_alpha, wsl
    from striate.explain.meaningful_perturbation import MeaningfulPerturbation
    from striate.explain.occlusion import Occlusion
    from striate.explain.registry import METHODS, MethodInfo, attribute, get_method
    from striate.explain.result import Attribution, normalize
    from striate.explain.rise import RISE
    from striate.explain.rollout import attention_rollout
    from striate.explain.sanity import randomization_check
    from striate.explain.target_layer import TargetLayer, find_target_layer

__all__ = [
    "CAM",
    "LIME",
    "METHODS",
    "RISE",
    "AblationCAM",
    "Attribution",
    "AxiomReport",
    "Curve",
    "ExplainabilityBench",
    "Explainer",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientSHAP",
    "GuidedBackprop",
    "GuidedGradCAM",
    "GuidedXGradCAM",
    "InputXGradient",
    "IntegratedGradients",
    "MeaningfulPerturbation",
    "MethodInfo",
    "Occlusion",
    "RawMap",
    "ScoreCAM",
    "ScoreDecomposition",
    "SmoothGrad",
    "Target",
    "TargetLayer",
    "XGradCAM",
    "attention_rollout",
    "attribute",
    "axiom_report",
    "confidence_confound",
    "deletion",
    "energy_in_box",
    "energy_in_mask",
    "find_target_layer",
    "get_method",
    "insertion",
    "normalize",
    "pointing_game",
    "randomization_check",
    "resolve_target",
    "score",
    "score_decomposition",
    "tune_alpha",
    "wsl",
]

_HOMES = {
    "axioms": ("AxiomReport", "ScoreDecomposition", "axiom_report", "score_decomposition"),
    "base": ("Explainer", "RawMap", "Target", "resolve_target", "score"),
    "bench": ("ExplainabilityBench", "confidence_confound"),
    "cam": ("CAM", "AblationCAM", "GradCAM", "GradCAMPlusPlus", "ScoreCAM", "XGradCAM"),
    "curves": ("Curve", "deletion", "insertion"),
    "gradient": ("Gradient", "GradientSHAP", "InputXGradient", "IntegratedGradients", "SmoothGrad"),
    "guided": ("GuidedBackprop", "GuidedGradCAM", "GuidedXGradCAM"),
    "lime": ("LIME",),
    "localisation": ("energy_in_box", "energy_in_mask", "pointing_game", "tune_alpha", "wsl"),
    "meaningful_perturbation": ("MeaningfulPerturbation",),
    "occlusion": ("Occlusion",),
    "registry": ("METHODS", "MethodInfo", "attribute", "get_method"),
    "result": ("Attribution", "normalize"),
    "rise": ("RISE",),
    "rollout": ("attention_rollout",),
    "sanity": ("randomization_check",),
    "target_layer": ("TargetLayer", "find_target_layer"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the package itself imports nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module 'striate.explain' has no attribute '{name}'")
    return getattr(importlib.import_module(f"striate.explain.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
