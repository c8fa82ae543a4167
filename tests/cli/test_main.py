"""Exit codes, one line for a failure, and the log on standard error."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from laion_assets.cli import show_log
from laion_assets.cli.parser import GROUPS
from tests.cli.conftest import laion_assets, refused
from tests.processes import PATIENCE_S


@pytest.mark.parametrize(
    "words",
    [
        ("pairs", "nowhere", "-o", "out"),
        ("download", "nowhere", "-o", "out"),
        ("embed", "nowhere", "-o", "out"),
        ("filter", "nowhere", "-o", "out"),
        ("index", "nowhere", "-o", "out"),
        ("search", "nowhere", "a red apple"),
        ("sql", "--catalog", "nowhere", "select 1"),
    ],
    ids=lambda words: str(words[0]),
)
def test_a_missing_input_is_reported_in_one_line(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(laion_assets(*words), "nowhere does not exist")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "of_an_extra"),
    [("laion_assets.stats.catalog", False), ("duckdb", True)],
)
def test_a_module_that_is_missing_is_of_an_extra_unless_it_is_ours(
    module: str, of_an_extra: bool, tmp_path: Path
) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from laion_assets.cli import main; main()"
    words = ("sql", "--catalog", str(tmp_path), "select 1")
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    [line] = done.stderr.splitlines()
    assert module in line
    assert ("in an extra" in line) == of_an_extra


def test_the_callers_handler_of_sigterm_is_left_as_it_was() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        refused(laion_assets("pairs", "nowhere", "-o", "out"), "nowhere does not exist")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


IN_A_SCRIPTS_BACKGROUND = """
import argparse, functools, multiprocessing, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
import dagster as dg
from laion_assets import cli
from laion_assets.work import die_with_first_process, ignores_ctrl_c

@dg.asset
def made(): ...

def run(args):
    begin = functools.partial(die_with_first_process, ignoring_ctrl_c=ignores_ctrl_c())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, begin) as pool:
        in_child = pool.submit(signal.getsignal, signal.SIGINT).result()
    dg.materialize([made])
    print("ignored" if in_child is signal.SIG_IGN else in_child, flush=True)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.SIG_IGN)
command = argparse.Namespace(run=run, shows_time=False)
parser = argparse.ArgumentParser()
parser.set_defaults(command=command)
cli.build_parser = lambda: parser
code = cli.main([])
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
sys.exit(code)
"""


def test_sigterm_ends_a_command_where_ctrl_c_is_ignored(tmp_path: Path) -> None:
    with (
        (tmp_path / "stderr").open("w+") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", IN_A_SCRIPTS_BACKGROUND],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=tmp_path,
        ) as process,
    ):
        try:
            assert process.stdout
            said = process.stdout.readline()
            assert said == "ignored\n", (tmp_path / "stderr").read_text()
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 130
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("text", "says"),
    [("[pairs]\nmin_txt_chars = 5", r"\[pairs\] has no min_txt_chars"), ("[", "is not TOML")],
)
def test_wrong_settings_are_reported_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(text)
    refused(laion_assets("crawls", "--config", config), says)


@pytest.mark.parametrize(("shows_time", "clock"), [(False, ""), (True, r"\d\d:\d\d:\d\d  ")])
def test_the_log_goes_to_standard_error(
    shows_time: bool, clock: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("laion_assets.somewhere")
    with show_log(shows_time=shows_time):
        logger.debug("details")
        logger.info("half is done")
        logger.warning("the disk is nearly full")
    logger.info("afterwards")
    out, err = capsys.readouterr()
    assert out == ""
    expected = f"{clock}half is done\n{clock}WARNING: the disk is nearly full\n"
    assert re.fullmatch(expected, err)


def test_a_library_that_sets_up_the_root_logger_repeats_no_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [*root.handlers, logging.StreamHandler(sys.stderr)])
    with show_log(shows_time=False):
        logging.getLogger("laion_assets.somewhere").info("once")
    assert capsys.readouterr().err == "once\n"


def test_the_demos_log_shows_the_time() -> None:
    timed = [command.name for _, group in GROUPS for command in group if command.shows_time]
    assert timed == ["demo", "ui", "dagster", "search-page"]
