"""Is the normalisation the one the network was trained with? Asked of the network itself.

A normalisation that is missing, doubled or another network's costs some accuracy, changes what an eps means, and no
error message tells. But batch normalisation keeps the mean and variance that each channel had in training. Under the
right normalisation natural images give nearly the same ones again; under a wrong one the first layers do not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from striate.engine.check import Check
from striate.engine.model import VisionModel
from striate.engine.state import inspected
from striate.stress.objective import check_images

__all__ = ["normalisation_check"]

_LAYERS = 3
_FACTOR, _MARGIN = 2.0, 0.1  # another normalisation has to fit twice as well and by 0.1 nat a channel
_FAR = 0.5  # nats a channel; right normalisations give about 0.02 on 22 photographs, 0.1 on 4, up to 0.46 on one
_INFORMATION_MARGIN = 0.3


def normalisation_check(model: nn.Module, images: Tensor) -> Check:
    """Compare the declared normalisation with the usual other ones, on what the network's first layers see.

    For each candidate the images' mean and variance at the first three batch-norm layers are held against the running
    statistics: KL divergence of the measured from the recorded Gaussian, mean over channels and layers. Fails where
    another candidate fits twice as well, and by at least 0.1 nat a channel, and names it.

    What it cannot see: a swap of colour channels, on ordinary photographs (both orders fit). Without trained batch
    normalisation it falls back to the information that predictions carry, H(mean p) − mean H(p), which shows only
    gross errors; it can fail there, but never passes. Confidence alone would mislead: scaled up tenfold, inputs make
    a network surer, not more right.

    Args:
        model: a :class:`striate.VisionModel`, or a module that takes pixels in [0, 1].
        images: (N, C, H, W) in [0, 1] of the kind the network was trained on; a few are enough.

    Returns:
        Check with the declared normalisation's divergence; ``passed`` is None where nothing could be decided.
    """
    images = check_images(images, "normalisation_check", (0.0, 1.0), model)
    network, candidates = _candidates(model, images)
    with torch.no_grad(), inspected(model, warn=False):
        layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and _trained(layer)]
        if layers:
            distances = {name: _divergence(network, layers, feed(images)) for name, feed in candidates.items()}
            return _by_statistics(distances)
        if any(isinstance(layer, _BatchNorm) and layer.running_mean is not None for layer in network.modules()):
            return Check("normalisation", None, "Not applicable: the network's batch normalisation was never trained.")
        return _by_information({name: _information(network(feed(images))) for name, feed in candidates.items()}, images)


def _candidates(model: nn.Module, images: Tensor) -> tuple[nn.Module, dict[str, Callable[[Tensor], Tensor]]]:
    """The network behind the declared normalisation, and what could be fed to it; the declared one first."""
    channels = images.shape[1]
    imagenet: tuple[tuple[float, ...], tuple[float, ...]] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if channels != 3:
        imagenet = ((0.449,) * channels, (0.226,) * channels)  # the channels' mean, as for grey images
    if isinstance(model, VisionModel):
        network, declared = model.network, (model.preprocessing.mean, model.preprocessing.std)
    else:
        network, declared = model, ((0.0,) * channels, (1.0,) * channels)
    mean, std = declared
    twice = tuple(m + s * m for m, s in zip(mean, std, strict=True)), tuple(s * s for s in std)
    known = {
        "the declared one": declared,
        "none (pixels in [0, 1])": ((0.0,) * channels, (1.0,) * channels),
        "ImageNet mean and std": imagenet,
        "mean 0.5, std 0.5": ((0.5,) * channels, (0.5,) * channels),
        "pixels from 0 to 255": ((0.0,) * channels, (1 / 255,) * channels),
        "the declared one applied twice": twice,
    }
    feeds: dict[str, Callable[[Tensor], Tensor]] = {}
    taken: list[Tensor] = []
    for name, pair in known.items():
        statistics = images.new_tensor(pair).view(2, -1, 1, 1)
        if not any(torch.allclose(statistics, other, atol=5e-3) for other in taken):
            taken.append(statistics)
            feeds[name] = _feed(statistics)
    if channels == 3:
        feeds["the declared one with channels in reverse order"] = _feed(taken[0], reverse=True)
    return network, feeds


def _feed(statistics: Tensor, *, reverse: bool = False) -> Callable[[Tensor], Tensor]:
    def feed(images: Tensor) -> Tensor:
        normalised = (images - statistics[0]) / statistics[1]
        return normalised.flip(1) if reverse else normalised

    return feed


def _trained(layer: _BatchNorm) -> bool:
    mean, variance = layer.running_mean, layer.running_var
    return mean is not None and variance is not None and not (bool((mean == 0).all()) and bool((variance == 1).all()))


class _SeenEnoughError(Exception):
    """Ends a forward pass early."""


def _divergence(network: nn.Module, layers: list[_BatchNorm], inputs: Tensor) -> float:
    """Mean over channels of KL( N(measured) ‖ N(recorded) ), at the first layers that the forward pass reaches."""
    seen: list[Tensor] = []

    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        layer = cast(_BatchNorm, module)
        x = arguments[0].transpose(0, 1).flatten(1).double()  # (channels, everything else)
        mean, variance = cast(Tensor, layer.running_mean).double(), cast(Tensor, layer.running_var).double() + layer.eps
        measured, spread = x.mean(dim=1), x.var(dim=1, correction=0) + layer.eps
        kl = 0.5 * ((variance / spread).log() + (spread + (measured - mean).square()) / variance - 1)
        seen.append(kl.mean())
        if len(seen) == _LAYERS:
            raise _SeenEnoughError

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with suppress(_SeenEnoughError):
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return float(torch.stack(seen).mean()) if seen else float("nan")


def _by_statistics(distances: dict[str, float]) -> Check:
    (_, own), *others = distances.items()
    name, best = min(others, key=lambda item: item[1])
    bound = max(_FACTOR * best, best + _MARGIN)
    where = "At its first batch-norm layers the network sees"
    if own > bound:
        statement = (
            f"{where} what it was not trained on: {own:.2g} nats a channel away under the declared normalisation, "
            f"{best:.2g} under another: {name}."
        )
        return Check("normalisation", False, statement, own, bound)
    if own > _FAR:
        statement = (
            f"{where} statistics {own:.2g} nats a channel away from training, and no usual normalisation does better: "
            "the images are of another kind, or the preprocessing is an unusual one."
        )
        return Check("normalisation", None, statement, own, bound)
    statement = (
        f"{where} nearly what it saw in training: {own:.2g} nats a channel away under the declared normalisation; "
        f"the nearest other ({name}) gives {best:.2g}."
    )
    return Check("normalisation", True, statement, own, bound)


def _information(logits: Tensor) -> float:
    p = logits.double().softmax(dim=1)
    return float(_entropy(p.mean(dim=0)) - _entropy(p).mean())


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(dim=-1)


def _by_information(information: dict[str, float], images: Tensor) -> Check:
    (_, own), *others = information.items()
    name, best = max(others, key=lambda item: item[1])
    low, high = (float(value) for value in images.aminmax())
    weak = f"The network has no batch normalisation to ask, and pixels from {low:.2g} to {high:.2g} say nothing"
    if max(own, best) < 0.05:
        statement = f"{weak}; its predictions hardly depend on the image under any normalisation (random weights?)."
        return Check("normalisation", None, statement, own)
    if best > own + _INFORMATION_MARGIN:
        statement = (
            f"Predictions carry {own:.2f} nats about the image under the declared normalisation and {best:.2f} under "
            f"another: {name}. (Weak evidence: there is no batch normalisation to ask.)"
        )
        return Check("normalisation", False, statement, own, best - _INFORMATION_MARGIN)
    statement = (
        f"{weak}. No gross error: predictions carry {own:.2f} nats about the image, at most {best:.2f} under another "
        "normalisation; a wrong mean or std could still hide."
    )
    return Check("normalisation", None, statement, own, best - _INFORMATION_MARGIN)
