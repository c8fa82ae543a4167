"""A lake in a folder of this machine, or one that is mounted there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from typing_extensions import override

from laion_assets.lake.base import Lake, LakeError, Lease, Manifest
from laion_assets.lake.content import MANIFEST
from laion_assets.lake.options import LakeOptions
from laion_assets.layout import SegmentKey

T = TypeVar("T")


def is_remote(root: str) -> bool:
    """Whether a lake's root is the URL of an object store."""
    return "://" in root and not root.startswith("file://")


class LocalLake(Lake):
    """The partitions below one folder. Everything published is always available.

    Raises :class:`LakeError` if the options name an object store.
    """

    def __init__(self, options: LakeOptions) -> None:
        if is_remote(options.root):
            raise LakeError(
                f"the lake {options.root} is in an object store, and this works on a folder only: "
                "copy what it reads by `laion-assets fetch ASSET ...`, and name the cache folder "
                "as `root` in the [lake] of a settings file given by --config"
            )
        root = Path(options.root.removeprefix("file://")).absolute()
        super().__init__(root, options.busy_timeout_s)

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
        return [key for key in self.published_at(asset) if key]

    @override
    def versions(self, asset: str) -> dict[SegmentKey | None, str]:
        # A file system may use an inode again.
        return {
            key: f"{about.st_ino:x}.{about.st_mtime_ns:x}" for key, about in self._manifests(asset)
        }

    @override
    def published_at(self, asset: str) -> dict[SegmentKey | None, float]:
        return {key: about.st_mtime for key, about in self._manifests(asset)}

    def _manifests(self, asset: str) -> Iterator[tuple[SegmentKey | None, os.stat_result]]:
        """The partitions of an asset, sorted, and what its file system says of their manifests.

        At ten thousand partitions, paths as objects would cost more than the system calls.
        """
        base = f"{self.root}/{asset}"
        for crawl in _folders(base, "crawl="):
            for segment in _folders(f"{base}/{crawl}", "segment="):
                with suppress(FileNotFoundError):
                    about = os.stat(f"{base}/{crawl}/{segment}/{MANIFEST}")  # noqa: PTH116
                    yield SegmentKey(crawl[len("crawl=") :], segment[len("segment=") :]), about
        with suppress(FileNotFoundError):
            yield None, Path(f"{base}/{MANIFEST}").stat()

    @override
    def assets(self, pattern: str) -> list[str]:
        folders = (path for path in self.root.glob(pattern) if path.is_dir())
        return sorted(path.name for path in folders if not path.name.startswith("."))

    @override
    def fetch(self, asset: str, key: SegmentKey | None = None, names: str = "*") -> None:
        """Do nothing: everything published is in the folder."""

    @override
    def current(self, *folders: str) -> Path:
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
        # The exchange of the folders is the publication.
        yield lambda _: None


def _folders(parent: str, prefix: str) -> list[str]:
    """Names in a folder that begin so, sorted; none if there is no such folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(name for name in os.listdir(parent) if name.startswith(prefix))  # noqa: PTH208
    return []
