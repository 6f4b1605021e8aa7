"""PreCrop and PreConfig: a CNN's channels chosen before training, from how densely each of its layers should be kept.

Cai, Hua, Chen, Suh, De Sa, Zhang, "Structured Pruning is All You Need for Pruning CNNs at Initialization", 2022, arXiv
2203.02549 (later "Structured Pruning of CNNs at Initialization"). Which weights a pruning at initialisation keeps
hardly matters, only how many of each layer; so layer l of density p_l can be a narrower dense layer. No official code
was found; the rule from densities to widths is as follows.

A width is chosen for each group of channels that are written and read together (:mod:`striate.compress.graph`). With
a_t the factor of group t's width, a layer between two groups has density a_s a_t (cropping both sides by p would give
p squared).

* Inside a residual block (groups bounded on every side by channels that an addition joins) all groups share one
  factor a, such that the block keeps exactly its weights: sum_l n_l (density of l at a) = sum_l n_l p_l. For a basic
  block this is a = (p_1 n_1 + p_2 n_2) / (n_1 + n_2), for a bottleneck the root of n_1 a + n_2 a^2 + n_3 a.
* Elsewhere (plain chains, stem and head) a_t is the square root of the mean density of the layers that write to t,
  weighted by their weights.
* The trunk itself, what additions join, keeps its width (``residual="inner"``) or is treated as a chain is
  (``residual="stage"``).
* Widths are rounded, at least one channel stays, and if the weights then miss the budget by more than 1 %, one factor
  kappa on all a_t, found by bisection, brings them back. This correction is an addition here.

PreConfig solves the programme of SynExp without the bound p_l <= 1: some layers become wider, some narrower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from striate.compress.allocation import synexp
from striate.compress.density import check_shares, costs, layer_density
from striate.compress.edit import equality_check, first_channels, set_widths
from striate.compress.graph import ChannelGraph, ChannelGroup, Layer, channel_graph
from striate.compress.widths import fast_multiple, rounded
from striate.engine.check import Check
from striate.engine.state import device_of
from striate.errors import CheckError, InputError, ModelError

__all__ = ["CropReport", "preconfig", "precrop"]

Residual = Literal["inner", "stage"]
Budget = Literal["params", "flops"]

TOLERANCE = 0.01
"""Share of the budget by which the weights may miss it."""


@dataclass(frozen=True, repr=False)
class CropReport:
    """What was done to a network; every cropped network carries one as ``crop_report``.

    Attributes:
        residual, divisor, seed, budget: as asked for.
        widths: layer -> (old, new) output channels, where they differ.
        params: (old, new) weights of convolutions and linear layers, without biases and norms.
        macs: (old, new) their multiply-accumulates for one image.
        target: layer -> density that was asked for.
        achieved: layer -> density that it has.
        kappa: the correction of all factors; 1 where none was needed.
        fixed: layer -> why its output channels could not be changed; the network's own output is not listed.
        checks: cropped = masked; the budget; every layer ran.
    """

    residual: str
    divisor: int
    seed: int
    budget: str
    widths: Mapping[str, tuple[int, int]]
    params: tuple[int, int]
    macs: tuple[int, int]
    target: Mapping[str, float]
    achieved: Mapping[str, float]
    kappa: float
    fixed: Mapping[str, str]
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    def __repr__(self) -> str:
        failed = [check.name for check in self.checks if check.passed is False]
        sizes = "; ".join(
            f"{name} {old:,} -> {new:,}" for name, (old, new) in (("weights", self.params), ("MACs", self.macs))
        )
        layers = f"{len(self.widths)} of {len(self.achieved)} layers of another width, {len(self.fixed)} fixed"
        return f"<CropReport: {sizes}; {layers}; failed checks: {', '.join(failed) or 'none'}>"


def precrop(
    model: nn.Module,
    density: Mapping[str, float] | float,
    example_input: Tensor,
    *,
    residual: Residual = "inner",
    divisor: int | Literal["auto"] = 1,
    budget: Budget = "params",
    seed: int = 0,
) -> nn.Module:
    """Return a narrower, plain, dense network with fresh weights, of which each layer is about as dense as asked.

    Args:
        model: any CNN; it is not touched.
        density: layer -> density from :func:`~striate.compress.density.layer_density`, or one number in (0, 1]: the
            share of all weights, spread by SynExp. Layers that a mapping leaves out count as 1.
        example_input: (N, C, H, W); one image of it is enough.
        residual: ``"inner"`` leaves channels that additions join as they are, ``"stage"`` crops them too.
        divisor: widths become multiples of it where that leaves a choice; ``"auto"`` takes what convolutions are
            fastest with on the network's device (:func:`~striate.compress.widths.fast_multiple`).
        budget: what the rounded network is held to: the weights, or the multiply-accumulates, that the densities leave.
        seed: of the new weights.

    Returns:
        A network whose attribute ``crop_report`` is a :class:`CropReport`. Train it as the original would be.

    Raises:
        InputError: a density outside (0, 1], or for no layer of the network, or below what one channel a group needs.
        ModelError: there is nothing to crop.
        CheckError: the cropped network differs from the masked one.

    >>> import torch
    >>> from striate.models.micro import ResNetMicro
    >>> small = precrop(ResNetMicro(), 0.2, torch.zeros(1, 3, 32, 32))
    >>> small.layer4[0].conv1.out_channels, small.crop_report.params
    (9, (307376, 61568))
    """
    if not isinstance(density, Mapping):
        check_shares("precrop", density=density)
    _check_words("precrop", residual, budget, divisor)
    graph = channel_graph(model, example_input)
    if isinstance(density, Mapping):
        target = dict(density)
        for name, value in target.items():
            if name not in graph.weighted:
                raise InputError("density", "precrop", allowed="of layers that the network has", got=name)
            if not 0 <= value <= 1:  # 0: a method emptied the layer; one channel stays all the same
                raise InputError("density", "precrop", allowed=f"in [0, 1] for '{name}'", got=value)
        target = {name: target.get(name, 1.0) for name in graph.weighted}
    else:
        target = layer_density(model, example_input, "synexp", density, graph=graph)
    return _configured("precrop", model, graph, target, example_input, residual, divisor, budget, seed, p_max=1.0)


def preconfig(
    model: nn.Module,
    example_input: Tensor,
    *,
    params: float | None = None,
    flops: float | None = None,
    p_max: float = 4.0,
    residual: Residual = "inner",
    divisor: int | Literal["auto"] = 1,
    seed: int = 0,
) -> nn.Module:
    """Return a network with some layers wider and some narrower, at a budget of weights or multiply-accumulates.

    Args:
        model: any CNN; it is not touched.
        example_input: (N, C, H, W).
        params: share of the original's weights, > 0.
        flops: share of the original's multiply-accumulates, > 0; with both given, both bound. With neither, the
            original's weights are spread anew.
        p_max: largest density, >= 1, and largest factor of a width.
        residual, divisor, seed: see :func:`precrop`.

    Raises:
        InputError: a share or ``p_max`` out of range.
        CheckError: the network's code holds one of its widths as a number.
    """
    _check_words("preconfig", residual, "params", divisor)
    for name, share in (("params", params), ("flops", flops)):
        if share is not None and not share > 0:
            raise InputError(name, "preconfig", allowed="> 0", got=share)
    if not 1 <= p_max < math.inf:
        raise InputError("p_max", "preconfig", allowed=">= 1 and finite", got=p_max)
    if params is None and flops is None:
        params = 1.0
    graph = channel_graph(model, example_input)
    n, f = costs(model, graph)
    values = synexp(
        n,
        f,
        params_budget=None if params is None else params * n.sum(),
        macs_budget=None if flops is None else flops * f.sum(),
        p_max=p_max,
    )
    target = dict(zip(graph.weighted, values.tolist(), strict=True))
    tight: Budget = "flops" if flops is not None and f @ values >= flops * f.sum() * (1 - 1e-6) else "params"
    return _configured("preconfig", model, graph, target, example_input, residual, divisor, tight, seed, p_max=p_max)


def _configured(
    owner: str,
    model: nn.Module,
    graph: ChannelGraph,
    target: Mapping[str, float],
    example: Tensor,
    residual: Residual,
    divisor: int | Literal["auto"],
    budget: Budget,
    seed: int,
    *,
    p_max: float,
) -> nn.Module:
    at_work = {group.index for group in graph.groups if set(group.writers) & set(graph.weighted)}
    free = [group for group in graph.groups if group.index in at_work and (residual == "stage" or not group.joined)]
    held = {name: why for name, why in graph.fixed.items() if why != "the network's output"}
    if not free:
        why = _told(graph, held) or "it has no convolution or linear layer with channels of its own."
        if graph.groups:
            why = "additions join all of its channels; residual='stage' (--residual stage) crops them too."
        raise ModelError(f"There is nothing to crop in {type(model).__name__}: {why}")
    step = fast_multiple(device_of(model)) if divisor == "auto" else divisor
    cost: Callable[[Mapping[int, float]], float] = graph.weights_at if budget == "params" else graph.macs_at
    kind = "weights" if budget == "params" else "macs"
    wanted = sum(getattr(layer, kind) * target[name] for name, layer in graph.weighted.items())
    factors = _factors(graph, free, target, p_max)
    one_channel = {group.index: group.multiple for group in free}
    if cost(one_channel) > wanted * (1 + TOLERANCE):
        least = cost(one_channel) / getattr(graph, kind)
        hint = _told(graph, held)
        if residual == "inner" and any(group.joined for group in graph.groups):
            hint = "residual='stage' crops what additions join, too."
        raise InputError(
            "density" if owner == "precrop" else budget, owner,
            allowed=f">= {least:.4f} of the {budget}, which one channel a group needs",
            got=f"{wanted / getattr(graph, kind):.4g}", hint=hint,
        )  # fmt: skip
    widths, kappa = _on_budget(free, factors, step, p_max, cost, wanted)
    changed = set_widths(model, graph, widths, example, seed=seed)
    checks = (_equality(model, graph, widths, example), _within(cost(widths), wanted, budget), _ran(graph))
    if checks[0].passed is False:
        raise CheckError(f"{checks[0].statement} The network was not cropped.")
    changed.crop_report = CropReport(  # type: ignore[assignment]
        residual=residual,
        divisor=step,
        seed=seed,
        budget=budget,
        widths={
            name: (layer.outputs.size, round(layer.outputs.width(widths)))
            for name, layer in graph.weighted.items()
            if round(layer.outputs.width(widths)) != layer.outputs.size
        },
        params=(graph.weights, round(graph.weights_at(widths))),
        macs=(graph.macs, round(graph.macs_at(widths))),
        target=dict(target),
        achieved={name: layer.density(widths) for name, layer in graph.weighted.items()},
        kappa=kappa,
        fixed=held,
        checks=checks,
    )
    return changed


def _told(graph: ChannelGraph, held: Mapping[str, str]) -> str:
    """Return in one sentence which layers keep their widths and why, or nothing."""
    first = next(iter(held.items()), None)
    return (
        f"{len(held)} of {len(graph.weighted)} layers keep their widths (first: {first[0]}, {first[1]})."
        if first
        else ""
    )


def _factors(
    graph: ChannelGraph, free: list[ChannelGroup], target: Mapping[str, float], p_max: float
) -> dict[int, float]:
    """Return group -> factor of its width, before rounding."""
    factors: dict[int, float] = {}
    for groups, layers in _components(graph, free):
        inside = not any(layer.from_image or layer.to_output for layer in layers)
        if inside and not any(graph.groups[index].joined for index in groups):
            wanted = sum(layer.weights * target[layer.name] for layer in layers)
            factors |= dict.fromkeys(groups, _common(graph, groups, layers, wanted, p_max))
            continue
        for index in groups:
            writers = [graph.weighted[name] for name in graph.groups[index].writers if name in graph.weighted]
            weights = sum(layer.weights for layer in writers)
            mean = sum(layer.weights * target[layer.name] for layer in writers) / weights
            factors[index] = math.sqrt(mean)
    return factors


def _components(graph: ChannelGraph, free: list[ChannelGroup]) -> list[tuple[list[int], list[Layer]]]:
    """Return sets of groups that layers connect, each with the layers that touch it: blocks and chains."""
    allowed = {group.index for group in free}
    root = {index: index for index in allowed}

    def find(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    touched: list[tuple[Layer, set[int]]] = []
    for layer in graph.weighted.values():
        here = {*layer.inputs.group.tolist(), *layer.outputs.group.tolist()} & allowed
        if here:
            touched.append((layer, here))
            first = find(min(here))
            for index in here:
                root[find(index)] = first
    components: dict[int, tuple[list[int], list[Layer]]] = {}
    for index in sorted(allowed):
        components.setdefault(find(index), ([], []))[0].append(index)
    for layer, here in touched:
        components[find(min(here))][1].append(layer)
    return list(components.values())


def _common(graph: ChannelGraph, groups: list[int], layers: list[Layer], wanted: float, p_max: float) -> float:
    """Return the one factor at which the layers keep ``wanted`` weights."""
    low, high = 0.0, p_max
    for _ in range(50):
        middle = (low + high) / 2
        widths = {index: middle * graph.groups[index].size for index in groups}
        kept = sum(layer.weights * layer.density(widths) for layer in layers)
        low, high = (middle, high) if kept <= wanted else (low, middle)
    return (low + high) / 2


def _on_budget(
    free: list[ChannelGroup],
    factors: Mapping[int, float],
    step: int,
    p_max: float,
    cost: Callable[[Mapping[int, float]], float],
    wanted: float,
) -> tuple[dict[int, int], float]:
    """Round the widths, and scale them all by one kappa if they miss the budget; return them and kappa."""

    steps = {group.index: _step(group, step) for group in free}
    limits = {group.index: max(group.multiple, math.floor(group.size * p_max)) for group in free}

    def at(kappa: float) -> dict[int, int]:
        wish = {group.index: min(kappa * factors[group.index], p_max) * group.size for group in free}
        return {index: rounded(width, steps[index], limits[index]) for index, width in wish.items()}

    def missed(widths: Mapping[int, int]) -> float:
        return abs(cost(widths) / wanted - 1)

    best = (at(1.0), 1.0)
    if missed(best[0]) <= TOLERANCE:
        return best
    low, high = 1e-3, 1.0
    while cost(at(high)) < wanted and high < 1e3:
        high *= 2
    for _ in range(60):
        middle = math.sqrt(low * high)
        widths = at(middle)
        best = min(best, (widths, middle), key=lambda found: missed(found[0]))
        low, high = (middle, high) if cost(widths) <= wanted else (low, middle)
    widths, kappa = best
    for _ in range(8):  # rounding alone may miss it: then single groups give or take a step
        if missed(widths) <= TOLERANCE:
            break
        sign = 1 if cost(widths) < wanted else -1
        changes = ({**widths, index: widths[index] + sign * steps[index]} for index in widths)
        possible = [new for new in changes if all(1 <= new[index] <= limits[index] for index in new)]
        nearest = min(possible, key=missed, default=widths)
        if missed(nearest) >= missed(widths):
            break
        widths = nearest
    return widths, kappa


def _step(group: ChannelGroup, step: int) -> int:
    """Return the multiple that a group's width is rounded to: the one asked for, where it leaves a choice."""
    both = math.lcm(group.multiple, step)
    return both if both <= group.size / 2 else group.multiple


