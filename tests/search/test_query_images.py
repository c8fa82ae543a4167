"""Query images that burn a decoder's time cost their sender an answer, and nobody else's."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
from PIL import Image

from laion_assets.search import query_images
from laion_assets.search.errors import RequestRefusedError
from laion_assets.search.query_images import QueryImages
from tests.processes import cpu_s, until
from tests.search.conftest import FREE, Serving, SmallLake, serving

T = TypeVar("T")


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    body = io.BytesIO()
    image.save(body, kind, **options)
    return body.getvalue()


def with_scans(side: int, more: int) -> bytes:
    """A progressive JPEG of one colour whose last scan is repeated."""
    image = Image.new("RGB", (side, side), (200, 30, 90))
    body = saved(image, progressive=True, subsampling=0)
    scan = body[body.rindex(b"\xff\xda") : -2]
    return body[:-2] + scan * more + body[-2:]


GOOD = saved(Image.linear_gradient("L"))
SLOW = with_scans(7_000, 80)
"""An image within all bounds whose decoder needs seconds."""
ENDLESS = with_scans(64, 5_000)
FLOOD = saved(Image.new("L", (64, 64)), "PNG")
FLOOD = FLOOD[:33] + (struct.pack(">I", 0) + b"teXt" + struct.pack(">I", 0)) * 100_000 + FLOOD[33:]


def in_base64(body: bytes) -> dict[str, object]:
    return {"image": base64.b64encode(body).decode(), "limit": 1}


def running(use: Callable[[QueryImages], Coroutine[Any, Any, T]], **settings: Any) -> T:
    """What ``use`` returns of running processes."""

    async def run() -> T:
        images = QueryImages(FREE.model_copy(update=settings))
        images.start()
        try:
            return await use(images)
        finally:
            await asyncio.to_thread(images.close)

    return asyncio.run(run())


def spent(_: float) -> None:
    pass


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a picture's CPU time is to run out, a busy machine must not end it before."""
    monkeypatch.setattr(query_images, "_MOST_WALL", 1000)


@pytest.mark.parametrize("body", [ENDLESS, FLOOD], ids=["scans", "chunks"])
def test_files_without_bounds_are_refused_unseen(served: Serving, body: bytes) -> None:
    answer = served.http.post("/search", json=in_base64(body))
    assert (answer.status_code, answer.json()["reason"]) == (422, "too_complex")


def test_an_image_past_its_deadline_is_refused_and_its_process_replaced() -> None:
    async def use(images: QueryImages) -> tuple[RequestRefusedError, Any, bool]:
        before = await images._decoders.run(os.getpid)
        with pytest.raises(RequestRefusedError) as refused:
            await images.decode(SLOW, "a", spent)
        good = await images.decode(GOOD, "a", spent)
        return refused.value, good.shape, before != await images._decoders.run(os.getpid)

    refused, shape, replaced = running(use, decode_processes=1, decode_timeout_s=0.3)
    assert (refused.status, refused.reason) == (422, "decode_timeout")
    assert refused.detail == "the image is refused: not decoded in 0.3 s of CPU time"
    assert (shape, replaced) == ((256, 256, 3), True)


def test_cancelling_kills_the_decoder_and_drops_what_waits() -> None:
    async def use(images: QueryImages) -> list[str]:
        before = await images._decoders.run(os.getpid)
        idle_s = cpu_s(before)
        calls = [asyncio.create_task(images.decode(SLOW, "a", spent)) for _ in range(3)]
        await asyncio.to_thread(until, lambda: cpu_s(before) > idle_s + 0.1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert not images._clients
        await images.decode(GOOD, "a", spent)
        assert before != await images._decoders.run(os.getpid)
        return [str(call.cancelled()) for call in calls]

    assert running(use, decode_processes=1, decode_timeout_s=60) == ["True"] * 3


def test_a_client_has_one_image_at_work_and_few_waiting() -> None:
    async def use(images: QueryImages) -> list[str]:
        done: list[str] = []

        async def one(body: bytes, client: str) -> None:
            try:
                await images.decode(body, client, spent)
                done.append(client)
            except RequestRefusedError as refused:
                done.append(f"{client}: {refused.status} {refused.reason}")

        calls = [asyncio.create_task(one(SLOW, "greedy")) for _ in range(4)]
        await asyncio.sleep(0)
        others = [one(GOOD, f"other {i}") for i in range(2)]
        await asyncio.gather(*others)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return done

    done = running(use, decode_processes=2, images_waiting=3)
    assert done == ["greedy: 429 images_waiting", "other 0", "other 1"]


def test_who_has_taken_least_is_next() -> None:
    async def use(images: QueryImages) -> list[str]:
        done: list[str] = []

        async def one(body: bytes, client: str) -> None:
            with suppress(RequestRefusedError):  # the slow ones take too long
                await images.decode(body, client, spent)
            done.append(client)

        images._taken["greedy"] = 1000.0, time.monotonic()
        calls = [one(SLOW, "busy"), *[one(GOOD, who) for who in ("greedy", "modest", "modest")]]
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(call))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return done

    done = running(use, decode_processes=1, decode_timeout_s=0.3)
    assert done == ["busy", "modest", "modest", "greedy"]


