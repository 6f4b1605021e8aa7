"""FGSM against closed forms, against captum, and in the places where a plain implementation goes wrong."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.engine.model import Preprocessing, VisionModel
from striate.errors import InputError, ModelError, TrainModeWarning
from striate.models.mini import inception_mini, resnet_mini
from striate.stress import fgsm, fgsm_report

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
W = torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, -1.0]])
X, Y = torch.tensor([[0.2, 0.5, 0.9]]), torch.tensor([0])


def linear(x):
    return x @ W.to(x.dtype).T


def network(seed=0, channels=3):
    torch.manual_seed(seed)
    return inception_mini(channels, 5).eval()


def images(n=4, channels=3, size=12, seed=1):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


class TestClosedForms:
    def test_linear_model(self):
        x = X.clone().requires_grad_()
        loss = F.cross_entropy(linear(x), Y)
        (grad,) = torch.autograd.grad(loss, x)
        assert loss.item() == pytest.approx(0.913015, abs=1e-6)
        torch.testing.assert_close(grad, torch.tensor([[-0.5987, 1.7961, -0.5987]]), atol=1e-4, rtol=0)
        attacked = fgsm(linear, X, Y, 0.1)
        torch.testing.assert_close(attacked, torch.tensor([[0.1, 0.6, 0.8]]))
        assert F.cross_entropy(linear(attacked), Y).item() == pytest.approx(1.241154, abs=1e-6)

    def test_margin_of_a_linear_classifier_falls_by_eps_times_the_l1_norm(self):
        x = torch.rand(16, 3, dtype=torch.float64)
        y = linear(x).argmax(dim=1)
        weight = (W[0] - W[1]).double()
        margin = (x @ weight) * torch.where(y == 0, 1.0, -1.0)
        attacked = fgsm(linear, x, y, 0.07, bounds=None)
        after = (attacked @ weight) * torch.where(y == 0, 1.0, -1.0)
        torch.testing.assert_close(after, margin - 0.07 * weight.abs().sum())
        torch.testing.assert_close(
            F.cross_entropy(linear(attacked), y, reduction="none"),
            F.softplus(-(margin - 0.07 * weight.abs().sum())),
        )

    def test_targeted_steps_towards_the_class(self):
        torch.testing.assert_close(
            fgsm(linear, X, torch.tensor([1]), 0.1, targeted=True), torch.tensor([[0.1, 0.6, 0.8]])
        )

    def test_normalised_space_moves_by_eps_times_std(self):
        model = VisionModel(network(), Preprocessing((3, 12, 12), MEAN, STD))
        x = images()
        moved = (fgsm(model, x, eps=0.02, space="normalized") - x).abs()
        grey_levels = 255 * moved.amax(dim=(0, 2, 3))
        torch.testing.assert_close(grey_levels, torch.tensor([1.168, 1.142, 1.148]), atol=1e-3, rtol=0)


class TestWhatItPromises:
    @settings(max_examples=20, deadline=None)
    @given(
        n=st.integers(1, 3),
        size=st.integers(8, 13),
        eps=st.floats(0.0, 0.3),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        targeted=st.booleans(),
    )
    def test_step_is_eps_wherever_it_is_not_clipped(self, n, size, eps, dtype, targeted):
        model, x = network().to(dtype), images(n, size=size).to(dtype)
        result = fgsm_report(model, x, torch.zeros(n, dtype=torch.long), eps, targeted=targeted)
        moved = result.images - x
        assert result.images.shape == x.shape
        assert result.images.dtype == dtype
        assert not result.images.requires_grad
        assert result.images.min() >= 0
        assert result.images.max() <= 1
        ulp = torch.finfo(dtype).eps
        assert moved.abs().max() <= eps + ulp
        free = (result.images > 0) & (result.images < 1) & (result.direction != 0)
        torch.testing.assert_close(moved[free].abs(), torch.full_like(moved[free], eps), atol=ulp, rtol=0)

    def test_zero_eps_gives_the_very_bits(self):
        x = images()
        assert torch.equal(fgsm(network(), x, eps=0.0), x)

    def test_eps_may_differ_by_channel(self):
        x = images()
        eps = torch.tensor([0.0, 0.01, 0.02]).view(3, 1, 1)
        moved = (fgsm(network(), x, eps=eps) - x).abs().amax(dim=(0, 2, 3))
        torch.testing.assert_close(moved, eps.flatten(), atol=1e-6, rtol=0)

    def test_without_labels_the_prediction_is_attacked(self):
        model, x = network(), images()
        assert torch.equal(fgsm(model, x, eps=0.03), fgsm(model, x, model(x).argmax(dim=1), eps=0.03))

    def test_gradient_of_zero_moves_nothing_and_is_counted(self):
        def half_dead(x):
            return torch.cat([x[:, :1], 0 * x[:, 1:2]], dim=1) * torch.tensor([[1.0], [0.0]])

        result = fgsm_report(half_dead, torch.full((2, 2), 0.5), Y.expand(2), 0.1)
        assert result.unmoved.tolist() == [False, True]
        assert result.check.passed is False
        assert result.images[0].tolist() == pytest.approx([0.4, 0.5])  # the second pixel has no gradient: sign(0) = 0

    def test_images_of_a_batch_do_not_mix(self):
        model, x = network().double(), images().double()
        together = fgsm(model, x, eps=0.03)
        alone = torch.cat([fgsm(model, one[None], eps=0.03) for one in x])
        torch.testing.assert_close(together, alone)

    def test_margin_loss_attacks_too(self):
        model, x = network(), images()
        y = model(x).argmax(dim=1)

        def margin(z):
            logits = model(z)
            others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
            return (others - logits.gather(1, y[:, None])[:, 0]).detach()

        assert (margin(fgsm(model, x, y, 0.01, loss="margin")) > margin(x)).all()

    def test_half_precision_and_channels_last(self):
        model = network()
        x = images().to(memory_format=torch.channels_last)
        assert fgsm(model, x, eps=0.03).is_contiguous(memory_format=torch.channels_last)
        half = fgsm(model.bfloat16(), x.bfloat16(), eps=0.03)
        assert half.dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fgsm(network(), x, eps=0.03).dtype == torch.float32


class TestSaturation:
    def saturated(self, dtype=torch.float32):
        scale = 60.0

        def model(x):
            return scale * torch.stack([x[:, 0], -x[:, 0], x[:, 1] * 0.1], dim=1)

        return model, torch.tensor([[1.0, 0.5]], dtype=dtype), torch.tensor([0])

    def test_plain_gradient_is_zero_and_ours_is_not(self):
        model, x, y = self.saturated()
        leaf = x.clone().requires_grad_()
        plain = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)[0]
        assert plain[0, 0].abs() < 1e-20  # 1 - p(y) is 0 in float32: what is left has no meaning
        result = fgsm_report(model, x, y, 0.1)
        assert result.saturated.tolist() == [True]
        assert result.images[0].tolist() == pytest.approx([0.9, 0.6])

    def test_direction_is_that_of_cross_entropy_in_double_precision(self):
        model, x, y = self.saturated(torch.float64)
        leaf = (x - 0.75).requires_grad_()  # margin 30: float32 has lost it, float64 has not
        exact = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)[0].sign()
        ours = fgsm_report(model, (x - 0.75).float().clamp(0, 1).double().float(), y, 0.01, bounds=None)
        assert torch.equal(ours.direction.double()[:, :1], exact[:, :1])

    def test_unsaturated_images_use_plain_cross_entropy(self):
        model, x = network(), images()
        assert not fgsm_report(model, x).saturated.any()


class TestAgainstCaptum:
    """captum 0.8 and newer: torchattacks takes the same step; captum has two quirks."""

    def test_same_numbers_with_its_best_settings(self):
        from captum.robust import FGSM

        model, x = network().double(), images().double() * 0.9
        y = model(x).argmax(dim=1)
        loss = nn.CrossEntropyLoss(reduction="none")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = FGSM(model, loss_func=loss, lower_bound=0, upper_bound=1).perturb(x, 0.03, y)
        attack = fgsm_report(model, x, y, 0.03)
        leaf = x.clone().requires_grad_()
        gradient = torch.autograd.grad(loss(model(leaf), y).sum(), leaf)[0].abs()
        assert (gradient > 1e-6).float().mean() > 0.9
        same = gradient > 1e-6
        assert (attack.images - theirs).abs()[same].max() <= 1e-6

    def test_quirk_its_default_loss_takes_the_logarithm_of_logits(self):
        from captum.robust import FGSM

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = FGSM(lambda x: x @ W.T + 3, lower_bound=0, upper_bound=1).perturb(X, 0.1, Y)
        ours = fgsm(lambda x: x @ W.T + 3, X, Y, 0.1)
        # -log(z_0) has no part from the other class: the third pixel, which only that class sees, stays.
        assert theirs[0, 2] == X[0, 2]
        assert ours[0, 2] != X[0, 2]

    def test_quirk_it_leaves_saturated_images_alone(self):
        from captum.robust import FGSM

        model, x, y = TestSaturation().saturated()
        loss = nn.CrossEntropyLoss(reduction="none")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = FGSM(model, loss_func=loss, lower_bound=0, upper_bound=1).perturb(x, 0.1, y)
        assert torch.equal(theirs, x)
        assert not torch.equal(fgsm(model, x, y, 0.1), x)


class TestManners:
    def test_model_leaves_as_it_came(self):
        model, x = resnet_mini(3, 5).train(), images()
        model.fc.weight.requires_grad_(False)
        model.fc.bias.grad = torch.ones_like(model.fc.bias)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        with pytest.warns(TrainModeWarning):
            fgsm(model, x)
        assert model.training
        assert not model.fc.weight.requires_grad
        assert model.fc.bias.requires_grad
        assert torch.equal(model.fc.bias.grad, torch.ones(5))
        assert model.stem[0].weight.grad is None
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)

    def test_works_under_no_grad_and_inference_mode(self):
        model, x = network(), images()
        expected = fgsm(model, x, eps=0.03)
        with torch.no_grad():
            assert torch.equal(fgsm(model, x, eps=0.03), expected)
        with torch.inference_mode():
            assert torch.equal(fgsm(model, images(), eps=0.03), expected)

    def test_mean_and_std_stand_between_pixels_and_a_bare_network(self):
        bare, x = network(), images()
        wrapped = VisionModel(bare, Preprocessing((3, 12, 12), MEAN, STD))
        assert torch.equal(fgsm(bare, x, eps=0.03, mean=MEAN, std=STD), fgsm(wrapped, x, eps=0.03))

    def test_normalised_space_clips_to_the_image_of_the_bounds(self):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        x = (images() - mean) / std
        free = fgsm(network(), x, eps=1.0, space="normalized")
        clipped = fgsm(network(), x, eps=1.0, space="normalized", mean=MEAN, std=STD)
        pixels = clipped * std + mean
        assert pixels.min() >= -1e-6
        assert pixels.max() <= 1 + 1e-6
        assert (free * std + mean).max() > 1.05
        low, high = (0 - mean) / std, (1 - mean) / std
        torch.testing.assert_close(high.flatten(), torch.tensor([2.2489, 2.4286, 2.6400]), atol=1e-4, rtol=0)
        torch.testing.assert_close(low.flatten(), torch.tensor([-2.1179, -2.0357, -1.8044]), atol=1e-4, rtol=0)


class TestErrors:
    def test_says_range_of_images_outside_bounds(self):
        with pytest.raises(InputError, match=r"values from 0 to 255"):
            fgsm(
                network(),
                (images() * 255)
                .round()
                .clamp_(0, 255)
                .index_fill(0, torch.tensor([0]), 0)
                .index_fill(0, torch.tensor([1]), 255),
            )

    @pytest.mark.parametrize("eps", [-0.1, float("nan"), torch.ones(2, 1, 1)])
    def test_refuses_eps(self, eps):
        with pytest.raises(InputError, match="eps"):
            fgsm(network(), images(), eps=eps)

    def test_refuses_labels(self):
        with pytest.raises(InputError, match="from 0 to 4"):
            fgsm(network(), images(), torch.tensor([0, 1, 2, 5]))
        with pytest.raises(InputError, match="4 whole numbers"):
            fgsm(network(), images(), torch.tensor([0, 1]))
        with pytest.raises(InputError, match="targeted"):
            fgsm(network(), images(), targeted=True)

    def test_refuses_normalising_twice(self):
        model = VisionModel(network(), Preprocessing((3, 12, 12), MEAN, STD))
        with pytest.raises(InputError, match="normalise twice"):
            fgsm(model, images(), mean=MEAN, std=STD)

    def test_refuses_a_gradient_that_is_not_finite(self):
        with pytest.raises(ModelError, match="NaN"):
            fgsm(lambda x: torch.stack([x.sum(1).sqrt(), -x.sum(1)], 1), torch.zeros(1, 3))

    def test_refuses_what_is_no_classifier(self):
        with pytest.raises(ModelError, match="classes"):
            fgsm(lambda x: x.sum(dim=1), X)
        with pytest.raises(ModelError, match="detach"):
            fgsm(lambda x: linear(x.detach()), X)

    def test_restores_the_model_after_an_error(self):
        model = network().train()
        with pytest.warns(TrainModeWarning), pytest.raises(InputError):
            fgsm(model, images(), torch.tensor([9, 9, 9, 9]))
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
