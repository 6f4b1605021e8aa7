from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

from striate.data.named_entities import named_entities
from striate.errors import DataError, InputError
from striate.tasks.tagging.vectors import ppmi_vectors, read_vectors

GLOVE = "the 0.1 0.2 0.3\nbank -1 0 1e-1\n. . . 1 2 3\n"


def test_glove_and_word2vec_text(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text(GLOVE)
    found = read_vectors(path)
    assert found.dim == 3
    assert list(found.rows) == ["the", "bank", ". . ."]  # GloVe's largest files hold words with blanks
    torch.testing.assert_close(found.find("The"), torch.tensor([0.1, 0.2, 0.3]))  # caseless
    assert found.find("Zork") is None
    (tmp_path / "w2v.txt").write_text(f"3 3\n{GLOVE}")
    torch.testing.assert_close(read_vectors(tmp_path / "w2v.txt").matrix, found.matrix)
    with gzip.open(tmp_path / "g.txt.gz", "wt") as file:
        file.write(GLOVE)
    assert list(read_vectors(tmp_path / "g.txt.gz", {"Bank"}).rows) == ["bank"]


def test_word2vec_binary(tmp_path: Path) -> None:
    path = tmp_path / "news.bin"
    body = b"".join(
        word + b" " + struct.pack("<3f", *row) + b"\n" for word, row in ((b"The", (1, 2, 3)), (b"a", (4, 5, 6)))
    )
    path.write_bytes(b"2 3\n" + body)
    found = read_vectors(path)
    assert found.rows == {"The": 0, "a": 1}
    assert found.matrix.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found.find("the") is None  # these keep case
    path.write_bytes(b"2 3\n" + body[:-9])
    with pytest.raises(DataError, match="ends in the middle"):
        read_vectors(path)
    path.write_bytes(b"hello\n")
    with pytest.raises(DataError, match="no binary file of word2vec"):
        read_vectors(path)
    path.write_bytes(b"1 2\nhello " + struct.pack("<2f", 1.0, float("inf")))
    with pytest.raises(DataError, match="vector of 'hello'"):
        read_vectors(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a 1 2 3\nb 1 2\n", "line 2: a word and 3 finite numbers"),
        ("a 1 x 3\n", "line 1: a word and 3 finite numbers"),
        ("alone\n", "line 1: a word and some finite numbers"),
        ("a 1 2 3\nb 1 nan 3\n", "line 2: a word and 3 finite numbers"),
        ("", "no vector of any word"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "v.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        read_vectors(path)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(tmp_path / "none.txt")
    (tmp_path / "x.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(tmp_path / "x.gz")


def test_words_in_like_company_get_like_vectors() -> None:
    made = named_entities("unlabelled", 1_500)
    found = ppmi_vectors([item.tokens for item in made.sentences], 20)
    torch.testing.assert_close(found.matrix.norm(dim=1), torch.ones(len(found.rows)))

    def near(first: str, second: str) -> float:
        return float(found.matrix[found.rows[first]] @ found.matrix[found.rows[second]])

    assert near("km", "tons") > near("km", "Corp") + 0.2
    assert near("Inc", "Corp") > near("Inc", "March") + 0.2
    again = ppmi_vectors([item.tokens for item in made.sentences], 20)
    assert torch.equal(again.matrix, found.matrix)
    with pytest.raises(InputError, match=">= 22 words"):
        ppmi_vectors([["a", "b", "a", "b"]], 20)
