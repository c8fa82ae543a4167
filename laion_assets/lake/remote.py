"""A lake in an object store, for many machines.

Stages work on files, so each machine has a folder of its own, the *cache*: it makes partitions
there and copies there what it reads. The store is the truth. It has, for each partition, objects
under a prefix that is used once, and one small object in ``_index/``, the *pointer*, that names
them and holds the manifest. Writing the pointer publishes; it is written only in the place of the
one that was there when the making began, so that of two machines that make the same partition one
fails, and a machine that was taken for dead publishes nothing any more (it is *fenced*: its
pointer has been written again meanwhile).

A partition in the making is copied to the store now and then (the *checkpoint*), so that another
machine goes on when this one is lost.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from laion_assets.files import (
    LockedError,
    atomic_path,
    locked,
    replace_folder,
    sha256_file,
    write_json,
)
from laion_assets.lake.base import (
    FINGERPRINT,
    MANIFEST,
    Lake,
    LakeError,
    LakeOptions,
    Manifest,
    NotPublishedError,
    PartitionBusyError,
    Turn,
)
from laion_assets.lake.object_store import ChangedError, Objects, ObjectsError, Version
from laion_assets.segments import SegmentKey

logger = logging.getLogger(__name__)

T = TypeVar("T")

_AT_ONCE: Final = 8
_POLL_S: Final = 0.5
_ABANDONED: Final = timedelta(days=7)
"""Objects that nothing has named for so long are a lost machine's."""
_LEFT_S: Final = _ABANDONED.total_seconds()
_IN_USE_S: Final = 3600.0
"""What was read from the cache within this time is not evicted."""
_OF: Final = ".store-of"


def open_lake(options: LakeOptions) -> Lake:
    """The lake that the options name, wherever it is."""
    if "://" in options.root and not options.root.startswith("file://"):
        return RemoteLake(options)
    return Lake(options)


@dataclass(frozen=True)
class _Stored:
    """One file of a pointer."""

    object: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Pointer:
    """What is published under a name: its files and, of a partition, its manifest."""

    id: str = ""
    """Of the publication; empty if nothing is published here."""
    files: Mapping[str, _Stored] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    held: bool = False
    """Of a shared folder: whether the turn that wrote this goes on."""
    nonce: str = ""
    """Makes each writing of a pointer another object."""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self) | {"nonce": uuid.uuid4().hex}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> _Pointer:
        value = json.loads(content)
        files = {name: _Stored(**stored) for name, stored in value["files"].items()}
        return cls(**{**value, "files": files})

    def objects(self) -> set[str]:
        return {stored.object for stored in self.files.values()}


