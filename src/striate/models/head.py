"""What timm asks of a network that ends in one layer on pooled features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from striate.errors import InputError
from striate.layers.init import init_linear

__all__ = ["PooledClassifier", "check_least"]


class PooledClassifier(nn.Module):
    """A network whose last layer can be asked for and replaced.

    A subclass has ``num_classes``, ``num_features``, ``feature_info``, ``forward_features``, ``forward_head`` and
    ``group_matcher``.

    Attributes:
        head_name: the last layer's place in the network, ``"classifier.head"``.
        global_pool: ``"avg"``, or ``""`` for a network that returns its last map.
        grad_checkpointing: whether training computes the stages again instead of keeping what is in them.
    """

    head_name: ClassVar[str] = "head"
    grad_checkpointing: bool = False
    global_pool: str = "avg"
    num_classes: int
    num_features: int
    feature_info: list[dict[str, Any]]

    @property
    def head_hidden_size(self) -> int:
        """Width of what the last layer takes."""
        return self.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or the pooled features (N, num_features), of :meth:`forward_features`'s map."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return :meth:`forward_features`'s map and a list of maps on the way, those of ``features_only``.

        Args:
            x: images.
            indices: which of ``feature_info``; a number for the last so many, None for all.
            norm: give the last of them as :meth:`forward_features` does, normalised.
            stop_early: timm's; the pass always goes to the end.
            output_fmt: ``"NCHW"``.
            intermediates_only: return the list alone.
        """
        if output_fmt != "NCHW":
            raise InputError("output_fmt", type(self).__name__, allowed="NCHW", got=output_fmt)
        count = len(self.feature_info)
        wanted = range(count) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        if not all(-count <= i < count for i in wanted):
            raise InputError("indices", type(self).__name__, allowed=f"of {count} maps", got=indices)
        maps: dict[int, Tensor] = {}

        def keep(i: int) -> Any:
            return lambda module, inputs, output: maps.update({i: output})

        hooks = [
            self.get_submodule(self.feature_info[i]["module"]).register_forward_hook(keep(i))
            for i in {i % count for i in wanted}
        ]
        try:
            last = self.forward_features(x)
        finally:
            for hook in hooks:
                hook.remove()
        if norm and count - 1 in maps:
            maps[count - 1] = last
        found = list(maps.values())
        return found if intermediates_only else (last, found)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network another last layer, freshly drawn; 0 classes for none.

        Args:
            num_classes: outputs.
            global_pool: ``"avg"``, ``""`` for none, which goes with 0 classes, or None for what it was.
        """
        self._set_head(num_classes, global_pool)
        self._replace(self.head_name, self._new_head())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the parameters of selective scans; the authors decayed the matrices (A_logs, dt_projs_bias)."""
        names = ("A_logs", "Ds", "dt_projs_bias")
        return {name for name, _ in self.named_parameters() if name.endswith(names)}

    def pooled(self, x: Tensor) -> Tensor:
        """Return the mean over all places, (N, C), or the map as it is where pooling was taken out."""
        return x.mean(dim=tuple(range(2, x.dim()))) if self.global_pool else x

    def _set_head(self, num_classes: int, global_pool: str | None) -> None:
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in {"avg", ""} or (not pool and num_classes):
            allowed = "'avg', or '' with num_classes=0"
            raise InputError("global_pool", type(self).__name__, allowed=allowed, got=(pool, num_classes))
        self.num_classes, self.global_pool = num_classes, pool

    def _new_head(self) -> nn.Module:
        head = nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()
        init_linear(head)
        return head

    def _replace(self, name: str, head: nn.Module) -> None:
        like = next(self.parameters())
        owner, _, last = name.rpartition(".")
        setattr(self.get_submodule(owner), last, head.to(like.device, like.dtype).train(self.training))


def check_least(x: Tensor, least: int, owner: str) -> None:
    """Refuse images of fewer pixels a side than a network has patches for."""
    if min(x.shape[-2:]) < least:
        raise InputError("x", owner, allowed=f"at least {least} pixels high and wide", got=tuple(x.shape))
