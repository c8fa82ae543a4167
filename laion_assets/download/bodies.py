"""The body of an HTTP answer, its content coding undone within a limit.

Servers name codings that are none (S3 shows uploads' ``aws-chunked``, others ``utf-8`` or
``none``), name one twice, or name one and do not apply it. As browsers do in part, the bytes
decide: what is declared gzip or deflate and does not begin so is taken as it is.
"""

from __future__ import annotations

import zlib
from typing import Final

from laion_assets.download.errors import FetchRefused

_GZIP: Final = b"\x1f\x8b"
_GZIP_WBITS: Final = 31
_ZLIB_WBITS: Final = 15
_RAW_WBITS: Final = -15
_INFLATED: Final = frozenset({"gzip", "x-gzip", "deflate"})
_REFUSED: Final = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})
"""Codings that exist and were not asked for: their bytes are no image."""
_IMAGES: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8")
_MOST_CODINGS: Final = 2
"""Codings that are undone, one inside the other."""


def content_codings(field: str) -> list[str]:
    """The codings of a Content-Encoding field that must be undone, the outermost last.

    Raises :class:`FetchRefused` for one that was not asked for.
    """
    named = [name.strip().lower() for name in field.split(",")]
    if refused := _REFUSED.intersection(named):
        raise FetchRefused("http_other", f"Content-Encoding {min(refused)} was not asked for")
    codings = [name for name in named if name in _INFLATED]
    if len(codings) > _MOST_CODINGS:
        raise FetchRefused("http_other", f"{len(codings)} content codings, one inside the other")
    return codings


class Inflater:
    """Undoes one coding, piece by piece; what does not begin like the coding passes unchanged."""

    def __init__(self, coding: str, limit: int, *, cut: bool = False) -> None:
        """``cut``: leave out what is beyond the limit, instead of refusing the body."""
        self._coding, self._limit, self._cut = coding, limit, cut
        self._between = b""
        """What has come of the next member, where too little to know whether there is one."""
        self._begin = b""
        self._decided = False
        self._inflate: zlib._Decompress | None = None
        self._ended = False
        self._n = 0

    def add(self, data: bytes) -> bytes:
        """The bytes that come out. Raises :class:`FetchRefused` for damage, and over the limit."""
        if not self._decided:
            self._begin += data
            if len(self._begin) < 2:
                return b""
            data, self._decided = self._begin, True
            self._inflate = self._fitting(data)
        if self._inflate is None:
            return data
        out = b""
        if self._inflate.eof and not self._ended:
            data, self._between = self._between + data, b""
            if len(data) < len(_GZIP):
                self._between = data
                return b""
            self._next_member(data)
        while data and not self._ended:
            try:
                out += self._inflate.decompress(data, self._limit + 1 - self._n - len(out))
            except zlib.error as error:
                raise FetchRefused("http_other", f"Content-Encoding: {error}") from error
            if self._n + len(out) > self._limit:
                if not self._cut:
                    raise FetchRefused("too_large", f"over {self._limit} bytes")
                out, self._ended = out[: self._limit - self._n], True
                break
            data = self._inflate.unused_data
            if not self._inflate.eof:
                break
            if len(data) < len(_GZIP):
                self._between = data
                break
            self._next_member(data)
        self._n += len(out)
        return out

    def _next_member(self, data: bytes) -> None:
        """Several gzip members are one body (RFC 1952, 2.2); anything else behind is ignored."""
        self._ended = not data.startswith(_GZIP)
        if not self._ended:
            self._inflate = zlib.decompressobj(_GZIP_WBITS)

    def end(self) -> bytes:
        """What is left. Raises :class:`FetchRefused` if the compressed body is cut."""
        if not self._decided:
            return self._begin
        if self._inflate is not None and not self._ended and not self._inflate.eof:
            raise FetchRefused("connect", "the compressed body ended early")
        return b""

    def _fitting(self, begin: bytes) -> zlib._Decompress | None:
        if begin.startswith(_GZIP):
            return zlib.decompressobj(_GZIP_WBITS)
        if self._coding != "deflate" or begin.startswith(_IMAGES):
            return None
        is_zlib = begin[0] & 15 == zlib.DEFLATED and int.from_bytes(begin[:2], "big") % 31 == 0
        return zlib.decompressobj(_ZLIB_WBITS if is_zlib else _RAW_WBITS)
