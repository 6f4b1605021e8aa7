"""The adversarial patch: its pixels, its places, its training and its count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from striate.errors import InputError, ModelError
from striate.models.mini import resnet_mini
from striate.stress import AdversarialPatch, PatchScore

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Corner(nn.Module):
    """Sees class 1 where something bright lies anywhere, more of it the brighter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, x):
        bright = x.amax(dim=(1, 2, 3))
        return torch.stack([0 * bright + 4, self.scale * bright], dim=1)


def images(n=6, channels=1, size=12):
    return 0.4 * torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(3))


class TestPixels:
    def test_normalised_values(self):
        patch = AdversarialPatch(4, 0, image_size=8, mean=MEAN, std=STD)
        placed = patch.apply(torch.zeros(1, 3, 8, 8), top_left=torch.tensor([2, 2]))[0, :, 3, 3]
        torch.testing.assert_close(placed, torch.tensor([0.0655, 0.1964, 0.4178]), atol=1e-4, rtol=0)
        for pixel, expected in ((1.0, (2.2489, 2.4286, 2.6400)), (0.0, (-2.1179, -2.0357, -1.8044))):
            patch = AdversarialPatch(4, 0, image_size=8, mean=MEAN, std=STD, init=torch.full((3, 4, 4), pixel))
            placed = patch.apply(torch.zeros(1, 3, 8, 8), top_left=torch.tensor([0, 0]))[0, :, 0, 0]
            torch.testing.assert_close(placed, torch.tensor(expected), atol=1e-4, rtol=0)

    def test_starts_grey_or_as_told(self):
        assert (AdversarialPatch(3, 0, image_size=8).pixels() == 0.5).all()
        given_pixels = torch.rand(3, 3, 3)
        patch = AdversarialPatch(3, 0, image_size=8, init=given_pixels)
        torch.testing.assert_close(patch.pixels(), given_pixels, atol=1e-5, rtol=0)
        control = patch.random_control()
        assert control.pixels().std() > 0.2
        assert not torch.equal(control.pixels(), patch.random_control(torch.Generator().manual_seed(1)).pixels())


