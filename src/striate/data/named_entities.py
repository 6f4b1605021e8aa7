"""English-like sentences with named entities, made from a grammar whose every knob is known.

Five types. A name's form tells its class (places end in -ville, -burg, …; persons are given name and surname;
organisations of two to four words end in Corp, Union, …; measures are a number and a unit), so that whoever reads
characters has an advantage. In half of the sentences the surroundings tell the class too, in the other half they do
not. Some names (May, Jordan, Lincoln) are of several classes, and only the surroundings tell which. In the parts for
judging, a share of the names is made of stems that the training part never holds.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from striate.data.tagged import TaggedSentence
from striate.errors import InputError

__all__ = ["NamedEntities", "named_entities"]

Part = Literal["train", "dev", "test", "unlabelled"]
Kind = Literal["known", "new", "ambiguous", "plain"]

_SIZES: dict[str, int] = {"train": 600, "dev": 200, "test": 300, "unlabelled": 5_000}
_NEW, _AMBIGUOUS = 0.30, 0.15  # shares of all entities
_NAMED = 0.84  # share of the slots that are PER, LOC or ORG; numbers and dates are never new
_TOLD = 0.45  # share of the slots whose type the sentence tells; only there a name may be ambiguous

_TELLING = """
    Mr {PER} arrived in {LOC} on {DATE} .
    Shares of {ORG} rose by {MEAS} after the report .
    The road from {LOC} to {LOC} is closed .
    {ORG} will open a plant near {LOC} .
    " I did not see it , " said {PER} .
    Police in {LOC} arrested three men .
    On {DATE} the workers of {ORG} went on strike .
    A spokesman for {ORG} declined to comment .
    {PER} beat {PER} 6 - 3 in the final .
    {ORG} named {PER} as its new chairman .
    Doctor {PER} treated the wounded near {LOC} .
    We may visit {LOC} before {DATE} .
    Her brother {PER} works for {ORG} .
    {PER} resigned from {ORG} in {DATE} .
    The mayor of {LOC} thanked {PER} .
    May I speak to {PER} ?
    The train to {LOC} was {MEAS} long .
    The company ordered {MEAS} of steel from {ORG} .
    The old Union of students met in New buildings .
    The storm reached {LOC} on {DATE} .
"""
_NEUTRAL = """
    They talked about {NAME} for hours .
    {NAME} was in the news again .
    Nothing more is known of {NAME} .
    {NAME} , {NAME} and {NAME} were mentioned twice .
    The report of {DATE} praised {NAME} .
    A film about {NAME} opened last week .
    {NAME} did not surprise anyone .
    Critics of {NAME} and {NAME} were silent .
    Everybody remembers {NAME} .
    The letter names {NAME} but not {NAME} .
    {NAME} lost {MEAS} in a year .
    Is there any news from {NAME} ?
    Talks With {NAME} Fail Again
    {NAME} Under Fire
    Trouble Ahead For {NAME} {MEAS} Lost
    The paper compared {NAME} with {NAME} .
    Since {DATE} {NAME} has been quiet .
    {NAME} may face a trial .
    Help for {NAME} came too late .
    {NAME} and others , among them {NAME} , protested .
