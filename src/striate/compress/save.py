"""A network of changed layer sizes on disk: weights that know which network they belong to, and a recipe to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from striate.compress.precropping import CropReport
from striate.engine.checkpoint import read_note, write_tensors
from striate.engine.files import write_json
from striate.engine.load import EMBEDDED, load_model, output_size
from striate.engine.model import VisionModel
from striate.engine.resize import size_changes
from striate.engine.state import inspected
from striate.errors import CheckError

__all__ = ["save_network"]


def save_network(network: nn.Module, folder: str | Path, original: str | nn.Module) -> Path:
    """Write ``model.safetensors`` and ``recipe.json``; :func:`striate.load_model` on the former gives the network back.

    The recipe lists only the layers whose sizes changed, so any network of the original's architecture becomes this one
    by :func:`striate.engine.resize.resize`. What was written is loaded again and compared before the call returns.

    Args:
        network: the changed network, trained or not, plain or in a :class:`~striate.engine.model.VisionModel`.
        folder: made if missing.
        original: the name that :func:`striate.load_model` knows the original by (``torchvision:resnet50``,
            ``package.module:factory``, a file that this function wrote); or the original itself, for which loading then
            needs ``architecture``.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        ModelError: the networks differ in more than layer sizes.
        CheckError: what was loaded again gives other answers.
    """
    folder = Path(folder)
    wrapped = network if isinstance(network, VisionModel) else None
    inner = wrapped.network if wrapped is not None else network
    classes = output_size(inner)
    if isinstance(original, str) and Path(original).is_file():  # saved by this function: what it was made from
        original = read_note(original).get("network", {}).get("architecture") or original
    named = isinstance(original, str)
    loaded = load_model(original, num_classes=classes if named and original not in EMBEDDED else None)
    seen = wrapped or loaded
    recipe: dict[str, Any] = {
        "architecture": original if named else None,
        "num_classes": classes,
        "name": f"{loaded.name}, resized",
        "changes": size_changes(loaded.network, inner),
        "preprocessing": seen.preprocessing.to_dict(),
        "class_names": None if seen.class_names is None else list(seen.class_names),
    }
    report = getattr(network, "crop_report", None) or getattr(inner, "crop_report", None)
    path = folder / "model.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(path, inner.state_dict(), {"network": recipe})
    made_by = report.to_dict() if isinstance(report, CropReport) else None
    write_json(folder / "recipe.json", {**recipe, "crop_report": made_by})
    if named:
        _compare(inner, load_model(str(path)).network, loaded.preprocessing.input_size, path)
    return path


def _compare(network: nn.Module, again: nn.Module, size: tuple[int, int, int], path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    first = next(network.parameters())
    image = torch.rand(1, *size, generator=generator).to(first.device, first.dtype)
    again.to(first.device, first.dtype)
    with torch.no_grad(), inspected(network, warn=False), inspected(again, warn=False):
        ours, theirs = network(image), again(image)
    if isinstance(ours, Tensor) and not torch.equal(ours, theirs):
        apart = float((ours - theirs).abs().max())
        raise CheckError(f"{path} was written, but loaded again it answers differently (by {apart:.1e}).")
