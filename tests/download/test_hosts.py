"""A host is never flooded, its waits are kept, and a dead host does not delay the others."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from laion_assets.download.errors import FetchRefused
from laion_assets.download.fetch import Fetcher
from laion_assets.download.hosts import Host
from laion_assets.download.options import DownloadOptions
from tests.download.conftest import PUBLIC, Listener, answer, get, reasons


def test_the_rate_is_kept_for_each_host(web: Listener) -> None:
    times: dict[str, list[float]] = {"a": [], "b": []}
    for name, at in times.items():

        def note(connection: socket.socket, at: list[float] = at) -> None:
            at.append(time.monotonic())
            answer(b"here")(connection)

        for i in range(5):
            web.routes[f"/{name}{i}"] = note
    urls = [f"http://{name}.test:{web.port}/{name}{i}" for name in times for i in range(5)]
    assert reasons(urls, DownloadOptions(per_host_rate=20)) == dict.fromkeys(urls, "here")
    for at in times.values():
        # Four intervals of 50 ms, less what a thread of the server may be late by.
        assert max(at) - min(at) > 0.15


@pytest.mark.parametrize("status", ["429 X", "503 X"])
@pytest.mark.parametrize("form", ["seconds", "date", "none"])
def test_a_busy_host_is_waited_for_as_long_as_it_says(
    web: Listener, status: str, form: str
) -> None:
    """All its images wait, not only the one whose request was answered so."""
    begin = time.monotonic()
    early: list[str] = []

    def busy_at_first(connection: socket.socket) -> None:
        if len(web.requests) == 1:
            later = datetime.now(UTC) + timedelta(seconds=2)
            headers = {"seconds": "1", "date": format_datetime(later, usegmt=True)}
            value = {"Retry_After": headers[form]} if form in headers else {}
            answer(b"", status, **value)(connection)
        else:
            if time.monotonic() - begin < 0.9:
                early.append(web.requests[-1][1])
            answer(b"here")(connection)

    urls = [f"http://a.test:{web.port}/{i}" for i in range(4)]
    web.routes |= {f"/{i}": busy_at_first for i in range(4)}
    options = DownloadOptions(per_host_concurrency=1, per_host_rate=0, retry_wait_s=1.0)
    assert reasons(urls, options) == dict.fromkeys(urls, "here")
    assert early == []
    assert len(web.requests) == 5


def test_waiting_requests_heed_a_retry_after_that_comes_meanwhile(web: Listener) -> None:
    at: list[float] = []

    def busy_at_first(connection: socket.socket) -> None:
        at.append(time.monotonic())
        respond = answer(b"", "429 X", Retry_After="1") if len(at) == 1 else answer(b"here")
        respond(connection)

    web.routes |= {f"/{i}": busy_at_first for i in range(4)}
    urls = [f"http://a.test:{web.port}/{i}" for i in range(4)]
    options = DownloadOptions(per_host_concurrency=4, per_host_rate=10)
    assert reasons(urls, options) == dict.fromkeys(urls, "here")
    assert at[1] - at[0] > 0.9
    assert at[-1] - at[1] > 0.2


def test_a_host_that_asks_for_an_hour_is_left_alone(web: Listener) -> None:
    web.routes |= {f"/{i}": answer(b"", "429 X", Retry_After="3600") for i in range(5)}
    urls = [f"http://a.test:{web.port}/{i}" for i in range(5)]
    other = f"http://b.test:{web.port}/other"
    web.routes["/other"] = answer(b"here")
    outcomes = reasons([*urls, other], DownloadOptions(per_host_concurrency=1))
    assert outcomes == {urls[0]: "busy"} | dict.fromkeys(urls[1:], "busy") | {other: "here"}
    assert len(web.requests) == 2


def test_a_host_that_is_always_busy_is_given_up(web: Listener) -> None:
    web.routes |= {f"/{i}": answer(b"", "503 X") for i in range(30)}
    urls = [f"http://a.test:{web.port}/{i}" for i in range(30)]
    outcomes = reasons(urls, DownloadOptions(retry_wait_s=0.01, per_host_rate=0, host_failures=3))
    assert set(outcomes.values()) == {"busy", "host_down"}
    assert len(web.requests) <= 12


def test_a_dead_host_is_left_alone_and_tried_again_later(web: Listener) -> None:
    with socket.create_server((PUBLIC, 0)) as taken:
        dead = taken.getsockname()[1]
    urls = [f"http://dead.test:{dead}/{i}" for i in range(20)]
    live = [f"http://live.test:{web.port}/{i}" for i in range(20)]
    web.routes |= {f"/{i}": answer(b"here") for i in range(20)}
    options = DownloadOptions(per_host_concurrency=2, per_host_rate=0, host_failures=3)
    outcomes = reasons([*urls, *live], options)
    assert [outcomes[url] for url in live] == ["here"] * 20
    failed = [outcomes[url] for url in urls]
    assert 3 <= failed.count("connect") <= 4  # a second one was under way
    assert failed.count("connect") + failed.count("host_down") == 20
    assert set(reasons(urls, options.model_copy(update={"host_failures": 0})).values()) == {
        "connect"
    }
    # With a pause of zero, the next image tries.
    patient = options.model_copy(update={"host_pause_s": 0.0})
    assert set(reasons(urls, patient).values()) == {"connect"}


def test_errors_of_single_images_do_not_bring_a_host_down(web: Listener) -> None:
    web.routes |= {"/gone": answer(b"", "404 X"), "/bad": answer(b"", "500 X")}
    web.routes["/here"] = answer(b"here")
    port = web.port
    urls = [f"http://a.test:{port}/gone?{i}" for i in range(20)]
    web.routes |= {f"/gone?{i}": answer(b"", "500 X") for i in range(20)}
    outcomes = reasons([*urls, f"http://a.test:{port}/here"], DownloadOptions(per_host_rate=0))
    assert outcomes.pop(f"http://a.test:{port}/here") == "here"
    assert set(outcomes.values()) == {"http_5xx"}


def test_an_unreadable_retry_after_is_none(web: Listener) -> None:
    def busy_at_first(connection: socket.socket) -> None:
        if len(web.requests) == 1:
            answer(b"", "503 X", Retry_After="soon, \xe9 perhaps")(connection)
        else:
            answer(b"here")(connection)

    web.routes["/"] = busy_at_first
    options = DownloadOptions(retry_wait_s=0.01)
    assert get(f"http://a.test:{web.port}/", options).body == b"here"


def test_the_host_with_most_images_is_not_left_for_the_end(web: Listener) -> None:
    """At the end, its own rate alone would limit the download."""
    web.routes |= {f"/{i}": answer(b"here") for i in range(14)}
    hosts = [*(f"small{i}.test" for i in range(8)), *["large.test"] * 6]
    urls = [f"http://{host}:{web.port}/{i}" for i, host in enumerate(hosts)]
    assert set(reasons(urls, DownloadOptions(concurrency=1, per_host_rate=0)).values()) == {"here"}
    asked = [int(request[1].strip("/")) for request in web.requests]
    assert max(asked.index(i) for i in range(8, 14)) < max(asked.index(i) for i in range(8))


def decoding(
    urls: list[str], seconds: float, then: list[str], options: DownloadOptions
) -> dict[str, str]:
    """Hold ``urls`` together while each is decoded for ``seconds``; then fetch others at once."""

    async def run() -> dict[str, str]:
        fetcher = Fetcher(
            options, resolve=lambda _: [PUBLIC], allowed=lambda address: address == PUBLIC
        )

        async def one(url: str) -> str:
            try:
                return (await fetcher.fetch(url)).body.decode()
            except FetchRefused as refusal:
                return str(refusal)

        async with fetcher:
            async with AsyncExitStack() as held:
                came = [await held.enter_async_context(fetcher.fetching(url)) for url in urls]
                for fetched in came:
                    fetcher.decoded(fetched, seconds)
            return dict(zip(then, await asyncio.gather(*map(one, then)), strict=True))

    return asyncio.run(run())


def test_a_host_waits_as_long_as_its_picture_took_a_decoder(web: Listener) -> None:
    web.routes |= {f"/{i}": answer(b"here") for i in range(5)}
    first, again = (f"http://a.test:{web.port}/{i}" for i in range(2))
    others = [f"http://{name}.test:{web.port}/2" for name in "bc"]
    options = DownloadOptions(per_host_rate=0)
    assert decoding([first], 2.0, [again, *others], options) == dict.fromkeys(
        [again, *others], "here"
    )
    assert [path for _, path in web.requests] == ["/0", "/2", "/2", "/1"]


def test_a_host_whose_pictures_burn_decoders_is_left_alone(web: Listener) -> None:
    web.routes |= {f"/{i}": answer(b"here") for i in range(5)}
    slow = [f"http://a.test:{web.port}/{i}" for i in range(3)]
    then = [f"http://{name}.test:{web.port}/4" for name in "ab"]
    options = DownloadOptions(per_host_rate=0, host_failures=3)
    outcomes = decoding(slow, 11.0, then, options)
    assert outcomes[then[1]] == "here"
    assert outcomes[then[0]] == (
        "host_down: not asked for 300 s: a picture took 11 s to decode, 3 times in a row"
    )


def test_many_costly_pictures_make_no_host_urgent() -> None:
    seconds = (0.0, 0.01, 0.1, 0.2, 1.0, 9.9)
    hosts = [Host(asyncio.Semaphore(), users=60, decode_s=decode_s) for decode_s in seconds]
    assert [host.urgency() for host in hosts] == [60, 60, 60, 30, 6, 0]


def test_a_picture_holds_its_hosts_slot_until_it_is_decoded(web: Listener) -> None:
    web.routes |= {f"/{i}": answer(b"here") for i in range(3)}
    held, waits, other = (f"http://{name}.test:{web.port}/{i}" for i, name in enumerate("aab"))

    async def run() -> list[str]:
        fetcher = Fetcher(
            DownloadOptions(per_host_concurrency=1, per_host_rate=0),
            resolve=lambda _: [PUBLIC],
            allowed=lambda address: address == PUBLIC,
        )
        async with fetcher:
            async with fetcher.fetching(held):
                waiting = asyncio.create_task(fetcher.fetch(waits))
                await fetcher.fetch(other)
                before = [path for _, path in web.requests]
            await waiting
        return before

    assert asyncio.run(run()) == ["/0", "/2"]
    assert [path for _, path in web.requests] == ["/0", "/2", "/1"]
