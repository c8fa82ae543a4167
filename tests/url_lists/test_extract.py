"""From rows to pairs: the pair rules, released columns, our own releases, any cut into segments."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.funnel import StageCounts
from laion_assets.pairs.rules import PairRules
from laion_assets.schemas import PAIRS, SUBSET, sample_id_of, uid_of
from laion_assets.url_lists.columns import Columns
from laion_assets.url_lists.crawl import ListCrawl, list_crawl
from laion_assets.url_lists.extract import ExtractRange, RowRange, carried_schema
from laion_assets.url_lists.files import UrlListError, find_files
from laion_assets.url_lists.options import ReadOptions, UrlListOptions
from laion_assets.url_lists.rows import open_rows

DATA = Path(__file__).parent / "data"
LISTS = [
    *("laion400m.parquet", "relaion.parquet", "datacomp.parquet", "coyo.parquet"),
    *("cc12m.tsv", "list.csv", "list.jsonl", "spark"),
]


def extract(path: Path, out: Path, **rules: object) -> tuple[pa.Table, StageCounts]:
    """The pairs of one file with its own columns, and the counts."""
    (file,) = find_files([str(path)], ReadOptions())
    with open_rows(file, ReadOptions()) as rows:
        carried = carried_schema([(rows.schema, rows.columns)])
    make = ExtractRange({file.name: file}, ReadOptions(), carried)
    _, counts = make(
        Path(),
        out / "pairs.parquet",
        PairRules.model_validate(rules),
        **{"crawl": "", "segment": "", "wat_file": file.name},
    )
    return pq.read_table(out / "pairs.parquet"), counts


@pytest.mark.parametrize("name", LISTS)
def test_segments_of_a_list_have_its_rows_once_and_in_order(name: str, tmp_path: Path) -> None:
    listed = UrlListOptions(name="mine", files=(str(DATA / name),), rows_per_segment=7)
    crawl = ListCrawl(listed)
    segments = crawl.present()
    assert [segment.number for segment in segments] == ["00", "01", "02", "03"]
    assert len({segment.segment_id for segment in segments}) == 4
    tables = []
    for segment in segments:
        assert crawl.segment(listed.crawl, segment.number) == segment
        make = crawl.extract(segment.wat_files, segment.segment_id)
        for rows in segment.wat_files:
            place = {"crawl": listed.crawl, "segment": segment.number, "wat_file": rows}
            _, counts = make(Path(), tmp_path / "part.parquet", PairRules(), **place)
            assert counts.adds_up
            tables.append(pq.read_table(tmp_path / "part.parquet"))
            assert tables[-1].schema.names[: len(PAIRS)] == PAIRS.names
    sizes = [len(crawl.taken(segment)) for segment in segments]
    assert sizes == ([1, 2, 1, 1] if name == "spark" else [1, 1, 1, 1])
    urls = pa.concat_tables(tables)["url"].to_pylist()
    assert len(urls) == len(set(urls)) == 24
    if name != "spark":
        assert urls[0].endswith("/banana.jpg")
        assert [len(table) for table in tables] == [7, 7, 7, 3]


def test_rows_are_counted_again_when_they_are_read_in_another_way() -> None:
    listed = UrlListOptions(name="mine", files=("a.csv",))
    others: list[dict[str, object]] = [
        {"encoding": "latin-1"},
        {"format": "tsv"},
        {"text": "what"},
        {"rows_per_segment": 7},
    ]
    known = ListCrawl(listed).counted_by
    counted = [ListCrawl(listed.model_copy(update=other)).counted_by for other in others]
    assert [again == known for again in counted] == [False, False, False, True]


def test_the_settings_name_the_lists() -> None:
    listed = UrlListOptions(name="mine", files=("a.csv",))
    assert list_crawl([listed], "LIST-mine").options == listed
    with pytest.raises(UrlListError, match="no list whose crawl is LIST-yours"):
        list_crawl([listed], "LIST-yours")


@pytest.mark.parametrize(
    "rows",
    [RowRange("a#b.csv"), RowRange("x/a.csv", 0, 7), RowRange("a.csv", 7), RowRange("a#1.csv", 1)],
)
def test_a_range_is_read_from_its_name(rows: RowRange) -> None:
    assert RowRange.parse(str(rows)) == rows


def test_laions_released_columns_come_back(tmp_path: Path) -> None:
    released = pq.read_table(DATA / "laion400m.parquet")
    pairs, _ = extract(DATA / "laion400m.parquet", tmp_path)
    assert pairs["url"].to_pylist() == released["URL"].to_pylist()
    assert pairs["text"].to_pylist() == released["TEXT"].to_pylist()
    assert pairs["license"].to_pylist() == released["LICENSE"].to_pylist()
    for name in ("SAMPLE_ID", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"):
        assert pairs[f"source_{name}"].equals(released[name])


@pytest.mark.parametrize("name", ["laion.parquet", "caption-col.parquet", "folder/00000.parquet"])
def test_other_names_of_the_columns(name: str, tmp_path: Path) -> None:
    pairs, _ = extract(DATA / "laion-columns" / name, tmp_path, languages=[])
    assert pairs["url"].to_pylist() == [f"http://a.bugs.test/plain?{n}" for n in range(3)]
    texts = ["a photo of a house", 'caption two "quoted"', "third caption"]
    assert pairs["text"].to_pylist() == texts


def test_our_own_release_loads_back(tmp_path: Path) -> None:
    """Whatever its texts look like: they were cleaned once, and stay as they are."""
    rows = []
    for number, text in enumerate(["a &amp; b of the old house", "the <b>bold</b> red apple"]):
        url = f"https://a.example/{number}.jpg"
        row = dict.fromkeys(SUBSET.names)
        row |= {"SAMPLE_ID": sample_id_of(uid_of(url, text)), "URL": url, "TEXT": text}
        row |= {"page_url": f"https://a.example/{number}", "crawl": "CC-MAIN-2021-04"}
        row["LICENSE"] = "https://creativecommons.org/licenses/by/4.0/"
        rows.append(row)
    rows.append(rows[-1] | {"SAMPLE_ID": 1})  # of somebody else's
    pq.write_table(pa.Table.from_pylist(rows, SUBSET), tmp_path / "release.parquet")
    pairs, counts = extract(tmp_path / "release.parquet", tmp_path)
    assert counts.kept == 3
    ids = [sample_id_of(uid) for uid in pairs["uid"].to_pylist()]
    assert ids[:2] == [row["SAMPLE_ID"] for row in rows[:2]]
    assert pairs["text"].to_pylist() == [rows[0]["TEXT"], rows[1]["TEXT"], "the bold red apple"]
    assert pairs["license"].to_pylist() == [rows[0]["LICENSE"]] * 3
    assert pairs["page_url"].to_pylist()[0] == "https://a.example/0"
    assert pairs["source_crawl"].to_pylist() == ["CC-MAIN-2021-04"] * 3


def test_dirty_rows_end_where_they_should(tmp_path: Path) -> None:
    good = "https://a.example/{}.jpg"
    rows: list[tuple[bytes | None, bytes | None]] = [
        (good.format(1).encode(), b"a photo of the old house"),
        (None, b"a photo of the old house"),
        (b"   ", b"a photo of the old house"),
        (b"data:image/png;base64,aaaa", b"a photo of the old house"),
        (b"../relative.jpg", b"a photo of the old house"),
        (good.format(2).encode(), b"\xff\xfe not text"),
        (b"\xff", b"a photo of the old house"),
        (good.format(3).encode(), None),
        (good.format(4).encode(), b" \t\n"),
        (good.format(5).encode(), b"x" * 70_000),
        (good.format(6).encode(), b"hi"),
        (b"https://a.example/7.svg", b"a photo of the old house"),
        (good.format(8).encode(), b"ein Foto von einem alten Haus im Wald"),
        (good.format(9).encode(), b"<p>a photo\x00 of &lt;i&gt;the&lt;/i&gt; old house</p>"),
    ]
    urls, texts = zip(*rows, strict=True)
    kinds = {"URL": pa.binary(), "TEXT": pa.binary()}
    columns = [pa.array(urls, pa.binary()), pa.array(texts, pa.binary())]
    pq.write_table(pa.table(columns, names=list(kinds)), tmp_path / "dirty.parquet")
    pairs, counts = extract(tmp_path / "dirty.parquet", tmp_path)
    assert counts.adds_up
    assert counts.rejects == {
        "bad_url": 3,
        "url_scheme": 1,
        "bad_value": 2,
        "no_alt": 2,
        "alt_too_long": 1,
        "alt_too_short": 1,
        "url_suffix": 1,
        "language": 1,
    }
    assert pairs["text"].to_pylist() == ["a photo of the old house"] * 2


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_wrong_bytes_cost_a_caption_and_never_a_file(tmp_path: Path, kind: pa.DataType) -> None:
    def damaged(*values: bytes) -> pa.Array:
        raw = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
        stored = pa.array(values, raw.get(kind, pa.binary_view()))
        return pa.Array.from_buffers(kind, len(stored), stored.buffers())

    columns = {
        "url": damaged(b"https://a.example/1.jpg", b"https://a.example/2.jpg"),
        "text": damaged(b"a photo of the old house", b"\xff"),
        "page_url": damaged(b"https://a.example/\x1b[2J\n1", b"https://a.example/2"),
        "by": damaged(b"Jos\xe9", b"Ann"),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    pairs, counts = extract(tmp_path / "a.parquet", tmp_path)
    assert counts.rejects == {"bad_value": 1}
    assert pairs["source_by"].to_pylist() == ["Jos\ufffd"]
    assert pairs["page_url"].to_pylist() == ["https://a.example/%1B[2J1"]


def test_a_row_of_nothing_is_damaged(tmp_path: Path) -> None:
    lines = ['{"url": "https://a.example/1.jpg", "text": null}', "{broken", "{}"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    pairs, counts = extract(tmp_path / "a.jsonl", tmp_path)
    assert (len(pairs), counts.rejects) == (0, {"bad_value": 2, "no_alt": 1})


def test_a_value_that_its_column_cannot_hold_names_the_column(tmp_path: Path) -> None:
    late = datetime(9999, 1, 1, tzinfo=UTC)
    for name, unit, at in (("a", "s", late), ("b", "ns", datetime(2020, 1, 1, tzinfo=UTC))):
        row = {"url": ["https://a.example/1.jpg"], "text": ["a photo of the old house"]}
        table = pa.table(row | {"taken": pa.array([at], pa.timestamp(unit, "UTC"))})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    options = UrlListOptions(name="mine", files=(str(tmp_path),))
    crawl = ListCrawl(options)
    (segment,) = crawl.present()
    make = crawl.extract(segment.wat_files, segment.segment_id)
    place = {"crawl": "", "segment": "", "wat_file": "a.parquet"}
    with pytest.raises(UrlListError, match=r"column taken, timestamp.* cannot be made"):
        make(Path(), tmp_path / "part", PairRules(), **place)


def test_columns_of_several_types_get_one_that_holds_both() -> None:
    found = []
    for kind in (pa.int32(), pa.float64(), pa.null()):
        schema = pa.schema([("url", pa.string()), ("width", kind), ("flag", pa.bool_())])
        columns = _columns(others=("width", "flag"))
        found.append((schema, columns))
    assert carried_schema(found) == pa.schema(
        [("source_width", pa.float64()), ("source_flag", pa.bool_())]
    )
    text = pa.schema([("width", pa.string())])
    found.append((text, _columns(others=("width",))))
    assert carried_schema(found).field("source_width").type == pa.string()
    for one, other in ((pa.int64(), pa.float64()), (pa.int64(), pa.uint64())):
        schemas = [pa.schema([("url", pa.string()), ("n", kind)]) for kind in (one, other)]
        carried = carried_schema([(schema, _columns(others=("n",))) for schema in schemas])
        assert carried.field("source_n").type == pa.string()
    nested = pa.schema([("width", pa.list_(pa.int32()))])
    with pytest.raises(UrlListError, match=r"column width is .* and list"):
        carried_schema([*found, (nested, _columns(others=("width",)))])


def _columns(others: tuple[str, ...]) -> Columns:
    return Columns("url", None, others=others)
