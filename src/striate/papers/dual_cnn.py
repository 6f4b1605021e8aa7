"""Dual complementary CNNs: do two small networks and a memory do the work of a large one for less energy?

Kinnas, Violos, Kompatsiaris, Papadopoulos, "Reducing Inference Energy Consumption Using Dual Complementary CNNs", FGCS
2025, arXiv 2412.01039. Where the authors' script and the paper differ, the paper is followed: complementarity is
balanced, entropy is normalised when the pair runs, too.

Laptop, three seeds, on one of the paper's own sets: Fashion-MNIST, 28 x 28; 12,000 training images, 3,000 more for
choosing the pair and its threshold, 3,000 of the test part for what is judged. A pool of four small networks (a plain
CNN of 9 thousand parameters, depthwise-separable, 7 x 7 kernels, VGG-like) and a large one (ResNet-14 of width 32), all
trained for two epochs by one recipe (Adam, one cycle up to 3e-3). Score: the difference of the two largest
probabilities, with post-check. Cost is counted: multiply-accumulates of the networks that really ran plus the
operations of the fingerprints. Processor seconds of single images are shown beside it and not judged; joules where the
kernel's counters can be read.

Streams: the 3,000 test images and a copy of each, in one seeded order (42, the authors'); the same with every copy
turned by 90, 180 or 270 degrees or mirrored; and the images alone.

Paper: the 38 torchvision networks of the authors' pool on ImageNet's validation set, one half for choosing and one for
judging, against the most accurate of them. ``--data`` holds ``val/<wnid>/*.JPEG`` and ``checkpoints/NAME.pth``
(torchvision's state dicts). All see the same 224 x 224 crops. CIFAR-10 and Intel scenes need the authors' trained pool
and are left out; a power meter, too. Unverified against the real data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.compress.dual import DualCNN
from striate.compress.pairing import choose_pair, complementarity
from striate.compress.perceptual_hash import FingerprintKind, fingerprint_operations, fingerprints
from striate.compress.perceptual_memory import PerceptualMemory
from striate.compress.threshold import KINDS, search_threshold
from striate.data.small import default_set, digits
from striate.engine.energy import EnergyKind, EnergyMeter
from striate.engine.load import load_model
from striate.engine.macs import count_macs
from striate.engine.model import Preprocessing, VisionModel
from striate.engine.stats import bootstrap_mean, spearman
from striate.engine.train import Recipe, trained
from striate.errors import RunError
from striate.models.cifar_resnet import CifarResNet
from striate.papers.base import Judgement, Predicate, Reproduction, Run, subplots
from striate.papers.judge import find_records, never_testable, not_testable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPRODUCTION"]

_STREAMS = ("once", "twice", "turned")
_MEMORIES: tuple[FingerprintKind, ...] = ("exact", "dhash", "invariants")
_BATCH = 500
_IMAGENET = Preprocessing((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_POOL = (
    "convnext_small", "convnext_tiny", "densenet121", "densenet161", "densenet169", "densenet201", "googlenet",
    "inception_v3", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "mobilenet_v3_small",
    "mobilenet_v3_large", "regnet_x_16gf", "regnet_x_1_6gf", "regnet_x_3_2gf", "regnet_x_400mf", "regnet_x_800mf",
    "regnet_x_8gf", "regnet_y_1_6gf", "regnet_y_3_2gf", "regnet_y_400mf", "regnet_y_800mf", "regnet_y_8gf",
    "resnext50_32x4d", "resnet101", "resnet18", "resnet34", "resnet50", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "swin_s", "swin_t", "swin_v2_s", "swin_v2_t",
)  # fmt: skip


@dataclass(frozen=True)
class _Images:
    """uint8 images by index, (K, C, H, W), and all labels."""

    get: Callable[[Tensor], Tensor]
    labels: Tensor

    def batches(self, order: Tensor) -> Iterator[Tensor]:
        for part in order.split(_BATCH):
            yield self.get(part)


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    for seed in run.seeds:
        parts, pool = _imagenet(run) if run.scale == "paper" else _small(run, seed)
        pairs = run.step(f"pairs/seed{seed}", partial(_measure_pairs, pool, *parts))
        if run.wants("C2"):
            run.step(f"memory/seed{seed}", partial(_measure_memory, pool, pairs, parts[1]))
        if run.wants("C1", "C2") and seed == run.seeds[0]:
            run.step("clock", partial(_measure_clock, pool, pairs, parts[1]))
    if run.scale != "smoke" and not run.dry_run:
        run.figure("pair", lambda: _figure(run.steps()))


def _small(run: Run, seed: int) -> tuple[tuple[_Images, _Images], dict[str, Callable[[], VisionModel]]]:
    """Return images to choose on and to judge on, and the pool with the large network last."""
    smoke = run.scale == "smoke"
    train, test = (digits(part) if smoke else default_set(part) for part in (True, False))
    n, n_val, n_test = (1_000, 400, 360) if len(train) < 15_000 else (12_000, 3_000, 3_000)
    run.note("data", {"train": train.origin, "test": test.origin, "n": [n, n_val, n_test]})
    sets = (train.images[n : n + n_val], train.labels[n : n + n_val]), (test.images[:n_test], test.labels[:n_test])
    first, second = (_Images(images.__getitem__, labels) for images, labels in sets)
    pixels = train.images[:n].double() / 255
    size = (train.images.shape[1], train.images.shape[2], train.images.shape[3])
    preprocessing = Preprocessing(size, (round(pixels.mean().item(), 4),), (round(pixels.std().item(), 4),))
    recipe = Recipe(epochs=2, batch_size=128, lr=3e-3, schedule="one-cycle", seed=seed)

    def network(name: str) -> VisionModel:
        model = trained(
            f"dual-cnn-{name}",
            lambda: VisionModel(_build(name, size).to(memory_format=torch.channels_last), preprocessing),
            lambda: (train.images[:n], train.labels[:n]),
            recipe,
            key={"data": train.origin, "n": n, "version": 1},
            device=run.device,
        )
        assert isinstance(model, VisionModel)
        return model

    names = ("plain", "kernel 7", "large") if smoke else ("plain", "separable", "kernel 7", "vgg", "large")
    pool: dict[str, Callable[[], VisionModel]] = {name: cache(partial(network, name)) for name in names}
    return (first, second), pool


def _build(name: str, size: Sequence[int]) -> nn.Module:
    """Return a network of the pool for images (C, H, W)."""
    channels, side = size[0], size[1]
    if name == "large":
        return CifarResNet(14, 32, in_chans=channels) if side > 8 else CifarResNet(14, 16, in_chans=channels)
    pool, flat = nn.MaxPool2d(2), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if name == "plain":
        body = [_conv(channels, 8), pool, _conv(8, 16), pool, _conv(16, 32), pool, nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(32 * (side // 8) ** 2, 10))
    if name == "separable":
        body = [_conv(channels, 16), *_separable(16, 32), *_separable(32, 64), flat]
        return nn.Sequential(*body, nn.Linear(64, 10))
    if name == "kernel 7":
        return nn.Sequential(_conv(channels, 16, 7, 2), _conv(16, 32, 7, 2), flat, nn.Linear(32, 10))
    widths = ((channels, 12), (12, 24), (24, 48))
    body = [layer for inner, outer in widths for layer in (_conv(inner, outer), _conv(outer, outer), pool)]
    return nn.Sequential(*body, flat, nn.Linear(48, 10))


def _conv(inner: int, outer: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.ReLU())


def _separable(inner: int, outer: int) -> tuple[nn.Module, nn.Module]:
    return _conv(inner, inner, stride=2, groups=inner), _conv(inner, outer, 1)


def _imagenet(run: Run) -> tuple[tuple[_Images, _Images], dict[str, Callable[[], VisionModel]]]:
    """Return the halves of ImageNet's validation set and the authors' pool; in a dry run random images and weights."""
    if run.dry_run:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (4, *_IMAGENET.input_size), dtype=torch.uint8, generator=generator)
        part = _Images(images.__getitem__, torch.full((4,), -1))  # all wrong, so the dearest counts as large
        names = ("shufflenet_v2_x0_5", "mnasnet0_5", "resnet18")
        return (part, part), _pool(None, names, run.device)
    root = run.data_root("ImageNet and torchvision's checkpoints")
    from torchvision.datasets import ImageFolder

    from striate.data.picture import prepare

    folder = ImageFolder(str(root / "val"))
    labels = torch.tensor(folder.targets)
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(42))

    def half_of(half: Tensor) -> _Images:
        def get(rows: Tensor) -> Tensor:
            pictures = [prepare(folder[int(half[row])][0], _IMAGENET) for row in rows]
            return (torch.stack(pictures) * 255).round().byte()

        return _Images(get, labels[half])

    run.note("data", {"origin": "ImageNet, validation set", "n": len(labels)})
    return (half_of(mixed[::2]), half_of(mixed[1::2])), _pool(root, _POOL, run.device)


def _pool(root: Path | None, names: Sequence[str], device: torch.device) -> dict[str, Callable[[], VisionModel]]:
    return {name: cache(partial(_published, root, name, device)) for name in names}


def _published(root: Path | None, name: str, device: torch.device) -> VisionModel:
    spec = f"torchvision:{name}"
    if root is None:
        model = load_model(spec)
    else:
        model = load_model(str(root / "checkpoints" / f"{name}.pth"), architecture=spec, num_classes=1000)
    return VisionModel(model.network, _IMAGENET, name=name).to(device).eval()


def _measure_pairs(
    pool: Mapping[str, Callable[[], VisionModel]], chosen_on: _Images, judged_on: _Images
) -> dict[str, Any]:
    """Every pair of the pool: complementarity and threshold on the first images, accuracy and cost on the second."""
    before, after = (cache(lambda name, part=part: _logits(pool[name](), part)) for part in (chosen_on, judged_on))
    y, y_judged = chosen_on.labels, judged_on.labels
    macs = {
        name: count_macs(model(), torch.zeros(1, *model().preprocessing.input_size)) for name, model in pool.items()
    }
    validation = {name: _accuracy(before(name), y) for name in pool}
    large = "large" if "large" in pool else max(pool, key=lambda name: (validation[name], macs[name]))
    small = sorted((name for name in pool if name != large), key=lambda name: (macs[name], -validation[name]))
    predictions = torch.stack([before(name).argmax(1) for name in small])
    balanced, unbalanced = (complementarity(predictions, y, balanced=balanced) for balanced in (True, False))
    i, j = choose_pair(balanced, [macs[name] for name in small], limit=0.6 * macs[large])
    best = max(small, key=validation.__getitem__)

    def cascade(a: str, b: str) -> dict[str, Any]:
        return _cascade((before(a), before(b)), y, (after(a), after(b)), y_judged, (macs[a], macs[b]))

    pairs = {
        f"{small[a]} + {small[b]}": {
            "complementarity": float(balanced[a, b]),
            "unbalanced": float(unbalanced[a, b]),
            "validation": fmean((validation[small[a]], validation[small[b]])),
            **cascade(small[a], small[b]),
        }
        for a, b in combinations(range(len(small)), 2)
    }
    twice = predictions[small.index(best)].expand(2, -1)
    return {
        "n": [len(y), len(y_judged)],
        "macs": macs,
        "accuracy": {name: _accuracy(after(name), y_judged) for name in pool},
        "large": large,
        "best alone": best,
        "chosen": [small[i], small[j]],
        "pairs": pairs,
        "same twice": {"complementarity": float(complementarity(twice, y)[0, 1]), **cascade(best, best)},
        "curves": _curves(after(small[i]), after(small[j]), y_judged),
    }


def _cascade(
    validation: tuple[Tensor, Tensor], y: Tensor, judged: tuple[Tensor, Tensor], y_judged: Tensor, macs: tuple[int, int]
) -> dict[str, Any]:
    """The threshold that is best on validation, and what it gives on the judged images, for each kind of confidence."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        threshold = search_threshold(*validation, y, kind).best
        curve = search_threshold(*judged, y_judged, kind)
        accuracy, usage = curve.at(threshold)
        found[kind] = {"threshold": threshold, "accuracy": accuracy, "usage": usage, "macs": macs[0] + usage * macs[1]}
    alone = [_accuracy(logits, y_judged) for logits in judged]
    return {**found, "union": curve.union, "alone": alone, "gain": found["difference"]["accuracy"] - max(alone)}


