"""What every lake is: partitions, their manifests, and how one is made and published.

A stage writes into a staging folder that outlives a killed process. When the same partition is
made again from the same inputs, code and configuration (the *fingerprint*), the stage finds its
finished parts there and continues; otherwise staging starts empty. Publishing writes
``_manifest.json`` and exchanges the staging folder with the partition's folder in one system call.

What does not belong here: where partitions are kept. :mod:`laion_assets.lake.local` keeps them in
a folder, :mod:`laion_assets.lake.remote` in an object store.
"""

from __future__ import annotations

import logging
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from laion_assets.files import LockedError, ReadAt, locked, replace_folder, write_json
from laion_assets.lake.content import (
    FINGERPRINT,
    MANIFEST,
    content_version,
    describe,
    digest,
    known_digests,
    prepare,
)
from laion_assets.lake.locks import lock_of, unlocked
from laion_assets.lake.partition import (
    Manifest,
    NotPublishedError,
    PartitionBusyError,
    Staging,
)
from laion_assets.lake.whole import DamagedFilesError, damaged_files
from laion_assets.layout import EVERY_HIVE, SegmentKey, place_of

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

T = TypeVar("T")
K = TypeVar("K")

STAGING: Final = ".staging"
"""Folder of the partitions in the making, as ``asset/crawl=…/segment=…`` or ``asset/all``."""

DAMAGED: Final = ".damaged"
"""Folder of what was set aside, by asset and partition."""

_WHOLE: Final = "all"
_WITHDRAWN: Final = "withdrawn"
"""Name, beside those, of a published partition that is being deleted."""


@dataclass(frozen=True)
class Lease:
    """Exclusive use of a folder that all partitions of an asset share."""

    folder: Path
    partitions: Path
    """The asset's folder: it has a subfolder :attr:`SegmentKey.hive` for each published
    partition, with files only where the lake has had a reason to fetch them."""
    save: Callable[[], None]
    """Publish the folder as it is now; to call before a partition that it has a new entry for
    is published."""


class Abandoned(NamedTuple):
    """A staging folder of ``asset`` that no process is working on."""

    asset: str
    folder: Path


class Stored(NamedTuple):
    """A version of a partition, to be read from where it is kept."""

    manifest: Manifest
    read: Callable[[str], Iterator[bytes]]
    """Yields the content of a file, by its name in the manifest; raises ``OSError``."""
    others: Collection[str]
    """Names of files that are there and not in the manifest."""


