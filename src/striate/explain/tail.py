"""Running only the part of a network above a layer, for many replaced responses of that layer.

Works for any module whose forward pass is Python, without tracing: one forward pass is recorded. In a tail pass every
outermost module that had returned before the layer did returns its recorded output instead of computing, the layer
returns the response it is given, and all above runs as it is written. A module called several times replays call by
call. Whether this gives the network's own output is measured when a :class:`Tail` is made; where it does not (control
flow that depends on the data, tensors shared in ways that cannot be replayed), the whole network is run with the
response replaced, which is slower and gives the same numbers, and ``Tail.exact`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from striate.engine.model import get_layer, layer_name
from striate.errors import InputError, LayerError, ModelError
from striate.explain.batching import laid_out
from striate.explain.forwards import not_called, replaced_forwards

__all__ = ["Response", "Tail", "respond"]


class Response(NamedTuple):
    """One forward pass in which a gradient graph starts at a layer.

    Attributes:
        output: what the model returned, with a graph down to ``leaf``.
        leaf: the layer's response; a leaf that requires grad and that nothing above changes in place.
        layout: memory format in which the model took the images.
    """

    output: Any
    leaf: Tensor
    layout: torch.memory_format


def respond(model: nn.Module, layer: str | nn.Module, inputs: Tensor) -> Response:
    """Run the model once and build a gradient graph from the layer upwards only.

    With frozen parameters (:func:`striate.engine.state.inspected`) nothing below the layer is kept for a backward pass.
    What goes on to the layers above is a clone: an in-place ReLU there leaves ``leaf`` as the layer returned it.
    For a layer called several times the last call counts. The images go in in the layout that is fastest.

    Raises:
        LayerError: the layer is not in the model, was not called, or returned no tensor.
    """
    module = get_layer(model, layer)
    leaf: Tensor | None = None

    def run(layout: torch.memory_format) -> Response:
        nonlocal leaf
        leaf = None
        forwards = _light_convolutions(model) if layout == torch.channels_last else {}
        original = forwards.get(module, module.forward)

        def forward(*arguments: Any, **named: Any) -> Tensor:
            nonlocal leaf
            leaf = _tensor(original(*arguments, **named), model, module).detach().requires_grad_()
            return leaf.clone()

        with torch.enable_grad(), replaced_forwards({**forwards, module: forward}):
            output = model(inputs.contiguous(memory_format=layout))
        if leaf is None:
            raise not_called(model, module)
        return Response(output, leaf, layout)

    return laid_out(run, inputs)[0]


def _light_convolutions(model: nn.Module) -> dict[nn.Module, Callable[..., Any]]:
    """Return a forward for each convolution with which it does not copy its weights for a small channels-last input.

    A convolution of a channels-last input brings its weights into that layout, in each call. Where these are many times
    the input, the input is brought into their layout instead; no value changes. (ResNet-18 on one image: a fifth less
    time.)
    """

    def light(convolution: nn.Conv2d) -> Callable[..., Any]:
        original = convolution.forward

        def forward(*arguments: Any, **named: Any) -> Any:
            weight = convolution.weight
            in_order = weight.is_contiguous(memory_format=torch.channels_last)
            if len(arguments) == 1 and not in_order and weight.numel() > _HEAVY * arguments[0].numel():
                arguments = (arguments[0].contiguous(),)
            return original(*arguments, **named)

        return forward

    return {module: light(module) for module in model.modules() if isinstance(module, nn.Conv2d)}


class Tail:
    """The part of a network above a layer.

    Args:
        model: any classifier, in eval mode (call inside :func:`striate.engine.state.inspected`).
        layer: path or module; for a layer called several times the last call counts.
        inputs: (N, …) what the recorded pass is run on.

    Attributes:
        layer: the layer.
        output: (N, classes) of the recorded pass.
        response: (N, …) the layer's response in it, as the layer gives it.
        exact: False where the whole network has to run each time.
        reason: why, if it has to.

    Raises:
        LayerError: the layer is not in the model, was not called, or returned no tensor.
        ModelError: the scores are not finite, or change from call to call or with the other images of the batch, so
            that no replacement means anything.

    >>> _ = torch.manual_seed(0)
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    >>> with torch.no_grad():
    ...     tail = Tail(network, "1", torch.rand(2, 3, 8, 8))
    ...     scores = tail(torch.zeros(7, 4, 6, 6), samples=1)
    >>> scores.shape, tail.exact
    (torch.Size([7, 5]), True)
    """

    def __init__(self, model: nn.Module, layer: str | nn.Module, inputs: Tensor) -> None:
        self._model, self._inputs = model, inputs
        self.layer = get_layer(model, layer)
        self.exact, self.reason = True, ""
        self.output: Tensor
        self.response: Tensor
        with torch.no_grad():
            for copied in (False, True):
                self._plan, self._copied = self._record(copied), copied
                if self._agrees():
                    return
            self.exact = False
            self.reason = "replaying what lies below the layer does not give the network's own output"
            if not self._agrees():
                raise ModelError(
                    f"{type(model).__name__} gives another output for the same image when it is run again in another "
                    "batch, even in eval mode; nothing that replaces a layer's response can be measured on it."
                )

    def __call__(self, responses: Tensor, samples: int | Tensor | None = None) -> Tensor:
        """Return the model's output (M, classes) for M replaced responses.

        Gradients flow to ``responses`` where grad mode is on.

        Args:
            responses: (M, …) in the layer's own layout.
            samples: which of the N recorded images each belongs to: one index for all (fastest: nothing recorded is
                copied), (M,) indices, or None where responses are one for each image in order.
        """
        n, m = len(self._inputs), len(responses)
        if responses.shape[1:] != self.response.shape[1:]:
            allowed = f"of shape (M, {', '.join(map(str, self.response.shape[1:]))})"
            raise InputError("responses", "Tail", allowed=allowed, got=tuple(responses.shape))
        if samples is None and m != n:
            raise InputError("responses", "Tail", allowed=f"{n} rows unless samples are given", got=m)
        return self.run(responses, samples)

    def run(self, responses: Tensor, samples: int | Tensor | None = None) -> Any:
        """Return what the model does with responses of any size: crops, say, up to a layer at which the pass ends."""
        n, m = len(self._inputs), len(responses)
        if not self.exact:
            inputs = _pick(self._inputs, n, m, samples)
            return self._run(responses, self._model, (inputs,), skip=self._plan.calls - 1)
        start = self._plan.start
        arguments, named = tree_map(lambda leaf: _pick(leaf, n, m, samples), (start.arguments, start.named))
        recorded = {module: self._replay(outputs, m, samples) for module, outputs in self._plan.replays.items()}
        return self._run(responses, start.module, arguments, named=named, recorded=recorded)

    @classmethod
    def several(cls, model: nn.Module, layers: Sequence[nn.Module], inputs: Tensor) -> list[Self]:
        """Record one pass for the tails above several layers.

        Whether these give the network's own output is for the caller to measure.

        Args:
            model, inputs: see :class:`Tail`.
            layers: each called once.
        """
        recorders = [_Recorder(model, layer, copied=False) for layer in layers]
        with ExitStack() as watched, torch.no_grad():
            for recorder in recorders:
                watching = {module: recorder.watch(module) for module in model.modules()}
                watched.enter_context(replaced_forwards(watching))
            output = model(inputs)
        return [cls._of(model, inputs, recorder, output) for recorder in recorders]

    @classmethod
    def _of(cls, model: nn.Module, inputs: Tensor, recorder: _Recorder, output: Any) -> Self:
        tail = cls.__new__(cls)
        tail._model, tail._inputs = model, inputs
        tail.layer, tail.exact, tail.reason = recorder.layer, True, ""
        tail._plan, tail._copied = tail._take(recorder, output), recorder.copied
        return tail

    def _record(self, copied: bool) -> _Plan:
        recorder = _Recorder(self._model, self.layer, copied)
        with replaced_forwards({module: recorder.watch(module) for module in self._model.modules()}):
            output = self._model(self._inputs)
        return self._take(recorder, output)

    def _take(self, recorder: _Recorder, output: Any) -> _Plan:
        if recorder.response is None:
            raise not_called(self._model, self.layer)
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(self._inputs):
            raise ModelError(f"{type(self._model).__name__} must return one tensor with a row for each image.")
        if not torch.isfinite(output).all():
            raise ModelError(f"{type(self._model).__name__} returned NaN or infinite scores; look for NaN weights.")
        self.output, self.response = output, recorder.response
        self._changed_above = recorder.changed_above()
        return recorder.plan(output)

    def _replay(self, outputs: Sequence[Any], m: int, samples: int | Tensor | None) -> Iterator[Any]:
        def give(leaf: Any) -> Any:
            picked = _pick(leaf, len(self._inputs), m, samples)
            return picked.clone() if self._copied and isinstance(picked, Tensor) else picked

        return (tree_map(give, output) for output in outputs)

    def _run(
        self,
        responses: Tensor,
        start: nn.Module,
        arguments: Sequence[Any],
        *,
        named: Mapping[str, Any] | None = None,
        recorded: Mapping[nn.Module, Iterator[Any]] | None = None,
        skip: int = 0,
    ) -> Tensor:
        """Run ``start`` with recorded outputs and with the layer's response replaced after ``skip`` calls of it."""
        called = 0
        recorded = recorded or {}

        def replay(module: nn.Module) -> Callable[..., Any]:
            original, outputs = module.forward, recorded.get(module, iter(()))

            def forward(*arguments: Any, **named: Any) -> Any:
                nonlocal called
                known = next(outputs, _NONE)
                if known is not _NONE:
                    return known
                if module is not self.layer:
                    return original(*arguments, **named)
                called += 1
                if called <= skip:
                    return original(*arguments, **named)
                # An in-place operation above must not reach the caller's tensor.
                return responses.clone() if responses.requires_grad or self._changed_above else responses

            return forward

        with replaced_forwards({module: replay(module) for module in {*recorded, self.layer}}):
            output = start(*arguments, **(named or {}))
        if called != skip + 1:
            raise RuntimeError(f"the layer was called {called} times where {skip + 1} were recorded")
        return output

    def _agrees(self) -> bool:
        """Whether the tail, given the response that was recorded, twice, answers as the whole network did."""
        last = len(self._inputs) - 1
        responses = self.response[last:].expand(2, *self.response.shape[1:]).clone()
        versions = [leaf._version for leaf in self._leaves()]
        try:
            output = self(responses, last)
        except (RuntimeError, InputError):  # an in-place change of a record, or shapes that do not follow the batch
            return False
        if not isinstance(output, Tensor) or output.shape[1:] != self.output.shape[1:] or len(output) != 2:
            return False
        if versions != [leaf._version for leaf in self._leaves()]:
            return False
        return bool((output - self.output[last]).abs().max() <= _tolerance(self.output))

    def _leaves(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(self._plan.replays) if isinstance(leaf, Tensor)]


