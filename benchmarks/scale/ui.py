"""Loading times of pages of Dagster's UI in a browser."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from playwright.sync_api import Page

_QUIET_S: Final = 1.5
_PATIENCE_S: Final = 120.0


@contextmanager
def browser_page() -> Iterator[Page]:
    """Open a page in the distribution's Chromium."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        raise SystemExit("Chromium is not installed: run make chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1500, "height": 950})
        browser.close()


class Watch:
    """Counter of the GraphQL answers that a page waits for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._asked = 0
        self._answered = 0
        self._last = 0.0
        page.on("request", lambda request: self._ask(request.url))
        page.on("requestfinished", lambda request: self._answer(request.url))
        page.on("requestfailed", lambda request: self._answer(request.url))

    def _ask(self, url: str) -> None:
        self._asked += url.endswith("/graphql")

    def _answer(self, url: str) -> None:
        if url.endswith("/graphql"):
            self._answered += 1
            self._last = time.monotonic()

    def open(self, url: str, text: str) -> float:
        """Open a page; return the seconds until ``text`` is shown and all requests are answered."""
        started = time.monotonic()
        self._last = started
        self.page.goto(url)
        self.page.get_by_text(text).first.wait_for(timeout=_PATIENCE_S * 1000)
        seen = time.monotonic()
        while time.monotonic() - started < _PATIENCE_S:
            self.page.wait_for_timeout(100)
            if self._asked <= self._answered and time.monotonic() - self._last > _QUIET_S:
                break
        return max(seen, self._last) - started

    def shot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path))
