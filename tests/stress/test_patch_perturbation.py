from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.model import Preprocessing, VisionModel
from striate.errors import InputError, ModelError
from striate.layers.attention import smooth_attention
from striate.models.mini import resnet_mini
from striate.stress.corruptions import corrupt
from striate.stress.fooling import fooling_map, fooling_rate
from striate.stress.grid import PatchGrid
from striate.stress.patch_perturbation import PatchAttack, corrupt_patches, paste_cells

GRID = PatchGrid(16, 4)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=16, patch_size=4, in_chans=3, num_classes=5, embed_dim=16, depth=2, num_heads=2
    ).eval()


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return resnet_mini(3, 5).eval()


def photos(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def own_labels(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


class Bright(nn.Module):
    """Class 1 where the mean of the upper left cell exceeds 0.5, by a margin of ``gain``."""

    def __init__(self, gain: float = 100.0) -> None:
        super().__init__()
        self.gain = gain
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        score = self.gain * (x[:, :, :4, :4].mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-score, score], dim=1)


@pytest.mark.parametrize("build", [vit, cnn])
def test_pixels_outside_the_cells_are_bitwise_the_images(build: object) -> None:
    model, x = build(), photos()  # type: ignore[operator]
    for options in ({}, {"n": 3}, {"offset": (2, 1)}, {"momentum": 0.9}, {"eps": 0.1}, {"pixels": 5}):
        result = PatchAttack(model, GRID, 3, 0.1, **options).attack(x, own_labels(model, x))
        mask = GRID.mask(result.cells, result.offset).expand_as(x)
        assert torch.equal(result.x_adv[~mask], x[~mask])
        assert (result.x_adv[mask] != x[mask]).any()
        assert result.x_adv.min() >= 0
        assert result.x_adv.max() <= 1
        assert all(check.passed for check in result.checks)
        torch.testing.assert_close(result.evaluated, torch.ones(6, dtype=torch.bool))


def test_the_attack_is_sign_ascent_on_cross_entropy() -> None:
    """Two steps by hand from the same start."""
    model, x = vit(), photos(2)
    y = own_labels(model, x)
    start = PatchAttack(model, GRID, 0, cells=[5]).attack(x, y).x_adv
    ours = PatchAttack(model, GRID, 2, 0.03, cells=[5], early_stop=False).attack(x, y)
    mask, expected = GRID.mask([5]), start
    for _ in range(2):
        image = expected.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(image), y, reduction="sum"), image)
        expected = torch.where(mask, (expected + 0.03 * grad.sign()).clamp(0, 1), expected)
    torch.testing.assert_close(ours.x_adv, expected)
    assert ours.steps_used.tolist() == [2, 2]
    torch.testing.assert_close(ours.loss, F.cross_entropy(model(expected), y, reduction="none").detach())


def test_start_is_uniform_and_depends_on_the_seed_alone() -> None:
    model, x = vit(), photos(64)
    y = own_labels(model, x)
    start = PatchAttack(model, GRID, 0).attack(x, y)
    assert abs(start.content.mean() - 0.5) < 0.02
    assert abs(start.content.var() - 1 / 12) < 0.01
    again = PatchAttack(model, GRID, 0, batch_size=3).attack(x, y)
    assert torch.equal(start.content, again.content)
    assert not torch.equal(start.content, PatchAttack(model, GRID, 0).attack(x, y, seed=1).content)
    other = PatchAttack(cnn(), GRID, 0).attack(x, own_labels(cnn(), x))
    assert torch.equal(start.cells, other.cells)


