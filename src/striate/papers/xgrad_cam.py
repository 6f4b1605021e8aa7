"""XGrad-CAM: are the axioms kept better than by Grad-CAM, does the map see better, and is it cheap?

Fu, Hu, Dong, Guo, Gao, Li, "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC 2020,
arXiv 2008.02312. The paper uses VGG-16 at its last max-pool on ImageNet.

Laptop: the embedded ImageNet network on real photographs, at two layers above which something nonlinear stands (at
its last layer CAM, Grad-CAM and XGrad-CAM are one map by algebra, and a comparison there would be empty); and a small
VGG with a fully connected head, trained on canvases with two objects at known places, at its last max-pool, three
seeds. Every drop of a score is measured by removing the channel, never approximated. What differs from the paper: the
networks and the images. The small VGG's recipe (Kaiming weights, learning rate 2e-3, 5,000 canvases, 3 epochs) was
chosen after a first run in which it had not learned: it found 19 % of the classes, where chance is 20 %. The gate of
60 % was set before the run that counts; the predicates were not touched.

Paper: torchvision's VGG-16 with its ImageNet weights (downloaded), ``features.30``, 1,000 images of the validation set
under ``--data`` (``val/<wnid>/*.JPEG`` or the class folders themselves). Localisation is measured where ImageNet's
boxes (``Annotations/CLS-LOC/val/*.xml``) are there too. Unverified against the real data set.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.data.embedded import photographs
from striate.data.mosaic import Mosaic, two_object_mosaic
from striate.data.picture import prepare
from striate.engine.latency import wall_seconds
from striate.engine.load import load_model
from striate.engine.state import device_of, inspected, seeded
from striate.engine.stats import Interval, bootstrap_mean, paired_bootstrap
from striate.engine.train import Recipe, trained
from striate.errors import UnstableWarning
from striate.explain.axioms import AxiomReport, axiom_reports, score_decomposition
from striate.explain.base import Explainer
from striate.explain.cam import AblationCAM, GradCAM, GradCAMPlusPlus, XGradCAM
from striate.explain.localisation import energy_in_box, pointing_game
from striate.explain.result import normalize
from striate.papers.base import Judgement, Predicate, Reproduction, Run, Verdict
from striate.papers.judge import find_records, not_testable, show_signed
from striate.papers.measure import photograph_batch
from striate.papers.published import validation_folder

__all__ = ["REPRODUCTION"]

_PHOTOGRAPHS = ("chelsea", "astronaut", "coffee", "rocket", "stereo_motorcycle", "camera", "clock", "coins")
_LITE0_LAYERS = ("blocks.5", "blocks.4")
_VGG_LAYER = "features.14"  # the last max-pool: 64 x 8 x 8
_PUBLISHED_LAYER = "features.30"
_METHODS: dict[str, Callable[..., Explainer]] = {
    "xgrad-cam": XGradCAM,
    "grad-cam": GradCAM,
    "grad-cam++": GradCAMPlusPlus,
    "ablation-oracle": partial(AblationCAM, oracle=True),
}


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    if run.scale == "paper":
        _paper(run)
        return
    smoke = run.scale == "smoke"
    if run.wants("C1"):
        run.step("axioms/lite0", partial(_axioms_of_lite0, run, _PHOTOGRAPHS[: 2 if smoke else 8]))
    for seed in run.seeds if run.wants("C1", "C2", "C3") else ():
        canvases = two_object_mosaic(8 if smoke else 500, seed=1_000 + seed, train=False)
        run.note("canvases", canvases.origin)
        network = partial(_network, run, seed)
        if run.wants("C1"):
            some = canvases.images[: 4 if smoke else 200]
            run.step(f"theorem/seed{seed}", partial(_theorem, network, some[: 2 if smoke else 8]))
            run.step(f"axioms/vgg/seed{seed}", partial(_axioms_of_vgg, network, canvases, len(some), seed))
        if run.wants("C2", "C3"):
            run.step(f"places/seed{seed}", partial(_places, network, canvases, seed))
    if run.wants("C4"):
        run.step("cost", partial(_cost, lambda: load_model("lite0", device=run.device), "blocks.5", quick=smoke))


def _mini_vgg() -> nn.Module:
    """VGG in small: 3 x (two convolutions, max-pool) and a fully connected head; ReLUs and biases, no normalisation."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, 10))
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*layers))
    model.add_module("head", head)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):  # with PyTorch's default it stays at the classes' frequencies
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model.to(memory_format=torch.channels_last)


