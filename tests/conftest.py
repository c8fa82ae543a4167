"""Servers and worlds that several packages' tests share."""

from __future__ import annotations

import functools
import hashlib
import http.server
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.pool import NullPool
from xdist.scheduler.loadfile import LoadFileScheduling

from laion_assets.work import PRELOADED, forked_from_server

_MEMORY: Final = Path("/dev/shm")
_ROOM: Final = 12 << 30
"""Free bytes; the files of all tests take some two thousand million."""


def _room() -> int:
    """Free bytes in memory; 0 where the system does not say."""
    about = Path("/proc/meminfo")
    lines = about.read_text("ascii").splitlines() if about.is_file() else []
    fields = dict(line.split()[:2] for line in lines)
    available = int(fields.get("MemAvailable:", 0)) * 1024
    return min(shutil.disk_usage(_MEMORY).free, available)


class _Heard(logging.Handler):
    def __init__(self, tell: Callable[[str], object], level: int) -> None:
        super().__init__(level)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


def pytest_configure() -> None:
    """Take SIGINT where a script that runs the tests in the background has it ignored: Dagster
    handles SIGTERM as SIGINT is, and whatever is started afterwards would ignore that, too.

    A thread each for torch, as the tests' processes fill the cores: more would wait for one
    another, and take half as much time again. The tests' folders are in memory, if there is room:
    SQLite waits for the disk at each of Dagster's events.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "TMPDIR" not in os.environ and _MEMORY.is_dir() and _room() >= _ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def forked_quickly() -> None:
    """Start the server that processes are forked from with what those of segments need: another's
    would have them import it one by one."""
    forked_from_server(PRELOADED)
    forkserver.ensure_running()


@pytest.fixture(scope="session", autouse=True)
def engines_are_kept() -> Iterator[None]:
    """Keep the engine of a SQLite file, and the migrations that are read from Dagster's package.

    Dagster makes an engine for each connection, which has each statement compiled once more, and
    reads its migrations for each file: a fifth of the time of all tests.
    """
    modules = [import_module(f"dagster._core.storage.{name}") for name in _SQLITE_STORAGES]
    scripts = ScriptDirectory.from_config
    engine = functools.lru_cache(maxsize=256)(_engine)
    by_place: dict[str | None, ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place not in by_place:
            by_place[place] = scripts(config)
        return by_place[place]

    def create_engine(
        url: str, *, poolclass: type[NullPool], connect_args: Mapping[str, Any] | None = None
    ) -> Any:
        assert poolclass is NullPool
        return engine(url, *(connect_args or {}).items())

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "create_engine", create_engine)
        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


_SQLITE_STORAGES: Final = (
    "event_log.sqlite.sqlite_event_log",
    "runs.sqlite.sqlite_run_storage",
    "schedules.sqlite.sqlite_schedule_storage",
)


def _engine(url: str, *connect_args: tuple[str, Any]) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=dict(connect_args))


@contextmanager
def heard(tell: Callable[[str], object], level: int = logging.INFO) -> Iterator[None]:
    """Call ``tell`` with each message that the package logs in the block; it may raise."""
    package, handler = logging.getLogger("laion_assets"), _Heard(tell, level)
    before = package.level
    package.addHandler(handler)
    package.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before)


def _of_world(item: pytest.Item) -> bool:
    return item.path.relative_to(Path(__file__).parent).parts[0] == "world"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of the world, which take longest, and give them the time they take."""
    items.sort(key=lambda item: not _of_world(item))
    for item in items:
        if _of_world(item):
            # The first waits for two crawls to be made, on a machine that does other things, too.
            item.add_marker(pytest.mark.timeout(1200), append=False)


class _ByFile(LoadFileScheduling):
    """Tests of one file, and all of the world, run in one process: they share what they made."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "tests/world" if file.startswith("tests/world/") else file


def pytest_xdist_auto_num_workers() -> int | None:
    """One more than there are cores: tests wait for a clock, a daemon or a browser for a quarter of
    their time."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return len(os.sched_getaffinity(0)) + 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    # As collected, not the files with the most tests first: those of the world are few.
    config.option.loadscopereorder = False
    return _ByFile(config, log)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; answers 503 to the next requests of a path named in ``failing``."""

    failing: dict[str, int]
    answered: list[tuple[str, int]]
    _etag = ""

    def do_GET(self) -> None:
        self._etag = ""
        if self.failing.get(self.path, 0) > 0:
            self.failing[self.path] -= 1
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self._etag = f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
        if self._etag and self.headers.get("If-None-Match") == self._etag:
            self.send_response(304)
            self.end_headers()
            return
        super().do_GET()

    def end_headers(self) -> None:
        if self._etag:
            self.send_header("ETag", self._etag)
        super().end_headers()

    def send_response(self, code: int, message: str | None = None) -> None:
        self.answered.append((self.path, int(code)))
        super().send_response(code, message)

    def log_message(self, *_: object) -> None:
        pass


class Loopback:
    """Real HTTP on loopback, on a free port."""

    def __init__(self, handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class FolderServer(Loopback):
    """A folder, served."""

    def __init__(self, root: Path) -> None:
        self.failing: dict[str, int] = {}
        self.answered: list[tuple[str, int]] = []
        """Each request's path and status."""
        shared = {"failing": self.failing, "answered": self.answered}
        handler = type("_Serving", (_Quiet,), shared)
        super().__init__(functools.partial(handler, directory=str(root)))


@pytest.fixture
def serve_folder() -> Iterator[Callable[[Path], FolderServer]]:
    servers: list[FolderServer] = []

    def serve(root: Path) -> FolderServer:
        servers.append(FolderServer(root))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def _new_dagster_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    with dg.DagsterInstance.local_temp(str(home), {"telemetry": {"enabled": False}}):
        return home


@pytest.fixture
def instance(_new_dagster_home: Path, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A new Dagster instance on SQLite, whose tables have been made before."""
    home = tmp_path / "dagster_home"
    shutil.copytree(_new_dagster_home, home)
    quiet = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(home), quiet) as instance:
        yield instance
