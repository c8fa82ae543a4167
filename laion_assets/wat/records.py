"""WARC records out of inflated bytes: the little of the format that WAT files use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

# The standard says CRLF; copies that went through text tools have LF, and readers accept both.
_HEADER_END: Final = re.compile(rb"\r?\n\r?\n")


class Record(NamedTuple):
    headers: Mapping[str, str]
    """Names in lower case."""
    block: bytes


class RecordError(ValueError):
    """The bytes are not a WARC record; the message says what is wrong."""


def split_records(data: bytes) -> Iterator[Record]:
    """The records of one gzip member; Common Crawl writes one, others may write several.

    Raises :class:`RecordError` where a record should begin and does not.
    """
    position = 0
    while position < len(data):
        record, position = _parse(data, position)
        yield record
        while data[position : position + 1] in (b"\r", b"\n"):
            position += 1


def _parse(data: bytes, start: int) -> tuple[Record, int]:
    if not data.startswith(b"WARC/", start):
        raise RecordError(f"a record begins with {data[start : start + 20]!r}")
    end = _HEADER_END.search(data, start)
    if end is None:
        raise RecordError("the header has no end")
    headers: dict[str, str] = {}
    for line in data[start : end.start()].decode("utf-8", "replace").split("\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise RecordError(f"Content-Length is {length!r}")
    body = end.end()
    stop = body + int(length)
    if stop > len(data):
        raise RecordError(f"Content-Length is {length}, but {len(data) - body} bytes follow")
    return Record(headers, data[body:stop]), stop
