"""How explainable are adversarially robust CNNs? Nine attribution methods on networks that differ only in training.

Nourelahi, Kotthoff, Chen, Nguyen, "How explainable are adversarially-robust CNNs?", 2022, arXiv 2205.13042. No official
code is known; the published tables are not compared here.

Laptop: three tiny networks (striate.models.tiny), each trained normally and adversarially (L2, eps 0.75), the two with
batch norm by AdvProp as well: eight networks. Data are placed objects: a real small image on a coloured canvas, its box
known, with a class cue of tiny amplitude over the whole canvas. What differs from the paper: one seed, with the three
architectures as replicates, so intervals over images say nothing of another training run; one-object canvases for
photographs; stripes and inverted colours for the five shifted ImageNets. Networks are trained in short batches for
enough steps that the robust ones leave chance: a robust network that has learned nothing cannot test the claims, which
the gate makes sure of (adversarial accuracy 20 points above the normal network's, else no claim is judged). For their
time they train for 5 epochs instead of 6, in which the gate had been passed by 10 points or more.

Paper: :mod:`striate.papers.explainable_robust_imagenet`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from striate.data.placed import PlacedObjects, class_cues, placed_objects
from striate.engine.model import Preprocessing, VisionModel
from striate.engine.record import fingerprint
from striate.engine.stats import Interval, bootstrap_mean, paired_bootstrap
from striate.engine.train import Loss, Recipe, cross_entropy, trained
from striate.errors import InputError
from striate.explain.base import Explainer
from striate.explain.bench import METRICS, BenchTable, BoxedImages, ExplainabilityBench, confidence_confound
from striate.explain.localisation import pointing_game, tune_alpha, wsl
from striate.explain.registry import get_method
from striate.layers.dual_bn import convert_dual_bn, drop_aux_bn
from striate.learn.adversarial import AdversarialLoss, AdvPropLoss
from striate.models.tiny import TinyAlex, TinyMobile, TinyRes
from striate.papers.base import Judgement, Predicate, Reproduction, Run, subplots
from striate.papers.explainable_robust_imagenet import run_published
from striate.papers.judge import differences, not_testable
from striate.papers.measure import count_correct
from striate.stress.pgd import pgd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPRODUCTION"]

_ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "TinyAlex": TinyAlex,
    "TinyRes": TinyRes,
    "TinyMobile": TinyMobile,
}
_WITHOUT_BN = ("TinyAlex",)
_EPS = 0.75
_ROBUST = AdversarialLoss("l2", _EPS, steps=2, step_size=0.5)
_LOSSES: dict[str, Loss] = {
    "vanilla": cross_entropy,
    "robust": _ROBUST,
    "advprop": AdvPropLoss("linf", 4 / 255, 1, 1 / 255),
}

_GRADIENT = ("gradient", "input-x-gradient", "integrated-gradients", "gradient-shap")
_OTHER = ("cam", "grad-cam", "rise", "lime", "meaningful-perturbation")
_LOCALISATION = ("pointing-game", "wsl")


@dataclass(frozen=True)
class _Size:
    """How much is done at a scale."""

    architectures: tuple[str, ...]
    trainings: tuple[str, ...]
    methods: Mapping[str, Mapping[str, Any]]
    n_train: int
    n_test: int
    n_held_out: int
    judged: int
    recipe: Recipe
    only_correct: bool = True
    cue_off: str | None = None  # the architecture that is also trained without the cue


_SIZES = {
    "smoke": _Size(
        architectures=("TinyRes",),
        trainings=("vanilla", "robust"),
        methods={"gradient": {}, "grad-cam": {}},
        n_train=256,
        n_test=40,
        n_held_out=20,
        judged=24,
        recipe=Recipe(epochs=1, batch_size=64, lr=2e-3),
        only_correct=False,
    ),
    "laptop": _Size(
        architectures=tuple(_ARCHITECTURES),
        trainings=("vanilla", "robust", "advprop"),
        methods={
            "gradient": {},
            "input-x-gradient": {},
            # "Nothing there" is the mean of the preprocessing, zero for the network, as in the papers of these methods.
            "integrated-gradients": {"n_steps": 50, "baseline": 0.5},
            "gradient-shap": {"n_samples": 16},
            "lime": {"n_segments": 50, "n_samples": 200},
            "rise": {"n_masks": 300, "grid": 5, "baseline": 0.5},
            "meaningful-perturbation": {"iterations": 40, "mask_size": 10},
            "cam": {},
            "grad-cam": {},
        },
        n_train=5_000,
        n_test=1_000,
        n_held_out=40,
        judged=60,
        recipe=Recipe(epochs=5, batch_size=32, lr=4e-3, schedule="one-cycle"),
        cue_off="TinyRes",
    ),
}


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    if run.scale == "paper":
        run_published(run, (*_GRADIENT, *_OTHER), _centre)
        return
    size = _SIZES[run.scale]
    test = placed_objects(size.n_test, seed=1, train=False)
    held_out = placed_objects(size.n_held_out, seed=2, train=False, held_out=True)
    run.note("data", {"train": placed_objects(1, seed=0).origin, "test": test.origin, "held out": held_out.origin})
    run.note("replicates", f"{len(size.architectures)} architectures, {len(run.seeds)} seed(s)")
    for seed in run.seeds:
        _one_seed(run, size, seed, test, held_out)
    _draw(run)


def _one_seed(run: Run, size: _Size, seed: int, test: PlacedObjects, held_out: PlacedObjects) -> None:
    names = [
        f"{architecture}-{training}"
        for architecture in size.architectures
        for training in size.trainings
        if training != "advprop" or architecture not in _WITHOUT_BN
    ]

    @cache
    def network(name: str, cue: bool = True) -> nn.Module:
        return _network(run, size, name, cue, seed, network)

    @cache
    def bench() -> ExplainabilityBench:
        return _bench(run, size, {name: network(name) for name in names}, test, held_out)

    for name in names:
        run.step(f"network/seed{seed}/{name}", lambda name=name: _accuracies(network(name), test))  # type: ignore[misc]
    for name in names:
        run.step(f"bench/seed{seed}/{name}", lambda name=name: bench().run([name]).to_dict())  # type: ignore[misc]
    run.step(f"centre/seed{seed}", lambda: _centre(test, bench().run([]).images, held_out))
    if size.cue_off is not None and run.wants("C1"):
        run.step(f"cue-off/seed{seed}", partial(_without_cue, run, size, size.cue_off, network))


def _network(
    run: Run, size: _Size, name: str, cue: bool, seed: int, network: Callable[[str, bool], nn.Module]
) -> nn.Module:
    """Train a network, or read it from the cache.

    Without batch norm adversarial training does not leave chance from random weights; there it starts from the
    normal network.
    """
    architecture, training = name.split("-")

    without_bn = architecture in _WITHOUT_BN

    def build() -> nn.Module:
        # The normaliser stands inside, so that every eps is in pixels of [0, 1].
        model = VisionModel(_ARCHITECTURES[architecture](), Preprocessing((3, 40, 40), (0.5,) * 3, (0.25,) * 3))
        if without_bn and training == "robust":
            model.load_state_dict(network(f"{architecture}-vanilla", cue).state_dict())
        model = convert_dual_bn(model) if training == "advprop" else model  # type: ignore[assignment]
        return model.to(memory_format=torch.channels_last)

    loss = _LOSSES[training]
    sample = placed_objects(2, seed=0, cue=cue)
    key = {
        "data": [sample.origin, fingerprint(sample.images.tolist())],  # the generator's own numbers count too
        "n": size.n_train,
        "loss": repr(loss) if loss is not cross_entropy else "cross entropy",
    }
    recipe = replace(size.recipe, seed=seed, lr=1e-3 if without_bn else size.recipe.lr)
    model = trained(
        name.lower(), build, partial(_training_set, size.n_train, cue), recipe, loss=loss, key=key, device=run.device
    )
    return drop_aux_bn(model) if training == "advprop" else model


@lru_cache(maxsize=1)
def _training_set(n: int, cue: bool) -> tuple[Tensor, Tensor]:
    """All networks learn from the same canvases, drawn once."""
    objects = placed_objects(n, seed=0, cue=cue)
    return objects.images, objects.labels


def _accuracies(model: nn.Module, test: PlacedObjects) -> dict[str, Any]:
    """Right answers of 500: as the test images are, attacked, without and with another class's cue, shifted."""
    n = min(500, len(test.labels))
    images, labels = test.images[:n], test.labels[:n]
    plain = placed_objects(len(test.labels), seed=1, train=False, cue=False).images[:n]  # the same, without the cue
    shifted = placed_objects(n, seed=3, train=False, ood=True)
    cues = class_cues(len(test.class_names))
    sets = {
        "clean": (images, labels),
        "adversarial": (
            pgd(model, images, labels, _EPS, norm="l2", steps=10, step_size=_EPS / 4, random_start=False),
            labels,
        ),
        "cue off": (plain, labels),
        "wrong cue": (plain + cues[(labels + 1) % len(cues)], labels),
        "shifted": (shifted.images, shifted.labels),
    }
    return {"n": n, "right": {name: count_correct(model, *pair, batch_size=500) for name, pair in sets.items()}}


