"""A pair keeps its shard and its row, whatever comes and goes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.download.numbering import KeysGiven, number_pairs
from laion_assets.download.outcomes import FAILED_TO_DOWNLOAD, Outcome
from laion_assets.download.shard_stats import ShardStats
from laion_assets.download.shards import publish_shard
from laion_assets.tables import read_parquet
from tests.download.conftest import SIZE, urls, write_pairs

Places = dict[str, tuple[int, int]]
"""URL -> shard and row."""


def places(
    pairs: Path, before: Path | None, size: int = SIZE, given: KeysGiven | None = None
) -> Places:
    return {
        url: (found.shard, row)
        for found in number_pairs([pairs], size, before, given)
        for url, row in zip(found.table["url"].to_pylist(), found.rows.tolist(), strict=True)
    }


def store(pairs: Path, before: Path | None, out: Path) -> Path:
    """Shards of the pairs as numbered, without images and, to be quick, without img2dataset."""
    out.mkdir()
    for found in number_pairs([pairs], SIZE, before):
        n = len(found.rows)
        outcome = Outcome(FAILED_TO_DOWNLOAD, "x", reason="dns")
        table = found.table.rename_columns(
            ["caption" if name == "text" else name for name in found.table.column_names]
        ).append_column("key", pa.array([f"{found.shard:05d}{row:04d}" for row in found.rows]))
        stats = ShardStats.of_rows(
            table["url"].to_pylist(),
            [outcome] * n,
            started=0.0,
            ended=1.0,
            asked_for=n,
            changed=0,
            received_bytes=0,
            options_digest="o",
            input_digest="i",
            next_row=found.next_row,
        )
        publish_shard(out, found.shard, table, table, stats)
    return out


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return tmp_path / "pairs.parquet"


def test_without_shards_before_pairs_are_numbered_in_their_order(pairs: Path) -> None:
    write_pairs(pairs, urls(12))
    assert list(places(pairs, None).values()) == [(i // SIZE, i % SIZE) for i in range(12)]
    write_pairs(pairs, [])
    assert places(pairs, None) == {}


def write(pairs: Path, *numbers: int) -> None:
    """Write these of twenty pairs, in this order."""
    write_pairs(pairs, urls(20))
    pq.write_table(read_parquet(pairs).take(pa.array(numbers, pa.int64())), pairs)


def test_what_leaves_leaves_a_gap_and_what_comes_is_last(pairs: Path, tmp_path: Path) -> None:
    write(pairs, *range(13))
    first = places(pairs, None)
    a = store(pairs, None, tmp_path / "a")
    write(pairs, 14, 0, 1, *range(3, 12), 15, 16)
    second = places(pairs, a)
    kept = second.keys() & first.keys()
    assert len(kept) == 11
    assert {url: second[url] for url in kept} == {url: first[url] for url in kept}
    assert [place for url, place in second.items() if url not in first] == [(2, 3), (2, 4), (3, 0)]
    found = number_pairs([pairs], SIZE, a)
    assert (found.new, found.left) == (3, 2)
    assert all((shard.rows[1:] > shard.rows[:-1]).all() for shard in found)

    # The number of a row that has left is not given again in the version after, either.
    write(pairs, *range(12))
    b = store(pairs, a, tmp_path / "b")
    write(pairs, *range(12), 17)
    assert places(pairs, b)[urls(20)[17]] == (2, 3)


def test_a_key_is_never_given_again_though_its_whole_shard_left(
    pairs: Path, tmp_path: Path
) -> None:
    write(pairs, *range(13))
    found = number_pairs([pairs], SIZE, None)
    a = store(pairs, None, tmp_path / "a")
    # The last shard goes, and then all of them: nothing in a folder knows of them any more.
    write(pairs, *range(9))
    second = number_pairs([pairs], SIZE, a, found.given)
    b = store(pairs, a, tmp_path / "b")
    assert max(second.shards) == 1
    write(pairs, *range(9), 13)
    assert places(pairs, b, given=second.given)[urls(20)[13]] == (2, 3)
    write(pairs)
    none = number_pairs([pairs], SIZE, b, second.given)
    assert none.given == found.given
    c = store(pairs, b, tmp_path / "c")
    write(pairs, 13, 14, 15)
    assert list(places(pairs, c, given=none.given).values()) == [(2, 3), (2, 4), (3, 0)]


def test_rows_that_cannot_be_read_do_not_give_their_keys_to_others(
    pairs: Path, tmp_path: Path
) -> None:
    write(pairs, *range(13))
    given = number_pairs([pairs], SIZE, None).given
    a = store(pairs, None, tmp_path / "a")
    (a / "00002.parquet").unlink()
    again = places(pairs, a, given=given)
    assert list(again.values())[:10] == [(i // SIZE, i % SIZE) for i in range(10)]
    assert list(again.values())[10:] == [(2, 3), (2, 4), (3, 0)]
    assert list(places(pairs, a).values())[10:] == [(2, 3), (2, 4), (3, 0)]  # by the statistics
    for path in a.glob("*.parquet"):
        path.write_bytes(b"")
    assert next(iter(places(pairs, a, given=given).values())) == (2, 3)
    assert next(iter(places(pairs, a).values())) == (3, 0)


def test_shards_of_another_size_get_new_numbers(pairs: Path, tmp_path: Path) -> None:
    write(pairs, *range(12))
    given = number_pairs([pairs], SIZE, None).given
    a = store(pairs, None, tmp_path / "a")
    write(pairs, *range(1, 12))
    for known in (given, None):
        found = list(places(pairs, a, 4, known).values())
        assert found == [(3 + i // 4, i % 4) for i in range(11)]
    # One shard that has never been full fits any size that holds it.
    write(pairs, 0, 1, 2)
    given = number_pairs([pairs], SIZE, None).given
    b = store(pairs, None, tmp_path / "b")
    write(pairs, 1, 2, 3)
    for known in (given, None):
        assert list(places(pairs, b, 50, known).values()) == [(0, 1), (0, 2), (0, 3)]
