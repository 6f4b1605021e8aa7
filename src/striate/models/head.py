"""What timm asks of a network that ends in one layer on pooled features."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from striate.layers.init import init_linear

__all__ = ["PooledClassifier"]


class PooledClassifier(nn.Module):
    """A network whose last layer can be asked for and replaced.

    A subclass has ``num_classes``, ``num_features``, ``forward_features`` and ``forward_head``.

    Attributes:
        head_name: the last layer's place in the network, ``"classifier.head"``.
        grad_checkpointing: whether training computes the stages again instead of keeping what is in them.
    """

    head_name: ClassVar[str] = "head"
    grad_checkpointing: bool = False
    num_classes: int
    num_features: int

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or the pooled features (N, num_features), of :meth:`forward_features`'s map."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network another last layer, freshly drawn; 0 classes for none. Pooling is always the mean."""
        self.num_classes = num_classes
        self._replace(self.head_name, self._new_head())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the parameters of selective scans; the authors decayed the matrices (A_logs, dt_projs_bias)."""
        names = ("A_logs", "Ds", "dt_projs_bias")
        return {name for name, _ in self.named_parameters() if name.endswith(names)}

    def _new_head(self) -> nn.Module:
        head = nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()
        init_linear(head)
        return head

    def _replace(self, name: str, head: nn.Module) -> None:
        like = next(self.parameters())
        owner, _, last = name.rpartition(".")
        setattr(self.get_submodule(owner), last, head.to(like.device, like.dtype))
