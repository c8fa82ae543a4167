"""The statistics of one segment: its funnel checked against its files, histograms, top values.

A stage must have written as many rows as it counts. What does not belong here: sums over segments,
which the catalog has, and the counts themselves, which it takes from the manifests.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.filtering.similarities import Similarities, edge, files_in
from laion_assets.funnel import STAGES, StageCounts
from laion_assets.lake import Manifest
from laion_assets.layout import (
    EMBEDDINGS,
    FILTERED_SUBSET,
    KNN_INDEX,
    NEAR_DUPLICATES,
    PARTITIONS,
    SCORED_PAIRS,
)
from laion_assets.schemas import STATISTICS, score_columns
from laion_assets.stats import near
from laion_assets.stats.grids import (
    ASPECT,
    CHARACTERS,
    PIXELS,
    SCORE,
    SIMILARITY,
    TEN_THOUSANDTHS,
    TEXT_LENGTH,
    Grid,
)
from laion_assets.tables import write_table

logger = logging.getLogger(__name__)

TOP_VALUES: Final = 100
SCORED_STAGES: Final = ("scored", "subset")
"""Stages whose rows have heads' scores; the metric is the column's name."""
WITHOUT_LIMIT: Final = ("language",)
"""Metrics of which there are few values, and all of them are wanted."""
ROWS_OF_SUBSET: Final = ("rows", "subset")
"""Kind and stage of the row that says of which rows all others are: how many, of which version."""
FINE_SIMILARITY: Final = "similarity_fine"
FINE_TEXT_LENGTH: Final = "text_length_fine"
"""The metrics that deciles are read off: similarities to 1e-4, and lengths to a character."""
SHUFFLED: Final = "shuffled"
"""The metric of shuffled pairs' similarities, which is read from counts and not from rows."""
HOST: Final = r"regexp_extract({}, '^https?://(?:[^/?#@]*@)?([^/:?#]+)', 1)"

Row = tuple[Any, ...]


class FunnelMismatch(RuntimeError):  # noqa: N818 - the check's name, as people know it
    """A stage's counts disagree with its files or with the stage before it."""


_ROWS: Final[Mapping[str, str]] = {
    partition.rows.view or asset: asset
    for asset, partition in PARTITIONS.items()
    if partition.rows.names_samples
}
"""Stage, or artifact -> the asset whose rows it counts."""

_WHERE: Final[Mapping[str, str]] = {"images": "status = 'success'"}
"""Stage -> which of the rows it kept, where the files have others, too."""

_AS_MANY_AS: Final = {"scored": EMBEDDINGS, NEAR_DUPLICATES: EMBEDDINGS, KNN_INDEX: "subset"}
"""Artifacts that must have exactly as many rows as a stage kept: making them refuses nothing."""

_STARTS_ANEW: Final = ("wat", "pairs")
"""Stages that count other subjects than the stage before: records, links."""

_HISTOGRAMS: Final[Sequence[tuple[str, str, str, Grid]]] = (
    ("pairs", "text_length", "length(text)", TEXT_LENGTH),
    ("images", "width", "original_width", PIXELS),
    ("images", "height", "original_height", PIXELS),
    ("images", "shorter_side", "least(original_width, original_height)", PIXELS),
    ("images", "longer_side", "greatest(original_width, original_height)", PIXELS),
    ("images", "aspect", "original_width / original_height", ASPECT),
    ("scored", "similarity", "similarity", SIMILARITY),
    ("subset", "similarity", "similarity", SIMILARITY),
    ("subset", FINE_SIMILARITY, "round(similarity::double, 4)", TEN_THOUSANDTHS),
    ("subset", "text_length", 'length("TEXT")', TEXT_LENGTH),
    ("subset", FINE_TEXT_LENGTH, 'length("TEXT")', CHARACTERS),
    ("subset", "width", '"WIDTH"', PIXELS),
    ("subset", "height", '"HEIGHT"', PIXELS),
    ("subset", "shorter_side", 'least("WIDTH", "HEIGHT")', PIXELS),
    ("subset", "longer_side", 'greatest("WIDTH", "HEIGHT")', PIXELS),
    ("subset", "aspect", '"WIDTH" / "HEIGHT"', ASPECT),
)

