"""Scores of single weights at initialisation: SynFlow, SNIP, GraSP, magnitude, random; and the masks that follow.

* SynFlow: Tanaka, Kunin, Yamins, Ganguli 2020, arXiv 2006.05467. R = sum of the outputs of the network with absolute
  weights on an image of ones; score |w| dR/d|w|. In round k of K the best share d^(k/K) of all weights stays, scored in
  the network that the rounds before left. Computed in float64, where a ReLU, or any activation that is one for large
  values, passes positive flow on as it is, a norm multiplies by |gamma|, and a gate (sigmoid) is open: otherwise a
  ReLU6 would cut the flow off and a batch norm in train mode make it zero.
* SNIP: Lee, Ajanthan, Torr 2019, arXiv 1810.02340. |w dL/dw|, L the cross entropy on a batch.
* GraSP: Wang, Zhang, Grosse 2020, arXiv 2002.07376. -w (H g), logits divided by 200; the weights with the highest
  scores go, so here its negative is ranked.

A layer whose scores are all zero was not judged: no flow passes the inside of a squeeze-and-excitation, no gradient a
branch that ends in a norm with a scale of zero at the start. It keeps the budget's overall share, its first weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from striate.compress.graph import ChannelGraph, channel_graph
from striate.engine.state import device_of, seeded
from striate.errors import InputError, RunError

__all__ = ["SCORES", "Score", "weight_mask", "weight_scores"]

Score = Literal["synflow", "snip", "grasp", "magnitude", "random"]
SCORES = ("synflow", "snip", "grasp", "magnitude", "random")
Batches = Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor]

GRASP_TEMPERATURE = 200.0


def weight_scores(
    model: nn.Module,
    example_input: Tensor,
    method: Score = "synflow",
    *,
    batch: Batches | None = None,
    masks: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    graph: ChannelGraph | None = None,
) -> dict[str, Tensor]:
    """Return layer -> score of each weight; high ones stay.

    Args:
        model: any network; it is not touched.
        example_input: (N, C, H, W), for shapes.
        method: one of :data:`SCORES`.
        batch: for SNIP and GraSP: (images, labels), or several; the network sees them in train mode, and of several
            outputs the first counts.
        masks: weights that are gone already.
        seed: of ``random``, and of dropout.
        graph: the network's channel graph, if it is known already.

    Raises:
        InputError: an unknown method, or no batch for SNIP and GraSP.
        RunError: scores that are not finite.
    """
    if method not in SCORES:
        raise InputError("method", "weight_scores", allowed=f"one of {', '.join(SCORES)}", got=method)
    if method in {"snip", "grasp"} and batch is None:
        hint = "SynFlow and SynExp need no data."
        raise InputError("batch", method, allowed="(images, labels), or several of these", got=None, hint=hint)
    names = list((graph or channel_graph(model, example_input)).weighted)
    with torch.inference_mode(False), torch.enable_grad(), seeded(seed):
        twin = copy.deepcopy(model)
        weights = {name: twin.get_submodule(name).weight for name in names}
        for name, weight in weights.items():
            assert isinstance(weight, nn.Parameter)
            if masks is not None:
                weight.data.mul_(masks[name].to(weight.device))
        scores = _scores(method, twin, weights, example_input, batch)  # type: ignore[arg-type]
    for name, score in scores.items():
        if not bool(torch.isfinite(score).all()):
            raise RunError(f"The {method} scores of '{name}' are not finite; are the network's weights?")
    return scores


def weight_mask(
    model: nn.Module,
    example_input: Tensor,
    method: Score = "synflow",
    density: float | None = None,
    flops: float | None = None,
    *,
    batch: Batches | None = None,
    rounds: int = 100,
    seed: int = 0,
    graph: ChannelGraph | None = None,
) -> dict[str, Tensor]:
    """Return layer -> boolean mask of the weights that stay: the best of the whole network that fit the budget.

    Args:
        model, example_input, method, batch, seed, graph: see :func:`weight_scores`.
        density: share of all weights that stay, in (0, 1].
        flops: share of the multiply-accumulates that stay, counting each weight with those of its layer.
        rounds: of SynFlow; the other methods decide at once.

    Raises:
        InputError: see :func:`weight_scores`; or no budget, or one outside (0, 1].
        RunError: scores that are not finite, or all zero.
    """
    from striate.compress.density import check_shares

    check_shares("weight_mask", density=density, flops=flops)
    if density is None and flops is None:
        raise InputError("density", "weight_mask", allowed="given, or flops, or both", got="neither")
    if rounds < 1:
        raise InputError("rounds", "weight_mask", allowed=">= 1", got=rounds)
    graph = graph or channel_graph(model, example_input)
    masks: dict[str, Tensor] = {}
    unreached: set[str] = set()
    count = rounds if method == "synflow" else 1
    for k in range(1, count + 1):
        scores = weight_scores(
            model, example_input, method, batch=batch, masks=masks if k > 1 else None, seed=seed, graph=graph
        )
        if k == 1:
            unreached = {name for name, score in scores.items() if not bool(score.any())}
            if len(unreached) == len(scores):
                raise RunError(f"The {method} scores of {type(model).__name__} are zero in every layer.")
        share = {"weights": density, "macs": flops}
        shares = {kind: value ** (k / count) for kind, value in share.items() if value is not None}
        masks = _best(scores, graph, shares, unreached)
    return masks


def _scores(
    method: Score, twin: nn.Module, weights: Mapping[str, nn.Parameter], example: Tensor, batch: Batches | None
) -> dict[str, Tensor]:
    names, values = list(weights), list(weights.values())
    if method == "magnitude":
        return {name: weight.detach().abs() for name, weight in weights.items()}
    if method == "random":
        return {name: torch.rand(weight.shape).to(weight.device) for name, weight in weights.items()}
    if method == "synflow":
        return _synflow(twin, weights, example)
    for value in values:
        value.requires_grad_(True)
    twin.train()
    device = device_of(twin)
    assert batch is not None
    pairs: list[Any] = list(batch)
    if not pairs:
        raise InputError("batch", method, allowed="(images, labels), or several of these", got="none")
    if isinstance(pairs[0], Tensor):
        pairs = [pairs]
    totals = [torch.zeros_like(value) for value in values]
    for images, labels in pairs:
        with _TwiceDifferentiable():
            logits = _floats(twin(_pixels(images).to(device, values[0].dtype, copy=True)))[0]
        if method == "snip":
            loss = F.cross_entropy(logits, labels.to(device, copy=True))
            found = torch.autograd.grad(loss, values, allow_unused=True)
        else:
            loss = F.cross_entropy(logits / GRASP_TEMPERATURE, labels.to(device, copy=True))
            gradient = torch.autograd.grad(loss, values, create_graph=True, allow_unused=True)
            flow = sum((g.detach() * g).sum() for g in gradient if g is not None)
            found = torch.autograd.grad(flow, values, allow_unused=True)  # type: ignore[arg-type]
        totals = [total if value is None else total + value for total, value in zip(totals, found, strict=True)]
    signed = {name: (value * total).detach() for name, value, total in zip(names, values, totals, strict=True)}
    # GraSP removes the highest of -w (H g); so the lowest stay, which are the highest of w (H g).
    return {name: value.abs() for name, value in signed.items()} if method == "snip" else signed


def _synflow(twin: nn.Module, weights: Mapping[str, nn.Parameter], example: Tensor) -> dict[str, Tensor]:
    twin.double().eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.requires_grad_(False).abs_()
    values = list(weights.values())
    for value in values:
        value.requires_grad_(True)
    ones = torch.ones(1, *example.shape[1:], dtype=torch.float64, device=device_of(twin))
    with _PositiveFlow():
        out = twin(ones)
        total = sum(leaf.sum() for leaf in _floats(out))
    flows = torch.autograd.grad(total, values, allow_unused=True)  # type: ignore[arg-type]
    return {
        name: torch.zeros_like(value) if flow is None else (value * flow).detach()
        for (name, value), flow in zip(weights.items(), flows, strict=True)
    }


class _TwiceDifferentiable(TorchFunctionMode):
    """Write activations whose second derivative PyTorch lacks as others that have one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in {"hardsigmoid", "hardsigmoid_"}:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


