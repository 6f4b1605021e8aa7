"""Random convolutions: is it enough to learn linear combinations of spatial filters that stay random?

Gavrikov, Keuper, "The Power of Linear Combinations: Learning with Random Convolutions", 2023, arXiv 2301.11360.

Laptop: ResNet-8 of width 8 on 6,000 images of Fashion-MNIST (one of the paper's sets, here averaged to 14 x 14; few on
purpose, so that overfitting shows), three seeds, 5 epochs. Compared are the plain network (dense), the plain one with
its spatial convolutions frozen (which leaves batch norms, shortcuts and the last layer), and ResNet-LC-8-8xE with
frozen and with learned filters. The recipe is the paper's, shortened: SGD with Nesterov momentum 0.9, a cosine and
smoothed labels (0.1) in every arm, but learning rate 0.05 instead of 0.01, weight decay 1e-3 instead of 1e-2, batches
of 128. No augmentation, as in the paper on this set. Arms with equal E differ in what they learn: the number of learned
parameters stands in the evidence. Off-the-shelf networks are stood for by inverted residuals (striate.models.micro),
one seed, frozen depthwise filters against learned ones.

Paper: CIFAR-10 under ``--data`` (and Fashion-MNIST, at 32 x 32), ResNet-LC-20-16xE for E from 1 to 128, kernels from 3
to 9, torchvision's networks with a small stem, four seeds of 75 epochs. Unverified against the real data set.
CIFAR-100, SVHN and ImageNet are not run at any scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from striate.data.crops import PaddedCrop
from striate.engine.train import Recipe, cross_entropy
from striate.layers.lc_conv import Between
from striate.layers.to_lc import to_lc
from striate.learn.filter_statistics import centre_to_border, filter_report, spatial_variance
from striate.learn.freezing import freeze_spatial
from striate.models.cifar_resnet import cifar_resnet
from striate.models.low_resolution import low_resolution
from striate.models.micro import MobileMicro
from striate.papers.base import Judgement, Predicate, Reproduction, Run, subplots
from striate.papers.frozen_training import SmallImages, cifar10_images, fashion_images, random_images, train_arm
from striate.papers.judge import differences, group_records, not_testable, percent, show_range, show_signed
from striate.papers.measure import count_correct, count_parameters
from striate.stress.fgsm import fgsm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPRODUCTION"]


@dataclass(frozen=True)
class _Arm:
    """One network and what of it is learned.

    Attributes:
        network: ``"resnet"``, or the name of an off-the-shelf one.
        expansion: of its linear combinations; 0 is the plain network.
        frozen: spatial filters stay random.
        kernel: side of the spatial filters.
        between: what stands between filters and combination.
    """

    network: str = "resnet"
    expansion: int = 0
    frozen: bool = False
    kernel: int = 3
    between: Between = "nothing"

    @property
    def name(self) -> str:
        words = [self.network if self.network != "resnet" else f"LCx{self.expansion}" if self.expansion else "dense"]
        words += [f"k{self.kernel}"] if self.kernel != 3 else []
        words += [self.between] if self.between != "nothing" else []
        return " ".join([*words, "frozen" if self.frozen else "learned"])


def _lc(expansion: int, *, frozen: bool = True, kernel: int = 3, between: Between = "nothing") -> _Arm:
    return _Arm(expansion=expansion, frozen=frozen, kernel=kernel, between=between)


_DENSE, _DENSE_FROZEN = _Arm(), _Arm(frozen=True)
_Arms = Mapping[_Arm, tuple[str, ...]]
_LAPTOP: _Arms = {
    _DENSE: ("C1", "C3", "C4"),
    _DENSE_FROZEN: ("C1", "C3"),
    _lc(1): ("C2", "C5"),
    _lc(4): ("C2", "C6"),
    _lc(16): ("C1", "C2", "C3", "C4", "C5"),
    _lc(1, frozen=False): ("C5",),
    _lc(16, frozen=False): ("C3", "C4", "C5"),
    _lc(1, kernel=7): ("C5",),
    _lc(1, kernel=7, frozen=False): ("C5",),
    _lc(4, between="relu"): ("C6",),
    _lc(4, between="bn"): ("C6",),
    _lc(4, between="bn-relu"): ("C6",),
    _Arm("mobile"): ("C1",),
    _Arm("mobile", frozen=True): ("C1",),
}
"""What is trained, and which claims need it."""

_SMOKE: _Arms = {
    arm: _LAPTOP[arm]
    for arm in (_DENSE, _DENSE_FROZEN, _lc(1), _lc(4, between="bn-relu"), _lc(1, kernel=7), _Arm("mobile", frozen=True))
}
_EXPANSIONS = (1, 2, 4, 8, 16, 32, 64, 128)
_BOTTLENECK = ("resnet50", "wide_resnet50_2", "resnext50_32x4d", "mobilenet_v2")
_BASIC = ("resnet18", "resnet34")
_PAPER: _Arms = {
    _DENSE: ("C1", "C2", "C3", "C4"),
    _DENSE_FROZEN: ("C1",),
    **{_lc(e, frozen=frozen): ("C2", "C3", "C4", "C5") for e in _EXPANSIONS for frozen in (True, False)},
    **{_lc(1, kernel=k, frozen=frozen): ("C5",) for k in (5, 7, 9) for frozen in (True, False)},
    **{_lc(64, between=between): ("C6",) for between in ("relu", "bn", "bn-relu")},
    **{_Arm(name, frozen=frozen): ("C1",) for name in (*_BOTTLENECK, *_BASIC) for frozen in (False, True)},
}
_PAPER_FASHION: _Arms = {_DENSE: ("C2", "C4"), _lc(128): ("C2", "C4"), _lc(128, frozen=False): ("C4",)}
_DRY: _Arms = {
    arm: _PAPER[arm]
    for arm in (_lc(128), _lc(1, kernel=9), _lc(64, between="bn-relu"), *(_Arm(n, frozen=True) for n in _BOTTLENECK))
}


def run(run: Run) -> None:
    """Measure all that the predicates read."""
    groups: dict[str, tuple[SmallImages, _Arms]]
    if run.dry_run:
        groups = {"cifar10": (random_images(2), _DRY)}
    elif run.scale == "paper":
        groups = {
            "cifar10": (cifar10_images(run), _PAPER),
            "fashion32": (fashion_images(run, 60_000, 10_000, side=32), _PAPER_FASHION),
        }
    else:
        groups = {"fashion": (fashion_images(run, 6_000, 4_000), _SMOKE if run.scale == "smoke" else _LAPTOP)}
    run.note("data", {group: data.describe() for group, (data, _) in groups.items()})
    for group, (data, arms) in groups.items():
        for seed in run.seeds[:1] if run.dry_run else run.seeds:
            for arm, claims in arms.items():
                once = arm.network != "resnet" and seed != run.seeds[0]
                if run.wants(*claims) and not once:
                    run.step(f"{group}/{arm.name}/seed{seed}", partial(_measure, run, data, group, arm, seed))
    if not run.dry_run:
        _draw(run)


def _recipe(run: Run, seed: int) -> Recipe:
    paper = run.scale == "paper"
    return Recipe(
        epochs=1 if run.dry_run else {"smoke": 5, "laptop": 5, "paper": 75}[run.scale],
        batch_size=256 if paper else 128,
        optimizer="sgd",
        lr=0.01 if paper else 0.05,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-2 if paper else 1e-3,
        schedule="cosine",
        seed=seed,
    )


def _build(run: Run, arm: _Arm, channels: int, seed: int) -> nn.Module:
    """A network at its random start (PyTorch's), frozen as the arm wants it."""
    if arm.network == "mobile":
        model: nn.Module = MobileMicro((16, 24, 40), in_chans=channels)
    elif arm.network != "resnet":
        import torchvision

        model = low_resolution(torchvision.models.get_model(arm.network, num_classes=10))
    else:
        depth, width = (20, 16) if run.scale == "paper" else (8, 8)
        model = cifar_resnet(depth, width, channels, kernel_size=arm.kernel)
    if arm.expansion:
        # The seed of the filters is the run's, so that arms of one seed and equal E start from the same filters.
        return to_lc(model, arm.expansion, learn_filters=not arm.frozen, between=arm.between, seed=seed)
    if arm.frozen:
        freeze_spatial(model)
    return model


def _measure(run: Run, data: SmallImages, group: str, arm: _Arm, seed: int) -> dict[str, Any]:
    size = "resnet20x16" if run.scale == "paper" else "resnet8x8"
    model = train_arm(
        run,
        size if arm.network == "resnet" else arm.network,
        partial(_build, run, arm, data.channels, seed),
        data,
        _recipe(run, seed),
        arm=f"{arm.name}, PyTorch's start",
        augment=PaddedCrop(4, flip=0.5) if group == "cifar10" else None,
        loss=partial(cross_entropy, label_smoothing=0.1),
    )
    correct = partial(count_correct, model, batch_size=500)
    learned = count_parameters(model, trainable=True)
    eps = 1 / 255 if run.scale == "paper" else 2 / 255
    record: dict[str, Any] = {
        "correct": correct(*data.test),
        "n": len(data.test[1]),
        "train_correct": correct(*data.train),
        "train_n": len(data.train[1]),
        "fgsm_correct": correct(*data.test, attack=lambda m, x, y: fgsm(m, x, y, eps)),
        "eps": eps,
        "learned": learned,
        "frozen": count_parameters(model) - learned,
    }
    filters = filter_report(model)
    for what in ("entropy", "sparsity", "orthogonality"):
        record[what] = filters.mean(what)
    if arm.network == "resnet":
        variance = spatial_variance(model, (arm.kernel, arm.kernel))
        record |= {"variance": variance.tolist(), "centre_to_border": centre_to_border(variance)}
    return record


class _Found:
    """The records of one group by arm, a list over seeds each."""

    def __init__(self, steps: Mapping[str, Any], group: str) -> None:
        self.records = group_records(steps, group)

    def has(self, *arms: _Arm) -> bool:
        return all(arm.name in self.records for arm in arms)

    def accuracy(self, arm: _Arm, what: str = "correct") -> list[float]:
        """Per cent by seed."""
        n = "train_n" if what.startswith("train") else "n"
        return [percent(record, what, n) for record in self.records[arm.name]]

    def values(self, arm: _Arm, what: str) -> list[float]:
        return [record[what] for record in self.records[arm.name]]

    def difference(self, first: _Arm, second: _Arm, what: str = "correct") -> list[float]:
        return differences(self.accuracy(first, what), self.accuracy(second, what))

    def shown(self, arm: _Arm) -> str:
        return f"{arm.name} {show_range(self.accuracy(arm))}"


def _not_run(group: str) -> Judgement:
    if group == "fashion":
        reason = "Not all the networks that this needs were trained."
    else:
        reason = "CIFAR-10 is read at the paper scale only (--data); another part measures this on Fashion-MNIST."
    return not_testable(reason, "–")


def _judge_enough(steps: Mapping[str, Any]) -> Judgement:
    """C1 on linear combinations."""
    found, frozen = _Found(steps, "fashion"), _lc(16)
    if not found.has(frozen, _DENSE, _DENSE_FROZEN):
        return _not_run("fashion")
    gap, control = found.difference(_DENSE, frozen), found.difference(_DENSE, _DENSE_FROZEN)
    measured = f"{found.shown(frozen)}: {fmean(gap):+.1f} points lost"
    shown = f"{found.shown(_DENSE)}; {found.shown(_DENSE_FROZEN)}: {fmean(control):+.1f} points lost"
    if fmean(gap) <= 2 and fmean(control) >= 5:
        return Judgement("reproduced", measured, shown)
    if fmean(gap) <= 2:
        return Judgement("not reproduced", measured, shown, "Without combinations little is lost either.")
    if fmean(gap) < fmean(control):
        return Judgement("direction only", measured, shown, "Combinations help, but more than 2 points are lost.")
    return Judgement("not reproduced", measured, shown, "Combinations do not help.")


def _judge_mobile(steps: Mapping[str, Any]) -> Judgement:
    """C1 on a network of the off-the-shelf kind."""
    found, learned, frozen = _Found(steps, "fashion"), _Arm("mobile"), _Arm("mobile", frozen=True)
    if not found.has(learned, frozen, _DENSE, _DENSE_FROZEN):
        return _not_run("fashion")
    gap, control = found.difference(learned, frozen)[0], found.difference(_DENSE, _DENSE_FROZEN)[0]
    measured = f"inverted residuals, frozen {found.accuracy(frozen)[0]:.1f} %: {gap:+.1f} points lost"
    shown = f"learned {found.accuracy(learned)[0]:.1f} %; basic blocks lose {control:+.1f} (same seed)"
    if gap <= 3 and gap < control:
        return Judgement("reproduced", measured, shown)
    if gap < control:
        return Judgement("direction only", measured, shown, "More than 3 points are lost, but fewer than without.")
    return Judgement("not reproduced", measured, shown, "Basic blocks, without combinations, lose no more.")


def _judge_off_the_shelf(steps: Mapping[str, Any]) -> Judgement:
    """C1 on CIFAR-10."""
    found = _Found(steps, "cifar10")
    if not all(found.has(_Arm(name), _Arm(name, frozen=True)) for name in (*_BOTTLENECK, *_BASIC)):
        return _not_run("cifar10")
    gap = {name: found.difference(_Arm(name), _Arm(name, frozen=True))[0] for name in (*_BOTTLENECK, *_BASIC)}
    measured = ", ".join(f"{name} {gap[name]:.1f}" for name in _BOTTLENECK) + " points lost"
    control = ", ".join(f"{name} {gap[name]:.1f}" for name in _BASIC) + " points lost"
    most, least = max(gap[name] for name in _BOTTLENECK), min(gap[name] for name in _BASIC)
    if most <= 3 and least >= 8:
        return Judgement("reproduced", measured, control)
    if most < least:
        return Judgement("direction only", measured, control, "Wanted at most 3, against at least 8.")
    return Judgement("not reproduced", measured, control, "Basic blocks lose no more.")


def _judge_expansion(group: str, steps: Mapping[str, Any]) -> Judgement:
    found = _Found(steps, group)
    expansions = (1, 4, 16) if group == "fashion" else _EXPANSIONS
    arms = [_lc(e) for e in expansions]
    if not found.has(*arms):
        return _not_run(group)
    means = [fmean(found.accuracy(arm)) for arm in arms]
    measured = "frozen " + ", ".join(f"{mean:.1f} % (E {e})" for mean, e in zip(means, expansions, strict=True))
    dense = f"plain network {fmean(found.accuracy(_DENSE)):.1f} %" if found.has(_DENSE) else "–"
    steps_up = [later - earlier for earlier, later in pairwise(means)]
    whole = found.difference(arms[-1], arms[0])
    if group == "fashion" and min(steps_up) > 0:
        return Judgement("reproduced", measured, dense)
    if group != "fashion" and min(whole) > 0 and found.has(_DENSE):
        last = found.difference(arms[-1], _DENSE)
        if fmean(last) > 0:
            return Judgement("reproduced", measured, dense)
        reason = f"Rising, but at E {expansions[-1]} still {-fmean(last):.2f} points below the plain network."
        return Judgement("direction only", measured, dense, reason)
    if min(whole) > 0:
        return Judgement("direction only", measured, dense, f"Not at every step: {show_signed(steps_up)} points.")
    if max(whole) > 0:
        reason = f"The seeds disagree: {show_signed(whole)} points from E {expansions[0]} to {expansions[-1]}."
        return Judgement("inconclusive", measured, dense, reason)
    return Judgement(
        "not reproduced", measured, dense, f"Accuracy does not rise with E: {show_signed(steps_up)} points."
    )


def _judge_beats(steps: Mapping[str, Any]) -> Judgement:
    """C2 and C4 on Fashion-MNIST at its published size."""
    found, frozen, learned = _Found(steps, "fashion32"), _lc(128), _lc(128, frozen=False)
    if not found.has(_DENSE, frozen, learned):
        return not_testable("Fashion-MNIST at 32 x 32 for 75 epochs: the paper scale.", "–")
    measured, control = found.shown(frozen), f"{found.shown(_DENSE)}; {found.shown(learned)}"
    gain = found.difference(frozen, _DENSE)
    if fmean(gain) >= -0.1 and fmean(found.difference(frozen, learned)) > 0:
        return Judgement("reproduced", measured, control)
    return Judgement("not reproduced", measured, control, f"{show_signed(gain)} points against the plain network.")


def _judge_robust(group: str, steps: Mapping[str, Any]) -> Judgement:
    """C3, overfitting and attacks."""
    found, frozen = _Found(steps, group), _lc(16 if group == "fashion" else 128)
    if not found.has(frozen, _DENSE):
        return _not_run(group)
    gap = {arm: differences(found.accuracy(arm, "train_correct"), found.accuracy(arm)) for arm in (frozen, _DENSE)}
    smaller = differences(gap[_DENSE], gap[frozen])
    sturdier = found.difference(frozen, _DENSE, "fgsm_correct")
    eps = round(255 * found.values(frozen, "eps")[0])

    def shown(arm: _Arm) -> str:
        attacked = fmean(found.accuracy(arm, "fgsm_correct"))
        return f"{arm.name}: train - test {fmean(gap[arm]):.1f} points, {attacked:.1f} % under FGSM {eps}/255"

    measured, control = shown(frozen), shown(_DENSE)
    learned = _lc(frozen.expansion, frozen=False)
    if found.has(learned):
        control += f"; {learned.name}: {fmean(found.accuracy(learned, 'fgsm_correct')):.1f} % under FGSM"
    enough = 2 * len(smaller) / 3
    overfits_less = sum(value > 0 for value in smaller) >= enough
    resists_more = sum(value > 0 for value in sturdier) >= enough
    reason = (
        f"By seed, train - test is smaller by {show_signed(smaller)}, FGSM accuracy higher by {show_signed(sturdier)}."
    )
    if overfits_less and resists_more:
        return Judgement("reproduced", measured, control, reason)
    if overfits_less or resists_more:
        return Judgement("direction only", measured, control, f"One of the two. {reason}")
    return Judgement("not reproduced", measured, control, reason)


def _judge_diverse(group: str, steps: Mapping[str, Any]) -> Judgement:
    """C3, filters."""
    found, frozen = _Found(steps, group), _lc(16 if group == "fashion" else 128)
    if not found.has(frozen, _DENSE):
        return _not_run(group)
    more = differences(found.values(frozen, "entropy"), found.values(_DENSE, "entropy"))

    def shown(arm: _Arm) -> str:
        entropy, other = (fmean(found.values(arm, what)) for what in ("entropy", "orthogonality"))
        return f"{arm.name}: entropy {entropy:.3f}, orthogonality {other:.3f}"

    measured = shown(frozen)
    others = [arm for arm in (_DENSE, _lc(frozen.expansion, frozen=False), _DENSE_FROZEN) if found.has(arm)]
    control = "; ".join(map(shown, others))
    if min(more) > 0:
        return Judgement("reproduced", measured, control)
    if max(more) > 0:
        return Judgement("inconclusive", measured, control, "The seeds disagree.")
    reason = "The combined kernels are less diverse than those that the plain network learns."
    return Judgement("not reproduced", measured, control, reason)


def _judge_learning(group: str, steps: Mapping[str, Any]) -> Judgement:
    found = _Found(steps, group)
    expansions = (16,) if group == "fashion" else (8, 16, 32, 64, 128)
    if not all(found.has(_lc(e), _lc(e, frozen=False)) for e in expansions):
        return _not_run(group)
    gain = {e: found.difference(_lc(e), _lc(e, frozen=False)) for e in expansions}
    last = expansions[-1]
    measured = found.shown(_lc(last))
    control = found.shown(_lc(last, frozen=False))
    if found.has(_DENSE):
        control += f"; plain network {fmean(found.accuracy(_DENSE)):.1f} %"
    means = {e: fmean(values) for e, values in gain.items()}
    reason = "Frozen minus learned " + ", ".join(f"{mean:+.2f} (E {e})" for e, mean in means.items()) + " points."
    clear = all(sum(value > 0 for value in values) >= 2 * len(values) / 3 for values in gain.values())
    if min(means.values()) > 0 and clear:
        return Judgement("reproduced", measured, control, reason)
    if min(means.values()) >= -0.5:
        return Judgement("inconclusive", measured, control, f"{reason} Within half a point, or the seeds disagree.")
    return Judgement("not reproduced", measured, control, f"{reason} Learning the filters as well helps.")


def _gains(found: _Found, kernel: int, expansion: int = 1) -> list[float]:
    """What learning the filters adds, in points by seed."""
    return found.difference(_lc(expansion, kernel=kernel, frozen=False), _lc(expansion, kernel=kernel))


def _judge_kernel_size(group: str, steps: Mapping[str, Any]) -> Judgement:
    """C5, kernel size and its cause."""
    found = _Found(steps, group)
    sizes = (3, 7) if group == "fashion" else (3, 5, 7, 9)
    if not all(found.has(_lc(1, kernel=k), _lc(1, kernel=k, frozen=False)) for k in sizes):
        return _not_run(group)
    gains = [fmean(_gains(found, k)) for k in sizes]
    ratio = {
        frozen: fmean(found.values(_lc(1, kernel=7, frozen=frozen), "centre_to_border")) for frozen in (True, False)
    }
    shown = ", ".join(f"{gain:+.1f} points (k {k})" for gain, k in zip(gains, sizes, strict=True))
    measured = f"learning filters adds {shown}; learned 7 x 7: centre {ratio[False]:.2f} x border"
    control = f"frozen 7 x 7: centre {ratio[True]:.2f} x border"
    grows = all(later > earlier for earlier, later in pairwise(gains))
    cause = ratio[False] > 1.5 and abs(ratio[True] - 1) <= 0.2
    if grows and cause:
        more = differences(_gains(found, sizes[-1]), _gains(found, sizes[0]))
        reason = f"By seed, it adds {show_signed(more)} points more at k {sizes[-1]} than at k {sizes[0]}."
        return Judgement("reproduced", measured, control, reason)
    if grows:
        return Judgement("direction only", measured, control, "The gap grows, but kernels do not differ as claimed.")
    if cause:
        return Judgement("not reproduced", measured, control, "Kernels differ as claimed, but the gap does not grow.")
    return Judgement("not reproduced", measured, control, "The gap does not grow with the kernel.")


def _judge_gap_expansion(group: str, steps: Mapping[str, Any]) -> Judgement:
    """C5, expansion."""
    found, last = _Found(steps, group), 16 if group == "fashion" else 128
    if not all(found.has(_lc(e), _lc(e, frozen=False)) for e in (1, last)):
        return _not_run(group)
    first, after = _gains(found, 3, 1), _gains(found, 3, last)
    shrinks = differences(first, after)
    measured, control = f"gap {fmean(after):+.1f} points at E {last}", f"{fmean(first):+.1f} points at E 1"
    if min(shrinks) > 0:
        return Judgement("reproduced", measured, control)
    reason = f"Smaller by {show_signed(shrinks)} points by seed."
    if fmean(shrinks) > 0:
        return Judgement("inconclusive", measured, control, f"{reason} The seeds disagree.")
    return Judgement("not reproduced", measured, control, reason)


def _judge_between(group: str, steps: Mapping[str, Any]) -> Judgement:
    found, e = _Found(steps, group), 4 if group == "fashion" else 64
    words: tuple[Between, ...] = ("relu", "bn", "bn-relu")
    arms = {word: _lc(e, between=word) for word in words}
    if not found.has(_lc(e), *arms.values()):
        return _not_run(group)
    gain = {word: found.difference(arm, _lc(e)) for word, arm in arms.items()}
    measured = f"E {e}: " + ", ".join(f"{word} {fmean(found.accuracy(arms[word])):.1f} %" for word in words)
    control = f"nothing {fmean(found.accuracy(_lc(e))):.1f} %"
    both, linear = gain["bn-relu"], gain["bn"]
    reason = f"BN and ReLU {show_signed(both)}; BN alone {show_signed(linear)} points by seed."
    if min(both) > 0 and fmean(both) >= 1 and fmean(linear) < fmean(both):
        return Judgement("reproduced", measured, control)
    if min(both) > 0 and fmean(linear) < fmean(both):
        return Judgement("direction only", measured, control, f"1 point was wanted. {reason}")
    if max(both) > 0 and fmean(linear) < fmean(both):
        return Judgement("inconclusive", measured, control, f"The seeds disagree. {reason}")
    return Judgement("not reproduced", measured, control, reason)


def _draw(run: Run) -> None:
    steps = run.steps()
    group = "cifar10" if run.scale == "paper" else "fashion"
    found = _Found(steps, group)
    if found.has(_DENSE, _DENSE_FROZEN, _lc(1), _lc(4), _lc(16)):
        run.figure("expansion", lambda: _by_expansion(found))
    if found.has(_lc(1, kernel=7), _lc(1, kernel=7, frozen=False)):
        run.figure("variance", lambda: _variances(found))


def _by_expansion(found: _Found) -> Figure:
    figure, panels = subplots(1, 2, figsize=(8, 3.2))
    for axes, what, label in zip(panels, ("correct", "fgsm_correct"), ("accuracy, %", "under FGSM, %"), strict=True):
        for frozen, colour in ((True, "C0"), (False, "C1")):
            arms = [_lc(e, frozen=frozen) for e in _EXPANSIONS if found.has(_lc(e, frozen=frozen))]
            means = [fmean(found.accuracy(arm, what)) for arm in arms]
            axes.plot([arm.expansion for arm in arms], means, "o-", color=colour, label=arms[0].name.split()[-1])
            for arm in arms:
                values = found.accuracy(arm, what)
                axes.plot([arm.expansion] * len(values), values, ".", color=colour, markersize=3)
        axes.axhline(fmean(found.accuracy(_DENSE, what)), color="k", linewidth=0.8, label="plain")
        if what == "correct":
            axes.axhline(fmean(found.accuracy(_DENSE_FROZEN, what)), color="k", linestyle=":", label="plain, frozen")
        axes.set(xscale="log", xlabel="expansion E", ylabel=label)
        ticks = [e for e in _EXPANSIONS if found.has(_lc(e))]
        axes.set_xticks(ticks, [str(e) for e in ticks])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False, title="filters", title_fontsize=8)
    figure.tight_layout()
    return figure


