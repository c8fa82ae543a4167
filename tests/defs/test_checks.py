"""Each check, on files that are wrong: a check that cannot fail guards nothing."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.defs import checks
from laion_assets.funnel import StageCounts

SCHEMA = pa.schema([("uid", pa.string()), ("similarity", pa.float64())])


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.parquet"))


def write_part(folder: Path, number: int, rows: list[tuple[str, float]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"uid": [uid for uid, _ in rows], "similarity": [value for _, value in rows]}
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / f"part-{number:05d}.parquet")


def write_vectors(folder: Path, number: int, rows: int, scale: float = 1.0) -> None:
    for kind in ("img", "text"):
        vectors = np.zeros((rows, 4), dtype=np.float16)
        vectors[:, 0] = scale
        (folder / f"_{kind}_emb").mkdir(parents=True, exist_ok=True)
        np.save(folder / f"_{kind}_emb" / f"{kind}_emb_{number:05d}.npy", vectors)


def write_shard(
    folder: Path, keys: dict[str, str], members: list[str], caption: str | None = "a caption"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    captions = pa.array([caption] * len(keys), pa.string())
    table = pa.table({"key": list(keys), "status": list(keys.values()), "caption": captions})
    pq.write_table(table, folder / "00000.parquet")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name in members:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())


def test_schema_exact(tmp_path: Path) -> None:
    write_part(tmp_path, 0, [("a", 0.5)])
    assert checks.schema_exact(parts(tmp_path), SCHEMA, 1).passed
    assert not checks.schema_exact(parts(tmp_path), SCHEMA, 2).passed
    assert not checks.schema_exact(parts(tmp_path / "empty"), SCHEMA, 1).passed
    swapped = pa.schema([SCHEMA.field(1), SCHEMA.field(0)])
    assert not checks.schema_exact(parts(tmp_path), swapped, 1).passed
    wider = pa.schema([("uid", pa.string()), ("similarity", pa.float32())])
    assert not checks.schema_exact(parts(tmp_path), wider, 1).passed


def test_the_partitions_key_is_in_its_path_and_not_in_its_files(tmp_path: Path) -> None:
    contract = pa.schema([*SCHEMA, ("crawl", pa.string()), ("segment", pa.string())])
    folder = tmp_path / "crawl=CC-MAIN-2021-04" / "segment=00"
    write_part(folder, 0, [("a", 0.5)])
    assert checks.schema_exact(parts(folder), contract, 1).passed
    write_part(tmp_path, 0, [("a", 0.5)])
    assert not checks.schema_exact(parts(tmp_path), contract, 1).passed
    table = pa.Table.from_pylist([dict.fromkeys(contract.names)], schema=contract)
    pq.write_table(table, parts(folder)[0])
    assert not checks.schema_exact(parts(folder), contract, 1).passed


def test_keys_unique(tmp_path: Path) -> None:
    write_part(tmp_path, 0, [("a", 0.5), ("b", 0.5)])
    assert checks.keys_unique(parts(tmp_path), "uid").passed
    write_part(tmp_path, 1, [("b", 0.5)])
    result = checks.keys_unique(parts(tmp_path), "uid")
    assert not result.passed
    assert result.problem == "1 rows repeat a uid"


@pytest.mark.parametrize(
    ("counts", "rows", "before", "problem"),
    [
        (StageCounts("pairs", 3, 2, {"no_alt": 1}), 2, 3, None),
        (StageCounts("pairs", 4, 2, {"no_alt": 1}), 2, 4, "4 in, but 2 kept"),
        (StageCounts("pairs", 3, 2, {"no_alt": 1}), 1, 3, "but 1 rows"),
        (StageCounts("pairs", 3, 2, {"no_alt": 1}), 2, 5, "the stage before kept 5"),
    ],
)
def test_funnel_adds_up(counts: StageCounts, rows: int, before: int, problem: str | None) -> None:
    result = checks.funnel_adds_up(counts, rows, before)
    assert result.passed == (problem is None)
    assert problem is None or problem in (result.problem or "")


@pytest.mark.parametrize(
    ("members", "passed"),
    [
        (["0.jpg", "0.txt", "0.json"], True),
        (["0.jpg", "0.txt"], False),
        (["0.txt", "0.json"], False),
        ([], False),
        (["0.jpg", "0.txt", "0.json", "1.jpg", "1.txt", "1.json"], False),
    ],
)
def test_shards_whole(tmp_path: Path, members: list[str], passed: bool) -> None:
    write_shard(tmp_path, {"0": "success", "1": "failed_to_download"}, members)
    assert checks.shards_whole(tmp_path).passed == passed
    assert checks.successes_in(shards(tmp_path)) == 1


@pytest.mark.parametrize(
    ("members", "passed"),
    [
        (["0.jpg", "0.json"], True),
        (["0.jpg"], False),
        (["0.txt", "0.json"], False),
    ],
)
def test_an_image_without_a_caption_needs_no_text(
    tmp_path: Path, members: list[str], passed: bool
) -> None:
    write_shard(tmp_path, {"0": "success"}, members, None)
    assert checks.shards_whole(tmp_path).passed == passed


@pytest.mark.parametrize(
    ("rows", "scale", "passed"),
    [(2, 1.0, True), (3, 1.0, False), (2, 0.9, False), (2, np.nan, False)],
)
def test_vectors_sound(tmp_path: Path, rows: int, scale: float, passed: bool) -> None:
    write_part(tmp_path, 0, [("a", 0.5), ("b", 0.5)])
    write_vectors(tmp_path, 0, rows, scale)
    assert checks.vectors_sound(parts(tmp_path)).passed == passed


def test_rows_aligned(tmp_path: Path) -> None:
    write_part(tmp_path, 0, [("a", 0.5), ("b", 0.5)])
    write_vectors(tmp_path, 0, 2)
    assert checks.rows_aligned(parts(tmp_path), tmp_path).passed
    write_vectors(tmp_path, 0, 1)
    assert not checks.rows_aligned(parts(tmp_path), tmp_path).passed


def test_above_threshold(tmp_path: Path) -> None:
    write_part(tmp_path, 0, [("a", 0.30), ("b", 0.9)])
    assert checks.above_threshold(parts(tmp_path), 0.30).passed
    assert not checks.above_threshold(parts(tmp_path), 0.31).passed


def test_what_fails_is_not_published() -> None:
    good, advice = checks.outcome("recall", None), checks.outcome("codec_fits", "drift")
    bad = checks.outcome("size_equal", "image.index holds 3; the subset has 4 rows")
    checks.require(good, advice)
    with pytest.raises(dg.Failure, match=r"size_equal: image\.index holds 3"):
        checks.require(good, bad)