def _curves(first: Tensor, second: Tensor, labels: Tensor) -> dict[str, Any]:
    """Usage and accuracy at every 20th threshold, for the figure."""
    curves = {kind: search_threshold(first, second, labels, kind) for kind in KINDS}
    return {kind: {"usage": curve.usage[::20], "accuracy": curve.accuracy[::20]} for kind, curve in curves.items()}


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


@torch.inference_mode()
def _logits(model: VisionModel, images: _Images) -> Tensor:
    rows = torch.arange(len(images.labels))
    return torch.cat([model(part.to(model.mean.device).float() / 255).cpu() for part in images.batches(rows)])


def _pair(
    pool: Mapping[str, Callable[[], VisionModel]], pairs: Mapping[str, Any], memory: PerceptualMemory | None = None
) -> DualCNN:
    a, b = pairs["chosen"]
    threshold = pairs["pairs"][f"{a} + {b}"]["difference"]["threshold"]
    return DualCNN(pool[a](), pool[b](), threshold, memory=memory)


def _measure_memory(
    pool: Mapping[str, Callable[[], VisionModel]], pairs: Mapping[str, Any], images: _Images
) -> dict[str, Any]:
    """The chosen pair with each memory on each stream: what ran, what was remembered, and which labels changed."""
    n = len(images.labels)
    size = pool[pairs["large"]]().preprocessing.input_size
    record: dict[str, Any] = {"large": pairs["macs"][pairs["large"]]}
    for stream in _STREAMS:
        rows, turns = _stream(stream, n)
        plain, cost = _answers(_pair(pool, pairs), images, rows, turns)
        record[stream] = {
            "n": len(rows),
            "macs": cost,
            "accuracy": float((plain == images.labels[rows]).double().mean()),
        }
        for kind in _MEMORIES:
            memory = PerceptualMemory(kind)
            labels, cost = _answers(_pair(pool, pairs, memory), images, rows, turns)
            found, strangers = _hits(images, rows, turns, kind)
            # A memory also takes the digest of every image, to count hits that are not exact.
            operations = sum(fingerprint_operations(part, size) for part in {kind, "exact"})
            record[stream][kind] = {
                "macs": cost,
                "operations": len(rows) * operations,
                "agreement": float((labels == plain).double().mean()),
                "accuracy": float((labels == images.labels[rows]).double().mean()),
                "copies found": found,
                "strangers": strangers,
                "counts": memory.counts.to_dict(),
            }
    return record


