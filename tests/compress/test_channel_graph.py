"""The channel graph: what it finds, what it leaves alone and why, and that cropping by it is masking."""

from __future__ import annotations

import types

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from striate.compress.density import layer_density
from striate.compress.edit import EQUAL, crop_channels, equality_check, first_channels, mask_channels, set_widths
from striate.compress.graph import channel_graph
from striate.engine.load import load_model
from striate.engine.macs import count_macs
from striate.engine.packages import find
from striate.engine.resize import size_changes
from striate.errors import CheckError, InputError, ModelError
from striate.models.cifar_resnet import CifarResNet
from striate.models.micro import MobileMicro, ResNetMicro
from striate.models.mini import densenet_mini, inception_mini
from striate.models.tiny import TinyAlex, TinyMobile
from striate.testing import left_as_it_came


class Grouped(nn.Module):
    """A grouped convolution between 1 x 1 ones, in a residual block, with a group norm elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1 = nn.Conv2d(16, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 16, 3, padding=1, groups=4, bias=False)
        self.conv3 = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv3(F.relu(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Shuffled(nn.Module):
    """A ShuffleNetV2 unit: the channels are split, one half goes through a branch, then they are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.branch = nn.Sequential(
            nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1),
        )  # fmt: skip
        self.last = nn.Conv2d(12, 20, 1)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.stem(x).chunk(2, dim=1)
        x = torch.cat([one, self.branch(two)], dim=1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Branchy(nn.Module):
    """Concatenation, a reused layer, a layer scale, a gate, PReLU, a transposed convolution, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.same = nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 10, 1)
        self.act = nn.PReLU(10)
        self.scale = nn.Parameter(torch.full((18, 1, 1), 0.5))
        self.squeeze, self.excite = nn.Linear(18, 4), nn.Linear(4, 18)
        self.up = nn.ConvTranspose2d(18, 6, 2, stride=2)
        self.fc = nn.Linear(6 * 16, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.same(F.relu(self.same(x))))
        x = torch.cat([x, self.act(self.side(x))], dim=1) * self.scale
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        x = F.adaptive_avg_pool2d(self.up(x), 4).flatten(1)
        return self.head(F.relu(self.fc(x)))


class Fixed(nn.Module):
    """A width as a number in the code: it can become narrower, not wider, and the slice of it not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)).view(-1, 8))


class Opaque(nn.Module):
    """A convolution whose weight is computed, an attention, and a mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1))
        self.next = nn.Conv2d(8, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.next(F.relu(self.conv(x))).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x)[0].mean(1)
        return self.head(F.gelu(self.hidden(x)))


class Aux(nn.Module):
    """A second head that runs in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.aux = nn.Linear(8, 5)
        self.conv = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.dropout(F.relu(self.stem(x)), 0.1, self.training)
        out = self.head(self.conv(x).mean((2, 3)))
        return (out, self.aux(x.mean((2, 3)))) if self.training else out


SMALL = {
    "residual": lambda: ResNetMicro((8, 16, 24), (2, 2, 2)),
    "inverted residual with gates": lambda: MobileMicro((8, 12, 16)),
    "depthwise separable": TinyMobile,
    "plain with flattening": TinyAlex,
    "concatenated": lambda: densenet_mini(3),
    "parallel": lambda: inception_mini(3),
    "grouped": Grouped,
    "shuffled": Shuffled,
    "branchy": Branchy,
}


def some_channels(graph, generator, low=0.3):
    """Keep a random part of every group that can be compared with a mask."""
    keep = {}
    for group in graph.groups:
        if not group.mixed:
            run = group.size // group.multiple
            n = max(1, int(run * generator.uniform(low, 1)))
            chosen = [np.sort(generator.choice(run, n, replace=False)) + run * i for i in range(group.multiple)]
            keep[group.index] = np.concatenate(chosen)
    return keep


