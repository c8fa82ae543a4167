"""Middleware before every route: rate limits, security headers, timing."""

from __future__ import annotations

import time
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laion_assets.search.metrics import Metrics
from laion_assets.search.options import ServeOptions
from laion_assets.search.rate_limit import Rate, client_of

CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
TRUSTED_TYPES: Final = "; require-trusted-types-for 'script'; trusted-types 'none'"
DOCS_CSP: Final = CSP.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""Swagger UI writes HTML, and styles into its elements."""
GENERATED_CSP: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""The report on generated samples is a single file without scripts."""

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_POLICIES: Final = {"/docs": DOCS_CSP, "/generated": GENERATED_CSP}
QUERIES: Final = frozenset({"/knn-service", "/metadata", "/search"})
_REMOVALS: Final = "/removal-requests"
_THUMBNAILS: Final = "/thumbnails/"
HEALTH: Final = "/healthz"
_NAMED: Final = QUERIES | {
    "/",
    "/about",
    "/generated",
    "/indices-list",
    HEALTH,
    "/metrics",
    "/docs",
    "/openapi.json",
    _REMOVALS,
}


def route_of(path: str) -> str:
    """Metrics label of a path; there is a fixed number of them."""
    if path in _NAMED:
        return path
    for prefix in (_THUMBNAILS, "/static/"):
        if path.startswith(prefix):
            return prefix
    return "other"


class Guard:
    """ASGI middleware that limits rates, sets headers and measures requests."""

    def __init__(self, app: ASGIApp, options: ServeOptions, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        queries = Rate(options.query_rate, options.query_burst)
        self._rates = dict.fromkeys(QUERIES, queries) | {
            _REMOVALS: Rate(options.removal_rate, options.removal_burst),
            _THUMBNAILS: Rate(options.thumbnail_rate, options.thumbnail_burst),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        route = route_of(scope["path"])
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["Content-Security-Policy"] = _POLICIES.get(route, CSP + TRUSTED_TYPES)
                headers.setdefault("Cache-Control", "no-store")
                if route not in (_THUMBNAILS, *QUERIES):
                    headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        try:
            wait = self._wait(scope, route)
            if wait is not None:
                self._metrics.refused("rate")
                refusal = JSONResponse(
                    {"reason": "rate", "detail": f"too many requests; try again in {wait} s"},
                    429,
                    {"Retry-After": str(wait)},
                )
                await refusal(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        finally:
            self._metrics.requested(route, status, time.perf_counter() - started)

    def _wait(self, scope: Scope, route: str) -> int | None:
        rate = self._rates.get(route)
        if rate is None or scope["method"] == "OPTIONS":
            return None
        client = scope.get("client")
        return rate.take(client_of(client[0] if client else ""))
