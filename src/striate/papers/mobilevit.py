"""MobileViT: a light network whose transformers take the place of convolutions, and the sampler that it trains with.

Mehta, Rastegari, "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer", ICLR 2022,
arXiv 2110.02178.

Laptop: a MobileViT of 0.14 M parameters, with two MobileViT stages of width 32 and 48, on 64 x 64 images. E1 compares
it on Fashion-MNIST (enlarged from 28 x 28, grey in three channels, random crops and mirror images) with a mobile CNN in
the manner of MobileNetV3 and with a DeiT, both within 10 % of its parameters, and with a smaller self.
E2 asks whether two marks in an image of 160 x 160 are alike, both bright or both dark, and compares with the same
network whose attention has been replaced by pointwise layers of the same size. At least 130 pixels lie between the
marks, and an output of that network sees 131 x 131: it cannot learn more than a coin (:mod:`striate.data.relation`).
E2 also measures exactly which pixels the gradient of one output pixel reaches. E3 trains E1's network with the
multi-scale sampler (48, 64 and 80 pixels), over as many steps with as many pixels each. The training loop takes images
as one tensor, so the sampler is a part of the loss: a batch as large as the largest is drawn, and a step takes as many
of its images as its size allows. E4 counts parameters and multiplications of the published networks.

What differs from the paper: no ImageNet, no moving average of the weights, no label smoothing, and minutes of training;
so figures say something of the parts' order, not of the published accuracies. Recipes were chosen on a seed that is
not judged (100), by the loss on training images left out: of 1e-3, 2e-3 and 5e-3 the last was best for DeiT, of 2e-3
and 5e-3 for MobileViT and the CNN. Whether two glyphs are of the same kind was learnt by neither network in 1,200 steps
of 16 images; bright and dark marks took their place, in 600 steps. On them only the network with attention had been
tried before the judged run: on seed 100 it has all of 600 other images right.

Paper: the authors' (or timm's) checkpoints ``mobilevit_{xxs,xs,s}.pt`` or ``.safetensors`` under ``--data`` are
evaluated on the ImageNet validation set in the same folder (``val/<wnid>/*.JPEG``), as the authors do;
MobileNetV3-Large and DeiT-Ti come from timm (downloaded). A file ``mobilevit_s.bgr.pt`` is taken for BGR, as the first
release's are. Training for 300 epochs is not part of it; the dry run takes one step of it, with the published
optimiser. Unverified against the real data set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.data.crops import RandomResizedCrop
from striate.data.relation import relation_images
from striate.data.small import default_set
from striate.data.variable_batch import ScaledBatch, batch_sizes, resized_batch
from striate.engine.load import load_model
from striate.engine.macs import count_macs
from striate.engine.state import device_of
from striate.engine.stats import bootstrap_mean, paired_bootstrap
from striate.engine.train import Recipe, cross_entropy, fit, trained
from striate.errors import RunError
from striate.layers.mobilevit_block import MobileViTBlock
from striate.models.micro import MobileMicro, vit_micro
from striate.models.mobilevit import VARIANTS, MobileViT, MobileViTConfig, load_official
from striate.papers.base import Judgement, Predicate, Reproduction, Run, subplots
from striate.papers.judge import differences, find_records, never_testable, not_testable, percent
from striate.papers.measure import count_correct, count_parameters, resize_bilinear
from striate.papers.published import count_right, imagenet_top1, validation_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPRODUCTION"]

_SIDE = 64
_MICRO = MobileViTConfig(
    (8, 16, 32, 48), (1, 1, 1, 1), dims=(0, 0, 32, 48), layers=(0, 0, 1, 1), expand=2, num_features=128, stem=8
)
_HALF = MobileViTConfig(
    (8, 12, 24, 32), (1, 1, 1, 1), dims=(0, 0, 24, 32), layers=(0, 0, 1, 1), expand=2, num_features=96, stem=8
)
_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilevit": partial(MobileViT, _MICRO, num_classes=10),
    "mobile CNN": partial(MobileMicro, (8, 16, 32, 48, 64)),
    "deit": partial(vit_micro, _SIDE, 8, dim=52, depth=4),
    "mobilevit half": partial(MobileViT, _HALF, num_classes=10),
}
_BASE_BATCH = 36
_SIZES: list[ScaledBatch] = batch_sizes(_SIDE, 48, 80, check_scale=16, n_scales=3, base_batch=_BASE_BATCH)
_RELATION: dict[str, Any] = {"size": 160, "gap": 130, "mark": 8, "noise": 0.05}
_PUBLISHED_CONTROLS = {"mobilenetv3_large_100": 5_483_032, "deit_tiny_patch16_224": 5_717_416}


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    if run.wants("C3"):
        run.step("reach", _measure_reach)
    if run.wants("C5"):
        run.step("counts", _measure_counts)
    if run.scale == "paper":
        _paper(run)
        return
    small = _Small(run)
    if run.wants("C1", "C5"):
        for name in ["mobilevit"] if run.scale == "smoke" else _NETWORKS:
            for seed in run.seeds:
                run.step(f"fashion/{name}/seed{seed}", partial(small.measure_fashion, name, seed))
    if run.wants("C3"):
        for seed in run.seeds:
            for attention in (True, False):
                name = "attention" if attention else "pointwise"
                run.step(f"relation/{name}/seed{seed}", partial(small.measure_relation, attention, seed))
    if run.wants("C4"):
        for seed in run.seeds:
            for sampler in ("fixed", "variable"):
                run.step(f"sampler/{sampler}/seed{seed}", partial(small.measure_sampler, sampler, seed))
        run.step("sampler/speed", partial(_measure_speed, 1 if run.scale == "smoke" else 7))
    if run.wants("C3"):
        run.figure("reach", lambda: _reach_figure(run.steps()["reach"]))
    if run.wants("C4"):
        run.figure("sampler", lambda: _sampler_figure(run.steps()))


@dataclass(frozen=True)
class _VariableBatch:
    """Cross entropy on a batch cut and resized to one of ``sizes``."""

    sizes: tuple[ScaledBatch, ...]

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        images, labels = resized_batch(images, labels, self.sizes, generator)
        return F.cross_entropy(model(images), labels)


class _Small:
    """Data and networks of the smoke and laptop scales."""

    def __init__(self, run: Run) -> None:
        self.run, smoke = run, run.scale == "smoke"
        self.n_train, self.n_test, self.epochs = (144, 100, 1) if smoke else (2_000, 1_000, 4)
        self.n_relation, self.relation_epochs = (128, 1) if smoke else (2_400, 4)
        train, test = default_set(True), default_set(False)
        self.origin = train.origin
        self.train = _enlarged(train.images[: self.n_train]), train.labels[: self.n_train]
        self.test = _enlarged(test.images[: self.n_test]), test.labels[: self.n_test]
        run.note("data", {"train": train.origin, "test": test.origin, "n": [len(self.train[1]), len(self.test[1])]})

    def network(self, name: str, seed: int, sampler: str = "fixed") -> nn.Module:
        largest = max(count for _, _, count in _SIZES)
        batch = _BASE_BATCH if sampler == "fixed" else largest
        # As many steps with as many pixels each: the largest batch divides the epoch into fewer steps.
        epochs = self.epochs if sampler == "fixed" else max(1, round(self.epochs * largest / _BASE_BATCH))
        return trained(
            f"mobilevit-{name.replace(' ', '-')}",
            _NETWORKS[name],
            lambda: self.train,
            _recipe(epochs, batch, seed),
            loss=cross_entropy if sampler == "fixed" else _VariableBatch(tuple(_SIZES)),
            augment=RandomResizedCrop(least=0.5),
            key={"network": name, "data": self.origin, "n": self.n_train, "side": _SIDE},
            device=self.run.device,
        )

    def measure_fashion(self, name: str, seed: int) -> dict[str, Any]:
        """E1: right answers on held-out images."""
        model = self.network(name, seed)
        return {
            "parameters": count_parameters(model),
            "n": len(self.test[1]),
            "right": count_correct(model, *self.test),
        }

    def measure_relation(self, attention: bool, seed: int) -> dict[str, Any]:
        """E2: right answers on images of another seed; half of them are "same"."""
        model = trained(
            f"mobilevit-relation-{'attention' if attention else 'pointwise'}",
            partial(MobileViT, _MICRO, num_classes=2, in_chans=1, attention=attention, dropout=0.0),
            lambda: _relation(self.n_relation, seed),
            _recipe(self.relation_epochs, 16, seed, lr=3e-3),
            key={"data": "relation images", **_RELATION, "n": self.n_relation, "attention": attention},
            device=self.run.device,
        )
        test = _relation(self.n_test, 1_000_000 + seed)
        return {"parameters": count_parameters(model), "n": len(test[1]), "right": count_correct(model, *test)}

    def measure_sampler(self, sampler: str, seed: int) -> dict[str, Any]:
        """E3: right answers at each size; the fixed sampler's network is E1's."""
        model = self.network("mobilevit", seed, sampler)
        sides = [height for height, _, _ in _SIZES]
        right = [_right(model, *self.test, side) for side in sides]
        return {"sides": sides, "n": len(self.test[1]), "right": right}


def _recipe(epochs: int, batch_size: int, seed: int, lr: float = 5e-3) -> Recipe:
    return Recipe(epochs, batch_size, "adamw", lr, weight_decay=0.01, schedule="one-cycle", seed=seed)


def _enlarged(images: Tensor) -> Tensor:
    """(N, 1, h, w) uint8 to (N, 3, 64, 64)."""
    return resize_bilinear(images, _SIDE).expand(-1, 3, -1, -1)


def _relation(n: int, seed: int) -> tuple[Tensor, Tensor]:
    data = relation_images(n, seed, **_RELATION)
    return data.images, data.labels


def _right(model: nn.Module, images: Tensor, labels: Tensor, side: int) -> int:
    """Number of right answers on uint8 images resized to ``side``."""
    if side != images.shape[-1]:
        images = images.to(device_of(model)).float() / 255
        images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    return count_correct(model, images, labels)


def _measure_reach() -> dict[str, Any]:
    """Share of the input's pixels that the gradient of one output pixel reaches, for blocks of different make."""
    blocks: dict[str, dict[str, Any]] = {
        "patch 2, kernel 3": {"patch_size": 2, "kernel_size": 3},
        "patch 4, kernel 1": {"patch_size": 4, "kernel_size": 1},
        "patch 8, kernel 3": {"patch_size": 8, "kernel_size": 3},
        "patch 2, kernel 3, no attention": {"patch_size": 2, "kernel_size": 3, "attention": False},
    }
    side, at = 16, (6, 9)
    shares, maps = {}, {}
    for name, options in blocks.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            block = MobileViTBlock(8, 16, **options).eval().double()
            x = torch.randn(1, 8, side, side, dtype=torch.float64).requires_grad_()
        (gradient,) = torch.autograd.grad(block(x)[0, :, at[0], at[1]].sum(), x)
        seen = gradient[0].abs().sum(dim=0) > 0
        shares[name], maps[name] = int(seen.sum()), seen.int().tolist()
    return {"pixels": side * side, "at": at, "seen": shares, "maps": maps}


