"""A linear-chain conditional random field as the last layer of a tagger.

Lafferty, McCallum, Pereira, "Conditional Random Fields", ICML 2001; the input-dependent transitions are those of Ma,
Hovy, "End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF", ACL 2016, arXiv 1603.01354, section 2.3.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.state import full_precision, transformed
from striate.errors import InputError
from striate.layers.linear_chain import Backend, chain_marginals, k_best, log_partition, viterbi

__all__ = ["LinearChainCRF", "TagPath"]


class TagPath(NamedTuple):
    """One labelling of a sentence.

    Attributes:
        tags: one for each token.
        score: unnormalised.
        log_probability: among all labellings that decoding allows.
    """

    tags: list[int]
    score: float
    log_probability: float


class LinearChainCRF(nn.Module):
    """Scores whole tag sequences: exact likelihood, marginals, the best sequence and the k best.

    First order (default): the input is one score a tag, (B, T, K); a sequence's score adds ``transitions[i, j]`` for
    each step and ``start_transitions``, ``end_transitions`` (named as in pytorch-crf, whose state dicts load).

    Bigram (``bigram_features=F``, the paper's): the input is (B, T, F) features z_t, and a step from i to j scores
    W[:, i, j] . z_t + b[i, j], so that transitions depend on the input. There is one more label, the pad, which the
    first tag steps from. As in the authors' code the training partition sums over the pad too, whose mass is thereby
    learned away, and decoding leaves it out; so do :meth:`marginals` and every ``log_probability``. Memory:
    B T (K + 1)^2 numbers.

    Sums run in float32 or wider, also under autocast; see :mod:`striate.layers.linear_chain` for how.

    Args:
        num_tags: K.
        bigram_features: F for the bigram form, None for the first-order form.
        batch_first: inputs are (B, T, …), else (T, B, …).
        gaps: take any mask, and chain the unmasked tokens to one another (word pieces of which only the first is
            tagged, a class token in front). Without it a mask with holes is an error.
        backend: of the recursions, see :func:`striate.layers.linear_chain.log_partition`.

    >>> crf = LinearChainCRF(2)
    >>> _ = crf.constrain(torch.tensor([[True, False], [True, True]]))  # 0 is never followed by 1
    >>> crf.decode(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]))
    [[0, 0]]
    """

    def __init__(
        self,
        num_tags: int,
        *,
        bigram_features: int | None = None,
        batch_first: bool = True,
        gaps: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        for name, value in (("num_tags", num_tags), ("bigram_features", bigram_features)):
            if value is not None and value < 1:
                raise InputError(name, "LinearChainCRF", allowed=">= 1", got=value)
        self.num_tags, self.bigram_features = num_tags, bigram_features
        self.batch_first, self.gaps, self.backend = batch_first, gaps, backend
        if bigram_features is None:
            self.start_transitions = nn.Parameter(torch.empty(num_tags))
            self.end_transitions = nn.Parameter(torch.empty(num_tags))
            self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        else:
            labels = num_tags + 1
            self.weight = nn.Parameter(torch.empty(bigram_features, labels, labels))
            self.bias = nn.Parameter(torch.empty(labels, labels))
        for name in ("may_follow", "may_start", "may_end"):
            self.register_buffer(name, None, persistent=False)
        self.may_follow: Tensor | None
        self.may_start: Tensor | None
        self.may_end: Tensor | None
        self.constrained_training = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw anew: uniform in ±0.1 (first order); Glorot as Lasagne has it, biases 0 (bigram)."""
        if self.bigram_features is None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.1, 0.1)
        else:
            labels = self.num_tags + 1
            bound = math.sqrt(6 / ((self.bigram_features + labels) * labels))
            nn.init.uniform_(self.weight, -bound, bound)
            nn.init.zeros_(self.bias)

    def constrain(
        self, transitions: Tensor, start: Tensor | None = None, end: Tensor | None = None, *, in_training: bool = False
    ) -> LinearChainCRF:
        """Forbid transitions, first and last tags, in decoding and marginals from now on; return the layer.

        Args:
            transitions: (K, K) boolean, ``[i, j]`` whether j may follow i.
            start, end: (K,) boolean, which tags may stand first and last; default all.
            in_training: also in :meth:`nll`, whose tags must then be allowed. The forbidden sequences get no
                probability, instead of having to be learned away.
        """
        found: dict[str, Tensor] = {"may_follow": transitions}
        found |= {name: value for name, value in (("may_start", start), ("may_end", end)) if value is not None}
        for name, value in found.items():
            shape = (self.num_tags,) * (2 if name == "may_follow" else 1)
            if value.shape != shape or value.dtype != torch.bool:
                got = f"{value.dtype} {tuple(value.shape)}"
                raise InputError(name, "constrain", allowed=f"boolean {shape}", got=got)
        place = next(self.parameters()).device
        for name in ("may_follow", "may_start", "may_end"):
            setattr(self, name, found[name].to(place) if name in found else None)
        self.constrained_training = in_training
        return self

    def forward(self, inputs: Tensor, tags: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return :meth:`nll`, mean over sentences."""
        return self.nll(inputs, tags, mask)

    def nll(
        self,
        inputs: Tensor,
        tags: Tensor,
        mask: Tensor | None = None,
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Tensor:
        """Return the negative log-likelihood of ``tags``, log Z - score.

        Args:
            inputs: (B, T, K) scores, or (B, T, F) features in the bigram form.
            tags: (B, T) integers in [0, K); anything where the mask is 0.
            mask: (B, T) boolean or 0/1, which tokens are there; default all.
            reduction: ``"mean"`` over sentences, not tokens; ``"sum"``; ``"none"``: (B,).

        Raises:
            InputError: shapes, an empty sentence, a mask with holes (unless ``gaps``), a tag out of range, a tag
                sequence that constrained training forbids.
        """
        x, lengths, order = self._arranged(inputs, mask)
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        gold = self._arranged_tags(tags, inputs, order, inside)
        unary, pairwise = self._scores(x, lengths, training=True)
        found = self._score(unary, pairwise, gold, inside)
        if self.constrained_training and bool(found.isneginf().any()):
            row = int(found.isneginf().nonzero()[0])
            raise InputError("tags", "nll", allowed="sequences that the constraints allow", got=f"another in row {row}")
        loss = log_partition(unary, pairwise, lengths, backend=self.backend) - found
        if reduction not in {"mean", "sum", "none"}:
            raise InputError("reduction", "nll", allowed="mean, sum or none", got=reduction)
        return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()

    def log_partition(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return log Z of the training partition, (B,); arguments as in :meth:`nll`."""
        x, lengths, _ = self._arranged(inputs, mask)
        return log_partition(*self._scores(x, lengths, training=True), lengths, backend=self.backend)

    @overload
    def decode(self, inputs: Tensor, mask: Tensor | None = None, k: None = None) -> list[list[int]]: ...
    @overload
    def decode(self, inputs: Tensor, mask: Tensor | None = None, k: int = ...) -> list[list[TagPath]]: ...
    def decode(self, inputs: Tensor, mask: Tensor | None = None, k: int | None = None) -> Any:
        """Return the best tag sequence of every sentence (Viterbi), or with ``k`` its k best with scores.

        Arguments as in :meth:`nll`. With ``k`` a list of :class:`TagPath` a sentence, best first: fewer than k where
        there are not so many.

        Raises:
            InputError: as :meth:`nll`; NaN; constraints or scores of minus infinity leave a sentence no sequence.
        """
        with torch.no_grad():
            x, lengths, _ = self._arranged(inputs, mask)
            self._refuse_nan(x, lengths, "decode")
            unary, pairwise = self._scores(x, lengths, training=False)
            sizes = lengths.tolist()
            if k is None:
                path, score = viterbi(unary, pairwise, lengths, backend=self.backend)
                self._refuse_impossible(score, sizes)
                return [row[:size] for row, size in zip(path.tolist(), sizes, strict=True)]
            paths, scores = k_best(unary, pairwise, lengths, k)
            self._refuse_impossible(scores[:, 0], sizes)
            chances = scores - log_partition(unary, pairwise, lengths, backend=self.backend)[:, None]
        table = zip(paths.tolist(), scores.tolist(), chances.tolist(), sizes, strict=True)
        return [
            [TagPath(tags[:size], s, p) for tags, s, p in zip(*row, strict=True) if s > -math.inf]
            for *row, size in table
        ]

    def marginals(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return p(tag of token t is j), (B, T, K), zero where the mask is; rows of tokens sum to 1.

        Differentiable. Arguments and errors as in :meth:`decode`.
        """
        x, lengths, order = self._arranged(inputs, mask)
        logz, found = chain_marginals(*self._scores(x, lengths, training=False), lengths, backend=self.backend)
        if not transformed():  # in which a tensor need not hold one value
            self._refuse_nan(x, lengths, "marginals")
            self._refuse_impossible(logz, lengths.tolist())
        if order is not None:
            found = torch.zeros_like(found).scatter(1, order[:, :, None].expand_as(found), found)
        return found if self.batch_first else found.transpose(0, 1)

    def extra_repr(self) -> str:
        """Show what differs from the default."""
        parts = [f"{self.num_tags}"]
        parts += [f"bigram_features={self.bigram_features}"] if self.bigram_features is not None else []
        parts += [] if self.batch_first else ["batch_first=False"]
        parts += ["gaps=True"] if self.gaps else []
        return ", ".join(parts + (["constrained"] if self.may_follow is not None else []))

    # -------------------------------------------------------------------------------------- inputs to a chain

    def _arranged(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return inputs (B, T, …) with each sentence's tokens in front, lengths, and where the tokens came from."""
        wanted = self.num_tags if self.bigram_features is None else self.bigram_features
        if inputs.dim() != 3 or inputs.shape[2] != wanted or 0 in inputs.shape:
            axes = "B, T" if self.batch_first else "T, B"
            raise InputError("inputs", "LinearChainCRF", allowed=f"({axes}, {wanted})", got=tuple(inputs.shape))
        if mask is not None and mask.shape != inputs.shape[:2]:
            raise InputError("mask", "LinearChainCRF", allowed=f"{tuple(inputs.shape[:2])}", got=tuple(mask.shape))
        x = inputs if self.batch_first else inputs.transpose(0, 1)
        if mask is None:
            return x, torch.full((len(x),), x.shape[1], device=x.device), None
        inside = (mask if self.batch_first else mask.T).bool()
        lengths = inside.sum(dim=1)
        if bool((lengths == 0).any()):
            row = int((lengths == 0).nonzero()[0])
            raise InputError(
                "mask", "LinearChainCRF", allowed="1 somewhere in each sentence", got=f"only 0 in row {row}"
            )
        holes = ((~inside[:, :-1] & inside[:, 1:]).any(dim=1)).nonzero()
        if not len(holes):
            return x, lengths, None
        if not self.gaps:
            hint = "Build the layer with gaps=True to chain the unmasked tokens to one another."
            allowed = "ones up to a sentence's end, then zeros"
            raise InputError("mask", "LinearChainCRF", allowed=allowed, got=f"holes in row {int(holes[0])}", hint=hint)
        order = torch.sort(~inside, dim=1, stable=True).indices
        return x.gather(1, order[:, :, None].expand_as(x)), lengths, order

    def _arranged_tags(self, tags: Tensor, inputs: Tensor, order: Tensor | None, inside: Tensor) -> Tensor:
        if tags.shape != inputs.shape[:2] or tags.is_floating_point():
            got = f"{tags.dtype} {tuple(tags.shape)}"
            raise InputError("tags", "nll", allowed=f"integers {tuple(inputs.shape[:2])}", got=got)
        gold = (tags if self.batch_first else tags.T).long()
        gold = torch.where(inside, gold if order is None else gold.gather(1, order), 0)
        low, high = torch.aminmax(gold)
        if low < 0 or high >= self.num_tags:
            wrong = int(low) if low < 0 else int(high)
            raise InputError("tags", "nll", allowed=f"in [0, {self.num_tags}) under the mask", got=wrong)
        return gold

    def _scores(self, x: Tensor, lengths: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        """Return unary and pairwise scores in float32 or wider."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        rows = torch.arange(len(x), device=x.device)
        constrained = self.may_follow is not None and (self.constrained_training or not training)
        if self.bigram_features is None:
            start, end, pairwise = self.start_transitions, self.end_transitions, self.transitions
            unary = torch.cat([x[:, :1] + start, x[:, 1:]], dim=1)
            unary = unary.index_put((rows, lengths - 1), end.to(unary.dtype).expand(len(x), -1), accumulate=True)
        else:
            with full_precision(x.device):
                energies = F.linear(x, self.weight.flatten(1).T.to(x.dtype), self.bias.flatten().to(x.dtype))
            energies = energies.unflatten(2, self.bias.shape)  # (B, T, from, to)
            labels = self.num_tags + (1 if training else 0)
            first = energies[:, :1, self.num_tags, :labels]
            unary = torch.cat([first, first.new_zeros(len(x), x.shape[1] - 1, labels)], dim=1)
            pairwise = energies[:, 1:, :labels, :labels]
        if not constrained:
            return unary, pairwise
        beyond = unary.shape[2] - self.num_tags  # the pad may stand wherever training has it
        may = [None if may is None else F.pad(may, (0, beyond), value=True) for may in (self.may_start, self.may_end)]
        if may[0] is not None:
            unary = torch.cat([unary[:, :1].masked_fill(~may[0], -math.inf), unary[:, 1:]], dim=1)
        if may[1] is not None:
            shut = torch.zeros_like(unary[0, 0]).masked_fill(~may[1], -math.inf).expand(len(x), -1)
            unary = unary.index_put((rows, lengths - 1), shut, accumulate=True)
        assert self.may_follow is not None
        allowed = F.pad(self.may_follow, (0, beyond, 0, beyond), value=True)
        return unary, pairwise.masked_fill(~allowed, -math.inf)

    def _score(self, unary: Tensor, pairwise: Tensor, tags: Tensor, inside: Tensor) -> Tensor:
        """Return the unnormalised score of ``tags``, (B,)."""
        labels = torch.where(inside, unary.gather(2, tags[:, :, None])[..., 0], 0).sum(dim=1)
        before, after = tags[:, :-1], tags[:, 1:]
        if pairwise.dim() == 2:
            steps = pairwise[before, after]
        else:
            steps = pairwise.flatten(2).gather(2, (before * pairwise.shape[3] + after)[:, :, None])[..., 0]
        return labels + torch.where(inside[:, 1:], steps, 0).sum(dim=1)

    def _refuse_nan(self, x: Tensor, lengths: Tensor, owner: str) -> None:
        if not bool(x.sum().isnan()):  # else by padding, perhaps, or by infinities of both signs
            return
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        odd = (x.isnan().any(dim=2) & inside).any(dim=1)
        if bool(odd.any()):
            got = f"NaN in row {int(odd.nonzero()[0])}"
            raise InputError("inputs", owner, allowed="numbers", got=got, hint="Did the training diverge?")

    def _refuse_impossible(self, score: Tensor, lengths: list[int]) -> None:
        if bool((impossible := score.isneginf()).any()):
            row = int(impossible.nonzero()[0])
            name = "inputs" if self.may_follow is None else "constraints"
            allowed = "so that every sentence has an allowed sequence"
            raise InputError(name, "LinearChainCRF", allowed=allowed, got=f"none of length {lengths[row]}")