def _makers(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable[[nn.Module], Explainer]]:
    return {name: partial(get_method(name), **options) for name, options in methods.items()}


def _bench(
    run: Run, size: _Size, models: Mapping[str, nn.Module], test: BoxedImages, held_out: BoxedImages
) -> ExplainabilityBench:
    return ExplainabilityBench(
        models,
        _makers(size.methods),
        tuple(METRICS),
        test,
        held_out=held_out,
        only_correct=size.only_correct,
        limit=size.judged,
        temperatures=(0.5, 1.0, 2.0, 4.0),
        temperature_models=[next(name for name in models if "TinyRes-vanilla" in name)],
        report=run.report,
    )


def _centre(test: BoxedImages, judged: Sequence[int], held_out: BoxedImages) -> dict[str, Any]:
    """The control that looks at no image: one Gaussian in the middle of the canvas for all."""
    side = test.images.shape[-1]
    line = torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (side / 4)) ** 2)
    blob = torch.outer(line, line)
    boxes = test.boxes[torch.tensor(judged)]
    alpha = tune_alpha(blob.expand(len(held_out.boxes), -1, -1), held_out.boxes)
    maps = blob.expand(len(boxes), -1, -1)
    hits = {"pointing-game": pointing_game(maps, boxes), "wsl": wsl(maps, boxes, alpha).hit}
    return {name: [int(hit) for hit in values] for name, values in hits.items()} | {"alpha": alpha}


