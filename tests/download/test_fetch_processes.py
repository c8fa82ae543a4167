"""Several processes fetch what one would, and a host notices no difference."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from laion_assets.download.calls import Calls
from laion_assets.download.decoders import OneAtATime
from laion_assets.download.errors import FetchRefused, HostBusy
from laion_assets.download.fetch_pool import FetchPool, FetchProcessError
from laion_assets.download.fetch_process import Setup, State, owner_of
from laion_assets.download.options import DownloadOptions, share_of
from laion_assets.download.outcomes import History
from laion_assets.download.rows import Wanted
from laion_assets.download.rules import Rules
from laion_assets.download.segment import NoNetworkError
from laion_assets.files import try_lock
from laion_assets.removals.active import Lists
from laion_assets.removals.compiled import load
from laion_assets.removals.entries import parse
from tests.download.conftest import (
    SIZE,
    Listener,
    N,
    answer,
    content,
    download,
    encoded,
    options_for,
    picture,
    redirect,
    run,
    urls,
    write_pairs,
)
from tests.download.test_decoders import SLOW
from tests.download.test_segment import CHILD
from tests.processes import PATIENCE_S, until


def host(process: int, number: int = 0) -> str:
    """A host that belongs to one of two processes."""
    names = (f"n{i}.test" for i in range(1000))
    return [name for name in names if owner_of(name, 2) == process][number]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return tmp_path / "pairs.parquet"


def rows(out: Path) -> list[dict[str, Any]]:
    return [
        row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def test_hosts_are_spread_over_the_processes_and_shares_add_up() -> None:
    owners = [owner_of(f"n{i}.test", 3) for i in range(3000)]
    assert all(900 < owners.count(process) < 1100 for process in range(3))
    assert owner_of("example.org", 16) == 5  # the same in every run and on every machine
    assert [share_of(8, number, 3) for number in range(3)] == [3, 3, 2]


@pytest.mark.parametrize("name", ["concurrency", "resize_processes"])
def test_each_process_needs_a_share(name: str) -> None:
    with pytest.raises(ValidationError, match=f"3 fetch_processes share {name}, which is only 2"):
        DownloadOptions.model_validate(
            {"fetch_processes": 3, "concurrency": 3, "resize_processes": 3} | {name: 2}
        )


def test_two_processes_make_the_shards_of_one(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    """With redirects from each to the other, there and back, and more of them than are followed."""
    here, there = host(0), host(1)
    images.routes |= {
        "/to-there.jpg": redirect(f"http://{there}/0.jpg"),
        "/to-here.jpg": redirect(f"http://{here}/1.jpg"),
        "/and-back.jpg": redirect(f"http://{there}/to-here.jpg"),
        "/to-404.jpg": redirect(f"http://{there}/4.jpg"),
        "/to-torn.jpg": redirect(f"http://{there}/7.jpg"),
        "/ping.jpg": redirect(f"http://{there}/pong.jpg"),
        "/pong.jpg": redirect(f"http://{here}/ping.jpg"),
        "/to-mail.jpg": redirect(f"http://{there}:25/0.jpg"),
    }
    asked = [
        *urls(),
        *(f"http://{here}/{path}.jpg" for path in ("to-there", "and-back", "to-404", "to-torn")),
        *(f"http://{there}/{path}.jpg" for path in ("to-here", "pong")),
        *(f"http://{here}/{path}.jpg" for path in ("ping", "to-mail", "to-there")),
        *("data:image/png;base64,AA==", "http://[", "http://10.0.0.1/1.jpg"),
    ]
    write_pairs(pairs, asked)
    counts = {}
    for processes in (1, 2):
        images.requests.clear()
        options = options_for(images, fetch_processes=processes, per_host_rate=0)
        made = run(pairs, tmp_path / f"{processes}", options)
        counts[processes] = (made, sorted(images.requests))
    assert counts[1] == counts[2]
    assert content(tmp_path / "1") == content(tmp_path / "2")
    by_url = {row["url"]: row for row in rows(tmp_path / "2")}
    back = by_url[f"http://{here}/and-back.jpg"]
    assert back["redirects"] == [f"http://{there}/to-here.jpg", f"http://{here}/1.jpg"]
    assert back["sha256"] == hashlib.sha256(bodies[1]).hexdigest()
    reasons = {url: row["reason"] for url, row in by_url.items()}
    assert reasons[f"http://{here}/ping.jpg"] == reasons[f"http://{there}/pong.jpg"] == "redirects"
    assert reasons[f"http://{here}/to-404.jpg"] == "http_4xx"
    assert reasons[f"http://{here}/to-torn.jpg"] == "undecodable"
    assert reasons[f"http://{here}/to-mail.jpg"] == "connect"
    assert reasons["http://10.0.0.1/1.jpg"] == "private_address"


def test_what_is_known_is_kept_and_refetched_as_by_one_process(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    write_pairs(pairs, urls())
    images.routes["/0.jpg"] = answer(b"down", "500 Down")
    first = options_for(images)
    download(pairs, tmp_path / "before", first)
    images.routes["/2.jpg"] = answer(encoded(picture(99, 310, 210)))  # other bytes
    images.routes["/3.jpg"] = answer(b"gone", "404 Not Found")
    for processes in (1, 2):
        options = options_for(images, fetch_processes=processes, refetch="all")
        again = download(pairs, tmp_path / f"{processes}", options, before=tmp_path / "before")
        assert (again.changed, again.asked_for, again.counts.kept) == (1, N, N - 4)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    ledger = pq.read_table(tmp_path / "2" / "_ledger" / "00000.parquet").to_pylist()
    assert [row["attempts"] for row in ledger] == [2] * 5


class Crowd:
    """Answers a little late, and counts how many wait at the same time."""

    def __init__(self, web: Listener, body: bytes) -> None:
        self.most = self._now = 0
        self._web, self._body, self._lock = web, body, threading.Lock()

    def __call__(self, connection: socket.socket) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._web.closing.wait(0.1)
        with self._lock:
            self._now -= 1
        answer(self._body)(connection)


def test_a_hosts_limits_hold_over_all_processes(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    crowd = Crowd(images, bodies[0])
    n, crowded = 20, host(0)
    for i in range(n):
        images.routes[f"/crowd/{i}.jpg"] = crowd
        images.routes[f"/to/{i}.jpg"] = redirect(f"http://{crowded}/crowd/{i}.jpg")
    asked = [
        *(f"http://{crowded}/crowd/{i}.jpg" for i in range(0, n, 2)),
        *(f"http://{host(1, i % 3)}/to/{i}.jpg" for i in range(1, n, 2)),
    ]
    write_pairs(pairs, asked)
    options = options_for(images, fetch_processes=2, per_host_concurrency=2, per_host_rate=0)
    assert run(pairs, tmp_path / "out", options).kept == n
    assert sum(path.startswith("/crowd/") for _, path in images.requests) == n
    assert crowd.most == 2


def test_a_wait_that_another_processes_host_asks_for_is_retried(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    """The retry begins again at the URL itself, as in one process."""
    answers = iter([answer(b"", "503 Busy", Retry_After="0"), answer(bodies[0])])
    images.routes["/to.jpg"] = redirect(f"http://{host(1)}/busy.jpg")
    images.routes["/busy.jpg"] = lambda connection: next(answers)(connection)
    images.routes["/to-busy.jpg"] = redirect(f"http://{host(1, 1)}/always.jpg")
    images.routes["/always.jpg"] = answer(b"", "503 Busy", Retry_After="0")
    write_pairs(pairs, [f"http://{host(0)}/to.jpg", f"http://{host(0)}/to-busy.jpg"])
    counts = run(pairs, tmp_path / "out", options_for(images, fetch_processes=2))
    assert (counts.kept, counts.rejects) == (1, {"busy": 1})
    paths = [path for _, path in images.requests]
    assert (paths.count("/to.jpg"), paths.count("/busy.jpg")) == (2, 2)
    assert (paths.count("/to-busy.jpg"), paths.count("/always.jpg")) == (3, 3)


def test_lists_and_wishes_hold_where_a_redirect_leads_to_another_process(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    here, there = host(0), host(1)
    images.routes |= {
        "/to-listed.jpg": redirect(f"http://{there}/listed.jpg"),
        "/to-blocked.jpg": redirect(f"http://{host(1, 1)}/0.jpg"),
        "/to-opted-out.jpg": redirect(f"http://{there}/opted-out.jpg"),
        "/opted-out.jpg": answer(bodies[1], X_Robots_Tag="noai"),
        "/to-hash.jpg": redirect(f"http://{there}/2.jpg"),
        "/to-forbidden.jpg": redirect(f"http://{there}/forbidden/1.jpg"),
        "/robots.txt": answer(b"User-agent: *\nDisallow: /forbidden/"),
        "/forbidden/1.jpg": answer(bodies[3]),
    }
    names = ("to-listed", "to-blocked", "to-opted-out", "to-hash", "to-forbidden")
    write_pairs(pairs, [f"http://{here}/{name}.jpg" for name in names])
    out = tmp_path / "out"
    options = options_for(images, fetch_processes=2, respect_robots_txt=True)
    removals = parse(
        [
            f"url:http://{there}/listed.jpg",
            f"sha256:{hashlib.sha256(bodies[2]).hexdigest()}",
        ],
        "removals",
    )
    blocklists = parse([f"host:{host(1, 1)}"], "blocklists")
    assert run(pairs, out, options, removals=removals, blocklists=blocklists).kept == 0
    reasons = [row["reason"] for row in rows(out)]
    assert reasons == ["removed", "blocked", "opt_out", "removed", "robots"]
    assert rows(out)[0]["redirects"] == [f"http://{there}/listed.jpg"]
    paths = {path for _, path in images.requests}
    assert paths.isdisjoint({"/listed.jpg", "/0.jpg", "/forbidden/1.jpg"})


def test_a_robots_txt_that_another_process_must_fetch_is_obeyed(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    images.routes |= {
        "/robots.txt": redirect(f"http://{host(1)}/rules.txt"),
        "/rules.txt": answer(b"User-agent: *\nDisallow: /1.jpg"),
    }
    write_pairs(pairs, [f"http://{host(0)}/{i}.jpg" for i in range(3)])
    options = options_for(images, fetch_processes=2, respect_robots_txt=True)
    counts = run(pairs, tmp_path / "out", options)
    assert (counts.kept, counts.rejects) == (2, {"robots": 1})


def hanging(web: Listener) -> tuple[Callable[[socket.socket], None], threading.Event]:
    """An answer that does not come, and whether it was asked for."""
    asked = threading.Event()

    def hang(_: socket.socket) -> None:
        asked.set()
        web.closing.wait(60)

    return hang, asked


def test_a_process_that_is_killed_ends_the_run_and_the_next_one_completes_it(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    whole = images.routes["/12.jpg"]
    images.routes["/12.jpg"], asked = hanging(images)
    write_pairs(pairs, urls())
    out = tmp_path / "out"
    options = options_for(images, fetch_processes=2, total_timeout_s=60)

    def kill() -> None:
        asked.wait(PATIENCE_S)
        until((out / "00000_stats.json").exists)
        owner = owner_of("h0.test", 2)
        found = {child.name: child.pid for child in multiprocessing.active_children()}
        os.kill(found[f"fetch-{owner}"] or 0, signal.SIGKILL)

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    with pytest.raises(FetchProcessError, match=r"of 2 has died with exit code -9 \(killed"):
        run(pairs, out, options)
    killing.join(PATIENCE_S)
    assert not [child for child in multiprocessing.active_children() if "fetch" in child.name]
    assert (out / "00000_stats.json").exists()
    assert not (out / "00002.tar").exists()

    images.routes["/12.jpg"] = whole
    images.requests.clear()
    assert run(pairs, out, options).kept == N - 3
    assert not {"/0.jpg", "/1.jpg"} & {path for _, path in images.requests}
    run(pairs, tmp_path / "whole", options_for(images))
    assert content(out) == content(tmp_path / "whole")


def left_processes(mark: str) -> list[str]:
    """Processes whose environment holds the mark."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                left.append(process.name)
    return left


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_no_process_outlives_the_first_one(images: Listener, pairs: Path, tmp_path: Path) -> None:
    images.routes["/12.jpg"], asked = hanging(images)
    write_pairs(pairs, urls())
    options = options_for(images, fetch_processes=2, total_timeout_s=60)
    mark = f"LAION_ASSETS_TEST={tmp_path}"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(pairs), str(tmp_path / "out"), options.model_dump_json()],
        env=os.environ | dict([mark.split("=", 1)]),
    )
    until(lambda: asked.is_set() or child.poll() is not None)
    assert child.poll() is None
    assert len(left_processes(mark)) > 3
    child.kill()
    child.wait()
    until(lambda: not left_processes(mark))
    run(pairs, tmp_path / "out", options.model_copy(update={"total_timeout_s": 0.5}))
    assert len(rows(tmp_path / "out")) == N