_PASS = frozenset({
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_max", "clip",
    "clip_", "leaky_relu", "leaky_relu_", "elu", "elu_", "gelu", "silu", "hardswish", "mish", "selu", "celu",
    "softplus", "threshold", "prelu",
})  # fmt: skip
_OPEN = frozenset({"sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_"})
_NORMS = frozenset({"batch_norm", "instance_norm", "layer_norm", "group_norm"})


class _PositiveFlow(TorchFunctionMode):
    """Make a network linear for positive flow: activations pass it, gates are open, norms only scale."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Tensor):
            if name in _PASS:
                return args[0]
            if name in _OPEN:
                return torch.ones_like(args[0])
            if name in _NORMS:
                return _scaled(name, args, kwargs)
        return func(*args, **kwargs)


def _scaled(name: str, args: Any, kwargs: Any) -> Tensor:
    """Return x * weight + bias over the axis of channels: a norm without its statistics."""
    x = args[0]
    place = {"batch_norm": 3, "instance_norm": 3, "layer_norm": 2, "group_norm": 2}[name]
    weight, bias = (
        kwargs.get(key, args[place + i] if len(args) > place + i else None) for i, key in enumerate(("weight", "bias"))
    )
    shape = (-1,) if name == "layer_norm" else (1, -1, *[1] * (x.dim() - 2))
    if name == "layer_norm" and weight is not None and weight.dim() > 1:
        shape = weight.shape
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _best(
    scores: Mapping[str, Tensor], graph: ChannelGraph, shares: Mapping[str, float], unreached: set[str]
) -> dict[str, Tensor]:
    """Return masks of the highest scores of all layers together, as many as fit every budget."""
    layers = graph.weighted
    ranked = [name for name in scores if name not in unreached]
    flat = torch.cat([scores[name].flatten().double() for name in ranked])
    if set(shares) == {"weights"}:  # all cost the same: no need to sort
        best = _highest(flat, max(1, int(shares["weights"] * len(flat) * (1 + 1e-9))))
    else:
        order = torch.argsort(flat, descending=True, stable=True)
        fits = flat.numel()
        for kind, share in shares.items():
            cost = torch.cat([
                torch.full((layers[name].weights,), getattr(layers[name], kind) / layers[name].weights)
                for name in ranked
            ]).to(flat.device, torch.float64)  # fmt: skip
            spent = cost[order].cumsum(0)
            fits = min(fits, int((spent <= share * float(cost.sum()) * (1 + 1e-9)).sum()))
        best = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
        best[order[: max(1, fits)]] = True
    parts = dict(zip(ranked, best.split([layers[name].weights for name in ranked]), strict=True))
    masks = {}
    for name, score in scores.items():
        if name in unreached:
            kept = torch.arange(score.numel(), device=score.device) < max(
                1, round(min(shares.values()) * score.numel())
            )
            masks[name] = kept.view(score.shape)
        else:
            masks[name] = parts[name].view(score.shape)
    return masks


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return where the ``count`` highest scores are, (n,) boolean; of equal ones the first."""
    least = torch.kthvalue(scores, len(scores) - count + 1).values
    best = scores > least
    equal = (scores == least).nonzero()[: count - int(best.sum()), 0]
    best[equal] = True
    return best


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _floats(value: Any) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
