"""FGSM and adversarial patches against image classifiers: what one gradient step does, and what one sticker does.

Sen, Dasgupta, "Adversarial Attacks on Image Classification Models: FGSM and Patch Attacks and their Impact", 2023,
arXiv 2307.02055. The chapter attacks ResNet-34, GoogLeNet and DenseNet-161 on ImageNet; its settings are those of
the public Amsterdam deep-learning tutorial on adversarial attacks.

Laptop: one small network of each of the three families (striate.models.mini) on Fashion-MNIST, three seeds, patches of
the published shares of the image's side; and the embedded ImageNet network on real photographs, where labels are its
own clean predictions. What differs: 28 x 28 grey images need a larger eps than ImageNet's, and a patch trained on
5,000 small images for 80 steps stands for one trained on 4,500 photographs for 700, its learning rate raised by the
same factor (at the published 0.1 the patch is still nearly the grey that it starts from after 80 steps). The networks
are trained with a learning rate of 1e-2 in batches of 64: at 1e-3 in batches of 128 the inception network is wrong on
47 % of the clean images, and three times that cannot be reached. This was changed after the first attack figures
had been seen; it was chosen by clean error alone. For its time each network learns from 7,500 images instead of 10,000,
and a patch is counted on 250 images at four places each instead of 500: over networks and targets that is still some
8,000 trials for one figure.

Paper: the three torchvision networks with their ImageNet weights (downloaded), five images a class of the validation
set under ``--data`` (``val/<wnid>/*.JPEG`` or the class folders themselves), eps in normalised units without clipping.
Unverified against the real data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from striate.data.embedded import PHOTOGRAPHS, photographs
from striate.data.picture import prepare
from striate.engine.load import load_model
from striate.engine.model import VisionModel
from striate.engine.stats import wilson
from striate.engine.train import Recipe
from striate.models.mini import densenet_mini, inception_mini, resnet_mini
from striate.papers.base import Judgement, Predicate, Reproduction, Run, subplots
from striate.papers.judge import find_records, not_testable
from striate.papers.measure import lazily_trained, photograph_batch, resize_bilinear, train_and_test
from striate.papers.published import validation_folder
from striate.stress.batches import batches
from striate.stress.curve import FGSMCurve, fgsm_curve
from striate.stress.patch import AdversarialPatch
from striate.stress.selftest import attack_selftests

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPRODUCTION"]

_FAMILIES = {"resnet": resnet_mini, "inception": inception_mini, "densenet": densenet_mini}
_PUBLISHED = {"resnet": "resnet34", "inception": "googlenet", "densenet": "densenet161"}
_PUBLISHED_TARGETS = {859: "toaster", 1: "goldfish", 779: "school bus", 629: "lipstick", 953: "pineapple"}
_BANANA = 954


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    if run.scale == "paper":
        _paper(run)
    else:
        _small(run)


def _small(run: Run) -> None:
    smoke = run.scale == "smoke"
    families = ["resnet"] if smoke else list(_FAMILIES)
    epsilons = [8 / 255] if smoke else [1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255]
    targets, sides = ([8], [8]) if smoke else ([1, 5, 8], [4, 8])
    n_train, n_test = (2_000, 200) if smoke else (7_500, 1_000)
    train, (test_images, test_labels), origin = train_and_test(run, n_train, n_test, _square)
    (images, labels), test_images = train, test_images / 255
    # The smallest and the largest published share of the image's side: 32 and 64 of 224 are 4 and 8 of 28.
    sides = [round(side * images.shape[-1] / 28) for side in sides]

    def network(family: str, seed: int) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            return _FAMILIES[family]().to(memory_format=torch.channels_last)

        # Chosen by clean accuracy alone: at lr 1e-3 the inception network is still wrong on half of the images.
        epochs, batch_size = (1, 32) if smoke else (2, 64)
        recipe = Recipe(epochs, batch_size, lr=1e-2, schedule="one-cycle", seed=seed)
        key = {"data": origin, "n": len(images), "side": images.shape[-1]}
        return lazily_trained(run, f"{family}-mini", build, lambda: train, recipe, key)

    for family in families if run.wants("C1", "C3") else []:
        for seed in run.seeds:
            measure = partial(_measure_fgsm, network(family, seed), test_images, test_labels, epsilons)
            run.step(f"fgsm/{family}/seed{seed}", measure)
    if run.wants("C1"):
        run.step("lite0/fgsm", partial(_measure_lite0, run))
    if run.wants("C2", "C4"):
        first = {family: network(family, run.seeds[0]) for family in families}
        fit_on = images[: 1_000 if smoke else 5_000] / 255, labels[: 1_000 if smoke else 5_000]
        held_out = test_images[: 64 if smoke else 250], test_labels[: 64 if smoke else 250]
        patches: dict[str, dict[str, Any]] = {}
        for family in families:
            for target in targets:
                for side in sides:
                    name = f"patch/{family}/target{target}/size{side}"
                    steps = 20 if smoke else 80
                    measure = partial(
                        _measure_patch, first[family], fit_on, held_out, target, side, steps, run.seeds[0]
                    )
                    patches[name] = run.step(name, measure)
        if run.wants("C4"):
            models = {family: first[family]() for family in families}
            run.step("transfer", partial(_measure_transfer, patches, models, held_out, targets, max(sides)))
    if run.wants("C2"):
        run.step("lite0/patch", partial(_measure_lite0_patch, run))
    _draw(run)


def _square(images: Tensor) -> Tensor:
    """Images of 8 x 8 are enlarged to 32 x 32."""
    return images if images.shape[-1] >= 28 else resize_bilinear(images, 32)


def _measure_fgsm(
    network: Callable[[], nn.Module], images: Tensor, labels: Tensor, epsilons: Sequence[float]
) -> dict[str, Any]:
    model = network()
    curve = fgsm_curve(model, images, labels, epsilons=epsilons, batch_size=64)
    return _counts(curve) | {"checks": _checks(model, images[:64], labels[:64], epsilons)}


def _counts(curve: FGSMCurve, judged_at: int = -1) -> dict[str, Any]:
    """Numbers of wrong images, from which every error and interval follows; ``judged_at``: the predicate's eps."""
    wrong = {kind: (~getattr(curve, kind)).sum(dim=-1).tolist() for kind in ("clean", "fgsm", "random")}
    return {
        "n": len(curve.labels),
        "epsilons": list(curve.epsilons),
        "judged_at": judged_at % len(curve.epsilons),
        "clean": wrong["clean"][0],
        "clean_top5": wrong["clean"][1],
        **{kind: [row[0] for row in wrong[kind]] for kind in ("fgsm", "random")},
        **{f"{kind}_top5": [row[1] for row in wrong[kind]] for kind in ("fgsm", "random")},
        "saturated": int(curve.saturated.sum()),
        "unmoved": int(curve.unmoved.sum()),
    }