def _without_cue(run: Run, size: _Size, architecture: str, network: Callable[..., nn.Module]) -> dict[str, Any]:
    """The same pair, trained and judged without the cue, by the gradient methods."""
    models = {
        f"{architecture}-{training}": network(f"{architecture}-{training}", False) for training in ("vanilla", "robust")
    }
    test = placed_objects(size.n_test, seed=1, train=False, cue=False)
    held_out = placed_objects(size.n_held_out, seed=2, train=False, cue=False, held_out=True)
    methods = {name: options for name, options in size.methods.items() if name in _GRADIENT}
    metrics = ("pointing-game", "wsl", "energy-in-box")
    bench = ExplainabilityBench(
        models, _makers(methods), metrics, test, held_out=held_out, limit=size.judged, report=run.report
    )
    return bench.run().to_dict()


@dataclass(frozen=True)
class _Evidence:
    """What one seed measured."""

    right: Mapping[str, Mapping[str, Any]]
    table: BenchTable
    centre: Mapping[str, Any]

    @property
    def pairs(self) -> list[str]:
        """Architectures that were trained both ways."""
        names = [name.rpartition("-")[0] for name in self.right if name.endswith("-robust")]
        return [name for name in names if f"{name}-vanilla" in self.right]

    def accuracy(self, name: str, on: str) -> float:
        record = self.right[name]
        return record["right"][on] / record.get(f"n_{on}", record["n"])

    def values(self, name: str, method: str, metrics: Sequence[str]) -> list[float] | None:
        """Per-image mean over metrics; None where the method cannot work on the network."""
        try:
            columns = [self.table.find(name, method, metric).values for metric in metrics]
        except InputError:
            return None
        return [fmean(column) for column in zip(*columns, strict=True)]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.table.rows))

    def explainability(self, name: str) -> list[float]:
        """Per-image mean of pointing game and WSL over the methods that work on every network."""
        everywhere = [m for m in self.methods if all(self.values(n, m, _LOCALISATION) for n in self.right)]
        columns = [self.values(name, method, _LOCALISATION) or [] for method in everywhere]
        return [fmean(column) for column in zip(*columns, strict=True)]


