"""Columns and CoNLL-U: what is read, what is written back, what is refused and where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.data.conll import add_column, read_conll, read_conllu
from striate.data.tagged import TaggedSentence, format_tagged, read_tagged, write_tagged
from striate.errors import DataError, InputError

CONLL_2003 = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
# NN I-NP O

-DOCSTART- -X- O O
Peter NNP I-NP I-PER
"""
CONLLU = """# sent_id = 1
# text = Vámonos al mar.
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\tV\t_\t0\troot\t_\t_
2\tnos\tyo\tPRON\tP\t_\t1\tobj\t_\t_
2.1\tsomos\tser\tAUX\t_\t_\t_\t_\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\tE\t_\t5\tcase\t_\t_
4\tel\tel\tDET\tD\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\tN\t_\t1\tobl\t_\tSpaceAfter=No

# sent_id = 2
1\tNo\tno\t_\t_\t_\t0\troot\t_\t_

"""


def save(folder: Path, text: str, name: str = "text.conll") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_conll_2003_as_it_comes(tmp_path: Path) -> None:
    first, second = read_conll(save(tmp_path, CONLL_2003))
    assert first.tokens == ("EU", "rejects", "#")
    assert first.tags == ("I-ORG", "O", "O")
    assert second.tokens == ("Peter",)
    assert format_tagged([first], "conll") == "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\n# NN I-NP O\n\n"
    assert format_tagged([second], "conll", [["S-PER"]]) == "Peter NNP I-NP I-PER S-PER\n\n"


def test_a_leading_counter_is_seen(tmp_path: Path) -> None:
    text = "1 EU NNP I-NP S-ORG\n2 rejects VBZ I-VP O\n\n1 Peter NNP I-NP S-PER\n"
    first, second = read_tagged(save(tmp_path, text))
    assert (first.tokens, first.tags) == (("EU", "rejects"), ("S-ORG", "O"))
    assert second.tokens == ("Peter",)
    assert read_conll(save(tmp_path, "1 O\n\n1 O\n"))[0].tokens == ("1",)  # one token a sentence counts nothing
    assert read_conll(save(tmp_path, "3 O\n1 O\n"))[0].tokens == ("3", "1")


def test_columns_may_be_chosen_and_tags_may_be_missing(tmp_path: Path) -> None:
    path = save(tmp_path, CONLL_2003)
    assert read_conll(path, tag_column=1)[0].tags == ("NNP", "VBZ", "NN")
    assert read_conll(path, token_column=1, tag_column=-2)[0].tokens == ("NNP", "VBZ", "NN")
    (bare,) = read_conll(save(tmp_path, "one\ntwo\n", "bare.conll"))
    assert bare == TaggedSentence(("one", "two"))
    assert format_tagged([bare], "conll", [["A", "B"]]) == "one A\ntwo B\n\n"
    with pytest.raises(DataError, match="4 columns, so there is none of number 4"):
        read_conll(path, tag_column=4)


def test_tabs_blanks_line_ends_and_byte_order_marks(tmp_path: Path) -> None:
    (found,) = read_conll(save(tmp_path, "\ufeffNew York\tB-LOC\r\na\xa0b\tO\r\n\r\n"))
    assert found.tokens == ("New York", "a\xa0b")  # a blank within a token, where tabs divide
    assert format_tagged([found], "conll") == "New York\tB-LOC\na\xa0b\tO\n\n"
    assert read_conll(save(tmp_path, "x   A\n"))[0].tags == ("A",)


