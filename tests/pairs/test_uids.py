"""Sorting uids on disk is exact, whatever the number of buckets."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laion_assets.pairs.uids import UidBuckets, halves
from laion_assets.schemas import UID_BYTES


@pytest.mark.parametrize("rows_per_bucket", [1, 10, 300, 10_000])
def test_repeats_are_exact(tmp_path: Path, rows_per_bucket: int) -> None:
    rnd = random.Random(3)
    # Few first halves, so that uids which differ only in the second half are among them.
    uids = [
        bytes([rnd.choice([0, 128, 255])]) * 8 + bytes([rnd.randrange(150)]) * 8 for _ in range(600)
    ]
    buckets = UidBuckets(tmp_path / "b", len(uids), rows_per_bucket)
    for at in range(0, len(uids), 70):
        buckets.add(pa.array(uids[at : at + 70], pa.binary(UID_BYTES)))
    found = list(buckets)
    repeated = sorted(int(row) for bucket in found for row in bucket.repeated_rows())
    seen: set[bytes] = set()
    expected = []
    for row, uid in enumerate(uids):
        if uid in seen:
            expected.append(row)
        seen.add(uid)
    assert repeated == expected
    grouped = sorted(int(row) for bucket in found for row in bucket.rows_in_groups(3))
    times = Counter(uids)
    assert grouped == [row for row, uid in enumerate(uids) if times[uid] >= 3]
    order = [int(row) for bucket in found for row in bucket.row]
    assert order == sorted(range(len(uids)), key=lambda row: (uids[row], row))
    buckets.remove()
    assert list(tmp_path.iterdir()) == []


def test_halves_of_slices_and_chunks() -> None:
    uids = pa.array([bytes([i]) * 16 for i in range(5)], pa.binary(UID_BYTES))
    for given in (uids.slice(2, 2), pa.chunked_array([uids.slice(2, 1), uids.slice(3, 1)])):
        high, low = halves(given)
        assert np.array_equal(high, low)
        assert high.tolist() == [0x0202020202020202, 0x0303030303030303]


def test_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="uids are"):
        halves(pa.array([b"short"], pa.binary()))