def _measure_counts() -> dict[str, Any]:
    """E4: exact parameters and multiplications of the published networks, and the controls' as timm builds them."""
    import timm

    counts = {}
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            model = timm.create_model(name)
        macs = count_macs(model, torch.zeros(1, *variant.input_size, device="meta"))
        published = {"published_parameters": variant.parameters, "published_macs": variant.macs}
        counts[name] = {"parameters": count_parameters(model), "macs": macs / 1e9, **published}
    for name in _PUBLISHED_CONTROLS:
        with torch.device("meta"):
            model = timm.create_model(name)
        macs = count_macs(model, torch.zeros(1, 3, 224, 224, device="meta"))
        counts[name] = {"parameters": count_parameters(model), "macs": macs / 1e9}
    return counts


def _measure_speed(repeats: int) -> dict[str, Any]:
    """Seconds of a training step at each size: with the sampler's batch, and with the base batch at every size."""
    model = MobileViT(_MICRO, num_classes=10).train()
    batches = {"variable": _SIZES, "constant": [(h, w, _BASE_BATCH) for h, w, _ in _SIZES]}
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in _SIZES] for name in batches}
    for repeat in range(repeats + 1):
        for name, sizes in batches.items():
            for i, (height, width, count) in enumerate(sizes):
                x, y = torch.rand(count, 3, height, width), torch.zeros(count, dtype=torch.long)
                start = time.perf_counter()
                F.cross_entropy(model(x), y).backward()
                if repeat:  # the first round only warms up
                    seconds[name][i].append(time.perf_counter() - start)
    return {
        "sizes": {name: [list(size) for size in sizes] for name, sizes in batches.items()},
        "seconds": {name: [median(values) for values in rows] for name, rows in seconds.items()},
    }


