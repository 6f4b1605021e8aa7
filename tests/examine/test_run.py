"""``examine`` on networks of every kind: each probe answers, fails by itself, and leaves the network as it came."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from striate.engine.load import load_model
from striate.engine.model import count_classes
from striate.errors import InputError, ModelError, RunError
from striate.examine.finding import Finding, Report
from striate.examine.predictions import calibration
from striate.examine.run import PROBES, examine
from striate.examine.tiling import square_cells
from striate.testing import Sample, left_as_it_came


class Functional(nn.Module):
    """A person's network: functional ReLUs, no BatchNorm, one grey channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))


class Broken(Sample):
    """Answers NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.nan


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=6)


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=4,
        window_size=4,
        depths=(1, 1),
        num_heads=(2, 4),
        embed_dim=16,
        num_classes=6,
    )


def images(channels: int = 3, n: int = 6, side: int = 32) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))


def look(network: nn.Module, pixels: Tensor, **options: object) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return examine(network, pixels, input_size=tuple(pixels.shape[1:]), **options)  # type: ignore[arg-type]


def by_name(report: Report) -> dict[str, Finding]:
    return {finding.probe: finding for finding in report.findings}


@pytest.mark.parametrize(
    ("make", "channels"), [(Sample, 3), (Functional, 1), (vit, 3), (swin, 3)], ids=["cnn", "functional", "vit", "swin"]
)
def test_every_probe_answers_on_every_kind_of_network(make: type[nn.Module], channels: int) -> None:
    torch.manual_seed(0)
    network = make().eval()
    with left_as_it_came(network):
        report = look(network, images(channels), quick=True)
    found = by_name(report)
    assert list(found) == list(PROBES)
    for name, finding in found.items():
        assert finding.status == "done", f"{name}: {finding.headline}"
        assert finding.headline
        assert finding.seconds > 0
        assert finding.checks
        assert finding.advice
        assert finding.limits
    written = report.model_dump_json()
    assert Report.model_validate_json(written).model_dump_json() == written


def test_a_probe_that_fails_is_reported_and_the_others_go_on() -> None:
    found = by_name(look(Broken(), images(), quick=True))
    assert found["predictions"].status == "failed"
    assert "NaN" in found["predictions"].headline
    assert found["speed"].status == "done"


class Answering(nn.Module):
    """A sample network whose answer goes through a function."""

    def __init__(self, answer: Callable[[Tensor], object], classes: int = 5) -> None:
        super().__init__()
        self.body, self.answer = Sample(classes=classes), answer

    def forward(self, x: Tensor) -> object:
        return self.answer(self.body(x))


def refuse(answer: Tensor) -> Tensor:
    raise AssertionError("only 64 pixels")


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (lambda logits: {"logits": logits}, "returned a dict"),
        (lambda logits: (logits, logits), "returned a tuple"),
        (lambda logits: logits.detach().numpy(), "returned a ndarray"),
        (torch.squeeze, r"returned \(5,\)"),
        (lambda logits: logits[:, :1], "1 score an image"),
        (lambda logits: logits.softmax(dim=1), "probabilities"),
        (lambda logits: logits.sigmoid(), "without its last sigmoid"),
        (lambda logits: torch.nn.functional.sigmoid(logits[:, :, None]).squeeze(2), "without its last sigmoid"),
        (refuse, "3 x 32 x 32: AssertionError: only 64 pixels"),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_sentence(answer: Callable[[Tensor], object], part: str) -> None:
    with pytest.raises(ModelError, match=part):
        look(Answering(answer), images(), quick=True)


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits: 0.01 * logits.abs(),  # within [0, 1], and logits all the same
        lambda logits: logits * logits.sigmoid(),
        lambda logits: logits.sigmoid().logit(),
        lambda logits: logits.log_softmax(dim=1),
    ],
)
def test_logits_are_not_taken_for_probabilities(answer: Callable[[Tensor], Tensor]) -> None:
    assert count_classes(load_model(Answering(answer).eval(), input_size=(3, 32, 32))) == 5


def test_class_names_and_labels_must_be_the_networks() -> None:
    with pytest.raises(InputError, match="one for each of the network's 5 classes"):
        look(Sample(), images(), class_names=["cat", "dog"])
    with pytest.raises(InputError, match="class indices from 0 to 4"):
        look(Sample(), images(n=2), labels=[0, 5])


def test_a_network_that_fails_in_its_own_way_fails_probe_by_probe() -> None:
    def one_at_a_time(logits: Tensor) -> Tensor:
        assert len(logits) in {1, 4}
        return logits

    found = by_name(look(Answering(one_at_a_time), images(n=3), quick=True))
    assert found["predictions"].status == "failed"
    assert "AssertionError" in found["predictions"].headline
    assert found["speed"].status == "done"


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_is_examined_as_it_is(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Sample().eval().to(precision)
    with left_as_it_came(network):
        found = look(network, images(), quick=True).findings
    assert [finding.status for finding in found] == ["done"] * len(PROBES), [item.headline for item in found]


def test_a_network_that_is_unsure_but_right_has_learned() -> None:
    torch.manual_seed(0)
    network, pixels = Answering(lambda logits: (logits - logits.mean(dim=0)) / 100).eval(), images(n=8)
    with torch.no_grad():
        labels = network(pixels).argmax(dim=1)  # type: ignore[attr-defined]
    headlines = [
        look(network, pixels, quick=True, probes=["predictions"], labels=given).findings[0].headline
        for given in (labels, None)
    ]
    assert headlines[0].startswith("It is right on 100 %")
    assert "not learned anything" in headlines[1]


def test_no_method_is_preferred_that_does_not_beat_a_random_map() -> None:
    found = by_name(look(Answering(lambda logits: 0 * logits), images(), quick=True, probes=["where", "trust"]))
    assert found["trust"].headline.startswith("Not shown")
    assert "Prefer none" in found["trust"].advice[0].text
    target = int(found["where"].advice[0].command.split()[-1])
    assert 0 <= target < 5


def test_a_single_map_is_not_called_no_map() -> None:
    found = look(Answering(torch.detach), images(), quick=True, probes=["where"]).findings[0]
    assert "only occlusion gave one that is not flat" in found.headline


def test_flat_maps_are_not_called_the_same_formula() -> None:
    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Sample()

        def forward(self, x: Tensor) -> Tensor:
            return self.body((10 * x).round())  # no gradient reaches the pixels

    torch.manual_seed(0)
    found = look(Stepped().eval(), images(), quick=True, probes=["where"]).findings[0]
    assert not any("integrated-gradients" in text and "the same map" in text for text in found.reading)
    assert "no part of the image" not in found.headline


def test_torchscript_is_explained_by_what_needs_no_look_inside() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 3)))
    found = by_name(look(network, images(), quick=True, probes=["where", "trust"]))
    assert [finding.status for finding in found.values()] == ["done", "done"]
    assert any("TorchScript" in text for text in found["where"].reading)


def test_the_sample_of_images_follows_the_seed(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    shown = {seed: [item.name for item in look_at_folder(tmp_path, limit=2, seed=seed).photos] for seed in (0, 1, 2)}
    assert len({tuple(names) for names in shown.values()}) > 1


def look_at_folder(folder: Path, **options: object) -> Report:
    return examine(Sample(), folder, input_size=(3, 32, 32), quick=True, probes=["speed"], **options)  # type: ignore[arg-type]


def test_images_of_any_size_are_cut_and_what_no_cell_covers_is_said() -> None:
    pixels = torch.rand(4, 3, 97, 110, generator=torch.Generator().manual_seed(0))
    found = by_name(look(Sample(), pixels, quick=True, probes=["patch", "corruption"]))
    assert "7 x 8 cells of 13 x 13 px leave 6 px at the bottom and 6 px" in " ".join(found["patch"].reading)
    assert "16 x 18 cells of 6 x 6 px leave 1 px at the bottom" in " ".join(found["corruption"].reading)
    assert "damage to 97 % of it" in found["corruption"].headline
    assert all(check.passed for check in found["corruption"].checks)


def test_images_too_small_to_cut_are_refused_in_one_sentence() -> None:
    with pytest.raises(RunError, match="3 x 40 are too small"):
        square_cells(3, 40, 7)


def test_one_image_is_enough() -> None:
    assert all(finding.status == "done" for finding in look(Sample(), images(n=1), quick=True).findings)


def test_accuracy_and_calibration_are_those_of_the_labels() -> None:
    torch.manual_seed(0)
    network, pixels = Sample().eval(), images(n=40)
    with torch.no_grad():
        logits = network(pixels)
    labels = logits.argmax(dim=1)
    labels[::4] = (labels[::4] + 1) % 5  # wrong on a quarter
    model = load_model(network, input_size=(3, 32, 32))
    report = examine(model, pixels, labels=labels, probes=["predictions"], quick=True)  # type: ignore[arg-type]
    figures = {figure.name: figure for figure in report.findings[0].figures}
    assert figures["Accuracy"].value == pytest.approx(0.75)
    assert figures["Accuracy"].n == 40
    confidence = logits.softmax(dim=1).amax(dim=1)
    edges = torch.linspace(0, 1, 11)
    by_hand = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = confidence[inside].mean() - (logits.argmax(1) == labels)[inside].float().mean()
            by_hand += float(gap.abs()) * float(inside.float().mean())
    assert figures["Calibration error (ECE)"].value == pytest.approx(by_hand, abs=1e-5)
    assert calibration(logits.softmax(dim=1), labels) == pytest.approx(by_hand, abs=1e-5)


def test_a_confidence_of_one_shares_the_last_bin() -> None:
    sure = torch.tensor([1.0, 1.0, 0.95, 0.95])
    probabilities, labels = torch.stack([sure, 1 - sure], dim=1), torch.tensor([0, 1, 0, 0])
    assert calibration(probabilities, labels) == pytest.approx(float(sure.mean()) - 0.75)


def test_an_untrained_network_is_called_so() -> None:
    torch.manual_seed(0)
    report = look(vit().eval(), images(), quick=True, probes=["predictions"])
    assert "not learned anything" in report.findings[0].headline
    assert report.findings[0].level == "attention"


class Sure(nn.Module):
    """Hardly moved by anything."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 1e-3 * self.first(x).mean(dim=(2, 3)) + torch.tensor([8.0, 0, 0, 0])


