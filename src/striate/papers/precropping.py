"""PreCropping: do only the densities of layers matter, and does cropping channels by them do as well, and faster?

Cai, Hua, Chen, Suh, De Sa, Zhang, "Structured Pruning is All You Need for Pruning CNNs at Initialization", 2022, arXiv
2203.02549 (later "Structured Pruning of CNNs at Initialization"). Only the abstracts of its versions, parts of its text
and public reviews were at hand and there is no official code; striate.compress.precropping says which parts of the rule
from densities to widths are choices.

Laptop, three seeds, three epochs for all: the ResNet-14 for CIFAR (He et al. 2015, shortcuts of option A) on 6,000
Fashion-MNIST images of 16 x 16 pixels, at 20 % and at 5 % of its weights. SynFlow's weight mask; the same mask
permuted within each layer; the network cropped to SynFlow's densities, to SynExp's, and uniformly, each to the same
number of weights. Control: random masks with the same number of weights in which the densities of the layers are
turned round, the densest layer getting the sparsest one's. Time and memory are measured on the untrained networks,
against the masked network with its zeros in plain dense layers. Breadth: a MobileNetV2 of three inverted blocks and a
small ShuffleNetV2 (both torchvision's) on 32 x 32 pixels, one seed.

Paper: ResNet-20 on CIFAR-10 under ``--data``, densities 0.5, 0.2, 0.1 and 0.05, all arms. The schedule is recalled,
not read: SGD, momentum 0.9, weight decay 5e-4, batches of 128, learning rate 0.1 down a cosine in 160 epochs, shifted
crops and mirror images. ImageNet is not trained on at any scale, because the training loop holds its images as one
tensor; the dry run takes one step of a cropped MobileNetV2 on ImageNet's shape, with the recalled recipe (SGD, learning
rate 0.05, cosine, weight decay 4e-5, 150 epochs). Unverified against the real data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.compress.allocation import fill
from striate.compress.density import Density, layer_density
from striate.compress.graph import channel_graph
from striate.compress.masks import apply_weight_mask, bake_weight_mask, mask_density, reshuffle_mask
from striate.compress.precropping import precrop
from striate.compress.scores import weight_mask
from striate.data.cifar import cifar10
from striate.data.crops import PaddedCrop
from striate.data.small import LabelledImages, default_set, digits
from striate.engine.latency import compare_latency
from striate.engine.macs import count_macs
from striate.engine.memory import activation_bytes
from striate.engine.state import seeded
from striate.engine.train import Recipe, fit
from striate.models.cifar_resnet import CifarResNet
from striate.papers.base import Judgement, Predicate, Reproduction, Run, subplots
from striate.papers.judge import accuracies, group_records, never_testable, not_testable
from striate.papers.measure import count_correct, lazily_trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPRODUCTION"]

_ARMS = ("mask", "reshuffled", "wrong", "precrop", "synexp", "uniform")
_NAMES = {
    "dense": "dense network",
    "mask": "SynFlow mask",
    "reshuffled": "mask reshuffled within layers",
    "wrong": "densities turned round",
    "precrop": "PreCrop, SynFlow's densities",
    "synexp": "PreCrop, SynExp's densities",
    "uniform": "cropped uniformly",
}
_BREADTH = ("mobilenet", "shufflenet")
_BREADTH_DENSITY = 0.2


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    smoke = run.scale == "smoke"
    if run.scale == "paper":
        _paper(run)
        return
    densities = (0.2,) if smoke else (0.2, 0.05)
    arms: tuple[str, ...] = ("mask", "reshuffled", "wrong", "precrop") if smoke else _ARMS
    build = partial(CifarResNet, 8 if smoke else 14, in_chans=1, shortcut="pad")
    if run.wants("C1", "C2"):
        train, test = _images(run, 16)
        run.note("data", {"train": train.origin, "test": test.origin, "n": [len(train), len(test)], "pixels": 16})
        _train_all(run, "accuracy", build, (train, test), densities, arms, run.seeds)
    if run.wants("C3"):
        run.step("cost", partial(_measure_cost, run, build, densities))
    if run.wants("C4"):
        train, test = _images(run, 32)
        for name in _BREADTH[:1] if smoke else _BREADTH:
            network = partial(_mobilenet if name == "mobilenet" else _shufflenet, train.images.shape[1])
            controlled = ("mask", "wrong", "precrop")
            _train_all(run, name, network, (train, test), (_BREADTH_DENSITY,), controlled, run.seeds[:1])
    if not smoke and run.wants("C1", "C2"):
        run.figure("accuracy", lambda: _accuracy_figure(run.steps()))
        run.figure("densities", lambda: _density_figure(build(), densities[-1]))


def _images(run: Run, side: int) -> tuple[LabelledImages, LabelledImages]:
    """Return training and test images of ``side`` pixels."""
    parts = []
    for train, n in ((True, 6_000), (False, 2_000)):
        data = digits(train) if run.scale == "smoke" else default_set(train)
        if data.images.shape[-1] == 8:
            images = data.images.repeat_interleave(side // 8, 2).repeat_interleave(side // 8, 3)
        elif side == 16:
            images = F.pad(F.avg_pool2d(data.images[:n].float(), 2).round().byte(), (1, 1, 1, 1))
        else:
            images = F.pad(data.images[:n], (2, 2, 2, 2))
        parts.append(LabelledImages(images[:n], data.labels[:n], data.class_names, data.origin))
    return parts[0], parts[1]


def _recipe(run: Run, seed: int) -> Recipe:
    epochs = 1 if run.dry_run else {"smoke": 2, "laptop": 3, "paper": 160}[run.scale]
    return Recipe(epochs, 128, "sgd", 0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine", seed=seed)


def _train_all(
    run: Run,
    step: str,
    build: Callable[[], nn.Module],
    data: tuple[LabelledImages, LabelledImages],
    densities: Sequence[float],
    arms: Sequence[str],
    seeds: Sequence[int],
) -> None:
    train, test = data
    example = train.images[:1].float()
    rounds = 10 if run.scale == "smoke" or run.dry_run else 100
    for seed in seeds:

        @cache
        def synflow(density: float, seed: int = seed) -> dict[str, Tensor]:
            with seeded(seed):
                network = build()
            return weight_mask(network, example, "synflow", density, rounds=rounds)

        for density, arm in [(1.0, "dense"), *((density, arm) for density in densities for arm in arms)]:
            network = lazily_trained(
                run,
                f"precropping-{step}-{arm}",
                partial(_arm, build, arm, density, partial(synflow, density), example, seed),
                lambda: (train.images, train.labels),
                _recipe(run, seed),
                {"data": train.origin, "n": len(train), "density": density, "rounds": rounds, "version": 1},
                augment=PaddedCrop() if run.scale == "paper" else None,
            )
            run.step(f"{step}/{arm}/{density:g}/seed{seed}", partial(_measure, network, example, test))


def _arm(
    build: Callable[[], nn.Module],
    arm: str,
    density: float,
    synflow: Callable[[], dict[str, Tensor]],
    example: Tensor,
    seed: int,
) -> nn.Module:
    """Return the untrained network of an arm; its dense parent is drawn first, so all start from the same weights."""
    network = build()
    if arm == "dense":
        return network
    if arm == "mask":
        return apply_weight_mask(network, synflow())
    if arm == "reshuffled":
        return apply_weight_mask(network, reshuffle_mask(synflow(), seed))
    if arm == "wrong":
        return apply_weight_mask(network, _turned_round(synflow(), seed))
    if arm == "precrop":
        return precrop(network, mask_density(synflow()), example, seed=seed)
    rule: Density = "synexp" if arm == "synexp" else "uniform"
    return precrop(network, layer_density(network, example, rule, density), example, seed=seed)


def _turned_round(masks: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return random masks of as many weights in all, the layers' densities in reverse order of size."""
    p = mask_density(masks)
    names = sorted(p, key=p.__getitem__)
    n = np.array([masks[name].numel() for name in names], dtype=float)
    kept = sum(int(mask.sum()) for mask in masks.values())
    reversed_p = np.maximum([p[name] for name in reversed(names)], 1 / n)
    counts = np.maximum(1, np.floor(fill(reversed_p, n, kept) * n + 0.5)).astype(int)
    ordered = {
        name: (torch.arange(masks[name].numel()) < count).view(masks[name].shape)
        for name, count in zip(names, counts, strict=True)
    }
    return reshuffle_mask(ordered, seed)


