"""Self-attention of any network: its softmax matrices, and a temperature for its softmax.

The temperature is the defence of Gu, Tresp, Qin, "Are Vision Transformers Robust to Patch Perturbations?", 2022, arXiv
2111.10659: softmax(Q Kᵀ / (√d T)) V with T > 1 in every self-attention, without retraining. It divides Q Kᵀ alone;
a relative position bias keeps its weight and a mask keeps masking.

Changing ``attn.scale`` does nothing in timm while ``fused_attn`` is True, and ``torch.nn.MultiheadAttention`` has a
compiled fast path that no hook sees. So nothing is patched here by class: while an attention module runs, its own
calls of ``scaled_dot_product_attention``, matrix product and softmax are met on the way. That holds for timm (fused
or not, windows, rotary, hybrids), torchvision, ``torch.nn`` and Hugging Face's style alike, and gradients flow. A
module that was counted but computes its attention in another way is refused when it runs, never passed over.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from striate.engine.state import device_of, inspected, is_compiled
from striate.errors import InputError, ModelError

__all__ = [
    "LayerAttention",
    "SmoothedAttention",
    "attention_entropy",
    "attention_modules",
    "attention_weights",
    "smooth_attention",
]

_PROJECTIONS = (
    {"qkv"},
    {"qkvs"},
    {"to_qkv"},
    {"qk", "v"},
    {"q", "k", "v"},
    {"q", "kv"},
    {"to_q", "to_kv"},
    {"to_q", "to_k", "to_v"},
    {"query", "key", "value"},
    {"q_proj", "k_proj", "v_proj"},
)
_SDPA = F.scaled_dot_product_attention
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
_PRODUCTS = frozenset(
    {torch.matmul, torch.bmm, torch.einsum, Tensor.matmul, Tensor.bmm, Tensor.__matmul__, Tensor.__rmatmul__}
)
_SOFTMAXES = frozenset({torch.softmax, F.softmax, Tensor.softmax, torch.special.softmax})


class LayerAttention(NamedTuple):
    """What one attention module looked at in one forward pass.

    Attributes:
        layer: path of the module.
        weights: (B, heads, N, N) softmax matrices before dropout, rows sum to 1; B counts windows where attention
            is within windows.
    """

    layer: str
    weights: Tensor


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every self-attention of ``model`` by its path.

    A module counts if it is a ``torch.nn.MultiheadAttention`` or owns projections to query, key and value by one of
    the names in use (``qkv``, ``q``/``k``/``v``, ``q``/``kv``, ``query``/``key``/``value``, ``q_proj``/…). Pooling
    by a learned query is not self-attention and is left out.
    """
    return {path: module for path, module in model.named_modules() if _is_attention(module)}


class smooth_attention:  # noqa: N801 - used as a verb, like torch.no_grad
    """Divide the attention logits Q Kᵀ/√d of every self-attention by a temperature.

    In force from the call on, until :meth:`remove`; as a context manager, until the block ends. Two of them
    multiply. Attention weights, gradients and attacks taken meanwhile are those of the smoothed network.

    Args:
        model: any network; its weights, mode and ``forward`` are not touched.
        temperature: T > 0; 1 is the network as it is, larger is more even. A relative position bias is not divided,
            so T → ∞ leaves it alone to decide; without one, T → ∞ is the plain mean of V.

    Attributes:
        count: number of attention modules altered.
        layers: their paths.

    Raises:
        InputError: T is not positive and finite.
        ModelError: the network has no self-attention, or went through ``torch.compile`` (code that another module was
            compiled to with this network in it, is not found, and stays as it was); or, when it runs, one that
            computes no softmax of Q Kᵀ.

    >>> import timm
    >>> model = timm.models.VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2)
    >>> with smooth_attention(model, 1.4) as smoothed:
    ...     smoothed.count
    2
    """

    def __init__(self, model: nn.Module, temperature: float) -> None:
        if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
            raise InputError("temperature", "smooth_attention", allowed="a finite number > 0", got=temperature)
        if any(map(is_compiled, model.modules())):
            raise ModelError(
                f"{type(model).__name__} went through torch.compile, and compiled code does not see a temperature: "
                "smooth the network as it was before, and run that."
            )
        modules = _required(model, "smooth_attention")
        self.temperature = float(temperature)
        self.layers = tuple(modules)
        self.count = len(modules)
        self._hooks = [
            hook for path, module in modules.items() for hook in _watch(module, path, _Smoother(self.temperature))
        ]

    def remove(self) -> None:
        """Take the temperature away again; calling it twice does no harm."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> smooth_attention:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<smooth_attention T={self.temperature:g} on {self.count} modules>"


class SmoothedAttention(nn.Module):
    """A network whose self-attention runs at a temperature, as a module to hand on.

    The network inside is smoothed for good: also where it is called by another name.

    Args:
        model, temperature: see :class:`smooth_attention`.

    Attributes:
        count: number of attention modules altered.
    """

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        handle = smooth_attention(model, temperature)
        self.model = model
        self.temperature, self.count = handle.temperature, handle.count
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the network returns at the temperature."""
        return self.model(x)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"temperature={self.temperature:g}, count={self.count}"