def _evidence(steps: Mapping[str, Any]) -> list[_Evidence]:
    seeds = sorted({name.split("/")[1] for name in steps if name.startswith("bench/")})
    return [
        _Evidence(
            {name.rpartition("/")[2]: value for name, value in steps.items() if name.startswith(f"network/{seed}/")},
            BenchTable.joined(
                BenchTable.from_dict(value) for name, value in steps.items() if name.startswith(f"bench/{seed}/")
            ),
            steps[f"centre/{seed}"],
        )
        for seed in seeds
    ]


def _gated(
    judge: Callable[[list[_Evidence], Mapping[str, Any]], Judgement],
) -> Callable[[Mapping[str, Any]], Judgement]:
    """Judge only where every robust network holds against attacks: 20 points above its normal twin."""

    def gated(steps: Mapping[str, Any]) -> Judgement:
        evidence = _evidence(steps)
        if not evidence:
            return not_testable("No pair of networks was measured.")
        gains = {
            pair: min(
                e.accuracy(f"{pair}-robust", "adversarial") - e.accuracy(f"{pair}-vanilla", "adversarial")
                for e in evidence
            )
            for pair in evidence[0].pairs
        }
        failed = [f"{pair} {100 * gain:+.0f} points" for pair, gain in gains.items() if gain < 0.20]
        if failed:
            reason = (
                "Set-up failed, nothing is judged: adversarial accuracy of the robust network must be 20 points above "
                f"the normal one's at the same eps; it is {', '.join(failed)}."
            )
            return Judgement("not testable here", "gate not passed", "", reason)
        return judge(evidence, steps)

    return gated


def _gain(evidence: Sequence[_Evidence], method: str, metrics: Sequence[str]) -> list[float]:
    """Robust minus normal, per image, averaged over metrics and architectures; seeds one after the other."""
    gains: list[float] = []
    for e in evidence:
        columns = []
        for pair in e.pairs:
            robust, normal = (e.values(f"{pair}-{how}", method, metrics) for how in ("robust", "vanilla"))
            if robust is not None and normal is not None:
                columns.append(differences(robust, normal))
        gains += [fmean(column) for column in zip(*columns, strict=True)]
    return gains


