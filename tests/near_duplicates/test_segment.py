"""Clusters within a segment and across segments, and the ledger that holds them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from benchmarks.duplicates.planted import ORIGINAL, REACHED, Planted, clusters, measured
from laion_assets.layout import CLUSTER_LEDGER, NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.clusters import cluster_of
from tests.near_duplicates.conftest import OPTIONS, PICTURES, Segments, rows_of_kinds

FIRST, SECOND, THIRD = (SegmentKey("CC-MAIN-2021-01", f"0{number}") for number in range(3))


def test_copies_are_found_and_look_alikes_are_not(planted: Planted) -> None:
    found = measured(planted, clusters(planted, OPTIONS))
    assert found[ORIGINAL] == (1.0, 1.0)
    for kind in ("resized", "recompressed", "mirrored"):
        assert found[kind] == (1.0, 1.0), kind
    assert np.mean([found[kind][0] for kind in REACHED]) >= 0.9
    assert {precision for _, precision in found.values()} == {1.0}


def test_the_first_of_a_cluster_is_the_largest_original(
    planted: Planted, segments: Segments
) -> None:
    rows = rows_of_kinds(planted, ORIGINAL, "resized", "recompressed")
    found = segments.make(FIRST, rows)
    assert (found.clusters, found.copies, found.foreign) == (PICTURES, 2 * PICTURES, 0)
    made = segments.clusters(FIRST)
    for picture in range(PICTURES):
        mine = [row for row in rows if planted.picture[row] == picture]
        assert len({made[row][0] for row in mine}) == 1
        (first,) = (row for row in mine if made[row][1])
        assert planted.pixels[first] == max(planted.pixels[mine])


def test_a_later_segment_joins_and_whoever_is_first_keeps(
    planted: Planted, segments: Segments
) -> None:
    originals, copies = (rows_of_kinds(planted, kind) for kind in (ORIGINAL, "recompressed"))
    segments.make(FIRST, originals)
    found = segments.make(SECOND, copies)
    assert (found.clusters, found.foreign) == (0, PICTURES)
    one = segments.clusters(FIRST, SECOND)
    for row in copies:
        assert one[row] == (one[originals[planted.picture[row]]][0], False)
    again = segments.lake.manifest(NEAR_DUPLICATES, SECOND).data_version
    segments.make(SECOND, copies)
    segments.make(FIRST, originals)
    assert segments.lake.manifest(NEAR_DUPLICATES, SECOND).data_version == again
    assert segments.clusters(FIRST, SECOND) == one
    # In the other order the same images are together, under the other ones' numbers.
    shutil.rmtree(segments.lake.root)
    segments.make(SECOND, copies)
    segments.make(FIRST, originals)
    other = segments.clusters(FIRST, SECOND)
    assert all(other[row][1] for row in copies)
    assert {row: of for row, (of, _) in other.items()}.keys() == one.keys()
    for row in copies:
        assert other[row][0] == other[originals[planted.picture[row]]][0]


def test_what_failed_claims_nothing_and_what_is_deleted_is_released(
    planted: Planted, segments: Segments
) -> None:
    originals = rows_of_kinds(planted, ORIGINAL)
    with pytest.raises(InterruptedError):
        segments.make(FIRST, originals, fail=True)
    assert segments.make(SECOND, originals).clusters == PICTURES
    assert segments.make(FIRST, originals).foreign == PICTURES
    shutil.rmtree(segments.lake.root / NEAR_DUPLICATES / SECOND.hive)
    assert segments.make(FIRST, originals).clusters == PICTURES


def test_a_lost_ledger_is_rebuilt_from_the_partitions(planted: Planted, segments: Segments) -> None:
    segments.make(FIRST, rows_of_kinds(planted, ORIGINAL))
    shutil.rmtree(segments.lake.root / CLUSTER_LEDGER)
    found = segments.make(SECOND, rows_of_kinds(planted, "resized", "mirrored"))
    assert (found.clusters, found.foreign) == (0, 2 * PICTURES)


def test_a_cluster_goes_on_without_its_first_image(planted: Planted, segments: Segments) -> None:
    rows = rows_of_kinds(planted, ORIGINAL, "resized", "recompressed")
    segments.make(FIRST, rows)
    gone = [row for row, (_, first) in segments.clusters(FIRST).items() if first]
    left = sorted({*rows} - {*gone})
    assert segments.make(FIRST, left).clusters == PICTURES
    made = segments.clusters(FIRST)
    assert not {of for of, _ in made.values()} & set(
        cluster_of(planted.images["sha256"][gone]).tolist()
    )
    assert segments.make(THIRD, gone).foreign == PICTURES
