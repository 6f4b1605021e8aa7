"""The Hong Kong Cantonese Corpus: conversations and radio programmes of the 1990s, every word tagged and romanised.

Luke, Wong, "The Hong Kong Cantonese Corpus: Design and Uses", Journal of Chinese Linguistics Monograph Series 25, 2015.
CC BY 4.0; in the CHAT format of the package pycantonese. A token is the romanised word (``leoi5hang4``), a tag its part
of speech. Twelve recordings come with Striate; all 58 (125,394 words, 94 tags) with ``striate data fetch hkcancor``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from striate.data.chat import read_chat
from striate.data.tagged import TaggedSentence
from striate.engine.packages import find_file
from striate.errors import InputError

__all__ = ["hkcancor"]

_SAMPLE = Path(__file__).with_name("hkcancor_sample")
_RECORDINGS = {
    "train": ("FC-001_v2", "FC-013_v", "FC-042_v", "FC-101_v2", "FC-R003_v2"),
    "dev": ("FC-R006_v2", "FC-R009_v"),
    "test": ("FC-011_v", "FC-019_v", "FC-106a_v2", "FC-R016_v", "FC-R018_v"),
}


def hkcancor(part: Literal["train", "dev", "test"], *, whole: bool = False) -> list[TaggedSentence]:
    """Read one part; parts share no recording, and dev and test are the same with and without ``whole``.

    Args:
        part: ``"train"`` (874 utterances, or 15,164 of the whole corpus), ``"dev"`` (211) or ``"test"`` (785).
        whole: train on all other recordings of the corpus, which has to be fetched first.

    Raises:
        DataError: the whole corpus is not on this machine; the message says how to get it.

    >>> len(hkcancor("dev"))
    211
    """
    if part not in _RECORDINGS:
        raise InputError("part", "hkcancor", allowed=", ".join(_RECORDINGS), got=part)
    if whole and part == "train":
        held_out = {*_RECORDINGS["dev"], *_RECORDINGS["test"]}
        files = [path for path in sorted(find_file("hkcancor").glob("*.cha")) if path.stem not in held_out]
    else:
        files = [_SAMPLE / f"{name}.cha" for name in _RECORDINGS[part]]
    return [sentence for file in files for sentence in read_chat(file)]