class RemoteLake(Lake):
    """The store's partitions, through the cache in ``root``."""

    def __init__(self, options: LakeOptions) -> None:
        self.root = Path(options.cache).absolute()
        self.busy_timeout_s = options.busy_timeout_s
        self.objects = Objects(options.root, dict(options.storage_options), options.attempts)
        self._cache_bytes = options.cache_gb and options.cache_gb * 1e9
        self._checkpoint_s = options.checkpoint_s
        self._claim_cache(options.root)

    def _claim_cache(self, url: str) -> None:
        """Partitions that the store has not are deleted from the cache: it must be no lake."""
        marker = self.root / _OF
        if marker.exists():
            if marker.read_text(encoding="utf-8") != url:
                raise LakeError(f"{self.root} is the cache of {marker.read_text()}, not of {url}")
            return
        # What begins with a dot, another process that begins just now may have made.
        there = self.root.iterdir() if self.root.exists() else ()
        if any(not path.name.startswith(".") for path in there):
            raise LakeError(f"{self.root} is not empty: it cannot become the cache of {url}")
        self.root.mkdir(parents=True, exist_ok=True)
        with atomic_path(marker) as beside:
            beside.write_text(url, encoding="utf-8")

    # Reading

    def folder(self, asset: str, key: SegmentKey | None = None, names: str = "*") -> Path:
        """The partition's place in the cache, as the store has it now; not there if it has none."""
        self.fetch(asset, key, names)
        return self._place(asset, key)

    def has(self, asset: str, key: SegmentKey | None = None) -> bool:
        return self._read(_index(asset, key))[0].manifest is not None

    def manifest(self, asset: str, key: SegmentKey | None = None) -> Manifest:
        pointer, _ = self._read(_index(asset, key))
        if pointer.manifest is None:
            of = f" of {key}" if key else ""
            raise NotPublishedError(
                f"{asset}{of} has not been materialized (nothing in {self.objects.url})"
            )
        return Manifest.from_json(pointer.manifest)

    def segments(self, asset: str) -> list[SegmentKey]:
        return sorted(
            SegmentKey.of_folder(Path(path).with_suffix(""))
            for path, pointer in self._pointers(asset).items()
            if pointer.manifest is not None
        )

    def assets(self, pattern: str) -> list[str]:
        names = (Path(name).stem for name in self.objects.names("_index"))
        return sorted({name for name in names if fnmatch(name, pattern)})

    def fetch(self, asset: str, key: SegmentKey | None = None, names: str = "*") -> None:
        place, index = self._place(asset, key), _index(asset, key)
        with locked(self._side(index, ".lock"), _no):
            self._again_if_gone(lambda: self._fetch(place, index, names))

    def current(self, *folders: str) -> Path:
        for folder in folders:
            with locked(self._side(folder, ".lock"), _no):
                self._again_if_gone(partial(self._mirror, folder))
        return self.root

    def update(self, file: str, change: Callable[[], T]) -> T:
        path = self.root / file
        # The folder's lock, as `current` has it: what `change` has made is not to be overwritten.
        with locked(self._side(str(Path(file).parent), ".lock"), _no):
            while True:
                got = self.objects.read(file)
                if got:
                    _write(path, got[0])
                else:
                    path.unlink(missing_ok=True)
                result = change()
                after = path.read_bytes() if path.exists() else None
                if after is None or (got and after == got[0]):
                    return result
                # Two machines that add the same at once write the same: both have done it.
                with suppress(ChangedError):
                    self.objects.write_if(file, after, got[1] if got else None)
                    return result

    def _fetch(self, place: Path, index: str, names: str) -> None:
        pointer, _ = self._read(index)
        side = self._side(index)
        if pointer.manifest is None:
            side.unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            return
        wanted = {name: of for name, of in pointer.files.items() if fnmatch(name, names)}
        if _id_of(side) == pointer.id and place.exists():
            os.utime(side)
            self._download(wanted, place)
            return
        new = self.root / ".fetch" / uuid.uuid4().hex
        try:
            before = Manifest.read(place) if (place / MANIFEST).exists() else None
            known = {(of["name"], of["sha256"]) for of in before.files} if before else set()
            for name, stored in pointer.files.items():
                if (name, stored.sha256) in known and (place / name).exists():
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    (new / name).hardlink_to(place / name)
            self._download(wanted, new)
            write_json(new / MANIFEST, pointer.manifest)
            replace_folder(new, place)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        _note(side, pointer)

    def _download(self, files: Mapping[str, _Stored], folder: Path) -> None:
        missing = {name: of for name, of in files.items() if not (folder / name).exists()}
        _each(
            lambda item: self.objects.download(item[1].object, folder / item[0], item[1].sha256),
            missing.items(),
        )

    def _mirror(self, folder: str) -> None:
        """Plain objects right in a folder, that people and :meth:`update` put there."""
        side = self._side(folder, ".mirror")
        known = json.loads(side.read_text()) if side.exists() else {}
        there = {Path(item.path).name: item for item in self.objects.listed(folder, deep=False)}
        here = self.root / folder
        for path in here.iterdir() if here.exists() else ():
            if path.is_file() and not path.name.startswith(".") and path.name not in there:
                path.unlink()
        for name, item in there.items():
            if not (here / name).exists() or known.get(name) != item.e_tag:
                self.objects.download(item.path, here / name)
        write_json(side, {name: item.e_tag for name, item in there.items()})

    # Making

    def unfinished(self, asset: str, key: SegmentKey | None, name: str) -> bytes | None:
        """As :meth:`Lake.unfinished`; of another machine's run where this one has had none."""
        here = super().unfinished(asset, key, name)
        got = None if here is not None else self.objects.read(_checkpoint(_index(asset, key)))
        stored = json.loads(got[0])["files"].get(name) if got else None
        if stored is None:
            return here
        # None if another machine has published the partition meanwhile.
        copied = self.objects.read(stored["object"])
        return copied[0] if copied else None

    @contextmanager
    def _making(
        self,
        asset: str,
        key: SegmentKey | None,
        path: Path,
        fingerprint: str,
        stage_judges_parts: bool,
    ) -> Iterator[Callable[[Manifest], None]]:
        index = _index(asset, key)
        before, version = self._read(index)
        checkpoint = _checkpoint(index)
        inherited = self._restore(path, checkpoint, fingerprint, stage_judges_parts)
        uploads = _Uploads(self.objects, f"{asset}/{key.hive}" if key else asset, path)
        saving = _Saving(self._checkpoint_s, uploads, checkpoint, fingerprint)
        published: list[_Pointer] = []

        def commit(manifest: Manifest) -> None:
            saving.stop()
            named = {item["name"]: item["sha256"] for item in manifest.files}
            pointer = _Pointer(uploads.id, uploads.save(named), manifest.to_json())
            try:
                self.objects.write_if(index, pointer.to_bytes(), version)
            except ChangedError as error:
                uploads.drop()
                raise PartitionBusyError(
                    f"{asset} of {key or 'all segments'} was made by another machine meanwhile, or "
                    "this one was taken for dead: what it made is not published"
                ) from error
            # Forgotten until the folder is exchanged; nobody else exchanges it meanwhile.
            stack.enter_context(locked(self._side(index, ".lock"), _no))
            self._side(index).unlink(missing_ok=True)
            published.append(pointer)
            gone = before.objects() | inherited | uploads.objects()
            self._clean(gone - pointer.objects(), [checkpoint])
            self._clean_abandoned(f"{asset}/{key.hive}" if key else asset, pointer)

        with ExitStack() as stack:
            try:
                yield commit
            finally:
                saving.stop()
            for pointer in published:
                _note(self._side(index), pointer)
        self._evict()

    def _restore(
        self, path: Path, checkpoint: str, fingerprint: str, stage_judges_parts: bool
    ) -> set[str]:
        """Take over what a lost machine made, if it is more than is here; gives its objects."""
        got = self.objects.read(checkpoint)
        if got is None:
            return set()
        saved = json.loads(got[0])
        files = {name: _Stored(**stored) for name, stored in saved["files"].items()}
        objects = {stored.object for stored in files.values()}
        here = path / FINGERPRINT
        same = here.exists() and json.loads(here.read_text())["fingerprint"] == fingerprint
        held = sum(of.stat().st_size for of in path.rglob("*") if of.is_file()) if same else 0
        useful = saved["fingerprint"] == fingerprint or stage_judges_parts
        if useful and sum(stored.bytes for stored in files.values()) > held:
            new = self.root / ".fetch" / uuid.uuid4().hex
            new.mkdir(parents=True)
            try:
                self._download(files, new)
                write_json(new / FINGERPRINT, {"fingerprint": saved["fingerprint"]})
            except (FileNotFoundError, ObjectsError) as error:
                # Another machine has published the partition meanwhile, or was killed in a copy.
                logger.warning(f"a partition in the making cannot be taken over: {error}")
                shutil.rmtree(new)
            else:
                replace_folder(new, path)
                logger.info(f"took over {len(files)} files of a partition in the making")
        return objects

    @contextmanager
    def turn(
        self,
        folder: str,
        asset: str,
        unsettled: Callable[[Path], SegmentKey | None],
    ) -> Iterator[Turn]:
        """As :meth:`Lake.turn`. A turn of another machine that goes on is waited for; after
        ``busy_timeout_s`` without a change it is taken for lost, and fenced.

        Raises :class:`PartitionBusyError` if another machine took this turn meanwhile.
        """
        path, index = self.root / folder, f"_index/{folder}.json"
        with locked(
            self._side(index, ".turn"), lambda: logger.info(f"waiting for another turn at {path}")
        ):
            pointer, version = self._settled(path, index, asset, unsettled)
            self._mirror_keys(asset, whole=not pointer.id)

            def save(*, held: bool = True) -> None:
                nonlocal pointer, version
                pointer, version = self._save_shared(folder, index, pointer, version, held)

            try:
                yield Turn(path, self.root / asset, save)
            except BaseException:
                # Nobody need wait for this turn, which may have said that it speaks of a partition.
                if pointer.held:
                    with suppress(ObjectsError, PartitionBusyError):
                        self.objects.write_if(index, _held(pointer, held=False).to_bytes(), version)
                raise
            save(held=False)

    def _settled(
        self,
        path: Path,
        index: str,
        asset: str,
        unsettled: Callable[[Path], SegmentKey | None],
    ) -> tuple[_Pointer, Version | None]:
        """Fetch the shared folder once nobody else has a turn at it."""
        since, seen = time.monotonic(), ""
        while True:
            pointer, version = self._again_if_gone(lambda: self._fetch_shared(path, index))
            key = unsettled(path) if pointer.id else None
            if key is None:
                return pointer, version
            if pointer.nonce != seen:
                since, seen = time.monotonic(), pointer.nonce
            if not pointer.held or time.monotonic() - since > self.busy_timeout_s:
                # Whoever speaks of this partition can publish it no more from here on.
                self._fence(asset, key)
                self.fetch(asset, key)
                logger.warning(f"a turn at {path.name} ended without a word on {key}: settled")
                return pointer, version
            time.sleep(_POLL_S)

    def _fence(self, asset: str, key: SegmentKey) -> None:
        index = _index(asset, key)
        while True:
            pointer, version = self._read(index)
            with suppress(ChangedError):
                self.objects.write_if(index, pointer.to_bytes(), version)
                return

    def _fetch_shared(self, path: Path, index: str) -> tuple[_Pointer, Version | None]:
        """Make the folder's files those of the store, whatever was done to them here."""
        pointer, version = self._read(index)
        known = _signatures(self._side(index))
        path.mkdir(parents=True, exist_ok=True)
        for file in [of for of in path.iterdir() if of.name != ".lock"]:
            stored = pointer.files.get(file.name)
            if file.is_dir():
                shutil.rmtree(file)
            elif stored is None or known.get(file.name) != [stored.object, *_signature(file)]:
                file.unlink()
        self._download(pointer.files, path)
        self._note_shared(path, index, pointer)
        return pointer, version

    def _note_shared(self, path: Path, index: str, pointer: _Pointer) -> None:
        write_json(
            self._side(index),
            {name: [of.object, *_signature(path / name)] for name, of in pointer.files.items()},
        )

    def _save_shared(
        self,
        folder: str,
        index: str,
        before: _Pointer,
        version: Version | None,
        held: bool,
    ) -> tuple[_Pointer, Version | None]:
        path, known = self.root / folder, _signatures(self._side(index))
        made = uuid.uuid4().hex
        files: dict[str, _Stored] = {}
        for file in sorted(path.iterdir()):
            if file.name.startswith(".") or file.is_dir():
                continue
            of = known.get(file.name)
            if of and of[1:] == _signature(file) and file.name in before.files:
                files[file.name] = before.files[file.name]
                continue
            name = f"{folder}/{made}/{file.name}"
            self.objects.upload(file, name)
            files[file.name] = _Stored(name, file.stat().st_size, sha256_file(file))
        pointer = _Pointer(made, files, held=held)
        content = pointer.to_bytes()
        try:
            self.objects.write_if(index, content, version)
        except ChangedError as error:
            raise PartitionBusyError(f"another machine had a turn at {folder} meanwhile") from error
        got = self.objects.read(index)
        if got is None or got[0] != content:
            raise PartitionBusyError(f"another machine had a turn at {folder} meanwhile")
        self._note_shared(path, index, pointer)
        self._clean(before.objects() - pointer.objects(), [])
        if not held:
            self._clean_abandoned(folder, pointer)
        return pointer, got[1]

    def _mirror_keys(self, asset: str, *, whole: bool) -> None:
        """Have a folder here for each published partition and no other; ``whole``: with files."""
        keys = set(self.segments(asset))
        for key in keys:
            if whole:
                self.fetch(asset, key)
            else:
                self._place(asset, key).mkdir(parents=True, exist_ok=True)
        for folder in (self.root / asset).glob("crawl=*/segment=*"):
            if SegmentKey.of_folder(folder) not in keys:
                shutil.rmtree(folder, ignore_errors=True)

    # Pointers

    def _read(self, index: str) -> tuple[_Pointer, Version | None]:
        got = self.objects.read(index)
        return (_Pointer.from_bytes(got[0]), got[1]) if got else (_Pointer(), None)

    def _pointers(self, asset: str) -> dict[str, _Pointer]:
        """All of an asset's segments, by path; those that have not changed are read from here."""
        cached: dict[str, _Pointer] = {}

        def read(item: Any) -> None:
            side = self._side(item.path, ".pointer")
            if side.exists():
                e_tag, _, content = side.read_bytes().partition(b"\n")
                if e_tag.decode() == item.e_tag:
                    cached[item.path] = _Pointer.from_bytes(content)
                    return
            got = self.objects.read(item.path)
            if got:
                _write(side, (got[1].e_tag or "").encode() + b"\n" + got[0])
                cached[item.path] = _Pointer.from_bytes(got[0])

        _each(read, self.objects.listed(f"_index/{asset}"))
        return dict(sorted(cached.items()))

    def _side(self, name: str, suffix: str = ".json") -> Path:
        """Where this machine notes what it has of the store's ``name``."""
        return self.root / ".store" / f"{name}{suffix}"

    def _again_if_gone(self, call: Callable[[], T]) -> T:
        """Objects go when what names them is published anew: then there is a new pointer."""
        for _ in range(10):
            with suppress(FileNotFoundError):
                return call()
        return call()

    # Cleaning

    def _clean(self, objects: Iterable[str], more: Iterable[str]) -> None:
        try:
            _each(lambda path: self.objects.delete([path]), [*objects, *more])
        except ObjectsError as error:
            # They cost room and are found again as abandoned.
            logger.warning(f"objects that nothing names any more could not be deleted: {error}")

    def _clean_abandoned(self, prefix: str, pointer: _Pointer) -> None:
        limit = datetime.now(UTC) - _ABANDONED
        named = pointer.objects()
        try:
            old = [
                item.path
                for item in self.objects.listed(prefix)
                if item.modified < limit and item.path not in named
            ]
        except ObjectsError as error:
            logger.warning(f"abandoned objects could not be looked for: {error}")
        else:
            self._clean(old, [])

    def _drop_leavings(self) -> None:
        """What killed runs left in the cache, and nobody came back for."""
        for folder in [*self.root.glob(".fetch/*"), *self.root.glob(".staging/*/*")]:
            with suppress(FileNotFoundError, LockedError):
                if not folder.is_dir() or time.time() - folder.stat().st_mtime < _LEFT_S:
                    continue
                with locked(folder.with_name(f".{folder.name}.lock"), _no, 0):
                    shutil.rmtree(folder)

    def _evict(self) -> None:
        """Keep the cache within its limit: what was read longest ago goes first."""
        self._drop_leavings()
        if not self._cache_bytes:
            return
        found = (self.root / ".store" / "_index").rglob("*.json")
        sides = sorted((side for side in found if _id_of(side)), key=lambda of: of.stat().st_mtime)
        sizes = {side: json.loads(side.read_text())["bytes"] for side in sides}
        total = sum(sizes.values())
        for side in sides:
            if total <= self._cache_bytes or time.time() - side.stat().st_mtime < _IN_USE_S:
                return
            index = str(side.relative_to(self.root / ".store")).removesuffix(".json")
            place = self.root / index.removeprefix("_index/").removesuffix(".json")
            with suppress(LockedError), locked(self._side(index, ".lock"), _no, 0):
                side.unlink(missing_ok=True)
                shutil.rmtree(place, ignore_errors=True)
                total -= sizes[side]


