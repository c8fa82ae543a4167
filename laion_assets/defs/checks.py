"""Blocking checks that stand between the stages.

Each is a function of files alone and gives an ``AssetCheckResult``; an asset evaluates its checks
before it publishes, so that what fails one never takes the place of what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.funnel import StageCounts
from laion_assets.knn.options import IndexOptions

NORM_TOLERANCE: Final = 2e-3
"""A float16 vector of a few hundred dimensions cannot be normalised closer than this."""

_WHAT: Final[Mapping[str, str]] = {
    "schema_exact": "The parquet's columns are exactly the contract's, in order and type.",
    "keys_unique": "No key appears twice.",
    "funnel_adds_up": "in = kept + rejects, kept = rows, and in = what the stage before kept.",
    "shards_whole": "Every row marked success has its image, text and JSON in the tar.",
    "vectors_sound": "Vectors are finite, of unit norm, and as many as the metadata's rows.",
    "rows_aligned": "Parquet, image vectors and text vectors have the same number of rows.",
    "above_threshold": "Every kept similarity is at or above the threshold.",
    "size_equal": "The index holds one vector for each row of the subset.",
    "recall": "The index finds what brute force finds.",
    "codec_fits": (
        "The codec still suits the vectors. If not, materialize index_codec, then knn_index of all "
        "segments; until then search works, slower or with more memory."
    ),
}

_CHECKS: Final[Mapping[str, Sequence[str]]] = {
    "pair_parquet": ("schema_exact", "keys_unique", "funnel_adds_up"),
    "unique_pairs": ("schema_exact", "keys_unique", "funnel_adds_up"),
    "image_shards": ("shards_whole", "funnel_adds_up"),
    "embeddings": ("vectors_sound", "funnel_adds_up"),
    "scored_pairs": ("schema_exact", "rows_aligned"),
    "filtered_subset": (
        "schema_exact",
        "keys_unique",
        "rows_aligned",
        "above_threshold",
        "funnel_adds_up",
    ),
    "knn_index": ("size_equal", "recall", "codec_fits"),
    "search_index": ("size_equal", "recall", "codec_fits"),
}

_ADVICE: Final = frozenset({"codec_fits"})
"""Checks that warn and do not stand in the way."""


def check_specs(asset: str, like: str | None = None) -> list[dg.AssetCheckSpec]:
    """``like``: the asset whose checks it has, if not its own."""
    return [
        dg.AssetCheckSpec(name, asset=asset, blocking=name not in _ADVICE, description=_WHAT[name])
        for name in _CHECKS.get(like or asset, ())
    ]


def outcome(asset: str, name: str, problem: str | None, **metadata: Any) -> dg.AssetCheckResult:
    """A check's result: it passed if there is no problem to tell of."""
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=problem is None,
        description=problem,
        severity=dg.AssetCheckSeverity.WARN if name in _ADVICE else dg.AssetCheckSeverity.ERROR,
        metadata=metadata,
    )


def require(*results: dg.AssetCheckResult) -> list[dg.AssetCheckResult]:
    """The results, if all that block passed. Raises ``dagster.Failure`` naming those that did not.

    Called before a partition is published: one that fails a check never takes the place of the
    one that is there.
    """
    failed = [
        result
        for result in results
        if not result.passed and result.severity is dg.AssetCheckSeverity.ERROR
    ]
    if failed:
        problems = "; ".join(f"{result.check_name}: {result.description}" for result in failed)
        raise dg.Failure(f"not published, blocking checks failed: {problems}", allow_retries=False)
    return list(results)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def parts_in(folder: Path, pattern: str = "part-*.parquet") -> int:
    return len(list(folder.glob(pattern)))


def schema_exact(asset: str, folder: Path, schema: pa.Schema, parts: int) -> dg.AssetCheckResult:
    """``parts``: how many there must be."""
    if len(_parts(folder)) != parts:
        return outcome(asset, "schema_exact", f"{len(_parts(folder))} parts, not {parts}")
    for part in _parts(folder):
        found = pq.read_schema(part)
        if not found.remove_metadata().equals(schema):
            return outcome(asset, "schema_exact", f"{part.name} has the schema {found}")
    return outcome(asset, "schema_exact", None, parts=parts)


def keys_unique(asset: str, folder: Path, column: str) -> dg.AssetCheckResult:
    """Exact, in memory that DuckDB bounds by spilling."""
    if not _parts(folder):
        return outcome(asset, "keys_unique", None, rows=0)
    import duckdb

    with duckdb.connect() as connection:
        row = connection.execute(
            f'select count(*), count(distinct "{column}") from read_parquet(?)',
            [[str(part) for part in _parts(folder)]],
        ).fetchone()
    assert row is not None
    rows, distinct = row
    problem = None if rows == distinct else f"{rows - distinct} rows repeat a {column}"
    return outcome(asset, "keys_unique", problem, rows=rows)


def rows_in(folder: Path, pattern: str = "part-*.parquet") -> int:
    return sum(int(pq.read_metadata(part).num_rows) for part in sorted(folder.glob(pattern)))


def funnel_adds_up(
    asset: str, counts: StageCounts, rows: int, kept_before: int | None
) -> dg.AssetCheckResult:
    problems = []
    if not counts.adds_up:
        problems.append(
            f"{counts.n_in} in, but {counts.kept} kept + {sum(counts.rejects.values())} rejected"
        )
    if rows != counts.kept:
        problems.append(f"{counts.kept} counted as kept, but {rows} rows")
    if kept_before is not None and counts.n_in != kept_before:
        problems.append(f"{counts.n_in} in, but the stage before kept {kept_before}")
    return outcome(
        asset, "funnel_adds_up", "; ".join(problems) or None, rows=rows, n_in=counts.n_in
    )


