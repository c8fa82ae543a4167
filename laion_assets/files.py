"""Writes and replaces files so that a reader sees the old version or the new one, never a torn one.

Holds what all packages need of the file system, too: locks, digests, limits. Formats do not belong
here, other than text and JSON.
"""

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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Protocol, Self

from laion_assets.errors import PermanentError, TransientError

_RENAME_EXCHANGE: Final = 2
_RENAME_SWAP: Final = 2
_AT_FDCWD: Final = -100
_NO_EXCHANGE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What NFS, CIFS and FUSE, and older kernels, answer to a flag that they do not know."""

_PERMANENT_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def is_permanent(error: BaseException) -> bool:
    """Return True if only a person can end the error: one that is marked so, a full disk, a used-up
    quota, a read-only file system or a missing permission."""
    return isinstance(error, PermanentError | PermissionError) or (
        isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, the error that it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def open_files(n: int) -> int:
    """Allow this process ``n`` open files, or as many as the system permits; return the limit.

    The usual limit is 1,024, and a process that needs more is expected to raise it. A memory map
    counts as an open file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n:
        soft = n if hard == resource.RLIM_INFINITY else min(n, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return n if soft == resource.RLIM_INFINITY else soft


Identity = tuple[int, int, int]


def identity(path: Path | int) -> Identity:
    """Return a value that differs once the file was replaced; ``path`` may be an open file's
    number. Raises ``FileNotFoundError``."""
    about = os.fstat(path) if isinstance(path, int) else path.stat()
    return about.st_dev, about.st_ino, about.st_mtime_ns


class ReadAt(Protocol):
    """A file that is read at any place."""

    @property
    def name(self) -> str:
        """Its path or URL, for messages."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, n: int) -> bytes:
        """Return ``n`` bytes, or fewer at the end."""

    def close(self) -> None: ...


class LocalFile:
    """A file of this machine to :class:`ReadAt`. Raises ``FileNotFoundError``."""

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self._handle = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._handle).st_size

    def read_at(self, offset: int, n: int) -> bytes:
        return os.pread(self._handle, n, offset)

    def close(self) -> None:
        os.close(self._handle)


def fsync_directory(path: Path) -> None:
    """Make the directory's entries (a rename, a new file) survive a power failure."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make the file's contents survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write to; rename it to ``target`` when the block succeeds.

    The temporary name keeps the target's suffixes, by which libraries choose formats. It starts
    with a dot, so that globs do not match it. After an exception the file is deleted and ``target``
    stays as it was.
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


class LockedError(TransientError):
    """Another process has held the lock for longer than the time-out."""


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed, or its process dies, unless it is locked elsewhere.

    Return whether it is locked now.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, waiting: Callable[[], None], timeout_s: float = math.inf) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; the system releases it if the process dies.

    ``waiting`` is called once if another process holds the lock. Raises :class:`LockedError` after
    waiting for ``timeout_s`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        deadline = time.monotonic() + timeout_s
        has_waited = False
        while not try_lock(handle):
            if time.monotonic() > deadline:
                raise LockedError(f"{path} is held by another process")
            if not has_waited:
                waiting()
                has_waited = True
            time.sleep(0.1)
        yield


class FileWriter:
    """Base of what writes in a ``with`` block, and is whole once that ends without an error.

    What :attr:`_stack` holds is closed in either case, and learns of the error.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        self._stack.__exit__(kind, error, trace)

    def _finish(self) -> None:
        """Write what is left, if the block has ended well."""


def write_text(target: Path, text: str) -> None:
    """Publish ``text``, encoded as UTF-8, by :func:`atomic_path`."""
    with atomic_path(target) as beside:
        beside.write_text(text, encoding="utf-8")


def write_unsynced(target: Path, content: bytes) -> None:
    """Replace a file of what can be had again, without waiting for the disk.

    When the machine stops the file may be cut, so whoever reads it must notice that.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{uuid.uuid4().hex[:12]}.{target.name}")
    beside.write_bytes(content)
    beside.replace(target)


def write_json(target: Path, value: Any) -> None:
    """Publish ``value`` as JSON. Keys are sorted, so that equal values give equal bytes."""
    write_text(target, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of the file's bytes in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hard_link(source: Path, target: Path) -> None:
    """Link ``target`` to the content of ``source``, which may be a symbolic link; link(2) would
    link that. Raises ``OSError``."""
    os.link(os.path.realpath(source), target)


def can_link(source: Path, folder: Path) -> bool:
    """Whether a file can be linked into a folder: not from another file system, nor on all."""
    beside = folder / f".{uuid.uuid4().hex[:12]}"
    try:
        hard_link(source, beside)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        return False
    beside.unlink()
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """Give ``target`` the content of ``source``, by a hard link where the file system can.

    Published files are never written to, so two folders may share one.
    """
    try:
        hard_link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # another file system, or one without hard links
        with atomic_path(target) as beside:
            shutil.copyfile(source, beside)


def replace_folder(new: Path, target: Path) -> None:
    """Put the folder ``new`` in ``target``'s place, then delete the previous folder.

    That is one step where the file system can exchange folders, and two where it cannot.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fsync_directory(new)
    if not target.exists():
        new.rename(target)
    elif not exchanges(new, target):
        previous = new.with_name(f"{new.name}.{uuid.uuid4().hex[:12]}")
        target.rename(previous)
        new.rename(target)
        new = previous
    fsync_directory(target.parent)
    if new.exists():
        shutil.rmtree(new)


def exchanges(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return False where the file system cannot."""
    try:
        _exchange(first, second)
    except OSError as error:
        if error.errno in _NO_EXCHANGE:
            return False
        raise
    return True


def _exchange(first: Path, second: Path) -> None:
    """Exchange two folders by Linux' renameat2 or macOS' renamex_np."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(first), os.fsencode(second)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    elif hasattr(libc, "renamex_np"):
        done = libc.renamex_np(*paths, _RENAME_SWAP)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(first), None, str(second))