def _judge_gradients(evidence: list[_Evidence], steps: Mapping[str, Any]) -> Judgement:
    metrics = (*_LOCALISATION, "energy-in-box")
    methods = evidence[0].methods
    gradient = {m: bootstrap_mean(_gain(evidence, m, metrics)) for m in methods if m in _GRADIENT}
    other = {m: bootstrap_mean(_gain(evidence, m, metrics)) for m in methods if m in _OTHER}
    mean_gradient, mean_other = (fmean(i.value for i in group.values()) for group in (gradient, other))
    clear = sum(interval.low > 0 for interval in gradient.values())
    shown = ", ".join(f"{name} {_signed(interval)}" for name, interval in gradient.items())
    rest = ", ".join(f"{name} {_signed(interval)}" for name, interval in other.items())
    measured = f"robust − normal: {shown}; CAM and perturbation methods {mean_other:+.3f} ({rest})"
    control = _cue_control(steps, evidence, metrics)
    needed = min(3, len(gradient))
    if any(interval.value <= 0 for interval in gradient.values()) or clear < needed:
        reason = f"{clear} of {len(gradient)} gradient methods gain clearly; all have to gain and {needed} clearly."
        return Judgement("direction only" if mean_gradient > 0 else "not reproduced", measured, control, reason)
    if mean_other >= mean_gradient:
        reason = (
            "Gradient methods gain, but CAM and perturbation methods gain as much: the claim limits it to the former."
        )
        return Judgement("direction only", measured, control, reason)
    also = [name for name, interval in other.items() if interval.low > 0]
    note = f"By the rule; yet {', '.join(also)} gain clearly too, if less: more than the claim says." if also else ""
    return Judgement("reproduced", measured, control, note)


def _cue_control(steps: Mapping[str, Any], evidence: list[_Evidence], metrics: Sequence[str]) -> str:
    tables = [BenchTable.from_dict(value) for name, value in steps.items() if name.startswith("cue-off/")]
    if not tables:
        return "robust and normal swapped: the opposite sign"
    pair = next(iter(tables[0].accuracy)).rpartition("-")[0]
    off = [_Evidence({name: {} for name in table.accuracy}, table, {}) for table in tables]
    methods = off[0].methods
    without = fmean(fmean(_gain(off, method, metrics)) for method in methods)
    only = [_Evidence({n: r for n, r in e.right.items() if n.startswith(f"{pair}-")}, e.table, {}) for e in evidence]
    with_cue = fmean(fmean(_gain(only, method, metrics)) for method in methods)
    word = "shrinks" if without < with_cue else "does not shrink"
    return f"{pair} with the cue {with_cue:+.3f}, trained without the cue {without:+.3f}: {word}"


def _judge_advprop(evidence: list[_Evidence], steps: Mapping[str, Any]) -> Judgement:
    held, measured, control = [], [], []
    for e in evidence:
        for name in (name for name in e.right if "-advprop" in name):
            base = name.rpartition("-")[0]
            best = max(e.accuracy(f"{base}-{how}", "clean") for how in ("vanilla", "robust"))
            accuracy = e.accuracy(name, "clean")
            scores = {how: e.explainability(f"{base}-{how}") for how in ("vanilla", "robust")}
            better = max(scores.values(), key=fmean)
            gain = paired_bootstrap(e.explainability(name), better)
            held.append((accuracy >= best - 0.005, gain.low <= 0))
            measured.append(f"{base}: accuracy {100 * (accuracy - best):+.1f} points, explainability {_signed(gain)}")
            robust = e.accuracy(f"{base}-robust", "clean")
            control.append(f"{base}-robust in its place: accuracy {100 * (robust - best):+.1f} points")
    if not held:
        return not_testable("No AdvProp network was trained at this scale.")
    words = "; ".join(measured), "; ".join(control)
    whole = [accurate and not_above for accurate, not_above in held]
    if all(whole):
        return Judgement("reproduced", *words)
    failing = []
    if not all(accurate for accurate, _ in held):
        failing.append("AdvProp is more than half a point less accurate than the better of the two")
    if not all(not_above for _, not_above in held):
        failing.append("AdvProp is more explainable than both")
    reason = f"On {len(whole) - sum(whole)} of {len(whole)} networks " + " or ".join(failing) + "."
    return Judgement("inconclusive" if any(whole) else "not reproduced", *words, reason)


