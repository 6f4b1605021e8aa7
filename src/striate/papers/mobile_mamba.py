"""MobileMamba: how fast is a state-space network that starts at stride 16, and what does each receptive field add?

He, Zhang, Chen, Hu, Gan, Wang, Wang, Wu, Xie, "MobileMamba: Lightweight Multi-Receptive Visual Mamba Network", CVPR
2025, arXiv 2411.15941.

Laptop. Sizes: exact counts of the six networks, before and after folding, and what folding does to the logits. Speed:
T2 and S6, folded, against VMamba-T and EfficientVMamba-T at 224 x 224 on this CPU, the same scan in all four, in turns;
what is compared are medians of the ratios of one round. Receptive fields: networks of 48, 64 and 96 channels with one
block a stage on gratings (striate.data.gratings), whose class is the orientation of a long wave and the period of a
fine carrier; one part of the mixer is taken out at a time. Where the scan is taken out, its channels pass as they are.
The same network, and a mobile CNN of as many multiplications, on Fashion-MNIST resized to 64 x 64. Three seeds. The
stem has stride 16, so that the wavelet splits features, not pixels: whether it keeps what is fine in the image is just
what is measured.

Paper: the authors' checkpoints under ``--data`` as ``checkpoints/mobile_mamba_{t2,t4,s6,b1,b2,b4}.pth`` beside
``val/<wnid>/*.JPEG``, judged on ImageNet's validation set. The dry run builds the networks, tests them on random images
and takes one training step of each published recipe: AdamW, 300 epochs of batches of 1,024, learning rate 1.5e-3 after
20 epochs of warm-up, cosine to a hundredth, weight decay 0.05, gradients clipped at 5, mixup 0.8 and cutmix 1.0 with
labels smoothed by 0.1, RandAugment m9, random erasing 0.25, an average of weights (0.9998); and the same for 1,000
epochs with a TResNet-L as a teacher (:mod:`striate.learn.distillation`). Unverified against the real data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.data.gratings import gratings
from striate.engine.latency import wall_seconds
from striate.engine.macs import count_macs
from striate.engine.state import seeded
from striate.engine.train import Recipe
from striate.models.micro import MobileMicro
from striate.models.mobile_mamba import VARIANTS, MobileMamba
from striate.papers.base import Judgement, Predicate, Reproduction, Run, subplots
from striate.papers.judge import differences, find_records, never_testable, not_testable, shares, show_range
from striate.papers.measure import count_parameters, lazily_trained, measure_accuracy, predict, train_and_test
from striate.papers.published import imagenet_top1, measure_published, training_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPRODUCTION"]

_SIZES = {  # all parameters, trainable, folded; published G
    "mobile_mamba_t2": (8_836_890, 8_806_682, 8_809_444, 0.255),
    "mobile_mamba_t4": (14_176_090, 14_137_690, 14_141_092, 0.413),
    "mobile_mamba_s6": (15_036_632, 14_996_696, 15_000_456, 0.652),
    "mobile_mamba_b1": (17_122_849, 17_070_625, 17_079_424, 1.080),
    "mobile_mamba_b2": (17_122_849, 17_070_625, 17_079_424, 2.427),
    "mobile_mamba_b4": (17_122_849, 17_070_625, 17_079_424, 4.313),
}
_TIMED = ("mobile_mamba_t2", "mobile_mamba_s6", "vmamba_tiny", "efficient_vmamba_t")
_MIXERS: dict[str, dict[str, Any]] = {
    "full": {},
    "no wavelet": {"levels": 0},
    "no convolution": {"local_ratio": (0.0, 0.0, 0.0)},
    "no scan": {"scan": False},
    "no identity": {"global_ratio": (1.0, 1.0, 1.0), "local_ratio": (0.0, 0.0, 0.0)},
}
_MOBILE_WIDTHS = (6, 12, 24, 40)  # as many multiplications as ours at 64 x 64


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    if run.scale == "paper":
        _paper(run)
        return
    smoke = run.scale == "smoke"
    if run.wants("C1"):
        run.step("sizes", partial(_measure_sizes, ["mobile_mamba_t2"] if smoke else list(_SIZES)))
    if run.wants("C2") and not smoke:
        run.step("speed", partial(_measure_speed, 16, 224, 5, run.device))
    if run.wants("C3"):
        _receptive_fields(run, smoke)
    if run.wants("C1"):
        _accuracy(run, smoke)
    _draw(run)


def _measure_sizes(names: Sequence[str]) -> dict[str, Any]:
    """Counts; and the largest change of a logit by folding, with statistics other than 0 and 1, in units of it."""
    found: dict[str, Any] = {}
    for name in names:
        with torch.device("meta"):
            model = MobileMamba(**VARIANTS[name].options).eval()
            folded = count_parameters(model.fuse())
        found[name] = {
            "parameters": count_parameters(model),
            "trainable": count_parameters(model, trainable=True),
            "folded": folded,
            "macs": count_macs(model, torch.zeros(1, *VARIANTS[name].input_size)),
        }
    with seeded(0):
        model = MobileMamba(**VARIANTS[names[0]].options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.normal_(module.bias, std=0.1)
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
        x = torch.rand(2, *VARIANTS[names[0]].input_size)
    with torch.inference_mode():
        logits = model.eval()(x)
        apart = (model.fuse()(x) - logits).abs().max() / logits.abs().max()
    return {"networks": found, "apart": apart.item()}


def _measure_speed(batch: int, side: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds a batch of each network, in turns, so that whatever else the machine does falls on all alike."""
    import timm

    import striate.models.zoo  # noqa: F401

    with seeded(0):
        networks: dict[str, Any] = {name: timm.create_model(name).eval().to(device) for name in _TIMED}
        x = torch.rand(batch, 3, side, side).to(device)
    macs = {name: count_macs(network, x[:1]) for name, network in networks.items()}
    networks["unfolded"] = networks["mobile_mamba_s6"]
    for name in ("mobile_mamba_t2", "mobile_mamba_s6"):
        networks[name] = networks[name].fuse()
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for network in networks.values():
            network(x[:2])  # warms up
        for _ in range(rounds):
            for name, network in networks.items():
                seconds[name].append(round(wall_seconds(partial(network, x), device), 5))
    return {"batch": batch, "side": side, "macs": macs, "seconds": seconds, "device": device.type}


