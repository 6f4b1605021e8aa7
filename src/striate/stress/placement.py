"""Laying small pictures on a batch of images, each at its own place, in one kernel and without a loop over images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from striate.errors import InputError

__all__ = ["draw_corners", "paste", "warp"]


def draw_corners(
    image_size: tuple[int, int], side: Tensor, generator: torch.Generator, top_left: Tensor | None = None
) -> Tensor:
    """Return (N, 2) upper left corners, uniform over all places where a square of ``side`` fits.

    Args:
        image_size: (H, W).
        side: (N,) long, at most H and W.
        generator: of the draw.
        top_left: given corners, checked instead of drawn; (N, 2), or (2,) for all.
    """
    room = torch.tensor(image_size)[None] - side.cpu()[:, None]  # (N, 2) largest offsets
    if top_left is None:
        share = torch.rand((len(side), 2), generator=generator, device=generator.device, dtype=torch.float64)
        return (share.cpu() * (room + 1)).floor().long()  # uniform on {0 … room}, the last offset included
    corner = torch.as_tensor(top_left).cpu()
    corner = corner.expand(len(side), 2) if corner.dim() == 1 else corner
    if corner.shape != room.shape or (corner < 0).any() or (corner > room).any():
        allowed = f"(N, 2) offsets from 0 to at most {room.amin(dim=0).tolist()}"
        raise InputError("top_left", "draw_corners", allowed=allowed, got=corner.tolist()[:4])
    return corner.long()


def paste(x: Tensor, values: Tensor, corner: Tensor, *, disc: bool = False) -> Tensor:
    """Return a copy of ``x`` with a square of each image overwritten: one indexed write of N k k C numbers.

    Args:
        x: (N, C, H, W).
        values: (1 or N, C, k, k); gradients flow to it.
        corner: (N, 2) long, rows and columns.
        disc: overwrite only the disc inside the square.
    """
    n, size = len(x), values.shape[-1]
    span = torch.arange(size, device=x.device)
    rows, columns = (part[:, None] + span for part in corner.to(x.device).unbind(dim=1))  # (N, k) each
    where = (torch.arange(n, device=x.device)[:, None, None], rows[:, :, None], columns[:, None, :])
    out = x.clone().permute(0, 2, 3, 1)  # (N, H, W, C): with the indexed axes in front, indexing keeps their order
    new = values.permute(0, 2, 3, 1).expand(n, -1, -1, -1)  # (N, k, k, C)
    if disc:
        centre = (span + 0.5) * 2 / size - 1
        inside = centre[:, None].square() + centre[None].square() <= 1
        new = torch.where(inside[:, :, None], new, out[where])
    return out.index_put_(where, new).permute(0, 3, 1, 2)


def warp(x: Tensor, values: Tensor, centre: Tensor, angle: Tensor, half: Tensor, *, disc: bool = False) -> Tensor:
    """Return a copy of ``x`` with a turned and scaled picture laid on each image; interpolated inside, edges hard.

    Args:
        x: (N, C, H, W).
        values: (1 or N, C, k, k); gradients flow to it.
        centre: (N, 2) row and column of the centre; pixel (0, 0) covers [0, 1) x [0, 1).
        angle: (N,) radians.
        half: (N,) half the side of the picture on the image, in pixels.
        disc: only the disc inside the square.
    """
    centre, angle, half = (part.to(x.device, torch.float32) for part in (centre, angle, half))
    rows = (torch.arange(x.shape[-2], device=x.device) + 0.5 - centre[:, :1])[:, :, None]  # (N, H, 1)
    columns = (torch.arange(x.shape[-1], device=x.device) + 0.5 - centre[:, 1:])[:, None, :]  # (N, 1, W)
    cos, sin, half = (part[:, None, None] for part in (angle.cos(), angle.sin(), half))
    u = (cos * columns + sin * rows) / half  # the picture's own coordinates, [-1, 1] inside it
    v = (cos * rows - sin * columns) / half
    inside = u.square() + v.square() <= 1 if disc else torch.maximum(u.abs(), v.abs()) <= 1
    grid = torch.stack([u, v], dim=-1).to(values.dtype)
    picture = values.expand(len(x), -1, -1, -1)
    new = F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(inside[:, None], new, x)
