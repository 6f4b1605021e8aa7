"""The one calling convention of every explainer: ``Method(model, **options).attribute(inputs, target)``."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.state import device_of, inspected, seeded
from striate.errors import InputError, ModelError
from striate.explain.result import Attribution

__all__ = ["Explainer", "RawMap", "Target", "resolve_target", "score"]

Target = int | Sequence[int] | Tensor | Callable[[Tensor], Tensor] | None
"""What to explain: a class, one class per sample, ``logits -> (N,) scores``, or None for the predicted class."""


@dataclass(frozen=True)
class RawMap:
    """What a method computes before it becomes an :class:`Attribution` (same fields, same meaning)."""

    map: Tensor
    target: Tensor | Callable[[Tensor], Tensor]
    check: Check
    layer: str | None = None
    weights: Tensor | None = None
    activations: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Explainer(ABC):
    """Base of every explainer; a method implements ``_explain`` and declares the class attributes.

    Args:
        model: any classifier that returns (N, classes). It is evaluated in eval mode with frozen parameters and
            leaves as it came: mode, hooks, gradients, ``requires_grad`` and random state.
        seed: of methods that draw at random; the global generators are left as they were.
    """

    name: ClassVar[str]
    family: ClassVar[Literal["gradient", "cam", "perturbation"]]

    def __init__(self, model: nn.Module, *, seed: int = 0) -> None:
        self.model = model
        self.seed = seed

    def attribute(self, inputs: Tensor, target: Target = None) -> Attribution:
        """Explain ``target`` on ``inputs``.

        Args:
            inputs: (N, C, H, W) floating point, in the space that the model takes ([0, 1] for a
                :class:`striate.VisionModel`); moved to where the model is, and so is the map.
            target: see :data:`Target`.

        Returns:
            An :class:`Attribution`; it never requires grad.

        Raises:
            InputError: inputs of another shape or not finite; target out of range.
            ModelError: the model does not return finite (N, classes).
        """
        start = time.perf_counter()
        with self._prepared(inputs) as plain:
            raw = self._explain(plain, target)
        return Attribution(
            map=raw.map.detach(),
            method=self.name,
            target=_classes(raw.target, inputs.shape[0]),
            check=raw.check,
            seconds=time.perf_counter() - start,
            input_size=(inputs.shape[-2], inputs.shape[-1]),
            layer=raw.layer,
            weights=None if raw.weights is None else raw.weights.detach(),
            activations=None if raw.activations is None else raw.activations.detach(),
            notes=raw.notes,
        )

    __call__ = attribute

    @contextmanager
    def _prepared(self, inputs: Tensor) -> Iterator[Tensor]:
        """Check the inputs, hand the model over frozen and in eval mode with seeded generators, and put all back."""
        _check_inputs(inputs, type(self).__name__)
        # Outside callers may run under no_grad or inference_mode; what needs gradients must work there too.
        with torch.inference_mode(False), inspected(self.model), seeded(self.seed):
            plain = inputs.detach().clone() if inputs.is_inference() else inputs.detach()
            yield plain.to(device_of(self.model, plain.device))

    @abstractmethod
    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        """Compute the map; the model is in eval mode and frozen, generators are seeded.

        Implementations call :func:`resolve_target` on the first logits that they compute, so that no extra forward
        pass is spent on finding the predicted class, and hand the resolved target back.
        """


def resolve_target(logits: Tensor, target: Target, owner: str = "attribute") -> Tensor | Callable[[Tensor], Tensor]:
    """Return the target as (N,) long on the logits' device, or the callable unchanged.

    Args:
        logits: (N, classes).
        target: see :data:`Target`; None takes the predicted class.
        owner: named in errors.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{owner} needs a classifier that returns (N, classes); this one returned {shape}. "
            "Wrap it so that forward() returns the logits alone."
        )
    if not torch.isfinite(logits).all():
        raise ModelError(
            f"{owner}: the model returned NaN or infinite scores; look for NaN weights or a wrong input range."
        )
    if callable(target):
        return target
    n, classes = logits.shape
    if target is None:
        return logits.detach().argmax(dim=1)
    if isinstance(target, int):
        target = [target] * n
    picked = torch.as_tensor(target, device=logits.device)
    if picked.dim() == 0:
        picked = picked.expand(n)
    if picked.is_floating_point() or picked.is_complex() or picked.dtype == torch.bool:
        raise InputError("target", owner, allowed="whole numbers", got=str(picked.dtype))
    if picked.shape != (n,):
        raise InputError("target", owner, allowed=f"one class for each of {n} samples", got=tuple(picked.shape))
    if ((picked < 0) | (picked >= classes)).any():
        worst = int(picked[(picked < 0) | (picked >= classes)][0])
        raise InputError("target", owner, allowed=f"a class index from 0 to {classes - 1}", got=worst)
    return picked.long()


def score(logits: Tensor, target: Tensor | Callable[[Tensor], Tensor]) -> Tensor:
    """Return the (N,) scores that a resolved target picks from (N, classes) logits."""
    if callable(target):
        values = target(logits)
        if values.shape != (logits.shape[0],):
            raise InputError("target", "attribute", allowed="a callable that returns (N,)", got=tuple(values.shape))
        return values
    return logits.gather(1, target[:, None])[:, 0]


def _classes(target: Tensor | Callable[[Tensor], Tensor], n: int) -> Tensor:
    return target.detach().cpu() if isinstance(target, Tensor) else torch.full((n,), -1)


def _check_inputs(inputs: Tensor, owner: str) -> None:
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
        got = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        hint = "Add a batch dimension with inputs[None]." if isinstance(inputs, Tensor) and inputs.dim() == 3 else ""
        raise InputError("inputs", owner, allowed="a float tensor (N, C, H, W)", got=got, hint=hint)
    if inputs.numel() == 0:
        raise InputError("inputs", owner, allowed="at least one image", got=tuple(inputs.shape))
    # The extremes carry a NaN or an infinity anywhere, in a tenth of the time that a look at every value takes.
    if not torch.stack(inputs.aminmax()).isfinite().all():
        raise InputError("inputs", owner, allowed="finite", got="NaN or infinity")