def no_resolver(name: str) -> list[str]:
    raise RuntimeError(f"the resolver broke at {name}")


def no_names(name: str) -> list[str]:
    raise OSError(f"no such name: {name}")


def test_an_error_of_ours_in_a_process_ends_the_run(pairs: Path, tmp_path: Path) -> None:
    write_pairs(pairs, ["http://example.org/1.jpg"])
    options = DownloadOptions(fetch_processes=2, contact="me@example.org")
    with pytest.raises(RuntimeError, match="the resolver broke") as caught:
        run(pairs, tmp_path / "out", options, resolve=no_resolver)
    assert "no_resolver" in caught.value.__notes__[0]
    with pytest.raises((AttributeError, pickle.PicklingError)):
        run(pairs, tmp_path / "out", options, resolve=lambda _: [])


def test_an_error_at_the_start_of_a_process_ends_the_run(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    write_pairs(pairs, urls(3))
    options = options_for(images, fetch_processes=2, concurrency=512)
    command = [sys.executable, "-c", CHILD, str(pairs), str(tmp_path / "out")]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 600; exec "$@"', "sh", *command, options.model_dump_json()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        "ValueError: [download] concurrency / fetch_processes needs 1,280 open files" in done.stderr
    )
    assert images.requests == []


def test_a_machine_without_network_is_noticed(pairs: Path, tmp_path: Path) -> None:
    write_pairs(pairs, [f"http://n{i}.example.org/{i}.jpg" for i in range(8)])
    options = DownloadOptions(
        fetch_processes=2, contact="me@example.org", network_retries=1, network_wait_s=0
    )
    with pytest.raises(NoNetworkError, match="no host has answered \\(dns 8\\)"):
        run(pairs, tmp_path / "out", options, resolve=no_names)


