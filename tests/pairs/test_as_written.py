"""Pairs of records as Common Crawl's writers and others wrote them, from the file to the rows.

The parts are tested in tests/wat; these are small copies of whole files that were reported to lose
pairs or to give wrong ones.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from laion_assets.cli import main
from laion_assets.funnel import StageCounts
from laion_assets.pairs.extract import extract_files
from laion_assets.pairs.rules import PairRules
from tests.wat.making import anchor, image, payload, warc, write

TEXT = "a photo of the old house"
OLD, NEW = "2018-02-09", "2021-05-09"
"""Before and after Common Crawl's writer began to decode character references in attributes."""


def record(block: bytes, date: str = NEW, url: str = "http://page.example/dir/page.html") -> bytes:
    return gzip.compress(warc(block, url).replace(b"2023-02-09", date.encode()))


def pairs_of(tmp_path: Path, *members: bytes) -> tuple[list[dict[str, Any]], list[StageCounts]]:
    wat, out = write(tmp_path / "in.warc.wat.gz", *members), tmp_path / "out.parquet"
    counts = extract_files([wat], out, PairRules(languages=[]))
    assert all(of_stage.adds_up for of_stage in counts)
    return pq.read_table(out).to_pylist(), list(counts)


def changed(old: bytes, new: bytes, *links: dict[str, Any]) -> bytes:
    """A page of these links, or of one good one, with other bytes in its JSON."""
    block = payload(links or [image("http://a.example/1.jpg", TEXT)])
    assert block.count(old) == 1
    return record(block.replace(old, new))


def test_of_the_old_era_references_are_decoded_in_urls_base_and_licence(tmp_path: Path) -> None:
    links = [
        image("th.jpg?pubId=1&amp;videoId=2", "former player: &quot;Cristiano is the best&quot;"),
        image("../pic.php?a=1&#38;b=2&#x3D;3", "a photo of a red apple on the table"),
        anchor("https&#58;//creativecommons.org/licenses/by/4.0/", rel="license"),
    ]
    rows, _ = pairs_of(tmp_path, record(payload(links, base="http&#58;//cdn.example/x&#47;"), OLD))
    assert [(row["url"], row["text"]) for row in rows] == [
        (
            "http://cdn.example/x/th.jpg?pubId=1&videoId=2",
            'former player: "Cristiano is the best"',
        ),
        ("http://cdn.example/pic.php?a=1&b=2=3", "a photo of a red apple on the table"),
    ]
    assert {row["license"] for row in rows} == {"https://creativecommons.org/licenses/by/4.0/"}


def test_since_then_urls_are_left_and_texts_that_were_escaped_twice_are_not(tmp_path: Path) -> None:
    literal = "http://cdn.example/find?title=fish%20&amp;chips"
    links = [image(literal, TEXT), image("a.jpg?w=1&h=2", "Plate of fish &amp; chips by the sea")]
    rows, _ = pairs_of(tmp_path, record(payload(links)))
    assert [(row["url"], row["text"]) for row in rows] == [
        (literal, TEXT),
        ("http://page.example/dir/a.jpg?w=1&h=2", "Plate of fish & chips by the sea"),
    ]


def test_what_is_no_reference_in_an_attribute_stays(tmp_path: Path) -> None:
    texts = [
        "Our new oven&microwave for the kitchen",
        "Map of the city&region with all the roads",
        "A plan of the shopping&center near the river",
        "fish&notes on the table in the house",
        "the page at index.php?a=1&copy=2 on the screen",
    ]
    links = [image(f"{i}.jpg", text) for i, text in enumerate(texts)]
    rows, _ = pairs_of(tmp_path, record(payload(links), OLD))
    assert [row["text"] for row in rows] == texts


def test_the_same_picture_is_the_same_pair_in_both_eras(tmp_path: Path) -> None:
    raw, decoded = "http://cdn.example/t.jpg?a=1&amp;b=2", "http://cdn.example/t.jpg?a=1&b=2"
    both = (record(payload([image(raw, TEXT)]), OLD), record(payload([image(decoded, TEXT)]), NEW))
    rows, (_, pairs) = pairs_of(tmp_path, *both)
    assert [row["url"] for row in rows] == [decoded]
    assert pairs.rejects == {"duplicate": 1}


SECOND = image("http://a.example/2.jpg", "a second photo of the old house")
BAD = image("http://a.example/1.jpg", "BAD")


@pytest.mark.parametrize(
    "alt", [b'"\\ud83d a photo of the old house"', b'"caf\xe9 photo"', b'"a\tb\x01c of it"', b"7"]
)
def test_a_bad_text_costs_its_link_alone(tmp_path: Path, alt: bytes) -> None:
    good = record(payload([image("http://a.example/good.jpg", TEXT)]), url="http://good.example/")
    rows, (wat, pairs) = pairs_of(tmp_path, changed(b'"BAD"', alt, BAD, SECOND), good)
    assert [row["url"] for row in rows] == ["http://a.example/2.jpg", "http://a.example/good.jpg"]
    assert (wat.kept, pairs.rejects) == (2, {"bad_value": 1})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"Compressed":true', b'"Compressed":NaN'),
        ("Página | Страница".encode(), b"caf\xe9"),
        (b'{"Metas"', b'{"Base":null,"Link":null,"Metas"'),
        (b'{"Metas"', b'{"Base":["http://a.example/","http://b.example/"],"Metas"'),
        (b'"Links":[', b'"Links":[null,"str",'),
    ],
)
def test_odd_values_elsewhere_cost_nothing(tmp_path: Path, old: bytes, new: bytes) -> None:
    rows, (wat, pairs) = pairs_of(tmp_path, changed(old, new))
    assert [row["url"] for row in rows] == ["http://a.example/1.jpg"]
    assert (wat.kept, pairs.kept) == (1, 1)


@pytest.mark.parametrize("head", [None, []])
def test_a_head_that_is_none_costs_nothing(tmp_path: Path, head: object) -> None:
    value = json.loads(payload([image("1.jpg", TEXT)]))
    of_response = value["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]
    of_response["HTML-Metadata"]["Head"] = head
    rows, _ = pairs_of(tmp_path, record(json.dumps(value).encode()))
    assert [row["url"] for row in rows] == ["http://page.example/dir/1.jpg"]


def test_an_address_in_angle_brackets_is_one(tmp_path: Path) -> None:
    page = record(payload([image("pic/1.jpg", TEXT)]), url="<http://page.example/dir/page.html>")
    rows, _ = pairs_of(tmp_path, page)
    assert [row["url"] for row in rows] == ["http://page.example/dir/pic/1.jpg"]
    assert rows[0]["page_url"] == "http://page.example/dir/page.html"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "in.warc.wat.gz",
            b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>",
            "SlowDown",
        ),
        ("in.warc.wat.zst", b"\x28\xb5\x2f\xfd" + bytes(40), "zstd"),
        ("in.warc.wat.gz", b"", "the file is empty"),
    ],
)
def test_a_file_that_is_no_wat_ends_the_command(
    tmp_path: Path, name: str, content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wat, out = write(tmp_path / name, content), tmp_path / "out.parquet"
    assert main(["pairs", str(wat), "-o", str(out)]) == 1
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_an_uncompressed_file_is_read(tmp_path: Path) -> None:
    rows, _ = pairs_of(tmp_path, warc(payload([image("1.jpg", TEXT)])))
    assert [row["url"] for row in rows] == ["http://page.example/dir/1.jpg"]
