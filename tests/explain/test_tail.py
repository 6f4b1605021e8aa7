"""The tail of a network equals the whole network with a layer's response replaced."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from striate.engine.load import load_model
from striate.engine.state import inspected
from striate.errors import InputError, LayerError, ModelError
from striate.explain.tail import Tail, respond


def whole(model: nn.Module, layer: str, images: Tensor, responses: Tensor) -> Tensor:
    """The slow twin: the whole network, with the response replaced by a hook."""
    handle = model.get_submodule(layer).register_forward_hook(lambda module, arguments, output: responses.clone())
    try:
        return model(images)
    finally:
        handle.remove()


class Tangled(nn.Module):
    """Reused and in-place ReLUs, a skip around the layer, functional steps, a module called before and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.norm = nn.ReLU(inplace=True), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.norm(self.stem(x))
        early = F.relu_(stem) + 1
        x = self.act(self.norm(self.body(self.act(early)))) + early
        return self.head(self.act(self.body(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("samples", [0, 1, [1, 0, 1, 1]])
@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [("resnet18", "layer3.0.bn1", 64), ("vgg11", "features.16", 64), ("mobilenet_v2", "features.17", 64)],
)
def test_equals_the_whole_network(name: str, layer: str, size: int, samples: int | list[int]) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "vgg11" else {}
    model = getattr(torchvision.models, name)(num_classes=6, **options).eval()
    images = torch.rand(2, 3, size, size)
    with inspected(model), torch.no_grad():
        tail = Tail(model, layer, images)
        responses = torch.randn(4, *tail.response.shape[1:])
        which = samples if isinstance(samples, int) else torch.tensor(samples)
        taken = images[torch.tensor([samples] * 4) if isinstance(samples, int) else which]
        expected = whole(model, layer, taken, responses)
        torch.testing.assert_close(tail(responses, which), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tail.output, model(images), rtol=0, atol=0)
    assert tail.exact


@pytest.mark.parametrize(
    ("name", "layer"),
    [("vit_tiny_patch16_224", "blocks.1.norm1"), ("swin_tiny_patch4_window7_224", "layers.3.blocks.0.norm1")],
)
def test_token_networks(name: str, layer: str) -> None:
    torch.manual_seed(0)
    depth = {"depth": 2} if "vit" in name else {"depths": (1, 1, 1, 1), "embed_dim": 24}
    model = timm.create_model(name, num_classes=5, **depth).eval()
    images = torch.rand(1, 3, 224, 224)
    with inspected(model), torch.no_grad():
        tail = Tail(model, layer, images)
        responses = torch.randn(3, *tail.response.shape[1:])
        expected = whole(model, layer, images.expand(3, -1, -1, -1), responses)
        torch.testing.assert_close(tail(responses, 0), expected, rtol=1e-4, atol=1e-5)
    assert tail.exact


@pytest.mark.parametrize("layer", ["stem", "norm", "act", "body"])
def test_reused_modules_and_in_place_operations(layer: str) -> None:
    torch.manual_seed(0)
    model = Tangled().eval()
    model.norm.running_mean.normal_()
    images = torch.rand(2, 3, 8, 8)
    with inspected(model), torch.no_grad():
        tail = Tail(model, layer, images)
        # A layer that is called several times is replaced in its last call.
        calls = {"stem": 1, "norm": 2, "act": 3, "body": 2}[layer]
        responses = torch.randn(2, *tail.response.shape[1:])
        seen = []

        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            seen.append(None)
            return responses.clone() if len(seen) == calls else None

        handle = model.get_submodule(layer).register_forward_hook(hook)
        expected = model(images)
        handle.remove()
        before = responses.clone()
        torch.testing.assert_close(tail(responses), expected)
        torch.testing.assert_close(tail(responses), expected)  # nothing recorded was spoilt by the first pass
        assert torch.equal(responses, before)


def test_a_wrapper_does_not_normalise_again() -> None:
    model = load_model("torchvision:resnet18", num_classes=4)
    with inspected(model), torch.no_grad():
        tail = Tail(model, "layer4", torch.rand(1, 3, 32, 32))
        assert tail._plan.start.module is model.network
        expected = model.network.fc(torch.ones(3, 512))
        torch.testing.assert_close(tail(torch.ones(3, 512, 1, 1), 0), expected)


def test_gradients_flow_to_the_responses() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).eval()
    with inspected(model):
        tail = Tail(model, "layer4", torch.rand(2, 3, 32, 32))
        responses = tail.response.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(tail(responses)[:, 1].sum(), responses)
    expected = model.fc.weight[1].detach() / gradient[0, 0].numel()
    torch.testing.assert_close(gradient[0, :, 0, 0], expected)


def test_falls_back_to_the_whole_network_and_says_so() -> None:
    torch.manual_seed(0)

    class Passing(nn.Module):
        """Writes into its caller's tensor, which a replay does not repeat."""

        def forward(self, x: Tensor, store: list[Tensor]) -> Tensor:
            store.append(x * 2)
            return x

    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.passing, self.second, self.head = Passing(), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            store: list[Tensor] = []
            x = self.second(self.passing(x, store))
            return self.head(x.mean(dim=(2, 3))) + sum(item.mean(dim=(1, 2, 3))[:, None] for item in store)

    model = Stored().eval()
    images = torch.rand(2, 3, 4, 4)
    with inspected(model), torch.no_grad():
        tail = Tail(model, "second", images)
        assert not tail.exact
        assert tail.reason
        responses = torch.randn(3, 4, 4, 4)
        expected = whole(model, "second", images[[1, 1, 1]], responses)
        torch.testing.assert_close(tail(responses, 1), expected)


def test_a_network_that_draws_at_random_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2)).eval()
    model.forward = lambda x: F.dropout(nn.Sequential.forward(model, x), 0.5, training=True)  # type: ignore[method-assign]
    with inspected(model), pytest.raises(ModelError, match="another output for the same image"):
        Tail(model, "0", torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize("inplace", [False, True])
def test_an_in_place_relu_does_not_falsify_the_response(inplace: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(64, 2)).eval()
    images = torch.rand(2, 3, 4, 4)
    with inspected(model):
        output, leaf, _ = respond(model, "0", images)
        (gradient,) = torch.autograd.grad(output[:, 0].sum(), leaf)
    pre = F.conv2d(images, model[0].weight, model[0].bias).detach()
    torch.testing.assert_close(leaf.detach(), pre)
    assert (leaf < 0).any()
    torch.testing.assert_close(gradient, (pre > 0) * model[3].weight[0].detach().view(4, 4, 4))


def test_below_the_layer_no_graph_is_built() -> None:
    model = torchvision.models.resnet18(num_classes=4).eval()
    with inspected(model):
        output, leaf, _ = respond(model, "layer4", torch.rand(1, 3, 32, 32))
    assert leaf.is_leaf
    names, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        names.add(node.name())
        waiting += [following for following, _ in node.next_functions if following is not None]
    assert not any("Convolution" in name for name in names)


class Heavy(nn.Module):
    """Weights of which some are many times the responses that they meet; may insist on one layout."""

    def __init__(self, *, view: bool) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 96, 3, stride=2)
        self.heavy, self.head = nn.Conv2d(96, 96, 3, padding=1), nn.Linear(96 * 7 * 7, 5)
        self.view = view

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.wide(self.stem(input=images)))
        if self.view:  # takes the classical layout only
            x = x.view(len(x), -1).view_as(x)
        return self.head(F.relu(self.heavy(x)).flatten(1))


