"""WARC records of a WAT file: the little of the format that WAT files use, at inflation speed.

The file is inflated as one stream and cut into records, which costs little more than inflating
it. A record is handed out when the bytes after it have come, and so after the checksum of its gzip
member was found right. At the first damage the file is read again from its beginning, member by
member (:mod:`.members`), and what was handed out already is passed over: slower, and able to go on
behind the damage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from isal import igzip

from laion_assets.wat import members
from laion_assets.wat.members import Damage

_PIECE: Final = 256 << 10
_BEGIN: Final = b"WARC/"
# The standard says CRLF; copies that went through text tools have LF, and readers accept both.
_HEADER_END: Final = re.compile(rb"\r?\n\r?\n")


class Record(NamedTuple):
    kind: str
    """``WARC-Type``; empty if the header names none."""
    uri: str
    """``WARC-Target-URI``; empty if the header names none."""
    block: bytes


class RecordError(ValueError):
    """The bytes are not a WARC record; the message says what is wrong."""


class _MoreNeededError(Exception):
    """The record goes on beyond the bytes at hand."""


def read_records(stream: BinaryIO) -> Iterator[Record | Damage]:
    """Yield the records of a gzipped WARC file, and the damage found between them.

    Whatever the bytes are, nothing is raised but ``OSError`` when reading itself fails. Damage
    costs the gzip member that has it, which in Common Crawl's files is one record; where a member
    holds several, those before the damage may have been handed out. ``stream`` must be seekable.
    Memory: a few MiB, or a few times the longest record (at most
    :data:`.members.MAX_MEMBER_BYTES`).
    """
    handed_out = 0
    try:
        for record, end in _streamed(stream):
            handed_out = end
            yield record
    except (members.InflateError, igzip.BadGzipFile, EOFError, RecordError):
        stream.seek(0)
        yield from _by_members(stream, handed_out)


def split_records(data: bytes) -> Iterator[Record]:
    """The records of one gzip member; Common Crawl writes one, others may write several.

    Raises :class:`RecordError` where a record should begin and does not.
    """
    position = 0
    while position < len(data):
        try:
            record, position = _parse(data, position)
        except _MoreNeededError as error:
            raise RecordError(str(error)) from error
        yield record
        position = _skip_line_ends(data, position)


def _streamed(stream: BinaryIO) -> Iterator[tuple[Record, int]]:
    """Each record, and how many inflated bytes end with it."""
    # isal's IGzipFile has no type hints.
    with igzip.IGzipFile(fileobj=stream, mode="rb") as inflated:  # type: ignore[no-untyped-call]
        data, position, passed = b"", 0, 0
        ended = False
        while not ended:
            # A long record doubles what is read, so that it is not copied once for every piece.
            piece = inflated.read(max(_PIECE, len(data) - position))
            ended = not piece
            data, passed, position = data[position:] + piece, passed + position, 0
            if len(data) > 2 * members.MAX_MEMBER_BYTES:
                raise RecordError(f"a record of more than {members.MAX_MEMBER_BYTES} bytes")
            while position < len(data):
                try:
                    record, end = _parse(data, position)
                except _MoreNeededError as error:
                    if ended:
                        raise RecordError(str(error)) from error
                    break
                after = _skip_line_ends(data, end)
                if len(data) - after < len(_BEGIN) and not ended:
                    break  # nothing behind it yet that vouches for its checksum
                if after < len(data) and (after == end or not data.startswith(_BEGIN, after)):
                    raise RecordError("no record begins where Content-Length says that this ends")
                yield record, passed + after
                position = after


def _by_members(stream: BinaryIO, skip: int) -> Iterator[Record | Damage]:
    """The records behind the first ``skip`` inflated bytes of the sound members."""
    inflated = 0
    for member in members.read_members(stream):
        if isinstance(member, Damage):
            yield member
            continue
        inflated += len(member)
        if inflated <= skip:
            continue
        rest = member[max(0, skip - (inflated - len(member))) :]
        try:
            yield from split_records(rest)
        except RecordError as error:
            yield Damage("bad_record", None, str(error))


def _parse(data: bytes, start: int) -> tuple[Record, int]:
    """The record that begins at ``start``, and where it ends."""
    if not data.startswith(_BEGIN, start):
        if _BEGIN.startswith(data[start : start + len(_BEGIN)]):
            raise _MoreNeededError("the header has no end")
        raise RecordError(f"a record begins with {data[start : start + 20]!r}")
    # The first is what a WARC has; looking for it is far cheaper than for the pattern.
    end = data.find(b"\r\n\r\n", start)
    body = end + 4
    if end == -1 or data.find(b"\n\n", start, end) != -1:
        found = _HEADER_END.search(data, start)
        if found is None:
            raise _MoreNeededError("the header has no end")
        end, body = found.span()
    length = _field(data, b"Content-Length", start, end)
    if not (length.isdigit() and len(length) < 16):
        raise RecordError(f"Content-Length is {length.decode('utf-8', 'replace')!r}")
    stop = body + int(length)
    if stop > len(data):
        raise _MoreNeededError(
            f"Content-Length is {int(length)}, but {len(data) - body} bytes follow"
        )
    kind = _field(data, b"WARC-Type", start, end).decode("utf-8", "replace")
    uri = _field(data, b"WARC-Target-URI", start, end).decode("utf-8", "replace")
    return Record(kind, uri, data[body:stop]), stop


def _field(data: bytes, name: bytes, start: int, end: int) -> bytes:
    """A header field's value, the first of its name; empty if there is none."""
    at = data.find(b"\n" + name + b":", start, end)
    if at != -1:
        begin = at + len(name) + 2
        stop = data.find(b"\n", begin, end)
        return data[begin : end if stop == -1 else stop].strip()
    # Names are the same in any case, and may have space before the colon; hardly one is written so.
    for line in data[start:end].split(b"\n")[1:]:
        written, colon, value = line.partition(b":")
        if colon and written.strip().lower() == name.lower():
            return value.strip()
    return b""


def _skip_line_ends(data: bytes, position: int) -> int:
    if data.startswith(b"\r\n\r\n", position):
        position += 4
    while data.startswith((b"\r", b"\n"), position):
        position += 1
    return position
