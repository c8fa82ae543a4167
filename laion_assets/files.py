"""Files that are either the old version or the new one, never a torn one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import math
import os
import resource
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow as pa

_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100

_LASTING_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def lasts(error: BaseException) -> bool:
    """Whether a file could not be written or read for a reason that a person has to mend: a full
    disk, a quota, a right that is missing."""
    return isinstance(error, PermissionError) or (
        isinstance(error, OSError) and error.errno in _LASTING_ERRNOS
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def open_files(n: int) -> int:
    """Let this process have ``n`` files open, or as many as the system allows it; how many it is.

    The usual limit of 1,024 is meant to be raised by whoever needs more; a memory map is one, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n:
        soft = n if hard == resource.RLIM_INFINITY else min(n, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return n if soft == resource.RLIM_INFINITY else soft


Identity = tuple[int, int, int]


def identity(path: Path) -> Identity:
    """Another one once the file was replaced. Raises ``FileNotFoundError``."""
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_mtime_ns


def fsync_directory(path: Path) -> None:
    """Make the directory's entries (a rename, a new file) survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write; publish it as ``target`` when the block ends well.

    The temporary name keeps the target's suffixes (libraries choose formats by them) and starts
    with a dot, so that globs do not see it. On an exception it is removed and ``target`` stays
    as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{uuid.uuid4().hex[:12]}.{target.name}")
    try:
        yield beside
        fsync_file(beside)
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_directory(target.parent)


class LockedError(RuntimeError):
    """Another process has held a lock for too long."""


@contextmanager
def locked(path: Path, waiting: Callable[[], None], timeout_s: float = math.inf) -> Iterator[None]:
    """Hold an exclusive lock that the system releases when the process dies.

    ``waiting`` is called once if somebody else holds it. Raises :class:`LockedError` after
    ``timeout_s`` seconds of that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        deadline = time.monotonic() + timeout_s
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise LockedError(f"{path} is held by another process") from error
                if not told:
                    waiting()
                    told = True
                time.sleep(0.1)
        yield


def write_text(target: Path, text: str) -> None:
    with atomic_path(target) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Publish ``value`` as JSON with sorted keys, so that equal values are equal bytes."""
    write_text(target, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one parquet file, all columns or the named ones.

    pyarrow's ``read_table`` would take hive folders in the path, as the lake's, for columns.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read(columns=None if columns is None else list(columns))


def replace_folder(new: Path, target: Path) -> None:
    """Put ``new`` in ``target``'s place at once; what was there is deleted afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fsync_directory(new)
    if not target.exists():
        new.rename(target)
    else:
        _exchange(new, target)
    fsync_directory(target.parent)
    if new.exists():
        shutil.rmtree(new)


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders in one step, by renameat2(RENAME_EXCHANGE).

    Raises ``OSError`` where the file system cannot: two renames instead would leave a moment in
    which there is no partition.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(first), None, str(second))
