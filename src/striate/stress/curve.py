"""Error against eps: FGSM and its control, random signs, from one gradient per image.

The control has the same size in every pixel and no gradient behind it. What FGSM does beyond it is what the gradient
knows; without it, a fragile network and a strong attack look the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from striate.engine.model import VisionModel
from striate.engine.state import device_of
from striate.engine.stats import Interval, wilson
from striate.errors import InputError
from striate.stress.batches import Batches, batches
from striate.stress.fgsm import Space, fgsm_report
from striate.stress.objective import attacked

__all__ = ["FGSMCurve", "fgsm_curve", "top_hits"]


@dataclass(frozen=True)
class FGSMCurve:
    """Who is still right at every eps.

    Attributes:
        epsilons: in ascending order.
        clean: (2, N) bool, still right at eps 0; row 0 top-1, row 1 top-5.
        fgsm: (E, 2, N) bool, under attack.
        random: (E, 2, N) bool, under random signs of the same size.
        labels: (N,) the classes that count as right.
        labelled: whether those were given; if not they are the clean predictions, and "error" reads "changed mind".
        saturated, unmoved: (N,) bool, see :class:`striate.stress.fgsm.FGSM`.
        classes: how many the network tells apart; with five or fewer top-5 says nothing.
    """

    epsilons: tuple[float, ...]
    clean: Tensor
    fgsm: Tensor
    random: Tensor
    labels: Tensor
    labelled: bool
    saturated: Tensor
    unmoved: Tensor
    classes: int

    def error(self, kind: Literal["clean", "fgsm", "random"] = "fgsm", top: Literal[1, 5] = 1) -> list[Interval]:
        """Error at every eps (``clean``: one figure), with Wilson 95 % intervals over images."""
        hits: Tensor = getattr(self, kind).reshape(-1, 2, self.labels.shape[0])[:, 0 if top == 1 else 1]
        n = hits.shape[1]
        return [wilson(n - int(right), n) for right in hits.sum(dim=1)]

    def to_dict(self) -> dict[str, Any]:
        """Return the error curves with intervals, JSON-ready."""
        curves = {
            f"{kind}_top{top}": [interval.to_dict() for interval in self.error(kind, top)]
            for kind in ("clean", "fgsm", "random")
            for top in ((1, 5) if self.classes > 5 else (1,))
        }
        return {
            "epsilons": list(self.epsilons),
            "labelled": self.labelled,
            "n": len(self.labels),
            "saturated": int(self.saturated.sum()),
            "unmoved": int(self.unmoved.sum()),
            **curves,
        }


def fgsm_curve(
    model: nn.Module,
    images: Batches,
    labels: Tensor | None = None,
    *,
    epsilons: Sequence[float],
    space: Space = "pixel",
    batch_size: int = 16,
    generator: torch.Generator | None = None,
) -> FGSMCurve:
    """Measure the error under FGSM and under random signs at every eps, untargeted.

    Args:
        model: takes pixels in [0, 1]; evaluated in eval mode, it leaves as it came.
        images: see :data:`striate.stress.batches.Batches`.
        labels: (N,), with ``images`` a tensor; None takes those of ``images``, or else the clean predictions.
        epsilons: step sizes >= 0.
        space: ``"pixel"``: clipped to [0, 1]; ``"normalized"``: in units of a :class:`striate.VisionModel`'s std,
            not clipped, as in the published study.
        batch_size: of images given as a tensor.
        generator: of the random signs; None draws from a generator seeded with 0.
    """
    if len(epsilons) == 0 or min(epsilons) < 0:
        raise InputError("epsilons", "fgsm_curve", allowed="one or more numbers >= 0", got=tuple(epsilons))
    if space == "normalized" and not isinstance(model, VisionModel):
        raise InputError("model", "fgsm_curve", allowed="a VisionModel in normalised space", got=type(model).__name__)
    epsilons = tuple(sorted(float(eps) for eps in epsilons))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    source: Batches = images if labels is None else (images, labels)
    found: dict[str, list[Tensor]] = {key: [] for key in ("clean", "fgsm", "random", "labels", "saturated", "unmoved")}
    labelled = True
    device = device_of(model)
    for batch, given in batches(source, batch_size):
        x = batch.to(device)
        y = None if given is None else given.to(device)
        labelled = labelled and given is not None
        attack = fgsm_report(model, x, y, epsilons[-1], space=space)
        noise = torch.randint(0, 2, x.shape, generator=generator, device=generator.device).to(x) * 2 - 1
        unit = model.std.to(x) if space == "normalized" and isinstance(model, VisionModel) else x.new_ones(())

        with attacked(model) as forward, torch.no_grad():
            for key, direction in (("fgsm", attack.direction), ("random", noise)):
                rows = []
                for eps in epsilons:
                    moved = x + eps * unit * direction
                    moved = moved.clamp(0, 1) if space == "pixel" else moved
                    rows.append(top_hits(forward(moved), attack.labels))
                found[key].append(torch.stack(rows))
            logits = forward(x)
            found["clean"].append(top_hits(logits, attack.labels))
        for key in ("labels", "saturated", "unmoved"):
            found[key].append(getattr(attack, key))
    if not found["labels"]:
        raise InputError("images", "fgsm_curve", allowed="at least one image", got="none")
    joined = {key: torch.cat(parts, dim=-1).cpu() for key, parts in found.items()}
    return FGSMCurve(epsilons=epsilons, labelled=labelled, classes=logits.shape[1], **joined)


def top_hits(logits: Tensor, y: Tensor) -> Tensor:
    """Return (2, N) bool: whether ``y`` is the prediction; whether it is among the five highest scores."""
    # Among equal scores topk may put another class first than argmax, which made the prediction.
    first = logits.argmax(dim=1) == y
    return torch.stack([first, first | (logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]).any(dim=1)])