_NONE = object()

_HEAVY = 4
"""Weights that are more than so many times the input are heavy; measured, 1 to 8 do equally well."""


@dataclass(eq=False)
class _Frame:
    """One call of a module that is still running: its arguments and what returned inside it so far."""

    module: nn.Module
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    done: list[tuple[nn.Module, Any]] = field(default_factory=list)
    output: Any = None


class _Plan(NamedTuple):
    """What a tail pass needs: the call to repeat, what returns inside it unrun, and the layer's calls in all."""

    start: _Frame
    replays: dict[nn.Module, list[Any]]
    calls: int


class _Recorder:
    """Watches one forward pass: which calls had returned when the layer did, and which were still running."""

    def __init__(self, model: nn.Module, layer: nn.Module, copied: bool) -> None:
        self.model, self.layer, self.copied = model, layer, copied
        self.running: list[_Frame] = []
        self.at_layer: list[tuple[_Frame, list[tuple[nn.Module, Any]]]] = []
        self.response: Tensor | None = None
        self.handed: tuple[Tensor, int] | None = None
        self.calls = 0

    def watch(self, module: nn.Module) -> Callable[..., Any]:
        original = module.forward

        def forward(*arguments: Any, **named: Any) -> Any:
            frame = _Frame(module, arguments, named)
            self.running.append(frame)
            try:
                frame.output = original(*arguments, **named)
            finally:
                self.running.pop()
            if module is self.layer:
                response = _tensor(frame.output, self.model, module)
                self.response, self.handed = response.detach().clone(), (response, response._version)
                self.calls += 1
                self.at_layer = [(outer, list(outer.done)) for outer in self.running]
            if self.running:
                self.running[-1].done.append((module, self._keep(frame.output)))
            frame.done.clear()
            return frame.output

        return forward

    def changed_above(self) -> bool:
        """Whether something above the layer changed its response in place."""
        return self.handed is not None and self.handed[0]._version != self.handed[1]

    def plan(self, output: Any) -> _Plan:
        frames = [frame for frame, _ in self.at_layer]
        if not frames:  # the layer is the whole model
            raise LayerError("The whole model was given as the layer; nothing is left above it.")
        # A wrapper that only hands on what the network inside returns need not run again (nor normalise again).
        first = 0
        while first + 1 < len(frames) and frames[first + 1].output is output:
            first += 1
        replays: dict[nn.Module, list[Any]] = {}
        for _, done in self.at_layer[first:]:
            for module, recorded in done:
                replays.setdefault(module, []).append(recorded)
        return _Plan(frames[first], replays, self.calls)

    def _keep(self, output: Any) -> Any:
        if not self.copied:
            return output
        return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, output)


def _pick(leaf: Any, n: int, m: int, samples: int | Tensor | None) -> Any:
    """Return rows of a recorded tensor for m responses; what does not follow the batch stays as it is."""
    if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != n or samples is None:
        return leaf
    if isinstance(samples, int):
        return leaf[samples : samples + 1].expand(m, *leaf.shape[1:])
    return leaf[samples]


def _tensor(output: Any, model: nn.Module, module: nn.Module) -> Tensor:
    if isinstance(output, Tensor):
        return output
    raise LayerError(
        f"'{layer_name(model, module)}' returns a {type(output).__name__}, not one tensor; choose the layer inside "
        "or after it that does."
    )


def _tolerance(output: Tensor) -> float:
    """Largest difference put down to other batch sizes choosing other kernels."""
    share = {torch.float64: 1e-9, torch.float32: 1e-4}.get(output.dtype, 5e-2)
    return share * max(float(output.abs().max()), 1e-3)
