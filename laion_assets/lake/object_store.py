"""An object store with the one thing a lake needs: replacing an object only if it has not changed.

Failed requests (5xx answers, refused or broken connections) are retried with back-off, by obstore
and, where a transfer takes several requests, once more here. What does not belong here: what the
objects mean.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from laion_assets.errors import TransientError
from laion_assets.files import atomic_path

if TYPE_CHECKING:
    import obstore.store
    from obstore import PutMode, UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

_ATTEMPTS: Final = 3
_PART_BYTES: Final = 8 * 2**20
_PARALLEL: Final = 8


class ObjectStoreError(RuntimeError):
    """The object store could not be used; the message says which object and why."""


class UnavailableError(ObjectStoreError, TransientError):
    """Every attempt failed for a reason that may be transient."""


class ChangedError(ObjectStoreError, TransientError):
    """An object is not the one that was read, or exists although none was found."""


@dataclass(frozen=True)
class Version:
    """The version of the object that was read.

    Where None is accepted instead, it means that the object did not exist.
    """

    e_tag: str | None
    version: str | None

    def condition(self) -> UpdateVersion:
        condition: UpdateVersion = {}
        if self.e_tag is not None:
            condition["e_tag"] = self.e_tag
        if self.version is not None:
            condition["version"] = self.version
        return condition


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    path: str
    size: int
    e_tag: str | None
    modified: datetime


class ObjectStore:
    """The objects below one URL: ``s3://bucket/prefix``, ``gs://…``, ``az://…``.

    ``options`` are obstore's for that store (``endpoint``, ``region``, …); credentials come from
    where the store's own tools look for them. Paths are relative to the URL. Every method raises
    :class:`ObjectStoreError` if its requests keep failing.
    """

    def __init__(self, url: str, options: dict[str, str], attempts: int) -> None:
        self.url = url
        self._options, self._attempts = dict(options), attempts
        self._opened: obstore.store.ObjectStore | None = None

    @property
    def _store(self) -> obstore.store.ObjectStore:
        # Opened late: a connection does not survive a fork, and a page of the UI needs none.
        if self._opened is None:
            from obstore.exceptions import BaseError
            from obstore.store import from_url

            # obstore types its options by store; the URL says which one it is.
            options: Any = dict(self._options)
            plain = options.get("endpoint", "").startswith("http://")
            client: ClientConfig = {
                "allow_http": plain,
                "connect_timeout": timedelta(seconds=10),
                # For a whole answer, however large; `read_timeout` notices a stalled one.
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
                raise ObjectStoreError(f"{self.url} cannot be opened: {error}") from error
        return self._opened

    def read(self, path: str) -> tuple[bytes, Version] | None:
        """Return an object and its version; None if it does not exist."""
        import obstore

        def get() -> tuple[bytes, Version] | None:
            try:
                got = obstore.get(self._store, path)
                content = bytes(got.bytes())
            except FileNotFoundError:
                return None
            return content, Version(got.meta["e_tag"], got.meta["version"])

        return self._retrying(path, get)

    def write(self, path: str, content: bytes) -> None:
        """Write a small object, replacing any that exists."""
        import obstore

        self._retrying(path, lambda: obstore.put(self._store, path, content, use_multipart=False))

    def write_if(self, path: str, content: bytes, version: Version | None) -> None:
        """Write a small object in the place of the one of ``version``, or of none.

        Raises :class:`ChangedError` if there is another. ``content`` must be unique: when the
        answer to a request is lost, reading the object shows whether it was ours that was written.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: PutMode = version.condition() if version else "create"

        def put() -> None:
            try:
                obstore.put(self._store, path, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                found = self.read(path)
                if found is None or found[0] != content:
                    raise ChangedError(f"{path} is not the object that was read") from error

        self._retrying(path, put)

    def upload(self, source: Path, path: str) -> None:
        """Copy a file to an object."""
        import obstore

        self._retrying(
            path,
            lambda: obstore.put(
                self._store, path, source, chunk_size=_PART_BYTES, max_concurrency=4
            ),
        )

    def download(self, path: str, target: Path, sha256: str | None = None) -> None:
        """Copy an object to a file, whole or not at all.

        Raises ``FileNotFoundError`` if there is none, :class:`ObjectStoreError` if its digest is
        not ``sha256``.
        """
        import obstore

        def get() -> None:
            with atomic_path(target) as beside:
                digest = hashlib.sha256()
                with beside.open("wb") as file:
                    for chunk in obstore.get(self._store, path).stream(_PART_BYTES):
                        file.write(chunk)
                        digest.update(chunk)
                if sha256 and digest.hexdigest() != sha256:
                    raise ObjectStoreError(
                        f"{self.url}/{path} is damaged: its SHA-256 is not {sha256}"
                    )

        self._retrying(path, get)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; one that does not exist counts as deleted."""
        import obstore

        def delete(path: str) -> None:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, path)

        in_parallel(lambda path: self._retrying(path, lambda: delete(path)), paths)

    def listed(self, folder: str, *, deep: bool = True) -> list[ObjectInfo]:
        """Return the objects below a folder, or only those directly in it, sorted by path."""
        import obstore

        def items() -> list[Any]:
            if deep:
                return [item for chunk in obstore.list(self._store, folder) for item in chunk]
            return list(obstore.list_with_delimiter(self._store, folder)["objects"])

        found = (
            ObjectInfo(item["path"], item["size"], item["e_tag"], item["last_modified"])
            for item in self._retrying(folder, items)
        )
        return sorted(found, key=lambda item: item.path)

    def names(self, folder: str) -> list[str]:
        """Return the paths of all that is directly in a folder, subfolders included."""
        import obstore

        found = self._retrying(folder, lambda: obstore.list_with_delimiter(self._store, folder))
        return [*found["common_prefixes"], *(item["path"] for item in found["objects"])]

    def _retrying(self, path: str, request: Callable[[], T]) -> T:
        """Repeat what obstore does not: transfers that broke off, and several requests together."""
        from obstore.exceptions import (
            BaseError,
            InvalidPathError,
            NotSupportedError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        permanent = (
            InvalidPathError,
            NotSupportedError,
            PermissionDeniedError,
            UnauthenticatedError,
        )
        attempt = 1
        while True:
            try:
                return request()
            except (ChangedError, FileNotFoundError):
                raise
            except (BaseError, ObjectStoreError, OSError) as error:
                if isinstance(error, permanent):
                    raise ObjectStoreError(f"{self.url}/{path}: {error}") from error
                if attempt == _ATTEMPTS:
                    if isinstance(error, ObjectStoreError):
                        raise
                    raise UnavailableError(f"{self.url}/{path}: {error}") from error
            time.sleep(2.0**attempt)
            attempt += 1


def in_parallel(call: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Call a function for each item, several at a time.

    The first error is raised when all calls have ended.
    """
    items = list(items)
    if len(items) < 2:
        for item in items:
            call(item)
        return
    with ThreadPoolExecutor(min(_PARALLEL, len(items))) as pool:
        for _ in pool.map(call, items):
            pass
