"""Making the rows of URLs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from PIL import Image

from laion_assets.download.decoders import ImageMakers
from laion_assets.download.fetch import Fetcher
from laion_assets.download.outcomes import SUCCESS, History
from laion_assets.download.rows import RowMaker, Wanted
from laion_assets.download.rules import Rules
from laion_assets.removals.active import Lists
from tests.download.conftest import Listener, answer, encoded, options_for


def test_images_of_the_host_with_most_of_them_are_not_made_last(
    web: Listener, tmp_path: Path
) -> None:
    """While one waits for a decoder, its host is asked for no more than its limit."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    web.routes["/noise.jpg"] = answer(encoded(Image.fromarray(noise)))
    options = options_for(web, resize_processes=1, per_host_concurrency=1, per_host_rate=0)
    done: list[str] = []

    async def run() -> None:
        fetcher = Fetcher(options)
        with ImageMakers(options, tmp_path) as decoders:
            maker = RowMaker(Rules(options, Lists()), fetcher, decoders)

            async def make(host: str) -> None:
                url = f"http://{host}.test/noise.jpg"
                row = await maker.make(Wanted(0, url, History(), None))
                assert row.outcome.status == SUCCESS
                done.append(host)

            async with maker, asyncio.TaskGroup() as group:
                for i in range(60):
                    group.create_task(make(f"small{i}"))
                for _ in range(7):
                    group.create_task(make("large"))

    asyncio.run(run())
    # The last of them is one of one, like all others.
    last_but_one = [i for i, host in enumerate(done) if host == "large"][-2]
    assert last_but_one < 45, "in their turn, they would be made when all others are"
