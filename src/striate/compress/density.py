"""The share of weights that each layer of a network keeps, by one of eight rules.

All count the weights of convolutions and linear layers, not biases or norms, and all meet the budget: by closed form
(:mod:`striate.compress.allocation`) or by the weights that a method of pruning would keep
(:mod:`striate.compress.scores`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from striate.compress.allocation import fill, synexp
from striate.compress.graph import ChannelGraph, Layer, channel_graph
from striate.compress.masks import mask_density
from striate.compress.scores import SCORES, Score, weight_mask
from striate.errors import InputError, ModelError, did_you_mean

__all__ = ["DENSITIES", "Density", "layer_density"]

Density = Literal["synexp", "synflow", "snip", "grasp", "magnitude", "random", "uniform", "erk"]

DENSITIES: dict[str, str] = {
    "synexp": "the convex programme of PreCrop: maximise the sum of log densities; no data, milliseconds",
    "synflow": "Tanaka et al. 2020: flow of an all-ones image through absolute weights, in rounds; no data",
    "snip": "Lee et al. 2019: |w dL/dw| on a batch",
    "grasp": "Wang et al. 2020: keep the gradient's flow, -w Hg on a batch",
    "magnitude": "|w| as drawn",
    "random": "weights at random: the uniform density, with its noise",
    "uniform": "the same density everywhere",
    "erk": "Erdős-Rényi-kernel: by the sum of a kernel's sides over their product",
}
"""Method -> what it does."""


def layer_density(
    model: nn.Module,
    example_input: Tensor,
    method: Density = "synexp",
    density: float | None = None,
    flops: float | None = None,
    *,
    batch: Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor] | None = None,
    rounds: int = 100,
    seed: int = 0,
    graph: ChannelGraph | None = None,
) -> dict[str, float]:
    """Return layer -> density p_l for a budget of weights, of multiply-accumulates, or both.

    Args:
        model: any network; it is not touched.
        example_input: (N, C, H, W), for shapes and multiply-accumulates.
        method: a key of :data:`DENSITIES`.
        density: budget of weights, as a share of those of all convolutions and linear layers, in (0, 1].
        flops: budget of multiply-accumulates, as a share of the network's, in (0, 1].
        batch: for ``snip`` and ``grasp``: (images, labels), or several of these.
        rounds: of ``synflow``.
        seed: of ``random``.
        graph: the network's channel graph, if it is known already.

    Raises:
        InputError: no budget, one outside (0, 1], an unknown method, or SNIP or GraSP without a batch.
        ModelError: no layer has weights of its own.

    >>> from striate.models.micro import ResNetMicro
    >>> import torch
    >>> p = layer_density(ResNetMicro(), torch.zeros(1, 3, 32, 32), density=0.2)
    >>> round(p["layer4.0.conv2"], 3), p["layer1.0.conv1"]
    (0.054, 1.0)
    """
    check_shares("layer_density", density=density, flops=flops)
    if method not in DENSITIES:
        hint = did_you_mean(method, DENSITIES)
        raise InputError("method", "layer_density", allowed=f"one of {', '.join(DENSITIES)}", got=method, hint=hint)
    if density is None and flops is None:
        raise InputError("density", "layer_density", allowed="given, or flops, or both", got="neither")
    graph = graph or channel_graph(model, example_input)
    n, f = costs(model, graph)
    if method in SCORES:
        scored = cast(Score, method)
        masks = weight_mask(
            model, example_input, scored, density, flops, batch=batch, rounds=rounds, seed=seed, graph=graph
        )
        return mask_density(masks)
    layers = graph.weighted
    budgets = {kind: share * float(costs.sum()) for kind, share, costs in (("n", density, n), ("f", flops, f)) if share}
    if method == "synexp":
        values = synexp(n, f, params_budget=budgets.get("n"), macs_budget=budgets.get("f"))
    else:
        rates = np.array([_erk(model, layer) if method == "erk" else 1.0 for layer in layers.values()])
        values = np.minimum.reduce([fill(rates, {"n": n, "f": f}[kind], budget) for kind, budget in budgets.items()])
    return dict(zip(layers, values.tolist(), strict=True))


def costs(model: nn.Module, graph: ChannelGraph) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights and the multiply-accumulates of each layer of ``graph.weighted``.

    Raises:
        ModelError: there is no such layer.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()) and not graph.weighted:
        raise ModelError(f"{type(model).__name__} is TorchScript, which hides its layers; give the network as written.")
    if not graph.weighted:
        raise ModelError(
            f"{type(model).__name__} has no convolution or linear layer with weights of its own at work; where they "
            "are masked or parametrized, bake them first (bake_weight_mask, remove_parametrizations)."
        )
    n, f = (
        np.array([getattr(layer, kind) for layer in graph.weighted.values()], float) for kind in ("weights", "macs")
    )
    return n, f


def check_shares(owner: str, **shares: float | None) -> None:
    """Raise :class:`InputError` unless every share that is given lies in (0, 1]."""
    for name, share in shares.items():
        if share is not None and not 0 < share <= 1:
            raise InputError(name, owner, allowed="in (0, 1]", got=share)


def _erk(model: nn.Module, layer: Layer) -> float:
    weight = model.get_submodule(layer.name).weight
    assert isinstance(weight, Tensor)
    return sum(weight.shape) / layer.weights
