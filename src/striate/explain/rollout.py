"""Attention rollout, and the feature map of a CNN beside it: where a network looks, without a gradient.

Abnar, Zuidema, "Quantifying Attention Flow in Transformers", 2020, arXiv 2005.00928; for patch perturbations: Gu,
Tresp, Qin, 2022, arXiv 2111.10659. For layer l, A_l is the softmax matrix with its heads fused, Â_l its row-normalised
mixture with the identity (the residual connection), and R = Â_L … Â_1; the map is the class token's row of R at the
patches. What differs from the published picture code: rows are normalised as rows (that code divides columns), entries
are discarded per image, and maps are divided by their sum, for measuring; divide by the maximum for pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from striate.engine.model import get_layer
from striate.engine.state import device_of, inspected
from striate.errors import InputError, ModelError
from striate.explain.target_layer import find_target_layer
from striate.layers.attention import attention_weights

__all__ = ["attention_rollout", "feature_attention", "mass_inside", "rollout_matrix", "token_grid"]

HeadFusion = Literal["mean", "max", "min"]

_PREFIXES = (1, 0, 2, 5, 3, 4, 6, 8, 9)
"""Numbers of class, distillation and register tokens in use, the most usual first."""


def attention_rollout(
    model: nn.Module,
    x: Tensor,
    residual: float = 0.5,
    head_fusion: HeadFusion = "mean",
    start_layer: int = 0,
    discard_ratio: float = 0.0,
) -> Tensor:
    """Return the rollout map of each image; it sums to 1.

    A network that classifies by the mean of its patch tokens has no class row; there the patches' mean row is taken.

    Args:
        model: a ViT of timm, torchvision or alike, whose layers all attend over the same tokens.
        x: (B, C, H, W), in the space that the model takes; moved to where it is.
        residual: share of the identity in each Â, in [0, 1).
        head_fusion: ``"mean"``, ``"max"`` or ``"min"`` over heads.
        start_layer: first attention layer to roll out from, 0-based; negative counts from the end.
        discard_ratio: share of each A's smallest entries that are zeroed, in [0, 1); 0 for measuring, 0.9 in the
            published pictures. The very first entry is kept.

    Returns:
        (B, h, w) >= 0; a row that reaches no patch gives zeros, never NaN.

    Raises:
        InputError: an option out of range.
        ModelError: no self-attention; or layers over different tokens, as in Swin.
    """
    with torch.no_grad():
        attentions = attention_weights(model, x)
    shapes = {tuple(item.weights.shape[-2:]) for item in attentions}
    if len(shapes) > 1 or any(n != m for n, m in shapes) or attentions[0].weights.shape[0] != len(x):
        raise ModelError(
            f"attention_rollout needs every layer to attend over the same tokens of the whole image; "
            f"{type(model).__name__} attends within {', '.join(f'{n} x {m}' for n, m in sorted(shapes))}."
        )
    rolled = rollout_matrix([item.weights for item in attentions], residual, head_fusion, start_layer, discard_ratio)
    prefix, grid = token_grid(model, rolled.shape[-1], (x.shape[-2], x.shape[-1]))
    pooled = prefix == 0 or any(getattr(module, "global_pool", None) == "avg" for module in model.modules())
    row = (rolled[:, prefix:].mean(dim=1) if pooled else rolled[:, 0])[:, prefix:]
    total = row.sum(dim=1, keepdim=True)
    row = torch.where(total > 0, row / total.clamp_min(torch.finfo(row.dtype).tiny), torch.zeros_like(row))
    return row.unflatten(1, grid)


def rollout_matrix(
    attentions: Sequence[Tensor],
    residual: float = 0.5,
    head_fusion: HeadFusion = "mean",
    start_layer: int = 0,
    discard_ratio: float = 0.0,
) -> Tensor:
    """Return R = Â_L … Â_1, (B, N, N); its rows sum to 1.

    Args:
        attentions: one (B, heads, N, N) a layer, in order.
        residual, head_fusion, start_layer, discard_ratio: as in :func:`attention_rollout`.

    >>> uniform = torch.full((1, 1, 5, 5), 0.2)
    >>> rollout_matrix([uniform])[0, 0]
    tensor([0.6000, 0.1000, 0.1000, 0.1000, 0.1000])
    """
    _check_options(len(attentions), residual, head_fusion, start_layer, discard_ratio)
    rolled: Tensor | None = None
    for attention in attentions[start_layer:]:
        fused = _fused(
            attention.float() if attention.dtype in {torch.float16, torch.bfloat16} else attention, head_fusion
        )
        if discard_ratio:
            flat = fused.flatten(1)
            smallest = flat.topk(int(flat.shape[1] * discard_ratio), dim=1, largest=False).indices
            kept = torch.ones_like(flat, dtype=torch.bool).scatter_(1, smallest, False)
            kept[:, 0] = True
            fused = (flat * kept).view_as(fused)
        identity = torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
        mixed = (1 - residual) * fused + residual * identity
        mixed = mixed / mixed.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(mixed.dtype).tiny)
        rolled = mixed if rolled is None else mixed @ rolled
    return torch.empty(0) if rolled is None else rolled


def token_grid(model: nn.Module, tokens: int, image_size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Return how many tokens come before the patches, and the (h, w) grid of the patches.

    Taken from the network where it says so (``num_prefix_tokens``), else the first usual number of prefix tokens whose
    rest has the proportions of the image.

    Raises:
        ModelError: no grid of the image's proportions has that many cells.
    """
    values = (getattr(module, "num_prefix_tokens", None) for module in model.modules())
    declared = [value for value in values if isinstance(value, int)]
    height, width = image_size
    for prefix in (*declared[:1], *_PREFIXES):
        for side in range(1, min(height, width) + 1):  # a patch is a square of the input
            whole = prefix in declared or height % side == width % side == 0
            if whole and tokens > prefix and (height // side) * (width // side) == tokens - prefix:
                return prefix, (height // side, width // side)
    raise ModelError(f"{tokens} tokens do not form a grid over an image of {height} x {width} pixels.")


def feature_attention(
    model: nn.Module, x: Tensor, layer: str | nn.Module | None = None, *, absolute: bool = False
) -> Tensor:
    """Return the channel mean of a feature map, the CNN's counterpart of a rollout in the paper's pictures.

    Args:
        model: any classifier with a spatial layer.
        x: (B, C, H, W), in the space that the model takes; moved to where it is.
        layer: default: the last spatial one, as :func:`striate.explain.target_layer.find_target_layer` finds it.
        absolute: mean of magnitudes, which counts strong inhibition as looking; after a ReLU both are the same.

    Returns:
        (B, h, w), signed unless ``absolute``.
    """
    found = find_target_layer(model, x, None if layer is None else get_layer(model, layer))
    kept: list[Tensor] = []
    hook = found.module.register_forward_hook(lambda module, args, output: kept.append(found.to_grid(output)))
    try:
        with torch.no_grad(), inspected(model, warn=False):
            model(x.to(device_of(model, x.device)))
    finally:
        hook.remove()
    response = kept[-1].abs() if absolute else kept[-1]
    return response.mean(dim=1)


def mass_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of each map's positive mass that lies in its mask; NaN for an empty map.

    Args:
        maps: (B, h, w).
        masks: (B, H, W) or (B, 1, H, W), bool, at the map's size or a multiple of it, as patches are.
    """
    masks = masks[:, 0] if masks.dim() == 4 else masks
    if masks.shape[-2] % maps.shape[-2] or masks.shape[-1] % maps.shape[-1] or len(masks) != len(maps):
        allowed = f"({len(maps)}, H, W) with sides that are multiples of the maps' {tuple(maps.shape[-2:])}"
        raise InputError("masks", "mass_inside", allowed=allowed, got=tuple(masks.shape))
    covered = nn.functional.adaptive_avg_pool2d(
        masks.to(maps.dtype), (maps.shape[-2], maps.shape[-1])
    )  # share of each place
    positive = maps.clamp_min(0)
    return (positive * covered).sum(dim=(1, 2)) / positive.sum(dim=(1, 2))


def _fused(attention: Tensor, head_fusion: HeadFusion) -> Tensor:
    """(B, heads, N, N) -> (B, N, N)."""
    if head_fusion == "mean":
        return attention.mean(dim=1)
    return attention.amax(dim=1) if head_fusion == "max" else attention.amin(dim=1)


def _check_options(n_layers: int, residual: float, head_fusion: str, start_layer: int, discard_ratio: float) -> None:
    limits = {
        "residual": (residual, 0 <= residual < 1, "in [0, 1)"),
        "head_fusion": (head_fusion, head_fusion in {"mean", "max", "min"}, "mean, max or min"),
        "start_layer": (start_layer, -n_layers <= start_layer < n_layers, f"one of {n_layers} layers"),
        "discard_ratio": (discard_ratio, 0 <= discard_ratio < 1, "in [0, 1)"),
    }
    for name, (value, held, words) in limits.items():
        if not held:
            raise InputError(name, "attention_rollout", allowed=words, got=value)
