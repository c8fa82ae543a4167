"""The index of a lake in an object store: which partitions there are, and their pointers.

A listing gives the partitions and their versions, so that only pointers which have changed are
read, several at a time. This machine notes in a folder what it has read. What does not belong
here: what a pointer says, which :mod:`laion_assets.lake.pointer` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from laion_assets.files import write_unsynced
from laion_assets.lake.object_store import (
    DamagedError,
    ObjectInfo,
    ObjectStore,
    Version,
    in_parallel,
)
from laion_assets.lake.pointer import (
    EMPTY_BYTES,
    INDEX,
    Pointer,
    parse_pointer,
    place_of_pointer,
    pointer_path,
    read_files,
    read_pointer,
)
from laion_assets.layout import SegmentKey, place_of

T = TypeVar("T")

AT_ONCE: Final = 32
"""Small objects that are read at once: their latency is what takes time."""
_FEW: Final = 10
"""Segments that are asked for one by one: a listing of ten thousand takes as many requests."""


class Index:
    """The pointers in a store; ``notes`` is the folder of those that this machine has read."""

    def __init__(self, store: ObjectStore, notes: Path) -> None:
        self._store, self._notes = store, notes

    def read(self, place: str) -> tuple[Pointer, Version | None]:
        """Return a place's pointer with all its files, and its version.

        That is an empty pointer and None if there is none.
        """
        return while_replaced(lambda: self._read(place), self._store.address(pointer_path(place)))

    def _read(self, place: str) -> tuple[Pointer, Version | None]:
        pointer, version = read_pointer(self._store, place)
        if pointer.files_at is None:
            return pointer, version
        noted = self._noted(place)[1]
        if noted.files_at == pointer.files_at:
            return replace(pointer, files=noted.files), version
        whole = read_files(self._store, pointer, place)
        self._note(place, whole, version)
        return whole, version

    def read_all(self, places: Iterable[str]) -> dict[str, Pointer]:
        """Return the pointers of places, by place; an empty one where there is none."""
        places = list(places)
        read = in_parallel(lambda place: self.read(place)[0], places, at_once=AT_ONCE)
        return dict(zip(places, read, strict=True))

    def published(
        self, asset: str, keys: Iterable[SegmentKey] | None = None
    ) -> dict[SegmentKey, ObjectInfo]:
        """Return what the store says of the pointers of an asset's published segments.

        ``keys``: only of these. It takes a listing or, for few keys, a request for each; pointers
        small enough to be empty are read.
        """
        wanted = None if keys is None else set(keys)
        if wanted is not None and len(wanted) <= _FEW:
            paths = {key: pointer_path(place_of(asset, key)) for key in sorted(wanted)}
            found = in_parallel(self._store.info, paths.values(), at_once=AT_ONCE)
            listed = {key: item for key, item in zip(paths, found, strict=True) if item}
        else:
            listed = self._listed(asset)
            if wanted is not None:
                listed = {key: item for key, item in listed.items() if key in wanted}
        small = {key: item for key, item in listed.items() if item.size < EMPTY_BYTES}
        empty = {key for key, pointer in self._current(small).items() if pointer.manifest is None}
        return {key: item for key, item in listed.items() if key not in empty}

    def versions(
        self, asset: str, keys: Iterable[SegmentKey] | None = None
    ) -> dict[SegmentKey, str]:
        """Return a text for each published segment that changes when its pointer does."""
        return {key: item.token for key, item in self.published(asset, keys).items()}

    def pointers(self, asset: str) -> dict[SegmentKey, Pointer]:
        """Return the pointers of an asset's published segments, sorted by segment.

        Only those that have changed since this machine read them last are read.
        """
        current = self._current(self._listed(asset))
        return {key: found for key, found in sorted(current.items()) if found.manifest is not None}

    def _listed(self, asset: str) -> dict[SegmentKey, ObjectInfo]:
        found = {}
        for item in self._store.listed(f"{INDEX}/{asset}"):
            with suppress(ValueError):  # whatever else lies there is no pointer
                key = SegmentKey.of_folder(Path(place_of_pointer(item.path)))
                if pointer_path(place_of(asset, key)) == item.path:
                    found[key] = item
        return found

    def _current(self, listed: Mapping[SegmentKey, ObjectInfo]) -> dict[SegmentKey, Pointer]:
        """Return the pointers of a listing."""

        def current(item: ObjectInfo) -> Pointer:
            place = place_of_pointer(item.path)
            e_tag, noted = self._noted(place)
            if e_tag is not None and e_tag == item.e_tag:
                return noted
            pointer, version = self.read(place)
            self._note(place, pointer, version)
            return pointer

        found = in_parallel(current, listed.values(), at_once=AT_ONCE)
        return dict(zip(listed, found, strict=True))

    def _noted(self, place: str) -> tuple[str | None, Pointer]:
        """The entity tag and pointer that were noted last; None and an empty pointer if none."""
        note = self._path(place)
        with suppress(FileNotFoundError, DamagedError):  # an accident of this machine's
            e_tag, _, content = note.read_bytes().partition(b"\n")
            return e_tag.decode() or None, parse_pointer(content, place, str(note))
        return None, Pointer()

    def _note(self, place: str, pointer: Pointer, version: Version | None) -> None:
        # There may be many: what is lost is read from the store again.
        e_tag = (version.e_tag if version else None) or ""
        write_unsynced(self._path(place), e_tag.encode() + b"\n" + pointer.to_note())

    def _path(self, place: str) -> Path:
        return self._notes / f"{pointer_path(place)}.pointer"


def while_replaced(call: Callable[[], T], what: str) -> T:
    """Repeat a call that reads ``what``, such as a pointer, and finds that it names what is gone.

    Objects are deleted when their pointer is replaced, so that the next call finds a newer one.
    Raises :class:`DamagedError` if it does not.
    """
    for _ in range(10):
        with suppress(FileNotFoundError):
            return call()
    try:
        return call()
    except FileNotFoundError as error:
        raise DamagedError(f"{what} is damaged: {error}") from error
