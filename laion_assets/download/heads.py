"""The head of an HTTP answer, as servers write it, mended for a strict parser.

Browsers, curl and urllib ignore a header line that is none and take what is unambiguous; aiohttp's
parser refuses the whole answer. What is left ambiguous (two different lengths, say) stays as it is,
and is refused.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler

from laion_assets.download.errors import FetchRefused

MAX_HEAD_BYTES: Final = 256 << 10
"""Maximum bytes of a head; browsers bound it likewise."""
MAX_FIELDS: Final = 1000

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]+")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_LONGEST_END: Final = 3
_TOO_LONG: Final = b"a head of too many bytes\r\n\r\n"
"""What the parser gets in the place of one, and refuses."""
_INTERIM: Final = re.compile(rb"HTTP/1\.\d 1\d\d")


def mended(head: bytes) -> bytes:
    """The head with lines that are no header field left out, and unambiguous framing.

    ``head``: the bytes up to the end of the blank line. Lengths that are the same are one; a length
    beside ``Transfer-Encoding: chunked`` is ignored, as RFC 9112 (6.3) has it; the transfer coding
    ``identity`` is none. A continued line belongs to the line before.
    """
    status, *lines = re.split(rb"\r?\n", head.rstrip(b"\r\n"))
    fields: list[tuple[bytes, bytes]] = []
    for line in (_UNSAFE.sub(b" ", line) for line in lines):
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1] = fields[-1][0], (fields[-1][1] + b" " + line.strip()).strip()
            continue
        name, colon, value = line.partition(b":")
        if colon and _TOKEN.fullmatch(name.strip()):
            fields.append((name.strip(), value.strip()))
    fields = _framed(fields)
    mended_lines = [status.rstrip(), *(b"%b: %b" % field for field in fields)]
    return b"\r\n".join([*mended_lines, b"", b""])


def _framed(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    codings = [
        coding.strip().lower()
        for name, value in fields
        if name.lower() == b"transfer-encoding"
        for coding in value.split(b",")
    ]
    lengths = {
        length.strip()
        for name, value in fields
        if name.lower() == b"content-length"
        for length in value.split(b",")
    }
    framing = (b"transfer-encoding", b"content-length")
    others = [field for field in fields if field[0].lower() not in framing]
    codings = [coding for coding in codings if coding not in (b"identity", b"")]
    if codings:
        return [*others, (b"Transfer-Encoding", b", ".join(codings))]
    return [*others, *((b"Content-Length", length) for length in sorted(lengths))]


class _MendingHandler(ResponseHandler):
    """Mends each answer's head before the parser sees it, and ends one of too many bytes.

    Whoever reads a body sees nothing of interim heads, chunk extensions and trailers.
    """

    def __init__(self, *args: Any, most: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._head: bytearray | None = None
        self._most, self._received = most, 0
        self._refused: FetchRefused | None = None

    def set_response_params(self, **params: Any) -> None:
        self._head, self._received = bytearray(), 0  # an answer is to come
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._most:
            self._end_flood()
            return
        if self._head is None:
            super().data_received(data)
            return
        # The end may begin in what has come before; the rest was searched then.
        start = max(0, len(self._head) - _LONGEST_END)
        self._head += data
        while self._head is not None:
            end, start = _HEAD_END.search(self._head, start), 0
            if (end.end() if end else len(self._head)) > MAX_HEAD_BYTES:
                self._head = None
                super().data_received(_TOO_LONG)
                return
            if end is None:
                return
            head, rest = bytes(self._head[: end.end()]), self._head[end.end() :]
            # After an interim answer, such as 103 Early Hints, another head follows.
            self._head = rest if _INTERIM.match(head) else None
            super().data_received(
                mended(head) if self._head is not None else mended(head) + bytes(rest)
            )

    def _end_flood(self) -> None:
        self._refused = FetchRefused("too_large", f"over {self._most} bytes on the wire")
        (self if self._payload is None else self._payload).set_exception(self._refused)
        # The parser would find, at the end of the connection, that the body is not whole.
        self._head = self._parser = self._payload = None
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head:  # what came is no whole head: the parser says what it is
            whole, self._head = bytes(self._head), None
            super().data_received(whole)
        body = self._payload
        super().connection_lost(self._refused or exc)
        if body is not None and not body.is_eof() and body.exception() is None:
            # The parser refused a trailer; whoever reads the body would wait until its deadline.
            body.set_exception(aiohttp.ClientPayloadError("the connection ended in the body"))


class LenientConnector(aiohttp.TCPConnector):
    """aiohttp's connector, whose connections read heads as browsers do, and end an answer that is
    not done in twice the bytes of the largest body: chunks may be small, but not all framing.

    It bounds no connections: the downloader's semaphores do, and waiting for them does not count as
    an image's time.
    """

    def __init__(self, largest_body: int, **options: Any) -> None:
        super().__init__(limit=0, **options)
        most = 2 * largest_body + MAX_HEAD_BYTES
        # aiohttp has no parameter for it.
        make: Any = functools.partial(_MendingHandler, loop=self._loop, most=most)
        self._factory = make