class TestPlaces:
    @settings(max_examples=30, deadline=None)
    @given(
        n=st.integers(1, 4),
        size=st.integers(1, 9),
        height=st.integers(9, 12),
        width=st.integers(9, 13),
        shape=st.sampled_from(["square", "circle"]),
        dtype=st.sampled_from([torch.float32, torch.float64]),
    )
    def test_outside_the_square_not_a_bit_changes(self, n, size, height, width, shape, dtype):
        x = torch.rand(n, 3, height, width, dtype=dtype)
        before = x.clone()
        patch = AdversarialPatch(size, 0, image_size=(height, width), shape=shape)
        corner = torch.stack([torch.randint(0, height - size + 1, (n,)), torch.randint(0, width - size + 1, (n,))], 1)
        placed = patch.apply(x, top_left=corner)
        assert torch.equal(x, before)
        assert placed.dtype == dtype
        for image, clean, (top, left) in zip(placed, x, corner.tolist(), strict=True):
            mask = torch.zeros(height, width, dtype=torch.bool)
            mask[top : top + size, left : left + size] = True
            assert torch.equal(image[:, ~mask], clean[:, ~mask])
            inside = image[:, top : top + size, left : left + size]
            assert (inside == 0.5).all() if shape == "square" else (inside[:, size // 2, size // 2] == 0.5).all()

    def test_all_offsets_are_drawn_evenly_the_last_one_too(self):
        patch = AdversarialPatch(3, 0, image_size=(6, 5), channels=1)
        placed = patch.apply(torch.zeros(6000, 1, 6, 5))
        first = (placed > 0).flatten(1).float().argmax(dim=1)
        counts = torch.stack([first // 5, first % 5], 1).unique(dim=0, return_counts=True)
        assert counts[0].tolist() == [[top, left] for top in range(4) for left in range(3)]
        assert counts[1].min() > 400  # 500 each, standard deviation 21
        assert counts[1].max() < 600

    def test_without_turning_and_scaling_the_warp_is_the_paste(self):
        pixels = torch.rand(3, 4, 4)
        x = torch.rand(5, 3, 11, 9)
        corner = torch.tensor([[0, 0], [7, 5], [3, 2], [1, 4], [6, 0]])
        pasted = AdversarialPatch(4, 0, image_size=(11, 9), init=pixels).apply(x, top_left=corner)
        # A scale range that draws 1 and nothing else, through the other path.
        warped = AdversarialPatch(4, 0, image_size=(11, 9), init=pixels, scale=(1.0, 1.0 + 1e-7)).apply(
            x, top_left=corner
        )
        torch.testing.assert_close(pasted, warped, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("shape", ["square", "circle"])
    def test_turned_and_scaled_patches_stay_inside_and_keep_their_area(self, shape):
        patch = AdversarialPatch(20, 0, image_size=64, rotation=180, scale=(0.5, 1.5), shape=shape, channels=1)
        covered = (patch.apply(torch.zeros(200, 1, 64, 64)) > 0).flatten(1).sum(dim=1).float()
        full = 400 * (1 if shape == "square" else torch.pi / 4)
        assert covered.min() > 0.25 * full * 0.85
        assert covered.max() < 2.25 * full * 1.05
        scales = torch.linspace(0.5, 1.5, 1001).square().mean()
        assert covered.mean().item() == pytest.approx(float(scales * full), rel=0.1)

    def test_channels_last_stays_so(self):
        x = images(4, 3).to(memory_format=torch.channels_last)
        assert AdversarialPatch(3, 0, image_size=12).apply(x).is_contiguous(memory_format=torch.channels_last)


class TestTraining:
    def test_learns_what_the_model_sees_and_changes_nothing_else(self):
        model = Corner()
        before, state = model.scale.detach().clone(), torch.get_rng_state()
        patch = AdversarialPatch(3, 1, image_size=12, channels=1)
        losses = patch.fit(model, images(), steps=40, batch_size=3, lr=1.0)
        assert len(losses) == 40
        assert losses[-1] < losses[0]
        assert patch.evaluate(model, images()).top1 == 1.0
        assert patch.random_control().evaluate(model, 0 * images()).n == 6
        assert torch.equal(model.scale, before)
        assert model.scale.grad is None
        assert model.scale.requires_grad
        assert model.training
        assert torch.equal(torch.get_rng_state(), state)
        assert not patch.pattern.requires_grad

    def test_gradient_flows_to_the_pattern_through_every_path(self):
        for options in ({}, {"shape": "circle"}, {"rotation": 30.0}, {"scale": (0.7, 1.2)}, {"per_image": True}):
            patch = AdversarialPatch(4, 2, image_size=12, channels=1, **options)
            model = resnet_mini(1, 4).eval()
            patch.fit([model, model], images(), steps=2, total_variation=0.1)
            assert patch.pattern.abs().sum() > 0

    def test_ensemble_loss_is_the_mean(self):
        def confident(x):
            return torch.stack([x.mean(dim=(1, 2, 3)) * 0, x.mean(dim=(1, 2, 3)) * 0 + 3], 1) + 0 * x.sum()

        def unsure(x):
            return torch.zeros(len(x), 2) + 0 * x.sum()

        patch = AdversarialPatch(3, 1, image_size=12, channels=1)
        both = patch.fit([confident, unsure], images(), steps=1)[0]
        alone = [
            AdversarialPatch(3, 1, image_size=12, channels=1).fit(m, images(), steps=1)[0] for m in (confident, unsure)
        ]
        assert both == pytest.approx(sum(alone) / 2)

    def test_per_image_patterns_belong_to_their_images(self):
        model, x = Corner(), images(4)
        patch = AdversarialPatch(3, 1, image_size=12, channels=1, per_image=True)
        patch.fit(model, x, steps=3)
        assert patch.pixels().shape == (4, 1, 3, 3)
        corner = torch.tensor([0, 0])
        alone = patch.apply(x[2:3], top_left=corner, index=torch.tensor([2]))
        assert torch.equal(patch.apply(x, top_left=corner)[2:3], alone)
        with pytest.raises(InputError, match="4 images"):
            patch.apply(images(5))

    def test_drops_the_incomplete_batch_and_counts_epochs(self):
        patch = AdversarialPatch(3, 1, image_size=12, channels=1)
        assert len(patch.fit(Corner(), images(7), epochs=2, batch_size=3)) == 4
        loader = [(images(3), torch.zeros(3)), (images(3), torch.zeros(3))]
        assert len(patch.fit(Corner(), loader, steps=3)) == 3

    def test_same_seed_same_pixels(self):
        first, second = (AdversarialPatch(3, 1, image_size=12, channels=1) for _ in range(2))
        for patch in (first, second):
            patch.fit(Corner(), images(), steps=5, batch_size=2)
        assert torch.equal(first.pattern, second.pattern)


class TestCounting:
    def test_images_of_the_target_class_do_not_count(self):
        x, labels = images(), torch.tensor([0, 1, 1, 0, 0, 1])
        bright = AdversarialPatch(3, 1, image_size=12, channels=1, init=torch.ones(1, 3, 3))
        score = bright.evaluate(Corner(), (x, labels))
        assert (score.top1, score.n, score.excluded, score.placements) == (1.0, 3, 3, 4)
        with pytest.raises(InputError, match="nothing to fool"):
            bright.evaluate(Corner(), (x, torch.ones(6, dtype=torch.long)))

    def test_placements_do_not_pile_up(self):
        seen = []

        def model(x):
            seen.append((x == 0.5).flatten(1).sum(dim=1))
            return torch.stack([x.sum(dim=(1, 2, 3)), 0 * x.sum(dim=(1, 2, 3))], 1)

        AdversarialPatch(3, 1, image_size=12, channels=1).evaluate(
            model, (images(), torch.zeros(6, dtype=torch.long)), 5
        )
        assert all((count == 9).all() for count in seen[-5:])

    def test_intervals_count_images_not_placements(self):
        score = PatchScore(top1=0.6, top5=1.0, n=10, placements=4, excluded=0)
        interval = score.interval()
        assert interval.n == 10
        assert (interval.low, interval.high) == pytest.approx((0.3127, 0.8318), abs=1e-4)  # Wilson, 6 of 10
        assert score.to_dict()["top5_interval"]["value"] == 1.0


class TestKeeping:
    def test_state_dict_round_trip(self, tmp_path):
        patch = AdversarialPatch(3, 1, image_size=(12, 14), mean=MEAN, std=STD, rotation=10, scale=(0.8, 1.1))
        patch.load_state_dict({"pattern": torch.randn(3, 3, 3)})
        torch.save(patch.state_dict(), tmp_path / "patch.pt")
        again = AdversarialPatch.from_state_dict(torch.load(tmp_path / "patch.pt", weights_only=True))
        x = torch.rand(2, 3, 12, 14)
        assert torch.equal(patch.apply(x), again.apply(x))
        with pytest.raises(InputError, match="state"):
            patch.load_state_dict({"pattern": torch.randn(3, 4, 4)})

    @pytest.mark.parametrize(
        ("channels", "shape", "mode"), [(3, "square", "RGB"), (1, "square", "L"), (3, "circle", "RGBA")]
    )
    def test_prints_at_its_physical_size(self, tmp_path, channels, shape, mode):
        patch = AdversarialPatch(8, 1, image_size=16, channels=channels, shape=shape)
        path = patch.printable(tmp_path / "patch.png", dpi=150, centimetres=5.08)
        with Image.open(path) as picture:
            assert picture.size == (300, 300)
            assert picture.mode == mode
            assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.05)
            if shape == "circle":
                assert picture.getpixel((0, 0))[3] == 0
                assert picture.getpixel((150, 150))[3] == 255

    def test_image_control_is_the_shrunken_image(self):
        patch = AdversarialPatch(4, 1, image_size=8)
        image = torch.rand(3, 1, 1).expand(3, 16, 16)
        torch.testing.assert_close(patch.image_control(image).pixels(), image[:, :4, :4], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 13}, "size"),
        ({"size": 0}, "size"),
        ({"size": 9, "rotation": 45.0}, "turned"),
        ({"size": 9, "scale": (1.0, 2.0)}, "scale 2"),
        ({"target": -1}, "target"),
        ({"mean": MEAN}, "together"),
        ({"mean": MEAN, "std": (1.0, 0.0, 1.0)}, "std"),
        ({"shape": "star"}, "shape"),
        ({"init": torch.full((3, 3, 3), 2.0)}, "init"),
    ],
)
def test_refuses(options, words):
    with pytest.raises(InputError, match=words):
        AdversarialPatch(**({"size": 3, "target": 1, "image_size": 12} | options))


def test_refuses_a_target_that_the_model_does_not_have():
    patch = AdversarialPatch(3, 7, image_size=12, channels=1)
    with pytest.raises(InputError, match="from 0 to 1"):
        patch.fit(Corner(), images(), steps=1)
    with pytest.raises(InputError, match="from 0 to 1"):
        patch.evaluate(Corner(), images())


def test_refuses_images_of_another_size():
    with pytest.raises(InputError, match="12"):
        AdversarialPatch(3, 1, image_size=12).apply(torch.rand(1, 3, 12, 11))


def test_refuses_images_that_are_no_pixels_and_scores_without_a_gradient():
    patch = AdversarialPatch(3, 1, image_size=12, channels=1)
    labels = torch.zeros(6, dtype=torch.long)
    for call in (patch.apply, lambda x: patch.fit(Corner(), x, 1), lambda x: patch.evaluate(Corner(), (x, labels))):
        with pytest.raises(InputError, match="values from"):
            call(255 * images())
    AdversarialPatch(3, 1, image_size=12, mean=(0.5,), std=(0.1,)).apply(9 * images() - 4)  # normalised ones may be
    with pytest.raises(ModelError, match="detach"):
        patch.fit(lambda x: Corner()(x.detach()), images(), 1)
    with pytest.raises(InputError, match="placements"):
        patch.evaluate(Corner(), images(), placements=0)
