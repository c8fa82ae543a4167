"""A folder that all partitions of an asset share, in an object store: one machine at a time.

It is published like a partition, under a pointer of its own. Whoever leases it fetches it, and
saves it before publishing the partition that it has a new entry for. A lease is not a lock in the
store: two machines may have one at once, and then only one of them can save.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final

from laion_assets.files import locked, sha256_file, write_json
from laion_assets.lake.cache import Cache
from laion_assets.lake.checkpoint import signature_of
from laion_assets.lake.index import while_replaced
from laion_assets.lake.object_store import ChangedError, ObjectStoreError, Version
from laion_assets.lake.partition import PartitionBusyError
from laion_assets.lake.pointer import (
    Pointer,
    StoredFile,
    discard,
    discard_abandoned,
    pointer_path,
    read_pointer,
)
from laion_assets.layout import SegmentKey

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.5


class SharedFolder:
    """The folder ``name`` of a lake, as this machine has fetched or saved it last."""

    def __init__(self, name: str, cache: Cache) -> None:
        self.path = cache.root / name
        self._name, self._cache, self._store = name, cache, cache.store
        self._pointer_path = pointer_path(name)
        self._pointer = Pointer()
        self._version: Version | None = None

    def alone(self) -> AbstractContextManager[None]:
        """Wait for this machine's other processes."""
        lock = self._cache.note(self._pointer_path, ".turn")
        return locked(lock, lambda: logger.info(f"waiting for another lease of {self.path}"))

    @property
    def is_new(self) -> bool:
        """Whether nothing has ever been saved."""
        return not self._pointer.id

    def fetch_settled(
        self,
        unsettled: Callable[[Path], SegmentKey | None],
        settle: Callable[[SegmentKey], None],
        timeout_s: float,
    ) -> None:
        """Fetch the folder once no other machine has a lease of it.

        ``unsettled`` is that of :meth:`laion_assets.lake.base.Lake.lease`. A lease whose folder
        has not been saved for ``timeout_s`` is taken for lost: ``settle`` must then make sure
        that the pending partition is published now or never.
        """
        since, seen = time.monotonic(), ""
        while True:
            while_replaced(self._fetch, self._store.address(self._pointer_path))
            key = None if self.is_new else unsettled(self.path)
            if key is None:
                return
            if self._pointer.nonce != seen:
                since, seen = time.monotonic(), self._pointer.nonce
            if not self._pointer.held or time.monotonic() - since > timeout_s:
                settle(key)
                logger.warning(
                    f"a lease of {self._name} ended without settling {key}: settled it now"
                )
                return
            time.sleep(_POLL_S)

    def _fetch(self) -> None:
        """Make the folder's files those of the store, whatever was done to them here."""
        self._pointer, self._version = read_pointer(self._store, self._name)
        noted = self._noted()
        self.path.mkdir(parents=True, exist_ok=True)
        for file in [file for file in self.path.iterdir() if file.name != ".lock"]:
            stored = self._pointer.files.get(file.name)
            if file.is_dir():
                shutil.rmtree(file)
            elif stored is None or noted.get(file.name) != [stored.object, *signature_of(file)]:
                file.unlink()
        self._cache.download(self._pointer.files, self.path)
        self._note()

    def save(self, *, held: bool = True) -> None:
        """Publish the folder's files as they are; ``held``: whether the lease goes on.

        Raises :class:`PartitionBusyError` if another machine has saved it meanwhile.
        """
        pointer = self._uploaded(held)
        content = pointer.to_bytes()
        try:
            self._store.write_if(self._pointer_path, content, self._version)
        except ChangedError as error:
            raise self._taken() from error
        got = self._store.read(self._pointer_path)
        if got is None or got[0] != content:
            raise self._taken()
        before, self._pointer, self._version = self._pointer, pointer, got[1]
        self._note()
        discard(self._store, before.objects() - pointer.objects())
        if not held:
            discard_abandoned(self._store, self._name, pointer)

    def _uploaded(self, held: bool) -> Pointer:
        noted, made = self._noted(), uuid.uuid4().hex
        files: dict[str, StoredFile] = {}
        for file in sorted(self.path.iterdir()):
            name = file.name
            if name.startswith(".") or file.is_dir():
                continue
            if name in self._pointer.files and noted.get(name, [])[1:] == signature_of(file):
                files[name] = self._pointer.files[name]
                continue
            path = f"{self._name}/{made}/{name}"
            self._store.upload(file, path)
            files[name] = StoredFile(path, file.stat().st_size, sha256_file(file))
        return Pointer(made, files, held=held)

    def _taken(self) -> PartitionBusyError:
        return PartitionBusyError(f"another machine has leased {self._name} meanwhile")

    def release(self) -> None:
        """Tell other machines, if that is possible, that they need not wait for this lease."""
        if self._pointer.held:
            content = self._pointer.released().to_bytes()
            with suppress(ObjectStoreError, PartitionBusyError):
                self._store.write_if(self._pointer_path, content, self._version)

    def _noted(self) -> dict[str, list[Any]]:
        """The object and signature of each file as it was fetched or saved last."""
        note = self._cache.note(self._pointer_path)
        return json.loads(note.read_text()) if note.exists() else {}

    def _note(self) -> None:
        write_json(
            self._cache.note(self._pointer_path),
            {
                name: [stored.object, *signature_of(self.path / name)]
                for name, stored in self._pointer.files.items()
            },
        )
