"""``striate tag`` as a person uses it: train, predict, evaluate, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from striate.cli import app
from striate.data.named_entities import named_entities
from striate.data.tagged import read_tagged, write_tagged
from striate.tasks.tagging.scheme import bioes_to_bio, spans_of

SMALL = ("--hidden", "12", "--word-dim", "10", "--char-filters", "6", "--epochs", "2", "--lr", "0.05")


def call(*arguments: str, text: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["tag", *arguments], env={"COLUMNS": "120"}, input=text)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BIO file of columns, and a tagger trained on it."""
    root = tmp_path_factory.mktemp("tag")
    for part, n in (("train", 40), ("dev", 12)):
        made = [item.with_tags(bioes_to_bio(item.tags or ())) for item in named_entities(part, n).sentences]  # type: ignore[arg-type]
        write_tagged(root / f"{part}.conll", made)
    code, out, err = call(
        "train", str(root / "train.conll"), *SMALL, "--test", str(root / "dev.conll"), "--out", str(root / "m")
    )
    assert (code, err) == (0, ""), err
    lines = out.splitlines()
    assert lines[0].startswith("train: 36 sentences, ")  # a tenth is held out
    assert lines[1].startswith("test: 12 sentences, ")
    assert lines[2].startswith("dev: 4 sentences, ")
    assert lines[3].startswith("best on held-out text: epoch ")
    assert "of 2, F1 " in lines[3]
    assert lines[4].startswith("processed ")
    assert lines[-1].startswith(f"{root / 'm'}: 21 tags, ")
    return root


def test_a_trained_tagger_lies_in_its_folder(folder: Path) -> None:
    described = json.loads((folder / "m" / "tagger.json").read_text())
    assert described["options"]["output_scheme"] == "BIO"
    assert described["options"]["constrain"] is True
    assert len(described["trained"]["epochs"]) == 2
    assert described["trained"]["test"]["tokens"] > 0
    assert (folder / "m" / "model.safetensors").is_file()


def test_the_same_command_continues_and_changes_nothing(folder: Path) -> None:
    before = (folder / "m" / "model.safetensors").read_bytes()
    assert call("train", str(folder / "train.conll"), *SMALL, "--out", str(folder / "m"))[0] == 0
    assert (folder / "m" / "model.safetensors").read_bytes() == before
    code, _, err = call("train", str(folder / "train.conll"), *SMALL, "--out", str(folder / "m"), "--seed", "1")
    assert code == 2
    assert "holds another run" in err


def test_columns_get_one_more(folder: Path) -> None:
    model = ("--model", str(folder / "m"))
    code, out, _ = call("predict", str(folder / "dev.conll"), *model)
    assert code == 0
    sentences = read_tagged(folder / "dev.conll")
    rows = [line.split(" ") for line in out.splitlines() if line]
    assert [row[:2] for row in rows] == [
        [t, g] for item in sentences for t, g in zip(item.tokens, item.tags or (), strict=True)
    ]
    assert {row[2][0] for row in rows} <= set("OBI")  # the scheme of the data
    path = folder / "predicted.conll"
    assert call("predict", str(folder / "dev.conll"), *model, "--out", str(path))[1] == f"{path}\n"
    assert path.read_text() == out
    # conlleval's way, from the two last columns, gives what evaluation with the model gives.
    by_file = call("evaluate", str(path), "--predicted")
    by_model = call("evaluate", str(folder / "dev.conll"), *model, "--out", str(folder / "figures.json"))
    assert by_file[1].splitlines() == by_model[1].splitlines()[:-1]
    assert json.loads((folder / "figures.json").read_text())["spans"]["gold"] == sum(
        len(spans_of(item.tags or ())) for item in sentences
    )


