"""One bad value costs its link, not its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from laion_assets.funnel import StageCounts
from laion_assets.wat import read_pages
from laion_assets.wat.lenient import NotJsonError, read_html
from tests.wat.making import image, member, payload, write

GOOD = image("good.jpg", "a photo of the good old house")
BAD = image("bad.jpg", "BAD")


def replaced(old: bytes, new: bytes) -> bytes:
    """A page with a bad link and a good one, where some bytes of the JSON are others."""
    block = payload([BAD, GOOD])
    assert block.count(old) == 1
    return block.replace(old, new)


@pytest.mark.parametrize(
    "value",
    [
        b"7",
        b"null",
        b"[]",
        b"{}",
        b'["x"]',
        b"NaN",
        b"true",
        b'"\\ud83d"',
        b'"a \\udc00 b"',
        b'"a \xff\xfe b"',
        b'"a \x01 b"',
    ],
)
def test_a_bad_value_costs_its_link(tmp_path: Path, value: bytes) -> None:
    counts = StageCounts("wat")
    path = write(tmp_path / "a.gz", member(replaced(b'"BAD"', value)))
    (page,) = read_pages(path, counts)
    links = page.links
    assert counts.rejects == {}
    sound = [link for link in links if not link.damaged]
    assert ("good.jpg", GOOD["alt"]) in [(link.url, link.alt) for link in sound]
    assert [link.url for link in links if link.damaged] == ([] if value == b"null" else ["bad.jpg"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Página | Страница".encode(), b"\xff\xfe"),
        ("Página | Страница".encode(), b"a\x02b"),
        (b'"Compressed":true', b'"Compressed":NaN'),
        (b'"Offset":"92892"', b'"Offset":-Infinity'),
        (b'{"Metas"', b'{"Base":["http://x.example/"],"Metas"'),
        (b'{"Metas"', b'{"Link":null,"Metas"'),
        (b'{"Metas"', b'{"Link":[null,7],"Metas"'),
        (b'"Links":[', b'"Links":[null,'),
    ],
)
def test_what_is_not_asked_for_costs_nothing(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = write(tmp_path / "a.gz", member(replaced(old, new)))
    (page,) = read_pages(path, StageCounts("wat"))
    assert page.base is None
    assert [(link.url, link.damaged) for link in page.links] == [
        ("bad.jpg", False),
        ("good.jpg", False),
    ]


@pytest.mark.parametrize("head", [None, [], "x", 7])
def test_a_head_of_another_type_is_none(head: object) -> None:
    value = json.loads(payload([GOOD]))
    html = value["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
    html["Head"] = head
    found = read_html(json.dumps(value).encode())
    assert found is not None
    assert (found.head.base, len(found.links)) == (None, 1)


@pytest.mark.parametrize(
    "block", [b"", b"{", b"[]", b'"x"', b'{"Envelope": []}', b"[" * 100_000, b"\xff"]
)
def test_what_is_not_json_is_said_so(block: bytes) -> None:
    with pytest.raises(NotJsonError):
        read_html(block)
