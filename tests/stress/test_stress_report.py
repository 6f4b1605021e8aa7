"""The table of attacks and controls, and the curve behind it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from striate.engine.stats import wilson
from striate.errors import InputError
from striate.models.mini import resnet_mini
from striate.stress import AdversarialPatch, attack_report, fgsm, fgsm_curve

EPSILONS = (2 / 255, 8 / 255)


class Linear(nn.Module):
    """Margins known in closed form: x · w of L1 norm 1, spread evenly over the pixels."""

    def forward(self, x):
        level = x.mean(dim=(1, 2, 3))
        return torch.stack([level - 0.5, 0.5 - level], dim=1)


def levels(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()


class TestCurve:
    def test_error_counts_margins_below_eps(self):
        x = levels(0.51, 0.53, 0.58, 0.70, 0.45)
        curve = fgsm_curve(Linear(), x, epsilons=(0.02, 0.06, 0.1, 0.3))
        assert [interval.value for interval in curve.error("fgsm")] == pytest.approx([0.2, 0.6, 0.8, 1.0])
        assert curve.error("random")[0].value == 0
        assert curve.error("clean")[0].value == 0
        assert curve.labelled is False
        assert curve.labels.tolist() == [0, 0, 0, 0, 1]

    def test_is_fgsm_at_every_eps(self):
        torch.manual_seed(0)
        model, x = resnet_mini().eval(), torch.rand(10, 1, 12, 12)
        y = torch.randint(0, 10, (10,))
        curve = fgsm_curve(model, x, y, epsilons=EPSILONS, batch_size=4)
        for hits, eps in zip(curve.fgsm, EPSILONS, strict=True):
            with torch.no_grad():
                assert torch.equal(hits[0], model(fgsm(model, x, y, eps)).argmax(dim=1) == y)
        json.dumps(curve.to_dict(), allow_nan=False)

    def test_equal_scores_are_read_as_the_prediction(self):
        class Tied(nn.Module):  # topk puts class 8 first, argmax class 0
            def forward(self, x):
                return x.sum(dim=(1, 2, 3))[:, None].expand(-1, 10) * 0

        curve = fgsm_curve(Tied(), levels(0.2, 0.7), epsilons=(0.1,))
        assert curve.labels.tolist() == [0, 0]
        assert all(curve.error(kind, top)[0].value == 0 for kind in ("clean", "fgsm", "random") for top in (1, 5))
        score = AdversarialPatch(3, 0, image_size=6, channels=1).evaluate(Tied(), (levels(0.2), torch.tensor([1])))
        assert (score.top1, score.top5) == (1.0, 1.0)

    def test_refuses(self):
        with pytest.raises(InputError, match="epsilons"):
            fgsm_curve(Linear(), levels(0.5), epsilons=())
        with pytest.raises(InputError, match="VisionModel"):
            fgsm_curve(Linear(), levels(0.5), epsilons=(0.1,), space="normalized")


class TestReport:
    def table(self, **options):
        patch = AdversarialPatch(3, 1, image_size=6, channels=1, init=torch.zeros(1, 3, 3))
        x = levels(0.51, 0.53, 0.58, 0.70, 0.45, 0.47)
        return attack_report({"linear": Linear(), "same": Linear()}, x, (0.02, 0.06), [patch], pgd_steps=2, **options)

    def test_rows_and_controls(self):
        table = self.table()
        attacks = [(row.attack, row.strength) for row in table.select(model="linear")]
        assert attacks == [
            ("clean", None),
            ("fgsm", 0.02),
            ("fgsm", 0.06),
            ("random sign", 0.02),
            ("random sign", 0.06),
            ("pgd", 0.02),
            ("pgd", 0.06),
            ("patch", 3.0),
            ("random patch", 3.0),
        ]
        fgsm_rows, pgd_rows = table.select(model="same", attack="fgsm"), table.select(model="same", attack="pgd")
        assert [row.top1.value for row in fgsm_rows] == pytest.approx([1 / 6, 5 / 6 - 1 / 6])
        assert [row.top1 for row in pgd_rows] == [row.top1 for row in fgsm_rows]  # linear: one step is the best attack
        assert fgsm_rows[0].top1 == wilson(1, 6)
        (patched,) = table.select(model="linear", attack="patch")
        assert (patched.measures, patched.top1.n, patched.top1.value) == (
            "success",
            4,
            0.75,
        )  # black on 9 of 36 pixels: 0.70 stays above 0.5

    def test_carries_its_checks(self):
        table = self.table()
        assert set(table.checks) == {"linear", "same"}
        assert self.table(selftests=False).checks == {}

    def test_becomes_rows_json_and_text(self):
        table = self.table()
        rows = table.to_rows()
        assert len(rows) == len(table.rows) == 18
        assert rows[1]["top1_low"] < rows[1]["top1"] < rows[1]["top1_high"]
        assert json.loads(json.dumps(table.to_dict(), allow_nan=False))["labelled"] is False
        assert "random sign" in str(table)

    def test_top_5_is_of_more_than_five_classes(self):
        table = self.table()
        assert all(row.top5 is None for row in table.rows)
        assert "top-5" not in str(table)
        assert table.to_rows()[1]["top5_low"] is None
        x = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
        ten = attack_report({"ten": resnet_mini().eval()}, x, (0.01,), pgd_steps=0, selftests=False)
        assert "top-5" in str(ten)
        assert all(row.top5.n == 4 for row in ten.rows)

    def test_two_patches_of_one_size_and_target_are_both_there(self):
        patches = [AdversarialPatch(3, 1, image_size=6, channels=1, init=torch.full((1, 3, 3), v)) for v in (0.0, 1.0)]
        table = attack_report({"m": Linear()}, levels(0.51, 0.6), (), patches, selftests=False)
        assert [row.top1.value for row in table.select(attack="patch")] == [1.0, 0.0]

    def test_labels_from_a_loader(self):
        x, y = levels(0.6, 0.7, 0.4), torch.tensor([0, 1, 1])
        table = attack_report({"m": Linear()}, [(x[:2], y[:2]), (x[2:], y[2:])], (0.01,), pgd_steps=0, selftests=False)
        assert table.labelled
        assert table.rows[0].top1.value == pytest.approx(1 / 3)

    def test_refuses_nothing(self):
        with pytest.raises(InputError, match="models"):
            attack_report({}, levels(0.5))
        with pytest.raises(InputError, match="at least one image"):
            attack_report({"m": Linear()}, [])
