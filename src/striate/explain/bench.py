"""Score my networks times my attribution methods, fairly, and show how far the score is only the network's confidence.

Nourelahi, Kotthoff, Chen, Nguyen, "How explainable are adversarially-robust CNNs?", 2022, arXiv 2205.13042. What makes
a comparison of networks fair is done here and cannot be switched off: every network is judged on the same images (those
that all of them classify correctly, unless all images are asked for), every map is of the ground-truth class, and the
WSL threshold is tuned for each network and method on images that are not judged.

The confound: a less confident network has a lower insertion and a lower deletion area, whatever its maps are worth.
:func:`confidence_confound` gives the rank correlation over the networks, and the causal test. Dividing all logits by a
temperature leaves every prediction and every gradient map as it is and moves only the confidence; what changes then is
not explainability.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.engine.state import device_of, inspected
from striate.engine.stats import Interval, bootstrap_mean, spearman
from striate.errors import InputError, LayerError, did_you_mean
from striate.explain.base import Explainer
from striate.explain.curves import deletion, insertion
from striate.explain.localisation import energy_in_box, pointing_game, tune_alpha, wsl

__all__ = [
    "METRICS",
    "BenchRow",
    "BenchTable",
    "BoxedImages",
    "ConfidenceConfound",
    "ExplainabilityBench",
    "confidence_confound",
    "tempered",
]

METRICS: dict[str, str] = {
    "pointing-game": "higher",
    "wsl": "higher",
    "energy-in-box": "higher",
    "insertion": "higher",
    "deletion": "lower",
}
"""Metric -> which way is better."""

_LOCALISATION = ("pointing-game", "wsl", "energy-in-box")
_CURVES = ("insertion", "deletion")


class BoxedImages(Protocol):
    """Images with one labelled box each: what the bench needs of a data set."""

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) in the space that the models take."""

    @property
    def labels(self) -> Tensor:
        """(N,) long, the class of the boxed object."""

    @property
    def boxes(self) -> Tensor:
        """(N, 4) long, xyxy half-open."""


@dataclass(frozen=True)
class _Judged:
    images: Tensor
    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class BenchRow:
    """One metric of one method on one network, image by image.

    Attributes:
        model, method, metric: their names.
        values: one per image, in the order of :attr:`BenchTable.images`.
        alpha: the tuned threshold of a WSL row, else None.
        temperature: what the network's logits were divided by; 1 is the network as it is.
    """

    model: str
    method: str
    metric: str
    values: tuple[float, ...]
    alpha: float | None = None
    temperature: float = 1.0

    @property
    def mean(self) -> float:
        """Mean over images."""
        return sum(self.values) / len(self.values)

    def interval(self) -> Interval:
        """Return the mean with its bootstrap interval over images."""
        return bootstrap_mean(self.values, resamples=2_000)


