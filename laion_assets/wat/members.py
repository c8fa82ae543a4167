"""Read the gzip members of a file one by one, so that damage costs only the member that it hits.

Common Crawl writes one gzip member per WARC record, so that readers can resume after damage.
Readers that treat the file as one stream (warcio, FastWARC) give up at the first damaged member.
This one looks for the next member that inflates to the beginning of a WARC record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final, Literal, NamedTuple

from isal import isal_zlib

MAX_MEMBER_BYTES: Final = 64 << 20
"""Maximum inflated bytes of a member. Common Crawl cuts pages at a few MiB; this bounds memory."""

_MAGIC: Final = b"\x1f\x8b\x08"
_WARC: Final = b"WARC/"
# Every member copies the rest of its last piece of input, so the pieces are small.
_PIECE: Final = 16 << 10
_SCAN: Final = 1 << 20
_GZIP: Final = 31
# isal's type stubs declare its exception class as an instance.
InflateError: Final[type[Exception]] = isal_zlib.error  # type: ignore[assignment]


class Damage(NamedTuple):
    """A stretch of the file that could not be read."""

    reason: Literal["bad_record", "truncated"]
    offset: int | None
    """Its first byte in the file; None if it is inside a member that inflates without error."""
    detail: str

    def __str__(self) -> str:
        return self.detail if self.offset is None else f"byte {self.offset}: {self.detail}"


class _EndedInsideError(Exception):
    """The file ended inside a member."""


class _TooLargeError(Exception):
    """The member inflates to more than :data:`MAX_MEMBER_BYTES`."""


def read_members(stream: BinaryIO) -> Iterator[bytes | Damage]:
    """Yield each member inflated, its CRC checked, or the damage found in its place.

    A stretch of bytes in which no further member begins is one :class:`Damage`. Its reason is
    ``truncated`` if the file ends inside a member that was sound so far, else ``bad_record``.
    ``stream`` must be seekable. Raises only ``OSError``, if reading itself fails.
    """
    start = 0
    piece = stream.read(_PIECE)
    while piece:
        try:
            member, rest, end = _inflate(stream, piece, start + len(piece))
        except (InflateError, OverflowError, _TooLargeError, _EndedInsideError) as error:
            found = find_member(stream, start + 1)
            cut = isinstance(error, _EndedInsideError) and found is None
            yield Damage("truncated" if cut else "bad_record", start, str(error))
            if found is None:
                return
            start = found
            stream.seek(start)
            piece = stream.read(_PIECE)
            continue
        yield member
        start = end - len(rest)
        piece = rest or stream.read(_PIECE)


def _inflate(stream: BinaryIO, piece: bytes, position: int) -> tuple[bytes, bytes, int]:
    """``(inflated member, bytes read beyond it, position of the stream)``."""
    inflater = isal_zlib.decompressobj(wbits=_GZIP)
    parts: list[bytes] = []
    size = 0
    lead = b""
    while True:
        lead = (lead + piece[: len(_MAGIC)])[: len(_MAGIC)]
        inflated = inflater.decompress(piece)
        size += len(inflated)
        if size > MAX_MEMBER_BYTES:
            raise _TooLargeError(f"a member of more than {MAX_MEMBER_BYTES} bytes")
        parts.append(inflated)
        if inflater.eof:
            return b"".join(parts), inflater.unused_data, position
        piece = stream.read(_PIECE)
        if not piece:
            if not _MAGIC.startswith(lead):
                # Too few bytes for the inflater to notice that this is not a gzip header.
                raise InflateError("not a gzip member")
            raise _EndedInsideError("the file ends inside a gzip member")
        position += len(piece)


def find_member(stream: BinaryIO, offset: int) -> int | None:
    """First byte of the next member with a WARC record, at ``offset`` or later; None if none."""
    overlap = len(_MAGIC) - 1
    window = b""
    while True:
        stream.seek(offset + len(window))
        block = stream.read(_SCAN)
        if not block:
            return None
        window += block
        at = window.find(_MAGIC)
        while at != -1:
            if _begins_record(stream, offset + at):
                return offset + at
            at = window.find(_MAGIC, at + 1)
        rest = window[-overlap:]
        offset += len(window) - len(rest)
        window = rest


def _begins_record(stream: BinaryIO, offset: int) -> bool:
    stream.seek(offset)
    inflater = isal_zlib.decompressobj(wbits=_GZIP)
    try:
        return bool(inflater.decompress(stream.read(_PIECE), len(_WARC)) == _WARC)
    except (InflateError, OverflowError):
        return False
