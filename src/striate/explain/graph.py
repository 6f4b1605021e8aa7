"""Reading the autograd graph: what a network computed, whatever its modules are called and however they are used.

A module hook misses ``F.relu``, and cannot tell the calls of a reused module apart. Every operation that ran has a node
of its own in the graph; that is where guided backprop and the bias decomposition look.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Node", "above", "is_relu", "nodes"]

Node = Any
"""torch.autograd.graph.Node; its saved tensors are attributes that the type does not declare."""


def nodes(output: Tensor) -> list[Node]:
    """Return every node of the graph of ``output``, each once, the last operation first."""
    seen: dict[Node, None] = {}
    waiting: list[Node] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen[node] = None
        waiting.extend(following for following, _ in node.next_functions)
    return list(seen)


def above(output: Tensor, leaf: Tensor) -> set[Node]:
    """Return the nodes between ``output`` and ``leaf``: those through which the gradient of ``leaf`` comes."""
    every = nodes(output)
    users: dict[Node, list[Node]] = {}
    for node in every:
        for following, _ in node.next_functions:
            if following is not None:
                users.setdefault(following, []).append(node)
    waiting = [node for node in every if getattr(node, "variable", None) is leaf]
    found: set[Node] = set()
    while waiting:
        for user in users.get(waiting.pop(), ()):
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def is_relu(node: Node) -> bool:
    """Whether a node is a ReLU: zero below zero, in any spelling that saves enough to tell.

    ``relu`` and ``relu_``, ReLU6 and other ``hardtanh`` from 0, ``clamp`` from 0, ``threshold`` at 0, ``maximum`` with
    zeros. A ReLU written as ``torch.where`` or as a product with a mask cannot be told from other uses of these.
    """
    name = node.name()
    if name == "ReluBackward0":
        return True
    if name == "HardtanhBackward0":
        return float(node._saved_min_val) == 0
    if name in {"ClampBackward1", "ClampMinBackward0"}:
        return node._saved_min is not None and float(node._saved_min) == 0
    if name == "ThresholdBackward0":
        return float(node._saved_threshold) == 0
    if name == "MaximumBackward0":
        return any(not bool(torch.any(side)) for side in (node._saved_self, node._saved_other))
    return False
