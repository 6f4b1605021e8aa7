"""The light UniFormers: their attention keeps half of the tokens and moves the rest by one that sums them up.

Li, Wang, Zhang, Gao, Song, Liu, Li, Qiao, "UniFormer: Unifying Convolution and Self-attention for Visual Recognition",
TPAMI 2023, arXiv 2201.09450, section 3.5; the choice of tokens is that of Xu et al., "Evo-ViT: Slow-Fast Token
Evolution for Dynamic Vision Transformer", AAAI 2022, arXiv 2108.01390. A class token rates the others by the attention
that it pays them. The authors keep that rating in a global variable; here it goes from block to block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.init import init_linear
from striate.layers.mhra import MLP, DynamicPositionEmbedding, GlobalMHRA, PatchEmbed
from striate.layers.recompute import recomputed
from striate.models.head import PooledClassifier, check_least
from striate.models.uniformer import LocalBlock
from striate.models.uniformer import checkpoint_filter_fn as uniformer_filter_fn
from striate.models.variant import Variant, build

__all__ = ["VARIANTS", "EvoBlock", "UniFormerLight", "checkpoint_filter_fn", "uniformer_xs", "uniformer_xxs"]


class EvoBlock(nn.Module):
    """Position embedding, then attention and perceptron over the best rated tokens and one that sums up the rest.

    Args:
        dim: channels; (N, C, H, W) stays.
        num_heads: of the attention.
        mlp_ratio: width of the perceptron, in units of ``dim``.
        drop_path: share of samples whose branches are dropped in training.
        keep: share of tokens that are attended to one by one; 1 for all, and then none sums up.
        trade_off: weight of this block's attention in the rating; the rest is the rating so far.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 3.0,
        drop_path: float = 0.0,
        keep: float = 0.5,
        trade_off: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.keep, self.trade_off = keep, trade_off
        self.pos_embed = DynamicPositionEmbedding(dim)
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), _RatingAttention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), MLP(nn.Linear(dim, hidden), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, token: Tensor, rating: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return map, class token and rating after this block.

        Args:
            x: (N, C, H, W).
            token: the class token, (N, 1, C).
            rating: of each place, (N, H W); None only where ``keep`` is 1 and nothing was rated before.
        """
        x = self.pos_embed(x)
        shape = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        if self.keep == 1:
            both, _, seen = self._mix(torch.cat([token, tokens], dim=1))
            rating = seen[:, 1:] if rating is None else torch.lerp(rating, seen[:, 1:], self.trade_off)
            return both[:, 1:].transpose(1, 2).reshape(shape), both[:, :1], rating
        assert rating is not None
        kept = int(tokens.shape[1] * self.keep)
        rating, order = rating.sort(dim=1, descending=True)
        tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        rest, weight = tokens[:, kept:], rating[:, kept:, None]
        weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        summary = (weight * rest).sum(dim=1, keepdim=True).to(rest.dtype)
        few, change, seen = self._mix(torch.cat([token, tokens[:, :kept], summary], dim=1))
        rest = rest + change[:, -1:]
        rating = torch.cat([torch.lerp(rating[:, :kept], seen[:, 1:-1], self.trade_off), rating[:, kept:]], dim=1)
        back = order.sort(dim=1).indices
        tokens = torch.cat([few[:, 1:-1], rest], dim=1).gather(1, back[..., None].expand_as(tokens))
        # A copy in plain order: gathering gives a single image a stride that PyTorch's batch norm gets wrong backwards.
        x = tokens.transpose(1, 2).reshape(shape).clone(memory_format=torch.contiguous_format)
        return x, few[:, :1], rating.gather(1, back)

    def _mix(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens after both branches, what the branches added before any was dropped, the class token's attention."""
        attended, seen = self.attn.rate(self.norm1(tokens))
        tokens = tokens + self.drop_path(attended)
        made = self.mlp(self.norm2(tokens))
        return tokens + self.drop_path(made), attended + made, seen


class _RatingAttention(GlobalMHRA):
    def rate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L, C) -> (N, L, C), and the first token's attention to every one, (N, L), averaged over heads."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = q[:, :, :1] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        seen = seen.to(torch.promote_types(seen.dtype, torch.float32)).softmax(dim=-1).mean(dim=1)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), seen[:, 0]


