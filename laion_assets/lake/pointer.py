"""Pointers: the small objects that say which objects are published under a name.

The objects of a publication lie under a prefix that is used once. Its pointer names them, and
replacing the pointer is the one step that publishes. Objects that no pointer names are garbage.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from laion_assets.lake.object_store import ObjectStore, ObjectStoreError, Version

logger = logging.getLogger(__name__)

INDEX: Final = "_index"
"""Prefix of all pointers."""
_STAGING: Final = "_staging"

ABANDONED: Final = timedelta(days=7)
"""What nothing has named for so long belongs to a lost machine."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a publication, and the object that has its content."""

    object: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Pointer:
    """What is published under a name: files and, for a partition, its manifest."""

    id: str = ""
    """The publication; empty if nothing is published here."""
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    held: bool = False
    """For a shared folder: whether the lease under which this was written goes on."""
    nonce: str = ""
    """Makes each written pointer a different object, even if it says the same."""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self) | {"nonce": uuid.uuid4().hex}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Pointer:
        value = json.loads(content)
        files = {name: StoredFile(**stored) for name, stored in value["files"].items()}
        return cls(**{**value, "files": files})

    def objects(self) -> set[str]:
        return {stored.object for stored in self.files.values()}

    def released(self) -> Pointer:
        """The same publication, without a lease."""
        return replace(self, held=False)


def pointer_path(place: str) -> str:
    """Path of the pointer of a partition or shared folder."""
    return f"{INDEX}/{place}.json"


def place_of_pointer(path: str) -> str:
    """The inverse of :func:`pointer_path`."""
    return path.removeprefix(f"{INDEX}/").removesuffix(".json")


def checkpoint_path(place: str) -> str:
    """Path of the object that names the checkpoint of an unfinished partition."""
    return f"{_STAGING}/{place}.json"


def read_pointer(store: ObjectStore, path: str) -> tuple[Pointer, Version | None]:
    """Read a pointer and its version: an empty pointer and None if it does not exist."""
    got = store.read(path)
    return (Pointer.from_bytes(got[0]), got[1]) if got else (Pointer(), None)


def discard(store: ObjectStore, objects: Iterable[str]) -> None:
    """Delete objects that nothing names any more; log a failure.

    Objects that could not be deleted cost space until they are found as abandoned.
    """
    try:
        store.delete(objects)
    except ObjectStoreError as error:
        logger.warning(f"unused objects could not be deleted: {error}")


def discard_abandoned(store: ObjectStore, prefix: str, pointer: Pointer) -> None:
    """Delete old objects below a publication's prefix that its pointer does not name."""
    limit = datetime.now(UTC) - ABANDONED
    named = pointer.objects()
    try:
        found = store.listed(prefix)
    except ObjectStoreError as error:
        logger.warning(f"abandoned objects could not be listed: {error}")
    else:
        old = (item for item in found if item.modified < limit and item.path not in named)
        discard(store, [item.path for item in old])