def _judge_best(evidence: list[_Evidence], steps: Mapping[str, Any]) -> Judgement:
    ranks: dict[str, list[float]] = {}
    better_than_centre: dict[str, list[bool]] = {}
    for e in evidence:
        for name in e.right:
            for metric in _LOCALISATION:
                means = {m: fmean(v) for m in e.methods if (v := e.values(name, m, [metric])) is not None}
                for method, rank in zip(means, rankdata([-mean for mean in means.values()]), strict=True):
                    ranks.setdefault(method, []).append(float(rank))
                    better_than_centre.setdefault(method, []).append(means[method] > fmean(e.centre[metric]))
    order = sorted(ranks, key=lambda method: fmean(ranks[method]))
    measured = "average rank: " + ", ".join(f"{method} {fmean(ranks[method]):.1f}" for method in order)
    wanted = [method for method in ("grad-cam", "rise") if method in ranks]
    if len(wanted) < 2:
        return Judgement("not testable here", measured, "", "Grad-CAM and RISE were not both run at this scale.")
    beats = {method: fmean(better_than_centre[method]) for method in wanted}
    centre = fmean(fmean(e.centre[metric]) for e in evidence for metric in _LOCALISATION)
    control = f"a blob in the middle scores {centre:.2f}; " + ", ".join(
        f"{method} beats it in {100 * share:.0f} %" for method, share in beats.items()
    )
    top = [method for method in wanted if method in order[:3]]
    if len(top) < 2:
        reason = f"Among the three best are {', '.join(order[:3])}."
        return Judgement("direction only" if top else "not reproduced", measured, control, reason)
    if min(beats.values()) <= 0.5:
        reason = (
            "Both lead, but one of them is no better than a blob in the middle on half of the networks and metrics."
        )
        return Judgement("direction only", measured, control, reason)
    return Judgement("reproduced", measured, control)


def _judge_confidence(evidence: list[_Evidence], steps: Mapping[str, Any]) -> Judgement:
    found = [confidence_confound(e.table) for e in evidence]
    rho = {metric: fmean(confound.spearman[metric] for confound in found) for metric in ("insertion", "deletion")}
    gains = {
        metric: bootstrap_mean([g for m in evidence[0].methods for g in _gain(evidence, m, [metric])]) for metric in rho
    }
    measured = ", ".join(
        f"{metric}: ρ with confidence {rho[metric]:.2f}, robust − normal {_signed(gains[metric])}" for metric in rho
    )
    control = "; ".join(confound.check.statement for confound in found)
    signs = all(interval.value < 0 for interval in gains.values())
    moved = all(confound.check.passed for confound in found)
    if signs and moved and min(rho.values()) > 0.5:
        return Judgement("reproduced", measured, control)
    reasons = [
        "" if signs else "Robust networks are not lower in both areas.",
        "" if min(rho.values()) > 0.5 else "A rank correlation over the networks is not above 0.5.",
        "" if moved else "The temperature test did not come out.",
    ]
    return Judgement(
        "direction only" if signs else "not reproduced", measured, control, " ".join(filter(None, reasons))
    )


def _judge_pareto(evidence: list[_Evidence], steps: Mapping[str, Any]) -> Judgement:
    measured, single = [], []
    for e in evidence:
        scores = {
            name: (e.accuracy(name, "clean"), e.accuracy(name, "shifted"), fmean(e.explainability(name)))
            for name in e.right
        }
        first = [max(scores, key=lambda name, i=i: scores[name][i]) for i in range(3)]  # type: ignore[misc]
        single.append(len(set(first)) == 1)
        named = zip(("accuracy", "shifted", "explainability"), first, strict=True)
        measured.append(", ".join(f"{what}: {name} {scores[name][i]:.2f}" for i, (what, name) in enumerate(named)))
    n = len(evidence[0].right)
    control = f"three independent rankings of {n} networks would agree on one by chance in 1 of {n * n} cases"
    if any(single):
        verdict: Any = "inconclusive" if not all(single) else "not reproduced"
        return Judgement(verdict, "; ".join(measured), control, "One network is first in all three.")
    return Judgement("reproduced", "; ".join(measured), control)


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _draw(run: Run) -> None:
    evidence = _evidence(run.steps())
    run.figure("robust-minus-normal", lambda: _gain_figure(evidence))
    run.figure("confidence", lambda: _confidence_figure(evidence))


