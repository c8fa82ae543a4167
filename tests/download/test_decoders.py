"""A stranger's bytes may hang or kill a decoder, which costs one image."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from laion_assets.download import decoders
from laion_assets.download.decoders import ImageMakers
from laion_assets.download.errors import ImageRefused
from laion_assets.download.options import DownloadOptions
from tests.download.conftest import (
    answer,
    encoded,
    listening,
    options_for,
    picture,
    run,
    write_pairs,
)
from tests.processes import cpu_s, until

SLOW = encoded(Image.new("RGBA", (9400, 9400), (255, 0, 0, 100)), "PNG", compress_level=1)
"""An image that is quick to send to a process and slow to decode."""

QUICK = encoded(picture(2))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a picture's CPU time is to run out, a busy machine must not end it before."""
    monkeypatch.setattr(decoders, "_MOST_WALL", 1000)


def in_pool(scratch: Path, kill: bool, **settings: object) -> tuple[str, int]:
    """Decode SLOW, killing its process midway if ``kill``; then decode QUICK.

    Return why SLOW was refused, and QUICK's stored width.
    """

    async def run() -> tuple[str, int]:
        options = DownloadOptions.model_validate({"resize_processes": 1} | settings)
        with ImageMakers(options, scratch) as makers:
            pid = await makers.run(os.getpid)
            idle_s = cpu_s(pid)
            slow = asyncio.create_task(makers.make(SLOW))
            if kill:
                await asyncio.to_thread(until, lambda: cpu_s(pid) > idle_s + 0.1)
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(ImageRefused) as caught:
                await slow
            stored = await makers.make(QUICK)
        return str(caught.value), stored.width

    return asyncio.run(run())


def test_a_decoder_that_dies_costs_its_image(tmp_path: Path) -> None:
    refusal, width = in_pool(tmp_path, kill=True)
    assert refusal == "decoder_failed: its decoder died with exit code -9"
    assert width == 256


def test_processes_that_die_while_they_wait_are_replaced(tmp_path: Path) -> None:
    async def run() -> int:
        with ImageMakers(DownloadOptions(resize_processes=1), tmp_path) as makers:
            for _ in range(3):
                os.kill(await makers.run(os.getpid), signal.SIGKILL)
                await asyncio.sleep(0.3)
            return (await makers.make(QUICK)).width

    assert asyncio.run(run()) == 256


def test_a_decoder_that_hangs_costs_its_image(tmp_path: Path) -> None:
    refusal, width = in_pool(tmp_path, kill=False, decode_timeout_s=0.2)
    assert refusal == "decode_timeout: not decoded in 0.2 s of CPU time"
    assert width == 256


def burn(seconds: float) -> None:
    """Take this process that much CPU time."""
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass


def test_the_limit_is_of_cpu_time_and_a_waiting_process_has_one_of_its_own(tmp_path: Path) -> None:
    async def run() -> list[str]:
        with ImageMakers(DownloadOptions(resize_processes=1), tmp_path) as makers:

            async def within(
                cpu: float, wall: float, function: Callable[[float], Any], value: float
            ) -> str:
                pid = await makers.run(os.getpid)
                try:
                    await makers.run_within(cpu, wall, function, value)
                except ImageRefused as refused:
                    assert pid != await makers.run(os.getpid)
                    return str(refused)
                assert pid == await makers.run(os.getpid)
                return "made"

            return [
                await within(0.1, 60, time.sleep, 0.3),
                await within(0.1, 60, burn, 50),
                await within(60, 0.3, time.sleep, 50),
                # What one call has used is not counted for the next.
                *[await within(0.5, 60, burn, 0.3) for _ in range(2)],
            ]

    slept, burnt, hung, *again = asyncio.run(run())
    assert (slept, burnt) == ("made", "decode_timeout: not decoded in 0.1 s of CPU time")
    assert (hung, again) == (
        "decoder_failed: its decoder was not done within 0.3 s",
        ["made"] * 2,
    )


def test_our_own_error_is_not_blamed_on_the_image(tmp_path: Path) -> None:
    async def run() -> None:
        with ImageMakers(DownloadOptions(), tmp_path) as makers:
            await makers.run(os.stat, "/nonexistent")

    with pytest.raises(FileNotFoundError):
        asyncio.run(run())


def test_a_picture_past_its_deadline_is_refused_for_good(tmp_path: Path) -> None:
    with listening("127.0.0.2") as web:
        web.routes |= {"/slow.png": answer(SLOW), "/quick.jpg": answer(QUICK)}
        urls = ["http://slow.test/slow.png", "http://quick.test/quick.jpg"]
        write_pairs(tmp_path / "pairs.parquet", urls)
        options = options_for(web, decode_timeout_s=0.3, resize_processes=1)
        for again in (False, True):
            counts = run(tmp_path / "pairs.parquet", tmp_path / "out", options, again=again)
            assert (counts.kept, counts.rejects) == (1, {"decode_timeout": 1})
        assert len(web.requests) == 2


def test_a_decoders_seconds_are_counted(tmp_path: Path) -> None:
    async def run() -> list[float]:
        seconds: list[float] = []
        with ImageMakers(DownloadOptions(decode_timeout_s=0.3), tmp_path) as makers:
            await makers.make(QUICK, spent=seconds.append)
            with pytest.raises(ImageRefused):
                await makers.make(SLOW, spent=seconds.append)
        return seconds

    quick, killed = asyncio.run(run())  # and not the look at the head of the large one
    assert (0 < quick < 0.3, killed) == (True, 0.3)