def _paper(run: Run) -> None:
    """The authors' checkpoints on ImageNet; with ``dry_run`` one training step and one evaluation on random data."""
    if run.dry_run:
        random = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([0, 999])
        for name, variant in VARIANTS.items():
            model = MobileViT(**variant.options)
            run.step(f"train/{name}", partial(_one_published_step, model.to(run.device), random, labels))
            run.step(
                f"imagenet/{name}", partial(count_right, model.eval(), [(random.float() / 255, labels)], run.device)
            )
        return
    if not run.wants("C1"):
        return
    root = run.data_root("ImageNet's validation set and the checkpoints")
    for name in VARIANTS:
        run.step(f"imagenet/{name}", partial(_measure_official, root, name, run.device))
    for name in _PUBLISHED_CONTROLS:
        run.step(f"imagenet/{name}", partial(_measure_control, root, name, run.device))


def _one_published_step(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """AdamW, weight decay 0.01 on everything, peak learning rate 2e-3, bfloat16 where the device is a GPU."""
    precision: Literal["float32", "bfloat16"] = "bfloat16" if device_of(model).type == "cuda" else "float32"
    recipe = Recipe(1, len(images), "adamw", 2e-3, weight_decay=0.01, precision=precision)
    records = fit(model, images, labels, recipe, augment=RandomResizedCrop())
    return {"loss": records[-1]["loss"]}


def _measure_official(root: Path, name: str, device: torch.device) -> dict[str, Any]:
    stem = name.removeprefix("striate_")
    for order in ("bgr", "rgb"):
        for suffix in ("pt", "safetensors"):
            path = root / (f"{stem}.bgr.{suffix}" if order == "bgr" else f"{stem}.{suffix}")
            if path.is_file():
                network = load_official(path, channel_order=order).to(device)
                preprocessing = load_model(name, pretrained=False).preprocessing
                found = count_right(network, validation_images(root, preprocessing), device)
                return {**found, "channel_order": order}
    raise RunError(
        f"There is no {stem}.pt, {stem}.bgr.pt or .safetensors in {root}: put the authors' checkpoint there."
    )


def _measure_control(root: Path, name: str, device: torch.device) -> dict[str, Any]:
    model = load_model(name, pretrained=True, device=device)
    return dict(count_right(model, validation_images(root, model.preprocessing), device))


def _accuracy(steps: Mapping[str, Any], group: str, name: str) -> list[float]:
    """Accuracy of each seed, in per cent."""
    return [percent(record, "right") for record in find_records(steps, f"{group}/{name}")]


def _shown(values: Sequence[float]) -> str:
    interval = bootstrap_mean(values)
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}] %"