class Lake(ABC):
    """Published partitions of assets, each replaced as a whole or not at all.

    A partition is what an asset has for one segment, or for all of them (``key`` is None). Stages
    read and write plain files, so every path that a lake returns is on this machine.

    A lake does not assume

    * that a published file is on this machine before :meth:`folder`, :meth:`fetch` or
      :meth:`published` was called for it;
    * that a returned path stays valid: another process or machine may replace the partition at
      any moment, and callers that need one version compare :meth:`manifest` before and after;
    * that a path stays when the lake that returned it is gone: copies that nobody uses are deleted;
    * anything about assets' names and files, or about Dagster: versions and run ids are strings.
    """

    local_root: Path
    """Folder of this machine in which published partitions lie, as ``asset/crawl=…/segment=…``.

    It is the lake itself or, for a lake in an object store, the cache, which holds only what was
    fetched. It serves queries that name many partitions by one pattern, such as the catalog's
    views, after :meth:`fetch` for each; everything else uses :meth:`folder`.
    """

    def __init__(self, local_root: Path, busy_timeout_s: float) -> None:
        self.local_root = local_root
        self.busy_timeout_s = busy_timeout_s

    @abstractmethod
    def __str__(self) -> str:
        """The folder or URL, for messages."""

    # Reading

    @abstractmethod
    def has(self, asset: str, key: SegmentKey | None = None) -> bool:
        """Whether the partition is published."""

    @abstractmethod
    def manifest(self, asset: str, key: SegmentKey | None = None) -> Manifest:
        """Return a partition's manifest. Raises :class:`NotPublishedError`."""

    def manifests(
        self, asset: str, keys: Iterable[SegmentKey | None] | None = None
    ) -> dict[SegmentKey | None, Manifest]:
        """Return the manifests of an asset's partitions: those of ``keys``, or all.

        What is not published is left out. From a store they are read side by side, and those that
        this machine has read before are not read again if ``keys`` is None.
        """
        found = {}
        for key in self.versions(asset) if keys is None else keys:
            with suppress(NotPublishedError, FileNotFoundError):
                found[key] = self.manifest(asset, key)
        return found

    @abstractmethod
    def segments(self, asset: str) -> list[SegmentKey]:
        """Return the published segments of an asset, sorted."""

    def names(self, asset: str) -> list[tuple[str, str]]:
        """Return crawl and segment of an asset's partitions, published or not, in any order."""
        return [(key.crawl, key.segment) for key in self.versions(asset) if key]

    @abstractmethod
    def versions(
        self, asset: str, keys: Iterable[SegmentKey] | None = None
    ) -> dict[SegmentKey | None, str]:
        """Return a text for each of an asset's published partitions, or those of ``keys``, that
        changes when it is replaced.

        It costs a look at the folders, or a listing of the store, and no manifest.
        """

    @abstractmethod
    def published_at(self, asset: str) -> dict[SegmentKey | None, float]:
        """Return when each of an asset's partitions was published, in seconds of one clock, that of
        the machine or of the store; it costs what :meth:`versions` does."""

    @abstractmethod
    def assets(self, pattern: str) -> list[str]:
        """Return the names of the lake's assets that match a pattern, sorted."""

    @abstractmethod
    def fetch(
        self, asset: str, key: SegmentKey | None = None, names: str = "*", but: Collection[str] = ()
    ) -> None:
        """Make the partition's files whose names match, and match none of ``but``, available on
        this machine.

        If the partition is not published, what this machine still has of it is deleted.
        """

    def fetch_all(self, asset: str, names: str = "*") -> Path:
        """Fetch files of all of an asset's partitions, and return the asset's folder.

        Raises :class:`NotPublishedError` if the asset has no partition.
        """
        keys: Sequence[SegmentKey | None] = self.segments(asset)
        if not keys and self.has(asset):
            keys = [None]
        if not keys:
            raise self._not_published(asset, None)
        for key in keys:
            self.fetch(asset, key, names)
        return self._place(asset, None)

    def folder(self, asset: str, key: SegmentKey | None = None, names: str = "*") -> Path:
        """Return the partition's folder with the files whose names match fetched.

        The folder does not exist if the partition is not published.
        """
        self.fetch(asset, key, names)
        return self._place(asset, key)

    @abstractmethod
    def attach(self, connection: duckdb.DuckDBPyConnection) -> str:
        """Let a DuckDB connection read what is published; return the root of its paths.

        Below it a file has the path that it has in a lake's folder. From a store only the ranges
        that are read are transferred, each partition's as it is when the connection first looks at
        it. If it is replaced later, questions fail with a ``duckdb.Error``: ask a new connection.
        """

    @abstractmethod
    def opener(self) -> Callable[[str, SegmentKey | None, str], ReadAt]:
        """Return a function that opens a published file by asset, key and name.

        It sees each partition as it is when it opens the first file of it. From a store only what
        is read is transferred. The function raises ``FileNotFoundError``, and so does reading a
        file of a partition that is replaced meanwhile.
        """

    @abstractmethod
    def stored(self, asset: str, key: SegmentKey | None = None) -> Stored:
        """Return one version of a partition as the lake itself keeps it, copies here aside.

        Raises :class:`NotPublishedError`; ``ValueError`` if the manifest is damaged.
        """

    def map(self, call: Callable[[K], T], items: Iterable[K]) -> list[T]:
        """Call a function that reads the lake for each item, side by side where it may wait."""
        return list(map(call, items))

    def published(self, asset: str, key: SegmentKey | None = None) -> Path:
        """Return the folder of a partition. Raises :class:`NotPublishedError`."""
        if not self.has(asset, key):
            raise self._not_published(asset, key)
        return self.folder(asset, key)

    def damaged(
        self, asset: str, key: SegmentKey | None = None, names: str = "*", but: Collection[str] = ()
    ) -> dict[str, str]:
        """Compare a partition's files with its manifest; return file -> problem of those that are
        not as they were published.

        Compared are those whose names match ``names``, and none of ``but``. A copy of a store's
        object is first copied again. Raises :class:`NotPublishedError`.
        """
        if not self.has(asset, key):
            raise self._not_published(asset, key)
        self.fetch(asset, key, names, but)
        return damaged_files(self._place(asset, key), names, but)

    def whole(
        self, asset: str, key: SegmentKey | None = None, *, but: Collection[str] = ()
    ) -> Path:
        """Return the folder of a partition whose files are as they were published.

        ``but``: of :meth:`damaged`. Raises :class:`NotPublishedError` and
        :class:`DamagedFilesError`.
        """
        if damaged := self.damaged(asset, key, but=but):
            raise DamagedFilesError(f"{asset} of {key}" if key else asset, damaged)
        return self._place(asset, key)

    def _not_published(self, asset: str, key: SegmentKey | None) -> NotPublishedError:
        of_key = f" of {key}" if key else ""
        return NotPublishedError(f"{asset}{of_key} has not been materialized (it is not in {self})")

    # What partitions share

    @abstractmethod
    def current(self, *folders: str, deep: bool = False) -> Path:
        """Return :attr:`local_root`, with the files directly in these folders as they are now.

        With ``deep`` also those further below.

        Anything that people or other machines may change is read after a call of this: the
        removal lists, and files that :meth:`update` changes.
        """

    @abstractmethod
    def update(self, file: str, change: Callable[[Path], T]) -> T:
        """Change a file that partitions share, given by its path in the lake.

        ``change`` gets :attr:`local_root` and changes the file below it; its result is returned.
        It may be called again, on what another machine has made of the file meanwhile, and must
        then do no harm.
        """

    @abstractmethod
    def lease(
        self, folder: str, asset: str, unsettled: Callable[[Path], SegmentKey | None]
    ) -> AbstractContextManager[Lease]:
        """Lease a folder that all partitions of ``asset`` share, from all other machines.

        Processes of one machine must exclude each other by a lock of their own.
        ``unsettled(folder)`` returns the partition whose entry in the folder is pending, i.e.
        recorded but not yet known to be published; None if there is no such entry.
        """

    # Making

    @contextmanager
    def publish(
        self,
        asset: str,
        key: SegmentKey | None = None,
        *,
        inputs: Mapping[str, str],
        code_version: str,
        run_id: str = "",
        stage_judges_parts: bool = False,
    ) -> Iterator[Staging]:
        """Make one partition: yield its staging folder, publish it when the block ends well.

        ``inputs`` maps what the partition is made from to its data version. An exception leaves
        the published partition as it was, and the staging folder for a later resume. A run with
        other inputs or code starts with an empty folder, unless ``stage_judges_parts``: the stage
        then decides itself which parts are still good. Raises :class:`PartitionBusyError` if
        another process holds the partition for longer than ``busy_timeout_s``.
        """
        fingerprint = digest({"inputs": dict(inputs), "code_version": code_version})
        path = self._staging(asset, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            self._locked(path),
            self._making(asset, key, path, fingerprint, stage_judges_parts) as commit,
        ):
            started, clock = datetime.now(UTC), time.monotonic()
            staging = Staging(path, fingerprint, prepare(path, fingerprint, stage_judges_parts))
            if staging.resumed:
                logger.info(f"{asset}: continuing where an earlier run of this partition stopped")
            yield staging
            linked = [(folder, Manifest.read(folder).files) for folder in staging.linked_from]
            files = describe(path, known_digests(linked, staging.digests))
            staging.manifest = Manifest(
                asset=asset,
                crawl=key.crawl if key else None,
                segment=key.segment if key else None,
                run_id=run_id,
                code_version=code_version,
                fingerprint=fingerprint,
                data_version=staging.data_version or content_version(files, staging.not_content),
                started=started.isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - clock, 3),
                bytes=sum(item["bytes"] for item in files),
                files=files,
                counts=staging.counts,
                metadata=staging.metadata,
            ).sealed()
            write_json(path / MANIFEST, staging.manifest.to_json())
            commit(staging.manifest)
            self._replace(path, self._place(asset, key))

    def _replace(self, path: Path, place: Path) -> None:
        """Put a finished staging folder in the place of the published one."""
        replace_folder(path, place)
        (place / FINGERPRINT).unlink(missing_ok=True)

    @abstractmethod
    def _making(
        self,
        asset: str,
        key: SegmentKey | None,
        path: Path,
        fingerprint: str,
        stage_judges_parts: bool,
    ) -> AbstractContextManager[Callable[[Manifest], None]]:
        """Surround the making of a partition in its staging folder ``path``.

        Yields a function that :meth:`publish` calls with the finished manifest, right before it
        exchanges the folders. Whatever that function raises prevents the exchange.
        """

    def unfinished(self, asset: str, key: SegmentKey | None, name: str) -> bytes | None:
        """Return a file that an interrupted run left in a partition's staging folder.

        ``name`` is its name in that folder. None if there is no such file.
        """
        path = self._staging(asset, key) / name
        return path.read_bytes() if path.is_file() else None

    # Deleting

    def withdraw(self, asset: str) -> None:
        """Delete a published partition of all segments; do nothing if there is none.

        It is out of sight at once; what a killed call leaves of it is :meth:`abandoned`.
        """
        place, gone = self._place(asset, None), self.local_root / STAGING / asset / _WITHDRAWN
        with self._locked(gone):
            for folder in (gone, place):
                if folder.exists():
                    shutil.rmtree(folder.rename(gone))

    def set_aside(self, asset: str, key: SegmentKey | None, version: str) -> bool:
        """Take a published partition out of the lake, into a place of its own.

        Nothing of it is then taken over when the partition is made again. ``version``: the one
        that :meth:`versions` named; returns False, and does nothing, if it is another by now.
        """
        with self._locked(self._staging(asset, key)):
            keys = None if key is None else [key]
            if self.versions(asset, keys).get(key) != version:
                return False
            return self._set_aside(asset, key)

    @abstractmethod
    def _set_aside(self, asset: str, key: SegmentKey | None) -> bool:
        """As :meth:`set_aside`, for a partition of that version and under its lock."""

    def abandoned(self, idle_s: float = 0.0) -> Iterator[Abandoned]:
        """Yield the staging folders on this machine that no process is working on.

        Killed runs leave them, for a later resume. Each is locked until the next one is asked
        for, and may be deleted. Those changed within the last ``idle_s`` seconds are skipped.
        """
        staging = self.local_root / STAGING
        places = (EVERY_HIVE, _WHOLE, _WITHDRAWN)
        folders = (folder for place in places for folder in staging.glob(f"*/{place}"))
        for folder in unlocked(folders, idle_s):
            yield Abandoned(folder.relative_to(staging).parts[0], folder)

    # Places

    def _place(self, asset: str, key: SegmentKey | None) -> Path:
        return self.local_root / place_of(asset, key)

    def _staging(self, asset: str, key: SegmentKey | None) -> Path:
        return self.local_root / STAGING / asset / (key.hive if key else _WHOLE)

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold a staging folder's lock, from before there is a folder."""

        def waiting() -> None:
            logger.info(f"another process works in {folder}: waiting for it")

        try:
            with locked(lock_of(folder), waiting, self.busy_timeout_s):
                yield
        except LockedError as error:
            raise PartitionBusyError(f"{error}, for over {self.busy_timeout_s:.0f} s") from error
