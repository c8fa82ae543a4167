"""WAT files in, parquet of pairs out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets import schemas
from laion_assets.funnel import LISTED, REASONS, StageCounts
from laion_assets.pairs import extract
from laion_assets.pairs.extract import PairWriter, extract_files, extract_wat, read_counts
from laion_assets.pairs.rules import PairRules
from laion_assets.wat import Link, NoPagesError, Page
from laion_assets.wat.metadata import Html
from tests.wat.making import INFO, anchor, image, member, page, payload, write

TEXT = "a photo of the old house"
PLACE = {"crawl": "CC-MAIN-2021-04", "segment": "01", "wat_file": "crawl-data/a.warc.wat.gz"}


def pairs_of(
    tmp_path: Path, *members: bytes, **rules: object
) -> tuple[list[dict[str, object]], StageCounts]:
    wat = write(tmp_path / "a.gz", *members)
    _, counts = extract_wat(wat, tmp_path / "a.parquet", PairRules.model_validate(rules), **PLACE)
    assert counts.adds_up
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.remove_metadata() == schemas.PAIRS
    assert table.num_rows == counts.kept
    return table.to_pylist(), counts


def test_a_row(tmp_path: Path) -> None:
    links = [
        anchor("https://creativecommons.org/licenses/by/4.0/", rel="license"),
        image("../img/h.jpg", "A photo&nbsp;of the   old &quot;house&quot;"),
    ]
    rows, counts = pairs_of(tmp_path, INFO, page(links, "https://p.example/a/b/c.html"))
    url, text = "https://p.example/a/img/h.jpg", 'A photo of the old "house"'
    row = rows[0]
    score = row.pop("language_score")
    assert isinstance(score, float)
    assert 0.8 < score <= 1
    assert row == {
        "uid": schemas.uid_of(url, text),
        "url": url,
        "text": text,
        "language": "en",
        "license": "https://creativecommons.org/licenses/by/4.0/",
        "page_url": "https://p.example/a/b/c.html",
        **PLACE,
    }
    assert counts.rows() == [("pairs", "in", 1), ("pairs", "kept", 1)]
    wat_counts, pair_counts = read_counts(tmp_path / "a.parquet")
    assert (wat_counts.n_in, wat_counts.kept, pair_counts) == (2, 1, counts)


# One link for every reason; of a link's several faults, the first in order is the reason.
REFUSED = [
    ({"path": "AREA@/href", "url": "a", "alt": TEXT}, "not_image"),
    ({"path": "INPUT@/src", "url": "a.jpg", "alt": ""}, "not_image"),
    ({"path": "IMAGE@/src", "url": "a.jpg", "alt": TEXT}, "not_image"),
    ({"url": "a.jpg", "alt": TEXT}, "not_image"),
    (image("a.jpg"), "no_alt"),
    (image("a.jpg", ""), "no_alt"),
    (image("a.jpg", "&nbsp; \t\u200b"), "no_alt"),
    (image("data:,x"), "no_alt"),
    (image("a.jpg", "four"), "alt_too_short"),
    (image("a.jpg", "  &amp;&amp;&amp;&amp;  "), "alt_too_short"),
    (image("data:,x", "家"), "alt_too_short"),
    (image("a.jpg", "word " * 1000), "alt_too_long"),
    (image("data:,x", "word " * 1000), "alt_too_long"),
    ({**image("a.jpg"), "alt": 7}, "bad_value"),
    (image(None, TEXT), "bad_url"),
    (image("", TEXT), "bad_url"),
    (image("http://", TEXT), "bad_url"),
    (image("http://me:pw@h.example/a.jpg", TEXT), "bad_url"),
    (image("data:image/gif;base64,R0lGOD", TEXT), "url_scheme"),
    (image("data:" + "x" * 5000, TEXT), "url_scheme"),
    (image("ftp://me:pw@h.example/a.jpg", TEXT), "url_scheme"),
    (image("a.jpg?" + "x" * 5000, TEXT), "url_too_long"),
    (image("a.jpg?" + "x" * 5000, "ein Foto von dem alten Haus"), "url_too_long"),
    (image("a.svg", TEXT), "url_suffix"),
    (image("a.SVG?v=1.jpg", "ein Foto von dem alten Haus"), "url_suffix"),
    (image("favicon.ico#x", TEXT), "url_suffix"),
    (image("a.gif", TEXT), "url_suffix"),
    (image("a.jpg", "ein Foto von dem alten Haus"), "language"),
    (image("first.jpg#2", TEXT), "duplicate"),
]


# The same for rules that are off by default.
REFUSED_IF_ASKED = [
    (image("a.jpg", "house"), {"min_words": 2}, "alt_few_words"),
    (image("a.jpg", "IMG_0815.JPG"), {"refuse_file_name_texts": True}, "alt_file_name"),
    (image("i/1x1.png", TEXT), {"refuse_placeholders": True}, "url_placeholder"),
    (image("i/grey-placeholder.jpg?x=1", TEXT), {"refuse_placeholders": True}, "url_placeholder"),
    (image("spacer_2.png", TEXT), {"refuse_placeholders": True}, "url_placeholder"),
    *(
        (image(url, TEXT), {"refuse_placeholders": True}, "url_placeholder")
        for url in (
            "https://sb.scorecardresearch.com/p?c1=2",
            "https://mc.yandex.ru/watch/123",
            "https://www.facebook.com/tr?id=1&noscript=1",
        )
    ),
]


@pytest.mark.parametrize(("link", "rules", "reason"), REFUSED_IF_ASKED)
def test_refused_if_asked(
    tmp_path: Path, link: dict[str, str], rules: dict[str, object], reason: str
) -> None:
    _, counts = pairs_of(tmp_path, page([link]), **rules, languages=[])
    assert counts.rejects == {reason: 1}
    assert pairs_of(tmp_path, page([link]), languages=[])[1].kept == 1


@pytest.mark.parametrize(
    "link",
    [
        image("a.svg.jpg", TEXT),
        image("show.php?file=a.svg", TEXT),
        image("pixel-art/house.jpg", TEXT),
        image("emptynest.jpg", TEXT),
        image("https://www.facebook.com/travel/a.jpg", TEXT),
        image("https://notstatcounter.com/a.jpg", TEXT),
        image("a.jpg", "The file a.jpg of the old house"),
    ],
)
def test_what_only_resembles_is_kept(tmp_path: Path, link: dict[str, str]) -> None:
    strict = {"refuse_placeholders": True, "refuse_file_name_texts": True, "min_words": 2}
    assert pairs_of(tmp_path, page([link]), **strict, languages=[])[1].kept == 1


@pytest.mark.parametrize(("link", "reason"), REFUSED)
def test_refused(tmp_path: Path, link: dict[str, str], reason: str) -> None:
    first = image("first.jpg", TEXT)
    rows, counts = pairs_of(tmp_path, page([first, link, anchor("a", "no alt: not counted")]))
    assert [row["url"] for row in rows] == ["http://page.example/dir/first.jpg"]
    assert counts.rejects == {reason: 1}


def test_every_reason_is_tested() -> None:
    """All but those of the lists, which are applied after the extraction."""
    tested = {reason for *_, reason in (*REFUSED, *REFUSED_IF_ASKED)} | {"url_many_texts"}
    assert tested == set(REASONS["pairs"]) - LISTED


@pytest.mark.parametrize(("alt", "kept"), [("house", 1), ("hous", 0), ("w" * 60, 1), ("w" * 61, 0)])
def test_bounds_are_inclusive(tmp_path: Path, alt: str, kept: int) -> None:
    _, counts = pairs_of(tmp_path, page([image("a.jpg", alt)]), languages=[], max_text_chars=60)
    assert counts.kept == kept


def test_original_took_alt_texts_of_links_that_are_not_images(tmp_path: Path) -> None:
    links = [{"path": "AREA@/href", "url": "next.html", "alt": TEXT}, image("a.jpg", TEXT)]
    assert len([link for link in links if "alt" in link]) == 2
    rows, _ = pairs_of(tmp_path, page(links))
    assert [row["url"] for row in rows] == ["http://page.example/dir/a.jpg"]


def test_original_dropped_relative_links(tmp_path: Path) -> None:
    links = [image("a.jpg", TEXT), image("//h.example/b.jpg", TEXT)]
    assert [link for link in links if link["url"].startswith("http")] == []
    assert len(pairs_of(tmp_path, page(links))[0]) == 2


def test_original_left_entities_and_counted_their_characters(tmp_path: Path) -> None:
    assert len("&lt;3") == 5
    rows, counts = pairs_of(
        tmp_path, page([image("a.jpg", "&lt;3"), image("b.jpg", "Tom &amp; Jerry on a sofa")])
    )
    assert counts.rejects == {"alt_too_short": 1}
    assert [row["text"] for row in rows] == ["Tom & Jerry on a sofa"]


def test_original_shifted_columns_at_separators_in_the_text(tmp_path: Path) -> None:
    text = 'A house | a garden, "quoted"; and 6016 trees'
    assert len("|".join(["url", text, "0.31"]).split("|")) != 3
    rows, _ = pairs_of(tmp_path, page([image("a.jpg", text + "\n")]))
    assert rows[0]["text"] == text


def test_damage_and_bytes(tmp_path: Path) -> None:
    links = [image(f"{i}.jpg", TEXT) for i in range(25)]
    data = member(payload(links))
    rows, _ = pairs_of(tmp_path, data, b"garbage", page([image("last.jpg", TEXT)]), data[:50])
    assert [str(row["url"]).rsplit("/")[-1] for row in rows] == [
        *(f"{i}.jpg" for i in range(25)),
        "last.jpg",
    ]
    wat_counts, _ = read_counts(tmp_path / "a.parquet")
    assert wat_counts.rejects == {"bad_record": 1, "truncated": 1}
    first = (tmp_path / "a.parquet").read_bytes()
    pairs_of(tmp_path, data, b"garbage", page([image("last.jpg", TEXT)]), data[:50])
    assert (tmp_path / "a.parquet").read_bytes() == first


def test_rows_fill_row_groups_whatever_tables_they_come_in(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([{"url": str(i)} for i in range(26)], schemas.PAIRS)
    with PairWriter(tmp_path / "a.parquet") as writer:
        for start in range(0, 26, 4):
            writer.write(rows.slice(start, 4), row_group=10)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(i).num_rows for i in range(3)] == [10, 10, 6]
    assert pq.read_table(tmp_path / "a.parquet")["url"].to_pylist() == rows["url"].to_pylist()


def test_rows_and_counts_do_not_depend_on_how_many_links_are_judged_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = [link for link, _ in REFUSED]
    pages = []
    for number, size in enumerate((1, 0, 700, 3, 250, 40, 400)):
        links = [image(f"{number}/{i}.jpg", f"{TEXT} {i % 50}") for i in range(size)]
        licence = anchor(f"https://creativecommons.org/licenses/by/{number}.0/")
        at = f"http://h{number % 5}.example/"
        pages.append(page([licence, *links, *refused[number::7], *links[:9]], at))
    found = []
    for at_once, page_bytes in (
        (1, 1),
        (7, 10_000),
        (500, 10_000),
        (500, 4 << 20),
        (9999, 1 << 40),
    ):
        monkeypatch.setattr(extract, "_LINKS_AT_ONCE", at_once)
        monkeypatch.setattr(extract, "_PAGE_BYTES_AT_ONCE", page_bytes)
        rows, counts = pairs_of(tmp_path, *pages)
        found.append((rows, counts.to_json()))
    assert all(one == found[0] for one in found)
    assert len(found[0][0]) > 1200
    assert len({row["license"] for row in found[0][0]}) == 6


def test_few_large_pages_wait() -> None:
    taken = 0

    def large() -> Iterator[Page]:
        nonlocal taken
        for taken in range(1, 100):
            link = Link("IMG@/src", f"{taken}.jpg", TEXT)
            yield Page("http://h.example/", None, [link], Html(), size=1 << 20)

    next(extract.pairs_of(large(), PairRules(), StageCounts("pairs"), set()))
    assert taken == 4


def test_plain_files(tmp_path: Path) -> None:
    one = write(tmp_path / "1.gz", page([image("a.jpg", TEXT), image("b.jpg", TEXT)]))
    two = write(tmp_path / "2.gz", page([image("b.jpg", TEXT), image("c.jpg", TEXT)]))
    wat, pairs = extract_files([one, two], tmp_path / "o" / "p.parquet", PairRules())
    assert (wat.kept, pairs.kept, pairs.rejects) == (2, 3, {"duplicate": 1})
    rows = pq.read_table(tmp_path / "o" / "p.parquet").to_pylist()
    assert [(row["url"][-5:], row["wat_file"], row["crawl"]) for row in rows] == [
        ("a.jpg", "1.gz", ""),
        ("b.jpg", "1.gz", ""),
        ("c.jpg", "2.gz", ""),
    ]


@pytest.mark.parametrize(("most", "kept"), [(0, 9), (3, 5), (4, 9)])
def test_a_url_with_many_texts_in_all_files(tmp_path: Path, most: int, kept: int) -> None:
    """Four texts in two files, one of them twice, beside five pictures with two texts at most."""
    logo = [image("https://h.example/logo.jpg", f"{TEXT} number {i}") for i in range(4)]
    others = [image(f"https://h.example/{i}.jpg", f"{TEXT} {i % 2}") for i in (0, 1, 2, 3)]
    again = image("https://h.example/0.jpg", f"{TEXT} in winter")
    one = write(tmp_path / "1.gz", page([*logo[:2], *others]))
    two = write(tmp_path / "2.gz", page([again, *logo[1:]]))
    out = tmp_path / "p.parquet"
    rules = PairRules(max_texts_per_url=most)
    wat, pairs = extract_files([one, two], out, rules)
    assert read_counts(out) == [wat, pairs]
    assert pq.read_metadata(out).num_rows == pairs.kept == kept
    many = {"url_many_texts": 4} if kept < 9 else {}
    assert pairs.rejects == {"duplicate": 1} | many
    assert pairs.adds_up
    assert {path.name for path in tmp_path.iterdir()} == {"1.gz", "2.gz", "p.parquet"}


def test_a_file_without_a_page_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoPagesError, match="empty"):
        pairs_of(tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_missing_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        extract_wat(tmp_path / "no.gz", tmp_path / "out" / "a.parquet", PairRules(), **PLACE)
    assert list((tmp_path / "out").iterdir()) == []


links = st.fixed_dictionaries(
    {"path": st.sampled_from(["IMG@/src", "A@/href"])},
    optional={key: st.text(max_size=20) for key in ("url", "alt", "rel")},
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(links, max_size=5).map(lambda found: page(found)), max_size=4),
    st.text(max_size=20),
    st.binary(max_size=30),
)
def test_no_page_makes_it_raise(pages: list[bytes], base: str, noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        extra = page([image("a.jpg", TEXT)], base=base)
        _, counts = pairs_of(Path(folder), *pages, noise, extra, languages=[])
    assert counts.n_in >= 1
