"""One of Dagster's services in a process that ends with the one that started it.

The webserver gets a guard. As released it answers to any Host, and runs mutations of a GET and of a
POST that any page can have sent, so that a page in a developer's browser could launch runs here.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from laion_assets.search.sites import LOOPBACK_NAMES, any_page_could_send, from_another_site
from laion_assets.work import signal_at_parents_end

WEBSERVER: Final = "dagster_webserver"
_READS: Final = ("GET", "HEAD", "OPTIONS")


class OwnPages:
    """ASGI middleware that refuses what a page of another site asks of the webserver.

    It lets links to its pages through, and programs, which send neither `Origin` nor
    `Sec-Fetch-Site`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (why := self._refuses(scope)) is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(1008, why)(scope, receive, send)
        else:
            await PlainTextResponse(f"{why}\n", 403)(scope, receive, send)

    def _refuses(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        foreign = from_another_site(headers)
        if scope["type"] == "websocket":
            return "another site's page may not subscribe" if foreign else None
        if scope["method"] not in _READS:
            if foreign or any_page_could_send(headers):
                return "send it as application/json, and not from another site's page"
            return None
        if scope["path"].endswith("/graphql") and scope["query_string"]:
            return "send the query by POST"
        # A link elsewhere may lead to a page here, but nothing else may be loaded into it.
        if foreign and headers.get("sec-fetch-mode") != "navigate":
            return "another site's page may not load this"
        return None


def run_guarded_webserver(arguments: Sequence[str], names: Collection[str]) -> None:
    """Run ``dagster-webserver`` with its own arguments, answering to these names and loopback's.

    The guard is put where the class takes middleware, since the program has no option for any.
    """
    from dagster_webserver import app
    from dagster_webserver.webserver import DagsterWebserver

    hosts = [*LOOPBACK_NAMES, *names]

    class Guarded(DagsterWebserver):  # type: ignore[type-arg]
        def build_middleware(self) -> list[Middleware]:
            named = Middleware(TrustedHostMiddleware, allowed_hosts=hosts)
            return [named, Middleware(OwnPages), *super().build_middleware()]

    app.DagsterWebserver = Guarded  # type: ignore[attr-defined]
    _run(WEBSERVER, arguments)


def ui_name() -> str:
    """Name of the host at which people reach the UI, by the settings."""
    from laion_assets.settings import load_settings

    return urlsplit(load_settings().notify.ui).hostname or ""


def _run(module: str, arguments: Sequence[str]) -> None:
    """Run a module of Dagster's as a program."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Run a service, named by its module, until the process of the given id ends."""
    parent, module, *arguments = sys.argv[1:]
    signal_at_parents_end(signal.SIGTERM)
    if os.getppid() != int(parent):
        return
    if module == WEBSERVER:
        run_guarded_webserver(arguments, [ui_name()])
    else:
        _run(module, arguments)


if __name__ == "__main__":
    main()
