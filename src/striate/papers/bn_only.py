"""BN only: how far does a network get if nothing but the scale and shift of its batch norms is trained?

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs",
ICLR 2021, arXiv 2003.00152.

Laptop: CIFAR's ResNets 8, 14 and 26 layers deep and 8 channels wide, three seeds, on 8,000 images of Fashion-MNIST
(averaged to 14 x 14, shifted by up to a pixel), 4 epochs with the paper's optimiser (SGD, momentum 0.9, learning rate
0.1, a tenth of it from 60 and from 80 % on, weight decay 1e-4) and start (Kaiming normal, γ uniform in [0, 1], β = 0).
What is trained: batch norms (bn); two random weights of each channel instead (random); everything (all); only the last
layer (output); everything but batch norms (frozen bn); and, small, a ResNet-8 that is trained whole and has at least
as many parameters as the deepest network has in batch norms. The last four only at the largest depth. A ResNet-8 of
width 24 has exactly as many batch-norm parameters as the ResNet-26, 1,008: it tells depth from width.

What differs from the paper: the data set, depth and width, and 248 steps instead of 62,400. In so few steps small
scales do not come near zero by weight decay, so "about a third" is asked for at the paper scale only.

Paper: CIFAR-10 under ``--data``, 160 epochs, batches of 128, depths 14 to 866, widths 16 to 512, five seeds, crops
after padding by 4 and mirror images. Unverified against the real data set. ImageNet is not run at any scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import count, pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from striate.data.crops import PaddedCrop
from striate.engine.state import seeded
from striate.engine.train import Recipe
from striate.learn.dead_channels import dead_channels
from striate.learn.freezing import freeze_except
from striate.learn.gamma import gamma_report, prune_gamma_
from striate.learn.grad_mask import random_parameter_mask
from striate.learn.random_init import init_bn, init_weights
from striate.models.cifar_resnet import cifar_resnet
from striate.papers.base import Judgement, Predicate, Reproduction, Run, subplots
from striate.papers.frozen_training import SmallImages, cifar10_images, fashion_images, random_images, train_arm
from striate.papers.judge import (
    differences,
    find_records,
    group_records,
    not_testable,
    percent,
    show_range,
    show_signed,
)
from striate.papers.measure import count_correct, count_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPRODUCTION"]

_ARMS = {
    "bn": ("C1", "C2", "C3", "C4", "C5"),
    "random": ("C2",),
    "all": ("C1", "C4", "C5"),
    "output": ("C1",),
    "frozen bn": ("C5",),
    "small": ("C2",),
    "bn and output": ("C1",),
    "bn and shortcuts": ("C1",),
}
"""What is trained, and which claims need it."""

_Networks = Mapping[str, tuple[tuple[int, int], ...]]

_LAPTOP: _Networks = {
    "bn": ((8, 8), (14, 8), (26, 8), (8, 24)),
    "random": ((8, 8), (14, 8), (26, 8)),
    "all": ((26, 8),),
    "output": ((26, 8),),
    "frozen bn": ((26, 8),),
    "small": ((26, 8),),
}
"""Arm -> (depth, width) of its networks."""

_DEPTHS = (14, 32, 56, 110, 218, 434, 866)
_PAPER: _Networks = {
    "bn": (*((depth, 16) for depth in _DEPTHS), *((14, width) for width in (32, 64, 128, 256, 512))),
    "random": tuple((depth, 16) for depth in _DEPTHS),
    "all": ((14, 16), (110, 16), (866, 16)),
    "output": ((866, 16),),
    "frozen bn": ((866, 16),),
    "small": ((866, 16),),
    "bn and output": ((866, 16),),
    "bn and shortcuts": ((866, 16),),
}
_DRY: _Networks = {"bn": ((866, 16),), "random": ((14, 16),)}
_SMOKE: _Networks = dict.fromkeys(_ARMS, ((8, 8),))
_NETWORKS: Mapping[str, _Networks] = {"smoke": _SMOKE, "laptop": _LAPTOP, "paper": _PAPER}


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    data = _data(run)
    run.note("data", data.describe())
    group = "cifar10" if run.scale == "paper" else "fashion"
    networks = _DRY if run.dry_run else _NETWORKS[run.scale]
    for seed in run.seeds[:1] if run.dry_run else run.seeds:
        for arm, shapes in networks.items():
            if not run.wants(*_ARMS[arm]):
                continue
            for depth, width in shapes:
                measure = partial(_measure, run, data, arm, depth, width, seed)
                run.step(f"{group}/{arm}/{depth}x{width}/seed{seed}", measure)
    if not run.dry_run:
        _draw(run, group)


def _data(run: Run) -> SmallImages:
    if run.dry_run:
        return random_images(2)
    if run.scale == "paper":
        return cifar10_images(run)
    return fashion_images(run, 8_000, 2_000)


def _recipe(run: Run, seed: int) -> Recipe:
    epochs = 1 if run.dry_run else {"smoke": 7, "laptop": 4, "paper": 160}[run.scale]
    drops = (0.5, 0.75) if run.scale == "paper" else (0.6, 0.8)
    at = (drops[0] * epochs, drops[1] * epochs)
    return Recipe(epochs, 128, "sgd", 0.1, momentum=0.9, weight_decay=1e-4, schedule="step", milestones=at, seed=seed)


def _build(arm: str, depth: int, width: int, in_chans: int, seed: int) -> nn.Module:
    """A network at its random start, frozen as the arm wants it."""
    if arm == "small":
        depth, width = 8, _small_width(_batch_norm_parameters(depth, width), in_chans)
    model = cifar_resnet(depth, width, in_chans)
    model.set_grad_checkpointing(depth >= 434)
    init_weights(model, "kaiming-normal")
    init_bn(model, "uniform")
    if arm == "random":
        random_parameter_mask(model, per_channel=2, seed=seed)
    elif arm == "frozen bn":
        freeze_except(model, lambda role: "bn" not in role.kinds)
    elif arm not in {"all", "small"}:
        kinds = {"output": ("output",), "bn and output": ("bn", "output"), "bn and shortcuts": ("bn", "shortcut")}
        freeze_except(model, kinds.get(arm, ("bn",)))
    return model


def _batch_norm_parameters(depth: int, width: int) -> int:
    with torch.device("meta"):
        return freeze_except(cifar_resnet(depth, width), "bn").trainable


def _small_width(at_least: int, in_chans: int) -> int:
    """Channels of the narrowest ResNet-8 with that many parameters."""
    with torch.device("meta"):
        sizes = ((w, count_parameters(cifar_resnet(8, w, in_chans))) for w in count(1))
        return next(width for width, parameters in sizes if parameters >= at_least)


def _measure(run: Run, data: SmallImages, arm: str, depth: int, width: int, seed: int) -> dict[str, Any]:
    build = partial(_build, arm, depth, width, data.channels, seed)
    augment = PaddedCrop(4, flip=0.5) if run.scale == "paper" else PaddedCrop(1, flip=0.0)
    what = f"{arm}, Kaiming normal, gamma uniform"
    model = train_arm(run, f"resnet{depth}x{width}", build, data, _recipe(run, seed), arm=what, augment=augment)
    images, labels = data.test
    right = partial(count_correct, model, images, labels, batch_size=500)
    record: dict[str, Any] = {
        "correct": right(),
        "n": len(labels),
        "trained": _trained_entries(arm, model, seed),
        "all": count_parameters(model),
    }
    with seeded(seed):
        record["start"] = gamma_report(build()).to_dict()["below"]
    report = gamma_report(model)
    record["below"] = report.to_dict()["below"]
    record["layers"] = {layer.name: layer.below[1e-2] for layer in report.layers}
    record["histogram"] = report.histogram(bins=40, high=1.0)[0]
    record["dead"] = dead_channels(model, _batches(run, images)).share
    record["pruned"] = {}
    for tau in (0.01, 0.05):  # the smaller first: what it sets to zero the larger would too
        prune_gamma_(model, tau)
        record["pruned"][f"{tau:g}"] = right()
    return record


def _trained_entries(arm: str, model: nn.Module, seed: int) -> int:
    if arm == "random":
        return sum(2 * conv.out_channels for conv in model.modules() if isinstance(conv, nn.Conv2d))
    return count_parameters(model, trainable=True)


def _batches(run: Run, images: torch.Tensor) -> Any:
    return (x.float() / 255 if x.dtype == torch.uint8 else x for x in images.split(500))


def _deepest(group: str) -> tuple[int, int]:
    return (866, 16) if group == "cifar10" else (26, 8)


def _accuracies(steps: Mapping[str, Any], group: str, *arms: str) -> dict[tuple[str, int, int], list[float]]:
    """(arm, depth, width) -> per cent by seed."""
    found = {}
    for name, records in group_records(steps, group).items():
        arm, shape = name.split("/")
        if arm in arms:
            depth, width = (int(number) for number in shape.split("x"))
            found[arm, depth, width] = [percent(record) for record in records]
    return found


def _not_run(group: str) -> Judgement:
    if group == "cifar10":
        reason = "CIFAR-10 is read at the paper scale only (--data); the other part measures the same on Fashion-MNIST."
    else:
        reason = "Not all the networks that this needs were trained."
    return not_testable(reason, "–")


def _judge_far(group: str, steps: Mapping[str, Any]) -> Judgement:
    found, shape = _accuracies(steps, group, "bn", "all", "output"), _deepest(group)
    bn, full, output = (found.get((arm, *shape)) for arm in ("bn", "all", "output"))
    if not (bn and full and output):
        return _not_run(group)
    measured = f"ResNet-{shape[0]}, batch norms only {show_range(bn)}"
    control = f"all {show_range(full)}; output layer only {show_range(output)}"
    least, share = (78.0, 0.0) if group == "cifar10" else (50.0, 0.7)
    reached = fmean(bn) >= least and fmean(bn) >= share * fmean(full)
    if reached and min(bn) > max(output):
        return Judgement("reproduced", measured, control)
    if min(bn) > max(output) and fmean(bn) >= 20:
        wanted = f"Wanted {least:g} %" + (f" and {share:g} of what full training reaches." if share else ".")
        return Judgement("direction only", measured, control, wanted)
    alone = min(bn) <= max(output)
    reason = "Training the output layer alone does as well." if alone else "Hardly better than chance."
    return Judgement("not reproduced", measured, control, reason)


def _judge_elsewhere(group: str, steps: Mapping[str, Any]) -> Judgement:
    found = _accuracies(steps, group, "bn", "random", "small")
    networks = _PAPER if group == "cifar10" else _LAPTOP
    depths = [shape for shape in networks["random"] if ("random", *shape) in found and ("bn", *shape) in found]
    if not depths:
        return _not_run(group)
    gains, apart = {}, True
    for shape in depths:
        bn, random = found["bn", *shape], found["random", *shape]
        gains[shape] = fmean(bn) - fmean(random)
        apart = apart and min(bn) > max(random)
    measured = "batch norms " + ", ".join(f"{fmean(found['bn', *s]):.1f} % ({s[0]})" for s in depths)
    control = "two random weights a channel " + ", ".join(f"{fmean(found['random', *s]):.1f} %" for s in depths)
    small = found.get(("small", *_deepest(group)))
    if small:
        n = next(record["trained"] for name, record in steps.items() if name.startswith(f"{group}/small/"))
        control += f"; a small network trained whole ({n:,} parameters) {fmean(small):.1f} %"
    shown = show_signed(gains.values())
    if min(gains.values()) >= 5 and apart:
        return Judgement("reproduced", measured, control)
    if min(gains.values()) < 2:
        return Judgement("not reproduced", measured, control, f"Gains by depth {shown}; one is below 2 points.")
    if not apart:
        return Judgement("inconclusive", measured, control, f"Gains by depth {shown}, but the seeds overlap.")
    return Judgement("direction only", measured, control, f"Gains by depth {shown}; 5 points at each were wanted.")


def _judge_depth(group: str, steps: Mapping[str, Any]) -> Judgement:
    """C3, depth."""
    found = _accuracies(steps, group, "bn")
    depths = (14, 110, 866) if group == "cifar10" else (8, 14, 26)
    width = 16 if group == "cifar10" else 8
    if not all(("bn", depth, width) in found for depth in depths):
        return _not_run(group)
    values = [found["bn", depth, width] for depth in depths]
    measured = "batch norms only " + ", ".join(f"{fmean(v):.1f} % ({d})" for d, v in zip(depths, values, strict=True))
    control = "a shallower network of the same width"
    steps_up = [fmean(deeper) - fmean(shallower) for shallower, deeper in pairwise(values)]
    whole = differences(values[-1], values[0])
    reason = f"Steps of {show_signed(steps_up)} points."
    if min(steps_up) > 1:
        return Judgement("reproduced", measured, control)
    if min(whole) > 0:
        return Judgement("direction only", measured, control, f"{reason} More than 1 point each was wanted.")
    if max(whole) > 0:
        return Judgement("inconclusive", measured, control, f"{reason} The seeds disagree.")
    return Judgement("not reproduced", measured, control, reason)


def _judge_width(group: str, steps: Mapping[str, Any]) -> Judgement:
    """C3, width, and depth against width at an equal number of batch-norm parameters."""
    found = _accuracies(steps, group, "bn")
    narrow, wide, deep = ((14, 16), (14, 128), (110, 16)) if group == "cifar10" else ((8, 8), (8, 24), (26, 8))
    if not all(("bn", *shape) in found for shape in (narrow, wide, deep)):
        return _not_run(group)
    values = [found["bn", *shape] for shape in (narrow, wide, deep)]
    wider, deeper = differences(values[1], values[0]), differences(values[2], values[1])
    n = [_batch_norm_parameters(*shape) for shape in (wide, deep)]
    measured = f"ResNet-{wide[0]} of width {wide[1]} {show_range(values[1])}, ResNet-{deep[0]} {show_range(values[2])}"
    control = f"ResNet-{narrow[0]} of width {narrow[1]} {show_range(values[0])}"
    reason = (
        f"Width gains {fmean(wider):+.1f} points; at {n[0]:,} and {n[1]:,} batch-norm parameters depth is "
        f"{fmean(deeper):+.1f} points from width."
    )
    if fmean(wider) <= 1 or min(wider) <= 0:
        return Judgement("not reproduced", measured, control, reason)
    if min(deeper) > 0:
        return Judgement("reproduced", measured, control, reason)
    if max(deeper) > 0:
        return Judgement("inconclusive", measured, control, f"{reason} The seeds disagree about depth against width.")
    return Judgement("direction only", measured, control, f"{reason} Width helps, but depth does not count more.")


def _judge_disabled(group: str, steps: Mapping[str, Any]) -> Judgement:
    depth, width = _deepest(group)
    records = {arm: find_records(steps, f"{group}/{arm}/{depth}x{width}") for arm in ("bn", "all")}
    if not records["bn"] or not records["all"]:
        return _not_run(group)
    share = {arm: fmean(record["below"]["0.01"] for record in found) for arm, found in records.items()}
    start = fmean(record["start"]["0.01"] for record in records["bn"])
    larger = {arm: fmean(record["below"]["0.05"] for record in found) for arm, found in records.items()}
    dead = {arm: fmean(record["dead"] for record in found) for arm, found in records.items()}
    changes = [100 * abs(r["pruned"]["0.01"] - r["correct"]) / r["n"] for r in records["bn"]]

    def shown(arm: str) -> str:
        return (
            f"{100 * share[arm]:.1f} % below 0.01, {100 * larger[arm]:.1f} % below 0.05, {100 * dead[arm]:.1f} % dead"
        )

    measured = f"batch norms only: {shown('bn')}; cut at 0.01 accuracy moves {max(changes):.2f} points"
    control = f"all trained: {shown('all')}; at the start {100 * start:.1f} % below 0.01"
    more = share["bn"] > start and share["bn"] >= 3 * share["all"]
    if group == "cifar10":
        more = more and 0.25 <= share["bn"] <= 0.42
    if more and max(changes) < 0.5:
        return Judgement("reproduced", measured, control)
    if max(changes) >= 0.5:
        reason = "Setting these scales to zero changes accuracy: the features are not switched off."
        return Judgement("not reproduced", measured, control, reason)
    if share["bn"] > start and share["bn"] > share["all"]:
        return Judgement("direction only", measured, control, "More than under full training, but not 3 times.")
    reason = "No more scales come near zero than at the start, or than under full training."
    return Judgement("not reproduced", measured, control, reason)


def _judge_frozen(group: str, steps: Mapping[str, Any]) -> Judgement:
    found, shape = _accuracies(steps, group, "frozen bn", "all", "bn"), _deepest(group)
    frozen, full, bn = (found.get((arm, *shape)) for arm in ("frozen bn", "all", "bn"))
    if not (frozen and full and bn):
        return _not_run(group)
    loss, other = fmean(full) - fmean(frozen), fmean(full) - fmean(bn)
    measured = f"all but batch norms {show_range(frozen)}: {loss:.1f} points lost"
    control = f"all {show_range(full)}; batch norms only {other:.1f} points lost"
    if loss <= 2 and loss < other:
        return Judgement("reproduced", measured, control)
    if loss <= 5 and loss < other:
        return Judgement("direction only", measured, control, "At most 2 points were wanted.")
    return Judgement("not reproduced", measured, control, f"{loss:.1f} points are lost.")


def _draw(run: Run, group: str) -> None:
    steps = run.steps()
    found = _accuracies(steps, group, *_ARMS)
    if len({shape[1] for shape in found if shape[0] == "bn"}) > 1:
        run.figure("depth", lambda: _by_depth(found))
    if ("bn", *_deepest(group)) in found and ("all", *_deepest(group)) in found:
        run.figure("gamma", lambda: _gammas(steps, group))


def _by_depth(found: Mapping[tuple[str, int, int], list[float]]) -> Figure:
    first = min(width for arm, _, width in found if arm == "bn")
    figure, axes = subplots(figsize=(5.5, 3.4))
    names = {
        "bn": "batch norms", "random": "2 random weights a channel", "all": "all", "frozen bn": "all but batch norms",
        "output": "output layer", "small": "small network, all",
    }  # fmt: skip
    for i, (arm, label) in enumerate(names.items()):
        points = sorted((depth, values) for (a, depth, width), values in found.items() if a == arm and width == first)
        if arm == "small" and points:  # far less deep than the network that it is compared with
            axes.axhline(fmean(points[0][1]), color=f"C{i}", linewidth=0.8, linestyle=":", label=label)
        if arm == "small" or not points:
            continue
        marker = "x-" if arm == "frozen bn" else "o-"  # it lies on top of full training
        axes.plot([p[0] for p in points], [fmean(p[1]) for p in points], marker, color=f"C{i}", label=label)
        for depth, values in points:
            axes.plot([depth] * len(values), values, ".", color=f"C{i}", markersize=3)
    for (arm, depth, width), values in found.items():
        if arm == "bn" and width > first:
            axes.plot(depth, fmean(values), "s", color="C0", mfc="none")
            axes.annotate(
                f"width {width}", (depth, fmean(values)), xytext=(6, 0), textcoords="offset points", fontsize=7
            )
    axes.set(xlabel="depth", ylabel="accuracy, %", ylim=(0, 100), xscale="log")
    ticks = sorted({depth for _, depth, _ in found})
    axes.set_xticks(ticks, [str(depth) for depth in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title="trained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _gammas(steps: Mapping[str, Any], group: str) -> Figure:
    depth, width = _deepest(group)
    figure, axes = subplots(figsize=(5, 3))
    edges = torch.linspace(0, 1, 41).tolist()
    for arm, label, colour in (("bn", "batch norms only", "C0"), ("all", "all trained", "0.5")):
        records = find_records(steps, f"{group}/{arm}/{depth}x{width}")
        counts = torch.tensor([record["histogram"] for record in records]).double().sum(0)
        axes.stairs((counts / counts.sum()).tolist(), edges, color=colour, label=label, fill=arm == "all", alpha=0.8)
    axes.axhline(1 / 40, color="k", linewidth=0.7, linestyle=":", label="at the start")
    axes.set(xlabel="|γ| (the last bin holds what is larger)", ylabel="share of channels", xlim=(0, 1))
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


_FASHION, _CIFAR = "Fashion-MNIST", "CIFAR-10"

REPRODUCTION = Reproduction(
    key="bn-only",
    run=run,
    predicates=(
        Predicate(
            "C1",
            "ResNet-26 of width 8 with only batch norms trained reaches, mean over seeds, at least 50 % and at least "
            "0.7 of what full training reaches, and in every seed more than with only the output layer trained.",
            partial(_judge_far, "fashion"),
            part=_FASHION,
        ),
        Predicate(
            "C1",
            "ResNet-866 with only batch norms trained reaches at least 78 % (published: 82 %), and in every seed more "
            "than with only the output layer trained.",
            partial(_judge_far, "cifar10"),
            part=_CIFAR,
        ),
        Predicate(
            "C2",
            "At every depth batch norms give at least 5 points more, mean over seeds, than as many random weights of "
            "the convolutions, and the seeds of the two do not overlap. Below 2 points anywhere: not reproduced.",
            partial(_judge_elsewhere, "fashion"),
            part=_FASHION,
        ),
        Predicate("C2", "The same on CIFAR-10, depths 14 to 866.", partial(_judge_elsewhere, "cifar10"), part=_CIFAR),
        Predicate(
            "C3",
            "With only batch norms trained, mean accuracy rises by more than 1 point from depth 8 to 14 and from 14 to "
            "26.",
            partial(_judge_depth, "fashion"),
            part=f"depth, {_FASHION}",
        ),
        Predicate(
            "C3",
            "ResNet-8 of width 24 is better than of width 8 by more than 1 point and in every seed; ResNet-26 of width "
            "8, with as many batch-norm parameters as that of width 24, is better still in every seed.",
            partial(_judge_width, "fashion"),
            part=f"width, {_FASHION}",
        ),
        Predicate(
            "C3",
            "The same on CIFAR-10 from depth 14 to 110 and from 110 to 866.",
            partial(_judge_depth, "cifar10"),
            part=f"depth, {_CIFAR}",
        ),
        Predicate(
            "C3",
            "The same on CIFAR-10 for ResNet-14 of widths 16 and 128, and ResNet-110 (8,288 batch-norm parameters "
            "against 8,960).",
            partial(_judge_width, "cifar10"),
            part=f"width, {_CIFAR}",
        ),
        Predicate(
            "C4",
            "At the largest depth the share of |γ| < 0.01 is at least 3 times that of full training, and larger than "
            "at the start; setting these to zero changes accuracy by less than 0.5 points in every seed.",
            partial(_judge_disabled, "fashion"),
            part=_FASHION,
        ),
        Predicate(
            "C4",
            "The same on CIFAR-10, and the share is about a third: from 25 to 42 %.",
            partial(_judge_disabled, "cifar10"),
            part=_CIFAR,
        ),
        Predicate(
            "C5",
            "At the largest depth, freezing batch norms and training all else loses at most 2 points against training "
            "all, and less than freezing all else does.",
            partial(_judge_frozen, "fashion"),
            part=_FASHION,
        ),
        Predicate("C5", "The same on CIFAR-10.", partial(_judge_frozen, "cifar10"), part=_CIFAR),
    ),
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0, 1, 2, 3, 4)},
    minutes={"smoke": 0.2, "laptop": 4, "paper": 12_000},
)