def images(side=32):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
def test_the_cropped_network_is_the_masked_one(name):
    torch.manual_seed(0)
    model, x = SMALL[name]().train(), images()
    graph = channel_graph(model, x)
    assert graph.macs == count_macs(model, x[:1])
    keep = some_channels(graph, np.random.default_rng(0))
    with left_as_it_came(model):
        cropped = crop_channels(model, graph, keep, x)
    check = equality_check(model, graph, keep, x)
    assert check.passed
    assert check.value < 1e-12
    assert cropped.training
    sizes = [sum(p.numel() for p in network.parameters()) for network in (cropped, model)]
    assert sizes[0] < sizes[1]
    with torch.no_grad():
        masked = mask_channels(model, graph, keep).eval()(x)
        torch.testing.assert_close(cropped.eval()(x), masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_any_widths_run_and_weigh_what_the_graph_says(name):
    model, x = SMALL[name](), images()
    graph = channel_graph(model, x)
    widths = {group.index: group.multiple * (1 + 2 * group.size // group.multiple // 3) for group in graph.groups}
    changed = set_widths(model, graph, widths, x, seed=1)
    weights = sum(changed.get_submodule(layer).weight.numel() for layer in graph.weighted)
    assert weights == round(graph.weights_at(widths))
    assert count_macs(changed, x[:1]) == round(graph.macs_at(widths))
    assert torch.isfinite(changed.eval()(x)).all()
    again = set_widths(model, graph, widths, x, seed=1)
    for one, two in zip(changed.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("library", "name", "side"),
    [
        ("torchvision", "resnet18", 32),
        ("torchvision", "resnet50", 32),
        ("torchvision", "resnext50_32x4d", 32),
        ("torchvision", "mobilenet_v2", 32),
        ("torchvision", "mobilenet_v3_small", 32),
        ("torchvision", "shufflenet_v2_x0_5", 32),
        ("torchvision", "regnet_y_400mf", 32),
        ("torchvision", "squeezenet1_1", 64),
        ("timm", "tf_efficientnet_lite0", 32),
        ("timm", "ghostnet_100", 32),
        ("timm", "ecaresnet26t", 32),
        ("timm", "mixnet_s", 32),
        ("timm", "convnext_atto", 32),
        ("timm", "nf_resnet26", 32),
        ("timm", "repvgg_a0", 32),
    ],
)
def test_published_networks(library, name, side):
    """Each about a third of a second, on images much smaller than published."""
    torch.manual_seed(0)
    build = torchvision.models.get_model if library == "torchvision" else timm.create_model
    model, x = build(name), images(side)
    graph = channel_graph(model, x)
    keep = some_channels(graph, np.random.default_rng(1))
    check = equality_check(model, graph, keep, x)
    assert check.passed
    assert check.value <= EQUAL
    assert bool(keep) != (name == "nf_resnet26")  # standardised weights: a mask is another network everywhere


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["grouped", "shuffled", "branchy", "residual"]))
def test_any_choice_of_channels(seed, name):
    model = SMALL[name]()
    x = images(12)
    graph = channel_graph(model, x)
    check = equality_check(model, graph, some_channels(graph, np.random.default_rng(seed), low=0.0), x)
    assert check.passed or "the same to any image" in check.statement  # so few channels that all is silent


@pytest.mark.skipif(find("mobilenet-v2") is None, reason="MobileNetV2's weights: striate data fetch mobilenet-v2")
def test_the_check_can_tell_images_apart_also_on_learned_weights():
    model, x = load_model("mobilenet-v2").network, images(64)
    graph = channel_graph(model, x)
    halves = first_channels(graph, {group.index: group.size // 2 for group in graph.groups})
    assert equality_check(model, graph, halves, x).passed
    wrong = {index: channels + (index == 3) for index, channels in halves.items()}
    cut = crop_channels(model.double(), graph, wrong, x, check=False).eval()
    with torch.no_grad():
        assert not torch.allclose(cut(x.double()), mask_channels(model, graph, halves).eval()(x.double()))


def test_a_network_that_says_the_same_of_every_image_proves_nothing():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    model[0].bias.data = torch.linspace(-9, -8, 8)
    check = equality_check(model, channel_graph(model, images(6)), {0: [0, 1]}, images(6))
    assert check.passed is None
    assert "the same to any image" in check.statement


def test_groups_of_a_residual_network():
    graph = channel_graph(CifarResNet(20, shortcut="pad"), images())
    trunk = [group for group in graph.groups if group.joined]
    inner = [group for group in graph.groups if not group.joined]
    assert [group.size for group in inner] == [16] * 3 + [32] * 3 + [64] * 3
    assert inner[0].writers == ("blocks.0.conv1",)
    assert inner[0].readers == ("blocks.0.conv2",)
    assert [group.size for group in trunk] == [16, 32, 64]
    assert all(group.mixed for group in trunk)  # zero-padded shortcuts
    assert not any(group.mixed for group in inner)
    assert (graph.weights, graph.macs) == (268_336, 40_551_040)
    assert graph.fixed == {"fc": "the network's output"}


def test_groups_of_an_inverted_residual_follow_the_depthwise_convolution():
    graph = channel_graph(torchvision.models.mobilenet_v2(), images())
    group = next(group for group in graph.groups if "features.3.conv.0.0" in group.writers)
    assert group.writers == ("features.3.conv.0.0", "features.3.conv.1.0")
    assert group.readers == ("features.3.conv.2",)
    assert graph.layers["features.3.conv.1.0"].depthwise


def test_a_grouped_convolution_asks_for_multiples():
    model, x = Grouped(), images(8)
    graph = channel_graph(model, x)
    wide = next(group for group in graph.groups if group.writers == ("conv1",))
    assert wide.multiple == 4
    with pytest.raises(InputError, match="even over 4 runs of 6 channels"):
        crop_channels(model, graph, {wide.index: [0, 1, 2, 3]}, x)
    with pytest.raises(InputError, match="multiple of 4"):
        set_widths(model, graph, {wide.index: 6}, x)
    narrow = crop_channels(model, graph, first_channels(graph, {wide.index: 8}), x)
    assert (narrow.conv2.in_channels, narrow.conv2.groups, tuple(narrow.conv2.weight.shape)) == (8, 4, (16, 2, 3, 3))


def test_split_and_shuffled_channels_stay_and_the_graph_says_why():
    graph = channel_graph(Shuffled(), images(8))
    assert {group.writers for group in graph.groups} == {("branch.0", "branch.3"), ("last",)}
    assert graph.fixed["stem"] == "split along channels in the network"
    assert "split" in graph.fixed["branch.5"]


def test_layers_that_share_one_weight_stay():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.stem = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(3, 6, 1)
            self.two.weight = self.one.weight
            self.hidden, self.head = nn.Linear(6, 12), nn.Linear(12, 5)

        def forward(self, x):
            return self.head(F.gelu(self.hidden(self.two(self.one(self.stem(x))).mean((2, 3)))))

    graph = channel_graph(Tied(), images(6))
    assert [group.writers for group in graph.groups] == [("hidden",)]
    assert graph.fixed["one"] == graph.fixed["two"] == "one and two share one weight"


def test_what_is_not_understood_stays():
    model = Opaque()
    graph = channel_graph(model, images(6))
    assert [group.writers for group in graph.groups] == [("hidden",)]
    assert "MultiheadAttention" in graph.fixed["next"]
    assert "conv" not in graph.weighted
    assert equality_check(model, graph, {0: [1, 2, 5]}, images(6)).passed


def test_layers_of_train_mode_are_seen_too():
    model, x = Aux(), images(6)
    graph = channel_graph(model, x)
    assert graph.unused == ()
    assert graph.weights == graph.weights_at({})  # the auxiliary head is not at work in eval mode
    cropped = crop_channels(model, graph, {0: [0, 3, 4]}, x).train()
    assert cropped.aux.in_features == 3
    assert [tuple(out.shape) for out in cropped(x)] == [(2, 5), (2, 5)]


def test_a_bias_that_stands_by_itself_joins_nothing():
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.bias = nn.Conv2d(3, 8, 1), nn.Linear(8, 2), nn.Parameter(torch.randn(8, 1, 1))

        def forward(self, x):
            return self.head((self.stem(x) + self.bias).mean((2, 3)))

    model, x = Biased(), images(6)
    graph = channel_graph(model, x)
    assert not graph.groups[0].joined
    assert equality_check(model, graph, {0: [1, 4]}, x).passed
    assert crop_channels(model, graph, {0: [1, 4]}, x).bias.flatten().tolist() == model.bias.flatten()[[1, 4]].tolist()


def test_what_never_runs_is_named():
    model = ResNetMicro((4, 8))
    model.spare = nn.Linear(8, 2)
    assert channel_graph(model, images()).unused == ("spare",)


def test_a_width_in_the_code_is_found_out():
    model, x = Fixed(), images(6)
    graph = channel_graph(model, x)
    with pytest.raises(CheckError, match="does not run"):
        crop_channels(model, graph, {0: [0, 1, 2]}, x)
    with pytest.raises(CheckError, match="as a number"):
        set_widths(model, graph, {0: 5}, x)


def test_normalisation_over_channels_is_another_network_when_cropped():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.conv = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.conv(self.norm(self.stem(x))).mean((2, 3)))

    model, x = Normed(), images(6)
    graph = channel_graph(model, x)
    mixed = next(group for group in graph.groups if group.writers == ("stem",))
    assert mixed.mixed
    assert mixed.multiple == 2
    check = equality_check(model, graph, {mixed.index: [0, 1, 4, 5]}, x)
    assert check.passed is None
    assert "normalisation" in check.statement
    cropped = crop_channels(model, graph, {mixed.index: [0, 1, 4, 5]}, x)
    assert cropped.norm.num_channels == 4


@pytest.mark.parametrize(
    ("keep", "words"),
    [({99: [0]}, "from 0 to"), ({0: []}, "at least one"), ({0: [3, 1]}, "ascending"), ({0: [0, 400]}, "from 0 to 7")],
)
def test_impossible_channels_are_refused(keep, words):
    model, x = ResNetMicro((8, 16)), images(8)
    graph = channel_graph(model, x)
    for call in (crop_channels, mask_channels, equality_check):
        with pytest.raises(InputError, match=words):
            call(model, graph, keep, *[] if call is mask_channels else [x])


def test_a_network_that_does_not_run_says_so():
    with pytest.raises(ModelError, match="could not be followed"):
        channel_graph(ResNetMicro((4,)), torch.zeros(1, 5, 8, 8))
    with pytest.raises(ModelError, match="batch of images"):
        channel_graph(ResNetMicro((4,)), torch.zeros(8))


def test_a_network_that_asks_for_values_is_run_in_earnest():
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

        def forward(self, x):
            y = self.conv(x)
            return self.head(y.mean((2, 3))) * (1 if y.mean().item() > -1e9 else 2)

    assert [group.size for group in channel_graph(Asking(), images(6)).groups] == [8]


def test_the_graph_leaves_the_network_as_it_came():
    model = ResNetMicro((4, 8))
    handle = model.stem.register_forward_hook(lambda *_: pytest.fail("a person's hook ran"))
    with left_as_it_came(model):
        channel_graph(model, images(8))
    handle.remove()


def test_the_differences_in_size_rebuild_the_network():
    from striate.engine.resize import resize

    model, x = MobileMicro((8, 12, 16)), images()
    graph = channel_graph(model, x)
    cropped = crop_channels(model, graph, some_channels(graph, np.random.default_rng(0)), x)
    rebuilt = resize(MobileMicro((8, 12, 16)), size_changes(model, cropped))
    rebuilt.load_state_dict(cropped.state_dict())
    assert torch.equal(rebuilt.eval()(x), cropped.eval()(x))
    assert size_changes(rebuilt, cropped) == {"layers": {}, "tensors": {}}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    model, x = MobileMicro((8, 12, 16)).cuda(), images()
    graph = channel_graph(model, x)
    keep = some_channels(graph, np.random.default_rng(0))
    assert next(crop_channels(model, graph, keep, x).parameters()).is_cuda
    assert equality_check(model, graph, keep, x).passed


class Sequence(nn.Module):
    """Modules one after the other, then a mean over places and a head."""

    def __init__(self, *modules: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*modules), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_work_on_windows_that_stand_in_the_batch_is_counted_in_all_of_them():
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.mlp = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            n = len(x)
            x = self.stem(x).unflatten(2, (4, 4)).movedim(2, 1).flatten(0, 1)  # rows of pixels as images
            return self.head(self.mlp(self.conv(x).movedim(1, -1)).unflatten(0, (n, 4)).mean((1, 2, 3)))

    model, x = Windows(), images(16)
    graph = channel_graph(model, x)
    assert graph.layers["conv"].macs == 16 * 16 * 64
    assert graph.macs == count_macs(model, x[:1])


@pytest.mark.parametrize("each", [1, 2])
def test_a_transposed_depthwise_convolution_is_cropped_with_its_multiplier(each):
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8 * each, 2, groups=8), nn.ReLU()
    model = Sequence(*body, nn.Conv2d(8 * each, 12, 1))
    graph = channel_graph(model, images(8))
    cropped = crop_channels(model, graph, {0: [1, 4, 7]}, images(8))
    assert tuple(cropped.body[2].weight.shape) == (3, each, 2, 2)
    assert equality_check(model, graph, {0: [1, 4, 7]}, images(8)).value < 1e-12


def test_pooling_a_channels_last_tensor_to_one_pixel_holds_nothing():
    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    model = Permuted()
    graph = channel_graph(model, images(8))
    assert [group.writers for group in graph.groups] == [("conv",), ("norm",)]
    assert equality_check(model, graph, {0: [0, 3], 1: [1, 2, 5]}, images(8)).passed


def test_rms_norm_is_cropped_with_its_channels():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.RMSNorm(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.norm(self.conv(x).movedim(1, -1)).mean((1, 2)))

    model = Normed()
    cropped = crop_channels(model, channel_graph(model, images(8)), {0: [0, 3, 4]}, images(8))
    assert cropped.norm.normalized_shape == (3,)
    assert cropped(images(8)).shape == (2, 2)


def test_a_network_that_does_not_run_is_refused_also_where_a_mask_would_be_something_else():
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

        def forward(self, x):
            x = self.conv(x).mean((2, 3))
            return self.head((x - x.mean(1, keepdim=True)).view(-1, 8))

    model = Written()
    graph = channel_graph(model, images(8))
    assert graph.groups[0].mixed
    with pytest.raises(CheckError, match="does not run"):
        crop_channels(model, graph, {0: [0, 1, 2]}, images(8))


def test_an_output_that_hides_its_tensors_is_refused():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return types.SimpleNamespace(logits=self.head(x))

    with pytest.raises(ModelError, match="returns SimpleNamespace, not tensors"):
        channel_graph(Hidden(), images(8))


@pytest.mark.parametrize("keep", [[False, True], [0.0, 1.5], torch.tensor([True, False])])
def test_channels_are_named_by_whole_numbers(keep):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1))
    with pytest.raises(InputError, match="ascending numbers from 0 to 1"):
        mask_channels(model, channel_graph(model, images(8)), {0: keep})


