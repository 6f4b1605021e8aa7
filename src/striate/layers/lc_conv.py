"""Convolutions whose spatial filters are random and frozen: what is learned is how to combine them.

Gavrikov, Keuper, "The Power of Linear Combinations: Learning with Random Convolutions", 2023, arXiv 2301.11360. A
convolution of c_in to c_out channels becomes E c_out random filters F of c_in channels, then a learned 1 x 1
convolution A to c_out channels, with nothing between the two. Both are linear, so the pair is one convolution with the
kernels

    K_o = Σ_j A_oj F_j

Once E c_out >= c_in k², the filters span all kernels almost surely, and the pair can be any convolution.

Two ways lead to the same output. ``"direct"`` runs all E c_out filters over the image. ``"kernel"`` computes K = A F,
a small matrix product, and runs one ordinary convolution: then E costs next to nothing on large images. ``"auto"``
takes the one with fewer multiplications for the batch at hand, gradients included.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.state import full_precision
from striate.errors import InputError, LayerError

__all__ = ["Between", "FilterBank", "LCConv2d", "Path", "random_filters"]

Path = Literal["auto", "direct", "kernel"]
Between = Literal["nothing", "relu", "bn", "bn-relu"]

_SEED = "filters_seed"  # of a compact state dict, in the place of the random numbers


class FilterBank(nn.Module):
    """One row of random numbers that the filters of many layers are cut from.

    A layer takes the first E c_out c_in k² numbers, times the bound of its own default initialisation (a factor that
    the paper leaves open). Let one module of the network own the bank; the layers only refer to it.

    Args:
        size: how many numbers; as many as the largest layer needs.
        seed: of the numbers, on any machine the same.

    Attributes:
        numbers: (size,) uniform in [-1, 1), a buffer.
        seed: as given.
    """

    numbers: Tensor

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__()
        if size < 1:
            raise InputError("size", "FilterBank", allowed=">= 1", got=size)
        self.seed = seed
        self.register_buffer("numbers", _uniform((size,), 1.0, seed))

    def compact(self, state: dict[str, Any], prefix: str = "") -> None:
        """Put the seed in the place of the numbers, in a state dict that holds the bank under ``prefix``."""
        if torch.equal(_uniform(self.numbers.shape, 1.0, self.seed).to(self.numbers), self.numbers):
            del state[f"{prefix}numbers"]
            state[f"{prefix}{_SEED}"] = torch.tensor(self.seed)

    def expand(self, state: dict[str, Any], prefix: str = "") -> None:
        """Undo :meth:`compact`: put the numbers in the place of their seed."""
        seed = state.pop(f"{prefix}{_SEED}", None)
        if seed is not None:
            self.seed = int(seed)
            state[f"{prefix}numbers"] = _uniform(self.numbers.shape, 1.0, self.seed)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.expand(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Show size and seed."""
        return f"{len(self.numbers)}, seed={self.seed}"