def _measure(network: Callable[[], nn.Module], example: Tensor, test: LabelledImages) -> dict[str, Any]:
    model = network()
    right = count_correct(model, test.images, test.labels, batch_size=500)
    plain = bake_weight_mask(model)
    layers = [module for module in plain.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    weights = sum(int((module.weight != 0).sum()) for module in layers)
    return {"correct": right, "n": len(test), "weights": weights, "macs": count_macs(plain, example)}


def _measure_cost(run: Run, build: Callable[[], nn.Module], densities: Sequence[float]) -> dict[str, Any]:
    """Time and memory of masked and cropped networks, each against the dense network in turns."""
    with seeded(0):
        dense = build().to(run.device)
    batch = torch.rand(128, 1, 16, 16, generator=torch.Generator().manual_seed(0)).to(run.device)
    repeats, rounds = (5, 10) if run.scale == "smoke" else (21, 100)
    record: dict[str, Any] = {"batch": len(batch), "activations": activation_bytes(dense, batch)}
    for density in densities:
        masks = weight_mask(dense, batch[:1], "synflow", density, rounds=rounds)
        masked = bake_weight_mask(apply_weight_mask(dense, masks))
        networks = {"mask": masked, "precrop": precrop(dense, mask_density(masks), batch[:1])}
        networks["synexp"] = precrop(dense, density, batch[:1])
        for name, network in networks.items():
            against = dense if name == "mask" else masked
            record[f"{name} {density:g}"] = {
                "training": compare_latency(against, network, batch, repeats=repeats, training=True).to_dict(),
                "inference": compare_latency(against, network, batch, repeats=repeats).to_dict(),
                "activations": activation_bytes(network, batch),
                "macs": count_macs(network, batch[:1]),
            }
    record["macs"] = count_macs(dense, batch[:1])
    return record


def _mobilenet(channels: int) -> nn.Module:
    from torchvision.models.mobilenetv2 import MobileNetV2

    network = MobileNetV2(num_classes=10, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 1, 1], [6, 32, 1, 2]])
    return _for_grey(network, channels)


