"""Options that several commands share, from words to values."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from striate.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from striate.engine.model import VisionModel

__all__ = ["class_index", "file_name", "fraction", "model_options", "numbers", "output_folder"]


def output_folder(out: Path, owner: str) -> Path:
    """Return ``out``, made if missing, or say that nothing can be written there, before anything is computed.

    Raises:
        InputError: it is a file, or cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError("--out", owner, allowed="a folder that can be written to", got=f"{out} ({reason})") from error


def model_options(
    architecture: str | None,
    pretrained: bool,
    input_size: str | None,
    mean: str | None,
    std: str | None,
    class_names: Path | None,
    device: str | None,
) -> dict[str, Any]:
    """Return the keyword arguments of :func:`striate.load_model` that the command line gave."""
    names = None
    if class_names is not None:
        if not class_names.is_file():
            raise InputError(
                "--class-names", "striate", allowed="a text file with one name per line", got=str(class_names)
            )
        try:
            text = class_names.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("--class-names", "striate", allowed="a text file in UTF-8", got=str(error)) from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
    return {
        "architecture": architecture,
        "pretrained": pretrained,
        "input_size": None if input_size is None else _size(input_size),
        "mean": None if mean is None else numbers(mean, "--mean"),
        "std": None if std is None else numbers(std, "--std"),
        "class_names": names,
        "device": device,
    }


def numbers(text: str, option: str) -> list[float]:
    """Read ``"0.5,0.5"`` as numbers; fractions such as ``8/255`` are welcome."""
    return [fraction(part, option) for part in text.split(",")]


def fraction(text: str, option: str) -> float:
    """Read ``"0.03"`` or ``"8/255"``."""
    top, _, bottom = text.partition("/")
    try:
        return float(top) / (float(bottom) if bottom else 1.0)
    except (ValueError, ZeroDivisionError):
        raise InputError(option, "striate", allowed="a number or a fraction such as 8/255", got=text) from None


def class_index(text: str, model: VisionModel) -> int:
    """Read a class index or one of the model's class names."""
    if text.isdecimal():
        return int(text)
    names = model.class_names or ()
    if text not in names:
        hint = did_you_mean(text, names)
        raise InputError("--target", "striate", allowed="a class index or name", got=text, hint=hint)
    return names.index(text)


def file_name(name: str, taken: set[str]) -> str:
    """Return a harmless file name without suffix, unlike any in ``taken``, and add it there."""
    base = re.sub(r"[^\w.-]+", "_", Path(name).stem).strip("._") or "image"
    unique, number = base, 2
    while unique in taken:
        unique, number = f"{base}-{number}", number + 1
    taken.add(unique)
    return unique


def _size(text: str) -> tuple[int, ...]:
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError("--input-size", "striate", allowed="CxHxW such as 3x224x224", got=text)
    return tuple(int(part) for part in parts)
