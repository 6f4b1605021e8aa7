from __future__ import annotations

from pathlib import Path

import pytest

from striate.data.chat import format_chat, read_chat
from striate.data.hkcancor import hkcancor
from striate.engine import packages
from striate.errors import DataError, InputError


def test_the_parts_have_their_sizes_and_share_no_utterance_by_recording() -> None:
    sizes = {part: len(hkcancor(part)) for part in ("train", "dev", "test")}  # type: ignore[arg-type]
    assert sizes == {"train": 874, "dev": 211, "test": 785}
    first = hkcancor("train")[0]
    assert first.tokens == ("wai3", "ci4", "di1", "heoi3", "m4", "heoi3", "leoi5hang4", "aa3")
    assert first.tags == ("e", "a", "u", "v", "d", "v", "vn", "y")


def test_every_recording_is_written_back_as_it_was() -> None:
    from striate.data import hkcancor as module

    for path in sorted(Path(module.__file__).with_name("hkcancor_sample").glob("*.cha")):
        assert format_chat(read_chat(path)) == path.read_text(encoding="utf-8")


def test_the_whole_corpus_has_to_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "find", lambda name: None)
    with pytest.raises(DataError, match="striate data fetch hkcancor"):
        hkcancor("train", whole=True)
    for name in ("FC-011_v", "FC-999_v"):
        (tmp_path / f"{name}.cha").write_text("*A:\tx .\n%mor:\tn|x .\n", encoding="utf-8")
    monkeypatch.setattr(packages, "find", lambda name: tmp_path)
    assert len(hkcancor("train", whole=True)) == 1  # FC-011 is for judging
    assert hkcancor("dev", whole=True) == hkcancor("dev")


def test_other_parts_are_refused() -> None:
    with pytest.raises(InputError, match="train, dev, test"):
        hkcancor("validation")  # type: ignore[arg-type]