def _checks(model: nn.Module, images: Tensor, labels: Tensor | None, epsilons: Sequence[float]) -> list[dict[str, Any]]:
    return [check.to_dict() for check in attack_selftests(model, images, labels, epsilons=epsilons)]


def _photographs(model: VisionModel, n: int) -> tuple[list[str], Tensor]:
    names = [name for name, record in PHOTOGRAPHS.items() if record.package == "skimage"][:n]
    return names, photograph_batch(photographs(names), model)


def _measure_lite0(run: Run) -> dict[str, Any]:
    """Which photographs keep their own clean prediction, by name."""
    model = load_model("lite0", device=run.device)
    names, images = _photographs(model, 2 if run.scale == "smoke" else 20)
    epsilons = [0.25 / 255, 0.5 / 255, 1 / 255]
    curve = fgsm_curve(model, images, epsilons=epsilons, batch_size=4)
    checks = [] if run.scale == "smoke" else attack_selftests(model, images, curve=curve, pgd_images=4, batch_size=4)
    return {
        "photographs": names,
        "epsilons": epsilons,
        "predicted": [model.class_name(int(label)) for label in curve.labels],
        "kept_fgsm": curve.fgsm[:, 0].int().tolist(),
        "kept_random": curve.random[:, 0].int().tolist(),
        "checks": [check.to_dict() for check in checks],
    }


