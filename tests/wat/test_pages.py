"""WAT files are read as by the reference reader, and damage costs only the record that it hits."""

from __future__ import annotations

import gzip
import html
import json
import random
import re
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
import warcio
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.exceptions import ArchiveLoadFailed

from laion_assets.funnel import StageCounts
from laion_assets.wat import NoPagesError, Page, members, read_pages, records
from tests.wat.making import INFO, REQUEST, anchor, image, member, page, payload, warc, write

GOOD = [
    page([image(f"{i}.jpg", f"picture number {i}")], f"http://site{i}.example/") for i in range(6)
]
HOSTS = [f"http://site{i}.example/" for i in range(6)]


def read(path: Path) -> tuple[list[Page], StageCounts]:
    counts = StageCounts("wat")
    pages = list(read_pages(path, counts))
    assert counts.adds_up
    assert counts.kept == len(pages)
    return pages, counts


def reference(path: Path) -> list[tuple[str, str | None, list[tuple[str, str, str]]]]:
    """The same pages, read by warcio and the standard library's JSON."""
    pages = []
    with path.open("rb") as stream:
        for record in warcio.ArchiveIterator(stream):
            block = record.content_stream().read()
            if record.rec_type != "metadata":
                continue
            try:
                envelope = json.loads(block)["Envelope"]
                html = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
            except (ValueError, KeyError):
                continue
            links = [
                (link["path"], link.get("url"), link.get("alt"))
                for link in html.get("Links", [])
                if link["path"] == "IMG@/src" or "alt" in link
            ]
            url = record.rec_headers.get_header("WARC-Target-URI")
            pages.append((url, html.get("Head", {}).get("Base"), links))
    return pages


def test_agrees_with_warcio(tmp_path: Path) -> None:
    rnd = random.Random(7)
    words = ["red", "apple", "&amp;", "дом", "家", "\\", '"quoted"', "\t", "😀", ""]
    records = [INFO]
    for number in range(300):
        links = [
            rnd.choice(
                [
                    image(f"img/{number}.png", " ".join(rnd.choices(words, k=5))),
                    image("x.gif"),
                    image(None, "no source"),
                    anchor("next.html", "text"),
                    {"path": "AREA@/href", "url": "a", "alt": "an area"},
                ]
            )
            for _ in range(rnd.randrange(12))
        ]
        base = rnd.choice([None, "/base/", "http://other.example/"])
        records.append(member(REQUEST))
        records.append(page(links, f"http://h{number}.example/p?q={number}", base=base))
        records.append(member(b'{"Envelope":{"Payload-Metadata":{}}}'))
    path = write(tmp_path / "a.warc.wat.gz", *records)
    pages, counts = read(path)
    ours = [(p.url, p.base, [(li.path, li.url, li.alt) for li in p.links]) for p in pages]
    assert ours == reference(path)
    assert len(ours) == 300
    assert counts.rejects == {"not_html": 601}


def test_several_records_in_one_member(tmp_path: Path) -> None:
    both = gzip.compress(
        b"".join(warc(payload([image("a.jpg", "text")]), url) for url in HOSTS[:2]), mtime=0
    )
    path = write(tmp_path / "a.gz", both, GOOD[2])
    assert [page.url for page in read(path)[0]] == HOSTS[:3]


def test_line_feeds_alone(tmp_path: Path) -> None:
    record = warc(payload([image("a.jpg", "text")]), HOSTS[0]).replace(b"\r\n", b"\n")
    path = write(tmp_path / "a.gz", gzip.compress(record), gzip.compress(record))
    assert [page.url for page in read(path)[0]] == [HOSTS[0]] * 2 == [p[0] for p in reference(path)]


HEADER_LINES = [
    b"WARC-Type: metadata", b"WARC-Type:  metadata ", b"warc-type: metadata", b"WARC-Type: a b",
    b"WARC-Target-URI: http://h.example/", b"WARC-Target-URI: <http://h.example/>",
    b"WARC-Target-URI: http://h.example/a b", b"WARC-Target-URI:",
    b"WARC-Date: 2023-02-09T20:06:10Z", b"WARC-Date:2023", b"Content-Type: application/json",
    b"Content-Length: 4", b"content-length: 3", b"Content-Length: 2", b"Content-Length: x",
    b"WARC-Note: Content-Length: 1", b" folded: 1", b"",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(HEADER_LINES), max_size=3),
    st.lists(st.sampled_from(HEADER_LINES), max_size=3),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r\r\n"]),
)
def test_the_quick_way_reads_the_same_header(
    first: list[bytes], more: list[bytes], end: bytes
) -> None:
    usual = [HEADER_LINES[0], HEADER_LINES[4], HEADER_LINES[8]]

    def read_one(data: bytes) -> object:
        try:
            return list(records.split_records(data))
        except records.RecordError as error:
            return str(error)

    for lines in ([*usual, *first, b"Content-Length: 4", *more], [*first, *usual, *more]):
        data = end.join([b"WARC/1.0", *lines, b"", b"abcd"]) + b"\r\n\r\n"
        quick = read_one(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records, "_USUAL", lambda *_: None)
            assert read_one(data) == quick


