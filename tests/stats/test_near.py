from __future__ import annotations

from pathlib import Path

import pytest

from laion_assets.errors import TransientError
from laion_assets.stats.catalog import build_catalog, open_catalog
from laion_assets.stats.near import AROUND, NearPair, pairs_around
from tests.stats.conftest import SEGMENTS, THRESHOLD, Record, SegmentFiles


class Moved(SegmentFiles):
    """A segment whose pairs are so many times as far from the threshold, and farther by so much."""

    def __init__(self, lake: Path, key: tuple[str, str], times: float, plus: float = 0.0) -> None:
        super().__init__(lake, *key)
        self.times, self.plus = times, plus

    def _scored(self, row: int) -> Record:
        scored = super()._scored(row)
        away = scored["similarity"] - THRESHOLD
        away = away * self.times + (self.plus if away >= 0 else -self.plus)
        return scored | {"similarity": THRESHOLD + away}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A lake of four segments with pairs near the threshold, and one without."""
    lake = tmp_path / "lake"
    made = [Moved(lake, key, times) for key, times in zip(SEGMENTS, (1, 0.9, 0.8), strict=True)]
    made.append(Moved(lake, ("CC-MAIN-2002-05", "00"), 0.5))
    made.append(Moved(lake, ("CC-MAIN-2002-05", "01"), 1, plus=0.2))
    for files in made:
        files.write()
        files.stats()
    build_catalog(lake, tmp_path / "catalog.duckdb")
    return lake


def around(root: Path) -> list[NearPair]:
    with open_catalog(root.parent / "catalog.duckdb") as connection:
        return pairs_around(connection, THRESHOLD)


def test_the_pairs_are_those_that_a_look_at_all_rows_finds(root: Path) -> None:
    found = around(root)
    with open_catalog(root.parent / "catalog.duckdb") as connection:
        rows = connection.execute(
            "select similarity >= $1, similarity, SAMPLE_ID, url, text, crawl, segment, shard, key "
            f"from around_threshold({AROUND})",
            [THRESHOLD],
        ).fetchall()
    assert len(found) == 2 * AROUND
    assert [
        (
            *(pair.above, pair.similarity, pair.sample_id, pair.url, pair.text),
            *(pair.key.crawl, pair.key.segment, pair.shard, pair.image),
        )
        for pair in found
    ] == rows


def test_only_partitions_with_pairs_to_show_are_read(root: Path) -> None:
    found = around(root)
    assert {pair.key.segment for pair in found if pair.key.crawl == "CC-MAIN-2002-05"} == {"00"}
    (root / "scored_pairs/crawl=CC-MAIN-2002-05/segment=01/part-00000.parquet").unlink()
    assert around(root) == found
    (root / "scored_pairs/crawl=CC-MAIN-2002-05/segment=00/part-00000.parquet").unlink()
    with pytest.raises(TransientError, match=r"CC-MAIN-2002-05\|00 cannot be read"):
        around(root)
