from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from striate.cli import app
from striate.papers.catalogue import papers

HEAVY = {"torch", "torchvision", "timm", "numpy", "scipy", "sklearn", "skimage", "matplotlib", "captum"}


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("arguments", ["--help", "papers --help", "reproduce --help", "data --help", "--version"])
def test_help_loads_nothing_heavy(arguments: str) -> None:
    program = (
        "import sys; from striate.cli import main\n"
        f"sys.argv = ['striate', *{arguments.split()!r}]\n"
        "try: main()\n"
        "finally: print('\\n'.join(['modules:', *sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    shown, modules = done.stdout.split("modules:\n")
    assert shown.strip()
    assert not set(modules.split()) & HEAVY


def test_all_papers_are_listed() -> None:
    code, out, _ = call("papers")
    assert code == 0
    assert all(paper.key in out for paper in papers())
    assert "52 papers" in out


def test_words_choose_papers_with_or_without_the_word_list() -> None:
    assert call("papers", "visual", "mamba") == call("papers", "list", "visual", "mamba")
    code, out, _ = call("papers", "visual", "mamba")
    assert code == 0
    assert "vmamba" in out
    assert "xgrad-cam" not in out


def test_only_implemented_papers() -> None:
    code, out, _ = call("papers", "--implemented")
    assert code == 0
    listed = [line.split()[2] for line in out.splitlines() if line[3:4] == "*"]
    assert listed == [paper.key for paper in papers() if paper.implemented]


def test_no_match_says_what_to_do() -> None:
    code, out, _ = call("papers", "mamba", "football")
    assert code == 0
    assert "No paper matches" in out


@pytest.mark.parametrize("key", ["das", "7", "DAS"])
def test_a_paper_is_shown_with_claims_and_published_figures(key: str) -> None:
    code, out, _ = call("papers", "show", key)
    assert code == 0
    for text in ("7. DAS: A Deformable Attention", "arxiv.org/abs/2311.12091", "C6", "published: +4.47 points top-1"):
        assert text in out


def test_an_unknown_paper_is_one_sentence_and_exit_code_2() -> None:
    code, out, err = call("papers", "show", "xgradcam")
    assert (code, out) == (2, "")
    assert "Did you mean 'xgrad-cam'?" in err
    assert len(err.splitlines()) == 1


def test_traceback_is_shown_on_request() -> None:
    result = CliRunner().invoke(app, ["--traceback", "papers", "show", "xgradcam"])
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "InputError"


def test_an_unknown_command_is_refused() -> None:
    code, _, err = call("reproduse")
    assert code == 2
    assert "reproduse" in err
