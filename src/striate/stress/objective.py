"""What an attack climbs: a loss whose direction survives a saturated softmax, and its gradient at the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.state import device_of, inspected
from striate.errors import InputError, ModelError

__all__ = ["Bounds", "Gradient", "Loss", "attacked", "check_classes", "check_images", "check_labels", "check_logits",
           "input_gradient", "objective"]  # fmt: skip

Loss = Literal["ce", "margin"]
Bounds = tuple[float, float]


class Gradient(NamedTuple):
    """Gradient of the summed objective at the input.

    Attributes:
        grad: like the input, float32 or wider.
        peak: (N,) largest magnitude of each image's gradient; 0 means that no pixel can be moved by its sign.
        logits: (N, classes), detached, float32 or wider.
        saturated: (N,) bool, images whose cross entropy was replaced by its logit form.
    """

    grad: Tensor
    peak: Tensor
    logits: Tensor
    saturated: Tensor


def objective(logits: Tensor, y: Tensor, loss: Loss = "ce", *, targeted: bool = False) -> tuple[Tensor, Tensor]:
    """Return what an attack increases, summed over the batch, and which images were saturated.

    Cross entropy is softplus(u) with u = log Σ_{j≠y} exp z_j − z_y, so its gradient is sigmoid(u) ∇u. Where p(y) ≈ 1
    that factor loses its digits and then underflows to 0, although the *direction* ∇u is as good as ever; a sign taken
    there would call the image robust. Those images climb u itself. Per image only a positive factor changes, so
    attacks that use the sign or the normalised gradient follow the very cross-entropy direction.

    Args:
        logits: (N, classes >= 2).
        y: (N,) long; the class to leave, or with ``targeted`` the class to reach.
        loss: ``"ce"``, or ``"margin"``: max_{j≠y} z_j − z_y.
        targeted: decrease the loss of ``y`` instead.

    Returns:
        Scalar objective; (N,) bool, all False for the margin. The sum, unlike the mean, does not shrink an
        image's gradient with the size of its batch.
    """
    logits = logits.float() if logits.dtype in {torch.float16, torch.bfloat16} else logits
    chosen = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf)
    if loss == "margin":
        values, saturated = others.amax(dim=1) - chosen, torch.zeros_like(y, dtype=torch.bool)
    else:
        margin = others.logsumexp(dim=1) - chosen
        # sigmoid(u) = 1 − p(y). Below sqrt(machine epsilon) half of its digits are gone.
        saturated = margin.detach().sigmoid() < torch.finfo(logits.dtype).eps ** 0.5
        values = torch.where(saturated, margin, F.cross_entropy(logits, y, reduction="none"))
    return (-values if targeted else values).sum(), saturated


def input_gradient(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor | None,
    loss: Loss = "ce",
    *,
    targeted: bool = False,
    owner: str = "attack",
) -> Gradient:
    """Return the gradient of :func:`objective` with respect to ``x``: one forward, one backward, nothing else.

    Parameters get no gradient, whether frozen or not.

    Args:
        forward: images to logits (N, classes).
        x: (N, ...) floating point; half precision is differentiated through a float32 copy.
        y: (N,) long, or None for the predicted class of this very pass.
        loss, targeted: see :func:`objective`.
        owner: named in errors.
    """
    half = x.dtype in {torch.float16, torch.bfloat16}
    leaf = (x.float() if half else x).detach().requires_grad_()
    logits = forward(leaf.to(x.dtype))
    check_logits(logits, x.shape[0], owner)
    if y is None:
        y = logits.detach().argmax(dim=1)
    else:
        check_classes(y, logits.shape[1], owner)
    total, saturated = objective(logits, y, loss, targeted=targeted)
    if not total.requires_grad:
        raise ModelError(f"{owner}: the scores do not depend on the input differentiably; is there a detach()?")
    (grad,) = torch.autograd.grad(total, leaf, allow_unused=True)
    if grad is None:
        raise ModelError(f"{owner}: the scores do not depend on the input, so there is no gradient to follow.")
    peak = grad.flatten(1).abs().amax(dim=1)
    if not torch.isfinite(peak).all():
        raise ModelError(f"{owner}: the gradient at the input holds NaN or infinity; look for NaN weights.")
    return Gradient(grad, peak, logits.detach(), saturated)


@contextmanager
def attacked(model: nn.Module | Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Let gradients flow to the input of ``model`` alone, also under ``no_grad``; it leaves as it came.

    A module is put in eval mode with frozen parameters for the time, and on the CPU its images are handed over in
    channels_last, where convolutions and their backward passes are faster; a plain callable is used as it is. A module
    gets a copy, because some normalise their input in place, which would change the images of whoever attacks.
    """
    state = inspected(model) if isinstance(model, nn.Module) else nullcontext(model)
    with torch.inference_mode(False), torch.enable_grad(), state as ready:
        yield _ChannelsLast(ready) if isinstance(ready, nn.Module) else ready


class _ChannelsLast:
    """A model called with float32 CPU images in channels_last, until it turns out to take only the classical layout."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.taken = model, True

    def __call__(self, images: Tensor) -> Tensor:
        if self.taken and images.dim() == 4 and images.device.type == "cpu" and images.dtype == torch.float32:
            try:
                return self.model(images.clone(memory_format=torch.channels_last))
            except RuntimeError:  # a network that flattens with .view(); any other cause comes again, to the caller
                self.taken = False
        return self.model(images.clone())


def check_images(x: Tensor, owner: str, bounds: Bounds | None = None, model: object = None) -> Tensor:
    """Return ``x`` detached, or raise :class:`InputError`: not a float batch, not finite, outside ``bounds``.

    Where ``model`` is a module with parameters or buffers, ``x`` comes back on its device.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or x.shape[0] == 0:
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError("x", owner, allowed="a non-empty float batch (N, C, H, W)", got=got)
    low, high = (float(value) for value in x.detach().aminmax())
    if not (low > -torch.inf and high < torch.inf):
        raise InputError("x", owner, allowed="finite", got="NaN or infinity")
    if bounds is not None and (low < bounds[0] or high > bounds[1]):
        raise InputError(
            "x",
            owner,
            allowed=f"within bounds {bounds}",
            got=f"values from {low:.4g} to {high:.4g}",
            hint="Hand pixels to a model that normalises inside, or give mean and std.",
        )
    with torch.inference_mode(False):  # inside inference mode a copy would be an inference tensor again
        x = x.detach().clone() if x.is_inference() else x.detach()
        return x.to(device_of(model, x.device)) if isinstance(model, nn.Module) else x


def check_labels(y: Tensor, x: Tensor, owner: str) -> Tensor:
    """Return ``y`` as (N,) long on the device of ``x``, or raise :class:`InputError`."""
    y = torch.as_tensor(y, device=x.device)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != (x.shape[0],):
        raise InputError("y", owner, allowed=f"{x.shape[0]} whole numbers", got=f"{y.dtype} {tuple(y.shape)}")
    with torch.inference_mode(False):
        return y.clone().long() if y.is_inference() else y.long()


def check_classes(y: Tensor, classes: int, owner: str) -> None:
    """Raise :class:`InputError` where a label is no index of ``classes`` scores."""
    outside = y[(y < 0) | (y >= classes)]
    if outside.numel():
        raise InputError("y", owner, allowed=f"class indices from 0 to {classes - 1}", got=int(outside[0]))


def check_logits(logits: Tensor, n: int, owner: str) -> None:
    """Raise :class:`ModelError` where ``logits`` are no scores (n, classes >= 2)."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != n or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{owner} needs a classifier that returns (N, classes) with at least two classes; this one returned {got}."
        )