def _variances(found: _Found) -> Figure:
    figure, panels = subplots(1, 2, figsize=(5, 2.6), layout="constrained")
    maps = {
        frozen: torch.tensor(found.values(_lc(1, kernel=7, frozen=frozen), "variance")).mean(0)
        for frozen in (False, True)
    }
    high = max(float(values.max()) for values in maps.values())
    for axes, (frozen, values) in zip(panels, maps.items(), strict=True):
        picture = axes.imshow(values, vmin=0, vmax=high)
        axes.set(xticks=[], yticks=[], title="frozen" if frozen else "learned")
    figure.colorbar(picture, ax=panels, shrink=0.8, label="variance of 7 x 7 kernels")
    return figure


_FASHION, _CIFAR = "Fashion-MNIST", "CIFAR-10"

REPRODUCTION = Reproduction(
    key="random-convs",
    run=run,
    predicates=(
        Predicate(
            "C1",
            "Means over seeds: ResNet-LC-8-8x16 with frozen filters is at most 2 points below the plain ResNet-8, and "
            "the plain one with frozen spatial convolutions at least 5 below.",
            _judge_enough,
            part=f"combinations, {_FASHION}",
        ),
        Predicate(
            "C1",
            "A small network of inverted residuals loses at most 3 points when its depthwise filters stay random, and "
            "fewer than basic blocks do (one seed).",
            _judge_mobile,
            part=f"inverted residuals, {_FASHION}",
        ),
        Predicate(
            "C1",
            "On CIFAR-10 ResNet-50, Wide-ResNet-50-2, ResNeXt-50 and MobileNetV2 lose at most 3 points each, ResNet-18 "
            "and -34 at least 8 (published: 1.6 to 1.9, and at least 16).",
            _judge_off_the_shelf,
            part=_CIFAR,
        ),
        Predicate(
            "C2",
            "Mean accuracy with frozen filters rises from E = 1 to 4 and from 4 to 16.",
            partial(_judge_expansion, "fashion"),
            part=_FASHION,
        ),
        Predicate(
            "C2",
            "On CIFAR-10 it is higher at E = 128 than at 1 in every seed, and at 128 above the plain network.",
            partial(_judge_expansion, "cifar10"),
            part=_CIFAR,
        ),
        Predicate(
            "C2",
            "On Fashion-MNIST at 32 x 32 ResNet-LC-20-16x128 with frozen filters is at most 0.1 points below the plain "
            "network (published: equal) and above the one with learned filters.",
            _judge_beats,
            part=f"{_FASHION}, full size",
        ),
        Predicate(
            "C3",
            "Frozen at E = 16 against the plain network, each in at least two thirds of the seeds: training minus test "
            "accuracy is smaller, and accuracy under FGSM of 2/255 is higher.",
            partial(_judge_robust, "fashion"),
            part=f"robustness, {_FASHION}",
        ),
        Predicate(
            "C3",
            "The filter variance entropy of its combined kernels, mean over layers, is higher than that of the plain "
            "network's kernels in every seed.",
            partial(_judge_diverse, "fashion"),
            part=f"diversity, {_FASHION}",
        ),
        Predicate(
            "C3",
            "The robustness part on CIFAR-10 at E = 128, FGSM of 1/255.",
            partial(_judge_robust, "cifar10"),
            part=f"robustness, {_CIFAR}",
        ),
        Predicate(
            "C4",
            "At E = 16 frozen filters are better than learned ones, mean over seeds and in at least two thirds of "
            "them; up to half a point worse is no answer.",
            partial(_judge_learning, "fashion"),
            part=_FASHION,
        ),
        Predicate(
            "C4", "The same on CIFAR-10 at every E from 8 to 128.", partial(_judge_learning, "cifar10"), part=_CIFAR
        ),
        Predicate(
            "C5",
            "At E = 1 learning the filters adds more, mean over seeds, for 7 x 7 than for 3 x 3 kernels; the learned "
            "7 x 7 kernels vary more than 1.5 times as much at their centre as at their border, the frozen ones alike "
            "within 20 %.",
            partial(_judge_kernel_size, "fashion"),
            part=f"kernel size, {_FASHION}",
        ),
        Predicate(
            "C5",
            "For 3 x 3 kernels learning the filters adds less at E = 16 than at E = 1, in every seed.",
            partial(_judge_gap_expansion, "fashion"),
            part=f"expansion, {_FASHION}",
        ),
        Predicate(
            "C5",
            "The kernel size part on CIFAR-10, from 3 to 5, 7 and 9.",
            partial(_judge_kernel_size, "cifar10"),
            part=f"kernel size, {_CIFAR}",
        ),
        Predicate(
            "C6",
            "At E = 4, frozen, batch norm and ReLU between filters and combination add at least 1 point to nothing in "
            "between, something in every seed, and more than batch norm alone.",
            partial(_judge_between, "fashion"),
            part=_FASHION,
        ),
        Predicate("C6", "The same on CIFAR-10 at E = 64.", partial(_judge_between, "cifar10"), part=_CIFAR),
    ),
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0, 1, 2, 3)},
    minutes={"smoke": 0.2, "laptop": 4, "paper": 9_000},
)