def test_only_correctly_classified_images_are_attacked_and_counted() -> None:
    x = torch.zeros(4, 1, 16, 16)
    x[2:, :, :4, :4] = 1.0  # classes 0, 0, 1, 1
    result = PatchAttack(Bright(), GRID, 50, 0.1, cells=[0]).attack(x, torch.tensor([0, 1, 1, 0]))
    assert result.evaluated.tolist() == [True, False, True, False]
    assert result.success.tolist() == [True, False, True, False]
    assert result.steps_used[[1, 3]].tolist() == [0, 0]
    assert torch.equal(result.x_adv[[1, 3]], x[[1, 3]])
    assert result.loss[[1, 3]].isnan().all()
    assert result.fooling_rate == 100.0
    rate = fooling_rate(Bright(), x, result.x_adv, torch.tensor([0, 1, 1, 0]))
    assert (rate.percent, rate.n, rate.clean_accuracy) == (100.0, 2, 50.0)


def test_a_row_that_is_not_fooled_returns_its_last_content() -> None:
    x, y = torch.zeros(1, 1, 16, 16), torch.zeros(1, dtype=torch.long)
    start = PatchAttack(Bright(), GRID, 0, cells=[0]).attack(x, y).content
    x[..., :4, :4] = (start - 0.9).clamp(0, 1).view(1, 1, 4, 4)
    dark = Bright()
    dark.forward = lambda image: Bright.forward(dark, image * 0.1)  # type: ignore[method-assign]
    result = PatchAttack(dark, GRID, 3, 1 / 255, cells=[0]).attack(x, y)
    assert not result.success[0]
    torch.testing.assert_close(result.content, (start + 3 / 255).clamp(0, 1))


def test_a_cell_that_the_network_does_not_read_is_reported() -> None:
    """The self-test: no gradient reaches the patch, so that failing to fool says nothing about robustness."""
    x = torch.zeros(3, 1, 16, 16)
    result = PatchAttack(Bright(), GRID, 3, 0.1, cells=[7]).attack(x, torch.zeros(3, dtype=torch.long))
    (gradient,) = [check for check in result.checks if check.name == "gradient"]
    assert gradient.passed is False
    assert "3 of 3" in gradient.statement


def test_fooled_rows_leave_and_waiting_rows_take_their_places() -> None:
    """Whatever the batch, each row takes the same steps."""
    seen: list[int] = []

    class Counting(Bright):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    x = torch.zeros(40, 1, 16, 16)
    y = torch.zeros(40, dtype=torch.long)
    wide = PatchAttack(Counting(), GRID, 400, 1 / 255, cells=[0]).attack(x, y)
    total_wide = sum(seen) - 40
    seen.clear()
    narrow = PatchAttack(Counting(), GRID, 400, 1 / 255, cells=[0], batch_size=4).attack(x, y)
    assert max(seen) == 4
    torch.testing.assert_close(narrow.content, wide.content)
    assert torch.equal(narrow.steps_used, wide.steps_used)
    assert wide.success.all()
    assert total_wide == int(wide.steps_used.sum()) + 40  # steps + the answer that ends each row, nothing more
    assert total_wide < 40 * 400


def test_loss_rises_with_nested_cells() -> None:
    model, x = vit(), photos(8)
    y = own_labels(model, x)
    losses = [
        float(PatchAttack(model, GRID, 40, 0.05, n, early_stop=False).attack(x, y).loss.mean()) for n in (1, 2, 4, 16)
    ]
    assert losses == sorted(losses)


def test_all_cells_are_rows_of_one_attack() -> None:
    model, x = vit(), photos(2)
    y = own_labels(model, x)
    result = PatchAttack(model, GRID, 2, 0.1, cells="all").attack(x, y)
    assert result.image.tolist() == [0] * 16 + [1] * 16
    assert result.cells[:, 0].tolist() == list(range(16)) * 2
    assert result.x_adv.shape == (32, 3, 16, 16)
    assert result.map().shape == (4, 4)
    moved = PatchAttack(model, GRID, 1, 0.1, cells="all", offset=(1, 0)).attack(x, y)
    assert len(moved.cells) == 24
    assert moved.map().isnan().sum() == 4


def test_targeted_reaches_its_class() -> None:
    x = torch.zeros(2, 1, 16, 16)
    x[1, :, :4, :4] = 1.0
    result = PatchAttack(Bright(1.0), GRID, 60, 0.1, cells=[0], targeted=True).attack(x, torch.tensor([1, 1]))
    assert result.evaluated.tolist() == [True, False]  # the second is there already
    assert result.success.tolist() == [True, False]
    assert own_labels(Bright(), result.x_adv).tolist() == [1, 1]


