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
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from typing_extensions import override

from laion_assets.files import ReadAt
from laion_assets.lake.base import Lake, Lease, Stored
from laion_assets.lake.cache import Cache, write_bytes
from laion_assets.lake.checkpoint import Checkpoint, Checkpointing, Uploads
from laion_assets.lake.content import MANIFEST
from laion_assets.lake.index import AT_ONCE, while_replaced
from laion_assets.lake.object_store import ChangedError, DamagedError, ObjectStore, in_parallel
from laion_assets.lake.options import LakeOptions
from laion_assets.lake.partition import Manifest, PartitionBusyError
from laion_assets.lake.pointer import (
    ABANDONED,
    INDEX,
    Pointer,
    checkpoint_path,
    discard,
    discard_abandoned,
    not_written_since,
    pointer_path,
    read_files,
    read_pointer,
)
from laion_assets.lake.shared import SharedFolder
from laion_assets.lake.whole import damaged_files
from laion_assets.layout import EVERY_HIVE, SegmentKey, place_of

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

T = TypeVar("T")
K = TypeVar("K")

_DAMAGED: Final = "_damaged"
"""Prefix of the pointers of what was set aside."""

_CHUNK: Final = 1 << 23
"""Bytes of an object that are read at once."""


class RemoteLake(Lake):
    """The store's partitions, through this machine's cache.

    Raises :class:`~laion_assets.lake.partition.LakeError` if the cache folder holds anything else.
    """

    def __init__(self, options: LakeOptions) -> None:
        super().__init__(Path(options.cache).absolute(), options.busy_timeout_s)
        self.store = ObjectStore(options.root, dict(options.storage_options), options.attempts)
        limit = options.cache_gb * 1e9 if options.cache_gb else None
        self.cache = Cache(self.local_root, self.store, limit)
        self.index = self.cache.index
        self._checkpoint_s = options.checkpoint_s
        self._damaged: set[str] = set()
        """Objects that were found damaged: they are named no more."""

    @override
    def __str__(self) -> str:
        return self.store.url

    # Reading

    @override
    def has(self, asset: str, key: SegmentKey | None = None) -> bool:
        return read_pointer(self.store, place_of(asset, key))[0].manifest is not None

    @override
    def manifest(self, asset: str, key: SegmentKey | None = None) -> Manifest:
        pointer, _ = self.index.read(place_of(asset, key))
        if pointer.manifest is None:
            raise self._not_published(asset, key)
        return Manifest.from_json(pointer.record())

    @override
    def manifests(
        self, asset: str, keys: Iterable[SegmentKey | None] | None = None
    ) -> dict[SegmentKey | None, Manifest]:
        if keys is None:
            found = self._pointers(asset)
        else:
            places = {key: place_of(asset, key) for key in keys}
            read = self.index.read_all(places.values())
            found = {key: read[place] for key, place in places.items()}
        return {
            key: Manifest.from_json(pointer.record())
            for key, pointer in found.items()
            if pointer.manifest is not None
        }

    def _pointers(self, asset: str) -> dict[SegmentKey | None, Pointer]:
        """The pointers of an asset's published partitions."""
        found: dict[SegmentKey | None, Pointer] = dict(self.index.pointers(asset).items())
        if not found:
            whole, _ = self.index.read(asset)
            return {None: whole} if whole.manifest is not None else {}
        return found

    @override
    def segments(self, asset: str) -> list[SegmentKey]:
        return sorted(self.index.versions(asset))

    @override
    def versions(
        self, asset: str, keys: Iterable[SegmentKey] | None = None
    ) -> dict[SegmentKey | None, str]:
        found: dict[SegmentKey | None, str] = dict(self.index.versions(asset, keys).items())
        if keys is None and not found:
            whole, _ = read_pointer(self.store, asset)
            return {None: whole.nonce} if whole.manifest is not None else {}
        return found

    @override
    def published_at(self, asset: str) -> dict[SegmentKey | None, float]:
        # The store's clock. A fenced partition looks younger than it is, which does no harm.
        found: dict[SegmentKey | None, float] = {
            key: item.modified.timestamp()
            for key, item in sorted(self.index.published(asset).items())
        }
        whole = None if found else self.store.info(pointer_path(asset))
        if whole and self.has(asset):
            found[None] = whole.modified.timestamp()
        return found

    @override
    def assets(self, pattern: str) -> list[str]:
        names = (Path(name).stem for name in self.store.names(INDEX))
        return sorted({name for name in names if fnmatch(name, pattern)})

    @override
    def fetch(
        self, asset: str, key: SegmentKey | None = None, names: str = "*", but: Collection[str] = ()
    ) -> None:
        self.cache.fetch(place_of(asset, key), names, but=but)

    @override
    def fetch_all(self, asset: str, names: str = "*") -> Path:
        pointers = self._pointers(asset)
        if not pointers:
            raise self._not_published(asset, None)
        in_parallel(
            lambda item: self.cache.fetch(place_of(asset, item[0]), names, item[1]),
            pointers.items(),
        )
        return self._place(asset, None)

    @override
    def damaged(
        self, asset: str, key: SegmentKey | None = None, names: str = "*", but: Collection[str] = ()
    ) -> dict[str, str]:
        if not self.has(asset, key):
            raise self._not_published(asset, key)
        # Without files first: a damaged object would keep the folder from being the present one.
        self.fetch(asset, key, MANIFEST)
        with suppress(DamagedError, FileNotFoundError):
            self.fetch(asset, key, names, but)
        found = damaged_files(self._place(asset, key), names, but)
        if found:
            self.cache.drop(place_of(asset, key), found)
        return {name: wrong for name in found if (wrong := self._copied_again(asset, key, name))}

    def _copied_again(self, asset: str, key: SegmentKey | None, name: str) -> str | None:
        """Copy one file; return what is wrong with its object."""
        try:
            self.fetch(asset, key, name)
        except (DamagedError, FileNotFoundError) as error:
            if stored := self.index.read(place_of(asset, key))[0].files.get(name):
                self._damaged.add(stored.object)
            return f"cannot be copied: {error}"
        return None

    @override
    def attach(self, connection: duckdb.DuckDBPyConnection) -> str:
        from laion_assets.lake.filesystem import ROOT, LakeFileSystem

        connection.register_filesystem(LakeFileSystem(self.cache))
        return ROOT

    @override
    def opener(self) -> Callable[[str, SegmentKey | None, str], ReadAt]:
        from laion_assets.lake.filesystem import LakeFileSystem

        files = LakeFileSystem(self.cache)
        return lambda asset, key, name: files.open_at(place_of(asset, key), name)

    @override
    def stored(self, asset: str, key: SegmentKey | None = None) -> Stored:
        place = place_of(asset, key)

        def pointer() -> Pointer:
            # Not from the notes that this machine has of what it read before.
            return read_files(self.store, read_pointer(self.store, place)[0], place)

        found = while_replaced(pointer, place)
        if found.manifest is None:
            raise self._not_published(asset, key)

        def read(name: str) -> Iterator[bytes]:
            path = found.files[name].object
            info = self.store.info(path)
            if info is None:
                raise FileNotFoundError(self.store.address(path))
            for first in range(0, info.size, _CHUNK):
                yield self.store.read_range(path, first, min(first + _CHUNK, info.size))

        return Stored(Manifest.from_json(found.record()), read, ())

    @override
    def map(self, call: Callable[[K], T], items: Iterable[K]) -> list[T]:
        return in_parallel(call, items, at_once=AT_ONCE)

    # What partitions share

    @override
    def current(self, *folders: str, deep: bool = False) -> Path:
        for folder in folders:
            self.cache.mirror(folder, deep)
        return self.local_root

    @override
    def update(self, file: str, change: Callable[[Path], T]) -> T:
        self._require_conditions()
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
        self._require_conditions()
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
        place = place_of(asset, key)
        while True:
            pointer, version = read_pointer(self.store, place)
            with suppress(ChangedError):
                self.store.write_if(pointer_path(place), pointer.to_bytes(), version)
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

    def _require_conditions(self) -> None:
        """Try once on this machine whether the store keeps to the conditions of a write.

        Raises :class:`~laion_assets.lake.object_store.CarelessStoreError` if it does not.
        """
        tried = self.cache.note("conditions", ".tried")
        if not tried.exists() or tried.read_text(encoding="utf-8") != self.store.identity:
            self.store.check_conditions()
            write_bytes(tried, self.store.identity.encode())

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
        self._require_conditions()
        place = place_of(asset, key)
        before, version = self.index.read(place)
        checkpoint = Checkpoint.read(self.store, place)
        unused, known = before.objects(), {pointer_path(place): before.stored()}
        if checkpoint:
            checkpoint.restore(self.cache, path, fingerprint, stage_judges_parts)
            unused |= checkpoint.objects()
            if checkpoint.base == before.nonce:
                known[checkpoint_path(place)] = [*checkpoint.files.values()]
        uploads = Uploads(
            self.store, place, path, not_written_since(self.store, place, known), self._damaged
        )
        checkpointing = Checkpointing(
            self._checkpoint_s, uploads, checkpoint_path(place), fingerprint, before.nonce
        )
        published: list[Pointer] = []

        def commit(manifest: Manifest) -> None:
            checkpointing.stop()
            pointer = uploads.publication(manifest)
            try:
                self.store.write_if(pointer_path(place), pointer.to_bytes(), version)
            except ChangedError as error:
                self._refuse_if_replaced(place, uploads, before, error)
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
        self.cache.count()

    def _refuse_if_replaced(
        self, place: str, uploads: Uploads, before: Pointer, error: ChangedError
    ) -> None:
        """Raise :class:`PartitionBusyError` unless what was uploaded is published after all.

        It is if the answer to our write was lost and the pointer has been fenced since.
        """
        found, _ = self.index.read(place)
        if found.id == uploads.id:
            return
        if found.nonce != before.nonce:
            uploads.drop(named=found.objects())
        raise PartitionBusyError(
            f"{place} was made by another machine meanwhile, or this one was taken for dead: what "
            "it made is not published"
        ) from error

    @override
    def unfinished(self, asset: str, key: SegmentKey | None, name: str) -> bytes | None:
        """Return a file of an unfinished partition, from its checkpoint if it is not here."""
        here = super().unfinished(asset, key, name)
        if here is not None:
            return here
        checkpoint = Checkpoint.read(self.store, place_of(asset, key))
        stored = checkpoint.files.get(name) if checkpoint else None
        # The object is gone if another machine has published the partition meanwhile.
        copied = self.store.read(stored.object) if stored else None
        return copied[0] if copied else None

    # Deleting

    @override
    def _set_aside(self, asset: str, key: SegmentKey | None) -> bool:
        """The objects stay for :data:`ABANDONED`, named by a copy of the pointer."""
        self._require_conditions()
        place = place_of(asset, key)
        got = self.store.read(pointer_path(place))
        if got is None:
            return False
        self.store.write(f"{_DAMAGED}/{place}/{uuid.uuid4().hex}.json", got[0])
        try:
            self.store.write_if(pointer_path(place), Pointer().to_bytes(), got[1])
        except ChangedError:
            return False
        with self.cache.locked(pointer_path(place)):
            self.cache.forget(place)
            shutil.rmtree(self._place(asset, key), ignore_errors=True)
        return True

    @override
    def withdraw(self, asset: str) -> None:
        self._require_conditions()
        path = pointer_path(asset)
        while True:
            pointer, version = self.index.read(asset)
            if pointer.manifest is None:
                break
            with suppress(ChangedError):
                self.store.write_if(path, Pointer().to_bytes(), version)
                discard(self.store, pointer.objects())
        with self.cache.locked(path):
            self.cache.forget(asset)
            super().withdraw(asset)
