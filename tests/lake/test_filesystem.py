"""Reading a lake in an object store in place, as DuckDB does."""

from __future__ import annotations

import io
import random
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.lake import Lake, LocalLake
from laion_assets.lake.filesystem import ROOT, LakeFileSystem
from laion_assets.layout import SegmentKey
from tests.lake.stores import KEY, Between, Machine

KEYS = [SegmentKey("CC-MAIN-2000-05", f"{number:02}") for number in range(20)]
ROWS = 50_000


def written(lake: Lake, key: SegmentKey, first: int = 0, rows: int = ROWS) -> None:
    """Publish a table of numbers, random ones and texts; the file has about 1 MB."""
    numbers = range(first, first + rows)
    table = pa.table(
        {
            "n": pa.array(numbers, pa.int64()),
            "r": [random.random() for _ in numbers],
            "text": [random.randbytes(8).hex() for _ in numbers],
        }
    )
    with lake.publish("pairs", key, inputs={}, code_version=str(first)) as staging:
        pq.write_table(table, staging.path / "part-00000.parquet", row_group_size=10_000)
        (staging.path / "_notes.txt").write_text("no table")


def ask(lake: Lake, sql: str, keys: list[SegmentKey] | None = None) -> tuple[object, ...]:
    with duckdb.connect() as connection:
        root = lake.attach(connection)
        connection.execute(f"set allowed_directories = ['{root}']")
        connection.execute("set enable_external_access = false")
        files = [f"{root}/pairs/{key.hive}/part-00000.parquet" for key in keys or []]
        files = files or [f"{root}/pairs/crawl=*/segment=*/part-*.parquet"]
        found = connection.execute(
            f"select {sql} from read_parquet($files, hive_partitioning = true, "
            "hive_types = {'segment': varchar})",
            {"files": files},
        ).fetchone()
        assert found is not None
        return found


def test_a_question_transfers_what_it_reads(proxied: Machine, proxy: Between) -> None:
    here, there = proxied(), proxied()
    for number, key in enumerate(KEYS[:3]):
        written(here, key, first=number * ROWS)
    size = here.manifest("pairs", KEY).bytes
    question = "count(*), min(segment), max(segment)"
    sent = proxy.sent
    assert ask(there, question) == (3 * ROWS, "00", "02")
    assert proxy.sent - sent < 0.5 * 3 * size
    sent = proxy.sent
    assert ask(there, "sum(n)", KEYS[1:2]) == (sum(range(ROWS, 2 * ROWS)),)
    assert proxy.sent - sent < 0.6 * size, "the texts and the random numbers stay where they are"
    assert not list(there.local_root.rglob("*.parquet")), "nothing is copied whole"
    assert proxy.count(lambda: ask(there, "sum(n)", KEYS[1:2])) == 1, "the pointer is read"
    for key in KEYS[:3]:
        there.fetch("pairs", key)
    assert ask(there, "sum(n)") == (sum(range(3 * ROWS)),)
    sent = proxy.sent
    assert ask(there, "max(r) < 1") == (True,)
    assert proxy.sent - sent < 0.1 * size, "what is here is read here"


def test_many_partitions_cost_a_listing_and_a_read_each(proxied: Machine, proxy: Between) -> None:
    here, there = proxied(), proxied()
    for key in KEYS:
        written(here, key, rows=10)
    there.manifests("pairs")
    n = proxy.count(lambda: ask(there, "count(*)", KEYS))
    assert n <= 16 + 1 + len(KEYS)
    n = proxy.count(lambda: ask(there, "count(*)", KEYS))
    assert n <= 16 + 1, "the ranges are kept"


def test_a_connection_sees_one_state_of_a_partition(machine: Machine) -> None:
    here, there = machine(), machine()
    written(here, KEY)
    files = f"read_parquet('{ROOT}/pairs/{KEY.hive}/part-00000.parquet')"
    with duckdb.connect() as connection:
        there.attach(connection)
        assert connection.execute(f"select max(n) from {files}").fetchone() == (ROWS - 1,)
        written(here, KEY, first=10)
        with pytest.raises(duckdb.Error, match="was replaced while it was read"):
            connection.execute(f"select sum(length(text)) from {files}").fetchone()
    assert ask(there, "min(n)", [KEY]) == (10,)


def test_files_are_read_at_any_place(machine: Machine) -> None:
    here, there = machine(), machine()
    content = random.randbytes(1_000_000)
    with here.publish("index", inputs={}, code_version="1") as staging:
        (staging.path / "deep").mkdir()
        (staging.path / "deep" / "a.bin").write_bytes(content)
        (staging.path / "empty.bin").touch()
    files = LakeFileSystem(there.cache)
    with files.open(f"{ROOT}/index/deep/a.bin") as file:
        for _ in range(200):
            begin, n = random.randrange(1_000_000), random.choice([0, 1, 1_000, 200_000])
            assert file.seek(begin) == begin
            assert file.read(n) == content[begin : begin + n]
        assert file.seek(-10, io.SEEK_END) == 999_990
        assert file.read() == content[-10:]
        kept = list((there.local_root / ".store" / "ranges").rglob("*-*"))
        kept[0].unlink()
        kept[1].write_bytes(b"cut")
        file.seek(0)
        assert file.read() == content
    with files.open(f"{ROOT}/index/empty.bin") as file:
        assert file.read() == b""
    assert files.glob(f"{ROOT}/index/**/*.bin") == [
        f"{ROOT}/index/deep/a.bin",
        f"{ROOT}/index/empty.bin",
    ]
    for path in (f"{ROOT}/index", f"{ROOT}/index/x", f"{ROOT}/nothing/x", f"{ROOT}/index/../x"):
        assert not files.exists(path)
        with pytest.raises(FileNotFoundError):
            files.open(path)
    with pytest.raises(PermissionError):
        files.open(f"{ROOT}/index/deep/a.bin", "wb")


def test_ranges_are_deleted_before_the_cache_is_too_large(machine: Machine) -> None:
    here, there = machine(), machine()
    there.cache.limit_bytes = 600_000
    for number in range(4):
        asset = f"index{number}"
        with here.publish(asset, inputs={}, code_version="1") as staging:
            (staging.path / "a.bin").write_bytes(random.randbytes(250_000))
        with LakeFileSystem(there.cache).open(f"{ROOT}/{asset}/a.bin") as file:
            assert len(file.read()) == 250_000
    kept = list((there.local_root / ".store" / "ranges").rglob("*-*"))
    assert len(kept) == 2


def test_a_folder_is_read_by_the_same_paths(tmp_path: Path) -> None:
    lake = LocalLake.at(tmp_path)
    written(lake, KEY)
    assert ask(lake, "count(*), min(segment)", [KEY]) == (ROWS, "00")
