"""Does the attack itself work here? The tests an attack has to pass before its figures say anything about a network.

An attack that fails looks exactly like a robust network: model in training mode, normalisation at the wrong place, a
gradient that is zero. Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", 2018, arXiv
1802.00420, and Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv 1902.06705, list what to look for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.model import SigmoidOutputs, VisionModel, are_probabilities
from striate.engine.state import inspected
from striate.errors import InputError
from striate.stress.curve import FGSMCurve, fgsm_curve
from striate.stress.fgsm import fgsm, gradient_check
from striate.stress.normalisation import normalisation_check
from striate.stress.objective import check_images
from striate.stress.pgd import pgd

__all__ = ["attack_selftests"]

_OVERSHOOT = 0.6
_ABOUT_ZERO = 0.05
_NOTHING_RIGHT = "Not applicable: no image is right to begin with, so no attack can be seen to work or to fail."


def attack_selftests(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    curve: FGSMCurve | None = None,
    epsilons: Sequence[float] = (0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
    large_eps: float = 64 / 255,
    steps: int = 5,
    pgd_images: int = 8,
    batch_size: int = 16,
) -> list[Check]:
    """Test FGSM and PGD on this model and these images.

    Args:
        model: takes pixels in [0, 1]; it leaves as it came.
        images: (N, C, H, W) in [0, 1].
        labels: (N,), or None: then agreement with the clean prediction is what an attack has to break.
        curve: an FGSM curve that was measured on these images already; else one is measured at ``epsilons``.
        epsilons: of that curve.
        large_eps: an eps at which nothing should survive.
        steps: of PGD.
        pgd_images: PGD runs on the first so many images.
        batch_size: images at once.

    Returns:
        Checks named ``eval mode``, ``preprocessing``, ``normalisation``, ``logits``, ``eps 0``, ``gradient``,
        ``monotone``, ``PGD >= FGSM`` and ``large eps``, in this order; the last three are not applicable where (nearly)
        nothing is right to begin with.
    """
    if steps < 1 or pgd_images < 1:
        raise InputError("steps, pgd_images", "attack_selftests", allowed=">= 1", got=(steps, pgd_images))
    mode = _mode(model)
    with inspected(model, warn=False):
        images = check_images(images, "attack_selftests", (0.0, 1.0), model)
        curve = fgsm_curve(model, images, labels, epsilons=epsilons, batch_size=batch_size) if curve is None else curve
        few, y = images[:pgd_images], curve.labels[:pgd_images].to(images.device)
        right = bool(curve.clean[0, :pgd_images].any())
        return [
            mode,
            _preprocessing(model),
            normalisation_check(model, images),
            _logits(model, few),
            _zero_eps(model, few, y),
            gradient_check(curve.unmoved, curve.saturated),
            _monotone(curve),
            _stronger(model, few, y, next((eps for eps in curve.epsilons if eps > 0), large_eps), steps)
            if right
            else Check("PGD >= FGSM", None, _NOTHING_RIGHT),
            _large(model, few, y, large_eps, steps) if right else Check("large eps", None, _NOTHING_RIGHT),
        ]


def _mode(model: nn.Module) -> Check:
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if not training:
        return Check("eval mode", True, "The model came in eval mode and was attacked in it.")
    statement = f"The model came in training mode ({training[0]}); it was switched to eval mode for the attack."
    return Check("eval mode", False, statement)


def _preprocessing(model: nn.Module) -> Check:
    if not isinstance(model, VisionModel):
        statement = (
            "The model is a bare module: pixels in [0, 1] go in as they are, whatever it does inside; eps is in pixels."
        )
        return Check("preprocessing", None, statement)
    record = model.preprocessing
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (record.mean, record.std))
    statement = (
        f"Pixels in [0, 1] go in and are normalised inside the model, mean ({mean}), std ({std}) ({record.source}); "
        "eps and clipping are in pixels."
    )
    return Check("preprocessing", True, statement)


def _logits(model: nn.Module, images: Tensor) -> Check:
    """A softmax or sigmoid inside the model comes on top of the loss's softmax; the gradient dies where it is sure."""
    with torch.no_grad(), SigmoidOutputs() as sigmoids:
        scores = _scores(model, images[:2])
    if are_probabilities(scores):
        kind, sign = "softmax", "its scores add up to 1"
    elif sigmoids.hold(scores):
        kind, sign = "sigmoid", "one for each class by itself"
    else:
        return Check("logits", True, "The model returns logits: its scores are no probabilities.")
    statement = (
        f"The model returns probabilities ({sign}), so that the loss takes a softmax on top and hides gradients; hand "
        f"the model over without its last {kind}."
    )
    return Check("logits", False, statement)