def _judge_fashion(steps: Mapping[str, Any]) -> Judgement:
    """C1 at equal parameters."""
    ours = _accuracy(steps, "fashion", "mobilevit")
    cnn, deit = (_accuracy(steps, "fashion", name) for name in ("mobile CNN", "deit"))
    if not (ours and cnn and deit):
        return not_testable("Measured at laptop scale; the paper scale has ImageNet itself.")
    figures = f"MobileViT {_shown(ours)}", f"mobile CNN {_shown(cnn)}; DeiT {_shown(deit)}"
    over_cnn, over_deit = fmean(ours) - fmean(cnn), fmean(ours) - fmean(deit)
    gaps = f"{over_cnn:+.1f} points over the CNN, {over_deit:+.1f} over DeiT."
    if over_cnn >= 0 and over_deit >= 2:
        return Judgement("reproduced", *figures, gaps)
    if over_deit >= 2:
        if any(a >= b for a, b in zip(ours, cnn, strict=True)):
            return Judgement("inconclusive", *figures, f"Ahead of DeiT; against the CNN the seeds disagree. {gaps}")
        return Judgement("direction only", *figures, f"Not reproduced against the CNN at this scale. {gaps}")
    return Judgement("not reproduced", *figures, gaps)


def _judge_imagenet(steps: Mapping[str, Any]) -> Judgement:
    """C1 on ImageNet."""
    if "imagenet/striate_mobilevit_s" not in steps or steps["imagenet/striate_mobilevit_s"]["n"] < 1_000:
        reason = "ImageNet and the authors' checkpoints are not on this machine; --scale paper measures it."
        return not_testable(reason)
    top1, others = (imagenet_top1(steps, names) for names in (VARIANTS, _PUBLISHED_CONTROLS))
    figures = _listed(top1), _listed(others)
    published = {name: variant.top1 or 0.0 for name, variant in VARIANTS.items()}
    close = all(abs(top1[name] - published[name]) <= 0.5 for name in VARIANTS)
    ahead = top1["striate_mobilevit_s"] > max(others.values())
    if close and ahead:
        return Judgement("reproduced", *figures)
    reason = f"Within half a point of the published figures: {close}; S ahead of both controls: {ahead}."
    return Judgement("direction only" if ahead else "not reproduced", *figures, reason)


