"""Object stores on loopback, machines that use them, and a proxy whose behaviour a test sets."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web

from deploy.cluster_demo.store import UnreliableProxy
from laion_assets.funnel import StageCounts
from laion_assets.lake import Lake, LakeOptions, Manifest, open_lake
from laion_assets.lake.remote import RemoteLake
from laion_assets.layout import SegmentKey

KEY = SegmentKey("CC-MAIN-2000-05", "00")
OTHER = SegmentKey("CC-MAIN-2000-05", "01")

Machine = Callable[[], RemoteLake]


@contextmanager
def store(failing: float) -> Iterator[str]:
    command = [sys.executable, "-m", "deploy.cluster_demo.store", "--failing", str(failing)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


def machines(endpoint: str, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    number = itertools.count()

    def make() -> RemoteLake:
        lake = open_lake(
            LakeOptions(
                root=url,
                cache=str(folder / f"machine-{next(number)}"),
                storage_options={"endpoint": endpoint, "region": "us-east-1"},
                checkpoint_s=0.05,
                busy_timeout_s=0.5,
            )
        )
        assert isinstance(lake, RemoteLake)
        return lake

    return make


def made(lake: Lake, content: str, *, asset: str = "pairs", key: SegmentKey = KEY) -> Manifest:
    with lake.publish(asset, key, inputs={"from": content}, code_version="1") as staging:
        (staging.path / "deep").mkdir(exist_ok=True)
        (staging.path / "deep" / "a.txt").write_text(content)
        (staging.path / "same.txt").write_text("same")
        staging.counts = [StageCounts("pairs")]
    return staging.published


class Between(UnreliableProxy):
    """A proxy that records requests and, where a test says so, answers otherwise than the store."""

    def __init__(self, target: str) -> None:
        super().__init__(target, share=0)
        self.url = ""
        self.requests: list[str] = []
        self.sent = 0
        """Bytes of all answers."""
        self.hidden = ""
        """Listings of this prefix are empty."""
        self.lost = ""
        """The answer to the next PUT of a path with this end is lost, once ``go`` is set."""
        self.done, self.go = threading.Event(), threading.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        if self.hidden and self.hidden in request.query.get("prefix", ""):
            nothing = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            return web.Response(text=nothing, content_type="application/xml")
        lost = bool(self.lost) and request.method == "PUT" and request.path.endswith(self.lost)
        if lost:
            self.lost = ""
        answer = await super().handle(request)
        if isinstance(answer, web.Response) and isinstance(answer.body, bytes):
            self.sent += len(answer.body)
        if lost:
            self.done.set()
            await asyncio.to_thread(self.go.wait)
            return web.Response(status=500)
        return answer

    def count(self, call: Callable[[], object]) -> int:
        """How many requests a call makes."""
        before = len(self.requests)
        call()
        return len(self.requests) - before


@contextmanager
def between(target: str) -> Iterator[Between]:
    """Run a proxy before the store at ``target`` in a thread."""
    proxy, loop = Between(target), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        application = web.Application(client_max_size=2**28)
        application.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
