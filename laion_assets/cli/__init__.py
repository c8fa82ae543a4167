"""``laion-assets``: each stage on plain files without Dagster, and all that is done with a lake.

A command exits with 0 on success, 2 on wrong use, and 1 on failure, after one clear line. Heavy
imports happen inside the commands that need them, so that ``--help`` is quick.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from laion_assets.cli.common import say
from laion_assets.cli.parser import build_parser
from laion_assets.work import ignores_ctrl_c, only_on_sigterm


class _TerminalHandler(logging.Handler):
    """Shows log lines on standard error; only warnings and errors name their level."""

    def __init__(self, *, shows_time: bool) -> None:
        super().__init__()
        self._shows_time = shows_time

    def emit(self, record: logging.LogRecord) -> None:
        clock = f"{time.strftime('%H:%M:%S')}  " if self._shows_time else ""
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        say(clock + level + record.getMessage())


@contextmanager
def show_log(*, shows_time: bool) -> Iterator[None]:
    """Show the package's log on standard error while the ``with`` block runs."""
    package, handler = logging.getLogger("laion_assets"), _TerminalHandler(shows_time=shows_time)
    level, propagates = package.level, package.propagate
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    # A library that sets up the root logger, as open_clip does, would show each line once more.
    package.propagate = False
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        package.propagate = propagates


def _reader_left() -> bool:
    """True if the reader of our output has closed it, as ``| head`` does."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_ours(error: ModuleNotFoundError) -> bool:
    return (error.name or "").partition(".")[0] in ("laion_assets", "resources", "sensors")


@contextmanager
def _cleans_up_on_sigterm() -> Iterator[None]:
    """On SIGTERM a command cleans up as on Ctrl-C, also where Ctrl-C is ignored.

    That is so in what a script starts in its background. Dagster handles SIGTERM as SIGINT is, and
    would have both ignored; so SIGINT gets a handler, too, which does nothing.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        signal.signal(signal.SIGTERM, only_on_sigterm)
        if ignores_ctrl_c():
            signal.signal(signal.SIGINT, only_on_sigterm)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return the exit code."""
    args = build_parser().parse_args(argv)
    try:
        with _cleans_up_on_sigterm(), show_log(shows_time=args.command.shows_time):
            args.command.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted; run the same command again to continue")
        return 130
    except Exception as error:  # noqa: BLE001 - the last resort: the user gets one line
        if isinstance(error, BrokenPipeError) and _reader_left():
            # The interpreter's own flush at exit must not fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if isinstance(error, ModuleNotFoundError) and not _is_ours(error):
            say(
                f"laion-assets: {error}, which is in an extra: 'laion-assets[work]' makes the "
                "assets, [search] serves them, [all] does both"
            )
            return 1
        # Our own errors explain themselves; others need their name.
        ours = type(error).__module__.startswith("laion_assets")
        name = "" if ours else f"{type(error).__name__}: "
        say(f"laion-assets: {name}{error}")
        return 1
    return 0
