"""The parser of ``laion-assets``, built from the commands' declarations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from laion_assets import __version__
from laion_assets.cli import demo, lake, operate, query, stages
from laion_assets.cli.common import CONFIG, Command

GROUPS: Final[Sequence[tuple[str, Sequence[Command]]]] = (
    ("stages, on plain files without Dagster", stages.COMMANDS),
    ("queries", query.COMMANDS),
    ("the lake", lake.COMMANDS),
    ("operation", operate.COMMANDS),
    ("demo", demo.COMMANDS),
)
"""The sections of ``laion-assets --help``, with their commands."""

FAMILIES: Final = {
    "crawl": "Manage the crawls of a deployment.",
    "sample-crawl": "Use the sample crawl without the rest of the demo.",
}
"""First words of commands that have two."""

_Subparsers = argparse._SubParsersAction  # argparse gives it no public name


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; parsed arguments have ``command`` and its ``parser``."""
    parser = argparse.ArgumentParser(
        prog="laion-assets",
        usage="laion-assets [-h] [--version] COMMAND ...",
        description=f"Build, maintain and search a LAION-400M-like dataset.\n\n{_overview()}",
        epilog="`laion-assets COMMAND --help` explains a command and its options.\n\n"
        'example: laion-assets sql "select stage, reason, n from funnel order by 1, 2"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    # The overview lists the commands by group; argparse could only list them in one.
    commands = parser.add_subparsers(
        prog=parser.prog, metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    families: dict[str, _Subparsers[argparse.ArgumentParser]] = {}
    for _, group in GROUPS:
        for command in group:
            family, _, name = command.name.rpartition(" ")
            if family and family not in families:
                families[family] = _add_family(commands, family)
            _add(families[family] if family else commands, name, command)
    return parser


def _overview() -> str:
    """The commands by group, a line each."""
    width = max(len(command.name) for _, group in GROUPS for command in group)
    sections = []
    for title, group in GROUPS:
        lines = [f"  {command.name:{width}}  {command.summary}" for command in group]
        sections.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(sections)


def _add_family(
    commands: _Subparsers[argparse.ArgumentParser], name: str
) -> _Subparsers[argparse.ArgumentParser]:
    parser = commands.add_parser(name, description=FAMILIES[name])
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _add(commands: _Subparsers[argparse.ArgumentParser], name: str, command: Command) -> None:
    parser = commands.add_parser(
        name,
        help=command.summary,
        description=command.about.strip(),
        epilog=f"example: laion-assets {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command, parser=parser)
    for argument in (*command.arguments, CONFIG):
        parser.add_argument(*argument.names, **argument.options)
