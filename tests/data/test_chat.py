from __future__ import annotations

from pathlib import Path

import pytest

from striate.data.chat import read_chat
from striate.data.tagged import format_tagged, read_tagged
from striate.errors import DataError, InputError

CHAT = """@UTF8
@Begin
@Participants:\tXXA A Adult
*XXA:\t係 咩 ?
%mor:\tv|hai6 y|me1
\t?
*XXA:\t...
%mor:\t...
*XXB:\tit's <the the> [/] the dog &-um xxx . \x15100_200\x15
%gra:\t1|2|SUBJ
%mor:\tpro|it~cop|be&3S det|the n|dog .
%com:\tlaughs
*XXB:\tno tier here .
@End
"""


def save(folder: Path, text: str, name: str = "a.cha") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_stems_and_tags_of_the_mor_tier(tmp_path: Path) -> None:
    first, second = read_chat(save(tmp_path, CHAT))
    assert (first.tokens, first.tags) == (("hai6", "me1"), ("v", "y"))
    assert (second.tokens, second.tags) == (("it~be&3S", "the", "dog"), ("pro~cop", "det", "n"))


def test_everything_is_written_back_as_it_was(tmp_path: Path) -> None:
    found = read_chat(save(tmp_path, CHAT))
    assert format_tagged(found, "chat") == CHAT
    changed = format_tagged(found, "chat", [["a", "b"], ["c~d", "e", "f"]])
    assert "%mor:\ta|hai6 b|me1 ?\n" in changed
    assert "%gra:\t1|2|SUBJ\n%mor:\tc|it~d|be&3S e|the f|dog .\n%com" in changed
    assert changed.startswith("@UTF8\n@Begin\n")
    assert changed.endswith("*XXB:\tno tier here .\n@End\n")
    assert "*XXA:\t...\n%mor:\t...\n" in changed


def test_words_of_the_main_line(tmp_path: Path) -> None:
    text = CHAT.replace("<the the> [/] ", "")
    found = read_chat(save(tmp_path, text), tokens="main")
    assert [item.tokens for item in found] == [("係", "咩"), ("it's", "the", "dog"), ("no", "tier", "here")]
    assert found[2].tags is None
    changed = format_tagged(found, "chat", [["a", "b"], ["c~d", "e", "f"], ["g", "h", "i"]])
    assert "%mor:\ta|hai6 b|me1 ?\n" in changed  # the stems stay
    assert changed.endswith("*XXB:\tno tier here .\n%mor:\tg|no h|tier i|here .\n@End\n")


def test_one_tag_on_joined_stems(tmp_path: Path) -> None:
    found = read_chat(save(tmp_path, CHAT))
    assert "%mor:\tX|it~be&3S e|the" in format_tagged(found, "chat", [["a", "b"], ["X", "e", "f"]])


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    save(tmp_path, CHAT.replace("hai6", "second"), "b.cha")
    save(tmp_path, CHAT.replace("hai6", "first"), "a.cha")
    assert [item.tokens[0] for item in read_tagged(tmp_path)][::2] == ["first", "second"]


@pytest.mark.parametrize(
    ("text", "tokens", "match"),
    [
        ("hello\n", "mor", "line 1: a line of CHAT starts with"),
        ("@UTF8\n*A:\thi .\n@End\n", "mor", "no utterances with a %mor tier"),
        ("@UTF8\n@End\n", "main", "holds no utterances"),
        ("*A:\tone two .\n%mor:\tn|one\n", "main", "line 1: 2 words on the main line and 1 on %mor"),
        ("*A:\tone .\n%mor:\tn| .\n", "mor", "line 1: an item of %mor has no stem"),
    ],
)
def test_malformed_transcripts_are_named(tmp_path: Path, text: str, tokens: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_chat(save(tmp_path, text), tokens=tokens)  # type: ignore[arg-type]


def test_tokens_are_of_one_line_or_the_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mor or main"):
        read_chat(save(tmp_path, CHAT), tokens="gra")  # type: ignore[arg-type]
