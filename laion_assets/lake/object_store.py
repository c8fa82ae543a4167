"""An object store with the one thing a lake needs of it: replace an object only if it is still
the one that was read.

Requests that fail are tried again with back-off (by obstore): 5xx answers, broken and refused
connections. What does not belong here: what the objects mean.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from laion_assets.errors import TransientError
from laion_assets.files import atomic_path

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

_TRIES: Final = 3
_PART_BYTES: Final = 8 * 2**20


class ObjectsError(RuntimeError):
    """The object store could not be used; the message says which object and why."""


class UnavailableError(ObjectsError, TransientError):
    """The store has failed again and again; it may be there later."""


class ChangedError(ObjectsError, TransientError):
    """An object is not the one that was read, or is there although it was not."""


@dataclass(frozen=True)
class Version:
    """Which object was read, as the store tells it; where it may be None, there was none."""

    e_tag: str | None
    version: str | None

    def condition(self) -> UpdateVersion:
        told: UpdateVersion = {}
        if self.e_tag is not None:
            told["e_tag"] = self.e_tag
        if self.version is not None:
            told["version"] = self.version
        return told


@dataclass(frozen=True)
class Listed:
    path: str
    size: int
    e_tag: str | None
    modified: datetime


class Objects:
    """The objects below one URL: ``s3://bucket/prefix``, ``gs://…``, ``az://…``.

    ``options`` are obstore's for that store (``endpoint``, ``region``, …); credentials come from
    where the store's own tools look for them. Paths are relative to the URL.
    """

    def __init__(self, url: str, options: dict[str, str], attempts: int) -> None:
        self.url = url
        self._options, self._attempts = dict(options), attempts
        self._opened: ObjectStore | None = None

    @property
    def _store(self) -> ObjectStore:
        # Opened late: a connection does not survive a fork, and a page of the UI needs none.
        if self._opened is None:
            from obstore.exceptions import BaseError
            from obstore.store import from_url

            # obstore types its options by store; which one it is, the URL says.
            options: Any = dict(self._options)
            plain = options.get("endpoint", "").startswith("http://")
            client: ClientConfig = {
                "allow_http": plain,
                "connect_timeout": timedelta(seconds=10),
                # Of a whole answer, however large; a stalled one is noticed sooner.
                "timeout": timedelta(hours=1),
                "read_timeout": timedelta(seconds=60),
            }
            retry: RetryConfig = {
                "max_retries": self._attempts,
                "backoff": {
                    "init_backoff": timedelta(milliseconds=200),
                    "max_backoff": timedelta(seconds=15),
                    "base": 2,
                },
            }
            try:
                self._opened = from_url(
                    self.url, config=options, client_options=client, retry_config=retry
                )
            except (BaseError, ValueError) as error:
                raise ObjectsError(f"{self.url} cannot be opened: {error}") from error
        return self._opened

    def read(self, path: str) -> tuple[bytes, Version] | None:
        """The object and its version; None if there is none."""
        import obstore

        for attempt in self._tries(path):
            with attempt:
                try:
                    got = obstore.get(self._store, path)
                    content = bytes(got.bytes())
                except FileNotFoundError:
                    return None
                return content, Version(got.meta["e_tag"], got.meta["version"])
        raise AssertionError("unreachable")

    def write(self, path: str, content: bytes) -> None:
        """Write a small object, whatever is there."""
        import obstore

        for attempt in self._tries(path):
            with attempt:
                obstore.put(self._store, path, content, use_multipart=False)
                return

    def write_if(self, path: str, content: bytes, version: Version | None) -> None:
        """Write a small object in the place of the one of ``version``, or of none.

        Raises :class:`ChangedError` if another is there. ``content`` must be like no other's: a
        try whose answer was lost is told from somebody else's write by reading it.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: PutMode = version.condition() if version else "create"
        for attempt in self._tries(path):
            with attempt:
                try:
                    obstore.put(self._store, path, content, mode=mode, use_multipart=False)
                except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                    there = self.read(path)
                    if there is None or there[0] != content:
                        raise ChangedError(f"{path} is not the object that was read") from error
                return

    def upload(self, source: Path, path: str) -> None:
        import obstore

        for attempt in self._tries(path):
            with attempt:
                obstore.put(self._store, path, source, chunk_size=_PART_BYTES, max_concurrency=4)
                return

    def download(self, path: str, target: Path, sha256: str | None = None) -> None:
        """Copy an object to a file, whole or not at all.

        Raises ``FileNotFoundError`` if there is none, :class:`ObjectsError` if it has another
        digest than ``sha256``.
        """
        import obstore

        for attempt in self._tries(path):
            with attempt, atomic_path(target) as beside:
                digest = hashlib.sha256()
                with beside.open("wb") as file:
                    for chunk in obstore.get(self._store, path).stream(_PART_BYTES):
                        file.write(chunk)
                        digest.update(chunk)
                if sha256 and digest.hexdigest() != sha256:
                    raise ObjectsError(f"{self.url}/{path} is damaged: its digest is another")
                return

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; one that is not there is as good as deleted."""
        import obstore

        for path in paths:
            for attempt in self._tries(path):
                with attempt:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._store, path)
                    break

    def listed(self, folder: str, *, deep: bool = True) -> list[Listed]:
        """The objects below a folder, or only those right in it, sorted by path."""
        import obstore

        for attempt in self._tries(folder):
            with attempt:
                if deep:
                    found = [item for chunk in obstore.list(self._store, folder) for item in chunk]
                else:
                    found = list(obstore.list_with_delimiter(self._store, folder)["objects"])
                return sorted(
                    (
                        Listed(item["path"], item["size"], item["e_tag"], item["last_modified"])
                        for item in found
                    ),
                    key=lambda item: item.path,
                )
        raise AssertionError("unreachable")

    def names(self, folder: str) -> list[str]:
        """The paths of what is right in a folder, folders too."""
        import obstore

        for attempt in self._tries(folder):
            with attempt:
                found = obstore.list_with_delimiter(self._store, folder)
                return [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        raise AssertionError("unreachable")

    def _tries(self, path: str) -> Iterator[_Try]:
        """Around obstore's own tries of a request: for answers that broke off half-way, and for
        uploads of several requests."""
        for number in range(1, _TRIES + 1):
            yield _Try(f"{self.url}/{path}", last=number == _TRIES)
            time.sleep(2.0**number)


class _Try:
    """Lets an error that may pass go by, unless it is the last try."""

    def __init__(self, what: str, *, last: bool) -> None:
        self._what, self._last = what, last

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        from obstore.exceptions import (
            BaseError,
            InvalidPathError,
            NotSupportedError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        if error is None or not isinstance(error, BaseError | ObjectsError | OSError):
            return False
        if isinstance(error, ChangedError | FileNotFoundError):
            return False
        hopeless = isinstance(
            error,
            InvalidPathError | NotSupportedError | PermissionDeniedError | UnauthenticatedError,
        )
        if hopeless:
            raise ObjectsError(f"{self._what}: {error}") from error
        if self._last and not isinstance(error, ObjectsError):
            raise UnavailableError(f"{self._what}: {error}") from error
        return not self._last
