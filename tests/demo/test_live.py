"""What a person sees of the runs at work, on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging
import time

import dagster as dg
import pytest
from rich.console import Console

from laion_assets.demo.live import PROGRESS, Following, Making, View, table
from laion_assets.work import Progress

LINE = Progress("images", "rows", 10, logging.getLogger("none"))


@dg.op
def first() -> None:
    pass


@dg.op
def second() -> None:
    LINE.done = 4
    log = dg.get_dagster_logger()
    log.info(LINE.line("3 kept"))
    log.info("something else: 4/10")


@dg.job
def work() -> None:
    first()
    second()


def test_the_step_and_its_last_progress_are_read_once() -> None:
    with dg.instance_for_test() as instance:
        run_id = work.execute_in_process(instance=instance).run_id
        following = Following(instance)
        [making] = following.now([(run_id, "a segment", 100.0)])
        assert (making.name, making.step) == ("a segment", "second")
        assert making.progress.startswith("4/10 rows in ")
        assert making.progress.endswith("; 3 kept")
        read = making.cursor
        [again] = following.now([(run_id, "a segment", 100.0)])
        assert again is making
        assert again.cursor == read
        assert following.now([(run_id, "it waits", None)]) == []


def test_a_progress_line_is_what_progress_writes() -> None:
    assert PROGRESS.match(LINE.line())
    assert not PROGRESS.match("images: 3 of 4")


def shown(console: Console, *making: Making) -> str:
    view = View(console)
    with view.open():
        view.show(making, "1 of 3 runs are done")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_has_a_table_and_nothing_is_left_of_it() -> None:
    making = Making("CC-MAIN-2000-05|00", time.time() - 7, "image_shards", "4/10 images in 2 s")
    text = shown(Console(file=io.StringIO(), force_terminal=True, width=100), making)
    assert "1 of 3 runs are done" in text
    assert "CC-MAIN-2000-05|00" in text
    console = Console(file=io.StringIO(), width=60)
    console.print(table([making], "summary", making.started + 9))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[-1].rstrip().endswith("9")


def test_elsewhere_there_is_a_line_for_each_run_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="laion_assets")
    view = View(Console(file=io.StringIO()))
    making = Making("CC-MAIN-2000-05|00", time.time(), "embeddings")
    with view.open():
        view.show([], "nothing yet")
        view.show([making], "0 of 1 runs are done")
        view.show([making], "0 of 1 runs are done")
    assert caplog.messages == ["0 of 1 runs are done", "  CC-MAIN-2000-05|00: embeddings"]
