"""Unique pairs as an asset: Dagster runs over a lake in which two segments share pairs."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow.dataset

from laion_assets import schemas
from laion_assets.dedup.ledger import owners
from laion_assets.defs.build import build_defs
from laion_assets.defs.partitions import crawls, partition_key
from laion_assets.funnel import StageCounts
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.settings import load_settings
from laion_assets.tables import read_parquet, write_table
from tests.dedup.world import table_of, uid

FIRST, SECOND = (SegmentKey("CC-MAIN-2021-01", segment) for segment in ("00", "01"))


def publish_pairs(lake: LocalLake, key: SegmentKey, rows: range) -> None:
    with lake.publish("pair_parquet", key, inputs={}, code_version="1") as staging:
        for number, part in enumerate((rows[:3], rows[3:])):
            table = table_of(part, key.crawl, key.segment)
            write_table(staging.path / f"part-{number:05d}.parquet", table)
        counts = StageCounts("pairs")
        counts.keep(len(rows))
        staging.counts = [counts]


def test_two_segments(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'[lake]\nroot = "{tmp_path}/lake"\n')
    lake = LocalLake.at(tmp_path / "lake")
    publish_pairs(lake, FIRST, range(10))
    publish_pairs(lake, SECOND, range(6, 14))
    defs = build_defs(load_settings(tmp_path / "config.toml"))
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(crawls.name or "", [FIRST.crawl])
        for key in (FIRST, SECOND):
            done = defs.resolve_job_def("segment").execute_in_process(
                instance=instance,
                partition_key=partition_key(key),
                asset_selection=[dg.AssetKey("unique_pairs")],
            )
            assert done.success
            assert all(check.passed for check in done.get_asset_check_evaluations())
    assert lake.manifest("unique_pairs", SECOND).stage("unique_pairs").rejects == {"duplicate": 4}
    for key, rows in ((FIRST, range(10)), (SECOND, range(10, 14))):
        folder = lake.published("unique_pairs", key)
        files = sorted(path.name for path in folder.iterdir())
        assert files == ["_claims.json", "_manifest.json", "part-00000.parquet"]
        held = read_parquet(folder / "part-00000.parquet", schemas.PAIRS.names)
        assert held.equals(table_of(rows, key.crawl, key.segment))
    table = pyarrow.dataset.dataset(lake.root / "unique_pairs", partitioning="hive").to_table()
    assert table.num_rows == 14
    ids = np.array([int.from_bytes(uid(row)[:8], "big") for row in (7, 12)], dtype=np.uint64)
    assert owners(lake.root / "dedup_ledger", ids) == [(0, FIRST), (1, SECOND)]
