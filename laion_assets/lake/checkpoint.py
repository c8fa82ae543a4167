"""Copies of an unfinished partition in the object store, so that another machine can continue.

Whole files are copied every so often to the prefix of the publication to come, and the
*checkpoint*, a small object, names them. A copy equals some state that a kill could have left.

What is in the store already is not copied: files of the published partition, and of the checkpoint
that the work continues from. Objects of the latter may be named only as long as the pointer is the
one that its maker began with (``base``). Whoever deletes such objects has found, or written,
another pointer; who still builds on the old one cannot publish.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict, TypeAdapter

from laion_assets.files import replace_folder, sha256_file, write_json
from laion_assets.lake.cache import Cache
from laion_assets.lake.content import FINGERPRINT, MANIFEST
from laion_assets.lake.object_store import (
    DamagedError,
    ObjectStore,
    ObjectStoreError,
    in_parallel,
)
from laion_assets.lake.partition import Manifest
from laion_assets.lake.pointer import (
    FILES_WITHIN,
    Name,
    Pointer,
    StoredFile,
    checkpoint_path,
    files_to_bytes,
    parse,
    refuse_foreign,
)
from laion_assets.tables import UNITS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The files of an unfinished partition, and the fingerprint of what it is made from."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    fingerprint: str
    files: Mapping[Name, StoredFile]
    base: str | None = None
    """The nonce of the pointer that the making began with; None in old checkpoints."""

    def to_bytes(self) -> bytes:
        return _CHECKPOINT.dump_json(self)

    @classmethod
    def read(cls, store: ObjectStore, place: str) -> Checkpoint | None:
        """Read a place's checkpoint; None if there is none. A damaged one costs its work alone."""
        got = store.read(checkpoint_path(place))
        if got is None:
            return None
        what = store.address(checkpoint_path(place))
        try:
            checkpoint = parse(_CHECKPOINT, got[0], what)
            refuse_foreign(checkpoint.files.values(), place, what)
        except DamagedError as error:
            logger.warning(f"an unfinished partition cannot be taken over: {error}")
            return None
        return checkpoint

    def objects(self) -> set[str]:
        return {stored.object for stored in self.files.values()}

    def restore(self, cache: Cache, path: Path, fingerprint: str, stage_judges_parts: bool) -> None:
        """Replace the staging folder ``path`` by the checkpoint if that is usable and has more.

        It is usable if it was made from the same (``fingerprint``), or if ``stage_judges_parts``.
        """
        if self.fingerprint != fingerprint and not stage_judges_parts:
            return
        if sum(stored.bytes for stored in self.files.values()) <= _bytes_in(path, fingerprint):
            return
        with cache.making_folder() as new:
            try:
                cache.download(self.files, new)
                write_json(new / FINGERPRINT, {"fingerprint": self.fingerprint})
            except (FileNotFoundError, ObjectStoreError) as error:
                # Another machine has published the partition meanwhile, or was killed in a copy.
                logger.warning(f"an unfinished partition cannot be taken over: {error}")
                return
            replace_folder(new, path)
        logger.info(f"took over {len(self.files)} files of an unfinished partition")


_CHECKPOINT: Final = TypeAdapter(Checkpoint)


def _bytes_in(path: Path, fingerprint: str) -> int:
    """Size of a staging folder, as far as it is made from the same; 0 else."""
    marker = path / FINGERPRINT
    if not marker.exists() or json.loads(marker.read_text())["fingerprint"] != fingerprint:
        return 0
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