def _zero_eps(model: nn.Module, images: Tensor, y: Tensor) -> Check:
    moved = [fgsm(model, images, y, 0.0), pgd(model, images, y, 0.0, steps=1)]
    with torch.no_grad():
        scores = _scores(model, images)
        if not torch.equal(_scores(model, images), scores):
            statement = (
                "The same images get other scores in a second pass: the network draws at random, so every figure here "
                "is that of one draw, and an attack should average its gradient over several."
            )
            return Check("eps 0", False, statement)
        same = all(torch.equal(other, images) and torch.equal(_scores(model, other), scores) for other in moved)
    words = "are the clean images, bit for bit" if same else "differ from the clean images or their scores"
    return Check("eps 0", same, f"At eps = 0 the attacked images {words}.")


def _monotone(curve: FGSMCurve) -> Check:
    """Error may fall again only after it has passed 60 %: a step that is too long overshoots."""
    n = len(curve.labels)
    errors = [curve.error("clean")[0].value, *[interval.value for interval in curve.error("fgsm")]]
    if errors[0] > _OVERSHOOT:
        statement = f"Not applicable: {100 * errors[0]:.0f} % are wrong before any attack."
        return Check("monotone", None, statement, errors[0], _OVERSHOOT)
    until = next((i for i, error in enumerate(errors) if error > _OVERSHOOT), len(errors) - 1)
    drops = [errors[i] - errors[i + 1] for i in range(until)]
    worst, bound = max(0.0, *drops, 0.0), max(1, round(0.02 * n)) / n
    shown = ", ".join(f"{100 * error:.0f}" for error in errors)
    statement = (
        f"Error in percent at eps 0 and upwards: {shown}; largest fall before overshoot {100 * worst:.0f} points."
    )
    return Check("monotone", worst <= bound + 1e-9, statement, worst, bound)


def _stronger(model: nn.Module, images: Tensor, y: Tensor, eps: float, steps: int) -> Check:
    one = _kept(model, fgsm(model, images, y, eps), y)
    many = _kept(model, pgd(model, images, y, eps, steps=steps, random_start=False), y)
    at = f"At eps = {255 * eps:.3g}/255"
    statement = f"{at}, {steps} PGD steps leave {many} of {len(y)} images right, one FGSM step leaves {one}."
    return Check("PGD >= FGSM", many <= one, statement, many / len(y), one / len(y))


def _large(model: nn.Module, images: Tensor, y: Tensor, eps: float, steps: int) -> Check:
    share = _kept(model, pgd(model, images, y, eps, steps=steps), y) / len(y)
    statement = f"At eps = {255 * eps:.3g}/255, {steps} PGD steps leave {100 * share:.0f} % of {len(y)} images right."
    return Check("large eps", share <= _ABOUT_ZERO, statement, share, _ABOUT_ZERO)


def _kept(model: nn.Module, images: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((_scores(model, images).argmax(dim=1) == y).sum())


def _scores(model: nn.Module, images: Tensor) -> Tensor:
    """Return the scores of a copy of the images: some networks normalise their input in place."""
    return model(images.clone())