@pytest.mark.parametrize(("size", "level"), [((32, 160), "info"), ((44, 52), "good"), ((48, 48), "good")])
def test_a_sticker_too_small_to_matter_proves_nothing(size: tuple[int, int], level: str) -> None:
    pixels = torch.rand(6, 3, *size, generator=torch.Generator().manual_seed(0))
    (finding,) = look(Sure().eval(), pixels, quick=True, probes=["patch"]).findings
    assert finding.level == level
    assert any("32 x 160" in line for line in finding.reading) == (level == "info")


class Rounding(Sure):
    """Gives no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.round())


def test_a_sticker_without_a_gradient_proves_nothing() -> None:
    pixels = torch.rand(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    (finding,) = look(Rounding().eval(), pixels, quick=True, probes=["patch"]).findings
    assert finding.level == "attention"
    assert any("failed its own test “gradient”" in line for line in finding.reading)


def test_with_every_label_wrong_there_is_nothing_to_break() -> None:
    network, pixels = Sample().eval(), images()
    with torch.no_grad():
        labels = (network(pixels).argmax(dim=1) + 1) % 5
    report = look(network, pixels, labels=labels, quick=True, probes=["fgsm", "patch"])
    assert [(finding.status, finding.level) for finding in report.findings] == [("skipped", "info")] * 2


def test_what_was_not_run_is_said() -> None:
    report = look(Sample(), images(), quick=True, probes=["speed"])
    assert [finding.probe for finding in report.findings] == ["speed"]
    assert any("'fgsm' was not run" in item for item in report.not_tested)


def test_the_same_seed_gives_the_same_findings() -> None:
    torch.manual_seed(0)
    network = Sample().eval()
    first, second = (look(network, images(), quick=True, probes=["fgsm", "patch", "corruption"]) for _ in range(2))
    for a, b in zip(first.findings, second.findings, strict=True):
        assert a.model_copy(update={"seconds": 0.0}) == b.model_copy(update={"seconds": 0.0})


def test_an_unknown_probe_is_refused_with_the_near_one() -> None:
    with pytest.raises(InputError, match="Did you mean 'fgsm'"):
        examine("lite0", probes=["fgmm"])


def test_arrays_of_bytes_are_images_too() -> None:
    pixels = (images().permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    model = load_model(Sample(), input_size=(3, 32, 32))
    assert examine(model, pixels, probes=["speed"], quick=True).images["n"] == 6
