"""Does a map depend on what the network has learned? The model-randomisation check.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim, "Sanity Checks for Saliency Maps", 2018, arXiv 1810.03292. The network
is re-initialised in a cascade from the logits down to the input, and the map of the same class is drawn again after
each stage. A method whose map stays as it was explains the image (its edges, say), not the network.

Three choices the paper leaves open. Layers are ordered as they start in a forward pass, not as they are written down;
a large network is randomised in a few stages of neighbouring layers, the last layer always alone first. The running
statistics of a re-initialised batch norm are measured anew on the images given: with those of the trained network, or
with mean 0 and variance 1, the signal would fade out or blow up, and the map would change for that reason. Maps are
compared as they are shown (positive part, in [0, 1]); a map that becomes constant keeps no order: its correlation is 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from striate.engine.check import Check
from striate.engine.model import no_torchscript
from striate.engine.state import device_of, inspected, seeded
from striate.errors import InputError, ModelError
from striate.explain.base import Explainer, Target, resolve_target

__all__ = ["Randomization", "randomization_check"]


@dataclass(frozen=True)
class Randomization:
    """How alike the maps stay while the network is randomised from the top.

    Attributes:
        stages: (S,) the lowest layer re-initialised so far; the last stage is the whole network.
        spearman: (S, N) rank correlation of each image's map with its original, float64.
        ssim: (S, N) structural similarity of the two, float64.
        target: (N,) long, the class explained throughout: the trained network's, where none was given.
        check: passes if the mean rank correlation is at most the bound once the whole network is random.
    """

    stages: tuple[str, ...]
    spearman: Tensor
    ssim: Tensor
    target: Tensor
    check: Check

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "stages": list(self.stages),
            "spearman": self.spearman.tolist(),
            "ssim": self.ssim.tolist(),
            "target": self.target.tolist(),
            "check": self.check.to_dict(),
        }

    def __repr__(self) -> str:
        mark = {True: "passed", False: "FAILED", None: "not applicable"}[self.check.passed]
        return f"<Randomization in {len(self.stages)} stages: {mark}. {self.check.statement}>"


def randomization_check(
    model: nn.Module,
    inputs: Tensor,
    method: str | Callable[..., Explainer],
    *,
    target: Target = None,
    stages: int = 8,
    bound: float = 0.5,
    seed: int = 0,
    **options: Any,
) -> Randomization:
    """Explain the same class on a copy of ``model`` that is re-initialised layer by layer, and compare the maps.

    Args:
        model: classifier (N, classes); only a copy of it is changed.
        inputs: (N, C, H, W), in the space that the model takes; several images, since one may agree by chance. Moved to
            where the model is.
        method: a key of :data:`striate.explain.METHODS`, or a callable that makes an explainer of a network.
        target: see :data:`striate.explain.base.Target`; None takes the class that ``model`` predicts, at every stage.
        stages: at most this many; fewer where the network has fewer layers with weights.
        bound: largest mean rank correlation that passes. A convention: 0.5 leaves room for what every map shares
            with the image, and lies far below the 0.9 and more of methods known to ignore the network.
        seed: of the new weights.
        options: of the method, e.g. ``layer="layer4"``; name layers by path, for the copy has its own.

    Raises:
        ModelError: the network cannot be copied or has no weights, or is TorchScript.
        InputError: stages < 1 or bound outside [0, 1].
    """
    if stages < 1:
        raise InputError("stages", "randomization_check", allowed=">= 1", got=stages)
    if not 0 <= bound <= 1:
        raise InputError("bound", "randomization_check", allowed="in [0, 1]", got=bound)
    make, inputs = _maker(method), inputs.to(device_of(model, inputs.device))
    try:
        network = copy.deepcopy(model).eval()
    except Exception as error:
        raise ModelError(f"randomization_check: {type(model).__name__} cannot be copied: {error}") from error
    classes, layers = _classes_and_layers(model, network, inputs, target)
    before = make(model, **options).attribute(inputs, classes)
    original = _arrays(before.normalized)
    groups = _grouped(layers, stages)
    spearman, ssim, changed = [], [], []
    norms: list[_BatchNorm] = []
    for number, group in enumerate(groups):
        modules = [module for _, module in group]
        _randomize(modules, seed + number)
        norms += [module for module in modules if isinstance(module, _BatchNorm) and module.running_mean is not None]
        # Those of earlier stages too: what comes into them has changed.
        _measure(network, norms, inputs)
        maps = _arrays(make(network, **options).attribute(inputs, classes).normalized)
        spearman.append([_spearman(a, b) for a, b in zip(original, maps, strict=True)])
        ssim.append([_ssim(a, b) for a, b in zip(original, maps, strict=True)])
        changed.append(group[-1][0])
    constant = [bool(np.ptp(array) == 0) for array in original]
    check = _check(before.method, spearman[-1], constant, bound)
    return Randomization(
        tuple(changed), torch.tensor(spearman).double(), torch.tensor(ssim).double(), before.target, check
    )


def _maker(method: str | Callable[..., Explainer]) -> Callable[..., Explainer]:
    if not isinstance(method, str):
        return method
    from striate.explain.registry import get_method

    return get_method(method)


def _classes_and_layers(
    model: nn.Module, network: nn.Module, inputs: Tensor, target: Target
) -> tuple[Any, list[tuple[str, nn.Module]]]:
    """Return the classes that ``model`` gives, and the weighted layers of ``network`` from the logits down."""
    no_torchscript(network, "randomization_check")
    started: list[nn.Module] = []
    weighted = {
        module: name
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not isinstance(module, nn.ParameterList)
    }
    if not weighted:
        raise ModelError(f"randomization_check: {type(network).__name__} has no weights that could be randomised.")
    hooks = [module.register_forward_pre_hook(lambda module, _: started.append(module)) for module in weighted]
    try:
        with inspected(model), torch.no_grad():
            logits = model(inputs)
            classes = resolve_target(logits, target, "randomization_check")
            network(inputs[:1])
    finally:
        for hook in hooks:
            hook.remove()
    first = {module: place for place, module in reversed(list(enumerate(started)))}
    places: dict[nn.Module, tuple[int, int]] = {}
    place = -1
    for order, module in enumerate(weighted):
        # A layer that its parent calls by function (attention's projections) starts with the one written before it.
        place = first.get(module, place)
        places[module] = (place, order)
    from_the_top = sorted(weighted, key=lambda module: places[module], reverse=True)
    return classes, [(weighted[module] or "(the network's own parameters)", module) for module in from_the_top]


def _grouped(layers: list[tuple[str, nn.Module]], stages: int) -> list[list[tuple[str, nn.Module]]]:
    """Split the layers into stages: the topmost alone, the rest evenly."""
    if stages == 1 or len(layers) == 1:
        return [layers]
    rest = layers[1:]
    count = min(stages - 1, len(rest))
    ends = [round(len(rest) * number / count) for number in range(count + 1)]
    return [layers[:1], *[rest[a:b] for a, b in pairwise(ends)]]


def _randomize(modules: list[nn.Module], seed: int) -> None:
    """Re-initialise the modules' own parameters in place."""
    with seeded(seed), torch.no_grad():
        for module in modules:
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                # Class tokens, position tables, scales: no rule of their own, so a normal of the trained spread.
                spread = parameter.float().std() if parameter.numel() > 1 else torch.zeros(())
                parameter.copy_(torch.randn_like(parameter) * spread.to(parameter) + parameter.mean())


