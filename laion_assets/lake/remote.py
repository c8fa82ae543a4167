"""A lake in an object store, for many machines.

Stages work on files, so each machine has a folder of its own, the *cache*: it makes partitions
there, and copies there what it reads. The store is the truth. For each partition it has objects
under a prefix that is used once, and one small object in ``_index/``, the *pointer*, that names
them and holds the manifest. Writing the pointer publishes. It is written only in the place of the
one that was read when the making began: of two machines that make the same partition, one fails.

A machine that was taken for dead is *fenced*: rewriting a partition's pointer keeps it from
publishing that partition. Another machine continues from its last *checkpoint*.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from typing_extensions import override

from laion_assets.lake.base import Lake, Lease, Manifest, PartitionBusyError
from laion_assets.lake.cache import Cache, write_bytes
from laion_assets.lake.checkpoint import Checkpoint, Checkpointing, Uploads
from laion_assets.lake.object_store import ChangedError, ObjectStore
from laion_assets.lake.options import LakeOptions
from laion_assets.lake.pointer import (
    ABANDONED,
    INDEX,
    Pointer,
    checkpoint_path,
    discard,
    discard_abandoned,
    pointer_path,
    read_pointer,
)
from laion_assets.lake.shared import SharedFolder
from laion_assets.layout import EVERY_HIVE, SegmentKey, place_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RemoteLake(Lake):
    """The store's partitions, through this machine's cache.

    Raises :class:`~laion_assets.lake.base.LakeError` if the cache folder holds anything else.
    """

    def __init__(self, options: LakeOptions) -> None:
        super().__init__(Path(options.cache).absolute(), options.busy_timeout_s)
        self.store = ObjectStore(options.root, dict(options.storage_options), options.attempts)
        limit = options.cache_gb * 1e9 if options.cache_gb else None
        self.cache = Cache(self.local_root, self.store, limit)
        self._checkpoint_s = options.checkpoint_s

    @override
    def __str__(self) -> str:
        return self.store.url

    # Reading

    @override
    def has(self, asset: str, key: SegmentKey | None = None) -> bool:
        return self._pointer(asset, key).manifest is not None

    @override
    def manifest(self, asset: str, key: SegmentKey | None = None) -> Manifest:
        manifest = self._pointer(asset, key).manifest
        if manifest is None:
            raise self._not_published(asset, key)
        return Manifest.from_json(manifest)

    def _pointer(self, asset: str, key: SegmentKey | None) -> Pointer:
        return read_pointer(self.store, pointer_path(place_of(asset, key)))[0]

    @override
    def segments(self, asset: str) -> list[SegmentKey]:
        pointers = self.cache.pointers(asset)
        return sorted(key for key, pointer in pointers.items() if pointer.manifest is not None)

    @override
    def versions(self, asset: str) -> dict[SegmentKey | None, str]:
        keys: list[SegmentKey | None] = [*self.segments(asset)]
        keys += [None] if not keys and self.has(asset) else []
        return {key: self._pointer(asset, key).id for key in keys}

    @override
    def published_at(self, asset: str) -> dict[SegmentKey | None, float]:
        pointers: dict[SegmentKey | None, Pointer] = dict(self.cache.pointers(asset).items())
        if not pointers:
            pointers[None] = self._pointer(asset, None)
        return {
            key: datetime.fromisoformat(manifest["started"]).timestamp() + manifest["seconds"]
            for key, pointer in sorted(pointers.items(), key=lambda item: str(item[0]))
            if (manifest := pointer.manifest) is not None
        }

    @override
    def assets(self, pattern: str) -> list[str]:
        names = (Path(name).stem for name in self.store.names(INDEX))
        return sorted({name for name in names if fnmatch(name, pattern)})

    @override
    def fetch(self, asset: str, key: SegmentKey | None = None, names: str = "*") -> None:
        self.cache.fetch(place_of(asset, key), names)

    # What partitions share

    @override
    def current(self, *folders: str) -> Path:
        for folder in folders:
            self.cache.mirror(folder)
        return self.local_root

    @override
    def update(self, file: str, change: Callable[[Path], T]) -> T:
        path = self.local_root / file
        # The folder's lock, which `current` takes, too: it must not overwrite what `change` made.
        with self.cache.locked(str(Path(file).parent)):
            while True:
                got = self.store.read(file)
                if got:
                    write_bytes(path, got[0])
                else:
                    path.unlink(missing_ok=True)
                result = change(self.local_root)
                after = path.read_bytes() if path.exists() else None
                if after is None or (got and after == got[0]):
                    return result
                # Two machines that add the same at once write the same: both have done it.
                with suppress(ChangedError):
                    self.store.write_if(file, after, got[1] if got else None)
                    return result

    @override
    @contextmanager
    def lease(
        self, folder: str, asset: str, unsettled: Callable[[Path], SegmentKey | None]
    ) -> Iterator[Lease]:
        """Lease a folder that all partitions of ``asset`` share; see :meth:`Lake.lease`.

        Waits for another machine's lease. One that saves nothing for ``busy_timeout_s`` is taken
        for lost, and its pending partition is fenced. Raises :class:`PartitionBusyError` if
        another machine has done so with this lease.
        """
        shared = SharedFolder(folder, self.cache)

        def settle(key: SegmentKey) -> None:
            # From here on, whoever has an entry for this partition can no longer publish it.
            self._fence(asset, key)
            self.fetch(asset, key)

        with shared.alone():
            shared.fetch_settled(unsettled, settle, self.busy_timeout_s)
            self._mirror_segments(asset, with_files=shared.is_new)
            try:
                yield Lease(shared.path, self._place(asset, None), shared.save)
            except BaseException:
                shared.release()
                raise
            shared.save(held=False)

    def _fence(self, asset: str, key: SegmentKey) -> None:
        path = pointer_path(place_of(asset, key))
        while True:
            pointer, version = read_pointer(self.store, path)
            with suppress(ChangedError):
                self.store.write_if(path, pointer.to_bytes(), version)
                return

    def _mirror_segments(self, asset: str, *, with_files: bool) -> None:
        """Have a folder here for each published segment and for no other."""
        keys = set(self.segments(asset))
        for key in keys:
            if with_files:
                self.fetch(asset, key)
            else:
                self._place(asset, key).mkdir(parents=True, exist_ok=True)
        for folder in self._place(asset, None).glob(EVERY_HIVE):
            if SegmentKey.of_folder(folder) not in keys:
                shutil.rmtree(folder, ignore_errors=True)

    # Making

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
        place = place_of(asset, key)
        before, version = read_pointer(self.store, pointer_path(place))
        checkpoint = Checkpoint.read(self.store, checkpoint_path(place))
        if checkpoint:
            checkpoint.restore(self.cache, path, fingerprint, stage_judges_parts)
        unused = before.objects() | (checkpoint.objects() if checkpoint else set())
        uploads = Uploads(self.store, place, path)
        checkpointing = Checkpointing(
            self._checkpoint_s, uploads, checkpoint_path(place), fingerprint
        )
        published: list[Pointer] = []

        def commit(manifest: Manifest) -> None:
            checkpointing.stop()
            files = uploads.save({item["name"]: item["sha256"] for item in manifest.files})
            pointer = Pointer(uploads.id, files, manifest.to_json())
            try:
                self.store.write_if(pointer_path(place), pointer.to_bytes(), version)
            except ChangedError as error:
                uploads.drop()
                raise PartitionBusyError(
                    f"{asset} of {key or 'all segments'} was made by another machine meanwhile, or "
                    "this one was taken for dead: what it made is not published"
                ) from error
            # Until the folders are exchanged, nobody else may, and the copy here is outdated.
            stack.enter_context(self.cache.locked(pointer_path(place)))
            self.cache.forget(place)
            published.append(pointer)
            objects = (unused | uploads.objects()) - pointer.objects()
            discard(self.store, [*objects, checkpoint_path(place)])
            discard_abandoned(self.store, place, pointer)

        with ExitStack() as stack:
            try:
                yield commit
            finally:
                checkpointing.stop()
            for pointer in published:
                self.cache.remember(place, pointer)
        for left in self.abandoned(ABANDONED.total_seconds()):
            shutil.rmtree(left.folder)
        self.cache.evict()

    @override
    def unfinished(self, asset: str, key: SegmentKey | None, name: str) -> bytes | None:
        """Return a file of an unfinished partition, from its checkpoint if it is not here."""
        here = super().unfinished(asset, key, name)
        if here is not None:
            return here
        checkpoint = Checkpoint.read(self.store, checkpoint_path(place_of(asset, key)))
        stored = checkpoint.files.get(name) if checkpoint else None
        # The object is gone if another machine has published the partition meanwhile.
        copied = self.store.read(stored.object) if stored else None
        return copied[0] if copied else None

    # Deleting

    @override
    def withdraw(self, asset: str) -> None:
        path = pointer_path(asset)
        while True:
            pointer, version = read_pointer(self.store, path)
            if pointer.manifest is None:
                break
            with suppress(ChangedError):
                self.store.write_if(path, Pointer().to_bytes(), version)
                discard(self.store, pointer.objects())
        with self.cache.locked(path):
            self.cache.forget(asset)
            super().withdraw(asset)
