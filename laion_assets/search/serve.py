"""Run the service in this process."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import uvicorn
from threadpoolctl import threadpool_limits

from laion_assets.clip.options import ClipOptions
from laion_assets.download.options import DownloadOptions
from laion_assets.heads.options import HeadOptions
from laion_assets.heads.score import scorers
from laion_assets.search.app import make_app
from laion_assets.search.connections import Connection, Connections
from laion_assets.search.options import ServeOptions
from laion_assets.search.service import SearchService


class _Server(uvicorn.Server):
    """A uvicorn server that reports its address once it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")


def make_server(
    service: SearchService, ready: Callable[[str], None] = lambda _: None
) -> uvicorn.Server:
    """Build a server, which runs until it is interrupted or ``server.should_exit`` is set.

    ``ready`` is called with the address.
    """
    options = service.options
    config = uvicorn.Config(
        make_app(service),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(options.proxies),
        forwarded_allow_ips=list(options.proxies),
        http=partial(Connection, connections=Connections(options, service.metrics)),  # type: ignore[arg-type]
        timeout_keep_alive=math.ceil(options.idle_timeout_s),
        timeout_graceful_shutdown=5,
        ws="none",
    )
    return _Server(config, ready)


def serve_index(
    index_dir: Path,
    options: ServeOptions,
    clip: ClipOptions,
    download: DownloadOptions,
    *,
    subset: Path | None = None,
    heads: Mapping[str, HeadOptions] | None = None,
) -> None:
    """Serve an index folder until interrupted; prints the address once it listens.

    ``heads`` are those of the settings. Raises ``OSError`` if it cannot listen there, and as
    :class:`~laion_assets.search.service.SearchService` does.
    """
    service = SearchService(
        index_dir, options, clip, download, subset=subset, heads=scorers(heads or {})
    )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with (
        socket.create_server((options.host, options.port), family=family) as listening,
        # The cores serve concurrent queries; a small matrix product gains nothing from threads
        # that wait for one another.
        threadpool_limits(1, user_api="blas"),
    ):
        server = make_server(service, lambda address: print(f"search page: {address}", flush=True))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