@pytest.mark.parametrize("layer", ["stem", "wide", "heavy"])
@pytest.mark.parametrize("view", [False, True])
def test_the_layout_changes_no_response_and_no_gradient(layer: str, view: bool) -> None:
    torch.manual_seed(0)
    model, images = Heavy(view=view).eval(), torch.rand(2, 3, 16, 16)
    with inspected(model):
        seen = respond(model, layer, images)
        assert seen.layout == (torch.contiguous_format if view else torch.channels_last)
        assert not any("forward" in module.__dict__ for module in model.modules())
        own = []
        handle = model.get_submodule(layer).register_forward_hook(lambda module, given, output: own.append(output))
        output = model(images.clone().requires_grad_())
        handle.remove()
        torch.testing.assert_close(seen.output, output)
        torch.testing.assert_close(seen.leaf, own[0])
        gradients = [
            torch.autograd.grad(of[:, 1].sum(), at)[0] for of, at in ((seen.output, seen.leaf), (output, own[0]))
        ]
    torch.testing.assert_close(*gradients)


def test_the_model_leaves_as_it_came_also_after_an_exception() -> None:
    class Failing(Tangled):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyError("mine")

    model = Failing()
    own = model.stem.forward = lambda x: nn.Conv2d.forward(model.stem, x)  # type: ignore[method-assign]
    with inspected(model, warn=False), pytest.raises(KeyError, match="mine"):
        Tail(model, "body", torch.rand(1, 3, 8, 8))
    assert model.stem.forward is own
    assert all("forward" not in module.__dict__ for module in model.modules() if module is not model.stem)


def test_errors() -> None:
    model = Tangled().eval()
    images = torch.rand(2, 3, 8, 8)
    with inspected(model), torch.no_grad():
        with pytest.raises(LayerError, match="no layer"):
            Tail(model, "boddy", images)
        with pytest.raises(LayerError, match="whole model"):
            Tail(model, model, images)
        model.unused = nn.ReLU()
        with pytest.raises(LayerError, match="was not called"):
            respond(model, "unused", images)
        tail = Tail(model, "body", images)
        with pytest.raises(InputError, match="responses"):
            tail(torch.rand(3, 4, 8, 8))
        with pytest.raises(InputError, match="responses"):
            tail(torch.rand(2, 5, 8, 8))
