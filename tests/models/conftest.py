"""A checkpoint of UniFormer as its authors store it, for the tests of both of its modules."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def authors() -> Callable[[nn.Module], dict[str, Tensor]]:
    return _authors


def _authors(model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint as the authors would store this network, filled by name."""
    filled = {}
    for name, own in model.state_dict().items():
        key = name.replace("pos_embed.proj.", "pos_embed.").replace("attn.affinity.", "attn.")
        key, value = key.replace("attn.conv", "conv"), own
        if own.is_floating_point():
            value = torch.randn(own.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode()))) * 0.1
            if key.endswith("running_var"):
                value = value.abs() + 0.5
            elif key.endswith("weight") and ("norm" in key or value.dim() == 1):
                value = value + 1
        filled[key] = value
    return filled
