"""The parser of ``laion-assets``, built from the commands' declarations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from laion_assets import __version__
from laion_assets.cli import demo, heads, lake, operate, query, stages
from laion_assets.cli.common import CONFIG, Command

GROUPS: Final[Sequence[tuple[str, Sequence[Command]]]] = (
    ("stages, on plain files without Dagster", stages.COMMANDS),
    ("heads", heads.COMMANDS),
    ("queries", query.COMMANDS),
    ("the lake", lake.COMMANDS),
    ("operation", operate.COMMANDS),
    ("demo", demo.COMMANDS),
)
"""The sections of ``laion-assets --help``, with their commands."""

FAMILIES: Final = {
    "crawl": "Manage the crawls of a deployment.",
    "heads": "Convert and show heads, small models that score images by their embeddings.",
    "sample-crawl": "Use the sample crawl without the rest of the demo.",
}
"""First words of commands that have two."""

_Subparsers = argparse._SubParsersAction  # argparse gives it no public name


class _Parser(argparse.ArgumentParser):
    """Takes a command's arguments and options in any order.

    By itself argparse gives an optional argument up at the first option before it, and a list of
    arguments at the first option within it. It can do better, but not where sub-commands follow.
    """

    _intermixing = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        has_commands = any(isinstance(action, _Subparsers) for action in self._actions)
        if has_commands or self._intermixing:
            return super().parse_known_args(args, namespace)
        self._intermixing = True  # it parses twice by this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; parsed arguments have ``command`` and its ``parser``."""
    parser = _Parser(
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
    families: dict[str, _Subparsers[_Parser]] = {}
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


def _add_family(commands: _Subparsers[_Parser], name: str) -> _Subparsers[_Parser]:
    parser = commands.add_parser(name, description=FAMILIES[name])
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _add(commands: _Subparsers[_Parser], name: str, command: Command) -> None:
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
