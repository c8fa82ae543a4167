"""An S3-compatible object store on loopback that fails as often as requested.

moto is the store. A proxy before it makes a share of the requests fail: it answers 503 without
forwarding the request, or forwards it and then answers 500 or breaks the connection. In the latter
cases the store did the work, but the client does not know.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from typing import Final

import aiohttp
from aiohttp import web

FAULTS: Final = ("refused with 503", "done, answered 500", "done, connection broken")
COUNTS: Final = "/_counts"
_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}


class UnreliableProxy:
    """Proxy for ``target`` that makes ``share`` of the requests fail, by a seeded choice."""

    def __init__(self, target: str, share: float, seed: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.kept_back: set[str] = set(_HOP)
        """Headers, in lower case, that are not forwarded."""
        self._target, self._share = target, share
        self._random = random.Random(seed)
        # S3 decides on a conditional write atomically; moto checks first and writes later.
        self._conditional = asyncio.Lock()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == COUNTS:
            return web.json_response(self.counts)
        body = await request.read()
        fails = self._random.random() < self._share
        fault = self._random.choice(FAULTS) if fails else "answered"
        self.counts[fault] += 1
        if fault == FAULTS[0]:
            return web.Response(status=503, text="SlowDown")
        if {"If-Match", "If-None-Match"} & set(request.headers) and request.method == "PUT":
            async with self._conditional:
                answer = await self._forward(request, body)
        else:
            answer = await self._forward(request, body)
        if fault == FAULTS[1]:
            return web.Response(status=500, text="InternalError")
        if fault == FAULTS[2] and request.transport:
            request.transport.abort()
        return answer

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in self.kept_back}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                self._target + request.raw_path,
                data=body,
                headers=headers,
                skip_auto_headers=["Content-Type", "Accept", "User-Agent"],
            ) as got,
        ):
            kept = {k: v for k, v in got.headers.items() if k.lower() not in _HOP}
            if request.method == "HEAD":
                kept["Content-Length"] = got.headers.get("Content-Length", "0")
                return web.Response(status=got.status, headers=kept)
            return web.Response(status=got.status, headers=kept, body=await got.read())


async def serve(port: int, share: float, bucket: str) -> None:
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, inner = moto.get_host_and_port()
    target = f"http://{host}:{inner}"
    async with aiohttp.ClientSession() as session, session.put(f"{target}/{bucket}") as made:
        made.raise_for_status()
    proxy = UnreliableProxy(target, share)
    application = web.Application(client_max_size=2**31)
    application.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    assert site._server
    print(site._server.sockets[0].getsockname()[1], flush=True)  # type: ignore[attr-defined]
    await asyncio.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bucket", default="lake")
    parser.add_argument("--failing", type=float, default=0.05, help="share of requests that fail")
    args = parser.parse_args()
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    asyncio.run(serve(args.port, args.failing, args.bucket))
    return 0


if __name__ == "__main__":
    sys.exit(main())
