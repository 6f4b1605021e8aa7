"""Answering for a module inside a ``with`` block: with another forward, a given response, or an end to the pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from striate.engine.model import layer_name
from striate.errors import LayerError

__all__ = ["not_called", "replaced_forwards", "responding", "response_of"]

_OWN = object()


@contextmanager
def replaced_forwards(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules run other functions as their ``forward``; all is put back, also after an exception."""
    before = [(module, module.__dict__.get("forward", _OWN)) for module in replacements]
    try:
        for module, forward in replacements.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, forward in before:
            if forward is _OWN:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


@contextmanager
def responding(layer: nn.Module, response: Tensor) -> Iterator[list[Tensor]]:
    """Have ``layer`` give a response in place of its own; yields a list that grows by one for each call of it."""
    calls: list[Tensor] = []

    def forward(*arguments: Any, **named: Any) -> Tensor:
        calls.append(response)
        return response

    with replaced_forwards({layer: forward}):
        yield calls


class _ReachedError(Exception):
    """Ends a forward pass at a layer."""

    def __init__(self, response: Tensor) -> None:
        self.response = response


def response_of(run: Callable[[Tensor], Any], layer: nn.Module, images: Tensor) -> Tensor:
    """Return a layer's response (N, …) in ``run(images)``, of several calls the first, running nothing above it.

    Raises:
        RuntimeError: the layer was not called.
    """

    def leave(module: nn.Module, arguments: Any, output: Tensor) -> None:
        raise _ReachedError(output)

    hook = layer.register_forward_hook(leave)
    try:
        run(images)
    except _ReachedError as reached:
        return reached.response
    finally:
        hook.remove()
    raise RuntimeError("the layer was not reached")


def not_called(model: nn.Module, module: nn.Module) -> LayerError:
    """Return the error of a layer that a forward pass did not come to."""
    return LayerError(
        f"'{layer_name(model, module)}' was not called in the forward pass, so it has no response to explain."
    )
