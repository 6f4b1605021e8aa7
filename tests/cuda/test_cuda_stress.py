"""Attacks, patches and corruptions on the GPU, from images here and there, against the CPU with the same seeds."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.data.images import read_images
from striate.engine.load import load_model
from striate.errors import InputError
from striate.stress import (
    CORRUPTIONS,
    AdversarialPatch,
    PatchAttack,
    PatchGrid,
    attack_report,
    attack_selftests,
    corrupt,
    corrupt_patches,
    fgsm,
    fgsm_curve,
    fgsm_report,
    fooling_rate,
    normalisation_check,
    pgd,
)
from striate.stress.fooling import predictions
from striate.testing import check_attack, left_as_it_came, sample_network

X = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def here() -> nn.Module:
    return sample_network()


@pytest.fixture
def there(here: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(here).to(device)


@pytest.fixture(params=["images there", "images here"])
def x(request: pytest.FixtureRequest, device: torch.device) -> Tensor:
    return X.to(device) if request.param == "images there" else X


def share_apart(there: Tensor, here: Tensor) -> float:
    """Share of pixels that differ: where a gradient is all but zero, rounding may turn its sign."""
    return float(((there.cpu() - here).abs() > 1e-5).double().mean())


ATTACKS = {
    "fgsm": partial(fgsm, eps=4 / 255),
    "fgsm margin": partial(fgsm, eps=4 / 255, loss="margin"),
    "pgd linf": partial(pgd, eps=4 / 255, steps=3),
    "pgd l2": partial(pgd, eps=0.5, norm="l2", steps=3),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("labelled", [True, False])
def test_attacks(here, there, x, device, name, labelled) -> None:
    y = torch.tensor([0, 1, 2, 3, 4, 0]) if labelled else None
    wanted = ATTACKS[name](here, X, y)
    with left_as_it_came(there):
        found = ATTACKS[name](there, x, y)
    assert found.device == device
    if name == "pgd l2":
        assert float((found.cpu() - wanted).abs().max()) < 1e-3
    else:
        assert share_apart(found, wanted) < 0.01


@pytest.mark.parametrize("name", ["fgsm", "pgd linf", "pgd l2"])
def test_the_contract(there, name) -> None:
    check_attack(ATTACKS[name], model=there, eps=4 / 255 if name != "pgd l2" else None)


def test_the_random_start_is_the_same_on_every_device(here, there, x) -> None:
    """With no step taken the start itself comes back: from the default seed, and from a generator on the CPU."""
    tiny = {"eps": 8 / 255, "steps": 0}
    for generator in (lambda: None, lambda: torch.Generator().manual_seed(5)):
        wanted, found = (pgd(m, i, **tiny, generator=generator()) for m, i in ((here, X), (there, x)))
        assert torch.allclose(found.cpu(), wanted, atol=1e-7)
    assert float((wanted - X).abs().max()) > 4 / 255


def test_a_generator_on_the_device(there, device, x) -> None:
    found = [pgd(there, x, eps=0.1, steps=1, generator=torch.Generator(device).manual_seed(1)) for _ in range(2)]
    assert torch.equal(*found)
    patch = AdversarialPatch(6, 1, image_size=24, rotation=20, scale=(0.8, 1.1), init="uniform",
                             generator=torch.Generator(device).manual_seed(1))  # fmt: skip
    once, again = (patch.apply(X.to(device), generator=torch.Generator(device).manual_seed(2)) for _ in range(2))
    assert torch.equal(once, again)
    patch.fit(there, x, steps=2, generator=torch.Generator(device).manual_seed(3))
    assert fgsm_curve(there, x, epsilons=[0.01], generator=torch.Generator(device).manual_seed(3)).labelled is False


def test_steps_a_channel_and_normalised_space(here, there, x, device) -> None:
    eps = torch.tensor([0.0, 0.01, 0.02]).view(3, 1, 1)
    found = fgsm(there, x, None, eps)
    assert share_apart(found, fgsm(here, X, None, eps)) < 0.01
    assert torch.equal(found[:, 0].cpu(), X[:, 0])
    given = {"eps": 0.1, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert share_apart(fgsm(there, x, None, **given), fgsm(here, X, None, **given)) < 0.01
    wrapped = load_model(copy.deepcopy(here), input_size=(3, 24, 24), mean=(0.5,) * 3, std=(0.25,) * 3)
    moved = copy.deepcopy(wrapped).to(device)
    report = fgsm_report(moved, x, None, 0.1, space="normalized")
    assert share_apart(report.images, fgsm_report(wrapped, X, None, 0.1, space="normalized").images) < 0.01


def test_the_curve(here, there, x) -> None:
    wanted = fgsm_curve(here, X, epsilons=[0, 2 / 255, 16 / 255])
    found = fgsm_curve(there, x, epsilons=[0, 2 / 255, 16 / 255])
    assert torch.equal(found.labels, wanted.labels)
    assert found.clean.device.type == "cpu"
    assert torch.equal(found.clean, wanted.clean)
    assert int((found.fgsm != wanted.fgsm).sum()) <= 1
    assert int((found.random != wanted.random).sum()) <= 1


def test_batches_from_a_loader(there) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, torch.arange(6) % 5), batch_size=4)
    curve = fgsm_curve(there, loader, epsilons=[4 / 255])
    assert curve.labels.tolist() == [0, 1, 2, 3, 4, 0]


DISC = {"rotation": 20.0, "scale": (0.8, 1.2), "shape": "circle"}


@pytest.mark.parametrize("options", [{}, DISC], ids=["plain", "disc"])
@pytest.mark.parametrize("per_image", [False, True])
def test_a_patch(here, there, x, device, options, per_image) -> None:
    patches = [AdversarialPatch(8, 0, image_size=24, per_image=per_image, **options) for _ in range(2)]
    losses = [p.fit(m, i, steps=5) for p, m, i in zip(patches, (there, here), (x, X), strict=True)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert torch.allclose(patches[0].pixels().cpu(), patches[1].pixels(), atol=1e-3)
    laid = patches[0].apply(X.to(device))
    assert laid.device == device
    assert torch.allclose(laid.cpu(), patches[1].apply(X), atol=2e-3)
    scores = [p.evaluate(m, i) for p, m, i in zip(patches, (there, here), (x, X), strict=True)]
    assert (scores[0].n, scores[0].excluded) == (scores[1].n, scores[1].excluded)
    assert scores[0].top1 == pytest.approx(scores[1].top1, abs=0.1)
    kept = AdversarialPatch.from_state_dict(patches[0].state_dict())
    assert torch.allclose(kept.apply(X.to(device)).cpu(), laid.cpu())
    if not per_image:
        both = (
            patches[0].random_control(torch.Generator().manual_seed(4)),
            patches[1].random_control(torch.Generator().manual_seed(4)),
        )
        assert torch.equal(both[0].pixels().cpu(), both[1].pixels().cpu())


def test_a_printed_patch(there, x, tmp_path) -> None:
    patch = AdversarialPatch(8, 1, image_size=24, shape="circle")
    patch.fit(there, x, steps=1)
    assert patch.printable(tmp_path / "patch.png", centimetres=1).stat().st_size > 0


ON_CELLS = {
    "random": {},
    "all cells": {"cells": "all", "momentum": 0.9},
    "budget": {"n": 3, "eps": 0.1, "pixels": 20, "early_stop": False},
    "targeted": {"targeted": True},
}


@pytest.mark.parametrize("options", ON_CELLS.values(), ids=ON_CELLS)
def test_attacks_on_cells(here, there, x, device, options) -> None:
    y = predictions(here, X, 8)
    y = (y + 1) % 5 if options.get("targeted") else y
    attacks = [PatchAttack(m, PatchGrid(24, 8), steps=4, step_size=0.05, **options) for m in (there, here)]
    found, wanted = attacks[0].attack(x, y, seed=3), attacks[1].attack(X, y, seed=3)
    assert found.x_adv.device == device
    assert torch.equal(found.cells.cpu(), wanted.cells)
    assert torch.equal(found.evaluated.cpu(), wanted.evaluated)
    assert float((found.success.cpu() != wanted.success).double().mean()) <= 0.05
    assert share_apart(found.x_adv, wanted.x_adv) < 0.02
    assert [check.passed for check in found.checks] == [check.passed for check in wanted.checks]
    assert found.map().shape == (3, 3)
    assert isinstance(found.to_dict(), dict)


def test_fooling_rates(here, there, x) -> None:
    noise = torch.rand(X.shape, generator=torch.Generator().manual_seed(1))
    y, worse = predictions(here, X, 8), (X + 0.3 * noise).clamp(0, 1)
    evaluated = torch.arange(6) > 0
    wanted = fooling_rate(here, X, worse, y, evaluated=evaluated)
    for other in (worse, worse.to(x.device)):
        found = fooling_rate(there, x, other, y, evaluated=evaluated)
        assert (found.percent, found.n) == (wanted.percent, wanted.n)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_the_same_bytes(device, name) -> None:
    found, wanted = corrupt(X[:2].to(device), name, 3, seed=2), corrupt(X[:2], name, 3, seed=2)
    assert found.device == device
    assert torch.equal(found.cpu(), wanted)


def test_corrupted_cells(device) -> None:
    grid = PatchGrid(24, 8)
    found, wanted = (corrupt_patches(x, "fog", 3, 4, grid) for x in (X.to(device), X))
    assert found.device == device
    assert torch.equal(found.cpu(), wanted)


def test_self_tests_and_the_report(device) -> None:
    model = load_model("lite0")
    photos = read_images("embedded", model.preprocessing, limit=4).images
    there = copy.deepcopy(model).to(device)
    wanted = attack_selftests(model, photos, epsilons=(1 / 255, 8 / 255), steps=2, pgd_images=2)
    found = attack_selftests(there, photos, epsilons=(1 / 255, 8 / 255), steps=2, pgd_images=2)
    assert [(check.name, check.passed) for check in found] == [(check.name, check.passed) for check in wanted]
    own, other = (normalisation_check(m, photos) for m in (there, model))
    assert own.value == pytest.approx(other.value, rel=1e-3)
    patch = AdversarialPatch(40, 1, image_size=224)
    table = attack_report({"here": model, "there": there}, photos, epsilons=[1 / 255], pgd_steps=2, patches=[patch])
    for a, b in zip(table.select(model="here"), table.select(model="there"), strict=True):
        assert (a.attack, a.strength) == (b.attack, b.strength)
        assert a.top1.value == pytest.approx(b.top1.value, abs=0.26)  # one image of four


def test_bad_input_is_refused_by_name(there, x, device) -> None:
    with pytest.raises(InputError, match="0 to 4"):
        fgsm(there, x, torch.full((6,), 9))
    with pytest.raises(InputError, match="within bounds"):
        pgd(there, x * 2)
    with pytest.raises(InputError, match="6 whole numbers"):
        PatchAttack(there, PatchGrid(24, 8), steps=1).attack(x, torch.zeros(3, dtype=torch.long))


def test_a_plain_function_gets_the_images_where_they_are(there, device) -> None:
    found = fgsm(there.forward, X.to(device), eps=0.01)
    assert found.device == device
    assert share_apart(found, fgsm(there, X, eps=0.01).cpu()) < 0.01


def test_the_attack_raises_the_loss(there, x, device) -> None:
    y = predictions(there, X.to(device), 8)
    attacked = pgd(there, x, y, 16 / 255, steps=5)
    with torch.no_grad():
        assert F.cross_entropy(there(attacked), y) > F.cross_entropy(there(X.to(device)), y)