def successes_in(folder: Path) -> int:
    """Rows marked success in the shards' parquet files."""
    total = 0
    for shard in sorted(folder.glob("*.parquet")):
        status = pq.read_table(shard, columns=["status"])["status"].to_pylist()
        total += status.count("success")
    return total


def shards_whole(folder: Path) -> dg.AssetCheckResult:
    import tarfile

    problems = []
    samples = 0
    for shard in sorted(folder.glob("*.parquet")):
        table = pq.read_table(shard, columns=["key", "status"]).to_pylist()
        wanted = {row["key"] for row in table if row["status"] == "success"}
        members: dict[str, set[str]] = {}
        try:
            with tarfile.open(shard.with_suffix(".tar")) as tar:
                for name in tar.getnames():
                    key, _, kind = name.partition(".")
                    members.setdefault(key, set()).add(kind)
        except (tarfile.TarError, OSError) as error:
            problems.append(f"{shard.stem}: the tar cannot be read: {error}")
        if set(members) != wanted:
            problems.append(f"{shard.stem}: {len(wanted)} successes, {len(members)} in the tar")
        torn = sorted(key for key, kinds in members.items() if not {"txt", "json"} < kinds)
        if torn:
            problems.append(f"{shard.stem}: {torn[0]} and {len(torn) - 1} more are incomplete")
        samples += len(members)
    return outcome("image_shards", "shards_whole", "; ".join(problems) or None, samples=samples)


def _vectors(folder: Path, kind: str, number: str) -> np.ndarray[Any, Any]:
    path = folder / f"{kind}_emb" / f"{kind}_emb_{number}.npy"
    vectors: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


def vectors_sound(folder: Path) -> dg.AssetCheckResult:
    problems = []
    worst = 0.0
    for metadata in sorted((folder / "metadata").glob("metadata_*.parquet")):
        number = metadata.stem.removeprefix("metadata_")
        rows = pq.read_metadata(metadata).num_rows
        for kind in ("image", "text"):
            vectors = _vectors(folder, "img" if kind == "image" else "text", number)
            if len(vectors) != rows:
                problems.append(f"{number}: {len(vectors)} {kind} vectors for {rows} rows")
            if not len(vectors):
                continue
            norms = np.linalg.norm(np.asarray(vectors, dtype=np.float32), axis=1)
            # NaN compares false with everything: ask for what is right, not for what is wrong.
            off = float(np.abs(norms - 1).max())
            if not off <= NORM_TOLERANCE:
                problems.append(f"{number}: {kind} vectors are off unit norm by {off}")
            else:
                worst = max(worst, off)
    return outcome(
        "embeddings", "vectors_sound", "; ".join(problems) or None, worst_norm_error=worst
    )


def rows_aligned(asset: str, folder: Path, vectors: Path) -> dg.AssetCheckResult:
    """``folder`` has the parquet parts, ``vectors`` the embeddings of the same numbers."""
    problems = []
    rows = 0
    for part in _parts(folder):
        number = part.stem.removeprefix("part-")
        n = int(pq.read_metadata(part).num_rows)
        rows += n
        for kind in ("img", "text"):
            found = len(_vectors(vectors, kind, number))
            if found != n:
                problems.append(f"{part.name}: {n} rows, {found} {kind} vectors")
    return outcome(asset, "rows_aligned", "; ".join(problems) or None, rows=rows)


def above_threshold(asset: str, folder: Path, threshold: float) -> dg.AssetCheckResult:
    lowest = 1.0
    for part in _parts(folder):
        similarity = pq.read_table(part, columns=["similarity"])["similarity"].to_numpy()
        if len(similarity):
            lowest = min(lowest, float(similarity.min()))
    problem = None if lowest >= threshold else f"similarity {lowest} is below {threshold}"
    return outcome(asset, "above_threshold", problem, lowest=lowest, threshold=threshold)


def size_equal(asset: str, index: Path, rows: int) -> dg.AssetCheckResult:
    from laion_assets.knn.recall import size_problem

    return outcome(asset, "size_equal", size_problem(index, rows), rows=rows)


def recall(
    asset: str,
    index: Path,
    subset_of: Callable[[str, str], Path],
    options: IndexOptions,
    *,
    own_queries: bool,
) -> dg.AssetCheckResult:
    """At 1, 10 and 100 neighbours, of the image and of the text index."""
    from laion_assets.knn.recall import measure_recall

    measured = {
        f"{modality}@{k}": share
        for modality, found in measure_recall(
            index, subset_of, options, own_queries=own_queries
        ).items()
        for k, share in found.items()
    }
    low = [f"{name} {share:.4f}" for name, share in measured.items() if share < options.min_recall]
    problem = f"recall {', '.join(low)} is below {options.min_recall}" if low else None
    return outcome(asset, "recall", problem, **measured)


def codec_fits(asset: str, index: Path, options: IndexOptions) -> dg.AssetCheckResult:
    """Asks for a codec, or for a new one, where it is time."""
    from laion_assets.knn.codec import advice
    from laion_assets.knn.files import IndexSummary

    summary = IndexSummary.read(index)
    told = advice(summary, options)
    codecs = {"drift": dict(summary.drift), "imbalance": dict(summary.imbalance)}
    return outcome(asset, "codec_fits", "; ".join(told) or None, n=summary.n, **codecs)
