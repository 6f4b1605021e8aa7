"""The public contracts: what every explainer, attack, layer and model of Striate keeps, and yours can be held to.

Each function raises :class:`~striate.errors.CheckError` with the first promise that is broken, and returns nothing.

>>> from striate.explain.registry import get_method
>>> check_explainer(get_method("grad-cam"))
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.state import device_of
from striate.errors import CheckError, InputError, StriateError, TrainModeWarning
from striate.explain.base import Explainer

__all__ = [
    "Sample",
    "check_attack",
    "check_explainer",
    "check_layer",
    "check_model",
    "left_as_it_came",
    "sample_network",
]


class Sample(nn.Module):
    """A small classifier with what breaks careless methods: functional and reused ReLUs, an in-place one, BatchNorm.

    Args:
        channels: of the input.
        classes: of the output.
    """

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(12, 12, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for (N, C, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.act(self.conv2(x))
        x = self.act(self.conv3(x) + x)
        return self.fc(x.mean(dim=(2, 3)))


@contextmanager
def left_as_it_came(model: nn.Module) -> Iterator[None]:
    """Raise :class:`CheckError` if what happens inside changes the model or the global random state."""
    before, random = _state(model), _random_states()
    yield
    for name, value in _state(model).items():
        if not _equal(value, before[name]):
            raise CheckError(f"the model did not leave as it came: {name} changed.")
    if not all(map(torch.equal, random, _random_states())):
        raise CheckError("the global random state was changed.")


def check_explainer(
    make: Callable[..., Explainer], *, model: nn.Module | None = None, inputs: Tensor | None = None, **options: Any
) -> None:
    """Hold an explainer to the contract.

    One finite map per image; the class asked for is the class explained; a second call gives the same; a batch gives
    what single images give; the model, its gradients and the random state stay untouched, also in training mode and
    after an error; works at batch 1, odd sizes, float64, channels_last and under ``no_grad``; a class out of range
    is refused.

    Args:
        make: called as ``make(model, **options)``.
        model: a classifier; default :class:`Sample`.
        inputs: (N >= 2, C, H, W) for it, on its device; default a seeded (2, 3, 21, 18).
        **options: handed to ``make``.
    """
    model = sample_network() if model is None else model
    inputs = _images().to(device_of(model)) if inputs is None else inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explainer = make(model, **options)
        n = len(inputs)
        with torch.no_grad():
            logits = copy.deepcopy(model).eval()(inputs)
        answers, classes = logits.argmax(dim=1).cpu(), logits.shape[1]
        asked = ((answers + 1) % classes).tolist()  # never the class that a careless method would explain anyway
        with left_as_it_came(model):
            result = explainer.attribute(inputs, asked)
        _promise(
            result.map.dim() == 3 and len(result.map) == n, f"a map (N, h, w) per image; got {tuple(result.map.shape)}"
        )
        _promise(bool(torch.isfinite(result.map).all()), "finite maps")
        _promise(not result.map.requires_grad, "maps without a graph")
        _promise(result.target.tolist() == asked, f"the class asked for; got {result.target.tolist()}")
        _promise(result.method == explainer.name, "its own name in the result")
        shown = result.normalized
        _promise(shown.shape == (n, *inputs.shape[-2:]), "a normalised map at the size of the image")
        _promise(bool((shown >= 0).all() and (shown <= 1).all()), "a normalised map in [0, 1]")

        again = make(model, **options).attribute(inputs, asked)
        _promise(bool(torch.equal(again.map, result.map)), "the same map on a second call")
        alone = torch.cat(
            [make(model, **options).attribute(image[None], c).map for image, c in zip(inputs, asked, strict=True)]
        )
        _close(alone, result.map, "the same map alone and in a batch")
        mixed = make(model, **options).attribute(inputs, [int(answers[0]), *asked[1:]])
        _close(mixed.map[1:], result.map[1:], "one class per sample")
        predicted = make(model, **options).attribute(inputs)
        _promise(torch.equal(predicted.target, answers), "the predicted class where none is asked for")

        with torch.no_grad(), left_as_it_came(model):
            _close(make(model, **options).attribute(inputs, asked).map, result.map, "the same map under no_grad")
        strided = inputs.contiguous(memory_format=torch.channels_last)
        _close(make(model, **options).attribute(strided, asked).map, result.map, "the same map for channels_last")

        trained = copy.deepcopy(model).train()
        with left_as_it_came(trained):
            _close(
                make(trained, **options).attribute(inputs, asked).map,
                result.map,
                "the same map for a model in train mode",
            )
        double = copy.deepcopy(model).double()
        precise = make(double, **options).attribute(inputs.double(), asked)
        _promise(bool(torch.isfinite(precise.map).all()), "finite maps in float64")
        with left_as_it_came(model):
            _refuses(lambda: make(model, **options).attribute(inputs, 10**6), "a class out of range")
            _refuses(lambda: make(model, **options).attribute(inputs[0], 0), "an image without a batch dimension")
            _refuses(lambda: make(model, **options).attribute(inputs * torch.nan, 0), "NaN images")


def check_attack(
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
    *,
    model: nn.Module | None = None,
    inputs: Tensor | None = None,
    eps: float | None = None,
) -> None:
    """Hold an attack to the contract.

    Same shape and dtype; inside [0, 1] and, if ``eps`` is given, within eps in every pixel; the images themselves,
    the model and the random state untouched; the loss not lower than before; the same result twice and alone as in a
    batch (attacks that draw at random take a seed); works in train mode.

    Args:
        attack: ``attack(model, x, y)`` on images in [0, 1].
        model: a classifier; default :class:`Sample`.
        inputs: (N, C, H, W) in [0, 1], on the model's device; default a seeded (2, 3, 21, 18).
        eps: the radius in the maximum norm, if the attack has one.
    """
    model = sample_network() if model is None else model
    inputs = _images().to(device_of(model)) if inputs is None else inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainModeWarning)
        evaluated = copy.deepcopy(model).eval()
        with torch.no_grad():
            labels = evaluated(inputs).argmax(dim=1)
        kept = inputs.clone()
        with left_as_it_came(model):
            found = attack(model, inputs, labels)
        _promise(torch.equal(kept, inputs), "the images themselves untouched")
        _promise(found.shape == inputs.shape and found.dtype == inputs.dtype, "images of the same shape and dtype")
        _promise(not found.requires_grad, "images without a graph")
        _promise(bool((found >= 0).all() and (found <= 1).all()), "pixels in [0, 1]")
        if eps is not None:
            largest = float((found - inputs).abs().max())
            _promise(largest <= eps + 1e-6, f"pixels within eps {eps:.4g}; the largest change is {largest:.4g}")
        with torch.no_grad():
            before, after = (F.cross_entropy(evaluated(x), labels).item() for x in (inputs, found))
        _promise(after >= before - 1e-5, f"a loss not lower than before ({before:.4g} -> {after:.4g})")
        _promise(torch.equal(attack(model, inputs, labels), found), "the same result twice")
        trained = copy.deepcopy(model).train()
        with left_as_it_came(trained):
            _close(attack(trained, inputs, labels), found, "the same result for a model in train mode")


def check_layer(layer: nn.Module, x: Tensor, *, gradcheck: bool = True) -> None:
    """Hold a layer that takes and returns one tensor to the contract.

    Finite forward and backward; the same alone as in a batch (eval mode), the gradient by a sample too, and for
    channels_last; state dict round trip; finite under bfloat16 autocast; ``gradcheck`` in float64.

    Args:
        layer: in eval mode it must treat the samples of a batch apart.
        x: (N >= 2, …) float32, on the layer's device; small, for gradcheck's sake.
        gradcheck: turn off only for layers that are not differentiable by design; the gradient alone is left out too.
    """
    layer = copy.deepcopy(layer).eval()
    with torch.no_grad():
        y = layer(x)
        _promise(bool(torch.isfinite(y).all()), "finite outputs")
        _close(torch.cat([layer(sample[None]) for sample in x]), y, "the same output alone and in a batch")
        if x.dim() == 4:
            _close(layer(x.contiguous(memory_format=torch.channels_last)), y, "the same output for channels_last")
        copied = copy.deepcopy(layer)
        copied.load_state_dict(layer.state_dict(), strict=True)
        _promise(torch.equal(copied(x), y), "the same output after a state dict round trip")
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            _promise(bool(torch.isfinite(layer(x)).all()), "finite outputs under bfloat16 autocast")
    layer(x.clone().requires_grad_()).sum().backward()
    for name, parameter in layer.named_parameters():
        _promise(parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), f"a finite gradient of {name}")
    if not gradcheck:
        return
    _same_gradient_alone(layer, x)
    if not torch.autograd.gradcheck(
        layer.double(), (x.double().requires_grad_(),), eps=1e-6, atol=1e-5, nondet_tol=1e-9, raise_exception=False
    ):
        raise CheckError("broken promise: gradients that finite differences confirm (float64).")


def check_model(model: nn.Module, x: Tensor, *, classes: int | None = None) -> None:
    """Hold a classifier to the contract.

    (N, classes) finite logits; every trainable parameter gets a finite gradient; batch 1; logits and the gradient by an
    image alone as in a batch; channels_last; state dict round trip; finite under bfloat16 autocast; ``forward`` changes
    nothing in eval mode.

    Args:
        model: any classifier.
        x: (N >= 2, C, H, W), on the model's device.
        classes: number of outputs, if it is to be checked.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad(), left_as_it_came(model):
        y = model(x)
    _promise(y.dim() == 2 and len(y) == len(x), f"logits (N, classes); got {tuple(y.shape)}")
    _promise(classes is None or y.shape[1] == classes, f"{classes} classes; got {y.shape[1]}")
    _promise(bool(torch.isfinite(y).all()), "finite logits")
    with torch.no_grad():
        _close(torch.cat([model(image[None]) for image in x]), y, "the same logits alone and in a batch")
        _close(model(x.contiguous(memory_format=torch.channels_last)), y, "the same logits for channels_last")
        copied = copy.deepcopy(model)
        copied.load_state_dict(model.state_dict(), strict=True)
        _promise(torch.equal(copied(x), y), "the same logits after a state dict round trip")
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            _promise(bool(torch.isfinite(model(x)).all()), "finite logits under bfloat16 autocast")
    _same_gradient_alone(model, x)
    F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            _promise(parameter.grad is not None, f"a gradient for every parameter; {name} got none")
            _promise(bool(torch.isfinite(parameter.grad).all()), f"a finite gradient of {name}")  # type: ignore[arg-type]