def _shufflenet(channels: int) -> nn.Module:
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    network = ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 512], num_classes=10)
    network.maxpool = nn.Identity()
    return _for_grey(network, channels)


def _for_grey(network: nn.Module, channels: int) -> nn.Module:
    """Give a network for colour images a first convolution for ``channels``."""
    path, first = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, leaf = path.rpartition(".")
    new = nn.Conv2d(channels, first.out_channels, 3, 2, 1, bias=False)
    setattr(network.get_submodule(parent), leaf, new)
    return network


def _paper(run: Run) -> None:
    """ResNet-20 on CIFAR-10; with ``dry_run`` one step on random data, and one of a cropped MobileNetV2."""
    build = partial(CifarResNet, 20, shortcut="pad")
    densities: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05)
    seeds = run.seeds
    if run.dry_run:
        generator = torch.Generator().manual_seed(0)
        random = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
        part = LabelledImages(random, torch.arange(8), (), "dry run")
        train = test = part
        densities, seeds = (0.2,), run.seeds[:1]
    else:
        root = run.data_root("CIFAR-10 (cifar-10-batches-py)")
        train, test = (cifar10(root, part) for part in (True, False))
    if run.wants("C1", "C2"):
        _train_all(run, "accuracy", build, (train, test), densities, _ARMS, seeds)
    if run.wants("C4") and run.dry_run:
        run.step("imagenet", partial(_imagenet_step, run))


