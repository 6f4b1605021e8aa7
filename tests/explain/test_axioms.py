"""The axioms by real ablation, and the exact split of a score."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from striate.errors import InputError, LayerError
from striate.explain.axioms import AXIOM_METHODS, axiom_report, axiom_reports, score_decomposition
from striate.explain.cam import XGradCAM


def mini_vgg(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def with_statistics(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.double().eval()


@pytest.mark.parametrize("layer", [str(i) for i in range(10)])
def test_the_theorem_holds_at_every_layer_of_a_vgg(layer: str) -> None:
    parts = score_decomposition(mini_vgg().double(), layer, torch.rand(3, 1, 16, 16, dtype=torch.float64), [0, 4, 2])
    assert float((parts.residual / parts.score).abs().max()) < 1e-5
    assert float(parts.bias_term.abs().min()) > 1e-3


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: torchvision.models.resnet18(num_classes=4), "layer2"),  # batch norm, skips, in-place ReLUs
        (lambda: torchvision.models.mobilenet_v2(num_classes=4), "features.3"),  # ReLU6 that saturates
        (lambda: torchvision.models.googlenet(num_classes=4, init_weights=False), "inception4a"),  # branches
    ],
)
def test_the_theorem_holds_with_folded_batch_norm_and_saturated_relu6(build: object, layer: str) -> None:
    torch.manual_seed(0)
    model = with_statistics(build())
    parts = score_decomposition(model, layer, 3 * torch.rand(2, 3, 64, 64, dtype=torch.float64), [1, 2])
    assert float((parts.residual / parts.score).abs().max()) < 1e-5


def test_functional_and_reused_layers_count_as_often_as_they_run() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.head = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)
            self.shift = nn.Parameter(torch.randn(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            x = F.relu(self.again(F.relu(self.again(x)))) + self.shift
            x = F.conv2d(x, self.again.weight * 2, self.again.bias)
            return self.head(x.clamp(-0.2, 0.4).mean(dim=(2, 3)))

    torch.manual_seed(0)
    parts = score_decomposition(Reused().double().eval(), "first", torch.rand(2, 1, 8, 8, dtype=torch.float64), 1)
    assert float((parts.residual / parts.score).abs().max()) < 1e-10


def test_a_skip_around_the_layer_stays_in_the_residual() -> None:
    model = with_statistics(torchvision.models.resnet18(num_classes=4))
    parts = score_decomposition(model, "layer3.0.bn1", torch.rand(1, 3, 64, 64, dtype=torch.float64), 0)
    assert float((parts.residual / parts.score).abs()) > 1e-3


@pytest.mark.parametrize(
    ("name", "layer", "operation"),
    [("vit_tiny_patch16_224", "blocks.0.norm1", "not piecewise linear"), ("convnext_atto", "stages.2", "not piecewise"),
     ("mobilenetv3_small_050", "blocks.1", "not piecewise linear")],
)  # fmt: skip
def test_what_is_not_piecewise_linear_is_refused(name: str, layer: str, operation: str) -> None:
    options = {"depth": 1} if "vit" in name else {}
    model = timm.create_model(name, num_classes=3, **options).eval()
    with pytest.raises(LayerError, match=operation):
        score_decomposition(model, layer, torch.rand(1, 3, 224 if options else 64, 224 if options else 64))


def test_a_softmax_score_is_refused() -> None:
    with pytest.raises(LayerError, match="Softmax"):
        score_decomposition(mini_vgg(), "5", torch.rand(1, 1, 16, 16), lambda logits: logits.softmax(dim=1)[:, 0])


def test_errors_of_a_report_are_what_they_are_defined_as() -> None:
    model, images = mini_vgg(), torch.rand(3, 1, 16, 16)
    report = axiom_report(model, "5", images, [0, 1, 2], "xgrad-cam", batch_size=3)
    delta, own, score = report.delta, report.contribution, report.score
    torch.testing.assert_close(report.sensitivity_error, (delta - own).abs().sum(1) / delta.abs().sum(1))
    torch.testing.assert_close(report.conservation_error, (score - own.sum(1)).abs() / score.abs())
    # For XGrad-CAM the conservation error is the bias term, whose exact value is found independently.
    parts = score_decomposition(model, "5", images, [0, 1, 2])
    torch.testing.assert_close(report.bias_term, parts.bias_term, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(report.conservation_error, (parts.bias_term / score).abs(), rtol=1e-4, atol=1e-5)
    cam = XGradCAM(model, "5").attribute(images, [0, 1, 2])
    torch.testing.assert_close(cam.weights * cam.activations.sum(dim=(2, 3)), own, rtol=1e-3, atol=1e-5)
    assert report.skipped == 0


def test_the_oracle_is_exact_and_a_dead_channel_drops_nothing() -> None:
    model, images = mini_vgg(), torch.rand(2, 1, 16, 16)
    model[3].bias.data[1] = -50.0
    reports = axiom_reports(model, "5", images, [3, 0])
    assert set(reports) == set(AXIOM_METHODS)
    assert float(reports["ablation-oracle"].sensitivity_error.max()) < 1e-6
    assert (reports["xgrad-cam"].delta[:, 1] == 0).all()
    for i, target in enumerate([3, 0]):
        response = model[:6](images[i : i + 1]).detach()
        for k in range(8):
            without = response.clone()
            without[:, k] = 0
            fall = (model[6:](response) - model[6:](without))[0, target].detach()
            torch.testing.assert_close(reports["grad-cam"].delta[i, k], fall, rtol=1e-3, atol=1e-6)


def test_at_global_average_pooling_both_axioms_hold_up_to_the_classifiers_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    for report in axiom_reports(model, "1", torch.rand(2, 1, 9, 9), 1, methods=("xgrad-cam", "grad-cam")).values():
        assert float(report.sensitivity_error.max()) < 1e-3
        torch.testing.assert_close(report.bias_term, model[4].bias[[1, 1]].detach(), rtol=1e-3, atol=1e-6)


def test_a_score_of_zero_is_skipped_and_counted() -> None:
    model = mini_vgg()
    nn.init.zeros_(model[10].weight[1])
    nn.init.zeros_(model[10].bias[1:2])
    model[10].weight.data[1, 0] = 1e-12
    report = axiom_report(model, "5", torch.rand(2, 1, 16, 16), lambda logits: logits[:, 1] + logits[:, 0] * 1e-9)
    assert report.skipped == 2
    assert report.conservation_error.isnan().all()


def test_errors() -> None:
    with pytest.raises(InputError, match="Did you mean 'xgrad-cam'"):
        axiom_report(mini_vgg(), "5", torch.rand(1, 1, 16, 16), 0, "xgradcam")
    with pytest.raises(LayerError, match="no spatial grid"):
        axiom_report(mini_vgg(), "7", torch.rand(1, 1, 16, 16), 0)
