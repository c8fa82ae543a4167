"""The benchmark's names for a program whose resolver only the system can teach.

The program runs in a mount namespace of its own, in which /etc/hosts has the names of a list of
pairs, and no name server is asked.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from benchmarks.download.web import ADDRESSES

_UNSHARE: Final = ("unshare", "--map-root-user", "--mount")
_MOUNT: Final = (
    'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/nsswitch.conf && shift 2 && exec "$@"'
)


def can_have_names() -> bool:
    """Whether this system lets a program have such a namespace."""
    try:
        return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def with_names(command: Sequence[object], pairs: Path, folder: Path) -> list[str]:
    """The command in such a namespace. ``folder`` gets the files for it."""
    urls = pq.read_table(pairs, columns=["url"])["url"].to_pylist()
    hosts, order = folder / "hosts", folder / "nsswitch.conf"
    hosts.write_text("".join(sorted(map(_line, {urlsplit(url).hostname or "" for url in urls}))))
    order.write_text("hosts: files\n")
    return [*_UNSHARE, "sh", "-c", _MOUNT, "sh", *map(str, (hosts, order, *command))]


def _line(host: str) -> str:
    """The host's line of /etc/hosts; empty for a name that does not exist."""
    pattern = max((one for one in ADDRESSES if fnmatchcase(host, one)), key=len)
    address = ADDRESSES[pattern]
    return f"{address} {host}\n" if address else ""
