"""The layer that a CAM is drawn on: found for every family of networks, named, and refused with a reason."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from striate.engine.load import load_model
from striate.errors import LayerError
from striate.explain.target_layer import Grid, find_target_layer, grid_of


def awake(model: nn.Module) -> nn.Module:
    """Give an untrained network a classifier that is not all zeros, as some are initialised."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


class Functional(nn.Module):
    """A user's network: functional ReLUs, functional pooling, no module after the convolutions but the head."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        return self.head(F.relu(self.second(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("name", "size", "layer", "kind", "grid", "prefix"),
    [
        ("resnet18", 64, "layer4", "nchw", (2, 2), 0),
        ("tf_efficientnet_lite0", 64, "bn2", "nchw", (2, 2), 0),
        ("convnext_atto", 64, "stages", "nchw", (2, 2), 0),
        ("vit_tiny_patch16_224", 224, "blocks.11.norm1", "tokens", (14, 14), 1),
        ("deit_tiny_distilled_patch16_224", 224, "blocks.11.norm1", "tokens", (14, 14), 2),
        ("swin_tiny_patch4_window7_224", 224, "norm", "nhwc", (7, 7), 0),
    ],
)
def test_timm_families(name: str, size: int, layer: str, kind: str, grid: tuple[int, int], prefix: int) -> None:
    found = find_target_layer(awake(timm.create_model(name, num_classes=7)), torch.rand(2, 3, size, size))
    assert (found.name, found.kind, found.to_grid) == (layer, kind, Grid(kind, grid, prefix))


def test_register_tokens_have_no_place_in_the_image() -> None:
    model = awake(timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, num_classes=7, depth=2))
    found = find_target_layer(model, torch.rand(1, 3, 56, 56))
    assert (found.name, found.to_grid) == ("blocks.1.norm1", Grid("tokens", (4, 4), 5))


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [("resnet18", "layer4", "nchw"), ("vgg11", "features", "nchw"), ("googlenet", "inception5b", "nchw"),
     ("vit_b_32", "encoder.layers.encoder_layer_11.ln_1", "tokens"), ("swin_t", "norm", "nhwc")],
)  # fmt: skip
def test_torchvision_families(name: str, layer: str, kind: str) -> None:
    options = {"init_weights": False} if name in {"googlenet", "vgg11"} else {}
    model = awake(getattr(torchvision.models, name)(weights=None, **options))
    size = 224 if name in {"vit_b_32", "swin_t"} else 64
    found = find_target_layer(model, torch.rand(1, 3, size, size))
    assert (found.name, found.kind) == (layer, kind)


@pytest.mark.parametrize("channels", [1, 3])
def test_functional_and_greyscale_networks(channels: int) -> None:
    found = find_target_layer(awake(Functional(channels)), torch.rand(1, channels, 20, 31))
    assert (found.name, found.to_grid) == ("second", Grid("nchw", (10, 15)))


def test_a_vision_models_layers_are_named_as_its_owner_names_them() -> None:
    model = load_model(awake(Functional()))
    assert find_target_layer(model, torch.rand(1, 3, 16, 16)).name == "second"
    assert find_target_layer(model, torch.rand(1, 3, 16, 16), "first").module is model.network.first


@pytest.mark.parametrize("grid", [Grid("nchw", (2, 3)), Grid("nhwc", (2, 3)), Grid("tokens", (2, 3), 2)])
def test_grid_there_and_back(grid: Grid) -> None:
    shape = {"nchw": (4, 5, 2, 3), "nhwc": (4, 2, 3, 5), "tokens": (4, 8, 5)}[grid.kind]
    output = torch.rand(shape)
    assert grid(output).shape == (4, 5, 2, 3)
    assert torch.equal(grid.back(grid(output), output), output)


def test_the_images_proportions_tell_the_layouts_apart() -> None:
    assert grid_of(torch.rand(1, 7, 7, 768), (224, 224)) == Grid("nhwc", (7, 7))
    assert grid_of(torch.rand(1, 768, 7, 10), (224, 320)) == Grid("nchw", (7, 10))
    assert grid_of(torch.rand(1, 197, 64), (224, 224)) == Grid("tokens", (14, 14), 1)
    assert grid_of(torch.rand(1, 70, 64), (224, 320)) == Grid("tokens", (7, 10), 0)
    for none in (torch.rand(1, 512, 1, 1), torch.rand(1, 10), torch.rand(1, 23, 8), (torch.rand(1),)):
        assert grid_of(none, (224, 224)) is None


def test_errors_say_what_to_do() -> None:
    model, x = awake(timm.create_model("resnet18", num_classes=7)), torch.rand(1, 3, 64, 64)
    with pytest.raises(LayerError, match="Did you mean 'layer4'"):
        find_target_layer(model, x, "layer44")
    with pytest.raises(LayerError, match=r"'fc' returns \(1, 7\).*Try 'layer4'"):
        find_target_layer(model, x, "fc")
    with pytest.raises(LayerError, match="'global_pool' returns"):
        find_target_layer(model, x, "global_pool")
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(LayerError, match="'unused' was not called"):
        find_target_layer(model, x, "unused")
    with pytest.raises(LayerError, match="not a layer of the model"):
        find_target_layer(model, x, nn.Conv2d(3, 3, 1))


def test_a_class_token_vits_last_output_is_refused() -> None:
    model = awake(timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=7))
    with pytest.raises(LayerError, match=r"no gradient at its patch tokens.*Try 'blocks.1.norm1'"):
        find_target_layer(model, torch.rand(1, 3, 224, 224), "blocks.1")


def test_no_gradient_at_all_is_said() -> None:
    class Cut(Functional):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(LayerError, match="No gradient"):
        find_target_layer(awake(Cut()), torch.rand(1, 3, 16, 16))
    flat = Functional()
    nn.init.zeros_(flat.head.weight)
    with pytest.raises(LayerError, match="all zeros"):
        find_target_layer(flat, torch.rand(1, 3, 16, 16))
    with pytest.raises(LayerError, match="A CAM needs a convolution"):
        find_target_layer(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(1, 3, 4, 4))


def test_what_is_no_tensor_is_said() -> None:
    class Dictionary(Functional):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"logits": super().forward(x)}

    with pytest.raises(LayerError, match=r"returns a dict.*logits alone"):
        find_target_layer(Dictionary(), torch.rand(1, 3, 16, 16))


def test_works_under_no_grad_and_leaves_the_model_alone() -> None:
    model = Functional().train()
    with torch.no_grad():
        find_target_layer(model, torch.rand(1, 3, 16, 16))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