def _gain_figure(evidence: list[_Evidence]) -> Figure:
    metrics = (*_LOCALISATION, "energy-in-box")
    figure, axes = subplots(1, len(metrics), figsize=(11, 3.6), sharey=True, layout="constrained")
    methods = evidence[0].methods
    for axis, metric in zip(axes, metrics, strict=True):
        intervals = [bootstrap_mean(_gain(evidence, method, [metric])) for method in methods]
        values = [interval.value for interval in intervals]
        spans = [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]
        colours = ["#c2410c" if method in _GRADIENT else "#64748b" for method in methods]
        axis.barh(methods, values, color=colours)
        axis.errorbar(values, range(len(methods)), xerr=spans, fmt="none", ecolor="black", capsize=2, linewidth=1)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{metric}, robust − normal", fontsize=9)
    axes[0].invert_yaxis()
    return figure


def _confidence_figure(evidence: list[_Evidence]) -> Figure:
    figure, axes = subplots(1, 2, figsize=(10, 4), sharex=True, layout="constrained")
    for axis, metric in zip(axes, ("insertion", "deletion"), strict=True):
        for e in evidence:
            for name in e.right:
                found = [fmean(v) for m in e.methods if (v := e.values(name, m, [metric])) is not None]
                point = fmean(e.table.confidence[name]), fmean(found)
                axis.scatter(*point, color="#c2410c" if name.endswith("robust") else "#1d4ed8", s=22)
                axis.annotate(name, point, fontsize=6, xytext=(3, 3), textcoords="offset points")
        axis.set_xlim(right=1.08)  # room for the names
        axis.set_xlabel("mean confidence")
        axis.set_ylabel(f"{metric}, mean over methods")
    return figure


REPRODUCTION = Reproduction(
    key="explainable-robust",
    run=run,
    predicates=(
        Predicate(
            "C1",
            "Per image, robust minus normal, averaged over the architectures and over pointing game, WSL and energy in "
            "the box: above 0 for all four gradient methods, its bootstrap interval above 0 for at least three, and on "
            "average larger than for CAM, Grad-CAM, RISE, LIME and Meaningful Perturbation. Control: the pair trained "
            "without the non-robust cue, where the effect should shrink.",
            _gated(_judge_gradients),
        ),
        Predicate(
            "C2",
            "AdvProp's accuracy is at least that of the better of normal and robust less 0.5 points, and its "
            "explainability (pointing game and WSL, mean over methods) is not above the better of the two: the paired "
            "interval does not lie above 0. On every network with batch norm. Control: the robust network instead.",
            _gated(_judge_advprop),
        ),
        Predicate(
            "C3",
            "Ranked by pointing game and by WSL on every network, Grad-CAM and RISE are both among the three methods "
            "with the best average rank. Control: a blob in the middle of the canvas, which both have to beat on most.",
            _gated(_judge_best),
        ),
        Predicate(
            "C4",
            "Spearman correlation of mean confidence with insertion and with deletion over the networks above 0.5, and "
            "both areas lower for robust networks. Control: dividing one network's logits by 0.5, 2 and 4 moves both "
            "areas and leaves pointing game, WSL and energy as they are.",
            _gated(_judge_confidence),
        ),
        Predicate(
            "C5",
            "No network is first in accuracy, in accuracy on shifted images and in explainability (pointing game and "
            "WSL, mean over methods) at once. Control: how often chance alone would put one first in all three.",
            _gated(_judge_pareto),
        ),
    ),
    seeds={"smoke": (0,), "laptop": (0,), "paper": (0,)},
    minutes={"smoke": 0.15, "laptop": 5, "paper": 1440},
)
