"""The dataset report on the search page, for whoever serves it to the people it is meant for.

The report shows captions and pictures near the threshold as they were when it was built, whatever
was removed since. So it is served only where the options say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from laion_assets.knn.query import lake_beside
from laion_assets.layout import DATASET_REPORT
from laion_assets.search.middleware import GENERATED_CSP
from laion_assets.search.options import ServeOptions

ROUTE: Final = "/report"


def report_of(index_dir: Path, options: ServeOptions) -> Path | None:
    """Path of the report of an index's lake; None if there is none, or it is not to be served."""
    lake = lake_beside(index_dir) if options.report else None
    report = lake.folder(DATASET_REPORT) / "report.html" if lake else None
    return report if report and report.is_file() else None


class ReportPolicy:
    """ASGI middleware outside all others: the report is a single file with styles of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = GENERATED_CSP
            await send(message)

        is_report = scope["type"] == "http" and scope["path"] == ROUTE
        await self._app(scope, receive, answer if is_report else send)