class _Uploads:
    """The files of one making of a partition, copied to the store under a prefix of its own."""

    def __init__(self, objects: Objects, prefix: str, path: Path) -> None:
        self.id = uuid.uuid4().hex
        self.store, self._prefix, self.path = objects, f"{prefix}/{self.id}", path
        self._done: dict[str, tuple[list[int], _Stored]] = {}
        self._all: set[str] = set()

    def save(self, named: Mapping[str, str | None]) -> dict[str, _Stored]:
        """Copy files, given with their digests if these are known; not those that have been."""

        def save(item: tuple[str, str | None]) -> None:
            name, digest = item
            signature = _signature(self.path / name)
            if name in self._done and self._done[name][0] == signature:
                return
            path = f"{self._prefix}/{name}"
            if path in self._all:
                # An object is never written again: a checkpoint may name it.
                path = f"{self._prefix}/again-{uuid.uuid4().hex}/{name}"
            stored = _Stored(path, signature[2], digest or sha256_file(self.path / name))
            self._all.add(path)
            self.store.upload(self.path / name, stored.object)
            self._done[name] = signature, stored

        _each(save, named.items())
        return {name: self._done[name][1] for name in named}

    def objects(self) -> set[str]:
        return set(self._all)

    def drop(self) -> None:
        with suppress(ObjectsError):  # found again as abandoned
            self.store.delete(self._all)


