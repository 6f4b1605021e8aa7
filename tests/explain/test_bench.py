"""The bench: same images, tuned thresholds, and the confidence confound shown by a temperature."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.errors import InputError, LayerError
from striate.explain.base import Explainer, RawMap, Target, resolve_target, score
from striate.explain.bench import (
    METRICS,
    BenchRow,
    BenchTable,
    ExplainabilityBench,
    confidence_confound,
    tempered,
)
from striate.explain.localisation import tune_alpha


@dataclass(frozen=True)
class Squares:
    """Class k is a bright square in quadrant k of an 8 x 8 image."""

    images: Tensor
    labels: Tensor
    boxes: Tensor


def squares(n: int, seed: int) -> Squares:
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.rand(n, 1, 8, 8, generator=generator)
    labels = torch.randint(4, (n,), generator=generator)
    corner = torch.stack([labels % 2, labels // 2], dim=1) * 4
    for image, (x, y) in zip(images, corner.tolist(), strict=True):
        image[:, y : y + 4, x : x + 4] += 0.7
    return Squares(images, labels, torch.cat([corner, corner + 4], dim=1))


class Quadrants(nn.Module):
    """Logit k is the brightness of quadrant k, times a gain that sets the confidence."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.pool(x).flatten(1)


class PlainGradient(Explainer):
    name, family = "plain gradient", "gradient"

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        x = inputs.requires_grad_()
        logits = self.model(x)
        picked = resolve_target(logits, target)
        (grad,) = torch.autograd.grad(score(logits, picked).sum(), x)
        return RawMap(grad.abs().amax(dim=1), picked, Check("gradient", grad.abs().sum() > 0, "There is one."))


class Noise(Explainer):
    name, family = "noise", "perturbation"

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        return RawMap(
            torch.rand_like(inputs[:, 0]), resolve_target(self.model(inputs), target), Check("n", False, "Noise.")
        )


class Picky(PlainGradient):
    name = "picky"

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        if self.model.gain > 5:
            raise LayerError("This head is of another form; use Grad-CAM.")
        return super()._explain(inputs, target)


def bench(**options: object) -> ExplainabilityBench:
    given = {
        "models": {f"gain {gain}": Quadrants(gain).eval() for gain in (2.0, 4.0, 8.0)},
        "methods": {"gradient": PlainGradient, "noise": Noise},
        "metrics": tuple(METRICS),
        "dataset": squares(24, seed=0),
        "held_out": squares(12, seed=1),
    }
    return ExplainabilityBench(**(given | options))  # type: ignore[arg-type]


def test_every_row_is_of_the_same_images_and_keeps_each_of_them() -> None:
    table = bench().run()
    assert len(table.rows) == 3 * 2 * 5
    assert table.images == tuple(range(24))
    assert {len(row.values) for row in table.rows} == {24}
    assert table.accuracy == {"gain 2.0": 1.0, "gain 4.0": 1.0, "gain 8.0": 1.0}
    gradient = table.find("gain 4.0", "gradient", "pointing-game")
    assert gradient.mean == 1
    assert table.find("gain 4.0", "noise", "pointing-game").mean < 0.8
    flat = table.to_rows()
    assert flat[0].keys() == {
        "model", "method", "metric", "better", "mean", "low", "high", "n", "alpha", "temperature"
    }  # fmt: skip
    assert all(row["low"] <= row["mean"] <= row["high"] for row in flat)
    assert "3 networks, 2 methods, 24 images" in repr(table)


def test_only_images_that_all_networks_get_right_are_judged() -> None:
    data = squares(24, seed=0)

    class Blind(Quadrants):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.tensor([1.0, 1.0, 1.0, -1.0])  # never right about quadrant 3

    models = {"good": Quadrants(3.0).eval(), "blind": Blind(3.0).eval()}
    table = bench(models=models, dataset=data).run()
    assert table.images == tuple((data.labels != 3).nonzero()[:, 0].tolist())
    assert table.accuracy["blind"] == pytest.approx((data.labels != 3).double().mean().item())
    assert bench(models=models, dataset=data, only_correct=False).run().images == tuple(range(24))
    assert bench(models=models, dataset=data, limit=5).run().images == table.images[:5]
    # In parts, the images are still those of all networks.
    parts = bench(models=models, dataset=data)
    joined = BenchTable.joined([parts.run(["good"]), parts.run(["blind"])])
    assert joined.images == table.images
    assert joined.rows == table.rows


def test_the_threshold_is_tuned_on_the_held_out_images_of_each_network_and_method() -> None:
    made = bench()
    table = made.run()
    for name, model in made.models.items():
        for method, make in (("gradient", PlainGradient), ("noise", Noise)):
            maps = make(model).attribute(made.held_out.images, made.held_out.labels).normalized
            assert table.find(name, method, "wsl").alpha == tune_alpha(maps, made.held_out.boxes)
    assert table.find("gain 2.0", "gradient", "insertion").alpha is None


