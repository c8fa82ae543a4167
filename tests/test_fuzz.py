"""The targets of ``make fuzz`` hold for their own seeds, and for what fuzzing has found."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.fuzz.targets import TARGETS


def without_palette() -> bytes:
    """A PNG of palette colours, one of them transparent, that lacks its palette."""
    body = io.BytesIO()
    Image.new("RGB", (4, 4)).convert("P").save(body, "PNG", transparency=3)
    before, _, after = body.getvalue().partition(b"PLTE")
    size = int.from_bytes(before[-4:], "big")
    return before[:-4] + after[size + 4 :]


FOUND = {
    "picture": [b"c" + without_palette()],
    "list": [b"https://example.org/a.jpg?\xc3\xbc # why\n"],
    "pointer": [b"m\x9f\x9ae\xff\xff\xff"],  # infinite seconds in a manifest
    "http": [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\x01\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 3\r\n \r\n\r\n",
    ],
    "manifest": [b"p" + b"[" * 100_000, b"p[]", b'p{"counts": [1]}', b"p\xff"],
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_its_seeds(name: str) -> None:
    for seed in (*TARGETS[name].seeds(), *FOUND.get(name, ())):
        TARGETS[name].check(seed)
