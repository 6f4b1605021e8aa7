"""Ablation-CAM: channel weights from how far the score falls when a channel is removed, measured, not approximated.

Desai & Ramaswamy, WACV 2020. Removing channel k of a layer's response F means to run the layers above with F^k = 0.
The paper's weight is w_k = (S(F) - S(F \\ F^k)) / S(F); with ``oracle=True`` the drop is divided by sum F^k instead,
which fulfils the axiom of sensitivity exactly (Fu et al. 2020, arXiv 2008.02312): a reference for other CAMs.

Two things make it fast, and neither approximates: only the network's tail runs (:mod:`striate.explain.tail`), and
channels that answer nothing are not run, for their drop is 0. (Subtracting a channel's own share from the output of a
linear layer above was tried as well: it cost more than it saved.)
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from striate.engine.check import Check
from striate.errors import InputError, UnstableWarning
from striate.explain.base import RawMap, Target, resolve_target, score
from striate.explain.cam_base import CamExplainer, Scorer, full_precision, located, row_scores
from striate.explain.tail import Tail
from striate.explain.target_layer import TargetLayer

__all__ = ["AblationCAM", "Drops", "channel_drops"]


class Drops(NamedTuple):
    """What real ablation of a layer's channels gave.

    Attributes:
        scores: (N,) S(F).
        drops: (N, K) S(F) - S(F without channel k).
        activations: (N, K, h, w) F.
        target: as resolved.
        layer: where.
        exact_tail: whether only the tail was run; if not, the whole network was.
        error: largest difference between the tail's scores for the unchanged response and the network's own.
        ran: (N,) channels that were run; the rest answered nothing.
    """

    scores: Tensor
    drops: Tensor
    activations: Tensor
    target: Tensor | Scorer
    layer: TargetLayer
    exact_tail: bool
    error: float
    ran: list[int]


class AblationCAM(CamExplainer):
    """Ablation-CAM: real ablation of every channel.

    Args:
        batch_size: ablated responses in one pass of the tail; None takes 16 on a CPU, whose caches like small
            batches, and 64 elsewhere.
        oracle: weights (S - S_k) / sum F^k, the axiom-exact variant, in place of the paper's (S - S_k) / S.

    Warns:
        UnstableWarning: the paper's division by S turns the map over where the score is negative, and means nothing
            where it is about 0; the oracle's division by sum F^k leaves out channels whose responses cancel.
    """

    name = "ablation-cam"

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        batch_size: int | None = None,
        oracle: bool = False,
        relu: bool = True,
        seed: int = 0,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError("batch_size", "AblationCAM", allowed=">= 1 or None", got=batch_size)
        super().__init__(model, layer, relu=relu, seed=seed)
        self.batch_size, self.oracle = batch_size, oracle

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        measured = channel_drops(self.model, self._locate(inputs), inputs, target, batch_size=self.batch_size)
        weights = self.channel_weights(measured)
        self._warn(measured, weights)
        return RawMap(
            map=self._weighted(weights, measured.activations),
            target=measured.target,
            check=self._judge(measured),
            layer=measured.layer.name,
            weights=weights,
            activations=measured.activations,
            notes={
                "score": measured.scores.tolist(),
                "channels_run": measured.ran,
                "tail_only": measured.exact_tail,
            },
        )

    def channel_weights(self, measured: Drops) -> Tensor:
        """Return the channel weights (N, K); 0 where the denominator is about 0."""
        sums = measured.activations.sum(dim=(2, 3))
        mass = measured.activations.abs().sum(dim=(2, 3))
        denominator = sums if self.oracle else measured.scores[:, None].expand_as(sums)
        usable = denominator.abs() > (1e-6 * mass if self.oracle else 1e-6)
        return torch.where(usable, measured.drops / torch.where(usable, denominator, 1.0), 0.0)

    def _judge(self, measured: Drops) -> Check:
        how = "the network's tail" if measured.exact_tail else "the whole network (its tail could not be replayed)"
        statement = (
            f"each channel was removed by running {how}; with nothing removed this gives the network's scores to "
            f"{measured.error:.1e} of their size"
        )
        return Check("real ablation", measured.error <= 1e-4, statement, measured.error, 1e-4)

    def _warn(self, measured: Drops, weights: Tensor) -> None:
        if self.oracle:
            lost = ((weights == 0) & (measured.drops != 0)).sum()
            reason = f"{int(lost)} channels matter but their responses sum to about 0, so that no weight can express it"
        else:
            lost = (measured.scores <= 0).sum()
            reason = (
                f"the score is not positive in {int(lost)} images; the paper's division by it turns the map over. Use "
                "oracle=True"
            )
        if lost:
            warnings.warn(f"Ablation-CAM: {reason}.", UnstableWarning, stacklevel=4)


def channel_drops(
    model: nn.Module, layer: str | nn.Module, inputs: Tensor, target: Target = None, *, batch_size: int | None = None
) -> Drops:
    """Remove every channel of a layer's response in turn and measure how far the score falls.

    Call inside :func:`striate.engine.state.inspected`. Tokens that have no place in the image are left as they are.

    Args:
        model: any classifier.
        layer: path or module.
        inputs: (N, C, H, W).
        target: see :data:`striate.explain.base.Target`.
        batch_size: ablated responses in one pass; None chooses.
    """
    with torch.no_grad():
        tail = Tail(model, layer, inputs)
        resolved = resolve_target(tail.output, target, "AblationCAM")
        scores = score(tail.output, resolved)
        where = located(model, tail.layer, tail.response, inputs)
        activations = where.to_grid(tail.response)
        unchanged = score(tail(tail.response), resolved)
        drops = torch.zeros(activations.shape[:2], dtype=scores.dtype, device=scores.device)
        ran = []
        for i, maps in enumerate(activations):
            live = (maps != 0).flatten(1).any(dim=1).nonzero()[:, 0]
            ran.append(len(live))
            size = min(batch_size or (16 if maps.device.type == "cpu" else 64), max(len(live), 1))
            # Copies of the response, each of which loses one channel for the time of a pass.
            copies = maps.repeat(size, 1, 1, 1)
            for channels in live.split(size):
                rows = torch.arange(len(channels), device=channels.device)
                copies[rows, channels] = 0
                logits = tail(where.to_grid.back(copies[: len(channels)], tail.response[i : i + 1]), i)
                copies[rows, channels] = maps[channels]
                drops[i, channels] = scores[i] - row_scores(logits, resolved, tail.output, i)
    return Drops(
        scores=full_precision(scores),
        drops=full_precision(drops),
        activations=full_precision(activations),
        target=resolved,
        layer=where,
        exact_tail=tail.exact,
        error=float((unchanged - scores).abs().max() / tail.output.abs().max().clamp_min(1e-6)),
        ran=ran,
    )
