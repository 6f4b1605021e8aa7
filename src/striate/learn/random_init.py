"""How a network starts that will train little: random weights of convolutions, scale and shift of batch norms.

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", 2021, arXiv 2003.00152, appendix: weights Kaiming
normal (He et al. 2015; fan-in, gain √2), with uniform, orthogonal and binary variants; batch norms with γ uniform in
[0, 1] and β = 0, with variants. With γ = 1, PyTorch's default, training batch norms alone reaches less.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from striate.errors import InputError, LayerError
from striate.learn.norms import Norms, affine_norms

__all__ = ["Gamma", "Weights", "init_bn", "init_weights"]

Weights = Literal["kaiming-normal", "kaiming-uniform", "orthogonal", "binary"]
Gamma = Literal["uniform", "ones", "symmetric"]


@torch.no_grad()
def init_weights(
    model: nn.Module, weights: Weights = "kaiming-normal", *, generator: torch.Generator | None = None
) -> int:
    """Draw the weights of every convolution and linear layer anew, in place; biases and norms stay.

    Args:
        model: any network.
        weights: ``"kaiming-normal"``: standard deviation √(2 / fan-in); ``"kaiming-uniform"``: the same deviation;
            ``"orthogonal"``: rows orthonormal; ``"binary"``: the signs of Kaiming normal weights times their standard
            deviation, so ±σ.
        generator: source of random numbers on the weights' device; None is PyTorch's global one.

    Returns:
        How many tensors were drawn.

    Raises:
        InputError: no such word.
        LayerError: there is no convolution and no linear layer, or one whose weight is computed (weight norm, a mask).
    """
    if weights not in {"kaiming-normal", "kaiming-uniform", "orthogonal", "binary"}:
        allowed = "'kaiming-normal', 'kaiming-uniform', 'orthogonal' or 'binary'"
        raise InputError("weights", "init_weights", allowed=allowed, got=weights)
    layers = [module for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)]
    if not layers:
        raise LayerError(f"{type(model).__name__} has no convolution and no linear layer to draw weights for.")
    for name, layer in model.named_modules():
        if layer in layers and "weight" not in layer._parameters:
            raise LayerError(f"The weight of '{name}' is computed from others; remove_parametrizations first.")
    for layer in layers:
        fan_in = layer.weight[0].numel()
        if weights == "kaiming-uniform":
            layer.weight.uniform_(-math.sqrt(6 / fan_in), math.sqrt(6 / fan_in), generator=generator)
        elif weights == "orthogonal":
            nn.init.orthogonal_(layer.weight, generator=generator)
        else:
            layer.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            if weights == "binary":
                layer.weight.copy_(layer.weight.sign() * layer.weight.std())
    return len(layers)


@torch.no_grad()
def init_bn(
    model: nn.Module,
    gamma: Gamma = "uniform",
    beta: float = 0.0,
    *,
    norms: Norms = "bn",
    generator: torch.Generator | None = None,
) -> int:
    """Set scale γ and shift β of every batch norm, in place; running statistics stay.

    Args:
        model: any network.
        gamma: ``"uniform"`` in [0, 1], ``"ones"``, or ``"symmetric"``: uniform in [-1, 1].
        beta: the shift everywhere.
        norms: ``"all"`` takes group, layer and other norms too.
        generator: source of random numbers on the parameters' device; None is PyTorch's global one.

    Returns:
        How many norms were set.

    Raises:
        InputError: no such word, or β not finite.
        LayerError: no norm with scale and shift.
    """
    if gamma not in {"uniform", "ones", "symmetric"}:
        raise InputError("gamma", "init_bn", allowed="'uniform', 'ones' or 'symmetric'", got=gamma)
    if not math.isfinite(beta):
        raise InputError("beta", "init_bn", allowed="finite", got=beta)
    found = affine_norms(model, norms, "init_bn")
    for norm in found.values():
        if gamma == "ones":
            norm.weight.fill_(1.0)
        else:
            norm.weight.uniform_(0.0 if gamma == "uniform" else -1.0, 1.0, generator=generator)
        if getattr(norm, "bias", None) is not None:
            norm.bias.fill_(beta)
    return len(found)