def test_imperceptible_and_sparse_variants_keep_their_budgets() -> None:
    model, x = vit(), photos()
    y = own_labels(model, x)
    small = PatchAttack(model, GRID, 20, 0.02, n=4, eps=8 / 255, early_stop=False).attack(x, y)
    assert (small.x_adv - x).abs().max() <= 8 / 255 + 1e-7
    few = PatchAttack(model, GRID, 20, 0.1, n=2, pixels=3, early_stop=False).attack(x, y)
    changed = (few.x_adv != x).any(dim=1).flatten(1).sum(1)
    assert (changed <= 3).all()
    assert (changed > 0).all()


def test_momentum_accumulates_normalised_gradients() -> None:
    model, x = vit(), photos(2)
    y, mask = own_labels(vit(), x), GRID.mask([6])
    expected = PatchAttack(model, GRID, 0, cells=[6]).attack(x, y).x_adv
    ours = PatchAttack(model, GRID, 3, 0.02, cells=[6], momentum=0.8, early_stop=False).attack(x, y).x_adv
    velocity = torch.zeros_like(x)
    for _ in range(3):
        image = expected.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(image), y, reduction="sum"), image)
        size = (grad * mask).abs().sum(dim=(1, 2, 3), keepdim=True) / (3 * 16)
        velocity = 0.8 * velocity + grad / size
        expected = torch.where(mask, (expected + 0.02 * velocity.sign()).clamp(0, 1), expected)
    torch.testing.assert_close(ours, expected)


def test_pixel_space_through_a_model_that_normalises_inside() -> None:
    inner, x = vit(), photos()
    model = VisionModel(inner, Preprocessing((3, 16, 16), (0.4,) * 3, (0.2,) * 3))
    result = PatchAttack(model, GRID, 4, 0.1).attack(x, own_labels(model, x))
    assert 0 <= result.x_adv.min() <= result.x_adv.max() <= 1
    with pytest.raises(InputError, match="within bounds"):
        PatchAttack(inner, GRID, 4).attack((x - 0.4) / 0.2, own_labels(inner, x))


def test_the_attack_goes_through_the_smoothed_network() -> None:
    model, x = vit(), photos()
    y = own_labels(model, x)
    for module in model.modules():  # attend sharply, so that a temperature matters
        if hasattr(module, "qkv"):
            nn.init.normal_(module.qkv.weight, std=1.0)
    y = own_labels(model, x)
    plain = PatchAttack(model, GRID, 3, 0.1, early_stop=False).attack(x, y)
    with smooth_attention(model, 3.0):
        smoothed = PatchAttack(model, GRID, 3, 0.1, early_stop=False).attack(x, own_labels(model, x))
    assert not torch.equal(plain.content, smoothed.content)


def test_the_model_leaves_as_it_came() -> None:
    model, x = cnn().train(), photos()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad(), pytest.warns(match="training mode"):
        PatchAttack(model, GRID, 2, 0.1).attack(x, torch.zeros(6, dtype=torch.long))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_corrupted_cells_are_cropped_from_the_corrupted_image() -> None:
    x = photos(3)
    generator = torch.Generator().manual_seed(4)
    cells = GRID.sample(5, 3, torch.Generator().manual_seed(4))
    ours = corrupt_patches(x, "defocus_blur", 5, 5, GRID, generator)
    whole, mask = corrupt(x, "defocus_blur", 5), GRID.mask(cells).expand_as(x)
    assert torch.equal(ours[~mask], x[~mask])
    assert torch.equal(ours[mask], whole[mask])


