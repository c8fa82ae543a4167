"""Partitions on file systems that cannot exchange two folders (NFS, CIFS, some of FUSE).

A version of a partition lies in `.versions/<partition>/<id>/`, where no reader looks. The
partition's own folder has a symbolic link for each file, through the one link `current`:

    pair_parquet/crawl=…/segment=00/part-00000.parquet
      -> ../../../.versions/pair_parquet/crawl=…/segment=00/current/part-00000.parquet

To publish is to put another link in the place of `current`, in one rename. Folders are not linked:
DuckDB and `datasets` do not follow such links in a recursive pattern. A file's link that leads
nowhere is skipped by all readers but polars, so files that only one of two versions has get their
link before that moment, and lose it after.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from laion_assets.files import fsync_directory, link_or_copy
from laion_assets.lake.content import FINGERPRINT

VERSIONS: Final = ".versions"
_CURRENT: Final = "current"


class LinkedPartition:
    """One partition's folder ``place`` below ``root``, and its versions.

    Whoever calls a method holds the partition's lock.
    """

    def __init__(self, root: Path, place: Path) -> None:
        self._place = place
        self._versions = root / VERSIONS / place.relative_to(root)

    def publish(self, new: Path) -> None:
        """Put the folder ``new`` in the place of the current version, and delete that."""
        self._versions.mkdir(parents=True, exist_ok=True)
        version = self._versions / uuid.uuid4().hex
        fsync_directory(new)
        new.rename(version)
        if self._place.exists():
            self._adopt()
            self._link(self._place, version)
            self._point_to(version)
            self._unlink_gone(version)
        else:
            self._point_to(version)
            links = self._versions / uuid.uuid4().hex
            links.mkdir()
            self._link(links, version)
            self._place.parent.mkdir(parents=True, exist_ok=True)
            links.rename(self._place)
        fsync_directory(self._place.parent)
        (version / FINGERPRINT).unlink(missing_ok=True)
        self._delete_others(version)

    def settle(self, staging: Path) -> None:
        """Put right what a publication left that was killed.

        A version that never became the current one goes back to be the staging folder, so that its
        finished parts are found.
        """
        if not self._versions.exists():
            return
        current = self.current()
        if current is not None and not self._place.exists():
            (self._versions / _CURRENT).unlink()
            current = None
        if current is not None:
            self._link(self._place, current)
            self._unlink_gone(current)
        for folder in list(self._versions.iterdir()):
            other = folder != current and not folder.is_symlink()
            if other and (folder / FINGERPRINT).exists() and not staging.exists():
                staging.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(staging)
        self._delete_others(current)

    def forget(self) -> None:
        """Delete all versions; the folder itself has been removed or replaced."""
        shutil.rmtree(self._versions, ignore_errors=True)

    def current(self) -> Path | None:
        """The folder of the current version; None if the files lie in the partition's own."""
        link = self._versions / _CURRENT
        # A copy of the lake that followed links has a folder here, and files in the partition's.
        return self._versions / link.readlink() if link.is_symlink() else None

    def _point_to(self, version: Path) -> None:
        beside = self._versions / f".{uuid.uuid4().hex}"
        beside.symlink_to(version.name)
        fsync_directory(version)
        beside.replace(self._versions / _CURRENT)
        fsync_directory(self._versions)

    def _link(self, folder: Path, version: Path) -> None:
        """Give ``folder``, which is or becomes the partition's, the links that it lacks."""
        for name in _files(version):
            link = folder / name
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._target(name))

    def _unlink_gone(self, version: Path) -> None:
        kept = set(_files(version))
        for name in set(_files(self._place)) - kept:
            (self._place / name).unlink()
        for folder, _, _ in os.walk(self._place, topdown=False):
            with suppress(OSError):  # it is not empty
                Path(folder).rmdir()

    def _adopt(self) -> None:
        """Make a version of files that lie in the partition's folder themselves, as those of a
        lake do that was copied from a file system that can exchange folders."""
        own = [name for name in _files(self._place) if not (self._place / name).is_symlink()]
        if not own:
            return
        version = self._versions / uuid.uuid4().hex
        for name in own:
            (version / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(self._place / name, version / name)
        self._point_to(version)
        for name in own:
            beside = self._place / name.with_name(f".{uuid.uuid4().hex}")
            beside.symlink_to(self._target(name))
            beside.replace(self._place / name)

    def _target(self, name: Path) -> str:
        return os.path.relpath(self._versions / _CURRENT / name, (self._place / name).parent)

    def _delete_others(self, version: Path | None) -> None:
        for path in list(self._versions.iterdir()):
            if path.is_symlink():
                if path.name != _CURRENT:
                    path.unlink()
            elif path != version:
                shutil.rmtree(path)


def _files(folder: Path) -> Iterator[Path]:
    """Paths, relative to the folder, of its files and links."""
    for path, _, names in os.walk(folder):
        for name in names:
            if name != FINGERPRINT:
                yield (Path(path) / name).relative_to(folder)