def _measure_patch(
    network: Callable[[], nn.Module],
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    target: int,
    side: int,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    model, (images, labels) = network(), train
    patch = AdversarialPatch(side, target, image_size=images.shape[-1], channels=images.shape[1])
    generator = torch.Generator().manual_seed(seed)
    losses = patch.fit(model, images, steps, lr=_patch_lr(steps), batch_size=64, generator=generator)
    controls = {
        "random": patch.random_control(torch.Generator().manual_seed(seed)),
        "image": patch.image_control(images[labels == target][0]),
    }
    return {
        "loss": [losses[0], losses[-1]],
        "pixels": [[[round(value, 5) for value in row] for row in channel] for channel in patch.pixels().tolist()],
        **_score(patch, model, held_out),
        "controls": {name: _score(control, model, held_out) for name, control in controls.items()},
    }


def _patch_lr(steps: int) -> float:
    """Return the published 0.1 times what the steps fall short of the published 700: the patch may go as far."""
    return 0.1 * 700 / steps


def _score(patch: AdversarialPatch, model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    score = patch.evaluate(model, data, placements=4, batch_size=64)
    return {"top1": score.top1, "top5": score.top5, "n": score.n}


def _measure_transfer(
    patches: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, nn.Module],
    held_out: Any,
    targets: Sequence[int],
    side: int,
) -> dict[str, Any]:
    """Success of the largest patches, trained on one network (row), on every network (column); mean over targets."""
    image_size = 224 if side > 32 else held_out[0].shape[-1]
    matrix, control = [], []
    for source in models:
        cells: dict[str, list[float]] = {name: [] for name in models}
        for target in targets:
            record = patches[f"patch/{source}/target{target}/size{side}"]
            patch = AdversarialPatch(side, target, image_size=image_size, init=torch.tensor(record["pixels"]))
            for name, model in models.items():  # on its own network it was scored when it was made
                cells[name].append(record["top1"] if name == source else _score(patch, model, held_out)["top1"])
        matrix.append([fmean(cells[name]) for name in models])
    for name in models:
        records = [patches[f"patch/{name}/target{target}/size{side}"] for target in targets]
        control.append(fmean(record["controls"]["random"]["top1"] for record in records))
    return {"networks": list(models), "side": side, "success": matrix, "random": control}


def _measure_lite0_patch(run: Run) -> dict[str, Any]:
    """A banana for the embedded network: trained on twelve photographs, counted on the other eight. Reported only."""
    smoke = run.scale == "smoke"
    model = load_model("lite0", device=run.device)
    names, images = _photographs(model, 2 if smoke else 20)
    split, steps = (1, 1) if smoke else (12, 24)
    patch = AdversarialPatch(64, _BANANA, image_size=images.shape[-1])
    losses = patch.fit(model, images[:split], steps, lr=_patch_lr(steps), batch_size=4)
    held_out, control = images[split:], patch.random_control()
    scores = {name: sticker.evaluate(model, held_out, 1 if smoke else 2, batch_size=4) for name, sticker in
              (("patch", patch), ("random", control))}  # fmt: skip
    run.figure("banana-patch", lambda: _picture(patch.pixels()))
    return {"held_out": names[split:], "loss": [losses[0], losses[-1]], **{k: v.to_dict() for k, v in scores.items()}}


def _paper(run: Run) -> None:
    """The published configuration; with ``dry_run`` one step of it on random data, with random weights."""
    if run.dry_run:
        random = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        everything: Any = (random, torch.tensor([0, 2]))
        train = held_out = everything
        epsilons, targets, sides = [0.02], [859], [64]
    else:
        everything, train, held_out = _imagenet(run)
        epsilons, targets, sides = [round(0.01 * i, 2) for i in range(1, 11)], list(_PUBLISHED_TARGETS), [32, 48, 64]
    models = {
        family: load_model(f"torchvision:{name}", pretrained=not run.dry_run, device=run.device)
        for family, name in _PUBLISHED.items()
    }
    patches: dict[str, dict[str, Any]] = {}
    for family, model in models.items():
        if run.wants("C1", "C3"):
            run.step(f"fgsm/{family}/seed0", partial(_measure_published_fgsm, model, everything, epsilons))
        for target in targets if run.wants("C2", "C4") else []:
            for side in sides:
                name = f"patch/{family}/target{target}/size{side}"
                measure = partial(_measure_published_patch, run, model, everything, train, held_out, target, side)
                patches[name] = run.step(name, measure)
    if run.wants("C4"):
        run.step("transfer", partial(_measure_transfer, patches, models, held_out, targets, max(sides)))


def _measure_published_fgsm(model: nn.Module, data: Any, epsilons: Sequence[float]) -> dict[str, Any]:
    curve = fgsm_curve(model, data, epsilons=epsilons, space="normalized")
    return _counts(curve, judged_at=epsilons.index(0.02))


def _measure_published_patch(
    run: Run, model: nn.Module, everything: Any, train: Any, held_out: Any, target: int, side: int
) -> dict[str, Any]:
    patch = AdversarialPatch(side, target, image_size=224)
    length: dict[str, Any] = {"steps": 1} if run.dry_run else {"epochs": 5}
    losses = patch.fit(model, train, lr=0.1, momentum=0.8, generator=torch.Generator().manual_seed(0), **length)
    controls = {"random": patch.random_control()}
    for images, labels in batches(everything, 32):
        if labels is not None and target in labels:
            controls["image"] = patch.image_control(images[labels == target][0])
            break
    return {
        "loss": [losses[0], losses[-1]],
        "pixels": patch.pixels().tolist(),
        **_score(patch, model, held_out),
        "controls": {name: _score(control, model, held_out) for name, control in controls.items()},
    }


def _imagenet(run: Run) -> tuple[Any, Any, Any]:
    """Five validation images a class: all of them; the 4,500 that patches are trained on; the 500 held out."""
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder

    root = validation_folder(run)
    preprocessing = load_model("torchvision:resnet34", num_classes=1000).preprocessing
    folder = ImageFolder(str(root), transform=lambda image: prepare(image, preprocessing))
    taken: dict[int, list[int]] = {}
    for position, (_, label) in enumerate(folder.samples):
        taken.setdefault(label, []).append(position)
    chosen = torch.tensor([position for positions in taken.values() for position in positions[:5]])
    order = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))].tolist()
    cut = len(order) * 9 // 10
    everything = DataLoader(Subset(folder, order), batch_size=32, num_workers=4)
    train = DataLoader(Subset(folder, order[:cut]), batch_size=32, shuffle=True, drop_last=True, num_workers=4)
    return everything, train, DataLoader(Subset(folder, order[cut:]), batch_size=32, num_workers=4)