def _equality(model: nn.Module, graph: ChannelGraph, widths: Mapping[int, int], example: Tensor) -> Check:
    """Check the graph on the groups that become narrower: cropped against masked, with the weights they have."""
    narrower = {index: width for index, width in widths.items() if width < graph.groups[index].size}
    pure = {index: width for index, width in narrower.items() if not graph.groups[index].mixed}
    if narrower and not pure:
        return equality_check(model, graph, first_channels(graph, narrower), example)
    return equality_check(model, graph, first_channels(graph, pure), example)


def _within(reached: float, wanted: float, budget: str) -> Check:
    off = reached / wanted - 1
    statement = f"{reached:,.0f} {'weights' if budget == 'params' else 'MACs'} where {wanted:,.0f} were asked for"
    statement += f" ({100 * off:+.2f} %; bound {100 * TOLERANCE:g} %)."
    if abs(off) > TOLERANCE:
        statement += " The widths that are free cannot come closer by one step: see residual and divisor."
    return Check("budget", abs(off) <= TOLERANCE, statement, abs(off), TOLERANCE)


def _ran(graph: ChannelGraph) -> Check:
    if not graph.unused:
        return Check("every layer ran", True, "Every layer was seen at work, in eval or in train mode.")
    statement = (
        f"{len(graph.unused)} layers never ran (first: {graph.unused[0]}) and were left as they are; if they read "
        "channels that were cropped, they no longer fit."
    )
    return Check("every layer ran", False, statement)


def _check_words(owner: str, residual: str, budget: str, divisor: int | str) -> None:
    if residual not in {"inner", "stage"}:
        raise InputError("residual", owner, allowed="'inner' or 'stage'", got=residual)
    if budget not in {"params", "flops"}:
        raise InputError("budget", owner, allowed="'params' or 'flops'", got=budget)
    if divisor != "auto" and not (isinstance(divisor, int) and divisor >= 1):
        raise InputError("divisor", owner, allowed="a whole number >= 1, or 'auto'", got=divisor)
