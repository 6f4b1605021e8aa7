"""Which class an image belongs to, by its folder or by a table, and which rule said so."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from striate.engine.model import imagenet_classes
from striate.errors import DataError, did_you_mean

__all__ = ["Labelling", "labels_by_folder", "labels_from_csv"]

_WNID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
_MANY = 2**31
"""No class number is as large where the number of classes is not known."""

_FILES = {"file", "filename", "file_name", "image", "name", "path"}
_LABELS = {"label", "label_name", "class", "class_name", "category", "target"}


@dataclass(frozen=True)
class Labelling:
    """Labels and where they come from.

    Attributes:
        labels: class index by image name; None where there are no labels.
        class_names: name of each class, or None.
        rule: how the labels came about, in words.
        missing: names that a table lists and that were not found.
    """

    labels: dict[str, int] | None
    class_names: tuple[str, ...] | None
    rule: str
    missing: tuple[str, ...] = ()


def labels_by_folder(
    names: Sequence[str], class_names: Sequence[str] | None = None, *, num_classes: int | None = None
) -> Labelling:
    """Label images by the first folder of their names, where that is plausible.

    In this order: ImageNet's wnids (``n02123045``) with ImageNet's classes; names of the model's classes; class
    numbers; else, as torchvision's ImageFolder, the sorted order of the folders, but only if there are as many
    folders as the model has classes, or nothing is known of the model. Otherwise the folders are taken for an order of
    the person's own, and the images have no labels.

    Args:
        names: of the images, relative, with forward slashes.
        class_names: of the model, where known.
        num_classes: of the model, where only their number is known.

    >>> labels_by_folder(["cat/a.png", "dog/b.png"], ["cat", "cow", "dog"]).labels
    {'cat/a.png': 0, 'dog/b.png': 2}
    """
    known = None if class_names is None else tuple(class_names)
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    if not folders:
        return Labelling(None, known, "no labels: there are no class folders")
    if any("/" not in name for name in names):
        return Labelling(None, known, "no labels: the images do not all stand in class folders")
    index, rule = _index_of_folders(folders, known, num_classes if known is None else len(known))
    if index is None:
        return Labelling(None, known, rule)
    labels = {name: index[name.split("/")[0]] for name in names}
    return Labelling(labels, tuple(folders) if known is None and rule.startswith("sorted") else known, rule)


def labels_from_csv(
    path: str | Path,
    names: Sequence[str],
    class_names: Sequence[str] | None = None,
    *,
    num_classes: int | None = None,
) -> Labelling:
    """Label images by a table of two columns, file and label, with or without a header line.

    Args:
        path: the table; comma, semicolon or tab; UTF-8. A file is given by its relative path, or by its bare name
            where only one image has it. A label is a class number or a class name; where all are names of classes,
            names, so that classes may be called 10 and 2. With more columns the first is the file, and the header
            tells which one is the label (label, class, category, target). A first line that names no image and
            nothing that looks like a file, and whose label is no class and never comes again, is a header too; the
            rule quotes it.
        names: of the images, relative, with forward slashes.
        class_names: of the model; without them, label names are numbered in sorted order.
        num_classes: of the model, where only their number is known: as many label names there must be.

    Raises:
        DataError: unreadable, or a label is no class; the line is named.
    """
    path = Path(path)
    rows = _rows(path)
    known = None if class_names is None else tuple(class_names)
    places = _unique_names(known or ())
    bare: dict[str, list[str]] = {}
    for name in names:
        bare.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    texts: dict[str, tuple[int, str]] = {}
    missing = []
    all_names = set(names)
    passed = ""
    (_, file, label), *others = rows
    if (
        others
        and not PurePosixPath(file).suffix
        and not (file in all_names or file in bare or label.isdecimal() or _plain(label) in places)
        and all(label != other for _, _, other in others)
    ):
        passed, rows = f" (its first line, {file} and {label}, is taken for a header)", others
    for line, file, label in rows:
        file = file.replace("\\", "/").removeprefix("./")  # noqa: PLW2901
        same = [file] if file in all_names else bare.get(file.rsplit("/", 1)[-1], [])
        if not same:
            missing.append(file)
            continue
        if len(same) > 1:
            raise DataError(f"{path.name} line {line}: '{file}' could be {same[0]} or {same[1]}; give the folder too.")
        if texts.get(same[0], (0, label))[1] != label:
            raise DataError(f"{path.name} line {line}: '{file}' has two labels, {texts[same[0]][1]} and {label}.")
        texts[same[0]] = line, label
    numeric = all(label.isdecimal() for _, label in texts.values())
    numeric = numeric and not all(_plain(label) in places for _, label in texts.values())
    if known is None and not numeric:
        if all(_NUMBER.fullmatch(label) for _, label in texts.values()):  # in sorted order 10.0 comes before 2.0
            line, label = next(found for found in texts.values() if not found[1].isdecimal())
            raise DataError(f"{path.name} line {line}: '{label}' is no class number; these are 0, 1, 2, …")
        known = tuple(sorted({label for _, label in texts.values()}))
        if num_classes not in {None, len(known)}:
            raise DataError(
                f"{path.name} has {len(known)} label names and the network {num_classes} classes, whose names are not "
                "known. Give class numbers, or the names of all classes (--class-names)."
            )
        places = _unique_names(known)
        rule = f"{path.name}: label names, numbered in sorted order{passed}"
    else:
        rule = f"{path.name}: {'class numbers' if numeric else 'class names'}{passed}"
    count = num_classes if known is None else len(known)
    labels = {}
    for name, (line, label) in texts.items():
        named = places.get(_plain(label))
        number = int(label) if label.isdecimal() and (numeric or named is None) else named
        if number is None or number >= (_MANY if count is None else count):
            near = did_you_mean(label, known or ())
            limit = f" of the model's {count}" if count is not None else ""
            raise DataError(f"{path.name} line {line}: '{label}' is no class{limit}.{near}")
        labels[name] = number
    return Labelling(labels, known, rule, tuple(missing))


def _index_of_folders(
    folders: list[str], known: tuple[str, ...] | None, count: int | None
) -> tuple[dict[str, int] | None, str]:
    if all(_WNID.fullmatch(folder) for folder in folders) and known == imagenet_classes():
        from timm.data import ImageNetInfo

        place = {wnid: i for i, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
        foreign = [folder for folder in folders if folder not in place]
        if foreign:
            return None, f"no labels: {foreign[0]} is none of ImageNet's 1,000 wnids"
        return {folder: place[folder] for folder in folders}, "folders are ImageNet wnids"
    if known is not None:
        place = _unique_names(known)
        if all(_plain(folder) in place for folder in folders):
            return {folder: place[_plain(folder)] for folder in folders}, "folders are names of the model's classes"
    numbers = {folder: int(folder) for folder in folders if folder.isdecimal()}
    if len(numbers) == len(folders) and (count is None or max(numbers.values()) < count):
        return numbers, "folders are class numbers"
    if count is None or len(folders) == count:
        return {folder: i for i, folder in enumerate(folders)}, "sorted order of the folders, as in ImageFolder"
    folders_are = f"no labels: the {len(folders)} folders (first: {folders[0]}) are"
    if known is None:
        return None, f"{folders_are} not the model's {count} classes, whose names are not known (--class-names)"
    return None, f"{folders_are} no names of the model's classes, and it has {count} classes"


def _rows(path: Path) -> list[tuple[int, str, str]]:
    """Return (line number, file, label) of each row, without a header of known words."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The labels in {path} cannot be read: {error}.") from error
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    rows: list[tuple[int, str, str]] = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        table = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"The labels in {path} cannot be read as a table: {error}.") from error
    label = 0  # the column, once it is known
    for number, row in table:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        words = [cell.lower() for cell in cells]
        if not label:
            more = any(cells[2:])
            label = next((i for i, word in enumerate(words) if i and word in _LABELS), 0) if more else 1
            if not label:
                raise DataError(
                    f"{path.name} line {number}: two columns, file and label, were expected. Leave the others out, or "
                    "name the label's in a header (file, …, label)."
                )
            if more or words[0] in _FILES:
                continue
        if len(cells) <= label or not cells[0] or not cells[label]:
            raise DataError(f"{path.name} line {number}: two columns, file and label, were expected.")
        rows.append((number, cells[0], cells[label]))
    if not rows:
        raise DataError(f"{path} holds no labels; it should have two columns, file and label.")
    return rows


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _unique_names(class_names: Sequence[str]) -> dict[str, int]:
    """Return index by plain name, without names that two classes share."""
    plain = [_plain(name) for name in class_names]
    return {name: i for i, name in enumerate(plain) if plain.count(name) == 1}
