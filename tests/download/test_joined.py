"""Shards' rows in few large files, as the lake has them: joined, read, taken apart."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from laion_assets.clip.shards import count_rows, digest_of_rows, find_shards, read_rows
from laion_assets.defs.checks import shards_whole, successes_in
from laion_assets.download import joined
from laion_assets.download.joined import join, take_apart
from laion_assets.download.preview import contact_sheet
from laion_assets.download.shard_files import (
    SHARDS,
    files_of,
    ledger_of,
    read_ledger,
    read_shard,
    rows_in_turn,
    shards_in,
    shards_of,
    tar_path,
)
from laion_assets.download.shards import read_stats, write_rows
from laion_assets.layout import SegmentKey
from laion_assets.removals.entries import parse
from laion_assets.schemas import FETCHES, IMAGES
from laion_assets.tables import read_parquet, rows_in
from tests.conftest import heard
from tests.download.conftest import (
    SIZE,
    Listener,
    N,
    download,
    options_for,
    run,
    urls,
    write_pairs,
)
from tests.readers import assert_readable

pytestmark = pytest.mark.filterwarnings("ignore:value is deprecated:DeprecationWarning")

KEY = SegmentKey("CC-MAIN-2024-10", "00")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "ROWS_PER_PART", 2 * SIZE)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.parquet"
    write_pairs(path, urls())
    return path


def folder(tmp_path: Path, name: str = "lake") -> Path:
    return tmp_path / name / "image_shards" / KEY.hive


def contents(partition: Path) -> dict[str, bytes]:
    """The files, but those that hold times."""
    return {
        str(path.relative_to(partition)): path.read_bytes()
        for path in sorted(partition.rglob("*"))
        if path.is_file() and path.suffix not in (".json", ".pq")
    }


def test_a_partition_has_few_tables_and_every_shard(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    plain, partition = tmp_path / "plain", folder(tmp_path)
    run(pairs, plain, options_for(images))
    shutil.copytree(plain, partition / SHARDS)
    join(partition / SHARDS)
    names = [f"{shard:05d}" for shard in range(5)]
    assert sorted(str(path.relative_to(partition)) for path in partition.rglob("*.*")) == [
        *(f"_ledger/part-{part:05d}.pq" for part in range(3)),
        *(f"{SHARDS}/{name}{kind}" for name in names for kind in (".tar", "_stats.json")),
        *(f"part-{part:05d}.parquet" for part in range(3)),
    ]
    parts = sorted(partition.glob("part-*.parquet"))
    assert [rows_in(part) for part in parts] == [10, 10, 3]
    stored = [name for name in IMAGES.names if name not in ("crawl", "segment")]
    assert {tuple(pq.read_schema(part).names) for part in parts} == {tuple(stored)}
    for part in parts:
        assert pq.read_schema(ledger_of(part)).equals(FETCHES, check_metadata=False)
        assert read_parquet(part)["key"] == read_parquet(ledger_of(part))["key"]

    tars, before = find_shards(partition), find_shards(plain)
    assert tars == [tar_path(partition, shard) for shard in range(5)]
    for number, (tar, old) in enumerate(zip(tars, before, strict=True)):
        rows = read_shard(tar)
        assert set(rows["shard"].to_pylist()) == {number}
        expected = read_shard(old)
        assert rows.select(expected.column_names) == expected
        assert read_ledger(tar) == read_ledger(old)
        assert (count_rows(tar), read_rows(tar)) == (count_rows(old), read_rows(old))
        assert digest_of_rows(tar) == digest_of_rows(old)
    in_turn = pa.concat_tables(rows_in_turn(partition, ["url", "no_such_column"]))
    assert in_turn == pa.concat_tables(rows_in_turn(plain, ["url"]))
    assert in_turn["url"].to_pylist() == urls()
    assert contact_sheet(partition) == contact_sheet(plain)
    assert shards_whole(partition).passed
    assert successes_in(parts) == N - 3


def test_other_readers_see_each_row_once(images: Listener, pairs: Path, tmp_path: Path) -> None:
    partition = folder(tmp_path)
    run(pairs, partition / SHARDS, options_for(images))
    join(partition / SHARDS)
    assert_readable(tmp_path / "lake" / "image_shards", IMAGES.names, N)
    tars = [str(path) for path in sorted(partition.glob("_shards/*.tar"))]
    dataset = wds.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("jpg", "txt")
    assert len([image.size for image, _ in dataset]) == N - 3


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Let so many files be published or deleted; the next one raises, and so do all after it."""
    left = steps
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink", "rmdir"):
            real = getattr(Path, name)

            def step(*given: Any, _real: Any = real, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return _real(*given, **options)

            patch.setattr(Path, name, step)
        yield


def test_killed_at_any_step_the_result_is_the_same(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    options, whole, partition = options_for(images), folder(tmp_path, "whole"), folder(tmp_path)
    run(pairs, whole / SHARDS, options)
    shutil.copytree(whole / SHARDS, partition / SHARDS)
    join(whole / SHARDS)
    images.requests.clear()
    shards, steps, finished = partition / SHARDS, 0, 0
    while finished < 2:
        finished = 0
        for what in (join, take_apart):
            try:
                with stopped_after(steps):
                    what(shards)
                finished += 1
            except KeyboardInterrupt:
                pass
            # Wherever it was stopped, no row is lost.
            assert all(read_stats(shards, shard) for shard in range(5))
        steps += 1
    assert steps > 15
    run(pairs, shards, options)
    join(shards)
    assert images.requests == []
    for torn in partition.rglob(".*"):
        torn.unlink()
    assert contents(partition) == contents(whole)


def test_the_next_version_starts_from_the_joined_rows(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    options, first, second = options_for(images), folder(tmp_path), folder(tmp_path, "next")
    run(pairs, first / SHARDS, options)
    join(first / SHARDS)
    images.requests.clear()
    again = download(pairs, second / SHARDS, options, before=shards_of(first))
    join(second / SHARDS)
    assert (again.reused, images.requests) == (N, [])
    assert contents(second) == contents(first)
    inodes = [[tar.stat().st_ino for tar in find_shards(each)] for each in (first, second)]
    assert inodes[0] == inodes[1]

    third = folder(tmp_path, "third")
    listed = parse([f"url:{urls()[12]}"], "removals")
    fewer = download(pairs, third / SHARDS, options, before=shards_of(second), removals=listed)
    join(third / SHARDS)
    assert (fewer.counts.rejects["removed"], images.requests) == (1, [])
    shared = [tar.stat().st_ino in inodes[0] for tar in find_shards(third)]
    assert shared == [True, True, False, True, True]
    images.requests.clear()
    back = download(pairs, first / SHARDS, options, before=shards_of(third))
    assert (back.counts.kept, images.requests) == (N - 3, [])


def test_a_damaged_part_is_logged_and_refetched(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    options, first, second = options_for(images), folder(tmp_path), folder(tmp_path, "next")
    kept = run(pairs, first / SHARDS, options).kept
    join(first / SHARDS)
    part = first / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    images.requests.clear()
    warnings: list[str] = []
    with heard(warnings.append, logging.WARNING):
        again = download(pairs, second / SHARDS, options, before=shards_of(first))
    assert again.counts.kept == kept
    assert sorted(path for _, path in images.requests) == sorted(f"/{i}.jpg" for i in range(10, 23))
    assert sorted(line.partition(" of ")[0] for line in warnings) == [
        f"shard 0000{number}" for number in (2, 3, 4)
    ]


def test_what_an_earlier_version_left_unfinished_goes_on(tmp_path: Path) -> None:
    (tmp_path / "_ledger").mkdir()
    left = ("00000.tar", "00000.parquet", "_ledger/00000.parquet")
    for name in left:
        (tmp_path / name).write_bytes(b"x")
    take_apart(tmp_path / SHARDS)
    moved = {path.relative_to(tmp_path / SHARDS).as_posix() for path in tmp_path.rglob("0*")}
    assert moved == set(left)


def test_a_part_has_the_columns_of_all_its_shards(tmp_path: Path) -> None:
    shards = folder(tmp_path) / SHARDS
    tables = [
        pa.table({"key": ["000000000"], "url": ["http://a.test/"], "clip": [0.5]}),
        pa.table({"key": ["000010000"], "url": ["http://b.test/"], "pages": [["x", "y"]]}),
    ]
    for number, table in enumerate(tables):
        write_rows(shards, number, table, FETCHES.empty_table())
        for path in files_of(shards, number)[::3]:
            path.touch()
    join(shards)
    rows = read_parquet(shards.parent / "part-00000.parquet").to_pylist()
    assert [(row["key"], row["clip"], row["pages"], row["shard"]) for row in rows] == [
        ("000000000", 0.5, None, 0),
        ("000010000", None, ["x", "y"], 1),
    ]
    assert read_shard(tar_path(shards.parent, 1))["url"].to_pylist() == ["http://b.test/"]


def test_a_partition_without_pairs_has_an_empty_part(tmp_path: Path) -> None:
    shards = folder(tmp_path) / SHARDS
    shards.mkdir(parents=True)
    join(shards)
    part = shards.parent / "part-00000.parquet"
    assert (rows_in(part, ledger_of(part)), find_shards(shards.parent)) == (0, [])
    assert shards_whole(shards.parent).passed


def test_the_check_finds_rows_and_tars_without_one_another(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    partition = folder(tmp_path)
    run(pairs, partition / SHARDS, options_for(images))
    join(partition / SHARDS)
    tars = find_shards(partition)
    last = tars[-1].read_bytes()
    tars[-1].unlink()
    assert shards_whole(partition).problem == "3 rows are of no tar"
    (partition / SHARDS / "00007.tar").write_bytes(last)
    assert "00007: it cannot be read: " in str(shards_whole(partition).problem)
    assert shards_in(partition / SHARDS) == list(range(5))
