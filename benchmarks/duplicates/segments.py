"""A lake whose segments hold planted images, and the ledger in which they claim their clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from benchmarks.duplicates.planted import Planted
from laion_assets.dedup.claims import claiming_keys
from laion_assets.dedup.ledger import unsettled
from laion_assets.lake import LocalLake
from laion_assets.layout import CLUSTER_LEDGER, NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.near_duplicates.segment import Found, claims_held, write_segment
from laion_assets.near_duplicates.signatures import SIGNATURES, all_signatures
from laion_assets.tables import read_parquet

OPTIONS: Final = NearDuplicateOptions()


class Segments:
    """A lake whose segments hold some of the planted images."""

    def __init__(
        self, root: Path, planted: Planted, options: NearDuplicateOptions = OPTIONS
    ) -> None:
        self.lake, self.planted, self.options = LocalLake.at(root), planted, options

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
                self.options,
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