def test_json_and_back() -> None:
    import json

    table = bench(temperatures=(0.5,)).run()
    again = BenchTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert [(row.model, row.method, row.metric, row.alpha, row.temperature) for row in again.rows] == [
        (row.model, row.method, row.metric, row.alpha, row.temperature) for row in table.rows
    ]
    assert again.rows[3].values == pytest.approx(table.rows[3].values, abs=1e-6)
    assert again.images == table.images
    assert again.checks == table.checks


def test_a_method_that_cannot_work_is_listed_with_its_reason() -> None:
    table = bench(methods={"picky": Picky, "gradient": PlainGradient}).run()
    assert table.skipped == (("gain 8.0", "picky", "This head is of another form; use Grad-CAM."),)
    confound = confidence_confound(table)
    assert set(confound.by_method) == {"gradient"}  # only what works on every network is compared over them


def test_failed_checks_of_maps_are_kept() -> None:
    table = bench().run()
    assert ("gain 2.0", "noise", "n: Noise.") in table.checks
    assert not any(method == "gradient" for _, method, _ in table.checks)


def test_the_confound_over_networks_and_by_temperature() -> None:
    # Same maps for every gain: whatever insertion and deletion say about the three networks is their confidence.
    table = bench(methods={"gradient": PlainGradient}, temperatures=(0.5, 1, 2, 4)).run()
    confound = confidence_confound(table)
    assert confound.spearman["insertion"] == pytest.approx(1)
    assert confound.spearman["deletion"] == pytest.approx(1)
    assert confound.temperature["pointing-game"] == {0.5: 0, 2: 0, 4: 0}
    assert confound.temperature["wsl"] == {0.5: 0, 2: 0, 4: 0}
    assert min(confound.temperature["insertion"].values()) > 0.01
    assert confound.check.passed
    assert confound.to_dict()["check"]["passed"] is True
    assert len([row for row in table.rows if row.temperature != 1]) == 3 * 5  # the first network alone


def test_temperature_is_only_for_methods_that_explain_a_logit_unless_named() -> None:
    rows = bench(temperatures=(2.0,)).run().rows
    assert {row.method for row in rows if row.temperature == 2} == {"gradient"}
    rows = bench(temperatures=(2.0,), temperature_methods=["noise"], temperature_models=["gain 8.0"]).run().rows
    assert {(row.model, row.method) for row in rows if row.temperature == 2} == {("gain 8.0", "noise")}


def test_a_method_that_refuses_the_divided_network_keeps_its_rows() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    table = bench(
        models={"net": model.eval()}, methods=["cam"], only_correct=False, limit=4, temperatures=(2.0,)
    ).run()  # fmt: skip
    assert not table.skipped
    assert {row.temperature for row in table.rows} == {1.0}


def test_two_networks_have_no_correlation_and_no_temperature_no_check() -> None:
    row = BenchRow("a", "m", "insertion", (0.1, 0.2))
    table = BenchTable((row,), (0, 1), {"a": (0.5, 0.5)}, {"a": 1.0})
    confound = confidence_confound(table)
    assert confound.spearman["insertion"] != confound.spearman["insertion"]  # NaN
    assert confound.check.passed is None


def test_tempered_divides_and_leaves_the_original() -> None:
    model, x = Quadrants(3.0).eval(), torch.rand(2, 1, 8, 8)
    cooler = tempered(model, 4.0)
    torch.testing.assert_close(cooler(x), model(x) / 4)
    assert [name for name, _ in cooler.named_modules()] == [name for name, _ in model.named_modules()]
    with pytest.raises(InputError, match="temperature"):
        tempered(model, 0.0)


def test_names_of_the_registry() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)
    )
    table = bench(
        models={"net": model.eval()},
        methods=["gradient", "grad-cam"],
        only_correct=False,
        limit=4,
        metrics=["insertion"],
    ).run()
    assert {row.method for row in table.rows} == {"gradient", "grad-cam"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"models": {}}, "at least one"),
        ({"metrics": ["insertions"]}, "insertion"),
        ({"held_out": None}, "flatter"),
        ({"held_out": squares(24, seed=0)}, "24 shared"),
        ({"temperatures": [0.0]}, "temperatures"),
    ],
)
def test_wrong_set_ups_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        bench(**options)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(InputError, match="gain 3"):
        bench().run(["gain 3"])
    with pytest.raises(InputError, match="gradient"):
        bench().run().find("gain 2.0", "gradients", "wsl")
    with pytest.raises(InputError, match="every network gets right"):
        bench(models={"wrong": Quadrants(-3.0).eval()}).run()
    with pytest.raises(InputError, match="same images"):
        BenchTable.joined([])
