"""Servers and worlds that several packages' tests share."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_MADE_ONCE = ("world", "search", "stats", "clip")
"""Folders whose tests share what takes long to make."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those of such a folder run in the same one."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in _MADE_ONCE:
            item.add_marker(pytest.mark.xdist_group(folder))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; answers 503 to the next requests of a path named in ``failing``."""

    failing: dict[str, int]

    def do_GET(self) -> None:
        if self.failing.get(self.path, 0) > 0:
            self.failing[self.path] -= 1
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


class FolderServer:
    """A folder over real HTTP on loopback."""

    def __init__(self, root: Path) -> None:
        self.failing: dict[str, int] = {}
        handler = type("_Serving", (_Quiet,), {"failing": self.failing})
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(root))
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def serve_folder() -> Iterator[Callable[[Path], FolderServer]]:
    servers: list[FolderServer] = []

    def serve(root: Path) -> FolderServer:
        servers.append(FolderServer(root))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
