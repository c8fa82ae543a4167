"""Names, help texts and wrong use."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
        ("search", "idx", "-k", "2", "a red apple", "a pear"),
        ("embed", "-o", "emb"),
        ("filter", "emb", "-o", "subset", "--threshold", "high"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: laion-assets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("search idx -k 2 apple", "text", "apple"),
        ("search idx apple -k 2", "text", "apple"),
        ("search -k 2 idx apple", "text", "apple"),
        ("search idx --image a.jpg -k 2", "text", None),
        ("serve --port 80 idx", "index", Path("idx")),
        ("serve idx --port 80", "index", Path("idx")),
        ("serve --port 80", "index", None),
        ("pairs a.wat --languages en b.wat -o o", "wat", [Path("a.wat"), Path("b.wat")]),
        ("embed a.tar -o emb b.tar c.tar", "shard", [Path(f"{n}.tar") for n in "abc"]),
        ("fetch a --names *.parquet b", "asset", ["a", "b"]),
        ("crawl add CC-MAIN-2024-10 --config c.toml", "config", Path("c.toml")),
        ("crawl add --config c.toml CC-MAIN-2024-10", "crawl", "CC-MAIN-2024-10"),
        ("sql --csv -- -1", "statement", "-1"),
    ],
)
def test_arguments_and_options_come_in_any_order(words: str, name: str, value: object) -> None:
    assert getattr(build_parser().parse_args(words.split()), name) == value


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
