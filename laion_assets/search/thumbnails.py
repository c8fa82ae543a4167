"""Stored images, read from the shards' tars, so that showing results does not need the web."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache

from laion_assets.download.shard_files import read_shard, shard_of, tar_path
from laion_assets.download.tars import ImageBytes
from laion_assets.files import Identity, identity
from laion_assets.knn.samples import Sample
from laion_assets.lake import LocalLake
from laion_assets.layout import (
    IMAGE_SHARDS,
    SegmentKey,
)

_KINDS: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"RIFF", "image/webp"),
)


class _OpenShard:
    """A shard's tar, and the key in it of each downloaded image by SHA-256."""

    def __init__(self, tar: Path) -> None:
        kept = read_shard(tar, ["key", "sha256", "status"])
        kept = kept.filter(pc.equal(kept["status"], "success"))
        sha256 = kept["sha256"].to_numpy().astype("S64")
        order = np.argsort(sha256)
        self._sha256 = sha256[order]
        self._keys = kept["key"].to_numpy().astype("S")[order]
        self.images = ImageBytes(tar)
        self.reading = threading.Lock()

    def key_of(self, sha256: str) -> str | None:
        wanted = sha256.encode()
        at = int(np.searchsorted(self._sha256, wanted))
        if at == len(self._sha256) or self._sha256[at] != wanted:
            return None
        key: bytes = self._keys[at]
        return key.decode()


class Thumbnails:
    """The images of a lake's shards. Several threads may share it.

    The ``open_shards`` most recently used shards stay open, with the offsets of their members. A
    shard's file closes with its last reference, since a reader may still hold it.
    """

    def __init__(self, lake: LocalLake, open_shards: int) -> None:
        self._lake = lake
        self._open: LRUCache[tuple[Path, Identity], _OpenShard] = LRUCache(open_shards)
        self._lock = threading.Lock()

    def read(self, sample: Sample) -> tuple[bytes, str] | None:
        """Read a sample's image: ``(bytes, media type)``; None if its shard does not have it.

        The image is found by its SHA-256. Keys are positions in the shard, and a shard that was
        rebuilt after the subset may have another image there. The caller decides whether the
        sample may be shown.
        """
        ref = sample.ref
        folder = self._lake.folder(IMAGE_SHARDS, SegmentKey(ref.crawl, ref.segment))
        try:
            shard = self._shard(tar_path(folder, shard_of(ref.key)))
        except (FileNotFoundError, pa.ArrowInvalid):
            return None
        key = shard.key_of(sample.sha256)
        if key is None:
            return None
        with shard.reading:
            body = shard.images.read(key)
        for magic, media_type in _KINDS:
            if body.startswith(magic):
                return body, media_type
        return None

    def _shard(self, tar: Path) -> _OpenShard:
        key = tar, identity(tar)
        with self._lock:
            shard = self._open.get(key)
            if shard is None:
                # Opened under the lock: a page of results asks for one shard many times at once.
                shard = _OpenShard(tar)
                if (tar, identity(tar)) != key:
                    raise FileNotFoundError(f"{tar} was replaced while it was opened")
                self._open[key] = shard
            return shard
