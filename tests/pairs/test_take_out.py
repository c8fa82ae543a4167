"""Listed pairs leave a segment's parts without its WAT files, and come back with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets import schemas
from laion_assets.funnel import StageCounts
from laion_assets.pairs.extract import OwnColumnsWriter, PairWriter, read_counts
from laion_assets.pairs.segment import SPAN_KEY
from laion_assets.pairs.take_out import start_from, take_out
from laion_assets.removals.active import Lists
from laion_assets.removals.entries import parse
from laion_assets.removals.entry import key_of

URLS = [f"http://h{i}.test/{i}.jpg" for i in range(9)]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three parts of three rows; the first part's counts have examples that name pairs."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(3):
        urls = URLS[3 * number : 3 * number + 3]
        columns = {
            "uid": [schemas.uid_of(url, "text") for url in urls],
            "url": urls,
            "language_score": [1.0] * 3,
        }
        counts = StageCounts("pairs", kept=3, n_in=3)
        for url in (*URLS[:2], URLS[8] + "x" * 400):
            counts.reject("duplicate", f"{url} text")
        with PairWriter(folder / f"part-{number:05d}.parquet") as writer:
            writer.write(
                pa.table(
                    [
                        pa.array(columns.get(field.name, ["text"] * 3), field.type)
                        for field in schemas.PAIRS
                    ],
                    schema=schemas.PAIRS,
                )
            )
            writer.note_counts([StageCounts("wat"), counts])
            writer.note(SPAN_KEY, f"[{number}, {number + 1}]")
    return folder


def urls_in(folder: Path) -> list[str]:
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("part-*.parquet"))]
    return [url for file in files for url in file.read(["url"])["url"].to_pylist()]


def test_listed_rows_leave_and_the_parts_record_the_entries(parts: Path) -> None:
    sample = schemas.sample_id_of(schemas.uid_of(URLS[5], "text"))
    lists = Lists(
        parse([f"url:{URLS[1]}", f"sample-id:{sample}"], "removals"),
        parse(["host:h1.test", "host:h4.test"], "blocklists"),
    )
    removed = take_out(parts, lists)
    assert urls_in(parts) == [URLS[i] for i in (0, 2, 3, 6, 7, 8)]
    assert removed == {
        ("removals", key_of("url", URLS[1])): 1,
        ("removals", key_of("sample-id", str(sample))): 1,
        ("blocklists", key_of("host", "h4.test")): 1,
    }
    assert take_out(parts, lists) == removed
    spans = [pq.read_metadata(part).metadata[SPAN_KEY] for part in sorted(parts.iterdir())]
    assert spans == [b"[0, 1]", b"[1, 2]", b"[2, 3]"]
    assert [read_counts(part)[1].examples for part in sorted(parts.iterdir())] == [
        {"duplicate": [f"{URLS[0]} text"]}
    ] * 3
    _, first = read_counts(parts / "part-00000.parquet")
    assert first.adds_up
    assert (first.n_in, first.kept, first.rejects) == (6, 2, {"duplicate": 3, "removed": 1})


def test_a_lists_own_columns_leave_with_their_rows_and_are_reused(
    parts: Path, tmp_path: Path
) -> None:
    def own(folder: Path) -> list[str]:
        files = [pq.ParquetFile(path) for path in sorted(folder.glob("_source/*.pq"))]
        return [value for file in files for value in file.read()["source_of"].to_pylist()]

    for part in sorted(parts.glob("part-*.parquet")):
        table = pq.read_table(part)
        of = pa.field("source_of", pa.string())
        pq.write_table(table.append_column(of, table["url"]), tmp_path / "raw.parquet")
        with OwnColumnsWriter(part, [of]) as writer:
            writer.copy(tmp_path / "raw.parquet", np.ones(3, dtype=np.bool_))
    assert own(parts) == urls_in(parts) == URLS
    lists = Lists(parse([f"url:{URLS[1]}", f"url:{URLS[2]}"], "removals"), parse([], "blocklists"))
    take_out(parts, lists)
    assert own(parts) == urls_in(parts) == [URLS[0], *URLS[3:]]
    (tmp_path / "next").mkdir()
    start_from(parts, tmp_path / "next", lists)
    assert own(tmp_path / "next") == urls_in(tmp_path / "next") == [URLS[0], *URLS[3:]]
    # An entry has left its list: what it took out must be read again, so nothing is reused.
    start_from(parts, tmp_path / "next", Lists(parse([], "removals"), parse([], "blocklists")))
    assert own(tmp_path / "next") == urls_in(tmp_path / "next") == []


def test_parts_are_reused_while_their_entries_are_listed(parts: Path, tmp_path: Path) -> None:
    one, other = parse([f"url:{URLS[1]}"], "removals"), parse([f"url:{URLS[7]}"], "removals")
    take_out(parts, Lists(one))
    again = tmp_path / "again"
    again.mkdir()
    start_from(parts, again, Lists(one.and_also(other)))
    removed = take_out(again, Lists(one.and_also(other)))
    assert len(urls_in(again)) == 7
    assert sum(removed.values()) == 2
    assert len(urls_in(parts)) == 8  # the published ones stay as they are

    start_from(parts, again, Lists(other))  # an entry is gone: only the WAT files know its pairs
    assert urls_in(again) == []