class UniFormerLight(PooledClassifier):
    """The network: a convolutional stem, two stages of local blocks, two of attention over half of the tokens.

    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        head_dim: channels of an attention head.
        mlp_ratio: of every block.
        class_head: with a classifier on the class token too, which the authors train beside the one on the mean, the
            two losses weighing the same, and do not use afterwards. In training the network then returns both logits.
        in_chans: channels of the image.
        num_classes: outputs; 0 for none.
        global_pool: ``"avg"``; ``""``, with 0 classes, for the last map.
        drop_rate: dropout before the head.
        drop_path_rate: of the last block, rising linearly from 0 at the first.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 5, 8, 2),
        dims: Sequence[int] = (56, 112, 224, 448),
        head_dim: int = 28,
        mlp_ratio: float = 3.0,
        class_head: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or len(dims) != 4 or any(dim % head_dim for dim in dims[2:]):
            allowed = f"four stages, multiples of head_dim ({head_dim}) in the last two"
            raise InputError("dims", "UniFormerLight", allowed=allowed, got=(tuple(depths), tuple(dims)))
        self._set_head(num_classes, global_pool)
        self.num_features = dims[-1]
        self.feature_info: list[dict[str, Any]] = []
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            self.add_module(f"patch_embed{i + 1}", _embed(dims[i - 1], dim) if i else _stem(in_chans, dim))
            blocks = nn.ModuleList()
            for j in range(depth):
                everything = i == 2 and j == 0  # nothing is rated yet
                extra = {"keep": 1.0, "trade_off": 1.0} if everything else {}
                rate, heads = next(rates), dim // head_dim
                local = i < 2
                blocks.append(
                    LocalBlock(dim, mlp_ratio, rate) if local else EvoBlock(dim, heads, mlp_ratio, rate, **extra)
                )
            self.add_module(f"blocks{i + 1}", blocks)
            self.add_module(f"map{i + 1}", nn.Identity())  # where features are taken: blocks return more than a map
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**i, "module": f"map{i + 1}"})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[2]))
        self.cls_upsample = nn.Linear(dims[2], dims[3])
        self.norm = nn.BatchNorm2d(dims[3])
        self.drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(dims[3], num_classes) if num_classes else nn.Identity()
        self.norm_cls = nn.LayerNorm(dims[3]) if class_head else None
        self.head_cls = nn.Linear(dims[3], num_classes) if class_head and num_classes else None
        self.apply(init_linear)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map (N, C, H / 32, W / 32), normalised."""
        return self._features(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or the pooled features (N, C), of :meth:`forward_features`'s map."""
        x = self.drop(self.pooled(x))
        return x if pre_logits else self.head(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns for a learning rate by depth; with ``coarse`` a stage is one depth, else a block is."""
        fine = [(r"^patch_embed(\d)", (0,)), (r"^blocks(\d)\.(\d+)", None)]
        tokens = [(r"^cls_token", (3, 0)), (r"^cls_upsample", (4, 0))]  # where they come in
        stages = [(r"^(?:patch_embed|blocks)(\d)", None), *((name, at[:1]) for name, at in tokens)]
        return {"stem": r"^patch_embed1", "blocks": stages if coarse else [*fine, *tokens]}

    def forward(self, x: Tensor) -> Any:
        """Return logits (N, num_classes); with ``class_head``, in training, a pair of them."""
        x, token = self._features(x)
        logits = self.forward_head(x)
        if not self.training or self.head_cls is None or self.norm_cls is None:
            return logits
        return logits, self.head_cls(self.norm_cls(token))

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_least(x, 29, "UniFormerLight")  # 8 places after the stem, then three halvings
        for i in (1, 2):
            x = self.get_submodule(f"patch_embed{i}")(x)
            for block in self.get_submodule(f"blocks{i}").children():
                x = self._run(block, x)
            x = self.get_submodule(f"map{i}")(x)
        token, rating = self.cls_token.expand(x.shape[0], -1, -1), None
        for i in (3, 4):
            if rating is not None:
                token, rating = self.cls_upsample(token), _halved(rating, x.shape[2:])
            x = self.get_submodule(f"patch_embed{i}")(x)
            for block in self.get_submodule(f"blocks{i}").children():
                x, token, rating = self._run(block, x, token, rating)
            x = self.get_submodule(f"map{i}")(x)
        return self.norm(x), token[:, 0]

    def _run(self, block: nn.Module, *args: Any) -> Any:
        return recomputed(block, *args) if self.grad_checkpointing and self.training else block(*args)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network another head, freshly drawn, on the class token as well if it has one; 0 for none."""
        super().reset_classifier(num_classes, global_pool)
        if self.norm_cls is not None:
            self.head_cls = None
            if num_classes:
                self._replace("head_cls", self._new_head())

    def no_weight_decay(self) -> set[str]:
        """Return the class token."""
        return {"cls_token"}


def _stem(channels: int, dim: int) -> PatchEmbed:
    half = dim // 2
    layers: list[nn.Module] = [nn.Conv2d(channels, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU()]
    return PatchEmbed(nn.Sequential(*layers, nn.Conv2d(half, dim, 3, 2, 1), nn.BatchNorm2d(dim)))


def _embed(channels: int, dim: int) -> PatchEmbed:
    return PatchEmbed(nn.Conv2d(channels, dim, 2, 2), nn.LayerNorm(dim))


def _halved(rating: Tensor, size: torch.Size) -> Tensor:
    """The rating of the next stage's places: means of four, with the sum that it had."""
    pooled = F.avg_pool2d(rating.unflatten(1, size)[:, None], 2).flatten(1)
    total = rating.sum(dim=1, keepdim=True)
    return pooled * (total / pooled.sum(dim=1, keepdim=True).clamp_min(torch.finfo(pooled.dtype).tiny))


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Map an authors' checkpoint to our names; the class token's classifier is dropped where the network has none."""
    named = uniformer_filter_fn(state_dict, model)
    if getattr(model, "norm_cls", None) is not None:
        return named
    return {name: value for name, value in named.items() if not name.startswith(("norm_cls.", "head_cls."))}


def _variant(parameters: int, macs: float, top1: float, **options: Any) -> Variant:
    return Variant("uniformer", parameters, macs, top1, "Apache-2.0", crop_pct=0.9, options=options)


VARIANTS = {
    "uniformer_xxs": _variant(9_765_384, 1.299, 80.6),
    "uniformer_xs": _variant(15_995_240, 1.931, 82.0, depths=(3, 5, 9, 3), dims=(64, 128, 256, 512), head_dim=32),
}
default_cfgs = generate_default_cfgs(
    {name: variant.config(first_conv="patch_embed1.proj.0", classifier="head") for name, variant in VARIANTS.items()}
)


@register_model
def uniformer_xxs(pretrained: bool = False, **options: Any) -> nn.Module:
    """UniFormer-XXS: 9.8 M parameters (10.2 M with ``class_head``), 1.3 G."""
    return build(
        UniFormerLight, "uniformer_xxs", VARIANTS["uniformer_xxs"], checkpoint_filter_fn, pretrained, **options
    )


@register_model
def uniformer_xs(pretrained: bool = False, **options: Any) -> nn.Module:
    """UniFormer-XS: 16.0 M parameters (16.5 M with ``class_head``), 1.9 G."""
    return build(UniFormerLight, "uniformer_xs", VARIANTS["uniformer_xs"], checkpoint_filter_fn, pretrained, **options)
