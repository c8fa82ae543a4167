"""This machine's copies of what an object store holds, in the lake's layout.

Beside the copies, ``.store`` notes what they are copies of, and ``.fetch`` has those that are not
complete yet. What does not belong here: publishing, which :mod:`laion_assets.lake.remote` does.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO

from laion_assets.files import (
    LocalFile,
    LockedError,
    atomic_path,
    locked,
    replace_folder,
    write_json,
    write_unsynced,
)
from laion_assets.lake.content import MANIFEST, is_wanted
from laion_assets.lake.index import Index, while_replaced
from laion_assets.lake.locks import unlocked
from laion_assets.lake.object_store import ObjectStore, in_parallel
from laion_assets.lake.partition import LakeError, Manifest
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
_RANGES: Final = "ranges"
_LOOK_AFTER: Final = 0.05
"""Share of the limit after whose download a process looks at the cache's size at once."""
_LOOK_EVERY_S: Final = 60.0
"""Otherwise the machine's processes do so as often: it takes 0.1 ms for each copied partition."""


class Cache:
    """The copies below ``root``; ``limit_bytes`` bounds those of partitions, None does not.

    Raises :class:`LakeError` if the folder holds anything else: copies of what the store does not
    have are deleted, and that must never be a lake.
    """

    def __init__(self, root: Path, store: ObjectStore, limit_bytes: float | None) -> None:
        self.root, self.store, self.limit_bytes = root, store, limit_bytes
        self.index = Index(store, root / _NOTES)
        self._uses = Uses(root / _NOTES / "uses")
        self._downloaded, self._evicting = 0, threading.Lock()
        self._looked = root / _NOTES / "looked"
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
        """Note which publication a folder is a copy of, and the size of what it has of it."""
        here = self.root / place
        total = sum(file.bytes for name, file in pointer.files.items() if (here / name).exists())
        write_json(self.note(pointer_path(place)), {"id": pointer.id, "bytes": total})

    def forget(self, place: str) -> None:
        self.note(pointer_path(place)).unlink(missing_ok=True)

    # Partitions

    def fetch(
        self, place: str, names: str, pointer: Pointer | None = None, but: Collection[str] = ()
    ) -> None:
        """Make a folder a copy of what is published now, with the files whose names match.

        ``but``: patterns of names of files that are not copied. ``pointer``: that of the place, if
        it has just been read. What the store does not have is deleted here.
        """
        read = [pointer] if pointer else []
        with self.locked(pointer_path(place)):
            # Before the note is touched, which tells an eviction that it has looked too early.
            self._uses.note(place)
            while_replaced(
                lambda: self._fetch(
                    place, names, but, read.pop() if read else self._pointer(place)
                ),
                self.store.address(pointer_path(place)),
            )
        self.count()

    def _pointer(self, place: str) -> Pointer:
        return self.index.read(place)[0]

    def _fetch(self, place: str, names: str, but: Collection[str], pointer: Pointer) -> None:
        folder = self.root / place
        if pointer.manifest is None:
            self.forget(place)
            shutil.rmtree(folder, ignore_errors=True)
            return
        files = pointer.files.items()
        wanted = {name: file for name, file in files if is_wanted(name, names, but)}
        note = self.note(pointer_path(place))
        if _id_in(note) == pointer.id and folder.exists():
            os.utime(note)
            if self.download(wanted, folder):
                self.remember(place, pointer)
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
            self.forget(place)
            replace_folder(new, folder)
        self.remember(place, pointer)

    def drop(self, place: str, names: Iterable[str]) -> None:
        """Delete copies of a partition's files; they are copied again when they are next needed."""
        with self.locked(pointer_path(place)):
            for name in names:
                (self.root / place / name).unlink(missing_ok=True)

    def open_copy(self, place: str, pointer: Pointer, name: str) -> LocalFile | None:
        """Open a file if this machine has it as the pointer names it; None if it does not."""
        with suppress(FileNotFoundError):
            file = LocalFile(self.root / place / name)
            # A folder's note is deleted before it is replaced, so what was opened is what it says.
            if _id_in(self.note(pointer_path(place))) == pointer.id:
                return file
            file.close()
        return None

    def ranges(self, sha256: str) -> Path:
        """Folder of the ranges of an object, by its content."""
        return self.root / _NOTES / _RANGES / sha256

    @contextmanager
    def making_folder(self) -> Iterator[Path]:
        """A folder to fill and then rename; deleted if the block has left it."""
        folder = self.root / _FETCH / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def download(self, files: Mapping[str, StoredFile], folder: Path) -> int:
        """Download those files that the folder lacks, and return how many bytes these were.

        Raises ``FileNotFoundError``.
        """
        missing = {name: file for name, file in files.items() if not (folder / name).exists()}
        in_parallel(
            lambda item: self.store.download(item[1].object, folder / item[0], item[1].sha256),
            missing.items(),
        )
        total = sum(file.bytes for file in missing.values())
        self._downloaded += total
        return total

    def count(self, downloaded: int = 0) -> None:
        """Note what was downloaded; look at the cache's size now and then."""
        self._downloaded += downloaded
        many = self.limit_bytes and self._downloaded > _LOOK_AFTER * self.limit_bytes
        if many or _age(self._looked) > _LOOK_EVERY_S:
            self.evict()

    # Plain files

    def mirror(self, folder: str, deep: bool = False) -> None:
        """Make the files in a folder, or also below it, those of the store: plain objects."""
        with self.locked(folder):
            while_replaced(lambda: self._mirror(folder, deep), self.store.address(folder))

    def _mirror(self, folder: str, deep: bool) -> None:
        note, here = self.note(folder, ".tree" if deep else ".mirror"), self.root / folder
        copied: dict[str, Any] = json.loads(note.read_text()) if note.exists() else {}
        stored = {
            name: item
            for item in self.store.listed(folder, deep=deep)
            if not _is_hidden(name := item.path.removeprefix(f"{folder}/"))
        }
        for name in copied.keys() - stored.keys():
            # A list that is out of sight for a moment is still in force: it is asked for by name.
            if item := self.store.info(f"{folder}/{name}"):
                stored[name] = item
        for path in here.rglob("*") if deep else here.glob("*"):
            name = path.relative_to(here).as_posix()
            if path.is_file() and not _is_hidden(name) and name not in stored:
                path.unlink()
        changed = [
            (item.path, here / name)
            for name, item in stored.items()
            if not (here / name).exists() or copied.get(name) != item.token
        ]
        in_parallel(lambda paths: self.store.download(*paths), changed)
        write_json(note, {name: item.token for name, item in stored.items()})

    # Cleaning

    def evict(self) -> None:
        """Keep the copies of partitions within the limit: the least recently used go first.

        What a living lake of any process on this machine has fetched stays.
        """
        if not self._evicting.acquire(blocking=False):
            return
        try:
            self._downloaded = 0
            write_unsynced(self._looked, b"")
            for folder in unlocked((self.root / _FETCH).glob("*"), ABANDONED.total_seconds()):
                shutil.rmtree(folder)
            if self.limit_bytes:
                self._evict(self.limit_bytes)
        finally:
            self._evicting.release()

    def _evict(self, limit_bytes: float) -> None:
        kept = sorted([*self._copies(), *self._ranges()])
        # Read after the notes: a use that is not among these has touched its note since.
        in_use, total = self._uses.all(), sum(size for _, size, _ in kept)
        for used, size, path in kept:
            if total <= limit_bytes:
                return
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                total -= size
                continue
            place = place_of_pointer(str(path.relative_to(self.root / _NOTES).with_suffix("")))
            if place in in_use:
                continue
            with suppress(LockedError, FileNotFoundError), self.locked(pointer_path(place), 0):
                if path.stat().st_mtime_ns == used:
                    path.unlink()
                    shutil.rmtree(self.root / place, ignore_errors=True)
                    total -= size

    def _copies(self) -> Iterator[tuple[int, int, Path]]:
        """Time of the last use, size and note of each copied partition."""
        for note in (self.root / _NOTES / INDEX).rglob("*.json"):
            with suppress(FileNotFoundError):
                about = json.loads(note.read_text())
                if about.get("id"):
                    yield note.stat().st_mtime_ns, about["bytes"], note

    def _ranges(self) -> Iterator[tuple[int, int, Path]]:
        """Time of the last use, size and folder of the ranges of each object."""
        for folder in (self.root / _NOTES / _RANGES).glob("*"):
            with suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in folder.iterdir())
                yield folder.stat().st_mtime_ns, size, folder


class Uses:
    """The places that somebody on this machine uses; ``folder`` has a file of them per lake.

    The file is locked as long as the lake that has fetched them lives, so that a killed process
    uses nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._noted = folder, set[str]()
        self._file: TextIO | None = None
        self._lock = threading.Lock()

    def note(self, place: str) -> None:
        with self._lock:
            if place not in self._noted:
                self._file = self._file or self._opened()
                self._file.write(f"{place}\n")
                self._file.flush()
                self._noted.add(place)

    def _opened(self) -> TextIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        path = self._folder / f".{name}"
        file = path.open("a", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Found only now that it is locked.
        path.rename(self._folder / name)
        weakref.finalize(self, file.close)
        return file

    def all(self) -> set[str]:
        """The places in use, by any process; files of dead ones are deleted."""
        found = set()
        for path in self._folder.glob("[!.]*"):
            with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.update(file.read().splitlines())
                else:
                    path.unlink()
        return found


def _age(path: Path) -> float:
    """Seconds since a file was written; infinite if there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as beside:
        beside.write_bytes(content)


def _id_in(note: Path) -> str | None:
    return json.loads(note.read_text()).get("id") if note.exists() else None
