"""Projected gradient descent (PGD): the iterated attack that a one-step attack is checked against.

Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
arXiv 1706.06083. One difference: where the softmax is saturated the cross entropy is climbed in its logit form, whose
direction is the same (see :func:`striate.stress.objective.objective`), so confident images are attacked too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from striate.errors import InputError
from striate.stress.objective import Bounds, Loss, attacked, check_images, check_labels, check_logits, input_gradient

__all__ = ["Norm", "pgd", "pgd_steps"]

Norm = Literal["linf", "l2"]


@torch.inference_mode(False)
def pgd(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor | None = None,
    eps: float = 8 / 255,
    *,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    targeted: bool = False,
    random_start: bool = True,
    bounds: Bounds = (0.0, 1.0),
    loss: Loss = "ce",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack ``model`` by ``steps`` projected gradient steps; it is evaluated in eval mode and leaves as it came.

    Args:
        model: a classifier (N, classes) on ``x`` as it is; pixels in [0, 1] for a :class:`striate.VisionModel`.
        x: (N, C, H, W) within ``bounds``; moved to where the model is.
        y: (N,) classes to leave (with ``targeted``: to reach); None takes the clean prediction, one forward more.
        eps: radius of the ball around each image, in the units of ``x``.
        norm: ``"linf"`` or ``"l2"``.
        steps: each costs one forward and one backward to the input.
        step_size: default 2.5 eps / steps, at most eps.
        targeted: move towards ``y`` instead of away.
        random_start: start at a uniform point of the ball instead of at ``x``.
        bounds: smallest and largest allowed value.
        loss: ``"ce"`` or ``"margin"``; see :func:`striate.stress.objective.objective`.
        generator: of the random start; None draws from a generator seeded with 0.

    Returns:
        Like ``x``, detached: within the ball and within ``bounds``, up to the rounding of one addition.

    Raises:
        InputError: eps < 0, x outside bounds, targeted without y, or a label that is no class.
        ModelError: no (N, classes) scores, or a gradient that is not finite.
    """
    x = check_images(x, "pgd", bounds, model)
    if targeted and y is None:
        raise InputError("y", "pgd", allowed="given for a targeted attack", got=None)
    with attacked(model) as forward:
        if y is None:
            with torch.no_grad():
                scores = forward(x)
            check_logits(scores, len(x), "pgd")
            y = scores.argmax(dim=1)
        return pgd_steps(
            forward,
            x,
            y,
            norm=norm,
            eps=eps,
            steps=steps,
            step_size=step_size,
            targeted=targeted,
            random_start=random_start,
            bounds=bounds,
            loss=loss,
            generator=generator,
        )


def pgd_steps(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "linf",
    eps: float = 8 / 255,
    steps: int = 10,
    step_size: float | None = None,
    targeted: bool = False,
    random_start: bool = False,
    bounds: Bounds = (0.0, 1.0),
    loss: Loss = "ce",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Run the steps of :func:`pgd` through a plain callable, for use inside a training loop.

    No mode is changed and no parameter receives a gradient: batch-norm layers behave as the caller left them.
    Arguments are those of :func:`pgd`.
    """
    step_size = _checked(norm, eps, steps, step_size, bounds)
    y = check_labels(y, x, "pgd")
    x = x.detach()
    # Steps below the resolution of half precision would be lost, so the iterate is kept in float32.
    centre = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
    project = _linf_projection(centre, eps, bounds) if norm == "linf" else _l2_projection(centre, eps, bounds)
    current = project(_random_start(centre, norm, eps, generator) if random_start else centre)
    for _ in range(steps):
        with torch.enable_grad():
            found = input_gradient(lambda z: forward(z.to(x.dtype)), current, y, loss, targeted=targeted, owner="pgd")
        direction = found.grad.sign() if norm == "linf" else _unit(found.grad, found.peak)
        current = project(current + step_size * direction)
    return current.to(x.dtype)


def _linf_projection(centre: Tensor, eps: float, bounds: Bounds) -> Callable[[Tensor], Tensor]:
    # Ball and bounds meet in one box: projecting is a single clamp.
    low, high = (centre - eps).clamp_min(bounds[0]), (centre + eps).clamp_max(bounds[1])
    return lambda point: point.clamp(low, high)


def _l2_projection(centre: Tensor, eps: float, bounds: Bounds) -> Callable[[Tensor], Tensor]:
    def project(point: Tensor) -> Tensor:
        step = point - centre
        length = step.flatten(1).norm(dim=1).clamp_min(torch.finfo(step.dtype).tiny)
        inside = centre + step * (eps / length).clamp_max(1).view(-1, *[1] * (step.dim() - 1))
        # Clipping to bounds that hold the centre shortens every coordinate of the step: it stays in the ball.
        return inside.clamp(*bounds)

    return project


def _unit(grad: Tensor, peak: Tensor) -> Tensor:
    """Scale each sample to L2 length 1; by its peak first, so that squares of tiny values do not underflow."""
    shape = (-1, *[1] * (grad.dim() - 1))
    scaled = grad / torch.where(peak > 0, peak, 1).view(shape)
    length = scaled.flatten(1).norm(dim=1)
    return scaled / torch.where(length > 0, length, 1).view(shape)


def _random_start(centre: Tensor, norm: Norm, eps: float, generator: torch.Generator | None) -> Tensor:
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    options = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    if norm == "linf":
        noise = (torch.rand(centre.shape, **options) * 2 - 1) * eps  # type: ignore[call-overload]
    else:
        noise = torch.randn(centre.shape, **options)  # type: ignore[call-overload]
        # Uniform in the ball of d dimensions: a uniform direction at radius eps u^(1/d).
        radius = eps * torch.rand(centre.shape[0], **options) ** (1 / centre[0].numel())  # type: ignore[call-overload]
        noise *= (radius / noise.flatten(1).norm(dim=1)).view(-1, *[1] * (centre.dim() - 1))
    return centre + noise.to(centre.device, centre.dtype)


def _checked(norm: str, eps: float, steps: int, step_size: float | None, bounds: Bounds) -> float:
    if norm not in {"linf", "l2"}:
        raise InputError("norm", "pgd", allowed="'linf' or 'l2'", got=norm)
    if not 0 <= eps < float("inf"):
        raise InputError("eps", "pgd", allowed=">= 0 and finite", got=eps)
    if steps < 0:
        raise InputError("steps", "pgd", allowed=">= 0", got=steps)
    if bounds[0] >= bounds[1]:
        raise InputError("bounds", "pgd", allowed="(low, high) with low < high", got=bounds)
    if step_size is not None and not 0 < step_size < float("inf"):
        raise InputError("step_size", "pgd", allowed="> 0 and finite", got=step_size)
    return min(eps, 2.5 * eps / max(steps, 1)) if step_size is None else step_size