def attention_weights(model: nn.Module, x: Tensor) -> list[LayerAttention]:
    """Return the softmax matrices of every self-attention in one forward pass, in order of execution.

    Fused attention is computed unfused for this pass alone. The result is differentiable; call it under
    ``torch.no_grad()`` where no gradient is wanted.

    Args:
        model: any network; evaluated in eval mode and handed back as it came.
        x: (B, C, H, W), in the space that the model takes; moved to where it is.

    Raises:
        ModelError: the network has no self-attention, or one that computes no softmax of Q Kᵀ.
    """
    seen: list[LayerAttention] = []
    hooks = [
        hook
        for path, module in _required(model, "attention_weights").items()
        for hook in _watch(module, path, _Recorder(path, seen))
    ]
    try:
        with inspected(model, warn=False):
            model(x.to(device_of(model, x.device)))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def attention_entropy(attentions: Iterable[LayerAttention]) -> dict[str, float]:
    """Return the mean entropy of the attention rows of each layer, in nats: 0 is one-hot, log N is uniform."""
    return {
        item.layer: float(torch.special.entr(item.weights.detach().double()).sum(dim=-1).mean()) for item in attentions
    }


class _Smoother:
    """Makes the mode that divides Q Kᵀ by T."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, module: nn.Module) -> _AttentionMode:
        return _AttentionMode(module, temperature=self.temperature)


class _Recorder:
    """Makes the mode that keeps the softmax matrices."""

    def __init__(self, layer: str, seen: list[LayerAttention]) -> None:
        self.layer, self.seen = layer, seen

    def __call__(self, module: nn.Module) -> _AttentionMode:
        def keep(weights: Tensor) -> None:
            heads = getattr(module, "num_heads", None)
            if weights.dim() == 3:  # one head, or (B * heads, N, N)
                split = heads if isinstance(heads, int) and weights.shape[0] % heads == 0 else 1
                weights = weights.unflatten(0, (-1, split))
            self.seen.append(LayerAttention(self.layer, weights))

        return _AttentionMode(module, keep=keep)


class _AttentionMode(TorchFunctionMode):
    """Meets the attention arithmetic of one forward pass of one module.

    Unfused attention is product, softmax, product: the products before a softmax are those with Q (Q Kᵀ and, in a few
    networks, Q times a position table) and the one after it is the product with V.
    """

    def __init__(
        self, module: nn.Module, *, temperature: float = 1.0, keep: Callable[[Tensor], None] | None = None
    ) -> None:
        super().__init__()
        self.module = type(module).__name__
        self.temperature = temperature
        self.keep = keep
        self.met = False
        self._products, self._softmaxed = 0, False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_compiling():  # traced, the call made below would be met once more
            raise ModelError("Attention at a temperature cannot be compiled; compile the network without.")
        kwargs = kwargs or {}
        if func is _SDPA:
            self.met = True
            return self._fused(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            self.met = True
            return self._multi_head(*args, **kwargs)
        if func in _PRODUCTS and _is_token_product(args):
            return self._product(func(*args, **kwargs))
        result = func(*args, **kwargs)
        if func in _SOFTMAXES and self._products and not self._softmaxed:
            self.met = self._softmaxed = True
            if self.keep is not None:
                self.keep(result)
        return result

    def _product(self, result: Tensor) -> Tensor:
        if self._softmaxed:  # attention times V ends one round; a cascade of heads starts the next
            self._products, self._softmaxed = 0, False
            return result
        self._products += 1
        return result / self.temperature if self.temperature != 1 else result

    def _multi_head(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """torch.nn.MultiheadAttention's one call. Nothing stands between its query projection and the product."""
        call = _MULTI_HEAD.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        if self.temperature != 1:
            width = given["embed_dim_to_check"]
            for name in ("q_proj_weight",) if given["use_separate_proj_weight"] else ("in_proj_weight",):
                given[name] = _divided(given[name], width, self.temperature)
            if given["in_proj_bias"] is not None:
                given["in_proj_bias"] = _divided(given["in_proj_bias"], width, self.temperature)
        if self.keep is None:
            return F.multi_head_attention_forward(*call.args, **call.kwargs)
        wanted, averaged = given["need_weights"], given["average_attn_weights"]
        given["need_weights"], given["average_attn_weights"] = True, False
        output, weights = cast(tuple[Tensor, Tensor], F.multi_head_attention_forward(*call.args, **call.kwargs))
        self.keep(weights if weights.dim() == 4 else weights[None])
        return output, (weights.mean(dim=-3) if averaged else weights) if wanted else None

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if self.keep is None:
            return _SDPA(
                query,
                key,
                value,
                attn_mask=attn_mask,
                dropout_p=dropout_p,
                is_causal=is_causal,
                scale=scale / self.temperature,
                enable_gqa=enable_gqa,
            )
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
        # An outer temperature meets this product and divides it, exactly as in unfused attention.
        logits = torch.matmul(query * scale, key.transpose(-2, -1))
        if is_causal:
            n, m = logits.shape[-2:]
            attn_mask = torch.ones(n, m, dtype=torch.bool, device=logits.device).tril()
        if attn_mask is not None:
            mask = attn_mask
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        weights = torch.softmax(logits, dim=-1)
        self.keep(weights)
        return torch.matmul(F.dropout(weights, dropout_p, training=dropout_p > 0), value)


