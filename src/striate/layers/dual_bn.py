"""Two sets of batch normalisation in one network: one for clean images, one for adversarial ones.

Xie, Tan, Gong, Wang, Yuille, Le, "Adversarial Examples Improve Image Recognition" (AdvProp), 2020, arXiv 1911.09665.
Clean and adversarial images have other channel statistics; AdvProp shares every weight between the two but the batch
norms. The main set is used for clean images and at inference, the auxiliary one for adversarial images in training.

A converted network keeps the names of the original's tensors for its main set and adds ``….aux.…`` beside them. So the
checkpoint of the plain network loads, strictly, and starts both sets as equal copies.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from striate.errors import InputError, LayerError

__all__ = ["Branch", "DualBatchNorm", "bn_branch", "convert_dual_bn", "drop_aux_bn", "set_bn_branch"]

Branch = Literal["main", "aux"]


class DualBatchNorm(nn.Module):
    """A batch norm and its auxiliary twin; ``branch`` says which one is used.

    Args:
        main: any batch norm (1d, 2d, 3d, synchronised, or a subclass with an activation inside, as timm's); taken
            over as it is. The twin starts as its copy.

    Attributes:
        branch: ``"main"`` or ``"aux"``.
    """

    def __init__(self, main: _BatchNorm) -> None:
        super().__init__()
        if not isinstance(main, _BatchNorm):
            raise InputError("main", "DualBatchNorm", allowed="a batch norm", got=type(main).__name__)
        self.main = main
        self.aux = copy.deepcopy(main)
        self.branch: Branch = "main"

    @property
    def num_features(self) -> int:
        """Number of channels."""
        return self.main.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` by the batch norm of the current branch; same shape."""
        return self.main(x) if self.branch == "main" else self.aux(x)

    def extra_repr(self) -> str:
        """Show the branch in the network's printout."""
        return f"branch={self.branch}"

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the tensors, the main set under the names that the plain batch norm has."""
        destination = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        for key in [key for key in destination if key.startswith(prefix)]:  # all, so that their order stays
            destination[prefix + key.removeprefix(prefix).removeprefix("main.")] = destination.pop(key)
        return destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        plain = [key for key in state_dict if key.startswith(prefix) and not key.startswith(f"{prefix}aux.")]
        has_aux = any(key.startswith(f"{prefix}aux.") for key in state_dict)
        for key in plain:
            name = key.removeprefix(prefix)
            value = state_dict.pop(key)
            state_dict[f"{prefix}main.{name}"] = value
            if not has_aux:
                state_dict[f"{prefix}aux.{name}"] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def convert_dual_bn(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in which every batch norm is a :class:`DualBatchNorm`, on its main branch.

    The copy computes what the model computes. Batch norms that are dual already stay; one that stands in several
    places of the network stays one.

    Raises:
        LayerError: there is no batch norm in it.
    """
    converted = _replaced(copy.deepcopy(model), _BatchNorm, DualBatchNorm)
    if not any(isinstance(module, DualBatchNorm) for module in converted.modules()):
        raise LayerError(
            f"{type(model).__name__} has no batch norm, so it cannot have two sets of them (AdvProp): "
            "train it adversarially without (AdversarialTrainer), or take a network with batch norms."
        )
    return converted


def drop_aux_bn(model: nn.Module) -> nn.Module:
    """Return a copy of a converted network with its main batch norms only: the plain network that AdvProp deploys."""
    _dual(model, "drop_aux_bn")
    return _replaced(copy.deepcopy(model), DualBatchNorm, lambda dual: dual.main)


def set_bn_branch(model: nn.Module, branch: Branch) -> None:
    """Use the ``"main"`` or the ``"aux"`` batch norms of ``model`` from now on.

    Raises:
        InputError: another branch.
        LayerError: the network was not converted.
    """
    if branch not in {"main", "aux"}:
        raise InputError("branch", "set_bn_branch", allowed="'main' or 'aux'", got=branch)
    for module in _dual(model, "set_bn_branch"):
        module.branch = branch


@contextmanager
def bn_branch(model: nn.Module, branch: Branch) -> Iterator[None]:
    """Use one branch inside a ``with`` block; each layer returns to its own after, also after an exception."""
    before = [(module, module.branch) for module in _dual(model, "bn_branch")]
    set_bn_branch(model, branch)
    try:
        yield
    finally:
        for module, old in before:
            module.branch = old


def _dual(model: nn.Module, owner: str) -> list[DualBatchNorm]:
    found = [module for module in model.modules() if isinstance(module, DualBatchNorm)]
    if not found:
        raise LayerError(f"{owner}: {type(model).__name__} has no dual batch norm; convert it with convert_dual_bn.")
    return found


def _replaced(model: nn.Module, kind: type[nn.Module], make: Any) -> nn.Module:
    """Replace every outermost ``kind`` in ``model`` in place; the same module object is replaced by the same one."""
    made: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        if isinstance(module, kind):
            made[id(module)] = make(module).train(module.training)
            return made[id(module)]
        made[id(module)] = module
        if not isinstance(module, DualBatchNorm):
            for name, child in module._modules.items():  # named_children leaves out the second place of a shared one
                if child is not None:
                    setattr(module, name, visit(child))
        return module

    return visit(model)
