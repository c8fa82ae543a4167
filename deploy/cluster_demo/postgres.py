"""A private Postgres: a cluster in a temporary folder, on a free port, while a block runs."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_USER: Final = "postgres"
_PATIENCE_S: Final = 60.0


class PostgresError(RuntimeError):
    """Postgres is not installed, or does not start; the message says what to do."""


def binaries() -> Path:
    """Find the folder of Debian's newest Postgres, or of the one on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda of: of.parts[-3])
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if not on_path:
        raise PostgresError("Postgres is not installed: run apt-get install postgresql")
    return Path(on_path).resolve().parent


def free_port() -> int:
    """Find a free TCP port on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@contextmanager
def running(max_connections: int = 100) -> Iterator[str]:
    """Run a new, empty cluster and yield the URL of its database; delete it afterwards.

    Postgres refuses to run as root; for root it runs as the package's user. Raises
    :class:`PostgresError`.
    """
    binary, port = binaries(), free_port()
    root = os.getuid() == 0
    # Not below the checkout, which another user may not be allowed to reach.
    folder = Path(tempfile.mkdtemp(prefix="laion-assets-postgres-"))
    if root:
        user = pwd.getpwnam(_USER)
        os.chown(folder, user.pw_uid, user.pw_gid)
    prefix = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups"] if root else []
    data, log = folder / "data", folder / "log"
    try:
        made = subprocess.run(
            [*prefix, binary / "initdb", "-D", data, "-A", "trust", "-U", "dagster", "-E", "UTF8"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise PostgresError(f"initdb failed: {made.stderr.strip()}")
        with log.open("wb") as out:
            options = ["listen_addresses=127.0.0.1", f"max_connections={max_connections}"]
            server = subprocess.Popen(
                [
                    *(*prefix, str(binary / "postgres"), "-D", str(data), "-k", str(folder)),
                    *("-p", str(port), *(part for option in options for part in ("-c", option))),
                ],
                cwd=folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            url = f"postgresql://dagster@127.0.0.1:{port}/postgres"
            _await(server, port, binary, log)
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # ends all sessions, then the server
            server.wait(_PATIENCE_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await(server: subprocess.Popen[bytes], port: int, binary: Path, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    ready = [str(binary / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while time.monotonic() < deadline and server.poll() is None:
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise PostgresError(f"Postgres did not start: {log.read_text(errors='replace')[-1000:]}")