def test_one_large_image_is_decoded_at_a_time_by_all_processes(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    """Whoever decodes one holds the lock of a file that all processes have."""
    out = tmp_path / "out"
    held = threading.Event()

    def slow(connection: socket.socket) -> None:
        answer(SLOW)(connection)
        scratch = next(out.glob(".making-*/setup")).parent
        with (scratch / "large.lock").open("ab") as file:
            while try_lock(file):
                fcntl.flock(file, fcntl.LOCK_UN)
                if images.closing.wait(0.01):
                    return
            held.set()

    images.routes["/slow.png"] = slow
    write_pairs(pairs, ["http://h0.test/slow.png"])
    assert run(pairs, out, options_for(images, fetch_processes=2)).kept == 1
    assert held.is_set()


def test_processes_take_turns_at_large_images_although_each_has_several(tmp_path: Path) -> None:
    async def one(process: OneAtATime, name: str) -> None:
        async with process.turn():
            turns.append(name)
            await asyncio.sleep(0.01)

    async def run() -> None:
        a, b = (OneAtATime(tmp_path / "large.lock") for _ in range(2))
        await asyncio.gather(*(one(a, "a") for _ in range(4)), one(b, "b"))

    turns: list[str] = []
    asyncio.run(run())
    assert turns == ["a", "b", "a", "a", "a"]


def test_lists_reach_the_processes_by_way_of_files(tmp_path: Path) -> None:
    """Compiled ones by that of their own files, as long as these exist."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "mine.txt").write_text("host:gone.test\nurl:http://a.test/1.jpg\n")
    removals = load(tmp_path / "lists", tmp_path / "cache")
    blocklists = load(tmp_path / "lists").and_also(parse(["host:c.test", "sample-id:7"], "more"))
    # A sample id is its column's head alone: the tail is empty, which cannot be mapped.
    assert blocklists.names_samples
    setup = Setup(DownloadOptions(), Lists(removals, blocklists), no_names, tmp_path / "scratch")
    setup.scratch.mkdir()
    setup.write()
    files = [file for file in setup.scratch.iterdir() if file.name != "setup"]
    mapped = {file.stat().st_ino for file in files}
    compiled = [*tmp_path.glob("cache/*/host.*"), *tmp_path.glob("cache/*/url-sha256.*")]
    assert len(compiled) == 4
    assert {path.stat().st_ino for path in compiled} <= mapped
    assert len(mapped) > len(compiled)  # the others are written: their files are gone
    assert 0 in {file.stat().st_size for file in files}
    read = Setup.read(setup.scratch)
    assert (read.options, read.resolve) == (setup.options, no_names)
    assert read.lists.digests == setup.lists.digests
    for name in ("removals", "blocklists"):
        for url in (
            "http://www.gone.test/",
            "http://a.test/1.jpg",
            "http://c.test/",
            "http://b.test/",
        ):
            assert read.lists[name].matches_url(url) == setup.lists[name].matches_url(url)
    assert read.lists.blocklists.key_for_sample(7) is not None
    # What is read lies in the files, and only there.
    for file in files:
        file.unlink()
    with pytest.raises(FileNotFoundError):
        Setup.read(setup.scratch)


def test_a_slot_is_free_if_any_process_has_one(tmp_path: Path) -> None:
    pool = FetchPool(Rules(DownloadOptions(), Lists()), tmp_path, no_names)
    one, other = (SimpleNamespace(calls=SimpleNamespace(other=None)) for _ in range(2))
    pool._processes = [one, other]  # type: ignore[list-item]
    assert (pool.has_free_slot, pool.answers) == (False, 0)
    one.calls.other = State(free_slot=False, answers=2)
    assert (pool.has_free_slot, pool.answers) == (False, 2)
    other.calls.other = State(free_slot=True, answers=3)
    assert (pool.has_free_slot, pool.answers) == (True, 5)


def test_more_processes_work_on_more_shards_at_a_time(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    """The first picture of each shard waits until four shards, of six, wait for theirs."""
    waiting: set[int] = set()
    four, lock = threading.Event(), threading.Lock()
    most = 0

    def first_of(shard: int) -> Callable[[socket.socket], None]:
        def wait(connection: socket.socket) -> None:
            nonlocal most
            with lock:
                waiting.add(shard)
                most = max(most, len(waiting))
            if len(waiting) == 4:
                images.closing.wait(0.5)  # in which a fifth would come
                four.set()
            four.wait(PATIENCE_S)
            with lock:
                waiting.discard(shard)
            answer(bodies[0])(connection)

        return wait

    for i in range(6 * SIZE):
        images.routes[f"/{i}.jpg"] = answer(bodies[i % SIZE]) if i % SIZE else first_of(i // SIZE)
    write_pairs(pairs, [f"http://n{i}.test/{i}.jpg" for i in range(6 * SIZE)])
    options = options_for(images, fetch_processes=2, total_timeout_s=PATIENCE_S)
    run(pairs, tmp_path / "out", options)
    assert (four.is_set(), most) == (True, 4)


def hanging_names(name: str) -> list[str]:
    time.sleep(60)
    return []


def test_a_process_ends_although_a_resolver_hangs(tmp_path: Path) -> None:
    options = DownloadOptions(fetch_processes=2, total_timeout_s=0.5)
    pool = FetchPool(Rules(options, Lists()), tmp_path, hanging_names)

    async def run() -> None:
        async with pool:
            asked = (Wanted(0, f"http://{host(i)}/1.jpg", History(), None) for i in range(2))
            made = await asyncio.gather(*map(pool.make, asked))
        assert [row.outcome.reason for row in made] == ["dns", "dns"]

    asyncio.run(run())
    assert [each.process.exitcode for each in pool._processes] == [0, 0]  # none was killed


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_calls_go_both_ways_and_bring_errors_back(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    async def run() -> None:
        async def there(work: Any) -> Any:
            if work == "busy":
                busy = HostBusy("HTTP 429", 7.5)
                busy.asked, busy.redirects = False, ("http://b.test/",)
                raise busy
            if work == "odd":
                raise type("Odd", (Exception,), {})("of a class that nobody finds")
            if work == "hang":
                await asyncio.Event().wait()
            return await b.call(work + 1) if isinstance(work, int) and work < 5 else work

        async def here(work: Any) -> Any:
            return await a.call(work)

        a, b = Calls(ends[0], here, lambda: "a's"), Calls(ends[1], there, lambda: "b's")
        running = [asyncio.create_task(a.run()), asyncio.create_task(b.run())]
        assert await asyncio.gather(*(a.call(i) for i in range(10))) == [*[5] * 6, *range(6, 10)]
        assert await a.call(5) == 5
        assert (a.other, b.other) == ("b's", "a's")
        large = b"x" * 5_000_000
        assert [await call for call in (a.call(large), a.call(large))] == [large, large]
        with pytest.raises(HostBusy) as caught:
            await a.call("busy")
        refused = caught.value
        assert (str(refused), refused.wait_s, refused.asked) == ("busy: HTTP 429", 7.5, False)
        assert refused.redirects == ("http://b.test/",)
        with pytest.raises(RuntimeError, match="Odd: of a class that nobody finds"):
            await a.call("odd")
        waiting = asyncio.create_task(a.call("hang"))
        await a.call(5)
        running[1].cancel()
        await running[0]  # the other end is closed
        a.fail(FetchRefused("connect", "gone"))
        for call in (waiting, a.call(5)):
            with pytest.raises(FetchRefused, match="gone"):
                await call

    asyncio.run(run())


def test_what_cannot_be_sent_or_is_cancelled_fails_alone(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    async def run() -> None:
        async def do(work: Any) -> Any:
            if work == "cancel":
                raise asyncio.CancelledError
            return (lambda: None) if work == "odd" else work

        a, b = Calls(ends[0], do), Calls(ends[1], do)
        running = asyncio.gather(a.run(), b.run())
        sound = [asyncio.create_task(a.call(i)) for i in range(3)]
        odd = (AttributeError, pickle.PicklingError)
        for work, error in ((lambda: None, odd), ("odd", odd), ("cancel", RuntimeError)):
            with pytest.raises(error):
                await a.call(work)
        with pytest.raises(pickle.UnpicklingError):
            await a.call(Unreadable())
        assert await asyncio.gather(*sound) == [0, 1, 2]
        a.close()
        await running

    asyncio.run(run())


class Unreadable:
    """Bears pickling, but not unpickling."""

    def __reduce__(self) -> tuple[Any, ...]:
        return unreadable, ()


def unreadable() -> None:
    raise pickle.UnpicklingError


def test_an_error_does_not_grow_with_the_processes_that_it_passes(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    async def run() -> None:
        async def pass_on(to: Calls, work: tuple[int, Exception]) -> None:
            left, error = work
            if not left:
                raise error
            await to.call((left - 1, error))

        a = Calls(ends[0], lambda work: pass_on(a, work))
        b = Calls(ends[1], lambda work: pass_on(b, work))
        running = asyncio.gather(a.run(), b.run())
        with pytest.raises(FetchRefused) as refused:
            await a.call((4, FetchRefused("connect", "gone")))
        assert len(pickle.dumps(refused.value)) < 1000
        with pytest.raises(ValueError, match="ours") as broken:
            await a.call((4, ValueError("ours")))
        assert len(broken.value.__notes__) == 1
        assert len(pickle.dumps(broken.value)) < 10_000
        a.close()
        await running

    asyncio.run(run())
