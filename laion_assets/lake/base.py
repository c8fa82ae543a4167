"""The lake: one folder per asset and segment, replaced as a whole or not at all.

A stage writes into a staging folder that outlives a killed process. When the same partition is
made again with the same inputs, code and configuration (the *fingerprint*), the stage finds its
finished parts there and goes on; otherwise staging starts empty. Publishing writes
``_manifest.json`` and exchanges the staging folder with the partition's folder in one system call.

This one is a local or mounted folder; :mod:`laion_assets.lake.remote` is in an object store.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import Field

from laion_assets.errors import TransientError
from laion_assets.files import (
    LockedError,
    fsync_file,
    locked,
    replace_folder,
    sha256_file,
    write_json,
)
from laion_assets.funnel import StageCounts
from laion_assets.options import Options
from laion_assets.segments import SegmentKey

logger = logging.getLogger(__name__)

MANIFEST: Final = "_manifest.json"
FINGERPRINT: Final = ".fingerprint.json"
"""In a staging folder: the fingerprint of what it is made of."""


T = TypeVar("T")


class LakeError(RuntimeError):
    """The lake cannot do what was asked; the message says what and why."""


class NotPublishedError(LakeError):
    """A partition that is needed has not been materialized."""


class PartitionBusyError(LakeError, TransientError):
    """Another process is making the same partition."""


class LakeOptions(Options):
    """Where the lake is."""

    root: str = Field(
        "lake",
        description="Folder of all artifacts, relative to where you start; or s3://bucket/prefix",
    )
    cache: str = Field(
        "lake-cache", description="Of a lake in an object store: this machine's folder for its work"
    )
    cache_gb: float | None = Field(
        None, gt=0, description="What is kept there of what was read; null keeps all"
    )
    storage_options: dict[str, str] = Field(
        default_factory=dict, description="Of the object store, such as endpoint and region"
    )
    attempts: int = Field(8, ge=1, le=20, description="Tries for each request to the object store")
    checkpoint_s: float = Field(
        60.0, gt=0, description="Seconds between two copies of a partition in the making there"
    )
    busy_timeout_s: float = Field(
        120.0, gt=0, description="How long to wait for another process that makes a partition"
    )


@dataclass(frozen=True)
class Manifest:
    """What a published partition says of itself."""

    asset: str
    crawl: str | None
    segment: str | None
    run_id: str
    code_version: str
    fingerprint: str
    data_version: str
    started: str
    seconds: float
    bytes: int
    files: Sequence[Mapping[str, Any]]
    counts: Sequence[StageCounts]
    metadata: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        value = dict(self.__dict__)
        value["counts"] = [counts.to_json() for counts in self.counts]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        counts = [StageCounts.from_json(counts) for counts in value["counts"]]
        return cls(**{**value, "counts": counts})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        return cls.from_json(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))

    def stage(self, name: str) -> StageCounts:
        for counts in self.counts:
            if counts.stage == name:
                return counts
        raise KeyError(f"{self.asset} counted no stage {name!r}")


@dataclass
class Staging:
    """A partition in the making. The stage fills ``path``; the asset sets counts and metadata."""

    path: Path
    fingerprint: str
    resumed: bool
    counts: list[StageCounts] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    not_content: tuple[str, ...] = ()
    """Patterns of file names that say how a run went and not what it made: times, run ids. They
    are published, but two partitions that differ in them alone have the same data version."""
    linked_from: list[Path] = field(default_factory=list)
    """Published folders that files may be hard links into: their digests are known."""
    data_version: str | None = None
    """Instead of a digest of the files, where equal content has no equal bytes."""
    manifest: Manifest | None = None
    """Set when the partition has been published."""

    @property
    def published(self) -> Manifest:
        if self.manifest is None:
            raise LakeError(f"{self.path} has not been published")
        return self.manifest


@dataclass(frozen=True)
class Turn:
    """Sole use of a folder that all partitions of an asset share."""

    folder: Path
    partitions: Path
    """Of the asset, hive style: a partition is there if it has been published."""
    save: Callable[[], None]
    """Has what the folder says now known, before the partition is published that it speaks of."""


class Lake:
    """The folder of all assets. Reads see published partitions only."""

    def __init__(self, options: LakeOptions) -> None:
        text = options.root
        if "://" in text and not text.startswith("file://"):
            raise LakeError(
                f"the lake {text!r} is in an object store, and this needs a folder: copy what it "
                "reads to the cache by `laion-assets fetch ASSET …`, and name that"
            )
        self.root = Path(text.removeprefix("file://")).absolute()
        self.busy_timeout_s = options.busy_timeout_s

    def folder(self, asset: str, key: SegmentKey | None = None, names: str = "*") -> Path:
        """Where the partition is, or will be, published, with its files of these names at hand."""
        return self._place(asset, key)

    def _place(self, asset: str, key: SegmentKey | None) -> Path:
        return self.root / asset / key.hive if key else self.root / asset

    def assets(self, pattern: str) -> list[str]:
        """The assets of a name like this that have a folder, sorted."""
        return sorted(folder.name for folder in self.root.glob(pattern) if folder.is_dir())

    def fetch(self, asset: str, key: SegmentKey | None = None, names: str = "*") -> None:
        """Have the partition's files of these names at hand, if it has been published."""

    def current(self, *folders: str) -> Path:
        """The lake's root, with the files right in these folders as they are now."""
        return self.root

    def update(self, file: str, change: Callable[[], T]) -> T:
        """Call ``change``, which changes a file that partitions share, and give what it gives.

        ``change`` must do no harm when it is called again on what another process made of it.
        """
        return change()

    @contextmanager
    def turn(
        self,
        folder: str,
        asset: str,
        unsettled: Callable[[Path], SegmentKey | None],
    ) -> Iterator[Turn]:
        """A turn at a folder that all partitions of ``asset`` share, on this machine or another.

        ``unsettled`` tells, of the folder, which partition it speaks of without being sure that it
        has been published.
        """
        yield Turn(self.root / folder, self.root / asset, lambda: None)

    def published(self, asset: str, key: SegmentKey | None = None) -> Path:
        """The folder of a partition that must be there. Raises :class:`NotPublishedError`."""
        folder = self.folder(asset, key)
        if not self.has(asset, key):
            of = f" of {key}" if key else ""
            raise NotPublishedError(f"{asset}{of} has not been materialized (no {folder})")
        return folder

    def has(self, asset: str, key: SegmentKey | None = None) -> bool:
        return (self.folder(asset, key) / MANIFEST).exists()

    def manifest(self, asset: str, key: SegmentKey | None = None) -> Manifest:
        return Manifest.read(self.published(asset, key))

    def segments(self, asset: str) -> list[SegmentKey]:
        """The published segments of an asset, sorted."""
        found = (self.root / asset).glob(f"crawl=*/segment=*/{MANIFEST}")
        return sorted(SegmentKey.of_folder(path.parent) for path in found)

    def unfinished(self, asset: str, key: SegmentKey | None, name: str) -> bytes | None:
        """A file, by its name in the folder, that a run which did not end left of a partition in
        the making; None if there is none."""
        path = self._staging(asset, key) / name
        return path.read_bytes() if path.is_file() else None

    def _staging(self, asset: str, key: SegmentKey | None) -> Path:
        return self.root / ".staging" / asset / (f"{key.crawl}.{key.segment}" if key else "all")

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

        ``inputs`` maps what the partition is made of to its data version. An exception leaves
        the staging folder for a later resume and the published partition as it was. The folder
        is emptied before a run with other inputs or code, unless ``stage_judges_parts``: then the
        stage itself finds out which parts still hold. Raises
        :class:`PartitionBusyError` if another process holds the partition too long.
        """
        fingerprint = _digest({"inputs": dict(inputs), "code_version": code_version})
        path = self._staging(asset, key)
        name = path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            _locked(path.with_name(f".{name}.lock"), self.busy_timeout_s),
            self._making(asset, key, path, fingerprint, stage_judges_parts) as commit,
        ):
            started, clock = datetime.now(UTC), time.monotonic()
            staging = Staging(path, fingerprint, _prepare(path, fingerprint, stage_judges_parts))
            if staging.resumed:
                logger.info(f"{asset}: going on where an earlier run of this partition stopped")
            yield staging
            files = _describe(path, _known(staging.linked_from))
            staging.manifest = Manifest(
                asset=asset,
                crawl=key.crawl if key else None,
                segment=key.segment if key else None,
                run_id=run_id,
                code_version=code_version,
                fingerprint=fingerprint,
                data_version=staging.data_version or _content_version(files, staging.not_content),
                started=started.isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - clock, 3),
                bytes=sum(item["bytes"] for item in files),
                files=files,
                counts=staging.counts,
                metadata=staging.metadata,
            )
            write_json(path / MANIFEST, staging.manifest.to_json())
            commit(staging.manifest)
            replace_folder(path, self._place(asset, key))
            (self._place(asset, key) / FINGERPRINT).unlink(missing_ok=True)

    @contextmanager
    def _making(
        self,
        asset: str,
        key: SegmentKey | None,
        path: Path,
        fingerprint: str,
        stage_judges_parts: bool,
    ) -> Iterator[Callable[[Manifest], None]]:
        """Around the making of a partition in ``path``; what it yields is called to publish."""
        yield lambda _: None


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _content_version(files: Sequence[Mapping[str, Any]], not_content: Sequence[str]) -> str:
    return _digest(
        [
            [item["name"], item["sha256"]]
            for item in files
            if not any(fnmatch(item["name"], pattern) for pattern in not_content)
        ]
    )


def _prepare(path: Path, fingerprint: str, stage_judges_parts: bool) -> bool:
    """Make the staging folder ready; True if it may hold parts of an earlier run."""
    marker = path / FINGERPRINT
    there = marker.exists()
    if there and json.loads(marker.read_text())["fingerprint"] == fingerprint:
        return True
    resumed = there and stage_judges_parts
    if path.exists() and not resumed:
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"fingerprint": fingerprint})
    return resumed


def _known(folders: Sequence[Path]) -> dict[tuple[int, int], str]:
    """SHA-256 of published files by device and inode: published files are never written to."""
    known = {}
    for folder in folders:
        for item in Manifest.read(folder).files:
            with suppress(FileNotFoundError):  # the partition was replaced meanwhile
                stat = (folder / item["name"]).stat()
                known[stat.st_dev, stat.st_ino] = item["sha256"]
    return known


def _describe(folder: Path, known: Mapping[tuple[int, int], str]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of every file below the folder, fsynced; temporary files removed.

    A file that is ``known`` is not read.
    """
    described = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        relative = path.relative_to(folder)
        if relative.name == FINGERPRINT:
            # Stays until the exchange: a kill before it must still find its parts.
            continue
        if any(part.startswith(".") for part in relative.parts) or relative.name == MANIFEST:
            path.unlink()
            continue
        stat = path.stat()
        digest = known.get((stat.st_dev, stat.st_ino))
        if digest is None:
            fsync_file(path)
            digest = sha256_file(path)
        described.append({"name": str(relative), "bytes": stat.st_size, "sha256": digest})
    return described


@contextmanager
def _locked(path: Path, timeout_s: float) -> Iterator[None]:
    try:
        with locked(
            path,
            lambda: logger.info(f"another process makes this partition, waiting ({path})"),
            timeout_s,
        ):
            yield
    except LockedError as error:
        raise PartitionBusyError(f"{error}, for over {timeout_s:.0f} s") from error