def _imagenet_step(run: Run) -> dict[str, Any]:
    """One step of a cropped MobileNetV2 on images of ImageNet's shape."""
    import torchvision

    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    small = precrop(torchvision.models.mobilenet_v2(), 0.5, images).to(run.device)
    recipe = Recipe(1, 256, "sgd", 0.05, momentum=0.9, weight_decay=4e-5, schedule="cosine")
    losses = fit(small, images, torch.tensor([1, 2]), recipe)
    return {"loss": losses[-1]["loss"], "weights": small.crop_report.params[1]}  # type: ignore[union-attr, index]


def _judge_reshuffled(steps: Mapping[str, Any]) -> Judgement:
    found = _accuracies(steps, "accuracy")
    densities = sorted({density for arm, density in found if arm == "mask"}, reverse=True)
    arms = ("mask", "reshuffled", "wrong")
    if not densities or any((arm, density) not in found for arm in arms for density in densities):
        return not_testable("Masks were not trained.", "–")
    apart, bounds = {}, {}
    for density in densities:
        mask, other = found["mask", density], found["reshuffled", density]
        pooled = ((_sd(mask) ** 2 + _sd(other) ** 2) / 2) ** 0.5
        apart[density], bounds[density] = fmean(other) - fmean(mask), max(1.0, 2 * pooled)
    shown = "; ".join(
        f"{100 * d:g} %: mask {fmean(found['mask', d]):.1f}, reshuffled {fmean(found['reshuffled', d]):.1f} "
        f"({apart[d]:+.2f}, bound {bounds[d]:.2f})"
        for d in densities
    )
    control = "turned round " + ", ".join(f"{100 * d:g} %: {fmean(found['wrong', d]):.1f}" for d in densities)
    lowest = densities[-1]
    worse = min(fmean(found[arm, lowest]) for arm in ("mask", "reshuffled")) - fmean(found["wrong", lowest])
    held = [density for density in densities if abs(apart[density]) <= bounds[density]]
    if worse <= 1.0:
        reason = (
            f"Not discriminative: wrong densities cost {worse:.2f} points at {100 * lowest:g} %, so nothing is shown."
        )
        return Judgement("inconclusive", shown, control, reason)
    if len(held) == len(densities):
        return Judgement(
            "reproduced", shown, control, f"Wrong densities cost {worse:.1f} points at {100 * lowest:g} %."
        )
    if held:
        return Judgement(
            "direction only", shown, control, f"Holds at {', '.join(f'{100 * d:g} %' for d in held)} only."
        )
    return Judgement("not reproduced", shown, control, "Reshuffling changes the accuracy at every density.")


def _judge_precrop(steps: Mapping[str, Any]) -> Judgement:
    found, weights = _accuracies(steps, "accuracy"), _weights(steps, "accuracy")
    densities = sorted({density for arm, density in found if arm == "mask"}, reverse=True)
    if not densities or any((arm, d) not in found for arm in ("precrop", "wrong") for d in densities):
        return not_testable("Cropped networks were not trained.", "–")
    held, parts, tricked = [], [], []
    for density in densities:
        mean = {arm: fmean(values) for (arm, d), values in found.items() if d == density}
        equal = abs(weights["precrop", density] / weights["mask", density] - 1) <= 0.01
        gain = mean["precrop"] - mean["mask"]
        if equal and gain >= -1.0:
            held.append(density)
        if mean["wrong"] >= mean["mask"] - 1.0:
            tricked.append(density)
        note = "" if equal else f", but {weights['precrop', density] / weights['mask', density] - 1:+.1%} weights"
        parts.append(
            f"{100 * density:g} %: PreCrop {mean['precrop']:.1f} against {mean['mask']:.1f} ({gain:+.2f}{note})"
        )
    shown = "; ".join(parts)
    control = "; ".join(
        f"{100 * d:g} %: "
        + ", ".join(
            f"{label} {fmean(found[arm, d]):.1f}"
            for arm, label in (("uniform", "uniform crop"), ("synexp", "SynExp crop"), ("wrong", "turned round"))
            if (arm, d) in found
        )
        for d in densities
    )
    if len(tricked) == len(densities):
        reason = "Not discriminative: random masks with wrong densities pass the same test."
        return Judgement("inconclusive", shown, control, reason)
    if len(held) == len(densities):
        return Judgement("reproduced", shown, control)
    if held:
        return Judgement(
            "direction only", shown, control, f"Holds at {', '.join(f'{100 * d:g} %' for d in held)} only."
        )
    return Judgement("not reproduced", shown, control, "More than a point worse, or of another size, at every density.")


