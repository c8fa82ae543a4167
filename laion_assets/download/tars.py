"""Random access to the encoded images of a shard's tar."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = ("jpg", "jpeg", "png", "webp")


class ImageBytes:
    """The encoded images of a tar by key; use as a context, which keeps the tar open.

    Damage costs only the member that it hits: reading continues at the next sound header. An image
    that a cut file has lost is found missing when it is read.
    """

    def __init__(self, tar: Path) -> None:
        self._stream = tar.open("rb")
        self._places: dict[str, tuple[int, int]] = {}
        try:
            for key, start, size in self._members(tar):
                self._places.setdefault(key, (start, size))
        except BaseException:
            self._stream.close()
            raise

    @staticmethod
    def _members(tar: Path) -> Iterator[tuple[str, int, int]]:
        try:
            with tarfile.open(tar, "r:", ignore_zeros=True) as archive:
                for member in archive:
                    key, _, suffix = Path(member.name).name.partition(".")
                    if member.isreg() and suffix.lower() in IMAGE_SUFFIXES:
                        yield key, member.offset_data, member.size
        except (tarfile.TarError, OSError):
            # The tar ends inside a member, or is empty: the members before are indexed.
            return

    def __enter__(self) -> ImageBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()

    def read(self, key: str) -> bytes:
        """The image's bytes; empty if the tar does not have it."""
        start, size = self._places.get(key, (0, 0))
        self._stream.seek(start)
        found = self._stream.read(size)
        return found if len(found) == size else b""