def _judge_small(steps: Mapping[str, Any]) -> Judgement:
    """C1 on the three families."""
    measured, control, failures, beaten, disagree = [], [], [], True, False
    if not _families(steps):
        return not_testable("No family was attacked.")
    for family in _families(steps):
        records = find_records(steps, f"fgsm/{family}")
        at = records[0]["judged_at"]
        clean, fgsm, random = _mean_errors(records)
        held = [_holds(*_mean_errors([record]), at) for record in records]
        measured.append(f"{family} {100 * clean:.1f} → {100 * fgsm[at]:.1f} %")
        control.append(f"{family} {100 * random[at]:.1f} %")
        beaten = beaten and fgsm[at] > random[at]
        disagree = disagree or len(set(held)) > 1
        if not _holds(clean, fgsm, random, at):
            failures.append(
                f"{family}: {100 * fgsm[at]:.1f} % under attack, {100 * clean:.1f} % clean, "
                f"{100 * random[at]:.1f} % under random signs, "
                f"{'monotone' if _monotone([clean, *fgsm]) else 'not monotone'}"
            )
    figures = "; ".join(measured), "; ".join(control)
    if not failures:
        return Judgement("reproduced", *figures, "One seed alone misses a bound." if disagree else "")
    if not beaten:
        return Judgement("not reproduced", *figures, "FGSM is no worse than random signs. " + "; ".join(failures))
    if disagree:
        return Judgement("inconclusive", *figures, "The seeds disagree. " + "; ".join(failures))
    return Judgement("direction only", *figures, "Bounds missed: " + "; ".join(failures))


def _holds(clean: float, fgsm: Sequence[float], random: Sequence[float], at: int) -> bool:
    return fgsm[at] >= 3 * clean and fgsm[at] - random[at] >= 0.20 and _monotone([clean, *fgsm])


def _monotone(errors: Sequence[float]) -> bool:
    """Non-decreasing up to the point where it passes 60 %; a longer step may overshoot."""
    until = next((i for i, error in enumerate(errors) if error > 0.6), len(errors) - 1)
    return all(errors[i + 1] >= errors[i] - 1e-12 for i in range(until))


