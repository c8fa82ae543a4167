"""What the commands share: how one is declared, its errors, and what it opens.

Argument parsing belongs to :mod:`laion_assets.cli.parser`, the printing of SQL results to
:mod:`laion_assets.cli.output`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from laion_assets.funnel import StageCounts

if TYPE_CHECKING:
    import dagster as dg

    from laion_assets.lake import Lake
    from laion_assets.removals.entries import Entries
    from laion_assets.settings import Settings

Run = Callable[[argparse.Namespace], None]


class CommandError(RuntimeError):
    """A failure whose message alone, in one line, is all that the user needs."""


@dataclass(frozen=True)
class Argument:
    """The names and options of one ``add_argument`` call."""

    names: Sequence[str]
    options: Mapping[str, Any]


def argument(*names: str, **options: Any) -> Argument:
    """An argument of a command, given as to ``ArgumentParser.add_argument``."""
    return Argument(names, options)


@dataclass(frozen=True)
class Command:
    """One sub-command."""

    name: str
    """Its words: two, such as ``crawl add``, where it belongs to a family of commands."""
    summary: str
    """Its line in ``laion-assets --help``."""
    about: str
    """The description in its own help, wrapped by hand to 79 columns."""
    example: str
    """A call of it, without ``laion-assets``."""
    arguments: Sequence[Argument]
    shows_time: bool
    """Begin each line of the log with the time of day."""
    run: Run


def command(
    name: str,
    summary: str,
    *,
    about: str,
    example: str,
    arguments: Sequence[Argument] = (),
    shows_time: bool = False,
) -> Callable[[Run], Command]:
    """Turn a function of the parsed arguments into a :class:`Command`.

    ``args.parser.error(message)`` in the function reports wrong use and exits with 2.
    """

    def declare(run: Run) -> Command:
        return Command(name, summary, about, example, arguments, shows_time, run)

    return declare


CONFIG: Final = argument(
    "--config",
    type=Path,
    metavar="FILE",
    help="settings file (default: the file that LAION_ASSETS_CONFIG names, else the sample "
    "world's settings)",
)


def output(metavar: str, help_text: str) -> Argument:
    """The ``-o`` argument of a command that writes a file or a folder."""
    return argument("-o", "--output", type=Path, required=True, metavar=metavar, help=help_text)


def positive(text: str) -> int:
    """An argument's value as a positive integer."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


def say(line: str) -> None:
    """Print progress to standard error; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def show_counts(counts: StageCounts) -> None:
    """Print a stage's counts: stage, reason and number, a line each."""
    for stage, reason, n in counts.rows():
        print(f"{stage:14} {reason:20} {n:>12,}")


def must_exist(*paths: Path | None) -> None:
    """Raise :class:`CommandError` for the first path that does not exist; skip None."""
    for path in paths:
        if path is not None and not path.exists():
            raise CommandError(f"{path} does not exist")


def lists_in(folder: Path | None) -> Entries:
    """The entries of a folder of lists; none without a folder.

    Raises :class:`CommandError` for one that is no folder: a mistyped name would count as lists
    that name nothing.
    """
    from laion_assets.removals.compiled import load
    from laion_assets.removals.entries import Entries

    if folder is None:
        return Entries()
    must_exist(folder)
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder")
    return load(folder)


def must_hold(found: Sequence[object], what: str, folder: Path) -> None:
    """Raise :class:`CommandError` if nothing of what is needed was found in an input folder.

    Without this check, a folder of something else would count as an input without rows.
    """
    if not found:
        raise CommandError(f"there are no {what} in {folder}")


def opened_lake(settings: Settings) -> Lake:
    """The settings' lake, wherever it is. Raises ``LakeError`` if its folder does not exist."""
    from laion_assets import lake

    remote = lake.is_remote(settings.lake.root)
    return lake.open_lake(settings.lake) if remote else lake.local_lake(settings.lake)


def dagster_instance() -> dg.DagsterInstance:
    """The deployment's Dagster instance. Raises :class:`CommandError` if none is named."""
    from laion_assets.defs.internals import configured_instance

    instance = configured_instance()
    if instance is None:
        raise CommandError("set DAGSTER_HOME to the folder of the deployment's Dagster instance")
    return instance


def ignore_beta_warnings() -> None:
    """Silence Dagster's warnings about beta features, one of which the graph uses knowingly."""
    import warnings

    import dagster as dg

    warnings.filterwarnings("ignore", category=dg.BetaWarning)