def _network(run: Run, seed: int) -> nn.Module:
    """The small VGG, trained to tell which two classes are on a canvas; untrained at smoke scale."""
    if run.scale == "smoke":
        with seeded(seed):
            return _mini_vgg().eval()
    n = 5_000

    def data() -> tuple[Tensor, Tensor]:
        canvases = two_object_mosaic(n, seed=seed)
        return canvases.images, canvases.multi_hot

    origin = two_object_mosaic(1, seed=seed).origin
    recipe = Recipe(epochs=3, batch_size=64, lr=2e-3, schedule="one-cycle", seed=seed)
    key = {"data": origin, "n": n, "init": "kaiming"}
    return trained("mini-vgg", _mini_vgg, data, recipe, loss=_both_classes, key=key, device=run.device)


def _both_classes(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(images), labels)


def _axioms_of_lite0(run: Run, names: Sequence[str]) -> dict[str, Any]:
    model = load_model("lite0", device=run.device)
    images = photograph_batch(photographs(names), model)
    layers = _LITE0_LAYERS[: 1 if run.scale == "smoke" else 2]
    return {"photographs": list(names), **_axioms(lambda: model, images, layers, seed=0)}


def _axioms_of_vgg(network: Callable[[], nn.Module], canvases: Mosaic, n: int, seed: int) -> dict[str, Any]:
    model = network()
    images = canvases.images[:n].to(device_of(model))
    return {
        "classes_found": _classes_found(model, canvases),
        **_axioms(lambda: model, images, (_VGG_LAYER,), seed=seed),
    }


def _classes_found(model: nn.Module, canvases: Mosaic) -> float:
    """Return the share of the objects whose class is among the two that the network holds likeliest."""
    with torch.no_grad(), inspected(model):
        both = model(canvases.images.to(device_of(model))).topk(2, dim=1).indices.cpu()
    return float((both[:, :, None] == canvases.labels[:, None]).any(dim=1).float().mean())


