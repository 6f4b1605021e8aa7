"""Crops around a window: the scores of whole copies, whatever the geometry; whole copies where crops cannot do."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import striate
from striate.engine.state import inspected
from striate.explain import windowed
from striate.explain.batching import Copies
from striate.explain.occlusion import Occlusion
from striate.explain.windowed import Windowed


def head(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 5)]


def scores(
    model: nn.Module, images: Tensor, window: tuple[int, int], corners: Tensor
) -> tuple[Tensor, Tensor, Windowed]:
    """Scores by crops and by whole copies, of every window in every image."""
    with inspected(model.eval()):
        copies = Copies.of(model, images, 1, "test", None, backward=False, each=len(corners))
        shown = torch.rand(images.shape, generator=torch.Generator().manual_seed(5), dtype=images.dtype)
        found = Windowed(copies, shown, window, corners)
        rows = torch.arange(len(images)).repeat_interleave(len(corners))
        places = corners.repeat(len(images), 1)
        altered = images[rows].clone()
        for copy, image, (y, x) in zip(altered, rows.tolist(), places.tolist(), strict=True):
            there = (slice(None), slice(y, y + window[0]), slice(x, x + window[1]))
            copy[there] = shown[image][there]
        return found.scores(rows, places), copies.scores(altered, rows), found


def grid(size: tuple[int, int], stride: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(0, size[0], stride), torch.arange(0, size[1], stride))


def pictures(n: int, size: tuple[int, int], channels: int = 3) -> Tensor:
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(64, 95),
    width=st.integers(64, 95),
    kernels=st.lists(st.sampled_from([1, 2, 3, 4, 5]), min_size=1, max_size=3),
    strides=st.lists(st.sampled_from([1, 2, 3]), min_size=3, max_size=3),
    padded=st.sampled_from(["half", "none", "uneven", "dilated", "pool"]),
    window=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    n=st.integers(1, 2),
)
def test_any_geometry_gives_the_scores_of_whole_copies(height, width, kernels, strides, padded, window, n):
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for kernel, stride in zip(kernels, strides, strict=False):
        channels = 8 if layers else 3
        if padded == "uneven":
            layers.append(nn.ZeroPad2d((0, kernel // 2, kernel - 1, 1)))
        dilation = 2 if padded == "dilated" else 1
        padding = 0 if padded in {"none", "uneven"} else dilation * (kernel - 1) // 2
        layers += [nn.Conv2d(channels, 8, kernel, stride, padding, dilation), nn.BatchNorm2d(8), nn.ReLU()]
    if padded == "pool":
        layers.append(nn.MaxPool2d(3, 2, 1, ceil_mode=True))
    model = nn.Sequential(*layers, *head(8))
    fast, slow, _ = scores(model, pictures(n, (height, width)), window, grid((height, width), 9))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("tf_efficientnet_lite0", 128, ["blocks.1.0", "blocks.1.1", "blocks.2.0"]),
        ("resnet18", 160, ["layer1.0", "layer1.1"]),
        ("mobilenetv2_100", 128, ["blocks.1.0", "blocks.2.0"]),
        ("vgg11", 128, ["features.4", "features.9"]),
        ("densenet121", 192, ["features.norm0", "features.transition1.conv"]),
        ("efficientnet_b0", 128, []),  # a gate in every block
    ],
)
def test_stages_of_known_networks_are_found(name, size, layers, monkeypatch):
    monkeypatch.setattr(windowed, "_MANY", 1)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5)
    fast, slow, found = scores(model, pictures(1, (size, size)), (12, 12), grid((size, size), 50))
    assert found.layers == layers
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)


class Gated(nn.Module):
    """A gate that sees the whole image, right after the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 3), *head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.rest(x * x.mean(dim=(2, 3), keepdim=True).sigmoid())


