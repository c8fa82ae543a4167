"""Pointers: the small objects that say which objects are published under a name.

The objects of a publication lie under a prefix of its own or, where a file has not changed, under
that of an earlier one. Its pointer names them, and replacing the pointer is the one step that
publishes. Objects that no pointer names are garbage. What stands in the store may be damaged or
written by a stranger: names that lead out of a partition's folder or prefix are refused.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from laion_assets.lake.object_store import DamagedError, ObjectStore, ObjectStoreError, Version
from laion_assets.lake.partition import Manifest
from laion_assets.tables import UNITS

logger = logging.getLogger(__name__)

T = TypeVar("T")

INDEX: Final = "_index"
"""Prefix of all pointers."""
_STAGING: Final = "_staging"

FILES_WITHIN: Final = 32
"""A pointer lists at most so many files itself; longer lists are objects of their own."""

EMPTY_BYTES: Final = 256
"""A pointer of this size or more publishes something: one that publishes nothing is smaller."""

ABANDONED: Final = timedelta(days=7)
"""What nothing has named for so long belongs to a lost machine."""

_PART: Final = rf"(?:{re.escape(UNITS)}|[^/.\x00][^/\x00]*)"
Name = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})*$")]
"""A relative path of which no part begins with a dot, but for a stage's units."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a publication, and the object that has its content."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    object: Name
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else the manifest says of the file."""


@dataclass(frozen=True)
class Pointer:
    """What is published under a name: files and, for a partition, its manifest."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str = ""
    """The publication; empty if nothing is published here."""
    files: Mapping[Name, StoredFile] = field(default_factory=dict)
    files_at: StoredFile | None = None
    """The object that lists the files, where they are many."""
    manifest: Mapping[str, Any] | None = None
    """The partition's manifest without its files, of which :attr:`files` says the same."""
    held: bool = False
    """For a shared folder: whether the lease under which this was written goes on."""
    nonce: str = ""
    """Makes each written pointer a different object, even if it says the same."""

    def with_manifest(self, manifest: Manifest) -> Pointer:
        """The pointer to a partition of these files."""
        record = manifest.to_json()
        files = {
            item["name"]: replace(
                self.files[item["name"]],
                about={k: v for k, v in item.items() if k not in ("name", "bytes", "sha256")},
            )
            for item in record.pop("files")
        }
        return replace(self, files=files, manifest=record)

    def to_bytes(self) -> bytes:
        files = {} if self.files_at else self.files
        return _POINTER.dump_json(replace(self, files=files, nonce=uuid.uuid4().hex))

    def to_note(self) -> bytes:
        """What a machine keeps of a pointer that it has read, its files included."""
        return _POINTER.dump_json(self)

    def record(self) -> dict[str, Any]:
        """The manifest as it stands in the partition's folder."""
        files = [
            {"name": name, "bytes": stored.bytes, "sha256": stored.sha256, **stored.about}
            for name, stored in self.files.items()
        ]
        return {"files": files, **(self.manifest or {})}

    def stored(self) -> list[StoredFile]:
        return [*self.files.values(), *([self.files_at] if self.files_at else [])]

    def objects(self) -> set[str]:
        return {stored.object for stored in self.stored()}

    def released(self) -> Pointer:
        """The same publication, without a lease."""
        return replace(self, held=False)


_POINTER: Final = TypeAdapter(Pointer)
_FILES: Final = TypeAdapter(Mapping[Name, StoredFile])


def pointer_path(place: str) -> str:
    """Path of the pointer of a partition or shared folder."""
    return f"{INDEX}/{place}.json"


def place_of_pointer(path: str) -> str:
    """The inverse of :func:`pointer_path`."""
    return path.removeprefix(f"{INDEX}/").removesuffix(".json")


def checkpoint_path(place: str) -> str:
    """Path of the object that names the checkpoint of an unfinished partition."""
    return f"{_STAGING}/{place}.json"


