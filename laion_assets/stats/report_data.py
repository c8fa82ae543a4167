"""The report's data, queried from the catalog by SQL: from its tables, and no file of the lake.

All of it is about the segments whose statistics are in the catalog.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from laion_assets.clip.options import BRING_THEIR_OWN_WEIGHTS, file_name, public_key
from laion_assets.funnel import REASONS, StageCounts
from laion_assets.heads.head import in_all
from laion_assets.layout import (
    EMBEDDINGS,
    FILTERED_SUBSET,
    IMAGE_SHARDS,
    PAIR_PARQUET,
    SCORED_PAIRS,
    SEGMENT_ASSETS,
    SEGMENT_STATS,
    WAT_MANIFEST,
)
from laion_assets.schemas import SCORE_PREFIX
from laion_assets.stats.segment import FINE_SIMILARITY, FINE_TEXT_LENGTH, SHUFFLED

DECILES: Final = tuple(number / 10 for number in range(1, 10))
TOP_ROWS: Final = 12

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

_RUNS: Final = tuple(asset for asset in SEGMENT_ASSETS if asset != SEGMENT_STATS)
_MEASURED: Final = "(crawl, segment) in (from segments)"

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
class Facts:
    """A dataset in numbers. Sequences are empty as long as nothing has been made."""

    samples: int
    crawls: Sequence[str]
    segments: int
    newest: datetime | None
    model: str | None
    model_version: str | None
    recipe: str | None
    threshold: float | None
    funnel: Sequence[StageCounts]
    statistics: Sequence[Statistic]
    similarity_deciles: Sequence[float]
    text_deciles: Sequence[float]
    similarity: Sequence[Bin]
    shuffled: Sequence[Bin]
    """Similarities of shuffled pairs, on the bins of the real ones."""
    scores: Mapping[str, Sequence[Bin]]
    """Scores of all embedded pairs, by the head's column."""
    kept_scores: Mapping[str, Sequence[Bin]]
    """Those of the subset's samples."""
    text_length: Sequence[Bin]
    shorter_side: Sequence[Bin]
    languages: Sequence[tuple[str, int]]
    nsfw: Sequence[tuple[str, int]]
    hosts: Sequence[tuple[str, int]]
    licenses: Sequence[tuple[str, int]]
    runs: Sequence[AssetRuns]
    made: Sequence[Made]
    spoken: Sequence[str]
    """Languages of the samples' texts, sorted."""
    uneven_scores: Sequence[str] = ()
    """Heads' columns that are absent from some segments, or of several versions of the head."""
    left_out: int = 0
    """Number of the subset's samples that are not in ``samples``, because a list names them."""

    def kept(self, stage: str) -> int:
        """Number of subjects that a stage kept; 0 if there are no counts of it."""
        return next((counts.kept for counts in self.funnel if counts.stage == stage), 0)


@dataclass(frozen=True)
class LeftOut:
    """Samples of the subset that a release leaves out.

    ``statistics`` of these ``n`` are as :func:`laion_assets.stats.segment.of_subset` has them.
    """

    n: int
    statistics: pa.Table