_TOP: Final[Sequence[tuple[str, str, str]]] = (
    ("pairs", "host", HOST.format("url")),
    ("pairs", "language", "language"),
    ("scored", "nsfw", "nsfw"),
    ("subset", "host", HOST.format('"URL"')),
    ("subset", "language", '"LANGUAGE"'),
    ("subset", "license", '"LICENSE"'),
    ("subset", "nsfw", '"NSFW"'),
)


def segment_stats(partitions: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Check the segment's counts against its files, and write `statistics.parquet` to ``out``.

    ``partitions`` maps an asset's name to its published folder; missing stages are left out.
    Returns a summary for metadata. Raises :class:`FunnelMismatch`, which lists everything that
    disagrees.
    """
    manifests = {asset: Manifest.read(folder) for asset, folder in sorted(partitions.items())}
    counts = _counts(manifests)
    with duckdb.connect() as connection:
        tables = {
            stage: _Table(connection, asset, partitions[asset], _WHERE.get(stage, "true"))
            for stage, asset in _ROWS.items()
            if asset in partitions
        }
        problems = [*_chain_problems(counts), *_row_problems(counts, tables)]
        if problems:
            raise FunnelMismatch("; ".join(problems))
        logger.info(f"the funnel of {len(counts)} stages agrees with the files")
        measured = list(_measured(tables))
        if SCORED_PAIRS in partitions:
            measured += _shuffled(partitions[SCORED_PAIRS])
        if {SCORED_PAIRS, FILTERED_SUBSET} <= set(partitions):
            of = manifests[FILTERED_SUBSET]
            n = counts["subset"].kept
            measured.append((*ROWS_OF_SUBSET, "data_version", None, None, of.data_version, n))
            folders = partitions[SCORED_PAIRS], partitions[FILTERED_SUBSET]
            if (threshold := of.metadata["threshold"]) is not None:
                measured += near.statistics(connection, *folders, threshold)
    write_table(out / "statistics.parquet", _table(measured))
    return {
        "stages": {stage: {"in": c.n_in, "kept": c.kept} for stage, c in counts.items()},
        "rejected": sum(sum(c.rejects.values()) for c in counts.values()),
        "statistics": len(measured),
        "bytes_of_all_stages": sum(manifest.bytes for manifest in manifests.values()),
    }


def of_subset(folder: Path) -> pa.Table:
    """Histograms and top values of a folder's rows of the subset, as ``schemas.STATISTICS``."""
    with duckdb.connect() as connection:
        table = _Table(connection, FILTERED_SUBSET, folder, "true")
        return _table(list(_measured({"subset": table})))


def _measured(tables: Mapping[str, _Table]) -> Iterator[Row]:
    for stage, metric, value, grid in _HISTOGRAMS:
        if stage in tables:
            yield from _histogram(tables[stage], stage, metric, value, grid)
    for stage in SCORED_STAGES:
        for column in tables[stage].scores if stage in tables else ():
            yield from _histogram(tables[stage], stage, column, f'"{column}"', SCORE)
    for stage, metric, column in _TOP:
        if stage in tables:
            limit = None if metric in WITHOUT_LIMIT else TOP_VALUES
            for value, n in tables[stage].top(column, limit):
                yield ("top", stage, metric, None, None, value, n)


def _histogram(table: _Table, stage: str, metric: str, value: str, grid: Grid) -> Iterator[Row]:
    for number, n in table.histogram(value, grid):
        yield ("histogram", stage, metric, grid.edge(number), grid.edge(number + 1), None, n)


def _shuffled(scored: Path) -> Iterator[Row]:
    """The histogram of shuffled pairs' similarities, on the grid of the real ones.

    Scores that were made by an earlier version have none.
    """
    if not files_in(scored):
        return
    counts = Similarities.read([scored]).shuffled
    bins: Counter[int] = Counter()
    for fine in np.flatnonzero(counts).tolist():
        bins[math.floor(edge(fine) * SIMILARITY.per_unit + 1e-9)] += int(counts[fine])
    for number, n in sorted(bins.items()):
        edges = SIMILARITY.edge(number), SIMILARITY.edge(number + 1)
        yield ("histogram", "scored", SHUFFLED, *edges, None, n)


def _counts(manifests: Mapping[str, Manifest]) -> dict[str, StageCounts]:
    """Counts by stage, in the order of the stages."""
    found: dict[str, StageCounts] = {}
    for asset, manifest in manifests.items():
        for counts in manifest.counts:
            if counts.stage in found:
                raise FunnelMismatch(f"{asset} counts stage {counts.stage!r} a second time")
            found[counts.stage] = counts
    return {stage: found[stage] for stage in STAGES if stage in found}


def _chain_problems(counts: Mapping[str, StageCounts]) -> Iterable[str]:
    before: StageCounts | None = None
    for stage in STAGES:
        now = counts.get(stage)
        if now is not None and not now.adds_up:
            rejected = sum(now.rejects.values())
            yield f"{stage}: {now.n_in} in, but {now.kept} kept and {rejected} rejected"
        if now and before and stage not in _STARTS_ANEW and now.n_in != before.kept:
            yield f"{stage}: {now.n_in} in, but {before.stage} kept {before.kept}"
        before = now


class _Table:
    """One stage's parquet files in DuckDB."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, asset: str, folder: Path, where: str
    ) -> None:
        self._connection = connection
        self._where = where
        self._files = [str(path) for path in PARTITIONS[asset].rows.paths(folder)]
        self.folder = folder

    @property
    def scores(self) -> list[str]:
        """The columns of heads, sorted."""
        names = {name for path in self._files for name in pq.read_schema(path).names}
        return score_columns(names)

    def _rows(self, sql: str, where: str = "true") -> list[Row]:
        """Run ``sql``, in which ``{rows}`` stands for the files' rows that meet ``where``."""
        if not self._files:
            return []
        rows = f"(from read_parquet($files, union_by_name = true) where {where})"
        return self._connection.execute(sql.format(rows=rows), {"files": self._files}).fetchall()

    def count(self, everything: bool = False) -> int:
        rows = self._rows("select count(*) from {rows}", "true" if everything else self._where)
        return int(rows[0][0]) if rows else 0

    def by_reason(self) -> dict[str, int]:
        rows = self._rows(
            "select coalesce(reason, ''), count(*) from {rows} group by all",
            f"not ({self._where})",
        )
        return {reason: int(n) for reason, n in rows}

    def histogram(self, value: str, grid: Grid) -> list[Row]:
        """``(number of the bin, n)`` of each bin that holds something."""
        return self._rows(
            f"select {grid.low('value')}, count(*) from (select {value} as value from {{rows}}) "
            f"where isfinite(value){' and value > 0' if grid.octaves else ''} "
            "group by all order by all",
            self._where,
        )

    def top(self, value: str, limit: int | None) -> list[Row]:
        """``(value, n)`` of the most frequent values, at most ``limit`` of them."""
        return self._rows(
            f"select coalesce({value}, '') as value, count(*) as n from {{rows}} "
            f"group by all order by n desc, value{f' limit {limit}' if limit else ''}",
            self._where,
        )


def _row_problems(counts: Mapping[str, StageCounts], tables: Mapping[str, _Table]) -> Iterable[str]:
    for name, table in tables.items():
        stage = counts.get(_AS_MANY_AS.get(name, name))
        if stage is None:
            continue
        rows = table.count()
        if rows != stage.kept:
            yield f"{stage.stage} counts {stage.kept} kept, but {table.folder} holds {rows} rows"
        if name == "images":
            tried = table.count(everything=True)
            if tried != stage.n_in:
                yield f"images counts {stage.n_in} in, but {table.folder} has {tried} rows"
            reasons = table.by_reason()
            if reasons != stage.rejects:
                yield (
                    f"images counts the rejects {dict(sorted(stage.rejects.items()))}, "
                    f"but the rows say {dict(sorted(reasons.items()))}"
                )


def _table(rows: Sequence[Row]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in STATISTICS]
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, STATISTICS, strict=True)
    ]
    return pa.table(arrays, schema=STATISTICS)
