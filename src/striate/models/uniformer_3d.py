"""UniFormer for video: the same definition in three dimensions, and image weights that start it.

Li, Wang, Gao, Song, Liu, Li, Qiao, "UniFormer: Unified Transformer for Efficient Spatiotemporal Representation
Learning", ICLR 2022, arXiv 2201.04676. Not in timm's registry, whose networks take images. The authors' video weights
(MIT and Apache-2.0) load through :func:`striate.models.uniformer.checkpoint_filter_fn`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from striate.errors import InputError
from striate.models.uniformer import UniFormer

__all__ = ["UniFormer3D", "inflate_2d_state_dict", "uniformer3d_base", "uniformer3d_small"]


class UniFormer3D(UniFormer):
    """:class:`~striate.models.uniformer.UniFormer` over clips (N, C, T, H, W); T may be odd.

    Args:
        num_classes: outputs; Kinetics-400 has 400.
        **options: of :class:`~striate.models.uniformer.UniFormer`, without ``ndim``, ``window`` and ``conv_stem``.
    """

    def __init__(self, num_classes: int = 400, **options: Any) -> None:
        super().__init__(num_classes=num_classes, ndim=3, **options)


def uniformer3d_small(num_classes: int = 400, **options: Any) -> UniFormer3D:
    """Return UniFormer-S for video: 21.4 M parameters, 41.7 G for 16 frames of 224 x 224."""
    return UniFormer3D(num_classes, **options)


def uniformer3d_base(num_classes: int = 400, **options: Any) -> UniFormer3D:
    """Return UniFormer-B for video: 49.8 M parameters."""
    return UniFormer3D(num_classes, **{"depths": (5, 8, 20, 7), **options})


def inflate_2d_state_dict(state_dict: dict[str, Tensor], model3d: nn.Module, center: bool = False) -> dict[str, Tensor]:
    """Turn an image network's weights into a video network's: 2-D kernels are repeated over time.

    Args:
        state_dict: of a :class:`UniFormer` for images with the video network's widths and depths, under our names.
        model3d: the video network, which gives the shapes; a head of another size keeps the video network's weights.
        center: put the kernel into the middle frame and zeros around it, instead of dividing it over all frames.

    Raises:
        InputError: a tensor that fits neither as it is nor inflated.
    """
    inflated = {}
    for name, wanted in model3d.state_dict().items():
        value = state_dict.get(name)
        if value is None or (name.startswith("head.") and value.shape != wanted.shape):
            value = wanted.clone()
        elif value.dim() == 4 and wanted.dim() == 5:
            frames = wanted.shape[2]
            spread = value[:, :, None].repeat(1, 1, frames, 1, 1)
            if center:
                spread = spread * (torch.arange(frames) == frames // 2).view(-1, 1, 1).to(spread)
            value = spread if center else spread / frames
        if value.shape != wanted.shape:
            allowed = f"a {name} that fits {tuple(wanted.shape)}"
            raise InputError("state_dict", "inflate_2d_state_dict", allowed=allowed, got=tuple(value.shape))
        inflated[name] = value
    return inflated
