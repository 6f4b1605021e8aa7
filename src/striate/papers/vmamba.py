"""VMamba: is a scan along four routes linear in pixels, does it see the whole image, and is it any good?

Liu, Tian, Zhao, Yu, Xie, Wang, Ye, Jiao, Liu, "VMamba: Visual State Space Model", NeurIPS 2024, arXiv 2401.10166.

Laptop, three seeds. Cost: multiplications and time of scans against softmax attention, from 64 to 256 pixels a side.
Reach: the gradient of one output by every pixel of photographs, beside depthwise convolutions in the scans' place.
Routes: images where one coloured patch decides what every pixel must answer, so that each pixel tells whether it can
see the patch; one scan, no convolution. Accuracy: VMamba's small sibling (24 to 192 channels) on Fashion-MNIST against
a residual CNN and a plain transformer with as many parameters (within 10 %), then the same networks on larger images
than they were trained on. A first run on a busy machine showed that the median time was noise and that 48 pixels, no
multiple of the stride, cost more than in proportion; the rules for both were mended then. None of this is ImageNet: a
verdict here is about small networks and small images.

Paper: the authors' checkpoints under ``--data`` (``checkpoints/NAME.pth``) on ImageNet's validation set. The dry run
builds T, S and B and takes one step of the published recipe on two random pictures: AdamW, learning rate 1e-3 (300
epochs of batches of 1,024, 20 of warm-up, cosine), weight decay 0.05, gradients clipped at 5, drop path 0.2, 0.3 and
0.6, RandAugment m9-mstd0.5-inc1, colour jitter 0.4, random erasing 0.25, mixup 0.8, CutMix 1.0, labels smoothed by
0.1. Two things are not as published. The one loop decays every parameter; the authors spare vectors (norms, biases,
Ds) and decay matrices, A_logs and dt_projs_bias too, whose flags against it their optimiser does not read. And there
is no running average of the weights (theirs: 0.9999, for all but vanilla-T). Unverified against the real data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.data.embedded import PHOTOGRAPHS, photographs
from striate.data.far_cue import FarCue, far_cue
from striate.data.small import default_set
from striate.engine.latency import wall_seconds
from striate.engine.macs import count_macs
from striate.engine.state import seeded
from striate.engine.train import Recipe
from striate.layers.ss2d import SS2D
from striate.models.micro import Attention2d, ResNetMicro, vit_micro
from striate.models.vmamba import VSSBlock, vmamba_micro
from striate.papers.base import Judgement, Predicate, Reproduction, Run, subplots
from striate.papers.judge import find_records, never_testable, not_testable, show_range
from striate.papers.measure import as_32, count_correct, count_parameters, lazily_trained, predict
from striate.papers.published import judge_published, measure_published, training_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPRODUCTION"]

_PUBLISHED = ("vmamba_tiny", "vmamba_small", "vmamba_base")
_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vmamba": partial(vmamba_micro, dims=24),
    "resnet": partial(ResNetMicro, (26, 52, 104, 208), stem_stride=2, in_chans=1),
    "deit": partial(vit_micro, 32, 4, 128, 4, 4, 1),
}
_ROUTES = ("cross2d", "bidi", "unidi")
_SEEN = 1e-8


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    if run.scale == "paper":
        _paper(run)
        return
    smoke = run.scale == "smoke"
    if run.wants("C2"):
        sides = (64, 96, 128) if smoke else (64, 96, 128, 192, 256)
        run.step("complexity", partial(_measure_complexity, sides, 2 if smoke else 5, run.device))
        run.step("reach/layer", _measure_layer_reach)
        run.step("reach/network", partial(_measure_network_reach, run, 2 if smoke else 10))
    if run.wants("C3"):
        _routes(run, smoke)
    if run.wants("C1", "C4"):
        _accuracy(run, smoke)
    _draw(run)


def _measure_complexity(sides: Sequence[int], repeats: int, device: torch.device) -> dict[str, Any]:
    """Multiplications of one mixer at the first stage's size, and the time of the whole network, in turns."""
    build = partial(vmamba_micro, in_chans=3)
    networks = {"scan": _untrained(build).to(device), "attention": _untrained(build, Attention2d).to(device)}
    rows = []

    def mix(network: nn.Module, x: Tensor) -> Tensor:
        return network(x.to(device))

    for side in sides:
        x, tokens = torch.rand(1, 3, side, side), torch.rand(1, 32, side // 4, side // 4)
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        with torch.inference_mode():
            for turn in range(repeats + 1):
                for name, network in networks.items():
                    elapsed = wall_seconds(partial(mix, network, x), device)
                    if turn:  # the first warms up
                        seconds[name].append(elapsed)
        rows.append(
            {
                "side": side,
                "mixer": {name: count_macs(kind(32), tokens) for name, kind in _MIXERS.items()},
                "network": {name: count_macs(network, x.to(device)) for name, network in networks.items()},
                "seconds": {name: min(values) for name, values in seconds.items()},
            }
        )
    return {"rows": rows}


_MIXERS: dict[str, Callable[[int], nn.Module]] = {"scan": SS2D, "attention": Attention2d}


def _untrained(build: Callable[[], nn.Module], mixer: Callable[[int], nn.Module] | None = None) -> Any:
    """A micro network at its random start, with another token mixer in every block if one is given."""
    with seeded(0):
        network: Any = build().eval()
        for block in network.modules() if mixer else ():
            if isinstance(block, VSSBlock):
                block.op = mixer(block.op.in_proj.in_features)  # type: ignore[assignment, misc]
    return network


def _depthwise(dim: int) -> nn.Module:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


def _measure_layer_reach() -> dict[str, Any]:
    """The share of a 24 x 24 map that one mixer's central output depends on; no convolution inside the scan."""
    with seeded(0):
        mixers = {"scan": SS2D(8, d_conv=1).double(), "depthwise convolution": _depthwise(8).double()}
        x = torch.randn(20, 8, 24, 24, dtype=torch.float64)
    return {name: _reach(mixer, x, 12)["share"] for name, mixer in mixers.items()}


def _measure_network_reach(run: Run, n: int) -> dict[str, Any]:
    """The network's last stage on grey photographs of 256 x 256: untrained, trained, with convolutions for scans.

    Strides alone make the convolutions see 215 pixels; a smaller image would hide the difference.
    """
    names = [name for name, record in PHOTOGRAPHS.items() if record.package == "skimage"][:n]
    crops = []
    for photo in photographs(names):
        grey = np.asarray(photo.image.convert("L").resize((256, 256)), dtype=np.float64)
        crops.append(torch.from_numpy(grey)[None] / 255)
    x = torch.stack(crops)
    found: dict[str, Any] = {"photographs": names}
    build = _NETWORKS["vmamba"]
    networks = {"untrained": _untrained(build), "depthwise convolution": _untrained(build, _depthwise)}
    if run.scale != "smoke":
        networks["trained"] = _trained(run, "vmamba", run.seeds[0])()
    for name, network in networks.items():
        features = nn.Sequential(network.patch_embed, *network.layers).eval().double().cpu()
        found[name] = _reach(features, x, None)
    return found


def _reach(mixer: nn.Module, x: Tensor, centre: int | None) -> dict[str, Any]:
    """Mean |gradient| of the central output by every pixel, the share above 1e-8, and the area with 90 % of it."""
    x = x.clone().requires_grad_()
    y = mixer(x)
    middle = y.shape[-1] // 2 if centre is None else centre
    (gradient,) = torch.autograd.grad(y[:, :, middle, middle].sum(), x)
    mean = gradient.abs().sum(dim=1).mean(dim=0)
    ranked = mean.flatten().sort(descending=True).values.cumsum(0)
    area = int((ranked < 0.9 * ranked[-1]).sum()) + 1
    shown = F.adaptive_avg_pool2d(mean[None, None], min(32, mean.shape[-1]))[0, 0]
    return {
        "share": float((mean > _SEEN).double().mean()),
        "area90": area / mean.numel(),
        "map": [[float(f"{value:.3g}") for value in row] for row in (shown / shown.max()).tolist()],
    }


def _routes(run: Run, smoke: bool) -> None:
    train, test = far_cue(128 if smoke else 2_000, seed=0), far_cue(64 if smoke else 500, seed=1)
    run.note("far cue", [train.origin, test.origin])
    data = train.images, train.targets
    for seed in run.seeds:
        for routes in _ROUTES:
            # 62 batches of 32 an epoch: about 300 steps.
            recipe = Recipe(1 if smoke else 5, 32, "adamw", 3e-3, schedule="cosine", seed=seed)
            build, key = partial(_far_network, routes), {"data": train.origin, "routes": routes}
            network = lazily_trained(run, f"vmamba-far-cue-{routes}", build, lambda: data, recipe, key)
            run.step(f"routes/{routes}/seed{seed}", partial(_measure_routes, network, test))


def _far_network(routes: str) -> nn.Module:
    block = VSSBlock(32, mlp_ratio=0.0, d_conv=1, scan=routes)
    return nn.Sequential(nn.Conv2d(3, 32, 1), block, nn.Conv2d(32, 4, 1))


def _measure_routes(train: Callable[[], nn.Module], test: FarCue) -> dict[str, Any]:
    """Accuracy over pixels, and over those that come after and before the whole patch, reading row by row."""
    right = predict(train(), test.images, 100) == test.targets
    side = right.shape[-1]
    order = torch.arange(side * side)
    first = test.places[:, 0] * side + test.places[:, 1]
    last = first + 2 * side + 2
    flat = right.flatten(1)
    after, before = order[None] > last[:, None], order[None] < first[:, None]
    return {
        "accuracy": float(flat.float().mean()),
        "cue earlier": float(flat[after].float().mean()),
        "cue later": float(flat[before].float().mean()),
    }


def _accuracy(run: Run, smoke: bool) -> None:
    test = default_set(False)
    images, labels = as_32(test.images[: 200 if smoke else 2_000]) / 255, test.labels
    for seed in run.seeds:
        for name in ["vmamba", "deit"] if smoke else list(_NETWORKS):
            network = _trained(run, name, seed)
            run.step(f"accuracy/{name}/seed{seed}", partial(_measure_accuracy, network, images, labels[: len(images)]))


def _trained(run: Run, name: str, seed: int) -> Callable[[], nn.Module]:
    smoke = run.scale == "smoke"
    train = default_set(True)
    n = 256 if smoke else 6_000
    images, labels = as_32(train.images[:n]), train.labels[:n]
    run.note("data", {"train": train.origin, "n": n})
    recipe = Recipe(1 if smoke else 4, 64, "adamw", 2e-3, weight_decay=0.05, schedule="one-cycle", seed=seed)
    key = {"data": train.origin, "n": n, "side": 32}
    return lazily_trained(run, f"vmamba-{name}", _NETWORKS[name], lambda: (images, labels), recipe, key)


def _measure_accuracy(network: Callable[[], nn.Module], images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Right answers and multiplications at the size of training and enlarged to 48 and 64 pixels."""
    model = network()
    found: dict[str, Any] = {"n": len(labels), "parameters": count_parameters(model)}
    for side in (32, 48, 64):
        sized = images if side == 32 else F.interpolate(images, size=(side, side), mode="bilinear")
        found[str(side)] = {"correct": count_correct(model, sized, labels), "macs": count_macs(model, sized[:1])}
    return found


def _paper(run: Run) -> None:
    for name in _PUBLISHED if run.wants("C1") else ():
        run.step(f"imagenet/{name}", partial(measure_published, run, name))
    if run.dry_run:
        recipe = Recipe(1, 2, "adamw", 1e-3, weight_decay=0.05, schedule="cosine", clip=5.0)
        for name, rate in zip(_PUBLISHED, (0.2, 0.3, 0.6), strict=True):
            run.step(f"training/{name}", partial(training_step, run, name, recipe, drop_path_rate=rate))


_SMALL_ONLY = not_testable("Measured at laptop scale; the paper scale has the authors' weights.")


def _judge_complexity(steps: Mapping[str, Any]) -> Judgement:
    """C2, cost: slopes of log cost against log pixels."""
    if "complexity" not in steps:
        return _SMALL_ONLY
    rows = steps["complexity"]["rows"]
    pixels = [math.log(row["side"] ** 2) for row in rows]

    def slope(values: Sequence[float]) -> float:
        centre, logs = fmean(pixels), [math.log(value) for value in values]
        return sum((x - centre) * y for x, y in zip(pixels, logs, strict=True)) / sum((x - centre) ** 2 for x in pixels)

    macs = {name: slope([row["mixer"][name] for row in rows]) for name in ("scan", "attention")}
    clock = {name: slope([row["seconds"][name] for row in rows]) for name in ("scan", "attention")}
    figures = (
        f"multiplications grow as pixels^{macs['scan']:.3f}, time as pixels^{clock['scan']:.2f}",
        f"softmax attention pixels^{macs['attention']:.2f}, time pixels^{clock['attention']:.2f}",
    )
    if clock["attention"] < 1:
        return Judgement("inconclusive", *figures, "The clock is too unsteady: it does not even see attention grow.")
    if abs(macs["scan"] - 1) <= 0.01 and macs["attention"] >= 1.7 and clock["scan"] <= 1.25:
        return Judgement("reproduced", *figures)
    if abs(macs["scan"] - 1) > 0.01 or clock["scan"] > 1.4:
        return Judgement("not reproduced", *figures, "The cost of the scan does not grow in step with the pixels.")
    return Judgement("direction only", *figures, "A bound is missed: time by 1.25, or attention by 1.7.")


def _judge_reach(steps: Mapping[str, Any]) -> Judgement:
    """C2, reach."""
    if "reach/layer" not in steps:
        return _SMALL_ONLY
    layer, network = steps["reach/layer"], steps["reach/network"]
    kinds = [kind for kind in ("untrained", "trained") if kind in network]
    measured = f"one scan {100 * layer['scan']:.0f} % of the pixels; network " + ", ".join(
        f"{kind} {100 * network[kind]['share']:.0f} % (90 % of the gradient in {100 * network[kind]['area90']:.0f} %)"
        for kind in kinds
    )
    other = network["depthwise convolution"]
    control = (
        f"one depthwise convolution {100 * layer['depthwise convolution']:.1f} %; network of them "
        f"{100 * other['share']:.0f} % (90 % in {100 * other['area90']:.0f} %)"
    )
    if layer["scan"] == 1 and all(network[kind]["share"] == 1 for kind in kinds) and other["share"] < 1:
        return Judgement("reproduced", measured, control)
    if other["share"] == 1:
        return Judgement("inconclusive", measured, control, "Convolutions reach everything as well.")
    return Judgement("not reproduced", measured, control, "Some pixels do not reach the centre.")


def _judge_routes(steps: Mapping[str, Any]) -> Judgement:
    found = {routes: find_records(steps, f"routes/{routes}") for routes in _ROUTES}
    if not all(found.values()):
        return _SMALL_ONLY
    mean = {routes: fmean(record["accuracy"] for record in records) for routes, records in found.items()}
    blind = fmean(record["cue later"] for record in found["unidi"])
    sighted = fmean(record["cue earlier"] for record in found["unidi"])
    figures = (
        f"four routes {100 * mean['cross2d']:.1f} %, two {100 * mean['bidi']:.1f} % of the pixels",
        f"one direction {100 * mean['unidi']:.1f} %: {100 * sighted:.0f} % after the cue, {100 * blind:.0f} % before "
        "it (chance 25 %)",
    )
    both = min(mean["cross2d"], mean["bidi"]) >= 0.95
    located = mean["unidi"] <= 0.80 and abs(blind - 0.25) <= 0.10
    if both and located:
        return Judgement("reproduced", *figures)
    if located and min(mean["cross2d"], mean["bidi"]) > mean["unidi"]:
        return Judgement("direction only", *figures, "One direction is blind before the cue; the others miss 95 %.")
    return Judgement("not reproduced", *figures, "One direction is not blind before the cue.")


def _judge_small(steps: Mapping[str, Any]) -> Judgement:
    """C1 at small scale: mean top-1 against networks of the same size."""
    top1 = {name: _top1(steps, name) for name in _NETWORKS}
    if not all(top1.values()):
        return _SMALL_ONLY
    ours, resnet, deit = (show_range(top1[name], 2, 100) for name in ("vmamba", "resnet", "deit"))
    measured, control = f"Fashion-MNIST {ours}", f"residual CNN {resnet}, transformer {deit}"
    gaps = {name: 100 * (fmean(top1["vmamba"]) - fmean(top1[name])) for name in ("resnet", "deit")}
    if min(gaps.values()) >= -0.5:
        return Judgement("reproduced", measured, control)
    behind = ", ".join(f"{-gap:.1f} points behind the {name}" for name, gap in gaps.items() if gap < -0.5)
    return Judgement("not reproduced", measured, control, f"At this scale it is {behind}.")


def _judge_resolution(steps: Mapping[str, Any]) -> Judgement:
    """C4: larger images than in training."""
    records = {name: find_records(steps, f"accuracy/{name}") for name in _NETWORKS}
    if not all(records.values()):
        return _SMALL_ONLY
    sides = ("48", "64")
    drop = {
        name: {side: 100 * fmean((r["32"]["correct"] - r[side]["correct"]) / r["n"] for r in found) for side in sides}
        for name, found in records.items()
    }
    first = records["vmamba"][0]
    growth = {side: first[side]["macs"] / first["32"]["macs"] for side in sides}
    exact = abs(growth["64"] / 4 - 1) <= 0.02
    measured = (
        f"loses {drop['vmamba']['48']:.1f} and {drop['vmamba']['64']:.1f} points at 48 and 64; multiplications "
        f"x {growth['48']:.2f}, x {growth['64']:.2f}"
    )
    control = "; ".join(f"{name} {drop[name]['48']:.1f} and {drop[name]['64']:.1f}" for name in ("deit", "resnet"))
    smaller = [drop["vmamba"][side] < drop["deit"][side] for side in sides]
    if all(smaller) and exact:
        return Judgement("reproduced", measured, control)
    if exact and any(smaller):
        return Judgement("direction only", measured, control, "It loses less than the transformer at one size only.")
    reason = "It loses more than the transformer." if exact else "Its cost does not grow as the pixels do."
    return Judgement("not reproduced", measured, control, reason)


def _top1(steps: Mapping[str, Any], name: str) -> list[float]:
    return [record["32"]["correct"] / record["n"] for record in find_records(steps, f"accuracy/{name}")]


def _draw(run: Run) -> None:
    steps = run.steps()
    if "reach/network" in steps:
        run.figure("reach", lambda: _draw_reach(steps["reach/network"]))
    if "complexity" in steps:
        run.figure("complexity", lambda: _draw_complexity(steps["complexity"]["rows"]))
    if any(name.startswith("routes/") for name in steps):
        run.figure("routes", lambda: _draw_routes(steps))


def _draw_reach(found: Mapping[str, Any]) -> Figure:
    kinds = [kind for kind in ("untrained", "trained", "depthwise convolution") if kind in found]
    figure, axes = subplots(1, len(kinds), figsize=(2.6 * len(kinds), 2.9), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        # The fourth root shows what is small beside the centre.
        axis.imshow(torch.tensor(found[kind]["map"]).pow(0.25), cmap="magma", vmin=0, vmax=1)
        axis.set_title(f"{kind}\n{100 * found[kind]['share']:.0f} % of pixels reached", fontsize=8)
        axis.axis("off")
    return figure


def _draw_complexity(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = subplots(1, 2, figsize=(7, 3))
    pixels = [row["side"] ** 2 for row in rows]
    for axis, quantity, label in ((axes[0], "mixer", "multiplications, one mixer"), (axes[1], "seconds", "s, network")):
        for name in ("scan", "attention"):
            axis.loglog(pixels, [row[quantity][name] for row in rows], "-o", label=name)
        axis.set(xlabel="side, pixels", ylabel=label)
        axis.set_xticks(pixels, [str(row["side"]) for row in rows])
        axis.minorticks_off()
    axes[0].legend()
    figure.tight_layout()
    return figure


def _draw_routes(steps: Mapping[str, Any]) -> Figure:
    figure, axes = subplots(figsize=(5, 3))
    for offset, part in ((-0.2, "cue earlier"), (0.2, "cue later")):
        means = [fmean(100 * record[part] for record in find_records(steps, f"routes/{routes}")) for routes in _ROUTES]
        axes.bar([i + offset for i in range(len(_ROUTES))], means, width=0.36, label=f"pixels with the {part}")
    axes.axhline(25, color="grey", linestyle=":", label="chance")
    axes.set_xticks(range(len(_ROUTES)), ["four routes", "two directions", "one direction"])
    axes.set(ylabel="right pixels, %", ylim=(0, 105))
    axes.legend(fontsize=7, loc="lower left")
    return figure


REPRODUCTION = Reproduction(
    key="vmamba",
    run=run,
    predicates=(
        Predicate(
            "C1",
            "Mean top-1 over seeds is at most half a point below a residual CNN and a plain transformer whose "
            "parameters are within 10 %.",
            _judge_small,
            part="small",
        ),
        Predicate(
            "C1",
            "The authors' weights reach the published top-1 on ImageNet within 0.3 points.",
            partial(judge_published, _PUBLISHED),
            part="ImageNet",
        ),
        Predicate(
            "C1",
            "Mask R-CNN on COCO, UperNet on ADE20K.",
            never_testable("COCO and ADE20K with pretrained weights."),
            part="downstream",
        ),
        Predicate(
            "C2",
            "The slope of log multiplications against log pixels is 1.00 +- 0.01 for the scan and at least 1.7 for "
            "softmax attention; that of the scan network's least time is at most 1.25 (above 1.4: not reproduced). "
            "Inconclusive where the clock does not see attention grow by at least the pixels.",
            _judge_complexity,
            part="cost",
        ),
        Predicate(
            "C2",
            "The gradient of the central output exceeds 1e-8 at every pixel, for one scan and for the network; with "
            "depthwise convolutions in the scans' place it does not.",
            _judge_reach,
            part="reach",
        ),
        Predicate(
            "C3",
            "Mean accuracy over pixels and seeds is at least 95 % with four routes and with two directions, at most "
            "80 % with one, which is at chance (25 +- 10 %) on the pixels before the cue.",
            _judge_routes,
        ),
        Predicate(
            "C4",
            "On images enlarged to 48 and 64 pixels the accuracy falls by less than the transformer's at both sizes, "
            "and multiplications grow as the pixels do within 2 %, at 64 (48 is no multiple of the stride, 32).",
            _judge_resolution,
        ),
    ),
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0,)},
    minutes={"smoke": 0.2, "laptop": 9, "paper": 30},
)