def parse(kind: TypeAdapter[T], content: bytes, what: str) -> T:
    """Parse an object's JSON. Raises :class:`DamagedError` with ``what``, the object's address."""
    try:
        return kind.validate_json(content)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where = ".".join(map(str, found["loc"]))
        raise DamagedError(
            f"{what} is damaged: {where + ': ' if where else ''}{found['msg']}"
        ) from (error)


def refuse_foreign(stored: Iterable[StoredFile], place: str, what: str) -> None:
    """Raise :class:`DamagedError` unless the objects are below the prefix of a place.

    What a pointer names is deleted when it is replaced.
    """
    for file in stored:
        if not file.object.startswith(f"{place}/"):
            raise DamagedError(f"{what} is damaged: it names {file.object}, outside of {place}")


def read_pointer(store: ObjectStore, place: str) -> tuple[Pointer, Version | None]:
    """Read a place's pointer and its version: an empty pointer and None if it does not exist.

    Its files are not read if they are listed in an object of their own: see :func:`read_files`.
    """
    path = pointer_path(place)
    got = store.read(path)
    return (parse_pointer(got[0], place, store.address(path)), got[1]) if got else (Pointer(), None)


def parse_pointer(content: bytes, place: str, what: str) -> Pointer:
    """Parse the pointer of a place. Raises :class:`DamagedError`."""
    pointer = parse(_POINTER, content, what)
    refuse_foreign(pointer.stored(), place, what)
    if pointer.manifest is not None:
        try:
            Manifest.from_json(pointer.record())
        except ValueError as error:
            raise DamagedError(f"{what} is damaged: its manifest: {error}") from error
    return pointer


def read_files(store: ObjectStore, pointer: Pointer, place: str) -> Pointer:
    """Return the pointer with the files of its list. Raises ``FileNotFoundError``."""
    if pointer.files_at is None:
        return pointer
    path = pointer.files_at.object
    got = store.read(path)
    if got is None:
        raise FileNotFoundError(f"{store.address(path)} does not exist")
    files = parse(_FILES, got[0], store.address(path))
    refuse_foreign(files.values(), place, store.address(path))
    return replace(pointer, files=files)


def files_to_bytes(files: Mapping[str, StoredFile]) -> bytes:
    """The content of the object that lists files."""
    return _FILES.dump_json(files)


def not_written_since(
    store: ObjectStore, prefix: str, named: Mapping[str, Sequence[StoredFile]]
) -> list[StoredFile]:
    """Return the objects below a prefix that nobody has written or deleted since they were named.

    ``named``: the path of what names objects -> these. It was written after them, by the store's
    clock, which is read to the second. Where content changes without being written, a listing shows
    nothing. Such an object is found only by reading it.
    """
    if not any(named.values()):
        return []
    listed = {item.path: item for item in store.listed(prefix)}
    found: list[StoredFile] = []
    for path, objects in named.items():
        about = store.info(path) if objects else None
        if about:
            until = int(about.modified.timestamp())
            found += [
                stored
                for stored in objects
                if (item := listed.get(stored.object))
                and item.size == stored.bytes
                and int(item.modified.timestamp()) <= until
            ]
    return found


def discard(store: ObjectStore, objects: Iterable[str]) -> None:
    """Delete objects that nothing names any more; log a failure.

    Objects that could not be deleted cost space until they are found as abandoned.
    """
    try:
        store.delete(objects)
    except ObjectStoreError as error:
        logger.warning(f"unused objects could not be deleted: {error}")


def discard_abandoned(store: ObjectStore, prefix: str, pointer: Pointer) -> None:
    """Delete old objects below a place's prefix that its pointer does not name."""
    limit = datetime.now(UTC) - ABANDONED
    named = pointer.objects()
    try:
        found = store.listed(prefix)
    except ObjectStoreError as error:
        logger.warning(f"abandoned objects could not be listed: {error}")
    else:
        old = (item for item in found if item.modified < limit and item.path not in named)
        discard(store, [item.path for item in old])