def test_a_network_on_the_meta_device_is_resized_unchecked_and_says_so():
    graph = channel_graph(Branchy().to("meta"), images())
    small = set_widths(Branchy().to("meta"), graph, {0: 3}, images())
    assert (small.same.in_channels, small.scale.device.type) == (3, "meta")
    check = equality_check(Branchy().to("meta"), graph, {0: [0, 1, 2]}, images())
    assert check.passed is None
    assert "meta device" in check.statement


def test_answers_that_are_no_numbers_are_no_proof():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    model[2].weight.data[0, 0] = float("nan")
    check = equality_check(model, channel_graph(model, images(8)), {0: [0, 1]}, images(8))
    assert check.passed is False
    assert "NaN weights" in check.statement


def test_torchscript_inside_a_network_stays_and_alone_is_refused():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU()))
    model = Sequence(nn.Conv2d(3, 8, 1), scripted, nn.Conv2d(12, 10, 1), nn.Conv2d(10, 12, 1))
    graph = channel_graph(model, images(8))
    assert [group.writers for group in graph.groups] == [("body.2",), ("body.3",)]
    assert equality_check(model, graph, {0: [1, 5, 6]}, images(8)).passed
    with pytest.raises(ModelError, match="TorchScript"):
        layer_density(scripted, torch.rand(1, 8, 4, 4), density=0.5)


def test_a_copy_of_a_network_has_hooks_of_its_own():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    copied = crop_channels(model, channel_graph(model, images(8)), {0: [0, 1]}, images(8))
    copied[0].register_forward_hook(lambda *_: None)
    assert len(copied[0]._forward_hooks) == 1
    assert all(not layer._forward_hooks for layer in (*model, copied[1], copied[2]))
