"""Gradient maps: closed forms, parity with captum 0.9, batch invariance, and the checks themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum import attr as captum_attr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.errors import InputError, ModelError
from striate.explain.gradient import Gradient, GradientSHAP, InputXGradient, IntegratedGradients, SmoothGrad

ALL = (Gradient, InputXGradient, IntegratedGradients, GradientSHAP, SmoothGrad)
SAMPLED = (IntegratedGradients, GradientSHAP, SmoothGrad)


def short(method, model, **options):
    """A method with few samples, where it has samples."""
    if method is IntegratedGradients:
        options.setdefault("n_steps", 8)
    elif method in SAMPLED:
        options.setdefault("n_samples", 8)
    return method(model, **options)


def small_net(channels=3, activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        activation(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        activation(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def images(n=3, channels=3, size=(9, 11), seed=1, dtype=torch.float32):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def net():
    return small_net()


# Closed forms


@pytest.mark.parametrize("method", ALL)
def test_a_linear_network_is_explained_exactly(method):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 2)).double().eval()
    x = images(2, size=(4, 5), dtype=torch.float64)
    weight = linear[1].weight[1].detach().view(3, 4, 5)
    explainer = short(method, linear)
    values = explainer.input_attribution(x, 1)
    if method in {Gradient, SmoothGrad}:
        expected = weight.expand_as(values)
    elif method is GradientSHAP:
        every = torch.arange(8).repeat_interleave(2), torch.arange(2).repeat(8)
        baselines = explainer.draw_baselines(x, *every).view(8, 2, 3, 4, 5)
        expected = (x - baselines).mean(0) * weight
    else:
        expected = x * weight
    torch.testing.assert_close(values, expected)
    assert explainer.attribute(x, 1).check.passed


def test_integrated_gradients_is_complete_in_one_step_on_a_linear_network():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double().eval()
    x = images(2, size=(2, 2), dtype=torch.float64)
    baseline = images(2, size=(2, 2), seed=5, dtype=torch.float64)
    result = IntegratedGradients(linear, n_steps=1, baseline=baseline).attribute(x, [0, 2])
    difference = (linear(x) - linear(baseline)).detach()[[0, 1], [0, 2]]
    torch.testing.assert_close(result.map.sum(dim=(1, 2)), difference)
    assert result.check.value == 0.0


def test_integrated_gradients_is_complete_within_one_percent_at_50_steps(net):
    x = images()
    result = IntegratedGradients(net).attribute(x, 2)
    difference = (net(x) - net(torch.zeros_like(x))).detach()[:, 2]
    torch.testing.assert_close(result.map.sum(dim=(1, 2)), difference, rtol=0.01, atol=1e-6)
    assert result.check.passed
    assert result.check.value <= 0.01
    torch.testing.assert_close(torch.tensor(result.notes["score_difference"]), difference)


def test_a_path_that_is_too_coarse_fails_its_check():
    steep = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    nn.init.constant_(steep[1].weight, 30.0)
    result = IntegratedGradients(nn.Sequential(steep, nn.Sigmoid()).eval(), n_steps=2).attribute(
        images(1, size=(2, 2)), 0
    )
    assert result.check.passed is False
    assert result.notes["steps"] == 2
    assert "n_steps" in result.check.statement


def test_a_path_gets_as_many_points_as_its_check_takes_and_no_more_than_allowed(net):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    nn.init.constant_(linear[1].weight, 3.0)
    steep, x = nn.Sequential(linear, nn.Sigmoid()).eval(), images(1, size=(2, 2))
    enough = IntegratedGradients(steep, n_steps=2, max_steps=100).attribute(x, 0)
    steps = enough.notes["steps"]
    assert enough.check.passed
    assert 2 < steps < 100
    assert steps.bit_count() == 1  # 2, doubled
    torch.testing.assert_close(enough.map, IntegratedGradients(steep, n_steps=steps).attribute(x, 0).map)
    assert not IntegratedGradients(steep, n_steps=steps // 2).attribute(x, 0).check.passed
    short = IntegratedGradients(steep, n_steps=2, max_steps=3).attribute(x, 0)
    assert (short.check.passed, short.notes["steps"]) == (False, 3)
    assert IntegratedGradients(net, max_steps=1000).attribute(images(), 2).notes["steps"] == 50


def test_the_maps_are_the_papers_reductions(net):
    x = images()
    for method in (Gradient, SmoothGrad):
        explainer = short(method, net)
        expected = explainer.input_attribution(x, 1).abs().amax(1)
        torch.testing.assert_close(explainer.attribute(x, 1).map, expected)
    expected = InputXGradient(net).input_attribution(x, 1).sum(1).abs()
    torch.testing.assert_close(InputXGradient(net).attribute(x, 1).map, expected)
    for method in (IntegratedGradients, GradientSHAP):
        explainer = short(method, net)
        torch.testing.assert_close(explainer.attribute(x, 1).map, explainer.input_attribution(x, 1).sum(1))


# Parity with captum


def test_gradient_and_input_x_gradient_agree_with_captum(net):
    x = images()
    theirs = captum_attr.Saliency(net).attribute(x, target=3, abs=False)
    torch.testing.assert_close(Gradient(net).input_attribution(x, 3), theirs, rtol=1e-5, atol=1e-6)
    theirs = captum_attr.InputXGradient(net).attribute(x.clone().requires_grad_(), target=3).detach()
    torch.testing.assert_close(InputXGradient(net).input_attribution(x, 3), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("baseline", [None, 0.3, images(3, seed=9), images(1, seed=9)[0]])
def test_integrated_gradients_agrees_with_captum(net, baseline):
    x = images()
    target = torch.tensor([0, 4, 2])
    given = {None: 0.0}.get(baseline, baseline) if not isinstance(baseline, torch.Tensor) else baseline.expand_as(x)
    theirs = captum_attr.IntegratedGradients(net).attribute(
        x, baselines=given, target=target, n_steps=20, method="gausslegendre"
    )
    ours = IntegratedGradients(net, n_steps=20, baseline=baseline).input_attribution(x, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.15])
def test_gradient_shap_agrees_with_captum_on_the_same_baselines_and_places(net, monkeypatch, sigma):
    x, pool, n = images(2), images(3, seed=7), 12
    explainer = GradientSHAP(net, n_samples=n, baselines=pool, sigma=sigma)
    sample, image = torch.arange(n).repeat_interleave(2), torch.arange(2).repeat(n)
    baselines = explainer.draw_baselines(x, sample, image)
    # captum draws its places from NumPy's global generator; here it is handed ours
    monkeypatch.setattr(np.random, "uniform", lambda *_: explainer.places()[sample].numpy())
    peer = captum_attr._core.gradient_shap.InputBaselineXGradient(net)
    theirs = peer.attribute(x[image], baselines=baselines, target=1).view(n, *x.shape).mean(0)
    torch.testing.assert_close(explainer.input_attribution(x, 1), theirs.detach(), rtol=1e-5, atol=1e-6)


def test_smoothgrad_is_the_mean_gradient_over_its_own_noise(net):
    x = images(1)
    quiet = SmoothGrad(net, n_samples=3, sigma=0.0).input_attribution(x, 1)
    torch.testing.assert_close(quiet, Gradient(net).input_attribution(x, 1))
    few, other = (SmoothGrad(net, n_samples=4, seed=seed).input_attribution(x, 1) for seed in (0, 1))
    assert not torch.allclose(few, other)
    torch.testing.assert_close(few, SmoothGrad(net, n_samples=4, seed=0).input_attribution(x, 1))


def test_smoothgrad_halves_make_the_whole_for_an_odd_number_of_samples(net):
    # f is quadratic, so the mean gradient is known from the mean of the noise: 2 (x + mean noise)
    class Square(nn.Module):
        def forward(self, x):
            return torch.stack([(x**2).flatten(1).sum(1), x.flatten(1).sum(1)], 1)

    x = images(2, dtype=torch.float64)
    values = SmoothGrad(Square().eval(), n_samples=5).input_attribution(x, 0)
    seen = []

    class Spy(Square):
        def forward(self, x):
            seen.append(x.detach().clone())
            return super().forward(x)

    SmoothGrad(Spy().eval(), n_samples=5, batch_size=2).input_attribution(x, 0)
    points = torch.cat(seen[1:]).view(5, 2, *x.shape[1:])
    torch.testing.assert_close(values, 2 * points.mean(0))


# Invariances


@pytest.mark.parametrize("method", ALL)
def test_a_batch_gives_what_single_images_give(method, net):
    x = images(3)
    target = [1, 4, 0]
    together = short(method, net).attribute(x, target).map
    alone = torch.cat([short(method, net).attribute(x[i : i + 1], target[i]).map for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_the_inner_batch_does_not_matter(method, batch_size, net):
    x = images(2)
    expected = short(method, net).attribute(x, 1)
    found = short(method, net, batch_size=batch_size).attribute(x, 1)
    torch.testing.assert_close(found.map, expected.map, rtol=1e-4, atol=1e-6)
    assert found.check.name == expected.check.name


@pytest.mark.parametrize("method", SAMPLED)
def test_no_call_is_larger_than_the_batch(method, net):
    sizes = []
    net.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    short(method, net, batch_size=4).attribute(images(3), 1)
    assert max(sizes) <= 4


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    height=st.integers(3, 10),
    width=st.integers(3, 10),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    method=st.sampled_from(ALL),
)
def test_any_shape_and_precision(n, channels, height, width, dtype, method):
    net = small_net(channels).to(dtype)
    x = images(n, channels, (height, width), dtype=dtype)
    result = short(method, net).attribute(x)
    assert result.map.shape == (n, height, width)
    assert result.map.dtype == dtype
    assert torch.isfinite(result.map).all()
    assert result.layer is None
    assert 0 <= result.normalized.min() <= result.normalized.max() <= 1


@pytest.mark.parametrize("method", ALL)
def test_channels_last_and_bf16_autocast(method, net):
    x = images(2)
    plain = short(method, net).attribute(x, 1).map
    last = short(method, net).attribute(x.to(memory_format=torch.channels_last), 1).map
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = short(method, net).attribute(x, 1).map
    assert torch.isfinite(low).all()
    assert torch.corrcoef(torch.stack([low.flatten().float(), plain.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("method", ALL)
def test_works_under_no_grad_and_inference_mode(method, net):
    expected = short(method, net).attribute(images(1), 1).map
    with torch.no_grad():
        torch.testing.assert_close(short(method, net).attribute(images(1), 1).map, expected)
    with torch.inference_mode():
        found = short(method, net).attribute(images(1), 1)
    torch.testing.assert_close(found.map.clone(), expected)


@pytest.mark.parametrize("method", ALL)
def test_the_model_and_the_generators_are_left_as_they_came(method, net):
    net.train()
    net[0].weight.requires_grad_(False)
    net[3].weight.grad = torch.ones_like(net[3].weight)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)
    draw = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.warns(UserWarning, match="training mode"):
        short(method, net).attribute(images(2), 1)
    assert net.training
    assert all(module.training for module in net.modules())
    assert not net[0].weight.requires_grad
    assert net[3].weight.requires_grad
    assert torch.equal(net[3].weight.grad, torch.ones_like(net[3].weight))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draw[0])
    assert (np.random.get_state()[1] == draw[1]).all()


def test_a_network_that_flattens_with_view_works():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 2)

        def forward(self, x):
            x = F.relu(self.conv(x))
            return self.head(x.view(x.shape[0], -1))

    net = Viewed().eval()
    x = images(2, size=(8, 8))
    theirs = captum_attr.Saliency(net).attribute(x, target=1, abs=False)
    torch.testing.assert_close(Gradient(net).input_attribution(x, 1), theirs)


def test_a_callable_target(net):
    x = images(2)
    margin = Gradient(net).input_attribution(x, lambda logits: logits[:, 1] - logits[:, 0])
    expected = Gradient(net).input_attribution(x, 1) - Gradient(net).input_attribution(x, 0)
    torch.testing.assert_close(margin, expected, rtol=1e-4, atol=1e-6)


# The checks and the errors


@pytest.mark.parametrize("method", [Gradient, InputXGradient])
def test_a_falsified_gradient_fails_the_finite_difference(method):
    class Straight(torch.autograd.Function):
        """Rounds on the way up and pretends on the way down."""

        @staticmethod
        def forward(context, x):
            return x.sin() * 3

        @staticmethod
        def backward(context, gradient):
            return gradient * 7

    class Net(nn.Module):
        def forward(self, x):
            return Straight.apply(x.flatten(1)[:, :4])

    assert method(small_net()).attribute(images(2), 1).check.passed
    assert method(Net().eval()).attribute(images(1), 1).check.passed is False


def test_a_dead_score_is_reported():
    dead = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU()).eval()
    nn.init.constant_(dead[1].bias, -100.0)
    result = Gradient(dead).attribute(images(1, size=(2, 2)), 0)
    assert result.check.passed is False
    assert "zero everywhere" in result.check.statement
    assert (result.normalized == 0).all()


def test_a_cut_graph_is_refused():
    class Rounded(nn.Module):
        def forward(self, x):
            return x.detach().flatten(1)[:, :3]

    with pytest.raises(ModelError, match="no gradient"):
        Gradient(Rounded().eval()).attribute(images(1))


def test_gradient_shap_misses_its_expectation_by_little(net):
    result = GradientSHAP(net, n_samples=60).attribute(images(2), 1)
    assert result.check.passed
    assert max(result.notes["relative_error"]) < 0.05


def test_smoothgrad_becomes_reliable_with_more_samples(net):
    few = SmoothGrad(net, n_samples=2, sigma=1.0).attribute(images(2), 1).check
    many = SmoothGrad(net, n_samples=64, sigma=1.0).attribute(images(2), 1).check
    assert many.passed
    assert many.value > few.value


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda net: IntegratedGradients(net, n_steps=0), "n_steps"),
        (lambda net: IntegratedGradients(net, n_steps=50, max_steps=20), "max_steps"),
        (lambda net: SmoothGrad(net, sigma=-1.0), "sigma"),
        (lambda net: SmoothGrad(net, n_samples=0), "n_samples"),
        (lambda net: IntegratedGradients(net, baseline=torch.zeros(5, 5, 5)).attribute(images(1)), "baseline"),
        (lambda net: IntegratedGradients(net, baseline=float("nan")).attribute(images(1)), "baseline"),
        (lambda net: GradientSHAP(net, baselines=torch.zeros(2, 3, 4, 4)).attribute(images(1)), "baselines"),
        (lambda net: Gradient(net, batch_size=0).attribute(images(1)), "batch_size"),
        (lambda net: Gradient(net).input_attribution(images(1)[0]), "inputs"),
        (lambda net: Gradient(net).attribute(images(1), 5), "target"),
    ],
)
def test_what_is_not_allowed_is_named(make, word, net):
    with pytest.raises(InputError, match=f"'{word}'"):
        make(net)