class _Enter:
    """Forward pre-hook: open a mode for the pass. Objects, not closures, so that a smoothed model can be copied."""

    def __init__(
        self, make: Callable[[nn.Module], _AttentionMode], open_modes: dict[int, list[_AttentionMode]]
    ) -> None:
        self.make, self.open_modes = make, open_modes

    def __call__(self, module: nn.Module, args: Any) -> None:
        mode = self.make(module)
        mode.__enter__()
        self.open_modes.setdefault(threading.get_ident(), []).append(mode)


class _Leave:
    """Forward hook: close the mode, also after an exception, and refuse a pass in which nothing was met."""

    def __init__(self, path: str, open_modes: dict[int, list[_AttentionMode]]) -> None:
        self.path, self.open_modes = path, open_modes

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        mode = self.open_modes[threading.get_ident()].pop()
        mode.__exit__(None, None, None)
        if output is not None and not mode.met:
            raise ModelError(
                f"{self.path} ({mode.module}) projects to query, key and value but computes no softmax of Q Kᵀ that "
                "can be met: linear attention, a compiled module or a kernel of its own. It has no temperature."
            )


def _watch(module: nn.Module, path: str, make: Callable[[nn.Module], _AttentionMode]) -> list[Any]:
    open_modes: dict[int, list[_AttentionMode]] = {}
    return [
        module.register_forward_pre_hook(_Enter(make, open_modes)),
        # Modes nest, so the hook that entered last leaves first.
        module.register_forward_hook(_Leave(path, open_modes), prepend=True, always_call=True),
    ]


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    own = {name for name, child in module.named_children() if child is not None}
    return not hasattr(module, "latent") and any(names <= own for names in _PROJECTIONS)


def _required(model: nn.Module, owner: str) -> dict[str, nn.Module]:
    modules = attention_modules(model)
    if not modules:
        raise ModelError(f"{owner}: {type(model).__name__} has no self-attention, so there is nothing to do for it.")
    return modules


def _divided(projection: Tensor, width: int, temperature: float) -> Tensor:
    """Divide the query's rows, the first ``width``, of an input projection."""
    return torch.cat([projection[:width] / temperature, projection[width:]])


def _is_token_product(args: tuple[Any, ...]) -> bool:
    """Whether both factors are activations in batches; a product with a 2-D weight is a projection."""
    tensors = [item for item in args if isinstance(item, Tensor)]
    if len(tensors) < 2 and len(args) > 1 and isinstance(args[1], list | tuple):  # einsum(equation, [a, b])
        tensors = [item for item in args[1] if isinstance(item, Tensor)]
    return len(tensors) >= 2 and all(item.dim() >= 3 and not isinstance(item, nn.Parameter) for item in tensors[:2])