class _Saving:
    """Copies a partition in the making to the store every so often, in a thread."""

    def __init__(
        self, every_s: float, uploads: _Uploads, checkpoint: str, fingerprint: str
    ) -> None:
        self._every_s, self._uploads, self._checkpoint = every_s, uploads, checkpoint
        self._fingerprint = fingerprint
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._save()
            except (ObjectsError, OSError) as error:
                logger.warning(f"the partition in the making could not be copied: {error}")

    def _save(self) -> None:
        path = self._uploads.path
        # What was there at one moment: a kill at that moment would have left just this.
        before, now = None, _scan(path)
        for _ in range(5):
            if before == now:
                break
            before, now = now, _scan(path)
        if before != now or not now:
            return
        files = self._uploads.save(dict.fromkeys(now))
        if any(_signature_or_none(path / name) != of for name, of in now.items()):
            return  # Changed under the copy: the next round is as good.
        value = {
            "fingerprint": self._fingerprint,
            "files": {name: asdict(stored) for name, stored in files.items()},
        }
        self._uploads.store.write(self._checkpoint, json.dumps(value).encode())


def _index(asset: str, key: SegmentKey | None) -> str:
    return f"_index/{asset}/{key.hive}.json" if key else f"_index/{asset}.json"


def _checkpoint(index: str) -> str:
    return f"_staging/{index.removeprefix('_index/')}"


