"""The networks that others are compared with keep the contract."""

from __future__ import annotations

import torch

from striate.models.micro import MobileMicro, ResNetMicro, vit_micro
from striate.models.mini import PadShortcut
from striate.testing import check_model


def test_they_keep_the_contract() -> None:
    for model in (ResNetMicro(), ResNetMicro((8, 16), (1, 2), 4), MobileMicro(), vit_micro(32, 4)):
        check_model(model, torch.rand(2, 3, 32, 32), classes=10)


def test_the_transformer_takes_other_sizes() -> None:
    assert vit_micro(32, 4).eval()(torch.rand(1, 3, 48, 40)).shape == (1, 10)


def test_shortcuts_without_weights_are_those_of_option_a() -> None:
    model = ResNetMicro((16, 32, 64), (3, 3, 3), shortcut="pad")
    assert (
        sum(p.numel() for name, p in model.named_parameters() if "conv" in name or name == "stem.0.weight") == 267_696
    )
    check_model(model, torch.rand(2, 3, 32, 32), classes=10)
    x = torch.rand(1, 16, 6, 6)
    out = PadShortcut(32, 2)(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    assert torch.equal(PadShortcut(5)(x[:, :4]), torch.cat([x[:, :4], torch.zeros(1, 1, 6, 6)], dim=1))
    assert torch.equal(PadShortcut(12)(x), x[:, 2:14])