"""
_TEMPLATES = tuple(line.split() for line in (_TELLING + _NEUTRAL).splitlines() if line.strip())
_ENDINGS = {
    "LOC": ("ville", "burg", "stan", "ford", "haven", "mouth"),
    "given": ("a", "o", "in", "ette"),
    "PER": ("son", "ski", "wick", "mann", "ez"),
    "ORG": ("Corp", "Inc", "Union", "Group", "Bank"),
}
_BETWEEN = ("Steel", "Trade", "Mutual", "and", "of")
_BEFORE_PLACE = ("New", "Port", "Lake")
_UNITS = ("km", "tons", "percent", "metres", "litres", "million")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "October", "December")
_SEVERAL = {
    "PER": ("May", "Jordan", "Lincoln", "Chester", "Florence", "Victoria", "Austin", "Ford"),
    "LOC": ("Jordan", "Lincoln", "Chester", "Florence", "Victoria", "Austin"),
    "ORG": ("Ford", "Lincoln", "Chester", "Victoria"),
}


@dataclass(frozen=True)
class NamedEntities:
    """Sentences with tags in BIOES, and how each entity came about.

    Attributes:
        sentences: tokens and tags.
        kinds: of each sentence's entities in order: ``"known"`` (stems of the training part), ``"new"``,
            ``"ambiguous"``, or ``"plain"`` (numbers and dates).
        origin: in words.
    """

    sentences: tuple[TaggedSentence, ...]
    kinds: tuple[tuple[Kind, ...], ...]
    origin: str


def named_entities(part: Part, n: int | None = None, seed: int = 0) -> NamedEntities:
    """Make one part; the same arguments give the same sentences.

    Args:
        part: ``"train"`` (600 sentences), ``"dev"`` (200), ``"test"`` (300) or ``"unlabelled"`` (5,000). In all but
            the first 30 % of the entities have stems that the training part lacks.
        n: how many sentences instead.
        seed: of the stems and the sentences.

    >>> made = named_entities("test", 1)
    >>> len(made.sentences[0].tokens) == len(made.sentences[0].tags)
    True
    """
    if part not in _SIZES:
        raise InputError("part", "named_entities", allowed=", ".join(_SIZES), got=part)
    count = _SIZES[part] if n is None else n
    stems = _stems(random.Random(f"stems {seed}"))
    pools = {"known": stems[:160], "new": stems[160:]}
    chance = random.Random(f"{part} {seed}")
    made = [_sentence(chance, pools, with_new=part != "train") for _ in range(count)]
    sentences, kinds = zip(*made, strict=True) if made else ((), ())
    return NamedEntities(sentences, kinds, f"grammar of named entities, {part} part, seed {seed}")


def _stems(chance: random.Random) -> list[str]:
    onsets, vowels = ("b", "br", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z"), "aeiou"
    words = ["".join(parts) for parts in itertools.product(onsets, vowels, "bdlrv", vowels, "dklmnrst")]
    return [word.capitalize() for word in chance.sample(words, 240)]


def _sentence(
    chance: random.Random, pools: dict[str, list[str]], *, with_new: bool
) -> tuple[TaggedSentence, tuple[Kind, ...]]:
    tokens: list[str] = []
    tags: list[str] = []
    kinds: list[Kind] = []
    for word in chance.choice(_TEMPLATES):
        if not re.fullmatch(r"\{[A-Z]+\}", word):
            tokens.append(word)
            tags.append("O")
            continue
        told = word != "{NAME}"
        type_ = word[1:-1] if told else chance.choice(("PER", "LOC", "ORG"))
        kind: Kind = "plain"
        if type_ in _SEVERAL:
            kind = "known"
            if told and chance.random() < _AMBIGUOUS / _TOLD:
                kind = "ambiguous"
            elif with_new and chance.random() < _NEW / (_NAMED - _AMBIGUOUS):
                kind = "new"
        name = [chance.choice(_SEVERAL[type_])] if kind == "ambiguous" else _name(chance, type_, pools.get(kind, []))
        tokens += name
        tags += [f"{mark}-{type_}" for mark in _marks(len(name))]
        kinds.append(kind)
    return TaggedSentence(tuple(tokens), tuple(tags)), tuple(kinds)


def _name(chance: random.Random, type_: str, stems: list[str]) -> list[str]:
    if type_ == "MEAS":
        number = (
            str(chance.randint(2, 400)) if chance.random() < 0.6 else f"{chance.randint(1, 60)}.{chance.randint(1, 9)}"
        )
        return [number, chance.choice(_UNITS)]
    if type_ == "DATE":
        month, form = chance.choice(_MONTHS), chance.random()
        year = [str(chance.randint(1985, 2016))] if form > 0.4 else []
        return ([str(chance.randint(1, 28))] if form > 0.7 else []) + [month, *year]
    if type_ == "LOC":
        name = [chance.choice(stems) + chance.choice(_ENDINGS["LOC"])]
        return [chance.choice(_BEFORE_PLACE), *name] if chance.random() < 0.25 else name
    if type_ == "PER":
        name = [chance.choice(stems) + chance.choice(_ENDINGS["PER"])]
        return [chance.choice(stems) + chance.choice(_ENDINGS["given"]), *name] if chance.random() < 0.4 else name
    parts = [chance.choice(stems)]
    if chance.random() < 0.5:
        parts.append(chance.choice(_BETWEEN))
        if parts[-1] in {"and", "of"}:
            parts.append(chance.choice(stems) + (chance.choice(_ENDINGS["LOC"]) if parts[-1] == "of" else ""))
    return [*parts, chance.choice(_ENDINGS["ORG"])]


def _marks(length: int) -> Iterable[str]:
    return "S" if length == 1 else ["B", *["I"] * (length - 2), "E"]