def _stream(stream: str, n: int) -> tuple[Tensor, Tensor]:
    """Return which image comes when, (K,), and how it is turned: 0 not, 1 to 3 quarter turns, 4 and 5 mirrored."""
    generator = torch.Generator().manual_seed(42)
    rows = torch.arange(n) if stream == "once" else torch.arange(n).repeat(2)
    turns = torch.zeros(len(rows), dtype=torch.long)
    if stream == "turned":
        turns[n:] = torch.randint(1, 6, (n,), generator=generator)
    order = torch.randperm(len(rows), generator=generator)
    return rows[order], turns[order]


def _turned(images: Tensor, turns: Tensor) -> Tensor:
    turned = images.clone()
    for turn in turns.unique().tolist():
        which = turns == turn
        turned[which] = images[which].flip(turn - 2) if turn > 3 else images[which].rot90(turn, (2, 3))
    return turned


def _answers(pair: DualCNN, images: _Images, rows: Tensor, turns: Tensor) -> tuple[Tensor, float]:
    """Return the labels of a stream and the multiply-accumulates that ran for them."""
    labels = []
    with EnergyMeter("macs") as meter:
        for batch, turn in zip(images.batches(rows), turns.split(_BATCH), strict=True):
            labels.append(pair.predict(_turned(batch, turn)).label)
    return torch.cat(labels), meter.value


