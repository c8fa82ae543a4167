"""Stored images, read at random from the shards' tars, so that results do not need the web."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from laion_assets.download.tars import ImageBytes
from laion_assets.search.samples import SampleRef
from laion_assets.segments import SegmentKey

_KINDS: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"RIFF", "image/webp"),
)


class _OpenShard:
    def __init__(self, tar: Path) -> None:
        self.images = ImageBytes(tar)
        self.reading = threading.Lock()


class Thumbnails:
    """The images of a lake's shards; the places of the members of ``open_shards`` are kept.

    Safe to share between threads.
    """

    def __init__(self, lake: Path, open_shards: int) -> None:
        self._shards = lake / "image_shards"
        self._open_shards = open_shards
        self._open: OrderedDict[tuple[Path, int, int], _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, ref: SampleRef) -> tuple[bytes, str] | None:
        """``(bytes, media type)``; None if the shards have not the image.

        Whether the sample may be shown is for the caller to know.
        """
        folder = self._shards / SegmentKey(ref.crawl, ref.segment).hive
        tar = folder / f"{ref.key[: len('00000')]}.tar"
        try:
            shard = self._shard(tar)
        except FileNotFoundError:
            return None
        with shard.reading:
            body = shard.images.read(ref.key)
        for magic, media_type in _KINDS:
            if body.startswith(magic):
                return body, media_type
        return None

    def _shard(self, tar: Path) -> _OpenShard:
        about = tar.stat()
        key = (tar, about.st_ino, about.st_mtime_ns)
        with self._lock:
            shard = self._open.get(key)
            if shard is None:
                # Under the lock: a page of results asks for one shard many times at once.
                shard = self._open[key] = _OpenShard(tar)
            self._open.move_to_end(key)
            while len(self._open) > self._open_shards:
                # A reader may still hold it: its file closes with the last reference.
                self._open.popitem(last=False)
            return shard