def _held(pointer: _Pointer, *, held: bool) -> _Pointer:
    return _Pointer(pointer.id, pointer.files, pointer.manifest, held)


def _signature(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_ino, stat.st_mtime_ns, stat.st_size]


def _signature_or_none(path: Path) -> list[int] | None:
    try:
        return _signature(path)
    except FileNotFoundError:
        return None


def _scan(path: Path) -> dict[str, list[int]]:
    """The whole files below a staging folder; those still written to have names with a dot."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if any(part.startswith(".") for part in name.parts) or name.name == MANIFEST:
            continue
        signature = _signature_or_none(file)
        if signature and file.is_file():
            found[str(name)] = signature
    return found


def _signatures(side: Path) -> dict[str, list[Any]]:
    return json.loads(side.read_text()) if side.exists() else {}


def _note(side: Path, pointer: _Pointer) -> None:
    total = sum(stored.bytes for stored in pointer.files.values())
    write_json(side, {"id": pointer.id, "bytes": total})


def _id_of(side: Path) -> str | None:
    return json.loads(side.read_text()).get("id") if side.exists() else None


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as beside:
        beside.write_bytes(content)


def _each(call: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Call it for each, several at a time; the first error is raised when all have ended."""
    items = list(items)
    if len(items) < 2:
        for item in items:
            call(item)
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(items))) as pool:
        for _ in pool.map(call, items):
            pass


def _no() -> None:
    pass