def _axioms(network: Callable[[], nn.Module], images: Tensor, layers: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Errors of both axioms for every image, for the predicted class."""
    model = network()
    measured: dict[str, dict[str, Any]] = {}
    for layer in layers:
        reports = axiom_reports(model, layer, images, methods=("xgrad-cam", "grad-cam"))
        measured[layer] = {
            name: {
                "sensitivity": _rounded(report.sensitivity_error),
                "conservation": _rounded(report.conservation_error),
            }
            for name, report in reports.items()
        }
        first = reports["xgrad-cam"]
        measured[layer]["shuffled"] = {"sensitivity": _rounded(_shuffled(first, seed))}
        measured[layer]["zeros"] = {"conservation": [1.0] * len(images)}
        measured[layer]["skipped"] = first.skipped
        measured[layer]["bias_share"] = _rounded(first.bias_term.abs() / first.score.abs())
    return {"layers": measured}


def _shuffled(report: AxiomReport, seed: int) -> Tensor:
    """Sensitivity error of XGrad-CAM's own contributions, handed to other channels: the control."""
    order = torch.randperm(report.delta.shape[1], generator=torch.Generator().manual_seed(seed))
    others = report.contribution[:, order.to(report.delta.device)]
    return (report.delta - others).abs().sum(dim=1) / report.delta.abs().sum(dim=1)


def _theorem(network: Callable[[], nn.Module], images: Tensor) -> dict[str, Any]:
    """|S - G.F - bias term| / |S| in float64 after every module of the small VGG, and what is left without the bias."""
    model = network().double()
    layers = [name for name, module in model.named_modules() if name and not list(module.children())][:-1]
    residual, without = {}, {}
    for layer in layers:
        parts = score_decomposition(model, layer, images.double())
        size = parts.score.abs().clamp_min(1e-6)
        residual[layer] = float((parts.residual.abs() / size).max())
        without[layer] = float((parts.bias_term.abs() / size).max())
    model.float()
    return {"residual": residual, "without_bias_term": without, "images": len(images)}


def _places(network: Callable[[], nn.Module], canvases: Mosaic, seed: int) -> dict[str, Any]:
    """For every canvas: does each class's map point at that class's object, and with how much of its mass?"""
    model = network()
    device = device_of(model)
    images, boxes, labels = canvases.images.to(device), canvases.boxes.to(device), canvases.labels.to(device)
    maps = {name: [_maps(method(model, _VGG_LAYER), images, labels[:, k]) for k in (0, 1)] for name, method in
            _METHODS.items()}  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    noise = [normalize(torch.rand(len(images), *images.shape[-2:], generator=generator)).to(device) for _ in (0, 1)]
    centre = torch.zeros_like(noise[0])
    centre[:, centre.shape[1] // 2, centre.shape[2] // 2] = 1
    maps |= {"random": noise, "centre": [centre, centre]}
    return {
        "classes_found": _classes_found(model, canvases),
        **{name: _place(pair, boxes) for name, pair in maps.items()},
    }


def _maps(explainer: Explainer, images: Tensor, target: Tensor) -> Tensor:
    parts = zip(images.split(100), target.split(100), strict=True)
    return torch.cat([explainer.attribute(some, classes).normalized for some, classes in parts])


def _place(pair: Sequence[Tensor], boxes: Tensor) -> dict[str, Any]:
    own = [energy_in_box(maps, boxes[:, k]) for k, maps in enumerate(pair)]
    other = [energy_in_box(maps, boxes[:, 1 - k]) for k, maps in enumerate(pair)]
    hits = [pointing_game(maps, boxes[:, k]) for k, maps in enumerate(pair)]
    first, second = (maps.flatten(1) - maps.flatten(1).mean(dim=1, keepdim=True) for maps in pair)
    scale = first.norm(dim=1) * second.norm(dim=1)
    correlation = torch.where(scale > 0, (first * second).sum(dim=1) / scale.clamp_min(1e-12), torch.ones_like(scale))
    return {  # means over the two classes of a canvas
        "hit": _rounded((hits[0].double() + hits[1].double()) / 2),
        "energy": _rounded((own[0] + own[1]) / 2),
        "apart": _rounded(((own[0] > other[0]).double() + (own[1] > other[1]).double()) / 2),
        "correlation": _rounded(correlation),
    }


def _cost(network: Callable[[], nn.Module], layer: str, *, quick: bool) -> dict[str, Any]:
    """Seconds for one image; the plain ablation runs the whole network once for each channel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableWarning)  # only the clock is read here
        return _seconds(network(), layer, quick=quick)


def _seconds(model: nn.Module, layer: str, *, quick: bool) -> dict[str, Any]:
    size = getattr(model, "preprocessing", None)
    image = torch.rand(1, *(size.input_size if size else (3, 224, 224)), generator=torch.Generator().manual_seed(0))
    image = image.to(device_of(model))
    clock = partial(wall_seconds, device=image.device)
    repeats = 3 if quick else 7
    seconds = {}
    for name, explainer in {"xgrad-cam": XGradCAM(model, layer), "grad-cam": GradCAM(model, layer)}.items():
        explainer.attribute(image, 0)
        seconds[name] = [clock(partial(explainer.attribute, image, 0)) for _ in range(repeats)]
    batched = AblationCAM(model, layer)
    weights = batched.attribute(image, 0).weights
    channels = 0 if weights is None else weights.shape[1]
    seconds["batched ablation"] = [clock(partial(batched.attribute, image, 0)) for _ in range(1 if quick else 3)]
    with torch.no_grad(), inspected(model):
        some = min(channels, 8) if quick else channels
        seconds["plain ablation"] = [clock(lambda: [model(image) for _ in range(some)]) * channels / some]
    return {"layer": layer, "channels": channels, "seconds": seconds}


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.double().tolist()]


def _paper(run: Run) -> None:
    """The published configuration; with ``dry_run`` one image of random data, with random weights."""
    model = load_model("torchvision:vgg16", pretrained=not run.dry_run, device=run.device)
    if run.dry_run:
        images, labels = torch.rand(1, 3, 224, 224), torch.tensor([5])
        boxes: Tensor | None = torch.tensor([[20, 20, 120, 160]])
    else:
        images, labels, boxes = _imagenet(run, model.preprocessing)
    run.note("images", len(images))
    if run.wants("C1"):
        run.step("axioms/vgg16", partial(_axioms_in_parts, model, images.to(run.device)))
        double = lambda: load_model("torchvision:vgg16", pretrained=not run.dry_run, device=run.device)  # noqa: E731
        run.step("theorem/vgg16", partial(_theorem_of_vgg16, double, images[:1].to(run.device)))
    if run.wants("C2") and boxes is not None:
        run.step("places/vgg16", partial(_single_places, model, images.to(run.device), labels, boxes.to(run.device)))
    if run.wants("C4"):
        run.step("cost", partial(_cost, lambda: model, _PUBLISHED_LAYER, quick=run.dry_run))


def _axioms_in_parts(model: nn.Module, images: Tensor) -> dict[str, Any]:
    parts = [_axioms(lambda: model, some, (_PUBLISHED_LAYER,), seed=0)["layers"] for some in images.split(16)]
    merged: dict[str, Any] = {"skipped": sum(part[_PUBLISHED_LAYER]["skipped"] for part in parts)}
    for name, errors in parts[0][_PUBLISHED_LAYER].items():
        if isinstance(errors, dict):
            merged[name] = {key: [e for part in parts for e in part[_PUBLISHED_LAYER][name][key]] for key in errors}
    return {"layers": {_PUBLISHED_LAYER: merged}}


def _theorem_of_vgg16(network: Callable[[], nn.Module], image: Tensor) -> dict[str, Any]:
    parts = score_decomposition(network().double(), _PUBLISHED_LAYER, image.double())
    size = float(parts.score.abs())
    return {
        "residual": {_PUBLISHED_LAYER: float(parts.residual.abs()) / size},
        "without_bias_term": {_PUBLISHED_LAYER: float(parts.bias_term.abs()) / size},
        "images": 1,
    }


def _single_places(model: nn.Module, images: Tensor, labels: Tensor, boxes: Tensor) -> dict[str, Any]:
    """Pointing game and energy for one object an image, for its true class."""
    measured: dict[str, Any] = {"classes_found": 1.0}
    for name, method in _METHODS.items():
        explainer = method(model, _PUBLISHED_LAYER)
        parts = zip(images.split(16), labels.to(images.device).split(16), strict=True)
        maps = torch.cat([explainer.attribute(some, classes).normalized for some, classes in parts])
        measured[name] = _single(maps, boxes)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(images), *images.shape[-2:], generator=generator).to(images.device)
    centre = torch.zeros_like(noise)
    centre[:, centre.shape[1] // 2, centre.shape[2] // 2] = 1
    return {**measured, "random": _single(noise, boxes), "centre": _single(centre, boxes)}


def _single(maps: Tensor, boxes: Tensor) -> dict[str, Any]:
    return {"hit": _rounded(pointing_game(maps, boxes).double()), "energy": _rounded(energy_in_box(maps, boxes))}


def _imagenet(run: Run, preprocessing: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """One validation image a class, with the box of its object where there is exactly one."""
    from torchvision.datasets import ImageFolder

    folder = ImageFolder(str(validation_folder(run)))
    notes = run.data_root("the ImageNet validation set") / "Annotations" / "CLS-LOC" / "val"
    images, labels, boxes = [], [], []
    taken: set[int] = set()
    for path, label in folder.samples:
        if label in taken:
            continue
        picture = folder.loader(path)
        box = _box(notes / f"{Path(path).stem}.xml", picture.size) if notes.is_dir() else None
        if notes.is_dir() and box is None:
            continue
        taken.add(label)
        images.append(prepare(picture, preprocessing))
        labels.append(label)
        boxes.append(box)
    found = torch.tensor(boxes) if notes.is_dir() else None
    return torch.stack(images), torch.tensor(labels), found


def _box(note: Path, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the only object's box in the 224 x 224 centre crop of the image resized to 256, or None."""
    from xml.etree import ElementTree

    if not note.is_file():
        return None
    objects = ElementTree.parse(note).getroot().findall("object/bndbox")
    if len(objects) != 1:
        return None
    scale = 256 / min(size)
    left, top = (size[0] * scale - 224) / 2, (size[1] * scale - 224) / 2
    corners = [float(objects[0].findtext(name, "0")) * scale for name in ("xmin", "ymin", "xmax", "ymax")]
    x0, x1 = (min(224, max(0, round(x - left))) for x in corners[::2])
    y0, y1 = (min(224, max(0, round(y - top))) for y in corners[1::2])
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _judge_sensitivity(steps: Mapping[str, Any]) -> Judgement:
    groups = _axiom_groups(steps, "sensitivity", "shuffled")
    if not groups:
        return _missing("the axioms")
    return _compared(
        steps, groups, "sensitivity error of XGrad-CAM, of Grad-CAM", "contributions shuffled over channels"
    )


def _judge_conservation(where: str, steps: Mapping[str, Any]) -> Judgement:
    groups = {name: group for name, group in _axiom_groups(steps, "conservation", "zeros").items() if where in name}
    if not groups:
        return _missing(f"conservation on {where}")
    return _compared(steps, groups, "conservation error of XGrad-CAM, of Grad-CAM", "an empty map")


def _axiom_groups(steps: Mapping[str, Any], axiom: str, control: str) -> dict[str, dict[str, list[float]]]:
    """For each network (and seed): the error of every image, mean over layers, for both methods and the control."""
    groups = {}
    for step, measured in steps.items():
        if step.startswith("axioms/"):
            layers = list(measured["layers"].values())
            names = {"ours": "xgrad-cam", "rival": "grad-cam", "control": control}
            rows = {role: [layer[name][axiom] for layer in layers] for role, name in names.items()}
            # An error that is undefined for an image (a score of about 0) leaves the image out for all.
            images = range(len(rows["ours"][0]))
            kept = [i for i in images if all(row[i] is not None for each in rows.values() for row in each)]
            groups[step.removeprefix("axioms/")] = {
                role: [fmean(row[i] for row in each) for i in kept] for role, each in rows.items()
            }
    return groups


def _compared(
    steps: Mapping[str, Any], groups: Mapping[str, Mapping[str, list[float]]], what: str, control_name: str
) -> Judgement:
    """Lower is better: XGrad-CAM against Grad-CAM in every group, over images; the control must not do as well."""
    intervals = {name: paired_bootstrap(group["rival"], group["ours"]) for name, group in groups.items()}
    beaten = all(fmean(group["ours"]) < fmean(group["control"]) for group in groups.values())
    measured = f"{what}: " + "; ".join(
        f"{name} {fmean(group['ours']):.3f}, {fmean(group['rival']):.3f} (gain {intervals[name]})"
        for name, group in groups.items()
    )
    control = f"{control_name}: " + "; ".join(f"{name} {fmean(g['control']):.3f}" for name, g in groups.items())
    weak = _unlearned({name: steps[f"axioms/{name}"] for name in groups})
    if weak:
        return Judgement("inconclusive", measured, control, weak)
    verdict, reason = _over(intervals)
    if not beaten and verdict in {"reproduced", "direction only"}:
        verdict, reason = "not reproduced", f"the control ({control_name}) does as well"
    return Judgement(verdict, measured, control, reason)


def _over(intervals: Mapping[str, Interval]) -> tuple[Verdict, str]:
    """Judge a gain that should be positive in every group; groups that differ in the seed alone may disagree."""
    networks: dict[str, list[Interval]] = {}
    for name, interval in intervals.items():
        networks.setdefault(name.split("/seed")[0], []).append(interval)
    signs = {network: {each.value > 0 for each in found} for network, found in networks.items()}
    split = [network for network, found in signs.items() if len(found) > 1]
    if split:
        return "inconclusive", f"the seeds disagree in sign on {', '.join(split)}"
    worse = [network for network, found in signs.items() if found == {False}]
    if worse:
        return "not reproduced", f"XGrad-CAM is not better on {', '.join(worse)}"
    open_ = [name for name, interval in intervals.items() if interval.low <= 0]
    if open_:
        return "direction only", f"the sign holds, but the 95 % interval includes 0 for {', '.join(open_)}"
    return "reproduced", ""


def _judge_theorem(steps: Mapping[str, Any]) -> Judgement:
    found = find_records(steps, "theorem")
    if not found:
        return _missing("the theorem")
    worst = max(max(measured["residual"].values()) for measured in found)
    without = max(max(measured["without_bias_term"].values()) for measured in found)
    layers = len(found[0]["residual"])
    text = f"largest |S - G·F - bias term| / |S| over {layers} layers in float64: {worst:.1e}"
    control = f"bias term left out: up to {without:.2g}"
    if worst < 1e-5 <= without:
        return Judgement("reproduced", text, control)
    reason = (
        "the residual is not below 1e-5" if worst >= 1e-5 else "there is no bias term to speak of, so nothing is shown"
    )
    return Judgement("not reproduced", text, control, reason)


def _judge_places(steps: Mapping[str, Any]) -> Judgement:
    groups = {step.removeprefix("places/"): measured for step, measured in steps.items() if step.startswith("places/")}
    if not groups:
        return _missing("localisation", "it needs images with boxes")
    weak = _unlearned(groups)
    names = ("xgrad-cam", "grad-cam", "ablation-oracle", "centre", "random")
    means = {kind: {name: fmean(fmean(group[name][kind]) for group in groups.values()) for name in names} for kind in
             ("hit", "energy")}  # fmt: skip
    pooled = paired_bootstrap(*(
        [sum(each) / len(groups) for each in zip(*(group[name]["hit"] for group in groups.values()), strict=True)]
        for name in ("xgrad-cam", "grad-cam")
    ))  # fmt: skip
    signs = [fmean(g["xgrad-cam"]["hit"]) - fmean(g["grad-cam"]["hit"]) for g in groups.values()]
    hit, energy = means["hit"], means["energy"]
    measured = (
        f"hits {hit['xgrad-cam']:.1%} against Grad-CAM's {hit['grad-cam']:.1%} (difference {pooled}; by seed "
        f"{show_signed(signs, 3)}); energy in the box {energy['xgrad-cam']:.3f} against "
        f"{energy['grad-cam']:.3f}"
    )
    control = (
        f"hits of the centre {hit['centre']:.1%}, of a random map {hit['random']:.1%}, "
        f"of the ablation oracle {hit['ablation-oracle']:.1%}"
    )
    if weak:
        return Judgement("inconclusive", measured, control, weak)
    if hit["xgrad-cam"] <= max(hit["centre"], hit["random"]):
        return Judgement("not reproduced", measured, control, "it points no better than the centre or a random map")
    if max(signs) > 0 > min(signs):
        return Judgement("inconclusive", measured, control, "the seeds disagree in sign")
    if pooled.low > 0:
        return Judgement("reproduced", measured, control)
    if pooled.value > 0:
        return Judgement("direction only", measured, control, "consistent, but the difference's interval includes 0")
    return Judgement("not reproduced", measured, control, "XGrad-CAM does not point better than Grad-CAM")


def _judge_apart(steps: Mapping[str, Any]) -> Judgement:
    groups = {step: measured for step, measured in steps.items() if step.startswith("places/seed")}
    if not groups:
        return _missing("discrimination", "it needs images with two objects of known classes")
    weak = _unlearned(groups)
    names = ("xgrad-cam", "grad-cam", "grad-cam++", "random")
    rate = {name: [fmean(group[name]["apart"]) for group in groups.values()] for name in names}
    alike = {name: fmean(fmean(group[name]["correlation"]) for group in groups.values()) for name in names}
    interval = bootstrap_mean([value for group in groups.values() for value in group["xgrad-cam"]["apart"]])
    measured = (
        f"P(more energy in its own box): XGrad-CAM {interval}, Grad-CAM {fmean(rate['grad-cam']):.3f}, Grad-CAM++ "
        f"{fmean(rate['grad-cam++']):.3f}; correlation of the two maps {alike['xgrad-cam']:.2f}, "
        f"{alike['grad-cam']:.2f}, {alike['grad-cam++']:.2f}"
    )
    control = f"random map {fmean(rate['random']):.3f}"
    if weak:
        return Judgement("inconclusive", measured, control, weak)
    rows = zip(*(rate[name] for name in names), strict=True)
    held = [x >= g - 0.02 and x > p and x > r for x, g, p, r in rows]
    if all(held):
        return Judgement("reproduced", measured, control)
    if any(held):
        return Judgement("inconclusive", measured, control, "the seeds disagree")
    reason = "XGrad-CAM is not within 2 points of Grad-CAM and above Grad-CAM++ and a random map"
    return Judgement("not reproduced", measured, control, reason)


def _unlearned(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Say so if a network did not learn: maps of a network that sees nothing show nothing."""
    least = min(group.get("classes_found", 1.0) for group in groups.values())
    return "" if least >= 0.6 else f"a network finds only {least:.0%} of the classes: its training failed"


def _judge_cost(steps: Mapping[str, Any]) -> Judgement:
    if "cost" not in steps:
        return _missing("the cost")
    cost = steps["cost"]
    seconds = {name: median(values) for name, values in cost["seconds"].items()}
    plain = seconds["plain ablation"] / seconds["xgrad-cam"]
    batched = seconds["batched ablation"] / seconds["xgrad-cam"]
    measured = (
        f"Ablation-CAM / XGrad-CAM at {cost['layer']} ({cost['channels']} channels): {plain:.0f} x plain, "
        f"{batched:.1f} x batched"
    )
    control = f"Grad-CAM / XGrad-CAM {seconds['grad-cam'] / seconds['xgrad-cam']:.2f} x"
    if plain >= 10 and batched >= 3:
        return Judgement("reproduced", measured, control)
    reason = f"wanted >= 10 x and >= 3 x; {'only the first holds' if plain >= 10 else 'plain ablation is too cheap'}"
    return Judgement("direction only" if min(plain, batched) > 1 else "not reproduced", measured, control, reason)


def _missing(what: str, need: str = "its steps were not run") -> Judgement:
    return not_testable(f"{what} was not measured: {need}", "–")


_ON_IMAGES = (
    "mean {} error lower for XGrad-CAM than for Grad-CAM, the paired bootstrap 95 % interval over images excluding 0"
)

REPRODUCTION = Reproduction(
    key="xgrad-cam",
    run=run,
    predicates=(
        Predicate(
            "C1",
            _ON_IMAGES.format("sensitivity")
            + ", on every network and every seed; and lower than for the same contributions shuffled over channels",
            _judge_sensitivity,
            part="sensitivity",
        ),
        Predicate(
            "C1",
            _ON_IMAGES.format("conservation") + ", on the embedded network; and lower than an empty map's, which is 1",
            partial(_judge_conservation, "lite0"),
            part="conservation, Lite0",
        ),
        Predicate(
            "C1",
            _ON_IMAGES.format("conservation") + ", on the VGG, every seed; and lower than an empty map's, which is 1",
            partial(_judge_conservation, "vgg"),
            part="conservation, VGG",
        ),
        Predicate(
            "C1",
            "|S - gradient x activation - bias term| / |S| < 1e-5 in float64 at every layer of the VGG, where leaving "
            "the bias term out leaves more than that",
            _judge_theorem,
            part="theorem",
        ),
        Predicate(
            "C2",
            "pointing-game hit rate higher for XGrad-CAM than for Grad-CAM, the paired difference's 95 % interval over "
            "images excluding 0, no seed of the other sign; and above a centre point's and a random map's",
            _judge_places,
        ),
        Predicate(
            "C3",
            "in every seed the rate of maps with more energy in their own class's box is within 2 points of Grad-CAM's "
            "and above Grad-CAM++'s and a random map's",
            _judge_apart,
        ),
        Predicate(
            "C4",
            "Ablation-CAM takes >= 10 x the time of XGrad-CAM when the whole network runs for each channel, and >= 3 x "
            "when ablation is batched and runs the network's tail only; Grad-CAM, the control, does not",
            _judge_cost,
        ),
    ),
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0,)},
    minutes={"smoke": 0.15, "laptop": 2, "paper": 10},
)
