"""Published files of a lake in an object store, read in place by ranges.

``lake://store/<asset>/crawl=…/segment=…/<file>`` is a file of the lake, whichever object has its
content. DuckDB reads it through fsspec, and only the ranges that it asks for are transferred. They
are kept in the cache. What does not belong here: copies of whole files, which
:mod:`laion_assets.lake.cache` makes.
"""

from __future__ import annotations

import glob
import io
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from laion_assets.files import ReadAt, write_unsynced
from laion_assets.lake.cache import Cache
from laion_assets.lake.pointer import Pointer, StoredFile
from laion_assets.layout import SegmentKey, place_of

PROTOCOL: Final = "lake"
ROOT: Final = f"{PROTOCOL}://store"
"""Beginning of the paths: what follows is as in a lake's folder."""

_ALIGNED: Final = 32 * 2**10
"""Ranges begin and end at multiples of this: as many bytes take as long as few."""
_MANY: Final = 16
"""An asset of which more partitions are read has all its pointers read: that is a listing."""


class LakeFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The published files, each partition as it is when it is first looked at.

    To see a later state, make another. A partition that is replaced meanwhile loses its objects:
    reading it then raises ``FileNotFoundError``.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self._cache = cache
        self._seen: dict[str, Pointer] = {}
        self._looked_at: Counter[str] = Counter()
        self._lock = threading.Lock()

    def glob(self, path: str, **_: Any) -> list[str]:
        """The paths that match a pattern whose first folder, the asset, is without wildcards."""
        pattern = _relative(path)
        if not glob.has_magic(pattern):
            return [path] if self.exists(path) else []
        matches = re.compile(glob_translate(pattern)).match
        asset = pattern.partition("/")[0]
        found = (
            f"{place}/{name}"
            for place, pointer in self._all_of(asset).items()
            for name in pointer.files
        )
        return sorted(f"{ROOT}/{file}" for file in found if matches(file))

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self._find(path)
        except FileNotFoundError:
            return False
        return True

    isfile = exists

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": self.size(path), "type": "file"}

    def size(self, path: str) -> int:
        return self._find(path)[2].bytes

    def modified(self, path: str) -> datetime:
        """A time that differs where the content does: DuckDB keeps what it has read by it."""
        return datetime.fromtimestamp(int(self._find(path)[2].sha256[:7], 16), UTC)

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.RawIOBase:
        """Open a file for reading at any place. Raises ``FileNotFoundError``."""
        if mode != "rb":
            raise PermissionError(f"{path} can only be read")
        place, name, _stored = self._find(path)
        return _Stream(self.open_at(place, name))

    def open_at(self, place: str, name: str) -> ReadAt:
        """Open a place's file by its name. Raises ``FileNotFoundError``."""
        pointer = self._pointer(place)
        if name not in pointer.files:
            raise FileNotFoundError(f"{ROOT}/{place}/{name}")
        copy = self._cache.open_copy(place, pointer, name)
        return copy or Ranges(self._cache, pointer.files[name])

    def _find(self, path: str) -> tuple[str, str, StoredFile]:
        """Place, name and object of a file. Raises ``FileNotFoundError``."""
        file = _relative(path)
        for place in _places(file):
            name = file.removeprefix(f"{place}/")
            if stored := self._pointer(place).files.get(name):
                return place, name, stored
        raise FileNotFoundError(path)

    def _pointer(self, place: str) -> Pointer:
        asset = place.partition("/")[0]
        with self._lock:
            if place not in self._seen:
                self._looked_at[asset] += 1
                if self._looked_at[asset] == _MANY:
                    self._look_at_all(asset)
            if place not in self._seen:
                self._seen[place] = self._cache.index.read(place)[0]
            return self._seen[place]

    def _all_of(self, asset: str) -> dict[str, Pointer]:
        self._pointer(asset)
        with self._lock:
            self._look_at_all(asset)
            return {
                place: seen
                for place, seen in self._seen.items()
                if place == asset or place.startswith(f"{asset}/")
            }

    def _look_at_all(self, asset: str) -> None:
        for key, pointer in self._cache.index.pointers(asset).items():
            self._seen.setdefault(place_of(asset, key), pointer)


def _relative(path: str) -> str:
    return path.removeprefix(f"{PROTOCOL}://").removeprefix("store/")


def _places(file: str) -> Iterator[str]:
    """The places that may have published a file."""
    asset, *rest = file.split("/")
    if len(rest) > 2 and rest[0].startswith("crawl="):
        with suppress(ValueError):
            yield place_of(asset, SegmentKey.of_folder(Path(*rest[:2])))
    else:
        yield asset


class Ranges:
    """Ranges of one object, each kept in a file named by where it begins and ends.

    What is kept may be deleted at any time: it is transferred again.
    """

    def __init__(self, cache: Cache, stored: StoredFile) -> None:
        self._cache, self._stored = cache, stored
        self.name, self.size = cache.store.address(stored.object), stored.bytes
        self._folder = cache.ranges(stored.sha256)
        with suppress(FileNotFoundError):
            os.utime(self._folder)
        self._kept = set(_kept_in(self._folder))

    def read_at(self, offset: int, n: int) -> bytes:
        found = bytearray()
        at, end = offset, min(offset + n, self.size)
        while at < end:
            first, content = self._containing(at, end)
            found += content[at - first : end - first]
            at = offset + len(found)
        return bytes(found)

    def close(self) -> None:
        """Do nothing: nothing is held open."""

    def _containing(self, at: int, end: int) -> tuple[int, bytes]:
        """Where a range begins that has the byte ``at``, and its content."""
        for kept in [kept for kept in self._kept if kept[0] <= at < kept[1]]:
            with suppress(FileNotFoundError):
                content = self._path(*kept).read_bytes()
                if len(content) == kept[1] - kept[0]:
                    return kept[0], content
            self._kept.discard(kept)  # it was deleted, or cut when the machine stopped
        first = at - at % _ALIGNED
        last = min([end, *(kept[0] for kept in self._kept if kept[0] > at)])
        last = min(self.size, last + -last % _ALIGNED)
        try:
            content = self._cache.store.read_range(self._stored.object, first, last)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.name} is gone: its partition was replaced while it was read"
            ) from None  # DuckDB shows all of it
        write_unsynced(self._path(first, last), content)
        self._kept.add((first, last))
        self._cache.count(len(content))
        return first, content

    def _path(self, begin: int, end: int) -> Path:
        return self._folder / f"{begin}-{end}"


def _kept_in(folder: Path) -> Iterator[tuple[int, int]]:
    with suppress(FileNotFoundError):
        for name in os.listdir(folder):  # noqa: PTH208 - a third of the time
            if not name.startswith("."):
                begin, _, end = name.partition("-")
                yield int(begin), int(end)


class _Stream(io.RawIOBase):
    """A file as fsspec and DuckDB want it."""

    def __init__(self, file: ReadAt) -> None:
        self._file, self._at = file, 0

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = origin + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        content = self._file.read_at(self._at, self._file.size if size < 0 else size)
        self._at += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
