"""Planted copies of a few pictures, and a lake in which segments claim them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.duplicates.planted import Planted, plant, vendors
from laion_assets.dedup.claims import claiming_keys
from laion_assets.dedup.ledger import unsettled
from laion_assets.lake import LocalLake
from laion_assets.layout import CLUSTER_LEDGER, NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.near_duplicates.segment import Found, claims_held, write_segment
from laion_assets.near_duplicates.signatures import SIGNATURES, all_signatures
from laion_assets.tables import read_parquet

OPTIONS = NearDuplicateOptions()
PICTURES = 6


@pytest.fixture(scope="session")
def planted() -> Planted:
    """Each of some pictures as it is and in its copies; every second is another vendor's."""
    pairs = vendors()
    chosen = pairs[:: len(pairs) // (PICTURES // 2)][: PICTURES // 2]
    return plant([name for pair in chosen for name in pair], None, seed=3)


class Segments:
    """A lake whose segments hold some of the planted images."""

    def __init__(self, root: Path, planted: Planted) -> None:
        self.lake, self.planted = LocalLake.at(root), planted

    def make(self, key: SegmentKey, rows: Sequence[int], *, fail: bool = False) -> Found:
        """Find and publish a segment's near-duplicates; ``fail``: before it is published."""
        images = self.planted.images[list(rows)]
        if self.lake.has(NEAR_DUPLICATES, key):
            earlier = all_signatures(self.lake.published(NEAR_DUPLICATES, key))
            before = {one["sha256"].tobytes(): one["cluster"] for one in earlier}
            images["cluster"] = [before.get(one.tobytes(), 0) for one in images["sha256"]]
        table = pa.table(
            {
                "SAMPLE_ID": pa.array(rows, pa.int64()),
                "width": pa.array(self.planted.pixels[list(rows)], pa.int32()),
                "height": pa.array([1] * len(rows), pa.int32()),
            }
        )
        opener = self.lake.opener()
        with (
            self.lake.lease(CLUSTER_LEDGER, NEAR_DUPLICATES, unsettled) as lease,
            claiming_keys(lease.folder, lease.partitions, key, claims_held) as claims,
            self.lake.publish(NEAR_DUPLICATES, key, inputs={}, code_version="1") as staging,
        ):
            found = write_segment(
                table,
                images,
                claims,
                lambda key: opener(NEAR_DUPLICATES, key, SIGNATURES),
                staging.path,
                OPTIONS,
            )
            if fail:
                raise InterruptedError
        return found

    def clusters(self, *keys: SegmentKey) -> dict[int, tuple[int, bool]]:
        """Row of the planted -> its cluster, and whether it is the first of it."""
        found = {}
        for key in keys:
            folder = self.lake.published(NEAR_DUPLICATES, key)
            for row in read_parquet(folder / "part-00000.parquet").to_pylist():
                found[row["SAMPLE_ID"]] = row["cluster"], row["first"]
        return found


@pytest.fixture
def segments(tmp_path: Path, planted: Planted) -> Segments:
    return Segments(tmp_path / "lake", planted)


def rows_of_kinds(planted: Planted, *kinds: str) -> list[int]:
    return np.flatnonzero(np.isin(planted.kind, kinds)).tolist()