def _judge_lite0(steps: Mapping[str, Any]) -> Judgement:
    """C1 on real weights and real photographs."""
    if "lite0/fgsm" not in steps:
        return not_testable("Measured at laptop scale only; the paper scale has true labels.")
    record = steps["lite0/fgsm"]
    n = len(record["photographs"])
    kept, random = wilson(sum(record["kept_fgsm"][-1]), n), wilson(sum(record["kept_random"][-1]), n)
    shown = [f"{100 * part.value:.0f} % [{100 * part.low:.0f}, {100 * part.high:.0f}]" for part in (kept, random)]
    figures = f"{shown[0]} of {n} photographs keep their prediction", shown[1]
    if kept.value <= 0.20 and random.value >= 0.50:
        return Judgement("reproduced", *figures)
    if kept.value < random.value:
        return Judgement("direction only", *figures, "FGSM does more than random signs, but the bounds are missed.")
    return Judgement("not reproduced", *figures, "FGSM is no worse than random signs.")


def _judge_patch(steps: Mapping[str, Any]) -> Judgement:
    """C2: means over targets and networks."""
    by_side: dict[int, list[Mapping[str, Any]]] = {}
    for name, record in steps.items():
        if name.startswith("patch/"):
            by_side.setdefault(int(name.rpartition("size")[2]), []).append(record)
    if not by_side:
        return not_testable("No patch was trained.")
    sides = sorted(by_side)
    success = [fmean(record["top1"] for record in by_side[side]) for side in sides]
    random = [fmean(record["controls"]["random"]["top1"] for record in by_side[side]) for side in sides]
    image = [record["controls"]["image"]["top1"] for record in by_side[sides[-1]] if "image" in record["controls"]]
    figures = (
        ", ".join(f"{side} px: {100 * share:.1f} %" for side, share in zip(sides, success, strict=True)),
        f"random patch {', '.join(f'{100 * share:.1f}' for share in random)} %"
        + (f"; real image of the class, {sides[-1]} px: {100 * fmean(image):.1f} %" if image else ""),
    )
    rising = len(sides) > 1 and all(late > early for early, late in pairwise(success))
    strong, beyond = success[-1] >= 0.60, success[-1] >= 3 * random[-1]
    if rising and strong and beyond:
        return Judgement("reproduced", *figures)
    if not rising or success[-1] <= random[-1]:
        return Judgement("not reproduced", *figures, "Success does not rise with the size beyond the random patch.")
    missed = [words for held, words in ((strong, "60 %"), (beyond, "three times the random patch")) if not held]
    return Judgement("direction only", *figures, f"Success rises with size, but misses {' and '.join(missed)}.")


def _judge_order(steps: Mapping[str, Any]) -> Judgement:
    """C3: is there a pair whose order turns round, in every seed?"""
    families = _families(steps)
    if len(families) < 2:
        return not_testable("An order needs at least two networks.")
    records = {family: find_records(steps, f"fgsm/{family}") for family in families}
    # Halfway up: at the largest eps all errors meet at the top and order is noise.
    at = _middle(records[families[0]][0])
    clean = {f: [record["clean"] / record["n"] for record in records[f]] for f in families}
    attacked = {f: [record["fgsm"][at] / record["n"] for record in records[f]] for f in families}
    random = {f: [record["random"][at] / record["n"] for record in records[f]] for f in families}
    sure, mean = [], []
    for a in families:
        for b in families:
            pairs = list(zip(clean[a], clean[b], attacked[a], attacked[b], strict=True))
            if a != b and all(ca < cb and aa > ab for ca, cb, aa, ab in pairs):
                sure.append((a, b))
            if a != b and fmean(clean[a]) < fmean(clean[b]) and fmean(attacked[a]) > fmean(attacked[b]):
                mean.append((a, b))
    turned = [(a, b) for a, b in sure if not fmean(random[a]) > fmean(random[b])]
    measured = f"clean {_order(clean)}; attacked {_order(attacked)}"
    control = f"random signs {_order(random)}"
    if turned:
        return Judgement("reproduced", measured, control, f"Turned round in every seed: {_pairs(turned)}.")
    if sure:
        reason = f"The order turns round in every seed ({_pairs(sure)}), but under random signs as well."
        return Judgement("inconclusive", measured, control, reason)
    if mean:
        return Judgement(
            "inconclusive", measured, control, f"Means turn round ({_pairs(mean)}), but not in every seed."
        )
    return Judgement("not reproduced", measured, control, "Under attack the networks keep their clean order.")