def _measure(network: nn.Module, norms: list[_BatchNorm], inputs: Tensor) -> None:
    """Set the running statistics of each norm, in forward order, to those of what comes into it on ``inputs``."""

    def measure(norm: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].transpose(0, 1).flatten(1)  # (channels, values)
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(x.mean(dim=1))
            # A single value, or a channel that is constant here, has no spread: divide by 1.
            spread = x.var(dim=1, unbiased=False)
            norm.running_var.copy_(torch.where(spread > 0, spread, 1))

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        with torch.no_grad():
            if norms:
                network(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _arrays(maps: Tensor) -> list[np.ndarray]:
    return list(maps.detach().cpu().double().numpy())


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _ssim(first: np.ndarray, second: np.ndarray) -> float:
    from skimage.metrics import structural_similarity

    side = min(7, min(first.shape) - (min(first.shape) + 1) % 2)  # an odd window that fits
    if side < 3:
        return float("nan")
    return float(structural_similarity(first, second, data_range=1.0, win_size=side))


def _check(method: str, last: list[float], constant: list[bool], bound: float) -> Check:
    usable = [value for value, flat in zip(last, constant, strict=True) if not flat]
    if not usable:
        return Check("model randomisation", None, f"Every map of {method} is constant already on the trained network.")
    value = float(np.mean(usable))
    verdict = "depends on the network's weights" if value <= bound else "hardly depends on the network's weights"
    statement = (
        f"{method} {verdict}: with all weights random its maps keep a rank correlation of {value:.2f} "
        f"with the original ones (at most {bound:g} passes), over {len(usable)} images."
    )
    return Check("model randomisation", value <= bound, statement, value, bound)
