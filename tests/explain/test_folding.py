"""Folded batch norms: the same scores and gradients, the network as it came, nothing folded that may not be."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from striate.explain import batching
from striate.explain.batching import Copies
from striate.explain.folding import FoldedNorms
from striate.explain.gradient import IntegratedGradients
from striate.explain.occlusion import Occlusion


def lively(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights as training does; those of a new network fold to almost nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                if values is not None:
                    values.data.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return model.eval().requires_grad_(False)


def small(bias: bool = True, affine: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=bias),
            nn.BatchNorm2d(6, affine=affine),
            nn.ReLU6(inplace=True),
            nn.Conv2d(6, 6, 3, groups=6, bias=bias),
            nn.BatchNorm2d(6, affine=affine),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
    )


class Reused(nn.Module):
    """The convolution's response goes past its batch norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        response = self.conv(images)
        return self.head((self.norm(response) + response).mean(dim=(2, 3)))


def pictures(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradient(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(model(images)[:, 1].sum(), images)[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "network",
    [
        small,
        lambda: small(bias=False),
        lambda: small(affine=False),
        lambda: lively(timm.create_model("resnet10t", num_classes=4)),
        lambda: lively(timm.create_model("tf_efficientnet_lite0", num_classes=4)),
    ],
)
def test_a_folded_network_gives_the_same_scores_and_gradients(network, layout):
    model, images = network(), pictures().contiguous(memory_format=layout)
    own, slope = model(images), gradient(model, images)
    folded = FoldedNorms(model, layout)
    assert folded
    with folded:
        assert sum(module.__dict__.get("forward") is not None for module in model.modules()) >= 2
        torch.testing.assert_close(model(images), own, rtol=1e-5, atol=1e-5 * float(own.abs().max()))
        torch.testing.assert_close(gradient(model, images), slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))
    torch.testing.assert_close(model(images), own, rtol=0, atol=0)


def test_the_network_gets_its_own_parameters_back_also_after_an_exception():
    model = small().requires_grad_(True)
    own = dict(model.named_parameters())
    with pytest.raises(RuntimeError), FoldedNorms(model):
        model(torch.zeros(1))
    after = dict(model.named_parameters())
    assert list(own) == list(after)
    assert all(after[name] is own[name] for name in own)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_what_is_hooked_computed_or_without_statistics_is_left_alone():
    hooked, computed, patched = small(), small(), small()
    hooked[0].register_forward_hook(lambda module, arguments, output: None)
    nn.utils.parametrizations.weight_norm(computed[0])
    patched[1].forward = patched[1].forward
    for model in (hooked, computed, patched):
        assert len(FoldedNorms(model)._pairs) == 1
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert not FoldedNorms(bare)


def of(model: nn.Module, images: torch.Tensor, each: int = 64) -> Copies:
    return Copies.of(model, images, 1, "test", None, backward=True, each=each)


def folds(copies: Copies) -> bool:
    """Whether a batch norm is left out inside."""
    with copies.norms:
        return any("forward" in m.__dict__ for m in copies.model.modules() if isinstance(m, nn.BatchNorm2d))


def test_copies_are_run_folded_where_there_are_many():
    model, images = small(), pictures()
    assert folds(of(model, images))
    assert not folds(of(model, images, each=2))
    assert not folds(of(model.double(), images.double()))
    with torch.autocast("cpu"):
        assert not folds(of(model.float(), images))


def test_a_response_that_is_used_twice_is_seen_and_nothing_is_folded():
    torch.manual_seed(0)
    model = lively(Reused())
    assert FoldedNorms(model)  # by the order of its modules it looks as if it could be
    copies = of(model, pictures())
    assert not folds(copies)
    torch.testing.assert_close(copies.scores(pictures(), copies.every), model(pictures())[:, 1])


@pytest.mark.parametrize(
    "method",
    [lambda model: IntegratedGradients(model, n_steps=40), lambda model: Occlusion(model, window=6, stride=5)],
)
def test_maps_are_those_of_the_network_as_it_is(method, monkeypatch):
    model, images = lively(timm.create_model("resnet10t", num_classes=4)), pictures()
    fast = method(model).attribute(images, 1).map
    monkeypatch.setattr(batching, "_MANY", {False: 10**9, True: 10**9})
    slow = method(model).attribute(images, 1).map
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-3 * float(slow.abs().max()))
    assert not torch.equal(fast, slow)