def _listed(values: Mapping[str, float]) -> str:
    return "; ".join(f"{name} {value:.1f} %" for name, value in values.items())


def _judge_reach(steps: Mapping[str, Any]) -> Judgement:
    """C3, exactly."""
    record = steps.get("reach")
    if record is None:
        return not_testable("What a position sees was not measured.")
    n, seen = record["pixels"], record["seen"]
    measured = f"{seen['patch 2, kernel 3']} of {n} pixels"
    others = [name for name in seen if name != "patch 2, kernel 3"]
    control = "; ".join(f"{name}: {seen[name]}" for name in others)
    whole, sixteenth = seen["patch 2, kernel 3"] == n, seen["patch 4, kernel 1"] * 16 == n
    if whole and sixteenth and all(seen[name] < n for name in others):
        return Judgement("reproduced", measured, control)
    return Judgement(
        "not reproduced", measured, control, f"All pixels: {whole}; one in sixteen for patch 4: {sixteenth}."
    )


def _judge_relation(steps: Mapping[str, Any]) -> Judgement:
    """C3, learnt."""
    ours, control = (_accuracy(steps, "relation", name) for name in ("attention", "pointwise"))
    if not (ours and control):
        return not_testable("Measured at laptop scale only.")
    figures = f"with attention {_shown(ours)}", f"without {_shown(control)}"
    gap = paired_bootstrap(ours, control)
    reason = f"The gap is {gap.value:.1f} [{gap.low:.1f}, {gap.high:.1f}] points."
    if gap.value >= 10:
        certain = min(differences(ours, control)) > 0
        return Judgement("reproduced" if certain else "inconclusive", *figures, reason)
    if max(*ours, *control) < 60:
        return Judgement("inconclusive", *figures, f"Neither network learns the task in so few steps. {reason}")
    return Judgement("direction only" if gap.low > 0 else "not reproduced", *figures, reason)


