"""Running the service in this process."""

from __future__ import annotations

from collections.abc import Callable

import uvicorn

from laion_assets.search.app import make_app
from laion_assets.search.service import SearchService


class _Server(uvicorn.Server):
    """Tells its address once it listens."""

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
    """``server.run()`` serves until it is interrupted, or ``server.should_exit`` is set.

    ``ready`` is told the address.
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
        limit_concurrency=1_000,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
        ws="none",
    )
    return _Server(config, ready)
