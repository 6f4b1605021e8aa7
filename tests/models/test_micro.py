"""The networks that others are compared with keep the contract."""

from __future__ import annotations

import torch

from striate.models.micro import MobileMicro, ResNetMicro, vit_micro
from striate.testing import check_model


def test_they_keep_the_contract() -> None:
    for model in (ResNetMicro(), ResNetMicro((8, 16), (1, 2), 4), MobileMicro(), vit_micro(32, 4)):
        check_model(model, torch.rand(2, 3, 32, 32), classes=10)


def test_the_transformer_takes_other_sizes() -> None:
    assert vit_micro(32, 4).eval()(torch.rand(1, 3, 48, 40)).shape == (1, 10)