def _judge_sampler(steps: Mapping[str, Any]) -> Judgement:
    """C4, accuracy."""
    found = {name: _by_side(steps, name) for name in ("fixed", "variable")}
    if not (found["fixed"] and found["variable"]):
        return not_testable("Measured at laptop scale only.")
    mean = {name: {side: fmean(values) for side, values in sides.items()} for name, sides in found.items()}
    gain = {side: mean["variable"][side] - mean["fixed"][side] for side in mean["fixed"]}
    by_size = {
        name: f"{name}: " + ", ".join(f"{side} px {value:.1f} %" for side, value in sides.items())
        for name, sides in mean.items()
    }
    figures = by_size["variable"], by_size["fixed"]
    shown = ", ".join(f"{value:+.1f} at {side} px" for side, value in gain.items())
    off = [value for side, value in gain.items() if side != _SIDE]
    if min(off) > 0 and gain[_SIDE] >= -1:
        return Judgement("reproduced", *figures, f"Points: {shown}.")
    if max(off) > 0 and gain[_SIDE] >= -1:
        return Judgement("direction only", *figures, f"One of the other sizes does not gain: {shown} points.")
    return Judgement("not reproduced", *figures, f"Points: {shown}.")


def _by_side(steps: Mapping[str, Any], sampler: str) -> dict[int, list[float]]:
    records = find_records(steps, f"sampler/{sampler}")
    if not records:
        return {}
    return {
        side: [100 * record["right"][i] / record["n"] for record in records]
        for i, side in enumerate(records[0]["sides"])
    }


def _judge_speed(steps: Mapping[str, Any]) -> Judgement:
    """C4, time: seconds an image, sizes drawn uniformly."""
    if "sampler/speed" not in steps:
        return not_testable("Measured at laptop scale only.")
    record = steps["sampler/speed"]
    sizes, seconds = record["sizes"], record["seconds"]
    an_image = {name: sum(seconds[name]) / sum(count for _, _, count in sizes[name]) for name in sizes}
    base = [height for height, _, _ in sizes["constant"]].index(_SIDE)
    fixed = seconds["constant"][base] / sizes["constant"][base][2]
    ratio = {name: value / fixed for name, value in an_image.items()}
    figures = (
        f"{ratio['variable']:.2f} of the fixed size's time an image",
        f"sizes drawn, batch constant: {ratio['constant']:.2f}",
    )
    if ratio["variable"] < min(1.0, ratio["constant"]):
        return Judgement("reproduced", *figures)
    if ratio["variable"] < 1:
        return Judgement("inconclusive", *figures, "Faster than the fixed size, but so is a constant batch.")
    return Judgement("not reproduced", *figures, "An image takes no less time than at the fixed size.")


def _judge_counts(steps: Mapping[str, Any]) -> Judgement:
    """C5, E4."""
    record = steps.get("counts")
    if record is None:
        return not_testable("Sizes were not counted.")
    wrong = [
        name
        for name in VARIANTS
        if record[name]["parameters"] != record[name]["published_parameters"]
        or abs(record[name]["macs"] / record[name]["published_macs"] - 1) > 0.01
    ]

    def shown(names: Sequence[str]) -> str:
        return "; ".join(
            f"{name.removeprefix('striate_')} {record[name]['parameters'] / 1e6:.2f} M, {record[name]['macs']:.2f} G"
            for name in names
        )

    figures = shown(list(VARIANTS)), shown(list(_PUBLISHED_CONTROLS))
    if wrong:
        return Judgement("not reproduced", *figures, f"Other than published: {', '.join(wrong)}.")
    lighter = record["striate_mobilevit_s"]["parameters"] < record["deit_tiny_patch16_224"]["parameters"]
    times = record["striate_mobilevit_s"]["macs"] / record["mobilenetv3_large_100"]["macs"]
    reason = f"Light in parameters, not in arithmetic: S multiplies {times:.0f} times as much as MobileNetV3-Large."
    return Judgement("reproduced" if lighter else "not reproduced", *figures, reason)


def _judge_light(steps: Mapping[str, Any]) -> Judgement:
    """C5 against a transformer of twice the size."""
    ours, control = (_accuracy(steps, "fashion", name) for name in ("mobilevit half", "deit"))
    if not (ours and control):
        return not_testable("Measured at laptop scale only.")
    figures = f"MobileViT of half the parameters {_shown(ours)}", f"DeiT {_shown(control)}"
    gap = paired_bootstrap(ours, control)
    reason = f"The gap is {gap.value:+.1f} [{gap.low:.1f}, {gap.high:.1f}] points."
    if gap.low > 0:
        return Judgement("reproduced", *figures, reason)
    return Judgement("inconclusive" if gap.high > 0 else "not reproduced", *figures, reason)


