"""``striate tag``: train a tagger on one's own tagged text, tag new text, and count what is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from striate.data.tagged import TaggedSentence

__all__ = ["app"]

_HELP = """Tag words: names, parts of speech, chunks (BiLSTM-CNN-CRF).

\b
striate tag train eng.train --dev eng.testa --test eng.testb --vectors glove.6B.100d.txt
striate tag predict report.txt --format text
striate tag evaluate eng.testb
"""

app = typer.Typer(help=_HELP, rich_markup_mode=None, no_args_is_help=True)

_MODEL = Path("striate-tagger")
_EMBEDDED = ("hkcancor", "named-entities")

Model = Annotated[Path, typer.Option(help="Folder that train wrote.")]
Format_ = Annotated[
    str | None, typer.Option("--format", help="conll, conllu, chat or text; default by the file's name.")
]
TokenColumn = Annotated[int | None, typer.Option(help="Of columns, from 0; default the first that is no counter.")]
TagColumn = Annotated[int | None, typer.Option(help="From 0, negative from the right; default the last, or UPOS.")]
ChatTokens = Annotated[str, typer.Option(help="mor: stems of %mor; main: words of the main line.")]
Vectors = Annotated[Path | None, typer.Option(help="GloVe, Senna or word2vec, plain or .gz.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, …")]


@app.command()
def train(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Tagged text; 'hkcancor' or 'named-entities' for what comes along.")
    ],
    dev: Annotated[Path | None, typer.Option(help="Held-out text; default a tenth of DATA.")] = None,
    test: Annotated[Path | None, typer.Option(help="Text to judge the finished tagger on.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the tagger; the same command continues a run.")] = _MODEL,
    vectors: Vectors = None,
    format_: Format_ = None,
    token_column: TokenColumn = None,
    tag_column: TagColumn = None,
    chat_tokens: ChatTokens = "mor",
    head: Annotated[str, typer.Option(help="first-order, bigram (the paper's) or softmax.")] = "first-order",
    hidden: Annotated[int, typer.Option(help="Units a direction.")] = 200,
    word_dim: Annotated[int, typer.Option(help="Width of the word table without vectors.")] = 100,
    char_filters: Annotated[int, typer.Option(help="0: characters are not read.")] = 30,
    dropout: Annotated[float, typer.Option(help="Share of values.")] = 0.5,
    constrain: Annotated[bool, typer.Option(help="Never predict what BIOES forbids (entities).")] = True,
    unk_replace: Annotated[float, typer.Option(help="Chance to read a word that occurs once as unknown.")] = 0.5,
    digits_to_zero: Annotated[
        bool, typer.Option("--digits-to-zero", help="Look words up without their digits.")
    ] = False,
    epochs: Annotated[int, typer.Option(help="At most.")] = 50,
    patience: Annotated[int, typer.Option(help="Epochs without gain before it stops.")] = 5,
    lr: Annotated[float, typer.Option(help="The paper's: 0.015 for entities, 0.01 for parts of speech.")] = 0.015,
    batch_size: Annotated[int, typer.Option(help="Sentences a step.")] = 10,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
    device: Device = "cpu",
) -> None:
    """Train a tagger; the weights of the epoch that is best on held-out text are kept.

    Chunk tags in IOB1 or BIO are trained as BIOES and predicted as they were.
    """
    import warnings
    from dataclasses import replace

    from striate.engine.record import environment
    from striate.errors import SkippedWarning
    from striate.tasks.tagging.files import save_tagger
    from striate.tasks.tagging.scheme import chunk_scheme
    from striate.tasks.tagging.training import paper_recipe, train_tagger
    from striate.tasks.tagging.vectors import read_vectors

    columns = (format_, token_column, tag_column, chat_tokens)
    parts = _parts(data, dev, test, columns, seed)
    tokens = {word for part in parts.values() for sentence in part for word in sentence.tokens}
    words = _looked_up(tokens, digits_to_zero)
    known = None if vectors is None else read_vectors(vectors, words)
    trained_on = {tag for sentence in parts["train"] for tag in sentence.tags or ()}
    for name, path in (("dev", dev), ("test", test)):
        if path is not None:  # looked at now, and not when hours of training are over
            _check_tags(parts[name], trained_on)
    tags = [sentence.tags for part in parts.values() for sentence in part if sentence.tags is not None]
    entities = chunk_scheme(tags) is not None
    for name, part in parts.items():
        typer.echo(f"{name}: {len(part)} sentences, {sum(len(item.tokens) for item in part)} tokens")
    if known is not None:
        typer.echo(f"vectors: {len(known.rows)} of {known.dim} numbers")
    recipe = replace(paper_recipe(lr, epochs, seed), batch_size=batch_size, precision=precision)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SkippedWarning)
        model, records = train_tagger(
            parts["train"],
            parts["dev"],
            vectors=known,
            # Words of the held-out text get a row where there is a vector for it; otherwise they stay unknown.
            extra_words=() if known is None else [word for word in words if known.find(word) is not None],
            digits_to_zero=digits_to_zero,
            recipe=recipe,
            device=device,
            patience=patience,
            unk_replace=unk_replace,
            checkpoint=out / "checkpoint",
            progress=None,
            head=head,
            hidden=hidden,
            word_dim=word_dim,
            char_filters=char_filters,
            dropout=dropout,
            constrain=constrain and entities and head != "softmax",
        )
    for warning in caught:
        typer.echo(str(warning.message), err=True)
    best = max(records, key=lambda record: record["dev_score"])
    measure = "F1" if entities else "accuracy"
    typer.echo(
        f"best on held-out text: epoch {best['epoch']} of {len(records)}, {measure} {100 * best['dev_score']:.2f}"
    )
    trained: dict[str, Any] = {"data": data, "epochs": records, "environment": environment()}
    if "test" in parts:
        trained["test"] = _judge(model, parts["test"])
    typer.echo(f"{save_tagger(model, out, trained)}: {len(model.tags)} tags, {len(model.vocabulary.words)} words")


@app.command()
def predict(
    source: Annotated[str, typer.Argument(metavar="TEXT", help="A file in any format; '-' for standard input.")],
    model: Model = _MODEL,
    out: Annotated[Path | None, typer.Option(help="File for the tagged text; default standard output.")] = None,
    format_: Format_ = None,
    token_column: TokenColumn = None,
    tag_column: TagColumn = None,
    chat_tokens: ChatTokens = "main",
    best: Annotated[int, typer.Option(help="So many tag sequences a sentence, with probabilities.")] = 1,
    probability: Annotated[bool, typer.Option("--probability", help="How sure each tag is, in a last column.")] = False,
    vectors: Vectors = None,
    device: Device = "cpu",
) -> None:
    """Tag a text and write it in the format that it came in.

    Columns get one more on the right; in CoNLL-U and CHAT the predicted tags take the place of the old ones.
    """
    from striate.data.conll import add_column
    from striate.data.tagged import format_of, format_tagged, write_tagged
    from striate.errors import InputError
    from striate.tasks.tagging.files import load_tagger

    if best < 1:
        raise InputError("--best", "striate tag predict", allowed=">= 1", got=best)
    chosen: Any = format_ or ("text" if source == "-" else format_of(source))
    if (best > 1 or probability) and chosen not in {"conll", "text"}:
        raise InputError(
            "--best, --probability", "striate tag predict", allowed="used with columns or text", got=chosen
        )
    tagger, _ = load_tagger(model, device=device)
    sentences = _read(source, (chosen, token_column, tag_column, chat_tokens))
    tokens = [item.tokens for item in sentences]
    _learn_words(tagger, tokens, vectors)
    if best > 1:
        lines = [
            f"{place + 1}\t{chance:.4f}\t{' '.join(tags)}"
            for place, found in enumerate(tagger.k_best(tokens, best))
            for tags, chance in found
        ]
        typer.echo("sentence\tprobability\ttags\n" + "\n".join(lines))
        return
    predicted = tagger.predict(tokens)
    if probability:
        sentences = add_column(sentences, predicted)
        tables = tagger.predict_proba(tokens)
        predicted = [_chances(tagger, tags, table) for tags, table in zip(predicted, tables, strict=True)]
    if out is None:
        typer.echo(format_tagged(sentences, chosen, predicted), nl=False)
    else:
        typer.echo(str(write_tagged(out, sentences, chosen, predicted)))


@app.command()
def evaluate(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Tagged text; 'hkcancor' or 'named-entities'.")],
    model: Model = _MODEL,
    predicted: Annotated[
        bool,
        typer.Option("--predicted", help="No model: the last two columns are gold and predicted, as conlleval has it."),
    ] = False,
    format_: Format_ = None,
    token_column: TokenColumn = None,
    tag_column: TagColumn = None,
    chat_tokens: ChatTokens = "mor",
    vectors: Vectors = None,
    out: Annotated[Path | None, typer.Option(help="File for the figures as JSON.")] = None,
    device: Device = "cpu",
) -> None:
    """Count what is right: spans as conlleval does where the tags are chunk tags, and tokens."""
    from striate.data.tagged import format_of
    from striate.engine.files import write_json
    from striate.errors import DataError, InputError
    from striate.tasks.tagging.files import load_tagger

    if predicted:
        if (format_ or format_of(data)) != "conll":
            raise InputError("--predicted", "striate tag evaluate", allowed="used with columns", got=format_ or data)
        gold, guess = (_read(data, ("conll", token_column, column, chat_tokens)) for column in (-2, -1))
        theirs, ours = ({tag for item in column for tag in item.tags or ()} for column in (gold, guess))
        if not theirs & ours:
            raise DataError(f"The last two columns of {data} have no tag in common: {_some(theirs)}; {_some(ours)}.")
        figures = _report([item.tags or () for item in gold], [item.tags or () for item in guess])
    else:
        tagger, _ = load_tagger(model, device=device)
        if data in _EMBEDDED:
            sentences = _embedded(data)["test"]
        else:
            sentences = _read(data, (format_, token_column, tag_column, chat_tokens))
        _learn_words(tagger, [item.tokens for item in sentences], vectors)
        figures = _judge(tagger, sentences)
    if out is not None:
        typer.echo(str(write_json(out, figures)))


_Columns = tuple[str | None, int | None, int | None, str]


def _parts(
    data: str, dev: Path | None, test: Path | None, columns: _Columns, seed: int
) -> dict[str, Sequence[TaggedSentence]]:
    """Return train, dev and, where there is one, test."""
    import random

    from striate.errors import InputError

    parts = _embedded(data) if data in _EMBEDDED else {"train": _read(data, columns)}
    for name, path in (("dev", dev), ("test", test)):
        if path is not None:
            parts[name] = _read(str(path), columns)
    if "dev" not in parts:
        sentences = list(parts["train"])
        if len(sentences) < 10:
            raise InputError("DATA", "striate tag train", allowed="10 sentences or more, or --dev", got=len(sentences))
        random.Random(seed).shuffle(sentences)
        held_out = len(sentences) // 10
        parts |= {"train": sentences[held_out:], "dev": sentences[:held_out]}
    return parts


def _embedded(name: str) -> dict[str, Sequence[TaggedSentence]]:
    if name == "hkcancor":
        from striate.data.hkcancor import hkcancor

        return {"train": hkcancor("train"), "dev": hkcancor("dev"), "test": hkcancor("test")}
    from striate.data.named_entities import named_entities

    return {"train": named_entities("train").sentences, "dev": named_entities("dev").sentences,
            "test": named_entities("test").sentences}  # fmt: skip


def _read(source: str, columns: _Columns) -> Sequence[TaggedSentence]:
    from striate.data.tagged import format_of, read_tagged

    format_, token_column, tag_column, chat_tokens = columns
    chosen: Any = format_ or ("chat" if Path(source).is_dir() else format_of(source))
    options: dict[str, Any] = {"chat": {"tokens": chat_tokens}}.get(chosen, {})
    if chosen == "conll":
        options = {"token_column": token_column, "tag_column": tag_column}
    elif chosen == "conllu" and tag_column is not None:
        options = {"tag_column": tag_column}
    return read_tagged(source, chosen, **options)


def _learn_words(tagger: Any, tokens: Sequence[Sequence[str]], vectors: Path | None) -> None:
    from striate.tasks.tagging.vectors import read_vectors

    if vectors is not None:
        words = {word for sentence in tokens for word in sentence}
        found = read_vectors(vectors, _looked_up(words, tagger.vocabulary.digits_to_zero))
        new = tagger.add_words(sorted(words), found)
        typer.echo(f"{new} new words read by their vectors", err=True)


def _looked_up(words: set[str], digits_to_zero: bool) -> set[str]:
    """Return the forms of words that may have a vector."""
    from striate.tasks.tagging.vocabulary import zeros_for_digits

    return words | {zeros_for_digits(word) for word in words} if digits_to_zero else words


def _judge(tagger: Any, sentences: Sequence[TaggedSentence]) -> dict[str, Any]:
    _check_tags(sentences, set(tagger.tags))
    return _report([item.tags or () for item in sentences], tagger.predict([item.tokens for item in sentences]))


def _check_tags(sentences: Sequence[TaggedSentence], known: set[str]) -> None:
    """Refuse text without tags, or of which no tag (or type of span) is known."""
    from striate.errors import DataError

    untagged = next((item for item in sentences if item.tags is None), None)
    if untagged is not None:
        raise DataError(f"'{' '.join(untagged.tokens[:6])}' has no tags; evaluation needs tagged text.")
    there = {tag for item in sentences for tag in item.tags or ()}
    if not {tag.partition("-")[2] or tag for tag in there} & {tag.partition("-")[2] or tag for tag in known}:
        raise DataError(
            f"None of the text's tags ({_some(there)}) is one that the tagger gives ({_some(known)}); they stand in "
            "the column --tag-column."
        )


def _some(tags: set[str]) -> str:
    return ", ".join(sorted(tags)[:3]) + (", …" if len(tags) > 3 else "")


def _report(gold: Sequence[Sequence[str]], guess: Sequence[Sequence[str]]) -> dict[str, Any]:
    from striate.tasks.tagging.metrics import accuracy, span_report
    from striate.tasks.tagging.scheme import chunk_scheme

    if chunk_scheme([*gold, *guess]) is not None:
        report = span_report(gold, guess)
        typer.echo(str(report))
        return report.to_dict()
    found = accuracy(gold, guess)
    tokens = sum(map(len, gold))
    typer.echo(f"accuracy: {100 * found:.2f}% of {tokens} tokens")
    return {"tokens": tokens, "accuracy": found}


def _chances(tagger: Any, tags: Sequence[str], table: Any) -> list[str]:
    """Return the marginal probability of each predicted tag."""
    return [f"{float(table[place, number]):.4f}" for place, number in enumerate(tagger.number(tags))]