def test_nobody_waits_for_ever_for_those_who_have_taken_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = QueryImages(FREE)

    def urgency(client: str, now: float) -> int:
        monkeypatch.setattr(time, "monotonic", lambda: now)
        return images._urgency(client)

    images._taken["greedy"] = 10.0, 1000.0
    waits = urgency("greedy", 1000.0)
    # Until ten seconds have faded to one, after 60 s * log(10).
    assert urgency("new", 1138.0) > waits > urgency("new", 1139.0)


def test_clients_with_many_images_leave_places_to_others() -> None:
    async def use(images: QueryImages) -> list[str]:
        async def one(client: str) -> str:
            try:
                await images.decode(GOOD, client, spent)
            except RequestRefusedError as refused:
                return refused.reason
            return "decoded"

        calls = [one(client) for client in ("a", "a", "b", "b", "c", "d", "e")]
        return await asyncio.gather(*calls)

    decoded = running(use, encoder_waiting=4)
    assert decoded == ["decoded"] * 3 + ["images_waiting", "decoded", "busy", "busy"]


def test_an_image_for_which_no_core_was_free_is_not_refused_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(query_images, "_MOST_WALL", 0.01)

    async def use(images: QueryImages) -> RequestRefusedError:
        with pytest.raises(RequestRefusedError) as refused:
            await images.decode(SLOW, "a", spent)
        return refused.value

    refused = running(use, decode_timeout_s=20)
    assert (refused.status, refused.reason, refused.retry_after_s) == (503, "busy", 10)


def test_the_images_of_all_have_a_bound() -> None:
    async def use(images: QueryImages) -> str:
        calls = [asyncio.create_task(images.decode(GOOD, str(i), spent)) for i in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestRefusedError) as refused:
            await images.decode(GOOD, "one too many", spent)
        await asyncio.gather(*calls)
        await images.decode(GOOD, "later", spent)
        return refused.value.reason

    assert running(use, encoder_waiting=2) == "busy"


def test_large_images_come_reduced() -> None:
    async def use(images: QueryImages) -> list[np.ndarray]:
        halves = Image.new("RGB", (6_000, 4_000), "red")
        halves.paste("blue", (3_000, 0, 6_000, 4_000))
        bodies = [saved(halves, "PNG"), saved(halves), saved(Image.new("L", (1, 52_000)), "PNG")]
        return [await images.decode(body, "a", spent) for body in bodies]

    png, jpeg, line = running(use)
    assert png.shape == (1_334, 2_000, 3)
    assert jpeg.shape == (1_000, 1_500, 3)
    assert line.shape == (52_000, 1, 3)
    for image in (png, jpeg):
        height, width, _ = image.shape
        assert np.abs(image[height // 2, width // 4].astype(int) - (255, 0, 0)).max() < 3
        assert np.abs(image[height // 2, 3 * width // 4].astype(int) - (0, 0, 255)).max() < 3


def test_other_queries_pass_while_a_picture_is_decoded(small_lake: SmallLake) -> None:
    finished: list[str] = []
    with serving(small_lake.index, small_lake.model) as served:

        def attack() -> None:
            served.http.post("/search", json=in_base64(SLOW))
            finished.append("attack")

        thread = threading.Thread(target=attack)
        thread.start()
        until(lambda: served.service.encoder._images._clients)
        assert served.captions(text="a red apple", limit=1)
        with served.another_client() as neighbour:
            assert neighbour.post("/search", json=in_base64(GOOD)).status_code == 200
        finished.append("others")
        thread.join()
    assert finished == ["others", "attack"]


def test_a_client_that_leaves_stops_its_work(small_lake: SmallLake) -> None:
    options = FREE.model_copy(update={"decode_processes": 1, "decode_timeout_s": 60.0})
    with serving(small_lake.index, small_lake.model, options) as served:
        clients = served.service.encoder._images._clients
        url = httpx.URL(served.url)
        body = httpx.Request("POST", url.join("/search"), json=in_base64(with_scans(7_000, 85)))
        head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
        with socket.create_connection((url.host, url.port or 80)) as connection:
            connection.sendall(f"POST /search HTTP/1.1\r\n{head}\r\n".encode() + body.read())
            until(lambda: clients)
        until(lambda: not clients)
        assert served.http.post("/search", json=in_base64(GOOD)).status_code == 200
        gone = 'laion_assets_search_refused_total{reason="gone"} 1.0'
        assert gone in served.http.get("/metrics").text