def _judge_cost(steps: Mapping[str, Any]) -> Judgement:
    record = steps.get("cost")
    if record is None or "precrop 0.2" not in record:
        return not_testable("Time and memory were not measured.", "–")
    crop, mask = record["precrop 0.2"], record["mask 0.2"]
    memory = crop["activations"] / record["activations"]
    shown = (
        f"20 %: step {crop['training']['ratio']:.2f} x faster [{crop['training']['low']:.2f}, "
        f"{crop['training']['high']:.2f}], inference {crop['inference']['ratio']:.2f} x; activations {memory:.2f} of "
        f"the masked network's; multiplications {crop['macs'] / record['macs']:.2f}"
    )
    control = f"the mask against the dense network: step {mask['training']['ratio']:.2f} x, activations 1.00"
    if not 0.9 <= mask["training"]["ratio"] <= 1.1:
        reason = "The same dense network with zeros in it takes another time, so the clock is not to be trusted here."
        return Judgement("inconclusive", shown, control, reason)
    if crop["training"]["ratio"] >= 1.3 and memory < 1:
        return Judgement("reproduced", shown, control)
    if crop["training"]["low"] > 1 and memory < 1:
        return Judgement("direction only", shown, control, "Faster and smaller, but the step is not 1.3 times as fast.")
    return Judgement("not reproduced", shown, control, "No real saving on this machine.")


def _judge_breadth(steps: Mapping[str, Any]) -> Judgement:
    """C4 on stand-ins."""
    better, parts, controls, tricked = [], [], [], []
    for name in _BREADTH:
        found = {arm: fmean(values) for (arm, density), values in _accuracies(steps, name).items() if density < 1}
        if not {"mask", "precrop", "wrong"} <= set(found):
            return not_testable("These networks were not trained.", "–")
        parts.append(f"{name}: PreCrop {found['precrop']:.1f}, mask {found['mask']:.1f}")
        controls.append(f"{name} turned round {found['wrong']:.1f}")
        if found["precrop"] >= found["mask"]:
            better.append(name)
        if found["wrong"] >= found["mask"]:
            tricked.append(name)
    shown, control = "; ".join(parts), "; ".join(controls)
    if len(tricked) == len(_BREADTH):
        return Judgement("inconclusive", shown, control, "Not discriminative: wrong densities pass the same test.")
    if len(better) == len(_BREADTH):
        return Judgement("reproduced", shown, control, "One seed, one density: the sign alone.")
    if better:
        return Judgement("direction only", shown, control, f"Only on {better[0]} (one seed).")
    return Judgement("not reproduced", shown, control, "The mask is better on both (one seed).")


def _accuracies(steps: Mapping[str, Any], step: str) -> dict[tuple[str, float], list[float]]:
    """(arm, density) -> per cent by seed."""
    return {_arm_and_density(name): values for name, values in accuracies(steps, step).items()}


def _weights(steps: Mapping[str, Any], step: str) -> dict[tuple[str, float], float]:
    """(arm, density) -> mean number of weights that are not zero."""
    found = group_records(steps, step).items()
    return {_arm_and_density(name): fmean(record["weights"] for record in records) for name, records in found}


def _arm_and_density(name: str) -> tuple[str, float]:
    arm, density = name.split("/")
    return arm, float(density)


