"""Stored images, read at random from the shards' tars, so that results do not need the web."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.download.tars import ImageBytes
from laion_assets.files import Identity, identity
from laion_assets.lake import LocalLake
from laion_assets.search.samples import Sample
from laion_assets.segments import SegmentKey

_KINDS: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"RIFF", "image/webp"),
)


class _OpenShard:
    """A shard's tar, and which key each downloaded image's SHA-256 has in it."""

    def __init__(self, tar: Path) -> None:
        kept = pq.read_table(
            tar.with_suffix(".parquet"),
            columns=["key", "sha256"],
            filters=[("status", "=", "success")],
            partitioning=None,
        )
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
    """The images of a lake's shards; the places of the members of ``open_shards`` are kept.

    Safe to share between threads.
    """

    def __init__(self, lake: LocalLake, open_shards: int) -> None:
        self._lake = lake
        self._open_shards = open_shards
        self._open: OrderedDict[tuple[Path, Identity], _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, sample: Sample) -> tuple[bytes, str] | None:
        """``(bytes, media type)``; None if the sample's shard has not the image.

        It is looked for by its SHA-256: keys are places in the shard, and shards that were made
        anew before the subset have others there. Whether the sample may be shown is for the caller
        to know.
        """
        ref = sample.ref
        folder = self._lake.folder("image_shards", SegmentKey(ref.crawl, ref.segment))
        tar = folder / f"{ref.key[: len('00000')]}.tar"
        try:
            shard = self._shard(tar)
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
                # Under the lock: a page of results asks for one shard many times at once.
                shard = _OpenShard(tar)
                if (tar, identity(tar)) != key:
                    raise FileNotFoundError(f"{tar} was replaced while it was opened")
                self._open[key] = shard
            self._open.move_to_end(key)
            while len(self._open) > self._open_shards:
                # A reader may still hold it: its file closes with the last reference.
                self._open.popitem(last=False)
            return shard
