"""Parse the WARC records of a WAT file, at inflation speed.

Only the part of the format that WAT files use is read. The file is inflated as one stream and cut
into records, which costs little more than inflating it. A record is yielded once the bytes after it
have been read, and so after the checksum of its gzip member was verified. At the first damage the
file is read again from its beginning, member by member (:mod:`.members`), and the records already
yielded are skipped. That is slower, but continues after the damage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple

from isal import igzip

from laion_assets.wat import members
from laion_assets.wat.members import Damage

_PIECE: Final = 256 << 10
_BEGIN: Final = b"WARC/"
# The standard says CRLF; copies that went through text tools have LF, and readers accept both.
_HEADER_END: Final = re.compile(rb"\r?\n\r?\n")
_NEXT: Final = re.compile(rb"\r?\n\r?\n(WARC/[0-9.]+\r?\n)")
# A header as Common Crawl writes it, so that one search finds all of it. Others are read by field.
_LINE: Final = rb"[^\r\n][^\n]*+(?<=\r)\n"
_USUAL: Final = re.compile(
    rb"WARC/[0-9.]+\r\nWARC-Type: (\S+)\r\nWARC-Target-URI: (\S+)\r\nWARC-Date: (\S+)\r\n"
    rb"(?:(?!Content-Length:)%b)*+Content-Length: ([0-9]{1,15})\r\n(?:%b)*+\r\n" % (_LINE, _LINE)
).match
_LONGEST_BEGIN: Final = 32


class Record(NamedTuple):
    """One WARC record."""

    kind: str
    """``WARC-Type``; empty if the header names none."""
    uri: str
    """``WARC-Target-URI``, without the angle brackets that some writers put around it; empty if the
    header names none."""
    date: str
    """``WARC-Date``: when the record was written, as in ``2019-06-19T…``; empty if not named."""
    block: bytes
    """The bytes after the header."""


class RecordError(ValueError):
    """The bytes are not a WARC record; the message says why."""


class _MoreNeededError(Exception):
    """The record continues beyond the available bytes."""


def read_records(stream: BinaryIO) -> Iterator[Record | Damage]:
    """Yield the records of a WARC file, gzipped or not, and the damage found between them.

    Whatever the bytes are, only ``OSError`` is raised, if reading itself fails. Damage costs the
    gzip member that it hits, which in Common Crawl's files is one record; of a member with several
    records, those before the damage may have been yielded. ``stream`` must be seekable. Memory: a
    few MiB, or a few times the longest record (at most :data:`.members.MAX_MEMBER_BYTES`).
    """
    plain = stream.read(len(_BEGIN)) == _BEGIN
    stream.seek(0)
    yielded = 0
    try:
        for record, end in _plain(stream) if plain else _inflated(stream):
            yielded = end
            yield record
    # isal raises OverflowError for a header whose name has no end.
    except (members.InflateError, igzip.BadGzipFile, EOFError, OverflowError):
        stream.seek(0)
        yield from _by_members(stream, yielded)
    except RecordError as error:
        # A gzipped file may have garbage before its first member that looks like a record.
        if plain and (yielded or members.find_member(stream, 0) is None):
            yield from _after_damage(stream, yielded, error)
        else:
            stream.seek(0)
            yield from _by_members(stream, yielded)


def split_records(data: bytes) -> Iterator[Record]:
    """Yield the records of one gzip member; Common Crawl writes one, others may write several.

    Raises :class:`RecordError` if no record begins where one should.
    """
    position = 0
    while position < len(data):
        try:
            record, position = _parse(data, position)
        except _MoreNeededError as error:
            raise RecordError(str(error)) from error
        yield record
        position = _skip_line_ends(data, position)


def _inflated(stream: BinaryIO) -> Iterator[tuple[Record, int]]:
    """The records of a gzipped file, as :func:`_streamed` yields them."""
    # isal's IGzipFile has no type hints.
    with igzip.IGzipFile(fileobj=stream, mode="rb") as inflated:  # type: ignore[no-untyped-call]
        yield from _streamed(inflated.read)


def _plain(stream: BinaryIO, start: int = 0) -> Iterator[tuple[Record, int]]:
    """The records of an uncompressed file from a byte on, as :func:`_streamed` yields them."""
    stream.seek(start)
    for record, end in _streamed(stream.read):
        yield record, start + end


def _streamed(read: Callable[[int], bytes]) -> Iterator[tuple[Record, int]]:
    """Yield each record, and the number of inflated bytes up to its end."""
    data, position, passed = b"", 0, 0
    ended = False
    while not ended:
        # For a long record the piece doubles, so that the record is not copied for every piece.
        piece = read(max(_PIECE, len(data) - position))
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
                break  # its checksum counts as verified only once the next bytes are read
            if after < len(data) and (after == end or not data.startswith(_BEGIN, after)):
                raise RecordError("no record begins where Content-Length says that this ends")
            yield record, passed + after
            position = after


def _after_damage(stream: BinaryIO, start: int, error: RecordError) -> Iterator[Record | Damage]:
    """Yield the damage at a byte of an uncompressed file, and what follows it."""
    while True:
        found = _find_record(stream, start + 1)
        yield Damage("truncated" if found is None else "bad_record", start, str(error))
        if found is None:
            return
        start = found
        try:
            for record, end in _plain(stream, found):
                start = end
                yield record
        except RecordError as again:
            error = again
        else:
            return


def _find_record(stream: BinaryIO, offset: int) -> int | None:
    """First byte of the next record that begins after a blank line; None if there is none."""
    window = b""
    stream.seek(offset)
    while block := stream.read(_PIECE):
        window += block
        if found := _NEXT.search(window):
            return offset + found.start(1)
        kept = window[-_LONGEST_BEGIN:]
        offset, window = offset + len(window) - len(kept), kept
    return None


def _by_members(stream: BinaryIO, skip: int) -> Iterator[Record | Damage]:
    """Yield the records after the first ``skip`` inflated bytes of the sound members."""
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
    """The record that begins at ``start``, and the position of its end."""
    if usual := _USUAL(data, start):
        kind, uri, date, length = usual.groups()
        body = usual.end()
        stop = _stop(data, body, int(length))
        return _record(kind, uri, date, data[body:stop]), stop
    if not data.startswith(_BEGIN, start):
        if _BEGIN.startswith(data[start : start + len(_BEGIN)]):
            raise _MoreNeededError("the header has no end")
        raise RecordError(f"a record begins with {data[start : start + 20]!r}")
    # WARC files have CRLF, and searching for that is far cheaper than for the pattern.
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
    stop = _stop(data, body, int(length))
    names = (b"WARC-Type", b"WARC-Target-URI", b"WARC-Date")
    kind, uri, date = (_field(data, name, start, end) for name in names)
    return _record(kind, uri, date, data[body:stop]), stop


def _stop(data: bytes, body: int, length: int) -> int:
    """Position of the end of a block of that length."""
    stop = body + length
    if stop > len(data):
        raise _MoreNeededError(f"Content-Length is {length}, but {len(data) - body} bytes follow")
    return stop


def _record(kind: bytes, uri: bytes, date: bytes, block: bytes) -> Record:
    named = uri.decode("utf-8", "replace")
    if named.startswith("<") and named.endswith(">"):  # as wget before 1.20 has it
        named = named[1:-1]
    return Record(kind.decode("utf-8", "replace"), named, date.decode("ascii", "replace"), block)


def _field(data: bytes, name: bytes, start: int, end: int) -> bytes:
    """The value of the first header field of that name; empty if there is none."""
    at = data.find(b"\n" + name + b":", start, end)
    if at != -1:
        begin = at + len(name) + 2
        stop = data.find(b"\n", begin, end)
        return data[begin : end if stop == -1 else stop].strip()
    # Names are case-insensitive and may have space before the colon, but hardly any is so written.
    for line in data[start:end].split(b"\n")[1:]:
        written, colon, value = line.partition(b":")
        if colon and written.strip().lower() == name.lower():
            return value.strip()
    return b""


def _skip_line_ends(data: bytes, position: int) -> int:
    if data.startswith(b"\r\n\r\nWARC/", position):
        return position + 4
    while data.startswith((b"\r", b"\n"), position):
        position += 1
    return position
