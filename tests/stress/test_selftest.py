"""The attack's self-tests: a sound set-up passes, and each deliberately broken one is caught and named."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from striate.data.embedded import photographs
from striate.data.picture import prepare
from striate.engine.load import load_model
from striate.engine.model import Preprocessing, VisionModel
from striate.engine.packages import find
from striate.errors import InputError
from striate.models.mini import resnet_mini
from striate.stress import attack_selftests, normalisation_check, pgd

HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@functools.cache
def pictures(n: int | None = None) -> Tensor:
    preprocessing = load_model("lite0").preprocessing
    return torch.stack([prepare(photo.image, preprocessing) for photo in photographs()[:n]])


class Normalise(nn.Module):
    """A network that normalises inside, without saying so."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network, self.mean, self.std = network, mean, std
        self.eval()

    def forward(self, x):
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return self.network((x - mean) / std)


def declared(network, mean, std):
    return VisionModel(network.eval(), Preprocessing((3, 224, 224), mean, std))


class TestNormalisation:
    """On EfficientNet-Lite0 (mean and std 0.5) and MobileNetV2 (ImageNet's); a few photographs are enough."""

    @pytest.mark.parametrize("n", [4, None])
    def test_right_one_passes(self, n):
        check = normalisation_check(load_model("lite0"), pictures(n))
        assert check.passed is True
        assert check.value < 0.15

    def test_right_one_inside_a_bare_module_passes(self):
        assert normalisation_check(Normalise(load_model("lite0").network, HALF, HALF), pictures(4)).passed is True

    @pytest.mark.parametrize(
        ("mean", "std", "inside", "named"),
        [
            (*NONE, False, "mean 0.5, std 0.5"),
            (*IMAGENET, False, "mean 0.5, std 0.5"),
            (HALF, HALF, True, r"none \(pixels in \[0, 1\]\)"),
            ((0.0,) * 3, (1 / 255,) * 3, False, "mean 0.5, std 0.5"),
        ],
        ids=["none", "another network's", "twice", "0 to 255"],
    )
    def test_wrong_one_is_caught_and_the_right_one_named(self, mean, std, inside, named):
        network = load_model("lite0").network
        network = Normalise(network, HALF, HALF) if inside else network
        check = normalisation_check(declared(network, mean, std), pictures(4))
        assert check.passed is False
        assert check.value > check.bound
        assert named.replace("\\", "") in check.statement

    @pytest.mark.skipif(find("mobilenet-v2") is None, reason="MobileNetV2's weights: striate data fetch mobilenet-v2")
    def test_second_network(self):
        model = load_model("mobilenet-v2")
        assert normalisation_check(model, pictures(4)).passed is True
        wrong = normalisation_check(declared(model.network, HALF, HALF), pictures(4))
        assert wrong.passed is False
        assert "ImageNet" in wrong.statement

    def test_untrained_batch_norm_is_not_asked(self):
        check = normalisation_check(resnet_mini(3), torch.rand(4, 3, 16, 16))
        assert check.passed is None
        assert "never trained" in check.statement

    def test_without_batch_norm_only_gross_errors_fail_and_nothing_passes(self):
        class Plain(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.conv, self.fc = nn.Conv2d(3, 8, 5, stride=4), nn.Linear(8, 6)
                with torch.no_grad():
                    self.fc.weight *= 40

            def forward(self, x):
                return self.fc(self.conv(x).tanh().mean(dim=(2, 3)))

        check = normalisation_check(Plain().eval(), pictures(8))
        assert check.passed is not True
        assert "no batch normalisation" in check.statement

    def test_predictions_that_ignore_the_image_decide_nothing(self):
        class Constant(nn.Module):
            def forward(self, x):
                return x.new_zeros(len(x), 5)

        assert normalisation_check(Constant(), torch.rand(4, 3, 8, 8)).passed is None

    def test_model_leaves_as_it_came(self):
        model = resnet_mini(3).train()
        with torch.no_grad():
            model.stem[1].running_mean += 0.1
        before = {name: value.clone() for name, value in model.state_dict().items()}
        normalisation_check(model, torch.rand(4, 3, 16, 16))
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_pre_hooks for module in model.modules())