def test_comments_in_columns_are_no_tokens_and_are_kept(tmp_path: Path) -> None:
    text = "# id = 1\n# Ann sees 1\nAnn B-PER\n# O\n1 O\n\n# the end of it\n\nBonn B-LOC\n\n"
    first, second = read_conll(save(tmp_path, text))
    assert first.tokens == ("Ann", "#", "1")  # a line of as many columns is a token
    assert second.tags == ("B-LOC",)
    assert format_tagged([first, second], "conll", [["A", "B", "C"], ["D"]]) == (
        "# id = 1\n# Ann sees 1\nAnn B-PER A\n# O B\n1 O C\n\nBonn B-LOC D\n\n"
    )
    assert read_conll(save(tmp_path, "#a O\n#b O\n"))[0].tokens == ("#a", "#b")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "holds no sentences"),
        ("\n\n", "holds no sentences"),
        ("-DOCSTART- O\n", "holds no sentences"),
        ("a X\nb\n", "line 2: 1 columns where the first line has 2"),
        ("Ann runs home\nBen sees her now\n", "a line is of the format 'text'"),
        ("a X\n\nb Y Z\n", "line 3: 3 columns"),
        ("a\t\tO\n", "line 1: a column is empty"),
    ],
)
def test_malformed_columns_are_named(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_conll(save(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.conll cannot be read"):
        read_conll(tmp_path / "missing.conll")
    (tmp_path / "latin").write_bytes("Zürich X\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_conll(tmp_path / "latin")
    (tmp_path / "wide").write_text("Zürich X\n", encoding="utf-16")
    with pytest.raises(DataError, match="iconv -f utf-16"):
        read_conll(tmp_path / "wide")


def test_conllu_keeps_what_is_no_token(tmp_path: Path) -> None:
    path = save(tmp_path, CONLLU, "text.conllu")
    with pytest.raises(DataError, match="10 columns, so there is none of number 20"):
        read_conllu(path, tag_column=20)
    first, second = read_tagged(path)
    assert first.tokens == ("Vamos", "nos", "a", "el", "mar")
    assert first.tags == ("VERB", "PRON", "ADP", "DET", "NOUN")
    assert second.tags is None
    assert format_tagged([first, second], "conllu") == CONLLU
    changed = format_tagged([first, second], "conllu", [list("ABCDE"), ["ADV"]])
    assert changed == CONLLU.replace("VERB", "A").replace("PRON", "B").replace("ADP", "C").replace("DET", "D").replace(
        "NOUN", "E"
    ).replace("No\tno\t_", "No\tno\tADV")
    assert read_conllu(path, tag_column=4)[0].tags == ("V", "P", "E", "D", "N")


def test_malformed_conllu_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: 3 columns between tabs where CoNLL-U has 10"):
        read_conllu(save(tmp_path, "# c\n1\ta\tb\n"))
    with pytest.raises(DataError, match="line 1: the token is empty"):
        read_conllu(save(tmp_path, "1\t" + "\t_" * 8 + "\n"))
    with pytest.raises(DataError, match="no sentences"):
        read_conllu(save(tmp_path, "# nothing\n"))


WORD = st.text(st.characters(exclude_categories=("Z", "C"), exclude_characters="#"), min_size=1, max_size=6)
SENTENCES = st.lists(
    st.lists(st.tuples(WORD, st.sampled_from(["O", "B-X", "NN"])), min_size=1, max_size=5), min_size=1, max_size=4
)


@pytest.mark.parametrize("format", ["conll", "conllu", "chat"])
@given(rows=SENTENCES)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, format: str, rows: list) -> None:
    folder = tmp_path_factory.mktemp("written")
    if format == "chat":  # bars and joined stems mean something there
        rows = [[(f"w{len(word)}", tag) for word, tag in row] for row in rows]
    made = [TaggedSentence(tuple(w for w, _ in row), tuple(t for _, t in row)) for row in rows]
    path = write_tagged(folder / "text", made, format)  # type: ignore[arg-type]
    options = {"token_column": 0} if format == "conll" else {}
    assert read_tagged(path, format, **options) == made  # type: ignore[arg-type]


def test_conllu_becomes_columns_of_token_and_tag(tmp_path: Path) -> None:
    found = read_conllu(save(tmp_path, CONLLU.replace("\tnos\t", "\tNew York\t")))[:1]
    again = read_tagged(write_tagged(tmp_path / "columns", found, "conll"))
    assert [(item.tokens, item.tags) for item in again] == [(item.tokens, item.tags) for item in found]
    with pytest.raises(InputError, match=r"without blanks.*'New York'"):
        format_tagged([TaggedSentence(item.tokens, item.tags) for item in found], "chat")


def test_plain_text_is_a_sentence_a_line(tmp_path: Path) -> None:
    found = read_tagged(save(tmp_path, "Paris is  nice .\n\nSo is May\n"), "text")
    assert [item.tokens for item in found] == [("Paris", "is", "nice", "."), ("So", "is", "May")]
    assert format_tagged(found[1:], "text", [["O", "O", "S-DATE"]]) == "So O\nis O\nMay S-DATE\n\n"


def test_a_column_more() -> None:
    made = [TaggedSentence(("a", "b"), ("X", "Y"))]
    assert format_tagged(add_column(made, [["1", "2"]]), "conll", [["p", "q"]]) == "a X 1 p\nb Y 2 q\n\n"


def test_wrong_uses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'conll'"):
        read_tagged(tmp_path, "connl")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one tag a token"):
        format_tagged([TaggedSentence(("a",))], "conll", [["A", "B"]])
    with pytest.raises(InputError, match="tokens"):
        TaggedSentence(())
    with pytest.raises(InputError, match="2 for 1 tokens"):
        TaggedSentence(("a",), ("A", "B"))
    assert TaggedSentence(("a",), ("A",)).with_tags(["B"]).tags == ("B",)
