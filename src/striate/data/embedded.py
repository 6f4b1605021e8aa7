"""Photographs that come with Striate's own requirements: scikit-image's twenty pictures and scikit-learn's two.

Nothing is copied or downloaded: they are read from the installed packages.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from striate.errors import DataError, InputError, did_you_mean

__all__ = ["PHOTOGRAPHS", "Photograph", "photographs"]


@dataclass(frozen=True)
class _Record:
    package: str
    file: str
    natural: bool
    what: str
    licence: str


_FREE = "no known copyright restrictions"
_CC0 = "CC0"
_CC_BY = "CC BY 2.0"
_PUBLIC = "public domain"

# "natural": a camera's picture of things as people see them; not a scan, a drawing, a micrograph or the sky.
PHOTOGRAPHS: dict[str, _Record] = {
    "astronaut": _Record("skimage", "astronaut.png", True, "portrait of Eileen Collins, NASA", _PUBLIC),
    "chelsea": _Record("skimage", "chelsea.png", True, "a tabby cat, by Stefan van der Walt", _CC0),
    "coffee": _Record("skimage", "coffee.png", True, "a cup of espresso, by Rachel Michetti", _CC0),
    "rocket": _Record("skimage", "rocket.jpg", True, "launch of a Falcon 9, SpaceX", _PUBLIC),
    "stereo_motorcycle": _Record(
        "skimage", "motorcycle_left.png", True, "left view of Middlebury 2014's motorcycle", "not stated"
    ),
    "clock": _Record("skimage", "clock_motion.png", True, "a wall clock, motion-blurred, grey", _PUBLIC),
    "camera": _Record("skimage", "camera.png", True, "a man with a camera on a tripod, grey, by Lav Varshney", _CC0),
    "coins": _Record("skimage", "coins.png", True, "Greek coins from Pompeii, grey, Brooklyn Museum", _FREE),
    "horse": _Record("skimage", "horse.png", False, "silhouette of a horse (a drawing), by Andreas Preuss", _CC0),
    "grass": _Record("skimage", "grass.png", True, "grass, grey", _CC0),
    "brick": _Record("skimage", "brick.png", True, "a brick wall, grey", _CC0),
    "gravel": _Record("skimage", "gravel.png", True, "gravel, grey", _CC0),
    "page": _Record("skimage", "page.png", False, "a scanned page of text, grey", "not stated"),
    "moon": _Record("skimage", "moon.png", False, "surface of the moon, grey", "not stated"),
    "hubble_deep_field": _Record("skimage", "hubble_deep_field.jpg", False, "Hubble eXtreme Deep Field, NASA", _PUBLIC),
    "retina": _Record("skimage", "retina.jpg", False, "fundus of a human eye, by Mikael Häggström", _CC0),
    "immunohistochemistry": _Record("skimage", "ihc.png", False, "stained colonic glands, micrograph, CMMI", _FREE),
    "text": _Record("skimage", "text.png", False, "photographed text, grey", _PUBLIC),
    "cell": _Record("skimage", "cell.png", False, "a cell, quantitative phase image, grey, by Müller et al.", _CC0),
    "logo": _Record("skimage", "logo.png", False, "scikit-image's logo", "BSD-3-Clause, with scikit-image"),
    "china": _Record("sklearn", "china.jpg", True, "a Chinese temple, by danielbuechele", _CC_BY),
    "flower": _Record("sklearn", "flower.jpg", True, "a dahlia, by vultilion", _CC_BY),
}
"""Every picture by name; the first twenty are scikit-image's."""

_FOLDERS = {"skimage": ("data",), "sklearn": ("datasets", "images")}
_NAMES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Photograph:
    """A picture that an installed package carries.

    Attributes:
        name: its name.
        image: RGB, 8 bits a channel; grey pictures have three equal channels, transparency is laid on white.
        licence: as the package states it, ``"not stated"`` where it does not.
        natural: whether it is a photograph of things as people see them.
        origin: what it shows, by whom, and from which package.
    """

    name: str
    image: Image.Image
    licence: str
    natural: bool
    origin: str


def photographs(names: Iterable[str] | None = None, *, natural_only: bool = False) -> list[Photograph]:
    """Return embedded photographs, in the order asked for.

    Args:
        names: keys of :data:`PHOTOGRAPHS`; None takes all 22.
        natural_only: leave out scans, drawings, micrographs and pictures of the sky.

    Raises:
        InputError: no picture by that name.
        DataError: the installed package does not hold the file.

    >>> [photograph.name for photograph in photographs(["chelsea", "coffee"])]
    ['chelsea', 'coffee']
    >>> len(photographs()), len(photographs(natural_only=True))
    (22, 13)
    """
    wanted = list(PHOTOGRAPHS) if names is None else list(names)
    for name in wanted:
        if name not in PHOTOGRAPHS:
            hint = did_you_mean(name, PHOTOGRAPHS).strip()
            raise InputError("names", "photographs", allowed="names in PHOTOGRAPHS", got=name, hint=hint)
    return [_open(name) for name in wanted if PHOTOGRAPHS[name].natural or not natural_only]


def _open(name: str) -> Photograph:
    record = PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(record.package)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    path = Path(places[0] if places else ".").joinpath(*_FOLDERS[record.package], record.file)
    if not path.is_file():
        raise DataError(f"The installed {_NAMES[record.package]} does not hold {record.file} ({name}); update it.")
    with Image.open(path) as file:
        image = file.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    origin = f"{record.what}; shipped with {_NAMES[record.package]}"
    return Photograph(name, image, record.licence, record.natural, origin)