class Shortcut(nn.Module):
    """The second convolution is one of the network's own children, and something goes past it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8))
        self.rest = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.rest(x + self.second(x))


class Placed(nn.Module):
    """Numbers of its own for every place, of the size of the image or of any."""

    def __init__(self, any_size: bool) -> None:
        super().__init__()
        self.any_size, self.place = any_size, nn.Parameter(torch.rand(8, 40, 40))
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.rest = nn.Sequential(nn.Conv2d(8, 8, 3), *head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        place = self.place[:, : x.shape[2], : x.shape[3]] if self.any_size else self.place
        return self.rest(x * place)


class Blind(nn.Module):
    """Takes what is not a number for nothing, so that it does not show what has seen it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Conv2d(3, 8, 9, padding=4), nn.Sequential(nn.Conv2d(8, 8, 3), *head(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x.nan_to_num()))


class Careful(nn.Module):
    """Refuses an image with a number that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), *head(8))

    def forward(self, x: Tensor) -> Tensor:
        assert x.isfinite().all()
        return self.net(x)


@pytest.mark.parametrize("build", [Gated, Shortcut, lambda: Placed(False), lambda: Placed(True), Blind, Careful])
def test_networks_that_crops_do_not_fit_are_run_whole_or_divided_elsewhere(build):
    torch.manual_seed(0)
    fast, slow, found = scores(build(), pictures(2, (40, 40)), (5, 6), grid((40, 40), 9))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    assert found.layers in ([], ["first"])


def test_few_windows_are_run_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head(8))
    corners = grid((60, 60), 8)
    assert scores(model, pictures(1, (60, 60)), (5, 5), corners)[2].layers
    assert scores(model, pictures(1, (60, 60)), (5, 5), corners[:20])[2].layers == []


def test_the_network_leaves_as_it_came():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *head(8)).train()
    before = [dict(module.__dict__, _forward_hooks=dict(module._forward_hooks)) for module in model.modules()]
    with pytest.warns(striate.errors.TrainModeWarning):
        result = Occlusion(model, window=6, stride=6).attribute(pictures(2, (44, 44)))
    assert result.notes["crops_up_to"]
    for module, attributes in zip(model.modules(), before, strict=True):
        assert dict(module.__dict__, _forward_hooks=dict(module._forward_hooks)) == attributes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_occlusion_gives_the_same_map_with_and_without(dtype, monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=4).to(dtype).eval()
    images = pictures(2, (83, 92)).to(dtype)
    fast = Occlusion(model, window=(14, 20), stride=(13, 20), baseline=images.flip(3)).attribute(images)
    monkeypatch.setattr(windowed, "_MANY", 10**9)
    slow = Occlusion(model, window=(14, 20), stride=(13, 20), baseline=images.flip(3)).attribute(images)
    assert fast.notes["crops_up_to"]
    assert slow.notes["crops_up_to"] == []
    torch.testing.assert_close(fast.map, slow.map, rtol=0, atol=1e-4 * float(slow.map.abs().max()))


def test_torchscript_inside_is_run_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), torch.jit.script(nn.Sequential(nn.ReLU(), *head(8)))).eval()
    result = Occlusion(model, window=6, stride=6).attribute(pictures(1, (40, 40)))
    assert result.notes["crops_up_to"] == []


class Past(nn.Module):
    """Something goes past the second stage, and nothing past the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1))
        self.second = nn.Sequential(nn.Conv2d(16, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 16, 3, padding=1))
        self.rest = nn.Sequential(nn.MaxPool2d(4), *head(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.rest(x + self.second(x))


def test_where_something_goes_past_an_upper_layer_the_lower_ones_divide():
    torch.manual_seed(0)
    fast, slow, found = scores(Past(), pictures(2, (96, 96)), (7, 6), grid((96, 96), 19))
    assert found.layers
    assert all(layer.startswith("first") for layer in found.layers)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)


class Remembering(nn.Module):
    """Keeps statistics in eval mode, too: one in place, one as a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 3), *head(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.mean.lerp_(x.mean(dim=(0, 2, 3)), 0.1)
        self.count = self.count + x.mean(dim=(0, 2, 3))
        return self.rest(x)


def test_a_network_keeps_no_memory_of_the_probe():
    torch.manual_seed(0)
    model = Remembering()
    _, _, found = scores(model, pictures(1, (40, 40)), (5, 6), grid((40, 40), 6))
    assert found.layers
    assert all(buffer.isfinite().all() for buffer in model.buffers())
