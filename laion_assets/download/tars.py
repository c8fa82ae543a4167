"""Random access to the encoded images of a shard's tar, and whether it is whole."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import BinaryIO, Final

IMAGE_SUFFIXES: Final = ("jpg", "jpeg", "png", "webp")
_BLOCK: Final = tarfile.BLOCKSIZE
_CHECKSUM: Final = slice(148, 156)


class ImageBytes:
    """The encoded images of a tar by key; use as a context, which keeps the tar open.

    Damage costs only the member that it hits: reading continues at the next sound header. An image
    that a cut file has lost is found missing when it is read.
    """

    def __init__(self, tar: Path) -> None:
        self._stream = tar.open("rb")
        self._places: dict[str, tuple[int, int]] = {}
        try:
            for name, start, size in _members(self._stream):
                key, _, suffix = name.rpartition("/")[2].partition(".")
                if suffix.lower() in IMAGE_SUFFIXES:
                    self._places.setdefault(key, (start, size))
        except BaseException:
            self._stream.close()
            raise

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


def problem_of(tar: Path, captions: Mapping[str, str | None]) -> str | None:
    """What is wrong with a tar that is to hold the image, text and JSON of exactly these samples.

    ``captions``: of each sample by its key; one without a caption has no text. None if nothing is
    wrong. Raises ``OSError`` if the tar cannot be read.
    """
    held: dict[str, set[str]] = {}
    with tar.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        for name, start, length in _members(stream):
            if start + length <= size:
                key, _, kind = name.partition(".")
                held.setdefault(key, set()).add(kind)
    if held.keys() != captions.keys():
        return f"{len(captions)} successes, {len(held)} in the tar"
    torn = sorted(key for key, kinds in held.items() if not _is_whole(kinds, captions[key]))
    return f"{torn[0]} and {len(torn) - 1} more are incomplete" if torn else None


def _is_whole(kinds: Set[str], caption: str | None) -> bool:
    """Whether the image, JSON and, if it has a caption, text of a sample are there."""
    beside = {"json"} if caption is None else {"txt", "json"}
    return beside <= kinds and bool(kinds - {"txt", "json"})


def _members(stream: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, place and size of each file in a tar.

    Plain members are read here, in a third of the time that ``tarfile`` takes, and whatever
    follows the first other one, such as damage, by ``tarfile``.
    """
    at = 0
    while found := _plain_member(os.pread(stream.fileno(), _BLOCK, at)):
        name, size = found
        yield name, at + _BLOCK, size
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK
    stream.seek(at)
    try:
        with tarfile.open(fileobj=stream, mode="r:", ignore_zeros=True) as archive:
            for member in archive:
                if member.isreg():
                    yield member.name, member.offset_data, member.size
    except (tarfile.TarError, OSError):
        # The tar ends inside a member, or is empty: the members before are indexed.
        return


def _plain_member(header: bytes) -> tuple[str, int] | None:
    """Name and size of a file by a sound header of the usual kind; None for any other block."""
    if header[257:262] != b"ustar" or header[156:157] != tarfile.REGTYPE or header[345]:
        return None
    try:
        size, checksum = int(header[124:135], 8), int(header[148:154], 8)
    except ValueError:
        return None
    if sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ") != checksum or size < 0:
        return None
    return header[:100].rstrip(b"\0").decode("utf-8", "surrogateescape"), size
