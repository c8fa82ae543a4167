"""Everything that the report tells, asked of the catalog by SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import duckdb

from laion_assets.funnel import REASONS, StageCounts

PAPER_SAMPLES: Final = 413_000_000
PAPER_SIDES: Final[Mapping[tuple[str, int], int]] = {
    ("either", 1024): 26_000_000,
    ("either", 512): 112_000_000,
    ("either", 256): 268_000_000,
    ("both", 1024): 9_600_000,
    ("both", 512): 67_000_000,
    ("both", 256): 211_000_000,
}
"""Samples with either side, or both, of at least so many pixels: arXiv 2111.02114, table 1."""

DECILES: Final = tuple(number / 10 for number in range(1, 10))
TOP_ROWS: Final = 12

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Bin:
    """``n`` values in ``low <= value < high``."""

    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Statistic:
    """One row of the paper's table, ours beside the paper's."""

    what: str
    n: int
    share: float
    paper: int
    paper_share: float


@dataclass(frozen=True)
class AssetRuns:
    """What all partitions of one asset took."""

    asset: str
    partitions: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Facts:
    """A dataset in numbers. Sequences are empty where nothing has been made yet."""

    samples: int
    crawls: Sequence[str]
    segments: int
    newest: datetime | None
    model: str | None
    recipe: str | None
    threshold: float | None
    funnel: Sequence[StageCounts]
    statistics: Sequence[Statistic]
    similarity_deciles: Sequence[float]
    text_deciles: Sequence[float]
    similarity: Sequence[Bin]
    text_length: Sequence[Bin]
    shorter_side: Sequence[Bin]
    languages: Sequence[tuple[str, int]]
    nsfw: Sequence[tuple[str, int]]
    hosts: Sequence[tuple[str, int]]
    licenses: Sequence[tuple[str, int]]
    runs: Sequence[AssetRuns]

    def kept(self, stage: str) -> int:
        """What a stage kept, 0 if it has not been made."""
        return next((counts.kept for counts in self.funnel if counts.stage == stage), 0)


def gather(connection: duckdb.DuckDBPyConnection) -> Facts:
    """Ask a catalog (see :func:`laion_assets.stats.catalog.open_catalog`) for all facts."""

    def rows(sql: str, *values: object) -> list[Row]:
        return connection.execute(sql, list(values)).fetchall()

    def histogram(stage: str, metric: str) -> list[Bin]:
        return [
            Bin(*row)
            for row in rows(
                "select bin_low, bin_high, cast(sum(n) as bigint) from stats "
                "where stage = ? and metric = ? group by all order by all",
                stage,
                metric,
            )
        ]

    def top(stage: str, metric: str) -> list[tuple[str, int]]:
        return [
            (value, n)
            for value, n in rows(
                "select value, cast(sum(n) as bigint) as n from top "
                "where stage = ? and metric = ? group by all order by n desc, value limit ?",
                stage,
                metric,
                TOP_ROWS,
            )
        ]

    samples, statistics, similarity_deciles, text_deciles = _subset(connection)
    made_with = [
        json.loads(text)
        for (text,) in rows("select distinct metadata from runs where asset = 'filtered_subset'")
    ]
    runs = [
        AssetRuns(*row)
        for row in rows(
            "select asset, count(*), sum(seconds), cast(sum(bytes) as bigint) from runs "
            "group by all order by min(started), asset"
        )
    ]
    return Facts(
        samples=samples,
        crawls=[crawl for (crawl,) in rows("select distinct crawl from runs order by all")],
        segments=rows("select count(distinct (crawl, segment)) from runs")[0][0],
        newest=rows("select max(started) from runs")[0][0],
        model=_common(made_with, "model"),
        recipe=_common(made_with, "recipe"),
        threshold=_common(made_with, "threshold"),
        funnel=_funnel(rows("select stage, reason, n from funnel")),
        statistics=statistics,
        similarity_deciles=similarity_deciles,
        text_deciles=text_deciles,
        similarity=histogram("scored", "similarity"),
        text_length=histogram("subset", "text_length"),
        shorter_side=histogram("subset", "shorter_side"),
        languages=top("pairs", "language"),
        nsfw=top("scored", "nsfw"),
        hosts=top("subset", "host"),
        licenses=top("subset", "license"),
        runs=runs,
    )


def _common(made_with: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The one value that all partitions were made with; None if unknown or not the same."""
    values = {json.dumps(metadata.get(name)) for metadata in made_with}
    return json.loads(values.pop()) if len(values) == 1 else None


def _funnel(rows: Sequence[Row]) -> list[StageCounts]:
    found: dict[str, StageCounts] = {}
    for stage, reason, n in rows:
        counts = found.setdefault(stage, StageCounts(stage))
        if reason == "in":
            counts.n_in = n
        elif reason == "kept":
            counts.kept = n
        else:
            counts.rejects[reason] = n
    return [found[stage] for stage in REASONS if stage in found]


def _subset(
    connection: duckdb.DuckDBPyConnection,
) -> tuple[int, list[Statistic], list[float], list[float]]:
    sides = ", ".join(
        f'count(*) filter ({"greatest" if which == "either" else "least"}("WIDTH", "HEIGHT") '
        f">= {pixels})"
        for which, pixels in PAPER_SIDES
    )
    row = connection.execute(
        f'select count(distinct "SAMPLE_ID"), {sides}, '
        'quantile_cont(similarity, $deciles), quantile_cont(length("TEXT"), $deciles) '
        "from subset",
        {"deciles": list(DECILES)},
    ).fetchone()
    assert row is not None
    samples, *counted, similarity, text = row
    statistics = [Statistic("Unique samples", samples, 1.0, PAPER_SAMPLES, 1.0)]
    for (which, pixels), n in zip(PAPER_SIDES, counted, strict=True):
        paper = PAPER_SIDES[which, pixels]
        side = "Width or height" if which == "either" else "Width and height"
        statistics.append(
            Statistic(
                f"{side} ≥ {pixels:,}",
                n,
                n / samples if samples else 0.0,
                paper,
                paper / PAPER_SAMPLES,
            )
        )
    return samples, statistics, similarity or [], text or []
