"""A tagger on disk: ``tagger.json`` (vocabulary, tags, options, how it was trained) and ``model.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save

from striate.engine.files import read_json, write_bytes, write_json
from striate.engine.load import load_state_dict, read_weights
from striate.engine.state import find_device
from striate.errors import ModelError, StriateError, WeightsError
from striate.tasks.tagging.network import BiLSTMCNNCRF
from striate.tasks.tagging.vocabulary import Vocabulary

__all__ = ["load_tagger", "save_tagger"]


class _Description(BaseModel):
    """What ``tagger.json`` holds."""

    model_config = ConfigDict(extra="forbid")

    format: int
    tags: list[str]
    options: dict[str, Any]
    words: list[str]
    chars: list[str]
    digits_to_zero: bool
    trained: dict[str, Any]


def save_tagger(model: BiLSTMCNNCRF, folder: str | Path, trained: dict[str, Any] | None = None) -> Path:
    """Write a tagger into ``folder`` and return that.

    Args:
        model: any.
        folder: made if missing; an earlier tagger in it is replaced.
        trained: JSON-able, how it was trained and how good it is.
    """
    folder = Path(folder)
    weights = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}
    write_bytes(folder / "model.safetensors", save(weights))
    vocabulary = model.vocabulary
    description = {
        "format": 1,
        "tags": model.tags,
        "options": model.options,
        "trained": trained or {},
        "digits_to_zero": vocabulary.digits_to_zero,
        "chars": vocabulary.chars,
        "words": vocabulary.words,
    }
    write_json(folder / "tagger.json", description)
    return folder


def load_tagger(folder: str | Path, *, device: str | torch.device = "cpu") -> tuple[BiLSTMCNNCRF, dict[str, Any]]:
    """Read a tagger in eval mode, and how it was trained.

    Raises:
        InputError: no such device on this machine.
        ModelError: there is no tagger in ``folder``, or its description is damaged.
        WeightsError: the weights do not belong to the description.
    """
    path = Path(folder) / "tagger.json"
    try:
        found = _Description.model_validate(read_json(path))
        if found.format != 1:
            raise ModelError(f"{path} has format {found.format}; this version reads format 1.")
        vocabulary = Vocabulary(tuple(found.words), tuple(found.chars), found.digits_to_zero)
        model = BiLSTMCNNCRF(vocabulary, found.tags, **found.options)
    except FileNotFoundError:
        raise ModelError(f"There is no tagger in {folder}. Train one with: striate tag train DATA") from None
    except ModelError:
        raise
    except (ValidationError, ValueError, TypeError, StriateError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path} does not describe a tagger ({reason}); train it again.") from error
    weights = Path(folder) / "model.safetensors"
    if not weights.is_file():
        raise WeightsError(f"{weights} is missing beside its tagger.json; train it again.")
    load_state_dict(model, read_weights(weights), origin=str(weights))
    return model.to(find_device(device, "load_tagger")).eval(), found.trained
