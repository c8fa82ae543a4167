"""A lake in a folder of this machine, or one that is mounted there."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from typing_extensions import override

from laion_assets.files import LocalFile, ReadAt, exchanges
from laion_assets.lake.base import DAMAGED, STAGING, Lake, Lease, Stored
from laion_assets.lake.content import MANIFEST
from laion_assets.lake.links import LinkedPartition
from laion_assets.lake.options import LakeOptions
from laion_assets.lake.partition import LakeError, Manifest
from laion_assets.lake.whole import chunks
from laion_assets.layout import SegmentKey, place_of

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")


def is_remote(root: str) -> bool:
    """Whether a lake's root is the URL of an object store."""
    return "://" in root and not root.startswith("file://")


class LocalLake(Lake):
    """The partitions below one folder. Everything published is always available.

    Raises :class:`LakeError` if the options name an object store.
    """

    def __init__(
        self, options: LakeOptions, exchange: Callable[[Path, Path], bool] = exchanges
    ) -> None:
        if is_remote(options.root):
            raise LakeError(
                f"the lake {options.root} is in an object store, and this works on a folder only: "
                "copy what it reads by `laion-assets fetch ASSET ...`, and name the cache folder "
                "as `root` in the [lake] of a settings file given by --config"
            )
        root = Path(options.root.removeprefix("file://")).absolute()
        super().__init__(root, options.busy_timeout_s)
        self._exchange = exchange

    @classmethod
    def at(cls, folder: Path) -> LocalLake:
        """The lake in a folder, with the other options as they are by default."""
        return cls(LakeOptions(root=str(folder)))

    @property
    def root(self) -> Path:
        """The lake's folder."""
        return self.local_root

    @override
    def __str__(self) -> str:
        return str(self.root)

    @override
    def has(self, asset: str, key: SegmentKey | None = None) -> bool:
        return (self._place(asset, key) / MANIFEST).exists()

    @override
    def manifest(self, asset: str, key: SegmentKey | None = None) -> Manifest:
        return Manifest.read(self.published(asset, key))

    @override
    def segments(self, asset: str) -> list[SegmentKey]:
        return sorted(key for key in self.versions(asset) if key)

    @override
    def names(self, asset: str) -> list[tuple[str, str]]:
        # Without a look at each: a millisecond for a thousand segments.
        return [
            (crawl.name.removeprefix("crawl="), segment.name.removeprefix("segment="))
            for crawl in _entries(self.root / asset, "crawl=")
            for segment in _entries(crawl.path, "segment=")
        ]

    @override
    def versions(
        self, asset: str, keys: Iterable[SegmentKey] | None = None
    ) -> dict[SegmentKey | None, str]:
        if keys is None:
            return {key: _version(about) for key, about in self._manifests(asset)}
        found = {key: self.version(asset, key) for key in keys}
        return {key: version for key, version in found.items() if version is not None}

    @override
    def published_at(self, asset: str) -> dict[SegmentKey | None, float]:
        return {key: about.st_mtime for key, about in self._manifests(asset)}

    def version(self, asset: str, key: SegmentKey | None = None) -> str | None:
        """What :meth:`versions` says of one partition; None if it is not published."""
        try:
            path = f"{self.root}/{place_of(asset, key)}/{MANIFEST}"
            return _version(os.stat(path))  # noqa: PTH116 - a Path costs more than the look
        except FileNotFoundError:
            return None

    def _manifests(self, asset: str) -> Iterator[tuple[SegmentKey | None, os.stat_result]]:
        """The published partitions of an asset, and what the file system says of their manifests.

        Paths are relative to a crawl's folder: the way there would cost as much as the look.
        """
        with suppress(FileNotFoundError):
            yield None, (self.root / asset / MANIFEST).stat()
        for crawl in _entries(self.root / asset, "crawl="):
            with suppress(FileNotFoundError), _opened(crawl.path) as folder:
                for segment in _entries(folder, "segment="):
                    try:
                        about = os.stat(f"{segment.name}/{MANIFEST}", dir_fd=folder)
                    except FileNotFoundError:
                        continue
                    yield _key(crawl.name, segment.name), about

    @override
    def assets(self, pattern: str) -> list[str]:
        folders = (path for path in self.root.glob(pattern) if path.is_dir())
        return sorted(path.name for path in folders if not path.name.startswith("."))

    @override
    def fetch(
        self, asset: str, key: SegmentKey | None = None, names: str = "*", but: Collection[str] = ()
    ) -> None:
        """Do nothing: everything published is in the folder."""

    @override
    def attach(self, connection: duckdb.DuckDBPyConnection) -> str:
        return str(self.root)

    @override
    def opener(self) -> Callable[[str, SegmentKey | None, str], ReadAt]:
        return lambda asset, key, name: LocalFile(f"{self.root}/{place_of(asset, key)}/{name}")

    @override
    def stored(self, asset: str, key: SegmentKey | None = None) -> Stored:
        folder, manifest = self._place(asset, key), self.manifest(asset, key)
        named = {MANIFEST, *(item["name"] for item in manifest.files)}
        found = (str(path.relative_to(folder)) for path in _files(folder))
        return Stored(manifest, lambda name: chunks(folder / name), set(found) - named)

    @override
    def current(self, *folders: str, deep: bool = False) -> Path:
        return self.root

    @override
    def update(self, file: str, change: Callable[[Path], T]) -> T:
        return change(self.root)

    @override
    @contextmanager
    def lease(
        self, folder: str, asset: str, unsettled: Callable[[Path], SegmentKey | None]
    ) -> Iterator[Lease]:
        # Every process sees the folder as it is: there is nothing to fetch, settle or save.
        yield Lease(self.root / folder, self.root / asset, lambda: None)

    @override
    @contextmanager
    def _making(
        self,
        asset: str,
        key: SegmentKey | None,
        path: Path,
        fingerprint: str,
        stage_judges_parts: bool,
    ) -> Iterator[Callable[[Manifest], None]]:
        if not self._exchanges:
            LinkedPartition(self.root, self._place(asset, key)).settle(path)
        # The exchange of the folders, or of the link to them, is the publication.
        yield lambda _: None

    @override
    def _replace(self, path: Path, place: Path) -> None:
        linked = LinkedPartition(self.root, place)
        if self._exchanges:
            super()._replace(path, place)
            linked.forget()
        else:
            linked.publish(path)

    @override
    def withdraw(self, asset: str) -> None:
        super().withdraw(asset)
        LinkedPartition(self.root, self._place(asset, None)).forget()

    @override
    def _set_aside(self, asset: str, key: SegmentKey | None) -> bool:
        place = self._place(asset, key)
        aside = self.root / DAMAGED / place_of(asset, key) / uuid.uuid4().hex
        aside.parent.mkdir(parents=True, exist_ok=True)
        linked = LinkedPartition(self.root, place)
        if version := linked.current():
            version.rename(aside)
            shutil.rmtree(place)
            linked.forget()
        else:
            place.rename(aside)
        return True

    @cached_property
    def _exchanges(self) -> bool:
        """Whether the lake's file system can exchange two folders; asked before the first work.

        Raises :class:`LakeError` if it cannot, and has no symbolic links either.
        """
        trial = self.root / STAGING / f".trial-{uuid.uuid4().hex}"
        try:
            for name in ("first", "second"):
                (trial / name).mkdir(parents=True)
            if self._exchange(trial / "first", trial / "second"):
                return True
            (trial / "link").symlink_to("first")
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise LakeError(
                f"the lake {self} is on a file system that can neither exchange two folders nor "
                "make a symbolic link, so that no partition could be replaced as a whole: put it "
                "on another one or into an object store, or mount it with symbolic links (CIFS: "
                "mfsymlinks)"
            ) from error
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        return False


@lru_cache(maxsize=1 << 16)
def _key(crawl: str, segment: str) -> SegmentKey:
    """The key that these folders name; assets have the same segments."""
    return SegmentKey(crawl.removeprefix("crawl="), segment.removeprefix("segment="))


def _version(about: os.stat_result) -> str:
    # A file system may use an inode again.
    return f"{about.st_ino:x}.{about.st_mtime_ns:x}"


def _files(folder: Path) -> Iterator[Path]:
    # A killed run leaves its fingerprint, and editors what they make.
    return (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


@contextmanager
def _opened(folder: str) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _entries(folder: Path | str | int, prefix: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name.startswith(prefix)]
    except (FileNotFoundError, NotADirectoryError):  # it has just been removed, or is no partition
        return []