def damaged(data: bytes, at: int, n: int = 20) -> bytes:
    noise = bytes(random.Random(at).randrange(256) for _ in range(n))
    return data[:at] + noise + data[at + n :]


BIG = member(
    payload([image(f"{i}{random.Random(i).random()}.jpg", "alt text") for i in range(900)])
)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        pytest.param(b"garbage between the members", "bad_record", id="garbage"),
        pytest.param(b"\x1f\x8b\x08", "bad_record", id="a gzip magic and nothing else"),
        pytest.param(damaged(BIG, len(BIG) // 2), "bad_record", id="corrupt deflate data"),
        pytest.param(damaged(BIG, 11), "bad_record", id="corrupt first block"),
        pytest.param(damaged(BIG, 0, 5), "bad_record", id="corrupt gzip header"),
        pytest.param(BIG[:-8] + b"12345678", "bad_record", id="wrong CRC"),
        pytest.param(BIG[: len(BIG) // 2], "bad_record", id="cut, and others follow"),
        pytest.param(gzip.compress(b"no WARC header"), "bad_record", id="not WARC"),
        pytest.param(
            gzip.compress(warc(b"{}").replace(b"Content-Length: 2", b"Content-Length: 99")),
            "bad_record",
            id="shorter than its Content-Length",
        ),
        pytest.param(
            gzip.compress(warc(b"{}").replace(b"Content-Length: 2", b"Content-Length: two")),
            "bad_record",
            id="Content-Length is no number",
        ),
        pytest.param(member(payload([image("a", "b")])[:-9]), "bad_json", id="JSON cut"),
        pytest.param(member(b""), "bad_json", id="no JSON"),
        pytest.param(member(b"[]"), "bad_json", id="not an object"),
        pytest.param(member(b"[" * 100_000), "bad_json", id="nested too deep"),
        pytest.param(member(REQUEST), "not_html", id="a request"),
        pytest.param(INFO, "not_html", id="warcinfo"),
        pytest.param(member(b'{"Envelope":{}}'), "not_html", id="no payload metadata"),
    ],
)
def test_damage_costs_the_record_it_hits(tmp_path: Path, middle: bytes, reason: str) -> None:
    path = write(tmp_path / "a.gz", *GOOD[:3], middle, *GOOD[3:])
    pages, counts = read(path)
    assert [page.url for page in pages] == HOSTS
    assert counts.rejects == {reason: 1}


def test_stream_readers_lose_the_rest_of_the_file(tmp_path: Path) -> None:
    """One bad member ends cc2dataset's reading, which is why we look for the next member."""
    path = write(tmp_path / "a.gz", *GOOD[:3], damaged(BIG, len(BIG) // 2), *GOOD[3:])
    found = []
    with pytest.raises(ArchiveLoadFailed), path.open("rb") as stream:
        for record in warcio.ArchiveIterator(stream):
            found.append(record.rec_headers.get_header("WARC-Target-URI"))
    assert found == HOSTS[:3]
    assert [page.url for page in read(path)[0]] == HOSTS


def test_two_damaged_members_in_a_row_are_two(tmp_path: Path) -> None:
    bad = damaged(BIG, len(BIG) // 2)
    pages, counts = read(write(tmp_path / "a.gz", GOOD[0], bad, bad, *GOOD[1:]))
    assert [page.url for page in pages] == HOSTS
    assert counts.rejects == {"bad_record": 2}


@pytest.mark.parametrize("cut", [1, 2, 5, 12, len(BIG) // 2, len(BIG) - 1])
def test_a_truncated_file_keeps_what_came_before(tmp_path: Path, cut: int) -> None:
    pages, counts = read(write(tmp_path / "a.gz", *GOOD, BIG[:cut]))
    assert [page.url for page in pages] == HOSTS
    assert counts.rejects == {"truncated": 1}


def test_bytes_after_the_last_member_are_no_truncation(tmp_path: Path) -> None:
    pages, counts = read(write(tmp_path / "a.gz", *GOOD, b"abc"))
    assert len(pages) == 6
    assert counts.rejects == {"bad_record": 1}


def test_next_member_is_found_across_the_edges_of_what_is_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_SCAN", 7)
    for gap in range(1, 16):
        path = write(tmp_path / "a.gz", GOOD[0], b"\x00" * gap, GOOD[1])
        assert [page.url for page in read(path)[0]] == HOSTS[:2]


def test_a_member_that_inflates_endlessly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MAX_MEMBER_BYTES", 1 << 20)
    bomb = gzip.compress(warc(b" " * (64 << 20)))
    pages, counts = read(write(tmp_path / "a.gz", GOOD[0], bomb, GOOD[1]))
    assert [page.url for page in pages] == HOSTS[:2]
    assert counts.rejects == {"bad_record": 1}


def test_only_links_that_matter(tmp_path: Path) -> None:
    links = [
        anchor("a.html", "text"),
        image("1.jpg"),
        {"path": "AREA@/href", "url": "b", "alt": ""},
        anchor("https://CreativeCommons.org/licenses/by/4.0/", rel="license"),
        {"path": "INPUT@/src", "url": "c"},
        image("2.jpg", "alt"),
    ]
    head = [{"path": "LINK@/href", "url": "//creativecommons.org/licenses/by/3.0/", "rel": "x"}]
    pages, _ = read(write(tmp_path / "a.gz", page(links, head=head, base="/b/")))
    assert pages[0].base == "/b/"
    assert [link.url for link in pages[0].links] == ["1.jpg", "b", "2.jpg"]
    assert [(link.url, link.rel) for link in pages[0].licences] == [
        ("//creativecommons.org/licenses/by/3.0/", "x"),
        ("https://CreativeCommons.org/licenses/by/4.0/", "license"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"<?xml version='1.0'?>\n<Error><Code>SlowDown</Code></Error>", "<Code>SlowDown</Code>"),
        (b'{"message": "rate exceeded"}', "rate exceeded"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), "zstd"),
        (b"any other bytes", "no WARC record"),
        (INFO + member(REQUEST), "only 2 other records"),
    ],
)
def test_a_file_without_pages_is_no_wat_file(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(NoPagesError, match=re.escape(said)):
        read(write(tmp_path / "a.gz", content))


PLAIN = [
    warc(payload([image(f"{i}.jpg", f"picture number {i}")]), url) for i, url in enumerate(HOSTS)
]


def test_an_uncompressed_file_is_read(tmp_path: Path) -> None:
    pages, counts = read(write(tmp_path / "a.warc.wat", *PLAIN))
    assert [page.url for page in pages] == HOSTS
    assert not counts.rejects


@pytest.mark.parametrize(
    ("middle", "lost"),
    [
        # Where a record's end is followed by no record, its Content-Length may be wrong.
        (b"garbage\r\n\r\n", HOSTS[2:3]),
        (PLAIN[0].replace(b"Content-Length: ", b"Content-Length: x"), []),
    ],
)
def test_damage_in_an_uncompressed_file_costs_what_it_hits(
    tmp_path: Path, middle: bytes, lost: list[str]
) -> None:
    pages, counts = read(write(tmp_path / "a", *PLAIN[:3], middle, *PLAIN[3:]))
    assert [page.url for page in pages] == [url for url in HOSTS if url not in lost]
    assert counts.rejects == {"bad_record": 1}


def test_an_uncompressed_file_that_is_cut_keeps_what_came_before(tmp_path: Path) -> None:
    pages, counts = read(write(tmp_path / "a", *PLAIN[:3], PLAIN[3][:-40]))
    assert [page.url for page in pages] == HOSTS[:3]
    assert counts.rejects == {"truncated": 1}


def test_a_gzip_header_without_end_is_damage(tmp_path: Path) -> None:
    endless = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 200_000
    pages, counts = read(write(tmp_path / "a.gz", *GOOD[:3], endless, *GOOD[3:]))
    assert [page.url for page in pages] == HOSTS
    assert counts.rejects == {"bad_record": 1}


def test_angle_brackets_around_the_address_are_dropped(tmp_path: Path) -> None:
    """As wget before 1.20 wrote them."""
    brackets = page([image("a.jpg", "a picture")], "<http://page.example/dir/>")
    assert [page.url for page in read(write(tmp_path / "a.gz", brackets))[0]] == [
        "http://page.example/dir/"
    ]


OLD, NEW = b"2018-02-09", b"2019-07-01"


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://a.example/\x1b[31m\x00b", "http://a.example/%1B[31m%00b"),
        ("http://a.example/a\tb", "http://a.example/ab"),
        ("http://a.example/\x85\u202eb", "http://a.example/%C2%85%E2%80%AEb"),
        ("http://a.example/a b", "http://a.example/a%20b"),
        ("http://a.example/häuser", "http://a.example/häuser"),
    ],
)
def test_an_address_has_no_control_characters(tmp_path: Path, written: str, url: str) -> None:
    wat = write(tmp_path / "a.gz", page([image("a.jpg", "a photo")], written))
    assert [one.url for one in read(wat)[0]] == [url]


@pytest.mark.parametrize(("date", "raw"), [(OLD, True), (b"2019-06-30", True), (NEW, False)])
def test_attributes_are_decoded_once_in_all_eras(tmp_path: Path, date: bytes, raw: bool) -> None:
    def written(text: str) -> str:
        return html.escape(text) if raw else text

    cc = "https://creativecommons.org/licenses/by/4.0/?a=1&b=2"
    links = [image(written("i.php?a=1&amp;b=2"), written('"fish" & chips')), anchor(written(cc))]
    record = gzip.compress(
        warc(payload(links, base=written("http://cdn.example/?x=1&y=2"))).replace(
            b"2023-02-09", date
        )
    )
    (one,) = read(write(tmp_path / "a.gz", record))[0]
    assert one.url == "http://page.example/dir/page.html"
    assert one.base == "http://cdn.example/?x=1&y=2"
    (link,), (licence,) = one.links, one.licences
    assert (link.url, link.alt) == ("i.php?a=1&amp;b=2", '"fish" & chips')
    assert licence.url == cc


pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([GOOD[0], BIG[:300], member(REQUEST), b"\x1f\x8b\x08", b"WARC/1.0\r\n"]),
    st.binary(max_size=60).map(lambda block: gzip.compress(b"WARC/1.0\r\n" + block)),
    st.binary(max_size=60).map(member),
    st.binary(max_size=30).map(lambda b: member(payload([image("a", "b")]).replace(b'"b"', b))),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=6), st.integers(0, 3000), st.integers(0, 255))
def test_no_bytes_make_it_raise(parts: list[bytes], at: int, value: int) -> None:
    data = bytearray(b"".join(parts))
    if data:
        data[at % len(data)] = value
    with tempfile.TemporaryDirectory() as folder, suppress(NoPagesError):
        read(write(Path(folder) / "a.gz", bytes(data)))


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=6))
def test_good_members_survive_any_neighbours(parts: list[bytes]) -> None:
    """A good member is always read, whatever comes before it."""
    last = page([image("z.jpg", "the last one")], "http://last.example/")
    with tempfile.TemporaryDirectory() as folder:
        pages, _ = read(write(Path(folder) / "a.gz", *parts, last))
    assert pages[-1].url == "http://last.example/"


