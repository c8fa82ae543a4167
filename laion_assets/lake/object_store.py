"""An object store with the one thing a lake needs: replacing an object only if it has not changed.

Failed requests (5xx answers, refused or broken connections) are retried with back-off, by obstore
and, where a transfer takes several requests, once more here. What does not belong here: what the
objects mean.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from laion_assets.errors import PermanentError, TransientError
from laion_assets.files import atomic_path

if TYPE_CHECKING:
    import obstore.store
    from obstore import PutMode, UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

T = TypeVar("T")

_ATTEMPTS: Final = 3
_PART_BYTES: Final = 8 * 2**20
_MOST_PARTS: Final = 10_000
"""The most that S3 takes in one upload."""
_PARALLEL: Final = 8
_PROBE: Final = "_probe"


class ObjectStoreError(RuntimeError):
    """The object store could not be used; the message says which object and why."""


class UnavailableError(ObjectStoreError, TransientError):
    """Every attempt failed for a reason that may be transient."""


class DamagedError(ObjectStoreError, PermanentError):
    """An object's content is not what it must be; the message names the object."""


class CarelessStoreError(ObjectStoreError, PermanentError):
    """The store ignores the conditions of a conditional write."""


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

    @property
    def token(self) -> str:
        """A text that changes when the object is replaced."""
        return self.e_tag or f"{self.modified.timestamp()}.{self.size}"


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
                raise ObjectStoreError(f"{self.url} cannot be opened: {_said(error)}") from error
        return self._opened

    @property
    def identity(self) -> str:
        """A digest of the URL and the options."""
        text = json.dumps([self.url, self._options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def address(self, path: str) -> str:
        """An object's URL, for messages."""
        return f"{self.url.rstrip('/')}/{path}"

    def info(self, path: str) -> ObjectInfo | None:
        """Return what a listing says of an object, without a listing; None if there is none."""
        import obstore

        def head() -> ObjectInfo | None:
            with suppress(FileNotFoundError):
                return _info(obstore.head(self._store, path))
            return None

        return self._retrying(path, head)

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

    def read_range(self, path: str, begin: int, end: int) -> bytes:
        """Return an object's bytes from ``begin`` to before ``end``.

        Raises ``FileNotFoundError`` if there is no such object.
        """
        import obstore

        def get() -> bytes:
            try:
                return bytes(obstore.get_range(self._store, path, start=begin, end=end))
            except FileNotFoundError as error:
                raise self._missing(path) from error

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

    def check_conditions(self) -> None:
        """Raise :class:`CarelessStoreError` if the store writes whatever the condition is."""
        path = f"{_PROBE}/{uuid.uuid4().hex}"
        try:
            self.write_if(path, uuid.uuid4().bytes, None)
            self._must_refuse(path, None, "If-None-Match")
            got = self.read(path)
            outdated = got[1] if got else None
            self.write_if(path, uuid.uuid4().bytes, outdated)
            self._must_refuse(path, outdated, "If-Match")
        finally:
            with suppress(ObjectStoreError):  # a few bytes
                self.delete([path])

    def _must_refuse(self, path: str, version: Version | None, header: str) -> None:
        with suppress(ChangedError):
            self.write_if(path, uuid.uuid4().bytes, version)
            raise CarelessStoreError(
                f"{self.url} ignores {header}: of two machines that make the same partition, each "
                "would replace what the other has published. A lake needs a store that can write "
                "an object only if it is still the one that was read"
            )

    def upload(self, source: Path, path: str) -> None:
        """Copy a file to an object."""
        import obstore

        part = max(_PART_BYTES, -(-source.stat().st_size // _MOST_PARTS))
        self._retrying(
            path,
            lambda: obstore.put(self._store, path, source, chunk_size=part, max_concurrency=4),
        )

    def download(self, path: str, target: Path, sha256: str | None = None) -> None:
        """Copy an object to a file, whole or not at all.

        Raises ``FileNotFoundError`` if there is none, :class:`DamagedError` if its digest is not
        ``sha256``.
        """
        import obstore

        def get() -> None:
            with atomic_path(target) as beside:
                digest = hashlib.sha256()
                try:
                    got = obstore.get(self._store, path)
                except FileNotFoundError as error:
                    raise self._missing(path) from error
                with beside.open("wb") as file:
                    for chunk in got.stream(_PART_BYTES):
                        file.write(chunk)
                        digest.update(chunk)
                if sha256 and digest.hexdigest() != sha256:
                    raise DamagedError(
                        f"{self.address(path)} is damaged: its SHA-256 is not {sha256}"
                    )

        self._retrying(path, get)

    def _missing(self, path: str) -> FileNotFoundError:
        return FileNotFoundError(f"{self.address(path)} does not exist")

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, by 1,000 a request where the store can do that.

        One that does not exist counts as deleted.
        """
        import obstore

        paths = sorted(paths)

        def delete(path: str) -> None:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, path)

        if len(paths) > 1:
            # A store that deletes one by one stops at the first that does not exist.
            with suppress(FileNotFoundError):
                self._retrying(paths[0], lambda: obstore.delete(self._store, paths))
                return
        in_parallel(lambda path: self._retrying(path, lambda: delete(path)), paths)

    def listed(self, folder: str, *, deep: bool = True) -> list[ObjectInfo]:
        """Return the objects below a folder, or only those directly in it, sorted by path."""
        import obstore

        def items() -> list[Any]:
            if deep:
                return [item for chunk in obstore.list(self._store, folder) for item in chunk]
            return list(obstore.list_with_delimiter(self._store, folder)["objects"])

        return sorted(map(_info, self._retrying(folder, items)), key=lambda item: item.path)

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
                    raise ObjectStoreError(f"{self.address(path)}: {_said(error)}") from error
                if attempt == _ATTEMPTS:
                    if isinstance(error, ObjectStoreError):
                        raise
                    raise UnavailableError(f"{self.address(path)}: {_said(error)}") from error
                # To wait does not help against damage on the way.
                wait = 0.0 if isinstance(error, DamagedError) else 2.0**attempt
            time.sleep(wait)
            attempt += 1


def _said(error: BaseException) -> str:
    """What an error says, without the layers below it that obstore lists on further lines."""
    return str(error).partition("\n")[0]


def _info(item: Any) -> ObjectInfo:
    return ObjectInfo(item["path"], item["size"], item["e_tag"], item["last_modified"])


def in_parallel(
    call: Callable[[Any], T], items: Iterable[Any], at_once: int = _PARALLEL
) -> list[T]:
    """Call a function for each item, several at a time; return the results in order.

    The first error is raised when all calls have ended.
    """
    items = list(items)
    if len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(at_once, len(items))) as pool:
        return list(pool.map(call, items))
