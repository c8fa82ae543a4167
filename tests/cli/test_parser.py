"""Names, help texts and wrong use."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from laion_assets import __version__
from laion_assets.cli import build_parser, main
from laion_assets.cli.common import Command
from laion_assets.cli.parser import GROUPS


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("pear",),
        ("pairs",),
        ("pairs", "a.warc.wat.gz"),
        ("crawl",),
        ("search", "idx"),
        ("search", "idx", "a red apple", "--image", "apple.jpg"),
        ("search", "idx", "a red apple", "--over", "sound"),
        ("filter", "emb", "-o", "subset", "--threshold", "high"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: laion-assets" in capsys.readouterr().err


def commands(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        yield words
    for action in nested:
        for name, inner in action.choices.items():
            yield from commands(inner, *words, name)


@pytest.mark.parametrize("words", list(commands(build_parser())), ids=" ".join)
def test_help_shows_an_example_that_is_right(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    _, _, example = capsys.readouterr().out.partition("example: laion-assets ")
    given = shlex.split(example.replace("\\\n", ""))
    assert tuple(given[: len(words)]) == words
    assert build_parser().parse_args(given).command.name == " ".join(words)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "command", [command for _, group in GROUPS for command in group], ids=lambda c: str(c.name)
)
def test_help_fits_a_terminal_of_80_columns(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command.name.split(), "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_every_argument_is_explained() -> None:
    for _, group in GROUPS:
        for command in group:
            for argument in command.arguments:
                assert argument.options.get("help"), (command.name, argument.names)


def test_the_overview_lists_every_command_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for words in commands(build_parser()):
        name = " ".join(words)
        assert sum(line.startswith(f"  {name}  ") for line in lines) == 1, name


def test_the_parser_imports_nothing_heavy() -> None:
    heavy = ["dagster", "pyarrow", "pydantic", "numpy", "torch"]
    code = "import sys; from laion_assets.cli import build_parser; build_parser();"
    code += f"print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
