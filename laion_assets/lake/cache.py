"""This machine's copies of what an object store holds, in the lake's layout.

Beside the copies, ``.store`` notes what they are copies of, and ``.fetch`` has those that are not
complete yet. What does not belong here: publishing, which :mod:`laion_assets.lake.remote` does.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from laion_assets.files import LockedError, atomic_path, locked, replace_folder, write_json
from laion_assets.lake.base import LakeError, Manifest, unlocked
from laion_assets.lake.content import MANIFEST
from laion_assets.lake.index import Index, while_replaced
from laion_assets.lake.object_store import ObjectStore, in_parallel
from laion_assets.lake.pointer import (
    ABANDONED,
    INDEX,
    Pointer,
    StoredFile,
    place_of_pointer,
    pointer_path,
)

_CACHE_OF: Final = ".store-of"
"""File that makes a folder a cache; it has the store's URL."""
_NOTES: Final = ".store"
_FETCH: Final = ".fetch"
_IN_USE_S: Final = 3600.0
"""Copies that were used within this time are not evicted."""


class Cache:
    """The copies below ``root``; ``limit_bytes`` bounds those of partitions, None does not.

    Raises :class:`LakeError` if the folder holds anything else: copies of what the store does not
    have are deleted, and that must never be a lake.
    """

    def __init__(self, root: Path, store: ObjectStore, limit_bytes: float | None) -> None:
        self.root, self.store, self.limit_bytes = root, store, limit_bytes
        self.index = Index(store, root / _NOTES)
        self._claim()

    def _claim(self) -> None:
        marker, url = self.root / _CACHE_OF, self.store.url
        if marker.exists():
            claimed = marker.read_text(encoding="utf-8")
            if claimed != url:
                raise LakeError(f"{self.root} is the cache of {claimed}, not of {url}")
            return
        # Another process that is starting just now may have made what begins with a dot.
        found = self.root.iterdir() if self.root.exists() else ()
        if any(not path.name.startswith(".") for path in found):
            raise LakeError(f"{self.root} is not empty: it cannot become the cache of {url}")
        self.root.mkdir(parents=True, exist_ok=True)
        write_bytes(marker, url.encode())

    def note(self, name: str, suffix: str = ".json") -> Path:
        """File in which this machine notes what it has of the store's ``name``."""
        return self.root / _NOTES / f"{name}{suffix}"

    def locked(self, name: str, timeout_s: float = float("inf")) -> AbstractContextManager[None]:
        """Keep other processes of this machine from the copies of ``name``."""
        return locked(self.note(name, ".lock"), lambda: None, timeout_s)

    def remember(self, place: str, pointer: Pointer) -> None:
        """Note which publication a folder is a copy of."""
        total = sum(stored.bytes for stored in pointer.files.values())
        write_json(self.note(pointer_path(place)), {"id": pointer.id, "bytes": total})

    def forget(self, place: str) -> None:
        self.note(pointer_path(place)).unlink(missing_ok=True)

    # Partitions

    def fetch(self, place: str, names: str, pointer: Pointer | None = None) -> None:
        """Make a folder a copy of what is published now, with the files whose names match.

        ``pointer``: that of the place, if it has just been read. What the store does not have is
        deleted here.
        """
        read = [pointer] if pointer else []
        with self.locked(pointer_path(place)):
            while_replaced(
                lambda: self._fetch(place, names, read.pop() if read else self._pointer(place))
            )

    def _pointer(self, place: str) -> Pointer:
        return self.index.read(place)[0]

    def _fetch(self, place: str, names: str, pointer: Pointer) -> None:
        folder = self.root / place
        if pointer.manifest is None:
            self.forget(place)
            shutil.rmtree(folder, ignore_errors=True)
            return
        wanted = {name: file for name, file in pointer.files.items() if fnmatch(name, names)}
        note = self.note(pointer_path(place))
        if _id_in(note) == pointer.id and folder.exists():
            os.utime(note)
            self.download(wanted, folder)
            return
        with self.making_folder() as new:
            before = Manifest.read(folder).files if (folder / MANIFEST).exists() else ()
            unchanged = {(file["name"], file["sha256"]) for file in before}
            for name, stored in pointer.files.items():
                if (name, stored.sha256) in unchanged and (folder / name).exists():
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    (new / name).hardlink_to(folder / name)
            self.download(wanted, new)
            write_json(new / MANIFEST, pointer.record())
            replace_folder(new, folder)
        self.remember(place, pointer)

    @contextmanager
    def making_folder(self) -> Iterator[Path]:
        """A folder to fill and then rename; deleted if the block has left it."""
        folder = self.root / _FETCH / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def download(self, files: Mapping[str, StoredFile], folder: Path) -> None:
        """Download those files that the folder lacks. Raises ``FileNotFoundError``."""
        missing = {name: file for name, file in files.items() if not (folder / name).exists()}
        in_parallel(
            lambda item: self.store.download(item[1].object, folder / item[0], item[1].sha256),
            missing.items(),
        )

    # Plain files

    def mirror(self, folder: str) -> None:
        """Make a folder's own files those of the store: plain objects, one per file."""
        with self.locked(folder):
            while_replaced(lambda: self._mirror(folder))

    def _mirror(self, folder: str) -> None:
        note, here = self.note(folder, ".mirror"), self.root / folder
        copied: dict[str, Any] = json.loads(note.read_text()) if note.exists() else {}
        listed = ((Path(item.path).name, item) for item in self.store.listed(folder, deep=False))
        stored = {name: item for name, item in listed if not name.startswith(".")}
        for name in copied.keys() - stored.keys():
            # A list that is out of sight for a moment is still in force: it is asked for by name.
            if item := self.store.info(f"{folder}/{name}"):
                stored[name] = item
        for path in here.iterdir() if here.exists() else ():
            if path.is_file() and not path.name.startswith(".") and path.name not in stored:
                path.unlink()
        for name, item in stored.items():
            if not (here / name).exists() or copied.get(name) != item.token:
                self.store.download(item.path, here / name)
        write_json(note, {name: item.token for name, item in stored.items()})

    # Cleaning

    def evict(self) -> None:
        """Keep the copies of partitions within the limit: the least recently used go first."""
        for folder in unlocked((self.root / _FETCH).glob("*"), ABANDONED.total_seconds()):
            shutil.rmtree(folder)
        if not self.limit_bytes:
            return
        notes = [note for note in (self.root / _NOTES / INDEX).rglob("*.json") if _id_in(note)]
        notes.sort(key=lambda note: note.stat().st_mtime)
        sizes = {note: json.loads(note.read_text())["bytes"] for note in notes}
        total = sum(sizes.values())
        for note in notes:
            if total <= self.limit_bytes or time.time() - note.stat().st_mtime < _IN_USE_S:
                return
            index = str(note.relative_to(self.root / _NOTES)).removesuffix(".json")
            with suppress(LockedError), self.locked(index, timeout_s=0):
                note.unlink(missing_ok=True)
                shutil.rmtree(self.root / place_of_pointer(index), ignore_errors=True)
                total -= sizes[note]


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as beside:
        beside.write_bytes(content)


def _id_in(note: Path) -> str | None:
    return json.loads(note.read_text()).get("id") if note.exists() else None
