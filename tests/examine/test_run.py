"""``examine`` on networks of every kind: each probe answers, fails by itself, and leaves the network as it came."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.load import load_model
from striate.errors import InputError
from striate.examine.finding import Finding, Report
from striate.examine.predictions import calibration
from striate.examine.run import PROBES, examine
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


def test_images_that_cannot_be_cut_fail_only_the_probes_that_cut() -> None:
    found = by_name(look(Sample(), images(side=31), quick=True, probes=["patch", "corruption", "fgsm"]))
    assert found["patch"].status == found["corruption"].status == "failed"
    assert "31 x 31" in found["patch"].headline
    assert found["fgsm"].status == "done"


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


def test_an_untrained_network_is_called_so() -> None:
    torch.manual_seed(0)
    report = look(vit().eval(), images(), quick=True, probes=["predictions"])
    assert "not learned anything" in report.findings[0].headline
    assert report.findings[0].level == "attention"


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
