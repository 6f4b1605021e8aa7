"""What a training step has to keep in memory for its backward pass."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from striate.engine.state import device_of, seeded

__all__ = ["activation_bytes"]


def activation_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that one forward pass in train mode saves for the backward pass, weights not counted.

    This is what decides the peak memory of a training step besides weights, gradients and the optimizer's state, and it
    is the same on every device and run. Tensors that share memory are counted once.

    Args:
        model: any network; it is not touched.
        images: (N, C, H, W), moved to where the model is.

    >>> activation_bytes(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), torch.zeros(1, 1, 4, 4))  # 1 + 2 maps of 16
    192
    """
    twin = copy.deepcopy(model).train()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*twin.parameters(), *twin.buffers())}
    saved: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive, so that no address is used twice
        return tensor

    with torch.enable_grad(), seeded(0), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        twin(images.to(device_of(twin)))
    return sum(size for size, _ in saved.values())