class Uploads:
    """The files of one making of a partition, copied to the store under a prefix of its own.

    ``known`` are objects in the store that may be named instead of copying the same content, unless
    they are among ``damaged``, which may grow meanwhile.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        path: Path,
        known: Iterable[StoredFile],
        damaged: Collection[str] = (),
    ) -> None:
        self.id = uuid.uuid4().hex
        self.store, self._prefix, self.path = store, f"{prefix}/{self.id}", path
        self._known = {(stored.sha256, stored.bytes): stored for stored in known}
        self._damaged = damaged
        self._latest: dict[str, tuple[list[int], StoredFile]] = {}
        self._objects: set[str] = set()

    def save(self, digests: Mapping[str, str | None]) -> dict[str, StoredFile]:
        """Copy files that have changed since they were last copied and are not in the store.

        ``digests`` maps their names to their SHA-256, None where that is not known.
        """

        def save(item: tuple[str, str | None]) -> None:
            name, digest = item
            signature = signature_of(self.path / name)
            copied, stored = self._latest.get(name, (None, None))
            if stored and copied == signature and stored.object not in self._damaged:
                return
            digest = digest or sha256_file(self.path / name)
            stored = self._known.get((digest, signature[2]))
            if stored is None or stored.object in self._damaged:
                path = f"{self._prefix}/{name}"
                if path in self._objects:
                    # An object is never written twice: a checkpoint may name it.
                    path = f"{self._prefix}/again-{uuid.uuid4().hex}/{name}"
                stored = StoredFile(path, signature[2], digest)
                self._objects.add(path)
                self.store.upload(self.path / name, stored.object)
            self._latest[name] = signature, stored

        in_parallel(save, digests.items())
        return {name: self._latest[name][1] for name in digests}

    def publication(self, manifest: Manifest) -> Pointer:
        """Save the manifest's files and return the pointer to them.

        A long list of files is written as an object of its own.
        """
        files = self.save({item["name"]: item["sha256"] for item in manifest.files})
        pointer = Pointer(self.id, files).with_manifest(manifest)
        if len(files) <= FILES_WITHIN:
            return pointer
        content = files_to_bytes(pointer.files)
        listed = StoredFile(f"{self._prefix}.json", len(content), sha256(content).hexdigest())
        known = self._known.get((listed.sha256, listed.bytes))
        if known is None:
            self._objects.add(listed.object)
            self.store.write(listed.object, content)
        return replace(pointer, files_at=known or listed)

    def objects(self) -> set[str]:
        return set(self._objects)

    def drop(self, named: set[str]) -> None:
        """Delete what was copied, but for the objects that a pointer has ``named``."""
        with suppress(ObjectStoreError):  # found again as abandoned
            self.store.delete(self._objects - named)


class Checkpointing:
    """Writes a checkpoint of an unfinished partition every so often, in a thread."""

    def __init__(
        self, every_s: float, uploads: Uploads, path: str, fingerprint: str, base: str
    ) -> None:
        self._every_s, self._uploads, self._path = every_s, uploads, path
        self._fingerprint, self._base = fingerprint, base
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
            except (ObjectStoreError, OSError) as error:
                logger.warning(f"the unfinished partition could not be copied: {error}")

    def _save(self) -> None:
        folder = self._uploads.path
        # Take a consistent snapshot: rescan until two listings agree, so that the copy equals
        # some state that a kill could have left.
        before, now = None, _scan(folder)
        for _ in range(5):
            if before == now:
                break
            before, now = now, _scan(folder)
        if before != now or not now:
            return
        files = self._uploads.save(dict.fromkeys(now))
        if any(_signature_or_none(folder / name) != seen for name, seen in now.items()):
            return  # It has changed during the copy: the next round is as good.
        checkpoint = Checkpoint(self._fingerprint, files, self._base)
        self._uploads.store.write(self._path, checkpoint.to_bytes())


def signature_of(path: Path) -> list[int]:
    """Inode, modification time in ns and size: others once the file has been rewritten."""
    stat = path.stat()
    return [stat.st_ino, stat.st_mtime_ns, stat.st_size]


def _signature_or_none(path: Path) -> list[int] | None:
    try:
        return signature_of(path)
    except FileNotFoundError:
        return None


def _scan(path: Path) -> dict[str, list[int]]:
    """Signatures of the whole files below a staging folder, by name.

    Names of files that are still being written begin with a dot. So does that of the folder of a
    stage's units, which are finished.
    """
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        hidden = any(part.startswith(".") and part != UNITS for part in name.parts)
        if hidden or name.name == MANIFEST:
            continue
        signature = _signature_or_none(file)
        if signature and file.is_file():
            found[str(name)] = signature
    return found