def _receptive_fields(run: Run, smoke: bool) -> None:
    train, test = gratings(64 if smoke else 2_000, seed=0), gratings(64 if smoke else 500, seed=1)
    run.note("gratings", {"train": train.origin, "test": test.origin})
    for seed in run.seeds:
        for name, options in _MIXERS.items():
            recipe, key = _recipe(1 if smoke else 4, seed), {"data": train.origin, "options": options}
            title, build = f"mobile-mamba-gratings-{name.replace(' ', '-')}", partial(_micro, 8, **options)
            network = lazily_trained(run, title, build, lambda: (train.images, train.labels), recipe, key)
            run.step(f"gratings/{name}/seed{seed}", partial(_measure_gratings, network, test))


def _micro(classes: int, **options: Any) -> nn.Module:
    network = MobileMamba((48, 64, 96), (1, 1, 1), in_chans=1, num_classes=classes, **options)
    return network.to(memory_format=torch.channels_last)  # trains faster


def _recipe(epochs: int, seed: int) -> Recipe:
    return Recipe(epochs, 32, "adamw", 3e-3, weight_decay=0.05, schedule="one-cycle", seed=seed)


def _measure_gratings(network: Callable[[], nn.Module], test: Any) -> dict[str, Any]:
    model = network()
    predicted = predict(model, test.images)
    return {
        "both": int((predicted == test.labels).sum()),
        "orientation": int((predicted // 4 == test.orientations).sum()),
        "carrier": int((predicted % 4 == test.carriers).sum()),
        "n": len(test),
        "parameters": count_parameters(model),
        "macs": count_macs(model, test.images[:1]),
    }


def _accuracy(run: Run, smoke: bool) -> None:
    train, test, origin = train_and_test(run, *((64, 64) if smoke else (3_000, 2_000)), _resized)
    key = {"data": origin, "n": len(train[1]), "side": 64}
    for seed in run.seeds:
        for name, build in (("ours", partial(_micro, 10)), ("mobile", _mobile)):
            recipe = _recipe(1 if smoke else 3, seed)
            network = lazily_trained(run, f"mobile-mamba-fashion-{name}", build, lambda: train, recipe, key)
            run.step(f"accuracy/{name}/seed{seed}", partial(measure_accuracy, network, *test))


def _mobile() -> nn.Module:
    return MobileMicro(_MOBILE_WIDTHS, 2, 3.0, in_chans=1)


def _resized(images: Tensor) -> Tensor:
    return F.interpolate(images.float() / 255, size=(64, 64), mode="bilinear", align_corners=False)


def _paper(run: Run) -> None:
    """The authors' checkpoints on ImageNet's validation set; with ``dry_run`` random weights, images and one step."""
    for name in VARIANTS if run.wants("C1") else []:
        run.step(f"imagenet/{name}", partial(measure_published, run, name))
    if run.wants("C2") and run.device.type == "cuda":
        run.step("speed", partial(_measure_speed, 2 if run.dry_run else 256, 224, 1 if run.dry_run else 20, run.device))
    if run.dry_run:
        recipe = Recipe(1, 2, "adamw", 1.5e-3, weight_decay=0.05, schedule="cosine", clip=5.0)
        run.step("training", partial(training_step, run, "mobile_mamba_t2", recipe))
        run.step("distilled", partial(training_step, run, "mobile_mamba_t2", recipe, teacher="tresnet_v2_l"))


def _judge_sizes(steps: Mapping[str, Any]) -> Judgement:
    """C1, the costs."""
    record = steps.get("sizes")
    if record is None:
        return not_testable("Counted at smoke and laptop scale.")
    wrong = [
        name
        for name, found in record["networks"].items()
        if (found["parameters"], found["trainable"], found["folded"]) != _SIZES[name][:3]
        or abs(found["macs"] / 1e9 / _SIZES[name][3] - 1) > 0.01
    ]
    measured = "; ".join(
        f"{name[-2:].upper()} {found['parameters'] / 1e6:.2f} M, {found['macs'] / 1e6:.0f} M MACs"
        for name, found in record["networks"].items()
    )
    figures = measured, f"published {', '.join(f'{1e3 * _SIZES[n][3]:.0f}' for n in record['networks'])} M"
    if wrong:
        return Judgement("not reproduced", *figures, f"Another size: {', '.join(wrong)}.")
    if not record["apart"] <= 1e-5:
        return Judgement("direction only", *figures, f"Folding changes logits by {record['apart']:.1e} of the largest.")
    return Judgement("reproduced", *figures)


def _judge_small(steps: Mapping[str, Any]) -> Judgement:
    """C1 against a light CNN."""
    ours, other = shares(steps, "accuracy/ours"), shares(steps, "accuracy/mobile")
    if not ours or not other:
        return not_testable("Measured at smoke and laptop scale.")
    macs = [find_records(steps, f"accuracy/{name}")[0]["macs"] for name in ("ours", "mobile")]
    share = macs[0] / macs[1]
    figures = _percent(ours), f"mobile CNN {_percent(other)} (multiplications: ours {share:.2f} of its)"
    if not 0.9 <= share <= 1.1:
        return Judgement("inconclusive", *figures, "The two networks do not cost the same.")
    if fmean(ours) <= fmean(other):
        return Judgement("not reproduced", *figures, "It is not more accurate than the mobile CNN.")
    if any(a <= b for a, b in zip(ours, other, strict=True)):
        return Judgement("inconclusive", *figures, "More accurate on average, but the seeds disagree.")
    return Judgement("reproduced", *figures)


def _judge_published(steps: Mapping[str, Any]) -> Judgement:
    """C1 on ImageNet."""
    top1 = imagenet_top1(steps, VARIANTS)
    if not top1:
        return not_testable("Needs the authors' checkpoints and ImageNet (paper scale).")
    figures = (
        ", ".join(f"{name[-2:].upper()} {value:.1f} %" for name, value in top1.items()),
        ", ".join(f"{VARIANTS[name].top1} %" for name in top1),
    )
    wrong = [name for name, value in top1.items() if value < (VARIANTS[name].top1 or 0) - 0.3]
    if wrong:
        return Judgement("not reproduced", *figures, f"More than 0.3 points below: {', '.join(wrong)}.")
    return Judgement("reproduced", *figures)


def _judge_speed(steps: Mapping[str, Any]) -> Judgement:
    """C2 on this CPU."""
    record = steps.get("speed")
    if record is None or record["device"] != "cpu":
        return not_testable("Timed at laptop scale.")
    seconds = record["seconds"]
    ours = "mobile_mamba_s6"
    ratios = {name: _ratio(seconds[name], seconds[ours]) for name in ("vmamba_tiny", "efficient_vmamba_t")}
    rates = {name: record["batch"] / median(times) for name, times in seconds.items()}
    measured = (
        f"S6 {rates[ours]:.1f} images/s, {ratios['vmamba_tiny']:.1f} times VMamba-T, "
        f"{ratios['efficient_vmamba_t']:.1f} times EfficientVMamba-T; T2 {rates['mobile_mamba_t2']:.1f} images/s"
    )
    macs = {name: record["macs"][name] / record["macs"][ours] for name in ratios}
    control = (
        f"VMamba-T {rates['vmamba_tiny']:.1f}, EfficientVMamba-T {rates['efficient_vmamba_t']:.1f} images/s; by "
        f"multiplications alone {macs['vmamba_tiny']:.1f} and {macs['efficient_vmamba_t']:.1f} times; "
        f"S6 not folded {rates['unfolded']:.1f} images/s"
    )
    if ratios["vmamba_tiny"] >= 3 and ratios["efficient_vmamba_t"] >= 1.5:
        return Judgement("reproduced", measured, control)
    if min(ratios.values()) > 1:
        return Judgement("direction only", measured, control, "Faster, but by less than 3 or 1.5 times.")
    return Judgement("not reproduced", measured, control, "It is not faster than both.")


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return median(a / b for a, b in zip(theirs, ours, strict=True))


def _judge_split(steps: Mapping[str, Any]) -> Judgement:
    """C3: every part of the mixer."""
    full = shares(steps, "gratings/full", "both")
    others = {name: shares(steps, f"gratings/{name}", "both") for name in _MIXERS if name != "full"}
    if not full or not all(others.values()):
        return not_testable("Measured at smoke and laptop scale.")
    figures = _percent(full), "; ".join(f"{name} {_percent(values)}" for name, values in others.items())
    above = [name for name, values in others.items() if fmean(full) < fmean(values) - 0.005]
    if above:
        return Judgement("not reproduced", *figures, f"More than half a point better: {', '.join(above)}.")
    level = [name for name, values in others.items() if fmean(full) < fmean(values) + 0.005]
    if len(level) == len(others):
        return Judgement("inconclusive", *figures, "Nothing that is taken out makes a difference.")
    if level:
        return Judgement("direction only", *figures, f"Never worse, but no better than: {', '.join(level)}.")
    return Judgement("reproduced", *figures)


def _judge_fine(steps: Mapping[str, Any]) -> Judgement:
    """C3: the wavelet and the fine carrier."""
    full, other = shares(steps, "gratings/full", "carrier"), shares(steps, "gratings/no wavelet", "carrier")
    if not full or not other:
        return not_testable("Measured at smoke and laptop scale.")
    long = shares(steps, "gratings/full", "orientation"), shares(steps, "gratings/no wavelet", "orientation")
    figures = (
        f"carrier {_percent(full)} (orientation {_percent(long[0])})",
        f"without the wavelet {_percent(other)} (orientation {_percent(long[1])}); chance 25 %",
    )
    gains = differences(full, other)
    if fmean(gains) < 0.02:
        reason = "Without the wavelet the fine carrier is told as well, within two points."
        return Judgement("direction only" if min(gains) > 0 else "not reproduced", *figures, reason)
    if min(gains) <= 0:
        return Judgement("inconclusive", *figures, "Better on average, but the seeds disagree.")
    return Judgement("reproduced", *figures)


def _percent(values: Sequence[float]) -> str:
    return show_range(values, scale=100)


def _draw(run: Run) -> None:
    steps = run.steps()
    if run.wants("C3"):
        run.figure("receptive-fields", lambda: _factors(steps))


def _factors(steps: Mapping[str, Any]) -> Figure:
    figure, axes = subplots(figsize=(6, 3))
    for i, name in enumerate(_MIXERS):
        for j, factor in enumerate(("orientation", "carrier")):
            found = [100 * share for share in shares(steps, f"gratings/{name}", factor)]
            height = i + 0.15 * (2 * j - 1)
            axes.plot(found, [height] * len(found), "os"[j], color=f"C{j}", alpha=0.6, label="" if i else factor)
            axes.plot([fmean(found)], [height], "|", color="black", markersize=12)
    for j, chance in enumerate((50, 25)):
        axes.axvline(chance, color=f"C{j}", linestyle=":")
    axes.set_yticks(range(len(_MIXERS)), list(_MIXERS))
    axes.invert_yaxis()
    axes.set(xlabel="right, % (dotted: chance)", xlim=(0, 102))
    axes.legend(fontsize=7, loc="lower left")
    return figure


REPRODUCTION = Reproduction(
    key="mobile-mamba",
    run=run,
    predicates=(
        Predicate(
            "C1",
            "All six networks have exactly the published parameters (all, trainable, folded), their published "
            "multiplications within 1 %, and folding changes no logit by more than 1e-5 of the largest.",
            _judge_sizes,
            part="sizes",
        ),
        Predicate(
            "C1",
            "On Fashion-MNIST a network of 48 to 96 channels is more accurate, in every seed, than a mobile CNN with "
            "squeeze-and-excitation at the same multiplications (within 10 %).",
            _judge_small,
            part="against a light CNN",
        ),
        Predicate(
            "C1",
            "The authors' weights reach the published ImageNet accuracy within 0.3 points.",
            _judge_published,
            part="ImageNet",
        ),
        Predicate(
            "C2",
            "On this CPU, at 224 x 224, S6 is at least 3 times as fast as VMamba-T and 1.5 times as fast as "
            "EfficientVMamba-T (medians of the ratios of rounds in which all take turns).",
            _judge_speed,
            part="CPU",
        ),
        Predicate(
            "C2",
            "21 times faster than LocalVim on a GPU.",
            never_testable(
                "21 times faster than LocalVim is a figure of a GPU and of a network that is not in this library."
            ),
            part="GPU",
        ),
        Predicate(
            "C3",
            "On gratings, mean over seeds, the whole mixer is more than half a point better than without its wavelet, "
            "without its convolution, without its scan, and with all channels in the global part; if one of these is "
            "better by more than that, it is not reproduced.",
            _judge_split,
            part="split",
        ),
        Predicate(
            "C3",
            "Without the wavelet the fine carrier of the gratings is told at least two points less often, in every "
            "seed less often.",
            _judge_fine,
            part="fine detail",
        ),
        Predicate(
            "C4",
            "Mask R-CNN and RetinaNet on COCO, three segmenters on ADE20K.",
            never_testable(
                "Detection and segmentation need COCO and ADE20K and days of GPUs; the features are served by timm."
            ),
        ),
    ),
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0,)},
    minutes={"smoke": 0.2, "laptop": 4, "paper": 15},
)