def test_plain_text_from_standard_input(folder: Path) -> None:
    model = ("--model", str(folder / "m"))
    code, out, _ = call("predict", "-", *model, text="Mr May arrived .\n\nSo be it\n")
    assert code == 0
    assert [line.split(" ")[0] for line in out.splitlines()] == ["Mr", "May", "arrived", ".", "", "So", "be", "it", ""]
    code, out, _ = call("predict", "-", *model, "--probability", text="Mr May\n")
    chances = [float(line.split(" ")[2]) for line in out.splitlines() if line]
    assert len(chances) == 2
    assert all(0 < chance <= 1 for chance in chances)
    code, out, _ = call("predict", "-", *model, "--best", "3", text="Mr May\nSo\n")
    rows = [line.split("\t") for line in out.splitlines()]
    assert rows[0] == ["sentence", "probability", "tags"]
    assert [row[0] for row in rows[1:]] == ["1", "1", "1", "2", "2", "2"]
    assert float(rows[1][1]) >= float(rows[2][1])


def test_conllu_and_chat_keep_their_form(folder: Path) -> None:
    model = ("--model", str(folder / "m"))
    table = folder / "x.conllu"
    table.write_text("# c\n1\tMr\tmr\tX\t_\t_\t0\troot\t_\tA=b\n\n")
    code, out, _ = call("predict", str(table), *model)
    assert code == 0
    assert out.startswith("# c\n1\tMr\tmr\t")
    assert out.endswith("\t_\t_\t0\troot\t_\tA=b\n\n")
    talk = folder / "x.cha"
    talk.write_text("@UTF8\n*A:\tMr May came .\n@End\n")
    code, out, _ = call("predict", str(talk), *model)
    assert code == 0
    assert out.startswith("@UTF8\n*A:\tMr May came .\n%mor:\t")
    assert call("predict", str(talk), *model, "--best", "2")[0] == 2


def test_new_words_can_be_read_by_their_vectors(folder: Path) -> None:
    vectors = folder / "v.txt"
    vectors.write_text("zork " + " ".join(["0.1"] * 10) + "\n")
    model = ("--model", str(folder / "m"))
    code, _, err = call("predict", "-", *model, "--vectors", str(vectors), text="Zork came\n")
    assert (code, err) == (0, "1 new words read by their vectors\n")
    with_vectors = ("--vectors", str(vectors), "--out", str(folder / "v"))
    code, _, err = call("train", str(folder / "train.conll"), *SMALL, *with_vectors)
    assert (code, "no vector of any word" in err) == (2, True)
    vectors.write_text("mr " + " ".join(["0.1"] * 10) + "\n")
    code, out, _ = call("train", str(folder / "train.conll"), *SMALL, *with_vectors)
    assert code == 0
    assert "vectors: 1 of 10 numbers\n" in out


def test_with_digits_to_zero_the_word_with_zeros_has_the_vector(folder: Path, tmp_path: Path) -> None:
    text = "".join(f"in O\n19{year} {'B-X' if year % 2 else 'O'}\n\n" for year in range(10, 22))
    (tmp_path / "years.conll").write_text(text)
    vectors = tmp_path / "v.txt"
    vectors.write_text("0000 " + " ".join(["0.1"] * 10) + "\nx0 " + " ".join(["0.2"] * 10) + "\n")
    with_vectors = ("--vectors", str(vectors), "--digits-to-zero", "--out", str(tmp_path / "m"))
    code, out, err = call("train", str(tmp_path / "years.conll"), *SMALL, *with_vectors)
    assert (code, "vectors: 1 of 10 numbers\n" in out) == (0, True), err
    code, _, err = call("predict", "-", "--model", str(tmp_path / "m"), "--vectors", str(vectors), text="x9 1999\n")
    assert (code, err) == (0, "1 new words read by their vectors\n")


def test_parts_of_speech_are_counted_by_tokens(tmp_path: Path) -> None:
    text = "".join(f"{w} {'AB'[i % 2]}\n{w}x C\n\n" for i, w in enumerate("abcdefghijkl"))
    (tmp_path / "pos.conll").write_text(text)
    code, out, err = call(
        "train", str(tmp_path / "pos.conll"), *SMALL, "--out", str(tmp_path / "m"), "--head", "bigram"
    )
    assert code == 0, err
    assert "accuracy " in out
    code, out, _ = call("evaluate", str(tmp_path / "pos.conll"), "--model", str(tmp_path / "m"))
    assert code == 0
    assert out.endswith("% of 24 tokens\n")


