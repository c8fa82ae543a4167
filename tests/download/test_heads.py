"""Answers with heads and bodies as servers write them, over a real connection."""

from __future__ import annotations

import gzip
import zlib

import pytest

from laion_assets.download.bodies import Inflater
from laion_assets.download.errors import FetchRefused
from laion_assets.download.heads import MAX_HEAD_BYTES, mended
from tests.download.conftest import Answer, Listener, get, redirect

BODY = b"\xff\xd8\xff" + bytes(range(256)) * 100
LENGTH = f"Content-Length: {len(BODY)}"
HALVES = BODY[:99], BODY[99:]
RAW = zlib.compressobj(wbits=-15)
DEFLATED = RAW.compress(BODY) + RAW.flush()


def raw(*lines: str | bytes, body: bytes = BODY, end: bytes = b"\r\n", by: int = 0) -> Answer:
    """An answer of these header lines, sent ``by`` bytes at a time."""
    encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
    head = end.join([b"HTTP/1.1 200 OK", b"Connection: close", *encoded, b"", b""])

    def send(connection: object) -> None:
        whole = head + body
        for start in range(0, len(whole) if by else 1, by or 1):
            connection.sendall(whole[start : start + by] if by else whole)  # type: ignore[attr-defined]

    return send


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    "answer",
    [
        raw(LENGTH, "Content-Security-Policy: " + "x" * 9_000),
        raw(LENGTH, "Link: " + "x" * 34_000),
        raw(LENGTH, *(f"X-{n}: {n}" for n in range(200))),
        raw("this is no header", LENGTH),
        raw(": no name", LENGTH),
        raw("X-Caf\u00e9: a", LENGTH),
        raw("X@Foo[1]: a", LENGTH),
        raw("X Powered By: me", "Content-Security Policy: y", LENGTH),
        raw(f"Content-Length : {len(BODY)}"),
        raw(b"X-A: a\rb", LENGTH),
        raw(b"X-A: a\0b", LENGTH),
        raw("X-A: a", "  continued", LENGTH),
        raw(LENGTH, LENGTH),
        raw(f"{LENGTH}, {len(BODY)}"),
        raw("Content-Length: 7", "Transfer-Encoding: chunked", body=CHUNKED),
        raw("Transfer-Encoding: identity", LENGTH),
        raw("Transfer-Encoding: identity"),
        raw(LENGTH, end=b"\n"),
        raw(LENGTH, "X-A: b", by=7),
        *(
            raw(LENGTH, f"Content-Encoding: {none}")
            for none in ("utf-8", "aws-chunked", "8bit", "base64", "binary", "none")
        ),
        raw(LENGTH, "Content-Encoding: identity, identity"),
        raw("Content-Encoding: aws-chunked, gzip", body=gzip.compress(BODY)),
        raw(LENGTH, "Content-Encoding: gzip"),
        raw(LENGTH, "Content-Encoding: deflate"),
        raw("Content-Encoding: identity, gzip", body=gzip.compress(BODY)),
        raw("Content-Encoding: gzip, gzip", body=gzip.compress(BODY)),
        raw("Content-Encoding: gzip, gzip", body=gzip.compress(gzip.compress(BODY))),
        raw("Content-Encoding: gzip", "Content-Encoding: gzip", body=gzip.compress(BODY)),
        raw("Content-Encoding: deflate", body=zlib.compress(BODY)),
        raw("Content-Encoding: deflate", body=DEFLATED),
        raw(
            "Content-Encoding: gzip",
            body=gzip.compress(BODY[:99]) + gzip.compress(BODY[99:]),
            by=50,
        ),
        raw("Content-Encoding: gzip", body=gzip.compress(BODY) + b"trailing"),
    ],
)
def test_what_browsers_take_is_taken(web: Listener, answer: Answer) -> None:
    web.routes["/a.jpg"] = answer
    assert get(f"http://site.test:{web.port}/a.jpg").body == BODY


def test_a_long_location_is_followed(web: Listener) -> None:
    to = "/b.jpg?" + "x" * 9_000
    web.routes["/a.jpg"] = redirect(to)
    web.routes[to] = raw(LENGTH)
    assert get(f"http://site.test:{web.port}/a.jpg").body == BODY


def test_an_interim_answer_comes_before_the_answer(web: Listener) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"

    def send(connection: object) -> None:
        connection.sendall(hints)  # type: ignore[attr-defined]
        raw("no header", LENGTH)(connection)  # type: ignore[arg-type]

    web.routes["/a.jpg"] = send
    assert get(f"http://site.test:{web.port}/a.jpg").body == BODY


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (raw(LENGTH, f"Content-Length: {len(BODY) + 1}"), "http_other"),
        (raw(f"Content-Length: +{len(BODY)}"), "http_other"),
        (raw(f"Content-Length: {len(BODY) - 10}"), "http_other"),
        (raw("Transfer-Encoding: chunked", body=CHUNKED.replace(b"\r\n", b"\n")), "http_other"),
        (raw(LENGTH, "X: " + "x" * MAX_HEAD_BYTES), "http_other"),
        (raw(LENGTH, *(f"X-{n}: {n}" for n in range(2_000))), "http_other"),
        (raw(LENGTH, "Content-Encoding: br"), "http_other"),
        (raw(LENGTH, "Content-Encoding: gzip, gzip, gzip"), "http_other"),
        (raw("Content-Encoding: gzip", body=gzip.compress(BODY)[:-9]), "connect"),
        (raw("Content-Encoding: gzip", body=gzip.compress(bytes(30_000_000))), "too_large"),
        (
            raw("Content-Encoding: gzip", body=gzip.compress(bytes(15_000_000)) * 2),
            "too_large",
        ),
        (lambda connection: connection.sendall(b"what is this?\n"), "http_other"),
        (lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-"), "connect"),
    ],
)
def test_what_is_ambiguous_or_boundless_is_refused(
    web: Listener, answer: Answer, reason: str
) -> None:
    web.routes["/a.jpg"] = answer
    with pytest.raises(FetchRefused) as refused:
        get(f"http://site.test:{web.port}/a.jpg")
    assert refused.value.reason == reason


@pytest.mark.parametrize("by", [1, 2, 7, 1000])
def test_gzip_members_are_one_body_wherever_pieces_end(by: int) -> None:
    packed = b"".join(map(gzip.compress, HALVES))
    for behind in (b"", b"trailing", b"\x1f"):
        inflater = Inflater("gzip", len(BODY))
        pieces = [packed[at : at + by] for at in range(0, len(packed), by)]
        assert b"".join(map(inflater.add, [*pieces, behind])) + inflater.end() == BODY
    inflater = Inflater("gzip", len(BODY))
    assert b"".join(inflater.add(gzip.compress(half)) for half in HALVES) == BODY


def test_a_long_robots_txt_is_read_as_far_as_it_counts() -> None:
    inflater = Inflater("gzip", 1000, cut=True)
    assert inflater.add(gzip.compress(BODY)) == BODY[:1000]
    assert inflater.add(gzip.compress(BODY)) + inflater.end() == b""


def test_a_sound_head_is_not_changed() -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai\r\nX-Robots-Tag: all\r\nContent-Length: 3\r\n\r\n"
    )
    assert mended(head) == head


def test_a_mended_head_needs_no_more_mending() -> None:
    """Control characters and empty continuations leave no other value than a plain one."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\x01\r\nX: y\r\n \r\n\r\n"
    assert mended(head) == b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 3\r\n\r\n"
    assert mended(mended(head)) == mended(head)
