"""The report's data, queried from the catalog by SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import duckdb
import numpy as np

from laion_assets.clip.options import file_name, public_key
from laion_assets.funnel import REASONS, StageCounts
from laion_assets.layout import (
    EMBEDDINGS,
    FILTERED_SUBSET,
    IMAGE_SHARDS,
    PAIR_PARQUET,
    SCORED_PAIRS,
    WAT_MANIFEST,
)

DECILES: Final = tuple(number / 10 for number in range(1, 10))
TOP_ROWS: Final = 12
AROUND: Final = 12
"""Number of pairs shown on either side of the threshold."""

_FILTERING: Final = (
    WAT_MANIFEST,
    PAIR_PARQUET,
    IMAGE_SHARDS,
    EMBEDDINGS,
    SCORED_PAIRS,
    FILTERED_SUBSET,
)

_CHOICES: Final = ("options", "model", "model_version", "prompts", "words", "recipe", "threshold")
"""A manifest's metadata on how its rows were chosen; the rest is about the run."""

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
    """Totals over all partitions of one asset; counts are None if it refuses nothing."""

    asset: str
    partitions: int
    n_in: int | None
    kept: int | None
    seconds: float
    per_second: float | None
    bytes: int


@dataclass(frozen=True)
class Made:
    """The making of an asset's partitions; an option that differs between them is `None`."""

    asset: str
    code: Sequence[str]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class NearPair:
    """A pair near the threshold, and the place of its picture."""

    above: bool
    similarity: float
    sample_id: int
    url: str
    text: str
    crawl: str
    segment: str
    shard: int
    key: str


@dataclass(frozen=True)
class Facts:
    """A dataset in numbers. Sequences are empty as long as nothing has been made."""

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
    made: Sequence[Made]
    around: Sequence[NearPair]
    left_out: int = 0
    """Number of the subset's samples that are not in ``samples``, because a list names them."""

    def kept(self, stage: str) -> int:
        """Number of subjects that a stage kept; 0 if there are no counts of it."""
        return next((counts.kept for counts in self.funnel if counts.stage == stage), 0)


def gather(connection: duckdb.DuckDBPyConnection) -> Facts:
    """Query a catalog (see :func:`laion_assets.stats.catalog.open_catalog`) for all facts."""

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

    statistics = [Statistic(*row) for row in rows("from resolution_table()")]
    similarity_deciles, text_deciles = _deciles(connection)
    metadata = [
        (asset, code, json.loads(text))
        for asset, code, text in rows(
            "select distinct asset, code_version, metadata from runs order by all"
        )
    ]
    made_with = [values for asset, _, values in metadata if asset == FILTERED_SUBSET]
    threshold = _common(made_with, "threshold")
    model = _common(made_with, "model")
    return Facts(
        samples=statistics[0].n,
        crawls=[crawl for (crawl,) in rows("select distinct crawl from runs order by all")],
        segments=rows("select count(distinct (crawl, segment)) from runs")[0][0],
        newest=rows("select max(started) from runs")[0][0],
        model=model and public_key(model),
        recipe=_common(made_with, "recipe"),
        threshold=threshold,
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
        runs=[AssetRuns(*row) for row in rows("from throughput()")],
        made=_made(metadata),
        around=[] if threshold is None else _around(rows),
    )


def of_samples(facts: Facts, connection: duckdb.DuckDBPyConnection, left_out: int) -> Facts:
    """Facts of the same lake, but about the samples of ``connection`` alone.

    ``connection`` is that of :func:`laion_assets.stats.catalog.open_samples`; ``left_out`` is the
    number of samples it lacks. Replaces only what a card shows: statistics, deciles and licences.
    """
    statistics = [
        Statistic(*row) for row in connection.execute("from resolution_table()").fetchall()
    ]
    similarity_deciles, text_deciles = _deciles(connection)
    licenses = connection.execute(f"select license, samples from licences() limit {TOP_ROWS}")
    return replace(
        facts,
        samples=statistics[0].n,
        left_out=left_out,
        statistics=statistics,
        similarity_deciles=similarity_deciles,
        text_deciles=text_deciles,
        licenses=licenses.fetchall(),
    )


def _around(rows: Callable[..., list[Row]]) -> list[NearPair]:
    return [
        NearPair(*row)
        for row in rows(
            "select similarity >= threshold, similarity, SAMPLE_ID, url, text, crawl, segment, "
            f"shard, key from around_threshold({AROUND})"
        )
    ]


def _made(metadata: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Made]:
    """The making of each filtering asset, in the order of the stages."""
    made = []
    for asset in (asset for asset in _FILTERING if any(asset == name for name, *_ in metadata)):
        of_asset = [(code, values) for name, code, values in metadata if name == asset]
        choices = [_choices(values) for _, values in of_asset]
        names = dict.fromkeys(name for values in choices for name in values)
        made.append(
            Made(
                asset,
                sorted({code for code, _ in of_asset}),
                {name: _common(choices, name) for name in names},
            )
        )
    return made


def _choices(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Options, models and recipes in a manifest's metadata, as they may be published."""
    choices = {name: metadata[name] for name in _CHOICES if name in metadata}
    options = choices.pop("options", {})
    return {
        name: _public(name, value)
        for name, value in {**options, **choices}.items()
        if value not in (None, {})
    }


def _public(name: str, value: Any) -> Any:
    """Value of an option without paths of the machine that made the partition."""
    if name == "model":
        return public_key(value)
    if name == "thresholds":
        return {public_key(key): threshold for key, threshold in value.items()}
    return file_name(value) if name == "pretrained" else value


def _common(made_with: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Value that all partitions were made with; None if it is unknown or differs."""
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


def _deciles(connection: duckdb.DuckDBPyConnection) -> tuple[list[float], list[float]]:
    """Deciles of the subset's similarities, to 1e-4, and of its texts' lengths in characters.

    They are read off the counts of each value: DuckDB's exact quantile keeps all values in memory.
    """

    def of(value: str) -> list[float]:
        counts = connection.execute(
            f"select {value} as value, count(*) as n from subset where value is not null "
            "group by all order by all"
        ).fetchall()
        if not counts:
            return []
        values, ends = np.array([value for value, _ in counts]), np.cumsum([n for _, n in counts])
        places = np.array(DECILES) * (ends[-1] - 1)
        below, above = (
            values[np.searchsorted(ends, rounded(places), side="right")]
            for rounded in (np.floor, np.ceil)
        )
        return [float(value) for value in below + (above - below) * (places % 1)]

    return of("round(similarity::double, 4)"), of('length("TEXT")')
