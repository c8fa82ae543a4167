"""Pairs around the threshold: how near a segment's come to it, and which are nearest of all.

A segment's statistics have the similarities alone. By them the few partitions are known that have
the pairs to show, and no others are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

import duckdb

from laion_assets.errors import TransientError
from laion_assets.layout import FILTERED_SUBSET, SCORED_PAIRS, SegmentKey, partition_of
from laion_assets.stats.partitions import PLACE

AROUND: Final = 12
"""Number of pairs shown on either side of the threshold."""
NEAREST: Final = "nearest"
"""The kind of the statistics' rows: one for each pair, its similarity in ``bin_low``."""
_ABOVE, _BELOW = "above", "below"

Row = tuple[Any, ...]


@dataclass(frozen=True)
class NearPair:
    """A pair near the threshold, and the place of its picture."""

    above: bool
    similarity: float
    sample_id: int
    url: str
    text: str
    key: SegmentKey
    shard: int
    image: str
    """The picture's key in the shard."""


def nearest(
    connection: duckdb.DuckDBPyConnection,
    columns: str,
    scored: Sequence[str],
    subset: Sequence[str],
    threshold: float,
    between: tuple[float, float] = (-inf, inf),
) -> list[Row]:
    """The pairs of one segment that are nearest to the threshold, on either side.

    Those above it were kept. Pairs with a safety tag, or a text that names minors, are left out.
    ``columns``: what is returned of each, in SQL. ``scored``, ``subset``: the files. ``between``:
    the lowest and the highest similarity of interest.
    """
    if not scored or not subset:
        return []
    near = (
        f"select {columns} from read_parquet($scored) where nsfw = 'UNLIKELY' "
        "and not text_names_minors and similarity between $low and $high and similarity"
    )
    kept = 'and "SAMPLE_ID" in (select "SAMPLE_ID" from read_parquet($subset))'
    return connection.execute(
        f'({near} >= $threshold {kept} order by similarity, "SAMPLE_ID" limit {AROUND}) union all '
        f'({near} < $threshold order by similarity desc, "SAMPLE_ID" limit {AROUND})',
        {
            "scored": scored,
            "subset": subset,
            "threshold": threshold,
            "low": between[0],
            "high": between[1],
        },
    ).fetchall()


def statistics(
    connection: duckdb.DuckDBPyConnection, scored: Path, subset: Path, threshold: float
) -> list[Row]:
    """The rows of `statistics.parquet` of one segment, by the folders of its partitions."""
    files = [
        [str(path) for path in partition_of(asset).rows.paths(folder)]
        for asset, folder in ((SCORED_PAIRS, scored), (FILTERED_SUBSET, subset))
    ]
    return [
        (NEAREST, "scored", _ABOVE if value >= threshold else _BELOW, value, None, None, 1)
        for (value,) in nearest(connection, "similarity", files[0], files[1], threshold)
    ]


def pairs_around(connection: duckdb.DuckDBPyConnection, threshold: float) -> list[NearPair]:
    """The pairs of a catalog's lake that are nearest to the threshold, by falling similarity.

    Of pairs with the same similarity in many segments, those of the first segments are taken.
    Raises ``TransientError`` if a partition was replaced since the catalog was built, and lacks a
    file that it had.
    """
    within: dict[SegmentKey, list[float]] = {}
    for metric, order in ((_ABOVE, ""), (_BELOW, " desc")):
        rows = connection.execute(
            "select crawl, segment, bin_low from sums where kind = ? and metric = ? "
            f"order by bin_low{order}, crawl, segment limit {AROUND}",
            [NEAREST, metric],
        ).fetchall()
        for crawl, segment, similarity in rows:
            within.setdefault(SegmentKey(crawl, segment), []).append(similarity)
    found = []
    for key, similarities in within.items():
        try:
            rows = nearest(
                connection,
                'similarity, "SAMPLE_ID", url, text, shard, key',
                files_of_partition(connection, SCORED_PAIRS, key),
                files_of_partition(connection, FILTERED_SUBSET, key),
                threshold,
                (min(similarities), max(similarities)),
            )
        except duckdb.IOException as error:
            raise TransientError(f"{SCORED_PAIRS} of {key} cannot be read: {error}") from error
        for similarity, sample_id, url, text, shard, image in rows:
            above = similarity >= threshold
            found.append(NearPair(above, similarity, sample_id, url, text, key, shard, image))
    found.sort(key=lambda pair: (abs(pair.similarity - threshold), pair.sample_id))
    shown = [pair for pair in found if pair.above][:AROUND]
    shown += [pair for pair in found if not pair.above][:AROUND]
    return sorted(shown, key=lambda pair: (-pair.similarity, pair.sample_id))


def files_of_partition(
    connection: duckdb.DuckDBPyConnection, asset: str, key: SegmentKey
) -> list[str]:
    """Paths of the files of a partition's first table, as the catalog knows them."""
    paths = connection.execute(
        f"select getvariable('lake') || '/' || {PLACE} from files "
        'where asset = ? and crawl = ? and segment = ? and "view" = ? order by name',
        [asset, key.crawl, key.segment, partition_of(asset).rows.view],
    ).fetchall()
    return [path for (path,) in paths]