def gather(connection: duckdb.DuckDBPyConnection, left_out: LeftOut | None = None) -> Facts:
    """Query a catalog (see :func:`laion_assets.stats.catalog.open_catalog`) for all facts.

    Those about samples are about all but what was left out.
    """

    def rows(sql: str, *values: object) -> list[Row]:
        return connection.execute(sql, list(values)).fetchall()

    counted = "sums"
    if left_out:
        connection.register("left_out", left_out.statistics)
        counted = "(from sums union all by name select * replace (-n as n) from left_out)"

    def sums(kind: str, stage: str, metric: str) -> list[Row]:
        return rows(
            f"select bin_low, bin_high, value, cast(sum(n) as bigint) as n from {counted} "
            "where kind = ? and stage = ? and metric = ? group by all having sum(n) > 0 "
            "order by bin_low, n desc, value",
            kind,
            stage,
            metric,
        )

    def histogram(stage: str, metric: str) -> list[Bin]:
        return [Bin(low, high, n) for low, high, _, n in sums("histogram", stage, metric)]

    def top(stage: str, metric: str) -> list[tuple[str, int]]:
        return [(value, n) for *_, value, n in sums("top", stage, metric)]

    rows(
        "create or replace temp view segments as "
        "select distinct crawl, segment from sums where kind = 'rows'"
    )
    dropped = left_out.n if left_out else 0
    samples = sum(n for *_, n in rows("select n from sums where kind = 'rows'")) - dropped
    sides = histogram("subset", "shorter_side"), histogram("subset", "longer_side")
    paper = rows('select "row", what, samples from laion400m order by place')
    metadata = _metadata(rows)
    made_with = [values for asset, _, values in metadata if asset == FILTERED_SUBSET]
    model, version = _common(made_with, "model"), _common(made_with, "model_version")
    if model is None and version:
        # The same weights under several names, such as those of a folder that was moved.
        model = max(values["model"] for values in made_with)
    ((newest,),) = rows(f"select max(started) from runs where asset in {_RUNS} and {_MEASURED}")
    return Facts(
        samples=samples,
        left_out=dropped,
        crawls=[crawl for (crawl,) in rows("select distinct crawl from segments order by all")],
        segments=rows("select count(*) from segments")[0][0],
        newest=newest,
        model=model and public_key(model),
        model_version=version,
        recipe=_common(made_with, "recipe"),
        # Images without captions have no threshold.
        threshold=_common([of for of in made_with if of.get("threshold") is not None], "threshold"),
        funnel=_funnel(
            rows(
                "select stage, reason, cast(sum(n) as bigint) from funnel_by_segment "
                f"where {_MEASURED} group by all order by all"
            )
        ),
        statistics=_statistics(samples, *sides, paper),
        similarity_deciles=_deciles(histogram("subset", FINE_SIMILARITY)),
        text_deciles=_deciles(histogram("subset", FINE_TEXT_LENGTH)),
        similarity=histogram("scored", "similarity"),
        shuffled=histogram("scored", SHUFFLED),
        scores=_scores(rows, histogram, "scored"),
        kept_scores=_scores(rows, histogram, "subset"),
        uneven_scores=_uneven(rows),
        text_length=histogram("subset", "text_length"),
        shorter_side=sides[0],
        languages=top("pairs", "language")[:TOP_ROWS],
        nsfw=top("scored", "nsfw")[:TOP_ROWS],
        hosts=top("subset", "host")[:TOP_ROWS],
        licenses=top("subset", "license")[:TOP_ROWS],
        runs=[AssetRuns(*row) for row in rows(f"from throughput() where asset in {_RUNS}")],
        made=_made(metadata),
        spoken=sorted(language for language, _ in top("subset", "language") if language),
    )


def _scores(
    rows: Callable[..., list[Row]], histogram: Callable[[str, str], list[Bin]], stage: str
) -> dict[str, Sequence[Bin]]:
    """The histograms of all heads' scores, by column."""
    found = rows(
        "select distinct metric from sums where kind = 'histogram' and stage = ? "
        "and starts_with(metric, ?) order by all",
        stage,
        SCORE_PREFIX,
    )
    return {metric: histogram(stage, metric) for (metric,) in found}


def _uneven(rows: Callable[..., list[Row]]) -> list[str]:
    """The heads' columns that not all partitions of scores and of the subset have alike."""
    found = rows(
        "select distinct coalesce(metadata->'heads', '{}')::varchar from runs "
        f"where asset in ('{SCORED_PAIRS}', '{FILTERED_SUBSET}') and {_MEASURED}"
    )
    if not found:
        return []
    _, others = in_all([json.loads(heads) for (heads,) in found])
    return [f"{SCORE_PREFIX}{name}" for name in others]


def _statistics(
    samples: int, shorter: Sequence[Bin], longer: Sequence[Bin], paper: Sequence[Row]
) -> list[Statistic]:
    """The paper's table. Its edges are edges of bins."""
    table = []
    for row, what, of_paper in paper:
        n = samples
        if row != "all":
            sides, pixels = row.split("_")
            bins = longer if sides == "either" else shorter
            n = sum(item.n for item in bins if item.low >= int(pixels))
        share = n / samples if samples else 0.0
        table.append(Statistic(what, n, share, of_paper, of_paper / paper[0][2]))
    return table


def _metadata(rows: Callable[..., list[Row]]) -> list[tuple[str, str, dict[str, Any]]]:
    """The different ``(asset, code version, choices)`` with which partitions were made."""
    paths = ", ".join(f"'$.{name}'" for name in _CHOICES)
    return [
        (
            asset,
            code,
            {name: json.loads(text) for name, text in zip(_CHOICES, found, strict=True) if text},
        )
        for asset, code, found in rows(
            f"select distinct asset, code_version, json_extract(metadata, [{paths}])::varchar[] "
            f"from runs where asset in {_FILTERING} and {_MEASURED} order by all"
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
    options = dict(choices.pop("options", {}))
    if str(choices.get("model", "")).startswith(BRING_THEIR_OWN_WEIGHTS):
        options.pop("pretrained", None)  # unused
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


def _deciles(bins: Sequence[Bin]) -> list[float]:
    """The deciles of values that are the lower edges of their bins."""
    if not bins:
        return []
    values, ends = np.array([item.low for item in bins]), np.cumsum([item.n for item in bins])
    places = np.array(DECILES) * (ends[-1] - 1)
    below, above = (
        values[np.searchsorted(ends, rounded(places), side="right")]
        for rounded in (np.floor, np.ceil)
    )
    return [float(value) for value in below + (above - below) * (places % 1)]
