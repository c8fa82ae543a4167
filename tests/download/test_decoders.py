"""A stranger's bytes may hang or kill a decoder, which costs one image."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from laion_assets.download.decoders import Decoders
from laion_assets.download.errors import ImageRefused
from laion_assets.download.options import DownloadOptions
from tests.download.conftest import encoded, picture

SLOW = encoded(Image.new("RGBA", (9400, 9400), (255, 0, 0, 100)), "PNG", compress_level=1)
"""An image that is quick to send to a process and slow to decode."""

QUICK = encoded(picture(2))


def in_pool(scratch: Path, after: float, kill: bool, **settings: object) -> tuple[str, int]:
    """Decode SLOW, killing its process after ``after`` seconds if ``kill``; then decode QUICK.

    Return why SLOW was refused, and QUICK's stored width.
    """

    async def run() -> tuple[str, int]:
        options = DownloadOptions.model_validate({"resize_processes": 1} | settings)
        with Decoders(options, scratch) as decoders:
            pid = await decoders.run(os.getpid)
            slow = asyncio.create_task(decoders.make(SLOW))
            await asyncio.sleep(after)
            if kill:
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(ImageRefused) as caught:
                await slow
            stored = await decoders.make(QUICK)
        return str(caught.value), stored.width

    return asyncio.run(run())


def test_a_decoder_that_dies_costs_its_image(tmp_path: Path) -> None:
    refusal, width = in_pool(tmp_path, after=0.5, kill=True)
    assert refusal == "decoder_failed: its decoder died with exit code -9"
    assert width == 256


def test_processes_that_die_while_they_wait_are_replaced(tmp_path: Path) -> None:
    async def run() -> int:
        with Decoders(DownloadOptions(resize_processes=1), tmp_path) as decoders:
            for _ in range(3):
                os.kill(await decoders.run(os.getpid), signal.SIGKILL)
                await asyncio.sleep(0.3)
            return (await decoders.make(QUICK)).width

    assert asyncio.run(run()) == 256


def test_a_decoder_that_hangs_costs_its_image(tmp_path: Path) -> None:
    refusal, width = in_pool(tmp_path, after=0, kill=False, decode_timeout_s=0.2)
    assert refusal == "decoder_failed: not decoded in 0.2 s"
    assert width == 256


def test_our_own_error_is_not_blamed_on_the_image(tmp_path: Path) -> None:
    async def run() -> None:
        with Decoders(DownloadOptions(), tmp_path) as decoders:
            await decoders.run(os.stat, "/nonexistent")

    with pytest.raises(FileNotFoundError):
        asyncio.run(run())