def test_all_cells_are_imagenet_c_and_fewer_are_nested() -> None:
    x, draw = photos(3), lambda: torch.Generator().manual_seed(2)
    for kind in ("contrast", "gaussian_noise"):
        few, more, everything = (corrupt_patches(x, kind, 3, n, GRID, draw()) for n in (4, 9, 16))
        assert ((few != x) <= (more != x)).all()
        changed = more != x
        assert torch.equal(more[changed], everything[changed])
    assert torch.equal(corrupt_patches(x, "contrast", 3, 16, GRID), corrupt(x, "contrast", 3))
    assert torch.equal(
        corrupt_patches(x, "contrast", 3, [0, 1], GRID), paste_cells(x, corrupt(x, "contrast", 3), [0, 1], GRID)
    )


def test_fooling_rate_is_over_the_images_that_count() -> None:
    x = torch.zeros(4, 1, 16, 16)
    bright = torch.ones_like(x)
    y = torch.tensor([0, 0, 0, 1])
    rate = fooling_rate(Bright(), x, torch.cat([bright[:1], x[1:]]), y)
    assert rate.percent == pytest.approx(100 / 3)
    assert rate.evaluated.tolist() == [True, True, True, False]
    assert rate.interval is not None
    assert rate.interval.low < 1 / 3 < rate.interval.high
    shared = fooling_rate(Bright(), x, bright, y, evaluated=torch.tensor([True, False, False, True]))
    assert (shared.n, shared.percent) == (1, 100.0)
    none = fooling_rate(Bright(), x, bright, torch.ones(4, dtype=torch.long))
    assert none.n == 0
    assert math.isnan(none.percent)
    with pytest.raises(InputError, match="perturbed"):
        fooling_rate(Bright(), x, bright[:2], y)


def test_fooling_map_by_hand() -> None:
    cells = torch.tensor([[0, 1], [0, 2], [3, 1]])
    got = fooling_map(cells, torch.tensor([True, False, True]), PatchGrid(8, 4))
    torch.testing.assert_close(got, torch.tensor([[50.0, 100.0], [0.0, 100.0]], dtype=torch.float64))
    got = fooling_map(
        cells, torch.tensor([True, False, True]), PatchGrid(8, 4), evaluated=torch.tensor([True, False, False])
    )
    assert got[1].isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"n": 17}, "16 cells"),
        ({"n": 2, "cells": "all"}, "'n'"),
        ({"cells": "some"}, "cells"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"eps": -0.1}, "eps"),
        ({"pixels": 0}, "pixels"),
        ({"momentum": -1.0}, "momentum"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_options_are_checked_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PatchAttack(vit(), GRID, **options)  # type: ignore[arg-type]


def test_wrong_images_and_labels_are_refused() -> None:
    model, x = vit(), photos(2)
    with pytest.raises(InputError, match=r"\(N, C, 16, 16\)"):
        PatchAttack(model, GRID, 1).attack(x[..., :8], torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match="'y'"):
        PatchAttack(model, GRID, 1).attack(x, torch.zeros(3, dtype=torch.long))
    for label in (-1, 10_000):  # would count as misclassified by the model
        with pytest.raises(InputError, match="class indices from 0"):
            PatchAttack(model, GRID, 1).attack(x, torch.full((2,), label))
        with pytest.raises(InputError, match="class indices from 0"):
            fooling_rate(model, x, x, torch.full((2,), label))
    with pytest.raises(InputError, match="'evaluated'"):
        fooling_rate(model, x, x, own_labels(model, x), evaluated=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ModelError, match="returned tuple"):
        PatchAttack(lambda image: (model(image),), GRID, 1).attack(x, own_labels(model, x))
    with pytest.raises(InputError, match="'cells'"):
        PatchAttack(model, GRID, 1, cells=torch.zeros(3, 1, dtype=torch.long)).attack(x, own_labels(model, x))
    with pytest.raises(InputError, match=r"\(N, C, 16, 16\)"):
        corrupt_patches(x[..., :8], "fog", 1, 1, GRID)
    with pytest.raises(ModelError):
        PatchAttack(lambda image: torch.zeros(len(image), 2), GRID, 1).attack(x, torch.zeros(2, dtype=torch.long))
