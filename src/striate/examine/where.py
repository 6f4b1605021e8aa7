"""Probe: where does it look? Several methods side by side, each with its own check, and how far they agree."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from striate.engine.stats import bootstrap_mean, spearman
from striate.errors import StriateError
from striate.examine.draw import map_picture
from striate.examine.finding import Advice, CheckRecord, Figure, Finding, Gallery, Level, MapPicture, Table
from striate.examine.subject import Subject
from striate.explain.registry import get_method
from striate.explain.result import Attribution

__all__ = ["agreement", "explain_shown", "probe"]

_QUESTION = "Where does it look?"
_AGREE, _DISAGREE = 0.4, 0.15
_GRID = 14


def explain_shown(subject: Subject) -> tuple[dict[str, Attribution], dict[str, str]]:
    """Explain the shown images by every method of this look, once; return results and the refusals by method."""
    height = subject.pixels.shape[-1]
    window = max(2, height // 7)
    methods: dict[str, dict[str, Any]] = {
        "grad-cam": {},
        "xgrad-cam": {},
        "integrated-gradients": {"n_steps": 12 if subject.quick else 50},
        "occlusion": {"window": window, "stride": window if subject.quick else max(1, window // 2)},
    }
    if not subject.quick:
        methods["rise"] = {"n_masks": 1000}
    refused = {}
    inputs = subject.pixels[subject.shown].to(subject.model.mean.device)
    target = subject.predictions[subject.shown].to(inputs.device)
    for name, options in methods.items():
        if name in subject.explained:
            continue
        subject.say(f"maps: {name}")
        try:
            subject.explained[name] = get_method(name)(subject.model, **options).attribute(inputs, target)
        except StriateError as error:
            refused[name] = str(error)
        except Exception as error:  # a person's network may fail under one method and bear the others
            refused[name] = f"{type(error).__name__}: {error}"
    return subject.explained, refused


def agreement(first: Tensor, second: Tensor) -> list[float]:
    """Return the rank correlation of two stacks of maps (N, H, W), image by image, at 14 x 14; NaN for a flat map."""
    small = [F.adaptive_avg_pool2d(maps[:, None].float().cpu(), _GRID).flatten(1) for maps in (first, second)]
    return [spearman(a.tolist(), b.tolist()) for a, b in zip(*small, strict=True)]


def probe(subject: Subject) -> Finding:
    """Explain the shown images and compare the methods with one another."""
    explained, refused = explain_shown(subject)
    if not explained:
        raise StriateError("no method could explain this network: " + "; ".join(refused.values()))
    maps = {name: result.normalized for name, result in explained.items()}
    pairs = {(a, b): np.array(agreement(maps[a], maps[b])) for a, b in combinations(maps, 2)}
    same = [pair for pair, values in pairs.items() if np.isfinite(values).any() and np.nanmin(values) > 0.9999]
    twins = {b for _, b in same}  # the same map under another name must not count twice
    pairs = {pair: v for pair, v in pairs.items() if not twins & set(pair) and np.isfinite(v).any()}
    figures, level, headline = _judge(
        subject, pairs, [name for name in maps if name not in twins and _speaks(maps[name])]
    )
    if subject.untrained:
        level = "info"
    failed = [name for name, result in explained.items() if result.check.passed is False]
    reading = [
        "Every map explains the class that the network named, on one colour scale: each map's own smallest value is "
        "dark, its largest is bright. CAMs show regions of a late layer; integrated gradients show pixels; occlusion "
        "and RISE hide parts and watch the score, so they need no gradient."
    ]
    reading += [
        f"{a} and {b} give the same map here (everything above the layer is average pooling and a linear layer, where "
        "the two are one formula), so it counts once."
        for a, b in same
    ]
    if failed:
        reading.append(f"Read with care, because their own check failed: {', '.join(failed)}.")
        level = "attention"
    reading += [f"{name} was not possible: {why}" for name, why in refused.items()]
    layers = {result.layer for result in explained.values() if result.layer}
    return Finding(
        probe="where",
        question=_QUESTION,
        status="done",
        level=level,
        headline=headline,
        reading=reading,
        figures=figures,
        galleries=[_gallery(subject, maps)],
        tables=[_pairs_table(pairs), _methods_table(explained)],
        checks=[_check(name, result) for name, result in explained.items()],
        advice=[
            Advice(
                text=f"Look at single images, other classes or another layer than {' or '.join(sorted(layers))}."
                if layers
                else "Look at single images or other classes.",
                command=f"striate explain MODEL IMAGE --method {next(iter(explained))} --target {_second(subject)}",
            )
        ],
        papers=["xgrad-cam", "explainable-robust"],
        limits=[f"Only {len(subject.shown)} images are explained.", "Only the predicted class is explained."],
    )


def _speaks(maps: Tensor) -> bool:
    """Whether any of the maps (N, H, W) is not flat."""
    return bool((maps.flatten(1).amax(dim=1) > maps.flatten(1).amin(dim=1)).any())


def _judge(
    subject: Subject, pairs: dict[tuple[str, str], np.ndarray], speaking: list[str]
) -> tuple[list[Figure], Level, str]:
    if not pairs:
        why = (
            f"only {speaking[0]} gave one that is not flat, and there is no other to hold it against."
            if speaking
            else "no part of the image seems to matter to it."
        )
        return [], "attention", f"There are no two different maps to compare: {why}"
    # Pairs of methods are not independent draws; images are. So average over pairs first, then over images.
    per_image = np.nanmean(np.stack(list(pairs.values())), axis=0)
    interval = bootstrap_mean(per_image[np.isfinite(per_image)].tolist(), seed=subject.seed)
    figure = Figure(
        name="Agreement between methods",
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        note="mean rank correlation over all pairs, per image; 1 = same order of regions",
    )
    ranked = sorted(pairs, key=lambda pair: float(np.nanmean(pairs[pair])))
    worst, best = (f"{a} and {b}" for a, b in (ranked[0], ranked[-1]))
    if interval.value >= _AGREE:
        level: Level = "good"
        opening = "The methods mostly point at the same regions"
    elif interval.value >= _DISAGREE:
        level = "attention"
        opening = "The methods agree only in part"
    else:
        level = "attention"
        opening = "The methods do not agree on where it looks"
    headline = (
        f"{opening} (mean rank correlation {interval.value:.2f}): closest are {best}, furthest apart {worst}. "
        "Whether any of them is right is the next question."
    )
    return [figure], level, headline


def _second(subject: Subject) -> int:
    """Return the second answer to the first image: the class that is worth asking for next."""
    return int(subject.logits[0].topk(2).indices[1])


def _check(name: str, result: Attribution) -> CheckRecord:
    record = CheckRecord(**result.check.to_dict())
    return record.model_copy(update={"statement": f"{name}: {record.statement}"})


def _gallery(subject: Subject, maps: dict[str, Tensor]) -> Gallery:
    pictures: list[MapPicture] = []
    for place, index in enumerate(subject.shown):
        name = subject.model.class_name(int(subject.predictions[index]))
        for method, stack in maps.items():
            top = torch.nonzero(stack[place] == stack[place].max())[0].tolist()
            height, width = stack.shape[-2:]
            where = f"peak {100 * top[1] / width:.0f} % from the left, {100 * top[0] / height:.0f} % from the top"
            alt = f"{method} map for {name} on {subject.images.names[index]}: {where}"
            pictures.append(map_picture(stack[place], method, alt, photo=place))
    return Gallery(title="What counted for the class it named", maps=pictures, low_label="least", high_label="most")


def _pairs_table(pairs: dict[tuple[str, str], np.ndarray]) -> Table:
    ranked = sorted(pairs.items(), key=lambda item: -float(np.nanmean(item[1])))
    return Table(
        title="Agreement by pair of methods",
        columns=["pair", "mean rank correlation", "lowest image", "highest image"],
        rows=[[f"{a} – {b}", float(np.nanmean(v)), float(np.nanmin(v)), float(np.nanmax(v))] for (a, b), v in ranked],
    )


def _methods_table(explained: dict[str, Attribution]) -> Table:
    rows: list[list[str | float | int | None]] = [
        [name, result.layer or "input", f"{result.map.shape[-2]} × {result.map.shape[-1]}", result.seconds]
        for name, result in explained.items()
    ]
    return Table(
        title="How the maps were made",
        columns=["method", "layer", "own resolution", "seconds for all images"],
        rows=rows,
    )