class Flat(nn.Module):
    """Quantises its input: useful scores, no gradient."""

    def forward(self, x):
        level = x.mean(dim=(1, 2, 3))
        return (
            torch.stack([level.round(decimals=2), 1 - level.round(decimals=2)], dim=1)
            + 0 * x.sum(dim=(1, 2, 3))[:, None]
        )


class TestSelftests:
    def checks(self, model, images, **options):
        return {check.name: check for check in attack_selftests(model, images, **options)}

    def test_embedded_network_passes_them_all(self):
        checks = self.checks(load_model("lite0"), pictures(4), epsilons=(1 / 255,), steps=3, pgd_images=2)
        assert list(checks) == [
            "eval mode",
            "preprocessing",
            "normalisation",
            "logits",
            "eps 0",
            "gradient",
            "monotone",
            "PGD >= FGSM",
            "large eps",
        ]
        assert [name for name, check in checks.items() if check.passed is not True] == []
        assert "mean (0.5, 0.5, 0.5)" in checks["preprocessing"].statement

    def test_training_mode_is_told_and_kept(self):
        model = resnet_mini(1).train()
        checks = self.checks(model, torch.rand(4, 1, 12, 12), steps=1)
        assert checks["eval mode"].passed is False
        assert model.training

    def test_one_layer_in_training_mode_is_named(self):
        model = resnet_mini(1).eval()
        model.layer2.bn1.train()
        assert "layer2.bn1" in self.checks(model, torch.rand(4, 1, 12, 12), steps=1)["eval mode"].statement
        assert model.layer2.bn1.training

    def test_masked_gradient_is_caught(self):
        checks = self.checks(Flat(), torch.rand(4, 3, 8, 8))
        assert checks["gradient"].passed is False
        assert checks["gradient"].value == 1.0
        assert checks["large eps"].passed is False

    def test_a_network_that_normalises_in_place_leaves_the_images_alone(self):
        class InPlace(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = resnet_mini(1)

            def forward(self, x):
                return self.inner(x.sub_(0.5).div_(0.25))

        model, x = InPlace().eval(), torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
        before = x.clone()
        plain = Normalise(model.inner, (0.5,), (0.25,))
        checks, others = (self.checks(one, x, steps=1) for one in (model, plain))
        assert torch.equal(x, before)
        assert [check.value for check in checks.values()] == [check.value for check in others.values()]
        assert torch.equal(pgd(model, x, steps=2), pgd(plain, x, steps=2))

    def test_a_network_that_draws_at_random_is_told(self):
        class Noisy(nn.Module):
            def forward(self, x):
                return (x + 0.1 * torch.randn_like(x)).flatten(1)[:, :4]

        check = self.checks(Noisy().eval(), torch.rand(4, 3, 12, 12), steps=1)["eps 0"]
        assert check.passed is False
        assert "draws at random" in check.statement

    def test_with_every_label_wrong_no_test_passes_for_nothing(self):
        model, x = resnet_mini(3).eval(), torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            labels = (model(x).argmax(dim=1) + 1) % 10
        checks = self.checks(model, x, labels=labels)
        assert [checks[name].passed for name in ("monotone", "PGD >= FGSM", "large eps")] == [None] * 3
        assert "100 % are wrong before any attack" in checks["monotone"].statement

    def test_a_softmax_inside_is_caught(self):
        model = torch.nn.Sequential(resnet_mini(3), torch.nn.Softmax(dim=1)).eval()
        check = self.checks(model, torch.rand(4, 3, 12, 12), steps=1)["logits"]
        assert check.passed is False
        assert "without its last softmax" in check.statement
        assert self.checks(model[0], torch.rand(4, 3, 12, 12), steps=1)["logits"].passed

    def test_sigmoids_at_the_end_are_caught_and_scores_in_the_unit_interval_are_not(self):
        check = self.checks(torch.nn.Sequential(resnet_mini(3), torch.nn.Sigmoid()).eval(), torch.rand(4, 3, 12, 12))
        assert check["logits"].passed is False
        assert "without its last sigmoid" in check["logits"].statement
        small = torch.nn.Sequential(resnet_mini(3), torch.nn.Hardtanh(0, 1)).eval()
        assert self.checks(small, torch.rand(4, 3, 12, 12), steps=1)["logits"].passed

    def test_images_outside_pixel_space_are_refused(self):
        with pytest.raises(InputError, match="values from"):
            attack_selftests(resnet_mini(3), 255 * torch.rand(2, 3, 12, 12))
