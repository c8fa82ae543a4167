"""One of each cluster, within a segment and across segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laion_assets.dedup.claims import claiming_keys
from laion_assets.filtering.one_of_each import OtherRowsError, clusters_held, copies_among
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.tables import part_path, write_table

FIRST, SECOND = (SegmentKey("CC-MAIN-2021-01", segment) for segment in ("00", "01"))


class Subsets:
    """Segments of one subset; a sample is given by its cluster and its width."""

    def __init__(self, root: Path) -> None:
        self.lake, self._root = LocalLake.at(root / "lake"), root

    def take(
        self, key: SegmentKey, samples: Sequence[tuple[int, int]], taken: Sequence[int]
    ) -> list[int]:
        """Publish a segment's subset; return its rows."""
        ids = pa.array(range(len(samples)), pa.int64())
        clusters, widths = (pa.array(column, pa.int64()) for column in zip(*samples, strict=True))
        folders = [self._root / name for name in ("scored", "near")]
        scored = pa.table({"SAMPLE_ID": ids, "width": widths, "height": widths})
        write_table(part_path(folders[0], 0), scored)
        write_table(part_path(folders[1], 0), pa.table({"SAMPLE_ID": ids, "cluster": clusters}))
        root = self.lake.root
        with (
            claiming_keys(root / "ledger", root / "subset", key, clusters_held) as claims,
            self.lake.publish("subset", key, inputs={}, code_version="1") as staging,
        ):
            rows = np.array(taken, np.int64)
            copies = copies_among(*folders, rows, claims, staging.path)
        return rows[~copies[rows]].tolist()


@pytest.fixture
def subsets(tmp_path: Path) -> Subsets:
    for name in ("scored", "near"):
        (tmp_path / name).mkdir()
    return Subsets(tmp_path)


def test_the_largest_is_taken_and_of_equal_ones_the_first(subsets: Subsets) -> None:
    samples = [(7, 10), (7, 30), (8, 5), (7, 30), (8, 5), (9, 1)]
    assert subsets.take(FIRST, samples, range(6)) == [1, 2, 5]


def test_what_the_recipe_refuses_does_not_stand_for_its_cluster(subsets: Subsets) -> None:
    samples = [(7, 30), (7, 10), (8, 5)]
    assert subsets.take(FIRST, samples, [1]) == [1]
    assert subsets.take(SECOND, samples, range(3)) == [2]


def test_a_cluster_is_taken_once_and_comes_back_when_it_is_let_go(subsets: Subsets) -> None:
    samples = [(7, 30), (-8, 5)]
    assert subsets.take(FIRST, samples, [0, 1]) == [0, 1]
    assert subsets.take(SECOND, samples, [0, 1]) == []
    assert subsets.take(FIRST, samples, [0, 1]) == [0, 1]
    assert subsets.take(FIRST, samples, [1]) == [1]
    assert subsets.take(SECOND, samples, [0, 1]) == [0]
    (subsets.lake.root / "ledger" / "ledger.json").unlink()
    assert subsets.take(FIRST, samples, [0, 1]) == [1]


def test_clusters_of_other_rows_are_refused(subsets: Subsets, tmp_path: Path) -> None:
    subsets.take(FIRST, [(7, 30)], [0])
    write_table(part_path(tmp_path / "near", 0), pa.table({"SAMPLE_ID": [5], "cluster": [7]}))
    with (
        pytest.raises(OtherRowsError, match="scored_pairs and near_duplicates again"),
        claiming_keys(tmp_path / "l", tmp_path / "p", FIRST, clusters_held) as claims,
    ):
        copies_among(
            tmp_path / "scored", tmp_path / "near", np.zeros(1, np.int64), claims, tmp_path
        )