def _reach_figure(record: Mapping[str, Any]) -> Figure:
    figure, axes = subplots(1, len(record["maps"]), figsize=(2.6 * len(record["maps"]), 3))
    for axis, (name, seen) in zip(axes, record["maps"].items(), strict=True):
        axis.imshow(seen, cmap="Blues", vmin=0, vmax=1.5)
        axis.plot(record["at"][1], record["at"][0], "r+", markersize=10)
        axis.set_title(
            f"{name.replace(', no', chr(10) + 'no')}\n{record['seen'][name]} of {record['pixels']}", fontsize=8
        )
        axis.set(xticks=[], yticks=[])
    figure.suptitle("Input pixels that reach the output pixel at the cross, through one block", fontsize=9)
    figure.tight_layout()
    return figure


def _sampler_figure(steps: Mapping[str, Any]) -> Figure:
    figure, axes = subplots(figsize=(4.5, 3.2))
    for colour, name in (("C0", "variable"), ("C1", "fixed")):
        sides = _by_side(steps, name)
        mean = [fmean(values) for values in sides.values()]
        axes.plot(list(sides), mean, f"{colour}-o", label=f"{name} size")
        for side, values in sides.items():
            axes.plot([side] * len(values), values, f"{colour}.", alpha=0.4)
    axes.set(xlabel="side of the test images, pixels", ylabel="accuracy, %", xticks=list(sides))
    axes.legend(fontsize=8)
    return figure


REPRODUCTION = Reproduction(
    key="mobilevit",
    run=run,
    predicates=(
        Predicate(
            "C1",
            "Fashion-MNIST at 64 pixels, parameters within 10 %, mean over seeds: MobileViT is at least as accurate as "
            "the mobile CNN and at least 2 points better than DeiT.",
            _judge_fashion,
            part="equal parameters",
        ),
        Predicate(
            "C1",
            "The authors' checkpoints are within half a point of 69.0, 74.8 and 78.4 %, and S is above "
            "MobileNetV3-Large and DeiT-Ti.",
            _judge_imagenet,
            part="ImageNet",
        ),
        Predicate(
            "C2",
            "COCO and PASCAL VOC: needs the data sets.",
            never_testable(
                "COCO and PASCAL VOC and days of training are needed; the backbone has the output strides for both."
            ),
        ),
        Predicate(
            "C3",
            "The gradient of one output pixel of a block reaches every input pixel; with 4 x 4 patches and a 1 x 1 "
            "kernel exactly one in sixteen; with 8 x 8 patches and a 3 x 3 kernel, or without attention, not all.",
            _judge_reach,
            part="reach",
        ),
        Predicate(
            "C3",
            "Two marks, alike or not, at least 130 pixels apart, mean over seeds: with attention at least 10 points "
            "above the same network with pointwise layers of equal parameters in its place, and ahead in every seed. "
            "Inconclusive where no network gets 60 % right.",
            _judge_relation,
            part="relation",
        ),
        Predicate(
            "C4",
            "Over as many steps of as many pixels, training with variable sizes is better than with a fixed size at "
            "both other sizes, and at most 1 point worse at the fixed one, mean over seeds.",
            _judge_sampler,
            part="accuracy",
        ),
        Predicate(
            "C4",
            "A training image costs less time with variable sizes and batches than at the fixed size, and less than "
            "with variable sizes in batches of constant length.",
            _judge_speed,
            part="time",
        ),
        Predicate(
            "C5",
            "Parameters of the three networks are exactly the published ones, multiplications within 1 %, and S has "
            "fewer parameters than DeiT-Ti.",
            _judge_counts,
            part="counts",
        ),
        Predicate(
            "C5",
            "On Fashion-MNIST a MobileViT of half the parameters is more accurate than DeiT; the paired 95 % interval "
            "over seeds excludes 0.",
            _judge_light,
            part="half the parameters",
        ),
    ),
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0,)},
    minutes={"smoke": 0.2, "laptop": 10, "paper": 40},
)