@dataclass(frozen=True)
class BenchTable:
    """What the bench measured; tidy, and JSON-ready by :meth:`to_dict`.

    Attributes:
        rows: one per (model, method, metric, temperature).
        images: indices of the judged images in the data set, the same for every row.
        confidence: model -> probability of its predicted class, one per image.
        accuracy: model -> accuracy on the whole data set.
        skipped: (model, method, why) where a method cannot work on a network by its definition.
        checks: (model, method, statement) of every check of a map or a curve that did not pass.
    """

    rows: tuple[BenchRow, ...]
    images: tuple[int, ...]
    confidence: Mapping[str, tuple[float, ...]]
    accuracy: Mapping[str, float]
    skipped: tuple[tuple[str, str, str], ...] = ()
    checks: tuple[tuple[str, str, str], ...] = ()

    def find(self, model: str, method: str, metric: str, temperature: float = 1.0) -> BenchRow:
        """Return one row.

        Raises:
            InputError: nothing of that name was measured.
        """
        wanted = (model, method, metric, temperature)
        for row in self.rows:
            if (row.model, row.method, row.metric, row.temperature) == wanted:
                return row
        near = did_you_mean(method, {row.method for row in self.rows})
        raise InputError("row", "BenchTable.find", allowed="one that was measured", got=wanted, hint=near.strip())

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one flat dictionary a row: mean, interval and count instead of the values."""
        flat = []
        for row in self.rows:
            interval = row.interval()
            flat.append(
                {
                    "model": row.model,
                    "method": row.method,
                    "metric": row.metric,
                    "better": METRICS[row.metric],
                    "mean": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "n": interval.n,
                    "alpha": row.alpha,
                    "temperature": row.temperature,
                }
            )
        return flat

    def to_dict(self) -> dict[str, Any]:
        """Return everything, values rounded to six digits after the point, JSON-ready."""
        rows = [asdict(row) | {"values": [round(value, 6) for value in row.values]} for row in self.rows]
        confidence = {name: [round(value, 6) for value in values] for name, values in self.confidence.items()}
        return {
            "rows": rows,
            "images": list(self.images),
            "confidence": confidence,
            "accuracy": dict(self.accuracy),
            "skipped": [list(entry) for entry in self.skipped],
            "checks": [list(entry) for entry in self.checks],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> BenchTable:
        """Rebuild a table from :meth:`to_dict`."""
        return cls(
            rows=tuple(BenchRow(**(row | {"values": tuple(row["values"])})) for row in record["rows"]),
            images=tuple(record["images"]),
            confidence={name: tuple(values) for name, values in record["confidence"].items()},
            accuracy=dict(record["accuracy"]),
            skipped=tuple(tuple(entry) for entry in record["skipped"]),
            checks=tuple(tuple(entry) for entry in record["checks"]),
        )

    @classmethod
    def joined(cls, tables: Iterable[BenchTable]) -> BenchTable:
        """Join tables measured one after the other on the same images.

        Raises:
            InputError: none given, or their images differ.
        """
        tables = list(tables)
        if not tables or any(table.images != tables[0].images for table in tables):
            raise InputError("tables", "BenchTable.joined", allowed="measured on the same images", got=len(tables))
        return cls(
            rows=tuple(row for table in tables for row in table.rows),
            images=tables[0].images,
            confidence={name: values for table in tables for name, values in table.confidence.items()},
            accuracy={name: value for table in tables for name, value in table.accuracy.items()},
            skipped=tuple(entry for table in tables for entry in table.skipped),
            checks=tuple(entry for table in tables for entry in table.checks),
        )

    def __repr__(self) -> str:
        methods = len({row.method for row in self.rows})
        return f"<BenchTable: {len(self.accuracy)} networks, {methods} methods, {len(self.images)} images>"


@dataclass
class ExplainabilityBench:
    """Every method on every network on the same images.

    Args:
        models: name -> classifier (N, classes).
        methods: keys of :data:`striate.explain.METHODS`, or name -> callable that makes an explainer of a network.
        metrics: keys of :data:`METRICS`.
        dataset: the images judged; :class:`striate.data.placed.PlacedObjects`, or anything with those three tensors.
        held_out: the images on which WSL's threshold is tuned; none of them may be judged.
        only_correct: judge only images that every network classifies correctly.
        limit: judge at most this many images, the first.
        temperatures: divide the logits by each of these as well, for :func:`confidence_confound`; 1 is always measured.
        temperature_models: names of the networks for which that is done; default the first.
        temperature_methods: names of the methods for which that is done. Default: those of the gradient and CAM
            families; perturbation methods explain the probability itself, so their maps follow the temperature too.
            A method that refuses the divided network (CAM does) is measured at temperature 1 alone.
        batch_size: images explained in one call; they are moved to each network's device.
        seed: of the order among equally salient pixels.
        report: called with a line of progress for each network and method.

    Raises:
        InputError: an unknown metric or method, no held-out images for WSL, or held-out images that are judged too.
    """

    models: Mapping[str, nn.Module]
    methods: Sequence[str] | Mapping[str, Callable[[nn.Module], Explainer]]
    metrics: Sequence[str]
    dataset: BoxedImages
    held_out: BoxedImages | None = None
    only_correct: bool = True
    limit: int | None = None
    temperatures: Sequence[float] = ()
    temperature_models: Sequence[str] | None = None
    temperature_methods: Sequence[str] | None = None
    batch_size: int = 64
    seed: int = 0
    report: Callable[[str], None] = field(default=lambda line: None)

    def __post_init__(self) -> None:
        owner = "ExplainabilityBench"
        if not self.models:
            raise InputError("models", owner, allowed="at least one network", got=self.models)
        for metric in self.metrics:
            if metric not in METRICS:
                hint = did_you_mean(metric, METRICS).strip()
                raise InputError("metrics", owner, allowed=f"of {', '.join(METRICS)}", got=metric, hint=hint)
        for temperature in self.temperatures:
            if not 0 < temperature < float("inf"):
                raise InputError("temperatures", owner, allowed="> 0 and finite", got=temperature)
        if "wsl" in self.metrics:
            if self.held_out is None:
                hint = "A threshold tuned on the judged images would flatter every method."
                raise InputError("held_out", owner, allowed="given for wsl", got=None, hint=hint)
            judged = {_key(image) for image in self.dataset.images}
            shared = sum(_key(image) in judged for image in self.held_out.images)
            if shared:
                raise InputError("held_out", owner, allowed="disjoint from dataset", got=f"{shared} shared images")

    def run(self, models: Sequence[str] | None = None) -> BenchTable:
        """Measure.

        Args:
            models: names of the networks to measure now, for a run in parts; the images are those that *all* networks
                of the bench classify correctly, in every part. Join the parts by :meth:`BenchTable.joined`.

        Raises:
            InputError: no image is left, or an unknown name.
        """
        names = list(self.models) if models is None else list(models)
        for name in names:
            if name not in self.models:
                raise InputError("models", "ExplainabilityBench.run", allowed=f"of {list(self.models)}", got=name)
        chosen, accuracy = self._choice
        judged = _Judged(self.dataset.images[chosen], self.dataset.labels[chosen], self.dataset.boxes[chosen])
        rows: list[BenchRow] = []
        skipped: list[tuple[str, str, str]] = []
        checks: list[tuple[str, str, str]] = []
        confidence = {}
        for name in names:
            model = self.models[name]
            logits = _logits(model, judged.images, self.batch_size)
            confidence[name] = tuple(logits.double().softmax(dim=1).amax(dim=1).tolist())
            for method, make in self._makers().items():
                self.report(f"{name}: {method}")
                try:
                    found, failed = self._measure(name, method, make, judged)
                except LayerError as error:
                    skipped.append((name, method, str(error)))
                    continue
                rows += found
                checks += [(name, method, line) for line in failed]
        shown = {name: accuracy[name] for name in names}
        return BenchTable(tuple(rows), tuple(chosen.tolist()), confidence, shown, tuple(skipped), tuple(checks))

    @cached_property
    def _choice(self) -> tuple[Tensor, dict[str, float]]:
        """Indices of the images that are judged; accuracy of each network on all images."""
        keep = torch.ones(len(self.dataset.labels), dtype=torch.bool)
        accuracy = {}
        for name, model in self.models.items():
            right = _logits(model, self.dataset.images, self.batch_size).argmax(dim=1) == self.dataset.labels
            accuracy[name] = right.double().mean().item()
            if self.only_correct:
                keep &= right
        chosen = keep.nonzero()[:, 0][: self.limit]
        if len(chosen) == 0:
            shares = ", ".join(f"{name} {value:.0%}" for name, value in accuracy.items())
            raise InputError(
                "dataset", "ExplainabilityBench", allowed="some images that every network gets right", got=shares
            )
        return chosen, accuracy

    def _makers(self) -> dict[str, Callable[[nn.Module], Explainer]]:
        if isinstance(self.methods, Mapping):
            return dict(self.methods)
        from striate.explain.registry import get_method

        return {name: get_method(name) for name in self.methods}

    def _measure(
        self, name: str, method: str, make: Callable[[nn.Module], Explainer], judged: _Judged
    ) -> tuple[list[BenchRow], list[str]]:
        model = self.models[name]
        explainer = make(model)
        maps, failed = self._maps(explainer, judged)
        alpha = None
        if "wsl" in self.metrics and self.held_out is not None:
            alpha = tune_alpha(self._maps(explainer, self.held_out)[0], self.held_out.boxes)
        rows: list[BenchRow] = []
        for temperature in (1.0, *self._temperatures(name, method, explainer)):
            if temperature != 1:
                model = tempered(self.models[name], temperature)
                try:
                    maps, _ = self._maps(make(model), judged)
                except LayerError:  # CAM finds its head by the logit's identity, which a temperature breaks
                    break
            for metric in self.metrics:
                values, problem = self._values(metric, model, judged, maps, alpha)
                failed += problem
                tuned = alpha if metric == "wsl" else None
                rows.append(BenchRow(name, method, metric, tuple(values.tolist()), tuned, temperature))
        return rows, failed

    def _temperatures(self, name: str, method: str, explainer: Explainer) -> list[float]:
        named = list(self.models)[:1] if self.temperature_models is None else self.temperature_models
        if self.temperature_methods is None:
            wanted = explainer.family in {"gradient", "cam"}
        else:
            wanted = method in self.temperature_methods
        return [value for value in self.temperatures if value != 1] if name in named and wanted else []

    def _maps(self, explainer: Explainer, data: BoxedImages) -> tuple[Tensor, list[str]]:
        maps, failed = [], []
        for x, y in zip(data.images.split(self.batch_size), data.labels.split(self.batch_size), strict=True):
            device = device_of(explainer.model)
            result = explainer.attribute(x.to(device), y)
            maps.append(result.normalized.cpu())
            if result.check.passed is False:
                failed.append(f"{result.check.name}: {result.check.statement}")
        return torch.cat(maps), failed

    def _values(
        self, metric: str, model: nn.Module, judged: _Judged, maps: Tensor, alpha: float | None
    ) -> tuple[Tensor, list[str]]:
        if metric == "pointing-game":
            return pointing_game(maps, judged.boxes, seed=self.seed).double(), []
        if metric == "energy-in-box":
            return energy_in_box(maps, judged.boxes), []
        if metric == "wsl" and alpha is not None:
            return wsl(maps, judged.boxes, alpha).hit.double(), []
        measure = insertion if metric == "insertion" else deletion
        curve = measure(model, judged.images.to(device_of(model)), judged.labels, maps, seed=self.seed)
        return curve.auc, [] if curve.check.passed else [f"{metric}: {curve.check.statement}"]


@dataclass(frozen=True)
class ConfidenceConfound:
    """How far insertion and deletion follow the confidence alone.

    Attributes:
        spearman: metric -> rank correlation, over networks, of mean confidence with the metric's mean over methods;
            NaN with fewer than three networks.
        by_method: method -> metric -> the same for one method.
        temperature: metric -> temperature -> mean absolute change against temperature 1, over images, methods and
            networks; empty if the bench ran without temperatures.
        check: passes if dividing the logits moves insertion and deletion and no localisation metric; says nothing
            where no temperature was measured.
    """

    spearman: Mapping[str, float]
    by_method: Mapping[str, Mapping[str, float]]
    temperature: Mapping[str, Mapping[float, float]]
    check: Check

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "spearman": dict(self.spearman),
            "by_method": {method: dict(values) for method, values in self.by_method.items()},
            "temperature": {
                metric: {str(temperature): change for temperature, change in values.items()}
                for metric, values in self.temperature.items()
            },
            "check": self.check.to_dict(),
        }


def confidence_confound(table: BenchTable) -> ConfidenceConfound:
    """Tell how far the metrics of a table follow the networks' confidence.

    Only methods that work on every network enter the rank correlations, so that each network is averaged over the
    same ones.
    """
    models = list(table.confidence)
    confidence = [sum(table.confidence[name]) / len(table.confidence[name]) for name in models]
    missing = {method for _, method, _ in table.skipped}
    measured = dict.fromkeys(row.method for row in table.rows)
    methods = [method for method in measured if method not in missing]
    metrics = list(dict.fromkeys(row.metric for row in table.rows))
    means = {(row.model, row.method, row.metric): row.mean for row in table.rows if row.temperature == 1}

    def correlate(scores: list[float]) -> float:
        return spearman(confidence, scores) if len(models) >= 3 else float("nan")

    by_method = {
        method: {metric: correlate([means[name, method, metric] for name in models]) for metric in metrics}
        for method in methods
    }
    overall = {
        metric: correlate([sum(means[name, method, metric] for method in methods) for name in models])
        for metric in metrics
    }
    changes = _changes(table, metrics)
    return ConfidenceConfound(overall, by_method, changes, _temperature_check(changes))


def tempered(model: nn.Module, temperature: float) -> nn.Module:
    """Return a copy of ``model`` whose logits are divided by ``temperature``; layers keep their paths.

    >>> import torch
    >>> double = tempered(nn.Identity(), 0.5)
    >>> double(torch.ones(1, 2))
    tensor([[2., 2.]])
    """
    if not 0 < temperature < float("inf"):
        raise InputError("temperature", "tempered", allowed="> 0 and finite", got=temperature)
    cooler = copy.deepcopy(model)
    cooler.register_forward_hook(lambda module, args, logits: logits / temperature)
    return cooler


def _changes(table: BenchTable, metrics: list[str]) -> dict[str, dict[float, float]]:
    as_it_is = {(row.model, row.method, row.metric): row.values for row in table.rows if row.temperature == 1}
    gaps: dict[str, dict[float, list[float]]] = {metric: {} for metric in metrics}
    for row in table.rows:
        if row.temperature != 1:
            before = as_it_is[row.model, row.method, row.metric]
            gap = [abs(a - b) for a, b in zip(row.values, before, strict=True)]
            gaps[row.metric].setdefault(row.temperature, []).extend(gap)
    return {
        metric: {temperature: sum(gap) / len(gap) for temperature, gap in sorted(found.items())}
        for metric, found in gaps.items()
        if found
    }


def _temperature_check(changes: Mapping[str, Mapping[float, float]]) -> Check:
    if not changes:
        return Check("temperature", None, "No temperature was measured.")
    still = max((gap for name in _LOCALISATION for gap in changes.get(name, {}).values()), default=0.0)
    moved = min((gap for name in _CURVES for gap in changes.get(name, {}).values()), default=0.0)
    bound = 1e-3
    statement = (
        f"Dividing the logits by a temperature moves insertion and deletion by at least {moved:.3f} on average, "
        f"and no localisation metric by more than {still:.1e}."
    )
    return Check("temperature", still <= bound < moved, statement, moved, bound)


def _logits(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    with inspected(model), torch.no_grad():
        return torch.cat([model(chunk.to(device_of(model))).cpu() for chunk in images.split(batch_size)])


def _key(image: Tensor) -> bytes:
    return image.detach().cpu().contiguous().numpy().tobytes()
