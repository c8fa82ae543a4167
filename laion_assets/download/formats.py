"""The structure of JPEG and PNG files, walked without decoding a pixel.

Finds what decoders lack a bound for (a progressive JPEG of thousands of scans, floods of empty
markers and chunks), what they take silently (half a JPEG with another behind it), and leaves out
what they stumble over and do not need (a PNG's damaged or huge metadata).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from laion_assets.download.errors import ImageRefused

MAX_SCANS: Final = 100
"""Scans of a JPEG. Encoders write up to some twenty; each costs a pass over the whole picture."""
MAX_PARTS: Final = 20_000
"""Marker segments of a JPEG, or chunks of a PNG."""

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_NEEDED: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_ANIMATION: Final = b"acTL"

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_ALONE: Final = frozenset({0x01, *range(0xD0, 0xDA)})
"""Markers without a length: TEM, RST0 to RST7, SOI, EOI."""
# In a scan, 0xFF is data before 0x00, and filler before 0xFF; RST0 to RST7 belong to the scan.
_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


@dataclass(frozen=True)
class Png:
    """What of a PNG a decoder needs."""

    lean: bytes
    """The file with its pixels, palette and transparency, and no metadata."""
    transparency: bytes | None
    """The tRNS chunk's data."""
    color: int
    """Colour type; 0 is gray."""
    depth: int
    frames: int
    """Over 1 for an animation."""


class Scans(NamedTuple):
    """The scans of a JPEG's first picture, as far as that goes."""

    number: int
    ended: bool
    """Whether the picture has an end; whatever stands behind that is not looked at."""


def lean(body: bytes) -> bytes:
    """What a decoder needs of a picture, for decoders that have no bounds of their own.

    Raises :class:`ImageRefused` for a JPEG or PNG as :func:`check_jpeg` and :func:`read_png` do.
    """
    if body.startswith(_SIGNATURE):
        return read_png(body).lean
    if body.startswith(b"\xff\xd8\xff"):
        check_jpeg(body)
    return body


def read_png(body: bytes) -> Png:
    """Walk a PNG's chunks. Raises :class:`ImageRefused`.

    Ancillary chunks may be damaged or of any size: OpenCV and browsers take such files. A chunk
    that a picture needs must have a right CRC.
    """
    kept = [_SIGNATURE]
    header, transparency, frames = b"", None, 1
    for name, data, whole, sound in _chunks(body):
        if name in _NEEDED:
            if not sound:
                raise ImageRefused("undecodable", f"wrong CRC of {name.decode('latin-1')}")
            kept.append(whole)
            header = data if name == b"IHDR" else header
        elif name == b"tRNS" and sound:
            kept.append(whole)
            transparency = data
        elif name == _ANIMATION and len(data) >= 4:
            frames = int.from_bytes(data[:4], "big")
        if name == b"IEND":
            if len(header) < 10:
                raise ImageRefused("undecodable", "a PNG without a header")
            return Png(b"".join(kept), transparency, header[9], header[8], frames)
    raise ImageRefused("undecodable", "the PNG has no end")


def _chunks(body: bytes) -> Iterator[tuple[bytes, bytes, bytes, bool]]:
    """Name, data and all bytes of each chunk, and whether its CRC is right."""
    at = len(_SIGNATURE)
    for _ in range(MAX_PARTS):
        if at + 12 > len(body):
            return
        size = int.from_bytes(body[at : at + 4], "big")
        name, end = body[at + 4 : at + 8], at + 12 + size
        if end > len(body):
            raise ImageRefused("undecodable", f"the PNG ends inside {name!r}")
        crc = int.from_bytes(body[end - 4 : end], "big")
        data = body[at + 8 : end - 4]
        yield name, data, body[at:end], zlib.crc32(data, zlib.crc32(name)) == crc
        at = end
    raise ImageRefused("too_complex", f"over {MAX_PARTS:,} chunks")


def check_jpeg(body: bytes) -> Scans:
    """Walk a JPEG's segments.

    Raises :class:`ImageRefused` for more scans or segments than any sound picture has, and for a
    picture in which another begins: its own end is missing.
    """
    at, scans = 2, 0
    for _ in range(MAX_PARTS):
        found = _MARKER.search(body, at)
        if found is None:
            return Scans(scans, ended=False)
        marker, at = body[found.start() + 1], found.end()
        if marker == _EOI:
            return Scans(scans, ended=True)
        if marker == _SOI:
            raise ImageRefused("undecodable", "cut: another JPEG begins before its end")
        if marker in _ALONE:
            continue
        if marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageRefused("too_complex", f"over {MAX_SCANS} scans")
        at += int.from_bytes(body[at : at + 2], "big")
    raise ImageRefused("too_complex", f"over {MAX_PARTS:,} marker segments")