class LCConv2d(nn.Module):
    """A convolution made of frozen random filters and their learned linear combinations; ResNet-LC's building block.

    Takes the place of ``nn.Conv2d``: same arguments, same shapes. Put nothing between the filters and their
    combination unless that is what you study: the paper's claims are about linear combinations.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, padding_mode: as of ``nn.Conv2d``, without
            groups.
        expansion: E: ``expansion * out_channels`` filters, a whole number.
        bias: of the combination; the paper has none.
        learn_filters: train the filters as well (the paper's "learnable LC").
        bank: cut the filters from this instead of drawing them.
        seed: of the filters; None draws one from PyTorch's global generator.
        between: ``"relu"``, ``"bn"`` or ``"bn-relu"`` between filters and combination (the paper's ablation).
        path: see the module's text.

    Attributes:
        filters: convolution with the random filters, (E c_out, c_in, kh, kw), PyTorch's default initialisation; None
            with a bank.
        combine: 1 x 1 convolution, (c_out, E c_out, 1, 1), PyTorch's default initialisation.
        seed: the filters come from it, bit for bit, until they are learned or loaded.

    Raises:
        InputError: ``expansion * out_channels`` is no whole number or below 1, the bank is too small, or a bank is to
            be learned.

    >>> layer = LCConv2d(16, 32, 3, expansion=4, padding=1)
    >>> layer(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 8, 8])
    >>> layer.collapse()
    Conv2d(16, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        expansion: float = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | Literal["same", "valid"] = 0,
        dilation: int | tuple[int, int] = 1,
        *,
        bias: bool = False,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        learn_filters: bool = False,
        bank: FilterBank | None = None,
        seed: int | None = None,
        between: Between = "nothing",
        path: Path = "auto",
    ) -> None:
        super().__init__()
        if path not in {"auto", "direct", "kernel"}:
            raise InputError("path", "LCConv2d", allowed="'auto', 'direct' or 'kernel'", got=path)
        if between not in {"nothing", "relu", "bn", "bn-relu"}:
            raise InputError("between", "LCConv2d", allowed="'nothing', 'relu', 'bn' or 'bn-relu'", got=between)
        if between != "nothing" and path == "kernel":
            raise InputError("path", "LCConv2d", allowed="'auto' or 'direct' with something between", got=path)
        if bank is not None and learn_filters:
            raise InputError("learn_filters", "LCConv2d", allowed="False with a bank", got=True)
        n = _whole(expansion, out_channels)
        self.in_channels, self.out_channels, self.expansion = in_channels, out_channels, expansion
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.padding_mode, self.path = padding_mode, path
        self.filters: nn.Conv2d | None = None
        self.bank: FilterBank | None = None
        if bank is None:
            self.filters = nn.Conv2d(
                in_channels, n, kernel_size, stride, padding, dilation, bias=False, padding_mode=padding_mode
            )
            self.filters.weight.requires_grad_(learn_filters)
            self.reseed(int(torch.randint(2**31 - 1, (), device="cpu")) if seed is None else seed)
        else:
            needed = n * in_channels * math.prod(self.kernel_size)
            if len(bank.numbers) < needed:
                raise InputError("bank", "LCConv2d", allowed=f"of at least {needed:,} numbers", got=len(bank.numbers))
            self.__dict__["bank"], self.seed = bank, bank.seed  # not a child: its owner saves and moves it
        self.between: nn.Module = nn.Identity()
        if between != "nothing":
            parts = {"bn": nn.BatchNorm2d(n), "relu": nn.ReLU()}
            self.between = nn.Sequential(*(parts[word] for word in between.split("-")))
        self.combine = nn.Conv2d(n, out_channels, 1, bias=bias)

    @property
    def filter_weight(self) -> Tensor:
        """F, (E c_out, c_in, kh, kw)."""
        if self.filters is not None:
            return self.filters.weight
        assert self.bank is not None
        shape = (self.combine.in_channels, self.in_channels, *self.kernel_size)
        numbers = self.bank.numbers[: math.prod(shape)].to(self.combine.weight)
        return numbers.view(shape) * _bound(shape)

    def kernel(self) -> Tensor:
        """Return K = A F, (c_out, c_in, kh, kw), with its graph; also under autocast in float32 or wider.

        Raises:
            LayerError: there is something between filters and combination, so that no such kernel exists.
        """
        if not isinstance(self.between, nn.Identity):
            raise LayerError(
                "This LCConv2d has an activation or a batch norm between its filters and their combination, so it is "
                "no single convolution. Only between='nothing' can be collapsed."
            )
        filters, combine = self.filter_weight, self.combine.weight
        wide = torch.promote_types(torch.promote_types(filters.dtype, combine.dtype), torch.float32)
        with full_precision(filters.device):
            kernel = combine.flatten(1).to(wide) @ filters.flatten(1).to(wide)
        return kernel.to(combine.dtype).view(self.out_channels, *filters.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, c_out, H', W') for (N, c_in, H, W), as ``nn.Conv2d`` would."""
        if self.takes_kernel_path(x):
            return self._convolve(x, self.kernel(), self.combine.bias)
        y = self.filters(x) if self.filters is not None else self._convolve(x, self.filter_weight, None)
        return self.combine(self.between(y))

    def takes_kernel_path(self, x: Tensor) -> bool:
        """Whether ``x``, (N, c_in, H, W), goes through one convolution with K = A F.

        On ``"auto"``: whether that takes fewer multiplications, forward and backward as far as gradients are wanted
        now. Frozen filters need no gradient of their own, but K does: so for E = 1 the direct path trains faster.
        """
        if self.path != "auto" or not isinstance(self.between, nn.Identity):
            return self.path == "kernel"
        *batch, height, width = x.shape[:-3] + x.shape[-2:]
        places = math.prod(batch) * math.ceil(height / self.stride[0]) * math.ceil(width / self.stride[1])
        taps, n, out = self.in_channels * math.prod(self.kernel_size), self.combine.in_channels, self.out_channels
        training = torch.is_grad_enabled()
        of_input = training and x.requires_grad
        of_filters = training and self.filters is not None and self.filters.weight.requires_grad
        of_combine = training and self.combine.weight.requires_grad
        # One product forward, and one more for each gradient that it has to pass on.
        direct = places * n * (taps * (1 + of_input + of_filters) + out * (1 + (of_input or of_filters) + of_combine))
        convolution = places * out * taps * (1 + of_input + (of_filters or of_combine))
        return convolution + n * out * taps * (1 + of_filters + of_combine) < direct

    def reseed(self, seed: int) -> None:
        """Draw the filters anew from ``seed``, on any device the same."""
        if self.filters is None:
            raise LayerError("These filters are cut from a bank; make a FilterBank with another seed instead.")
        with torch.no_grad():
            self.filters.weight.copy_(random_filters(self.filters.weight.shape, seed))
        self.seed = seed

    def collapse(self) -> nn.Conv2d:
        """Return the ordinary convolution that does the same, with kernel K and trainable.

        Raises:
            LayerError: there is something between filters and combination.
        """
        kernel, bias = self.kernel().detach(), self.combine.bias
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            bias=bias is not None, padding_mode=self.padding_mode, device=kernel.device, dtype=kernel.dtype,
        )  # fmt: skip
        with torch.no_grad():
            conv.weight.copy_(kernel)
            if bias is not None and conv.bias is not None:
                conv.bias.copy_(bias)
        return conv.train(self.training)

    def state_dict(self, *args: Any, compact: bool = False, **kwargs: Any) -> Any:
        """Return the tensors; with ``compact`` the seed in the place of filters that it gives bit for bit.

        :meth:`load_state_dict` takes both. Filters that were learned, or loaded from elsewhere, are always kept.
        """
        state = super().state_dict(*args, **kwargs)
        if compact:
            self.compact(state, kwargs.get("prefix", ""))
        return state

    def compact(self, state: dict[str, Any], prefix: str = "") -> None:
        """Put the seed in the place of this layer's filters, in a state dict that holds the layer under ``prefix``."""
        if self.filters is None:
            return
        weight = self.filters.weight.detach()
        if torch.equal(random_filters(weight.shape, self.seed).to(weight), weight):
            del state[f"{prefix}filters.weight"]
            state[f"{prefix}{_SEED}"] = torch.tensor(self.seed)

    def expand(self, state: dict[str, Any], prefix: str = "") -> None:
        """Undo :meth:`compact`: put the filters in the place of their seed."""
        seed = state.pop(f"{prefix}{_SEED}", None)
        if seed is not None and self.filters is not None:
            self.seed = int(seed)
            state[f"{prefix}filters.weight"] = random_filters(self.filters.weight.shape, self.seed)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.expand(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode == "zeros":
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)
        around: list[int] = []
        for axis in (1, 0):  # F.pad starts with the last
            total = self.dilation[axis] * (self.kernel_size[axis] - 1)
            if self.padding == "same":
                around += [total // 2, total - total // 2]
            else:
                around += [0, 0] if isinstance(self.padding, str) else [self.padding[axis]] * 2
        return F.conv2d(F.pad(x, around, mode=self.padding_mode), weight, bias, self.stride, 0, self.dilation)

    def extra_repr(self) -> str:
        """Show sizes, expansion and where the filters come from."""
        source = f"bank of seed {self.seed}" if self.filters is None else f"seed={self.seed}"
        learned = ", learned filters" if self.filters is not None and self.filters.weight.requires_grad else ""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{sizes}, expansion={self.expansion:g}, {source}{learned}"


def random_filters(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    """Return filters (n, c_in, kh, kw) as PyTorch initialises a convolution, uniform within 1 / √(c_in kh kw).

    float32 on the CPU, whatever the default; a seed gives the same numbers on every machine.
    """
    return _uniform(shape, _bound(shape), seed)


def _uniform(shape: torch.Size | tuple[int, ...], bound: float, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)


def _bound(shape: torch.Size | tuple[int, ...]) -> float:
    return 1 / math.sqrt(math.prod(shape[1:]))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _whole(expansion: float, out_channels: int) -> int:
    n = expansion * out_channels
    if not 1 <= n < math.inf or abs(n - round(n)) > 1e-9:
        allowed = f"at least 1/{out_channels} and give a whole number times {out_channels} output channels"
        raise InputError("expansion", "LCConv2d", allowed=allowed, got=expansion)
    return round(n)