def test_embedded_text_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.cli import tag

    whole = tag._embedded
    monkeypatch.setattr(tag, "_embedded", lambda name: {part: rows[:20] for part, rows in whole(name).items()})
    for name in ("hkcancor", "named-entities"):
        code, out, err = call("train", name, *SMALL, "--out", str(tmp_path / name))
        assert code == 0, err
        assert out.startswith("train: 20 sentences")
        assert call("evaluate", name, "--model", str(tmp_path / name))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("train", "missing.conll"), "missing.conll cannot be read"),
        (("predict", "-", "--model", "nowhere"), "There is no tagger in nowhere"),
        (("evaluate", "hkcancor", "--model", "nowhere"), "striate tag train DATA"),
    ],
)
def test_trouble_is_one_sentence(
    arguments: tuple[str, ...], match: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments, text="a\n")
    assert code == 2
    assert err.startswith("striate: ")
    assert match in err
    assert err.count("\n") == 1


def test_tags_of_another_kind_are_not_counted_as_wrong(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pos.conll").write_text("a NOUN\nb VERB\n")
    code, _, err = call("evaluate", str(tmp_path / "pos.conll"), "--model", str(folder / "m"))
    assert code == 2
    assert "None of the text's tags (NOUN, VERB) is one that the tagger gives" in err
    code, _, err = call("evaluate", str(tmp_path / "pos.conll"), "--predicted")
    assert code == 2
    assert "have no tag in common: a, b; NOUN, VERB." in err
    code, _, err = call("predict", str(tmp_path / "pos.conll"), "--model", str(folder / "m"), "--best", "0")
    assert code == 2
    assert "'--best' of striate tag predict must be >= 1" in err


@pytest.mark.parametrize(("option", "value"), [("--hidden", "0"), ("--word-dim", "0"), ("--dropout", "1")])
def test_sizes_that_make_no_network_are_refused(option: str, value: str, folder: Path, tmp_path: Path) -> None:
    code, _, err = call("train", str(folder / "train.conll"), option, value, "--out", str(tmp_path / "m"))
    assert code == 2
    assert "Got " in err


def test_too_little_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "few.conll").write_text("a A\n\nb B\n")
    code, _, err = call("train", str(tmp_path / "few.conll"), "--out", str(tmp_path / "m"))
    assert code == 2
    assert "10 sentences or more, or --dev" in err
    (tmp_path / "bare.conll").write_text("a\n\n" * 12)
    code, _, err = call("train", str(tmp_path / "bare.conll"), "--out", str(tmp_path / "m"))
    assert code == 2
    assert "tagged" in err


def test_text_to_be_judged_on_is_looked_at_before_training(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "other.conll").write_text("a DET\n\n")
    (tmp_path / "bare.conll").write_text("a\nb\n\n")
    for option, name, match in (("--test", "other", "None of the text's tags"), ("--dev", "bare", "has no tags")):
        out = tmp_path / "m"
        code, _, err = call(
            "train", str(folder / "train.conll"), *SMALL, option, str(tmp_path / f"{name}.conll"), "--out", str(out)
        )
        assert (code, out.exists()) == (2, False)
        assert match in err


def test_columns_of_conllu_are_not_taken_for_gold_and_predicted(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text("1\ta\t_\tDET\t_\t_\t0\troot\t_\t_\n\n")
    code, out, err = call("evaluate", str(path), "--predicted")
    assert (code, out) == (2, "")
    assert "used with columns" in err


def test_bytes_on_standard_input_that_are_no_utf_8_are_refused(folder: Path) -> None:
    result = CliRunner().invoke(app, ["tag", "predict", "-", "--model", str(folder / "m")], input=b"K\xf6ln\n")
    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr
