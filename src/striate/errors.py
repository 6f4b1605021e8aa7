"""Every exception and warning that Striate raises on purpose.

StriateError                       catch this one to catch them all
├── InputError (ValueError)        an argument is outside what is allowed
├── ModelError                     a network cannot be found, built, loaded or used
│   ├── WeightsError               a checkpoint does not fit, is damaged or unsafe
│   └── LayerError                 a layer is missing or gives nothing that can be explained
├── ImageError                     an image, or a whole folder, cannot be read
├── DataError                      a data set is not on this machine or is malformed
├── CheckError                     a method's own check failed, so its result is refused
└── RunError                       a reproduction or a probe could not be run

StriateWarning (UserWarning)       something the reader can act on
├── TrainModeWarning               the model came in training mode and was evaluated in eval mode
├── UnstableWarning                a result exists but its own arithmetic is badly conditioned
└── SkippedWarning                 a file or sample was left out, by name

Messages say what is wrong, where, and what to do about it.

>>> try:
...     raise InputError("eps", "fgsm", allowed=">= 0", got=-1)
... except StriateError as error:
...     print(error)
'eps' of fgsm must be >= 0. Got -1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckError",
    "DataError",
    "ImageError",
    "InputError",
    "LayerError",
    "ModelError",
    "RunError",
    "SkippedWarning",
    "StriateError",
    "StriateWarning",
    "TrainModeWarning",
    "UnstableWarning",
    "WeightsError",
    "did_you_mean",
]


class StriateError(Exception):
    """Base of every error that Striate raises on purpose."""


class InputError(StriateError, ValueError):
    """An argument is outside what is allowed.

    Args:
        name: the parameter.
        owner: the function or class it belongs to.
        allowed: what would have been accepted, in words.
        got: the value that came.
        hint: what to do, if that is not obvious from ``allowed``.
    """

    def __init__(self, name: str, owner: str, *, allowed: str, got: object, hint: str = "") -> None:
        shown = got if isinstance(got, str) else repr(got)
        message = f"'{name}' of {owner} must be {allowed}. Got {shown}."
        super().__init__(f"{message} {hint.strip()}".rstrip())


class ModelError(StriateError):
    """A network cannot be found, built, loaded or used."""


class WeightsError(ModelError):
    """A checkpoint does not fit the network, is damaged or is unsafe to open."""


class LayerError(ModelError):
    """A layer is missing, or its output cannot be explained."""


class ImageError(StriateError):
    """An image, or a whole folder of them, cannot be read."""


class DataError(StriateError):
    """A data set is not on this machine, or its files are malformed."""


class CheckError(StriateError):
    """A method's own check failed, so its result is refused."""


class RunError(StriateError):
    """A reproduction or a probe could not be run."""


class StriateWarning(UserWarning):
    """Base of every warning: something the reader can act on."""


class TrainModeWarning(StriateWarning):
    """The model came in training mode; it was evaluated in eval mode and handed back as it came."""


class UnstableWarning(StriateWarning):
    """The result exists, but its own arithmetic is badly conditioned here."""


class SkippedWarning(StriateWarning):
    """A file or sample was left out, by name."""


def did_you_mean(word: str, known: Iterable[str], n: int = 3) -> str:
    """Return ``" Did you mean 'a' or 'b'?"`` for the nearest known words, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=n, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