def _sd(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _accuracy_figure(steps: Mapping[str, Any]) -> Figure:
    found = _accuracies(steps, "accuracy")
    densities = sorted({density for arm, density in found if arm != "dense"}, reverse=True)
    figure, axes = subplots(1, len(densities), figsize=(4.2 * len(densities), 3), sharex=True, squeeze=False)
    for axis, density in zip(axes[0], densities, strict=True):
        arms = [arm for arm in _ARMS if (arm, density) in found]
        for place, arm in enumerate(reversed(arms)):
            values = found[arm, density]
            axis.barh(place, fmean(values), color={"precrop": "C0", "synexp": "C0", "wrong": "C3"}.get(arm, "0.75"))
            axis.plot(values, [place] * len(values), "k.", markersize=5)
        dense = fmean(found["dense", 1.0])
        axis.axvline(dense, color="k", linestyle=":", linewidth=1)
        axis.set_title(f"{100 * density:g} % of the weights (dotted: dense, {dense:.1f} %)", fontsize=9)
        axis.set_yticks(range(len(arms)), [_NAMES[arm] for arm in reversed(arms)] if axis is axes[0, 0] else [])
        axis.set_xlabel("accuracy, % (dots: seeds)")
        axis.spines[["top", "right"]].set_visible(False)
    low = min(value for values in found.values() for value in values)
    axes[0, 0].set_xlim(max(0, low - 5), 100)
    figure.tight_layout()
    return figure


def _density_figure(network: nn.Module, density: float) -> Figure:
    example = torch.zeros(1, 1, 16, 16)
    graph = channel_graph(network, example)
    figure, axis = subplots(figsize=(7, 3.2))
    for method, style in (("synflow", "o-"), ("synexp", "s-"), ("erk", "^--"), ("uniform", ":")):
        p = layer_density(network, example, method, density, graph=graph)  # type: ignore[arg-type]
        axis.plot(range(len(p)), list(p.values()), style, label=method, markersize=4)
    axis.set_yscale("log")
    axis.set_xticks(range(len(p)), list(p), rotation=60, ha="right", fontsize=7)
    axis.set_ylabel("density of the layer")
    axis.set_title(f"Where {100 * density:g} % of the weights stay", fontsize=9)
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


REPRODUCTION = Reproduction(
    key="precropping",
    run=run,
    predicates=(
        Predicate(
            "C1",
            "At every density the accuracy of SynFlow's mask, reshuffled within layers, differs from that of the mask "
            "by at most 1 point, or twice the pooled standard deviation over seeds if that is more; and at the lowest "
            "density random masks with the densities turned round are more than 1 point worse than both.",
            _judge_reshuffled,
        ),
        Predicate(
            "C2",
            "At every density the network cropped to SynFlow's densities is at most 1 point less accurate than "
            "SynFlow's mask, with the same number of weights within 1 %. It tells nothing where random masks with the "
            "densities turned round pass the same test at every density.",
            _judge_precrop,
        ),
        Predicate(
            "C3",
            "At 20 % of the weights a training step of the cropped network is at least 1.3 times as fast as that of "
            "the masked dense network (medians, in turns) and keeps less memory for its backward pass. Control: the "
            "mask itself against the dense network takes 0.9 to 1.1 of its time.",
            _judge_cost,
        ),
        Predicate(
            "C4",
            "On a small MobileNetV2 and a small ShuffleNetV2, one seed, 20 % of the weights: the network cropped to "
            "SynFlow's densities is at least as accurate as SynFlow's mask. Control: densities turned round.",
            _judge_breadth,
            part="architectures",
        ),
        Predicate(
            "C4",
            "Needs training on ImageNet.",
            never_testable(
                "ImageNet is not trained on at any scale; the other part of this claim has the architectures on small "
                "images.",
                "–",
            ),
            part="ImageNet",
        ),
    ),
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0, 1, 2)},
    minutes={"smoke": 0.2, "laptop": 1.5, "paper": 1_500},
)