def _hits(images: _Images, rows: Tensor, turns: Tensor, kind: FingerprintKind) -> tuple[float, float]:
    """Return the share of second copies that meet their first one, and of images that meet another image."""
    seen: dict[int, int] = {}
    came: set[int] = set()
    copies = found = strangers = 0
    turned = (_turned(batch, turn) for batch, turn in zip(images.batches(rows), turns.split(_BATCH), strict=True))
    keys = (key for batch in turned for key in fingerprints(batch, kind))
    for row, key in zip(rows.tolist(), keys, strict=True):
        second = row in came
        came.add(row)
        copies += second
        origin = None if key is None else seen.get(key)
        found += second and origin == row
        strangers += origin is not None and origin != row
        if key is not None:
            seen.setdefault(key, row)
    return found / max(1, copies), strangers / len(rows)


def _measure_clock(
    pool: Mapping[str, Callable[[], VisionModel]], pairs: Mapping[str, Any], images: _Images
) -> dict[str, Any]:
    """Cost of single images, not judged: processor seconds, and joules where the machine counts them."""
    rows, _ = _stream("twice", len(images.labels))
    pictures = [images.get(row[None]) for row in rows[: min(625, len(rows) // 2)]]
    large, pair = pool[pairs["large"]](), _pair(pool, pairs)
    with_memory = _pair(pool, pairs, PerceptualMemory("dhash"))
    calls: dict[str, Callable[[Tensor], Any]] = {
        "large": lambda x: large(x.to(large.mean.device).float() / 255),
        "pair": pair.predict,
        "pair with dhash": with_memory.predict,
        **{f"fingerprint {kind}": partial(fingerprints, kind=kind) for kind in _MEMORIES},
    }
    record: dict[str, Any] = {"images": len(pictures) - 25}
    kinds: tuple[EnergyKind, ...] = ("time", "rapl")
    try:
        with EnergyMeter("rapl"):
            pass
    except RunError as error:
        kinds, record["joules"] = ("time",), str(error)
    for name, call in calls.items():
        with torch.inference_mode():
            for picture in pictures[:25]:  # not timed, as the authors leave out their first 25
                call(picture)
            with ExitStack() as stack:
                meters = [stack.enter_context(EnergyMeter(kind)) for kind in kinds]
                for picture in pictures[25:]:
                    call(picture)
        record[name] = {meter.unit: meter.value / record["images"] for meter in meters}
    return record


def _figure(steps: Mapping[str, Any]) -> Figure:
    figure, (left, middle, right) = subplots(1, 3, figsize=(14, 4))
    pairs = find_records(steps, "pairs")
    first = pairs[0]
    for kind, curve in first["curves"].items():
        left.plot(100 * np.array(curve["usage"]), 100 * np.array(curve["accuracy"]), label=kind)
    a, b = first["chosen"]
    chosen = first["pairs"][f"{a} + {b}"]
    left.plot(100 * chosen["difference"]["usage"], 100 * chosen["difference"]["accuracy"], "o", color="C0")
    left.axhline(100 * first["accuracy"][first["large"]], color="black", linewidth=1, label="large network")
    left.axhline(100 * chosen["union"], color="grey", linestyle=":", label="one of the two is right")
    left.set(xlabel="images that the second sees (%)", ylabel="accuracy (%)", title=f"{a} + {b}, seed 0")
    left.legend(fontsize=8)
    for seed, record in enumerate(pairs):
        found = record["pairs"].values()
        middle.plot([p["complementarity"] for p in found], [100 * p["gain"] for p in found], "o", label=f"seed {seed}")
    middle.axhline(0, color="grey", linewidth=0.8)
    middle.set(xlabel="complementarity", ylabel="gain over the better of the two (points)", title="every pair")
    middle.legend(fontsize=8)
    memory = find_records(steps, "memory")
    if memory:
        names = ["large", "pair, once", *(f"{kind}, {stream}" for stream in ("twice", "turned") for kind in _MEMORIES)]
        costs = [fmean(_cost(record, name) for record in memory) for name in names]
        right.barh(names[::-1], costs[::-1], color="C0")
        right.set(xscale="log", xlabel="operations an image, memory included", title="cost")
    figure.tight_layout()
    return figure


def _cost(record: Mapping[str, Any], name: str) -> float:
    """Operations an image: of the large network, the pair alone, or the pair with a memory on a stream."""
    if name == "large":
        return float(record["large"])
    if name == "pair, once":
        return float(record["once"]["macs"] / record["once"]["n"])
    kind, stream = name.split(", ")
    return float((record[stream][kind]["macs"] + record[stream][kind]["operations"]) / record[stream]["n"])


def _judge_pair(steps: Mapping[str, Any]) -> Judgement:
    seeds = find_records(steps, "pairs")
    if not seeds:
        return _NOTHING
    rows = []
    for record in seeds:
        pair = record["pairs"][" + ".join(record["chosen"])]["difference"]
        large = record["large"]
        alone, least = record["best alone"], min(record["pairs"].values(), key=lambda p: p["complementarity"])
        rows.append(
            [100 * (accuracy - record["accuracy"][large]) for accuracy in
             (pair["accuracy"], record["accuracy"][alone], least["difference"]["accuracy"])]
            + [cost / record["macs"][large] for cost in (pair["macs"], record["macs"][alone])]
        )  # fmt: skip
    apart, alone_apart, least_apart, cost, alone_cost = (list(column) for column in zip(*rows, strict=True))
    interval = bootstrap_mean(apart)
    names = ", ".join(sorted({" + ".join(record["chosen"]) for record in seeds}))
    shown = (
        f"{names}: {interval.value:+.2f} points [{interval.low:+.2f}, {interval.high:+.2f}] against the large network, "
        f"{100 * fmean(cost):.2g} % of its multiplications"
    )
    control = (
        f"best small network alone {fmean(alone_apart):+.2f} at {100 * fmean(alone_cost):.2g} %; least complementary "
        f"pair {fmean(least_apart):+.2f}"
    )
    if fmean(cost) > 0.6:
        return Judgement("not reproduced", shown, control, "It costs more than 0.6 of the large network.")
    if interval.value < -1.0:
        others = {
            name: fmean(100 * (r["pairs"][name]["difference"]["accuracy"] - r["accuracy"][r["large"]]) for r in seeds)
            for name in seeds[0]["pairs"]
        }
        other = max(others, key=others.__getitem__)
        reason = (
            "More than a point below the large network: the measure favours networks that often err, whoever they err "
            f"with. The pair that does best on the test images, {other}, is {others[other]:+.2f} points apart."
        )
        return Judgement("not reproduced", shown, control, reason)
    if fmean(alone_apart) >= -1.0:
        reason = "Not discriminative: one small network alone is within a point of the large one, so no pair is needed."
        return Judgement("inconclusive", shown, control, reason)
    return Judgement("reproduced", shown, control)


def _judge_memory(steps: Mapping[str, Any]) -> Judgement:
    seeds = find_records(steps, "memory")
    if not seeds:
        return _NOTHING
    saved = fmean(1 - _cost(record, "dhash, twice") / record["large"] for record in seeds)
    needed = fmean(1 - 0.5 * _cost(record, "pair, once") / record["large"] - 0.02 for record in seeds)
    of_pair = fmean(_cost(record, "dhash, twice") / _cost(record, "pair, once") for record in seeds)
    agreement = fmean(record["twice"]["dhash"]["agreement"] for record in seeds)
    turned = {kind: fmean(record["turned"][kind]["copies found"] for record in seeds) for kind in _MEMORIES}
    strangers = {kind: fmean(record["once"][kind]["strangers"] for record in seeds) for kind in _MEMORIES}
    shown = (
        f"{100 * saved:.2f} % saved against the large network (needed {100 * needed:.2f}), {100 * (1 - of_pair):.1f} % "
        f"against the pair; labels as without memory {100 * agreement:.2f} %; turned copies found by invariants "
        f"{100 * turned['invariants']:.1f} %, by dHash {100 * turned['dhash']:.1f} %; {_break_even(steps, seeds)}"
    )
    control = (
        f"images that come once but get another image's answer: dHash {100 * strangers['dhash']:.2f} %, invariants "
        f"{100 * strangers['invariants']:.2f} %, exact {100 * strangers['exact']:.2f} %; exact memory saves "
        f"{100 * fmean(1 - _cost(r, 'exact, twice') / _cost(r, 'pair, once') for r in seeds):.1f} % against the pair"
    )
    failed = [
        words
        for held, words in (
            (saved >= needed, "saves too little"),
            (agreement >= 0.995, "changes labels"),
            (turned["invariants"] >= 0.9, "invariants miss turned copies"),
            (turned["dhash"] <= 0.05, "dHash finds turned copies too, so the test of the invariants shows nothing"),
        )
        if not held
    ]
    if not failed:
        return Judgement("reproduced", shown, control)
    return Judgement("not reproduced", shown, control, f"The memory {'; '.join(failed)}.")


def _break_even(steps: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]]) -> str:
    """Say from which share of repeated images on a dHash memory costs less than it saves."""
    once = [record["once"] for record in seeds]
    shares = [f"{100 * fmean(record['dhash']['operations'] / record['macs'] for record in once):.2g} % by operations"]
    if "clock" in steps:
        pair, fingerprint, digest = (
            steps["clock"][name]["processor seconds"] for name in ("pair", "fingerprint dhash", "fingerprint exact")
        )
        shares.append(f"{100 * (fingerprint + digest) / pair:.2g} % by processor time")
    return f"it pays where more than {', '.join(shares)} of the images are repeated"


def _judge_criterion(steps: Mapping[str, Any]) -> Judgement:
    seeds = [record for record in find_records(steps, "pairs") if len(record["pairs"]) >= 3]
    if not seeds:
        return _NOTHING
    rhos = {
        criterion: [
            spearman([pair[criterion] for pair in record["pairs"].values()],
                     [pair["gain"] for pair in record["pairs"].values()])
            for record in seeds
        ]
        for criterion in ("complementarity", "unbalanced", "validation")
    }  # fmt: skip
    interval = bootstrap_mean(rhos["complementarity"])
    n = len(seeds[0]["pairs"])
    shown = f"Spearman {interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}] over {n} pairs a seed"
    rest = {criterion: fmean(values) for criterion, values in rhos.items()}
    twice = max(abs(record["same twice"][part]) for record in seeds for part in ("gain", "complementarity"))
    control = (
        f"mean accuracy of the two {rest['validation']:.2f}, unbalanced complementarity {rest['unbalanced']:.2f}; "
        f"the same network twice: gain and complementarity {twice:g}"
    )
    if twice:
        return Judgement("inconclusive", shown, control, "A network gains from its own copy, so the measure is wrong.")
    if interval.value <= 0.5:
        return Judgement("not reproduced", shown, control, "Complementarity does not rank the pairs by their gain.")
    if rest["validation"] >= interval.value:
        reason = "It ranks the pairs by their gain, but their mean accuracy ranks them as well."
        return Judgement("direction only", shown, control, reason)
    return Judgement("reproduced", shown, control)


_NOTHING = not_testable("It was not measured in this run.", "–")


REPRODUCTION = Reproduction(
    key="dual-cnn",
    run=run,
    predicates=(
        Predicate(
            "C1",
            "The most complementary pair of small networks, chosen and tuned on validation images (difference, "
            "post-check), is on average at most 1.0 point below the large network at <= 0.6 of its "
            "multiply-accumulates. Control: the best small network alone; where it keeps within the point too, nothing "
            "is shown.",
            _judge_pair,
        ),
        Predicate(
            "C2",
            "With every image twice, a dHash memory brings the cost, fingerprints included, to at most half of the "
            "pair's plus 2 % of the large network's, and >= 99.5 % of the labels stay; of turned copies the invariants "
            "find >= 90 % and dHash <= 5 %. Controls: an exact memory, and images that come once.",
            _judge_memory,
        ),
        Predicate(
            "C3",
            "The Spearman correlation of complementarity on validation images with the pair's gain over its better "
            "half on test images is > 0.5 over the six pairs, mean of the seeds. Controls: the same network twice "
            "gains nothing; the pair's mean accuracy as the criterion, which must rank worse for more than 'direction "
            "only'.",
            _judge_criterion,
        ),
        Predicate(
            "C4",
            "Needs CIFAR-10, ImageNet and Intel scenes.",
            never_testable(
                "CIFAR-10, ImageNet and Intel scenes are not here; Fashion-MNIST is what C1 to C3 are judged on.", "–"
            ),
        ),
    ),
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0,)},
    minutes={"smoke": 0.2, "laptop": 7, "paper": 120},
)