def _judge_transfer(steps: Mapping[str, Any]) -> Judgement:
    record = steps.get("transfer", {"networks": [], "success": [], "random": []})
    n = len(record["networks"])
    if n < 2:
        return not_testable("Transfer needs at least two networks.")
    across = fmean(record["success"][i][j] for i in range(n) for j in range(n) if i != j)
    own = fmean(record["success"][i][i] for i in range(n))
    random = fmean(record["random"])
    figures = f"{100 * across:.1f} % on other networks (own: {100 * own:.1f} %)", f"random patch {100 * random:.1f} %"
    if across > 2 * random:
        return Judgement("reproduced", *figures)
    if across > random:
        return Judgement("direction only", *figures, "Patches transfer, but less than twice the random patch.")
    return Judgement("not reproduced", *figures, "On other networks the patches do no better than a random patch.")


def _families(steps: Mapping[str, Any]) -> list[str]:
    found = {name.split("/")[1] for name in steps if name.startswith("fgsm/")}
    return [family for family in _FAMILIES if family in found]


def _mean_errors(records: Sequence[Mapping[str, Any]]) -> tuple[float, list[float], list[float]]:
    clean = fmean(record["clean"] / record["n"] for record in records)
    curves = [
        [fmean(record[kind][i] / record["n"] for record in records) for i in range(len(records[0]["epsilons"]))]
        for kind in ("fgsm", "random")
    ]
    return clean, curves[0], curves[1]


def _middle(record: Mapping[str, Any]) -> int:
    return max(0, record["judged_at"] - 2)


def _order(errors: Mapping[str, Sequence[float]]) -> str:
    ranked = sorted(errors, key=lambda family: fmean(errors[family]))
    return " < ".join(f"{family} {100 * fmean(errors[family]):.1f} %" for family in ranked)


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{a} is better than {b} when clean and worse under attack" for a, b in pairs)


def _draw(run: Run) -> None:
    if run.wants("C1", "C3"):
        run.figure("fgsm", lambda: _curves(run.steps()))


def _curves(steps: Mapping[str, Any]) -> Figure:
    figure, axes = subplots(figsize=(6, 4))
    for i, family in enumerate(_families(steps)):
        records = find_records(steps, f"fgsm/{family}")
        clean, fgsm, random = _mean_errors(records)
        eps = [0.0, *[255 * value for value in records[0]["epsilons"]]]
        axes.plot(eps, [100 * clean, *[100 * e for e in fgsm]], f"C{i}-o", label=f"{family}, FGSM")
        axes.plot(eps, [100 * clean, *[100 * e for e in random]], f"C{i}--", label=f"{family}, random signs")
    axes.set(xlabel="eps, grey levels of 255", ylabel="top-1 error, %", ylim=(0, 100))
    axes.legend(fontsize=7)
    return figure


def _picture(pixels: Tensor) -> Figure:
    figure, axes = subplots(figsize=(2, 2))
    axes.imshow(pixels.permute(1, 2, 0).cpu().numpy())
    axes.axis("off")
    return figure


REPRODUCTION = Reproduction(
    key="fgsm-patch",
    run=run,
    predicates=(
        Predicate(
            "C1",
            "For every family, mean over seeds, top-1 error under FGSM at the judged eps (16/255; at the paper scale "
            "0.02 in normalised units) is at least 3 times the clean error and at least 20 points above random "
            "signs of the same size, and it does not fall with eps before it passes 60 %.",
            _judge_small,
            part="three families",
        ),
        Predicate(
            "C1",
            "At most 20 % of the photographs keep the network's clean prediction under FGSM at 1/255, and at least "
            "50 % keep it under random signs of the same size.",
            _judge_lite0,
            part="ImageNet weights",
        ),
        Predicate(
            "C2",
            "Targeted success, mean over networks and targets, rises with the patch's size, reaches 60 % at the "
            "largest and there is at least 3 times that of a random patch.",
            _judge_patch,
        ),
        Predicate(
            "C3",
            "Two networks exist whose order of error turns round under FGSM (two eps steps below the judged one) in "
            "every seed, and does not turn round under random signs.",
            _judge_order,
        ),
        Predicate(
            "C4",
            "Mean success of the largest patches on networks that they were not trained on is more than twice that "
            "of a random patch.",
            _judge_transfer,
        ),
    ),
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0,)},
    minutes={"smoke": 0.15, "laptop": 4, "paper": 60},
)
