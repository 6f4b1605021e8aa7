"""Score-CAM: channel weights from how much of the score each feature map, laid on the image, keeps.

Wang et al. 2020, arXiv 1910.01279. H_k is F^k upsampled and min-max scaled; w = softmax_k S(X * H_k);
M = sum_k w_k F^k.
The paper subtracts the score of a black image from each S; a softmax over channels does not see that. As in the paper's
formula (and unlike its script) S is the logit and the softmax is taken. No gradients are used, so the check is not an
axiom: it says whether the softmax still speaks for more than one channel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.check import Check
from striate.errors import InputError
from striate.explain.base import RawMap, Target
from striate.explain.batching import Copies, wide
from striate.explain.cam_base import CamExplainer, full_precision, located, row_scores
from striate.explain.tail import respond

__all__ = ["ScoreCAM"]


class ScoreCAM(CamExplainer):
    """Score-CAM: K forward passes of the image under each channel's own map.

    Args:
        batch_size: masked images in one forward pass; 8 is a CPU's sweet spot.
        align_corners: of the upsampling; False as in the authors' script, True as in pytorch-grad-cam.
    """

    name = "score-cam"

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        batch_size: int = 8,
        align_corners: bool = False,
        relu: bool = True,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise InputError("batch_size", "ScoreCAM", allowed=">= 1", got=batch_size)
        super().__init__(model, layer, relu=relu, seed=seed)
        self.batch_size, self.align_corners = batch_size, align_corners

    def _explain(self, inputs: Tensor, target: Target) -> RawMap:
        module = self._locate(inputs)
        with torch.no_grad():
            response = respond(self.model, module, inputs).leaf.detach()
            layer = located(self.model, module, response, inputs)
            activations = full_precision(layer.to_grid(response))
            each = activations.shape[1]
            copies = Copies.of(self.model, inputs, target, "ScoreCAM", self.batch_size, backward=False, each=each)
            kept = [self._kept(copies, maps, i) for i, maps in enumerate(activations)]
            weights = torch.stack([scores for scores, _ in kept]).to(activations.dtype).softmax(dim=1)
        effective = (-(weights * weights.clamp_min(1e-30).log()).sum(dim=1)).exp()
        fewest, k = float(effective.min()), weights.shape[1]
        statement = (
            f"the softmax over {k} channels speaks for {fewest:.3g} of them (exp of its entropy, least in the batch)"
        )
        return RawMap(
            map=self._weighted(weights, activations),
            target=copies.target,
            check=Check("not one channel", fewest >= 2 or k < 2, statement, fewest, 2.0),
            layer=layer.name,
            weights=weights,
            activations=activations,
            notes={"effective_channels": effective.tolist(), "masked_images": [passes for _, passes in kept]},
        )

    def _kept(self, copies: Copies, maps: Tensor, i: int) -> tuple[Tensor, int]:
        """Return S(X * H_k) (K,) of image i, whose feature maps are ``maps`` (K, h, w), and how many images it took."""
        image = copies.inputs[i : i + 1].contiguous(memory_format=copies.layout)
        size = (image.shape[-2], image.shape[-1])

        def scores(masked: Tensor) -> Tensor:
            return row_scores(wide(copies.answers(masked)), copies.target, copies.logits, i)

        # A constant map masks everything; all of these share the score of the blank image.
        live = (maps.amax(dim=(1, 2)) > maps.amin(dim=(1, 2))).nonzero()[:, 0]
        kept = copies.logits.new_empty(len(maps))
        if len(live) < len(maps):
            kept[:] = scores(torch.zeros_like(image))
        for channels in live.split(copies.batch):
            upsampled = F.interpolate(
                maps[channels, None], size=size, mode="bilinear", align_corners=self.align_corners or None
            )
            low, high = upsampled.amin(dim=(2, 3), keepdim=True), upsampled.amax(dim=(2, 3), keepdim=True)
            masks = upsampled.sub_(low).div_((high - low).clamp_min(torch.finfo(maps.dtype).tiny))
            kept[channels] = scores(masks.to(image.dtype) * image)
        return kept, len(live) + (len(live) < len(maps))