def sample_network() -> Sample:
    """Return a seeded :class:`Sample` in eval mode, with running statistics other than 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sample()
        model.train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.rand(8, 3, 16, 16))
    return model.eval()


def _same_gradient_alone(module: nn.Module, x: Tensor) -> None:
    """PyTorch's batch and instance norms read some strides of a single channels-last image wrongly, backwards only."""

    def gradient(part: Tensor) -> Tensor:
        part = part.detach().clone().requires_grad_()
        return torch.autograd.grad(module(part).square().sum(), part)[0]

    together, alone = gradient(x), torch.cat([gradient(part) for part in x.split(1)])
    apart = float(torch.linalg.vector_norm(alone - together) / torch.linalg.vector_norm(together).clamp_min(1e-30))
    # A kink of an activation may be met on the other side.
    _promise(apart < 0.05, f"the same gradient by a sample alone and in a batch; {apart:.1%} apart")


def _images() -> Tensor:
    return torch.rand(2, 3, 21, 18, generator=torch.Generator().manual_seed(0))


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def _state(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {f"tensor {key}": value.clone() for key, value in model.state_dict().items()}
    for name, module in model.named_modules():
        state[f"mode of {name or 'the model'}"] = module.training
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        state[f"hooks of {name or 'the model'}"] = [len(getattr(module, kind)) for kind in hooks]
        state[f"forward of {name or 'the model'}"] = "forward" in vars(module)
    for name, parameter in model.named_parameters():
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
    return state


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    return bool(first == second) if not isinstance(first, Tensor) and not isinstance(second, Tensor) else False


def _promise(kept: bool, what: str) -> None:
    if not kept:
        raise CheckError(f"broken promise: {what}.")


def _close(first: Tensor, second: Tensor, what: str) -> None:
    scale = float(second.abs().max().clamp_min(1e-12))
    difference = float((first - second).abs().max()) / scale if first.shape == second.shape else float("inf")
    _promise(difference <= 1e-3, f"{what} (largest difference {difference:.1e} of the largest value)")


def _refuses(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except InputError:
        return
    except StriateError as error:
        raise CheckError(
            f"broken promise: {what} is refused with an InputError; got {type(error).__name__}."
        ) from error
    raise CheckError(f"broken promise: {what} is refused with an InputError; it was accepted.")