def test_members_are_read_from_any_seekable_stream() -> None:
    assert [type(found) for found in members.read_members(BytesIO(GOOD[0] + GOOD[1]))] == [
        bytes,
        bytes,
    ]


def test_a_file_compressed_as_one_member_streams_and_keeps_what_comes_before_its_end(
    tmp_path: Path,
) -> None:
    whole = gzip.compress(b"".join(map(gzip.decompress, GOOD * 200)), 1)
    pages, counts = read(write(tmp_path / "a.gz", whole))
    assert [page.url for page in pages] == HOSTS * 200
    assert counts.rejects == {}

    pages, counts = read(write(tmp_path / "b.gz", whole[: len(whole) // 2]))
    assert counts.rejects == {"truncated": 1}
    assert [page.url for page in pages] == (HOSTS * 200)[: len(pages)]


def test_a_record_is_not_yielded_before_its_checksum_is_verified(tmp_path: Path) -> None:
    wrong = bytearray(GOOD[3])
    wrong[-8] ^= 1
    path = write(tmp_path / "a.gz", *GOOD[:3], bytes(wrong), *GOOD[4:])
    pages, counts = read(path)
    assert [page.url for page in pages] == [*HOSTS[:3], *HOSTS[4:]]
    assert counts.rejects == {"bad_record": 1}
