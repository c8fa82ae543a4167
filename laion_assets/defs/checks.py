"""Blocking checks that stand between the stages.

Each is a function of files alone; an asset evaluates its checks before it publishes, so that what
fails one never replaces what is published. Which asset has which checks, the asset declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.clip.vectors import places_in
from laion_assets.download.shard_files import read_shard, rows_in_turn, tars_in
from laion_assets.download.shards import was_whole
from laion_assets.download.tars import problem_of
from laion_assets.filtering.plausible import tagged_share, tags_problem, threshold_problem
from laion_assets.filtering.similarities import Similarities
from laion_assets.funnel import StageCounts
from laion_assets.knn.options import IndexOptions
from laion_assets.tables import part_number, read_parquet, rows_in, stored

NORM_TOLERANCE: Final = 2e-3
"""A float16 vector of a few hundred dimensions cannot be normalised closer than this."""

_ROWS_AT_ONCE: Final = 65_536

CHECKS: Final[Mapping[str, str]] = {
    "schema_exact": "The parquet's columns are exactly the contract's, in order and type.",
    "keys_unique": "No key appears twice.",
    "funnel_adds_up": "in = kept + rejects, kept = rows, and in = what the stage before kept.",
    "shards_whole": "Every row marked success has its image, text and JSON in the tar.",
    "vectors_sound": "Vectors are finite, of unit norm, and as many as the metadata's rows.",
    "rows_aligned": "Parquet, image vectors and text vectors have the same number of rows.",
    "above_threshold": "Every kept similarity is at or above the threshold.",
    "size_equal": "The index holds one vector for each row of the subset.",
    "recall": "The index finds what brute force finds.",
    "tags_plausible": (
        "Plausibly few pairs are tagged NSFW or UNSURE; many may mean prompts of another model."
    ),
    "threshold_fits": (
        "The threshold lets plausibly few shuffled pairs through; many may mean another model's."
    ),
    "codec_fits": (
        "The codec still suits the vectors. If not, materialize index_codec, then knn_index of all "
        "segments; until then search works, slower or with more memory."
    ),
}

_ADVICE: Final = frozenset({"codec_fits", "tags_plausible", "threshold_fits"})
"""Checks that warn and do not stand in the way."""


@dataclass(frozen=True)
class Outcome:
    """What a check found in files."""

    check: str
    problem: str | None
    """None if the check passed."""
    metadata: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        return self.problem is None

    @property
    def blocks(self) -> bool:
        """Whether the partition must not be published."""
        return not self.passed and self.check not in _ADVICE

    def for_dagster(self, asset: str) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(
            asset_key=asset,
            check_name=self.check,
            passed=self.passed,
            description=self.problem,
            severity=dg.AssetCheckSeverity.WARN
            if self.check in _ADVICE
            else dg.AssetCheckSeverity.ERROR,
            metadata=self.metadata,
        )


def outcome(check: str, problem: str | None, **metadata: Any) -> Outcome:
    return Outcome(check, problem, metadata)


def check_specs(asset: str, names: Sequence[str]) -> list[dg.AssetCheckSpec]:
    """Dagster's specifications of an asset's checks."""
    return [
        dg.AssetCheckSpec(name, asset=asset, blocking=name not in _ADVICE, description=CHECKS[name])
        for name in names
    ]


def require(*outcomes: Outcome) -> None:
    """Raise ``dagster.Failure``, which names the blocking checks that did not pass, if any."""
    failed = [f"{found.check}: {found.problem}" for found in outcomes if found.blocks]
    if failed:
        raise dg.Failure(
            f"not published, blocking checks failed: {'; '.join(failed)}", allow_retries=False
        )


def schema_exact(paths: Sequence[Path], schema: pa.Schema, parts: int) -> Outcome:
    """Check the columns of parquet files: those of ``schema`` that a file at its place has.

    ``parts``: how many files there must be.
    """
    if len(paths) != parts:
        return outcome("schema_exact", f"{len(paths)} parts, not {parts}")
    for path in paths:
        found = pq.read_schema(path)
        if not found.remove_metadata().equals(stored(schema, path)):
            return outcome("schema_exact", f"{path.name} has the schema {found}")
    return outcome("schema_exact", None, parts=parts)


def keys_unique(paths: Sequence[Path], column: str) -> Outcome:
    """Check a key column of parquet files: exact, in memory that DuckDB bounds by spilling."""
    if not paths:
        return outcome("keys_unique", None, rows=0)
    import duckdb

    with duckdb.connect() as connection:
        row = connection.execute(
            f'select count(*), count(distinct "{column}") from read_parquet(?)',
            [[str(path) for path in paths]],
        ).fetchone()
    assert row is not None
    rows, distinct = row
    problem = None if rows == distinct else f"{rows - distinct} rows repeat a {column}"
    return outcome("keys_unique", problem, rows=rows)


def funnel_adds_up(counts: StageCounts, rows: int, kept_before: int | None) -> Outcome:
    problems = []
    if not counts.adds_up:
        problems.append(
            f"{counts.n_in} in, but {counts.kept} kept + {sum(counts.rejects.values())} rejected"
        )
    if rows != counts.kept:
        problems.append(f"{counts.kept} counted as kept, but {rows} rows")
    if kept_before is not None and counts.n_in != kept_before:
        problems.append(f"{counts.n_in} in, but the stage before kept {kept_before}")
    return outcome("funnel_adds_up", "; ".join(problems) or None, rows=rows, n_in=counts.n_in)


def successes_in(paths: Sequence[Path]) -> int:
    """Rows marked success in the shards' parquet files."""
    return sum(
        read_parquet(path, ["status"])["status"].to_pylist().count("success") for path in paths
    )


def shards_whole(folder: Path) -> Outcome:
    """Check that every success among the rows of a folder of shards is complete in its tar.

    A tar is read unless whoever wrote it has, and it is still that file.
    """
    problems = []
    samples, rows = 0, sum(table.num_rows for table in rows_in_turn(folder, ["key"]))
    for tar in tars_in(folder):
        wanted: dict[str, str | None] = {}
        try:
            table = read_shard(tar, ["key", "status", "caption"])
            rows -= table.num_rows
            wanted = {
                row["key"]: row["caption"]
                for row in table.to_pylist()
                if row["status"] == "success"
            }
            problem = None if was_whole(tar, wanted) else problem_of(tar, wanted)
        except OSError as error:
            problem = f"it cannot be read: {error}"
        if problem:
            problems.append(f"{tar.stem}: {problem}")
        samples += len(wanted)
    if rows:
        problems.append(f"{rows} rows are of no tar")
    return outcome("shards_whole", "; ".join(problems) or None, samples=samples)


def _vectors(folder: Path, part: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """The image and, if there are captions, the text vectors in ``folder`` that belong to a part,
    memory-mapped."""
    for kind, place in zip(("image", "text"), places_in(folder), strict=False):
        yield kind, np.load(place(folder, part_number(part)), mmap_mode="r", allow_pickle=False)


def vectors_sound(paths: Sequence[Path]) -> Outcome:
    """Check the vectors beside parquet parts."""
    problems = []
    worst = 0.0
    for part in paths:
        n = rows_in(part)
        for kind, vectors in _vectors(part.parent, part):
            if len(vectors) != n:
                problems.append(f"{part.name}: {len(vectors)} {kind} vectors for {n} rows")
            for start in range(0, len(vectors), _ROWS_AT_ONCE):
                some = np.asarray(vectors[start : start + _ROWS_AT_ONCE], dtype=np.float32)
                off = float(np.abs(np.linalg.norm(some, axis=1) - 1).max())
                # NaN compares false with everything: ask for what is right, not for what is wrong.
                if not off <= NORM_TOLERANCE:
                    problems.append(f"{part.name}: {kind} vectors are off unit norm by {off}")
                    break
                worst = max(worst, off)
    return outcome("vectors_sound", "; ".join(problems) or None, worst_norm_error=worst)


def rows_aligned(paths: Sequence[Path], vectors: Path) -> Outcome:
    """Check that the folder ``vectors`` has the embeddings of the parquet parts, row for row."""
    problems = []
    rows = 0
    for part in paths:
        n = rows_in(part)
        rows += n
        for kind, found in _vectors(vectors, part):
            if len(found) != n:
                problems.append(f"{part.name}: {n} rows, {len(found)} {kind} vectors")
    return outcome("rows_aligned", "; ".join(problems) or None, rows=rows)


def above_threshold(paths: Sequence[Path], threshold: float | None) -> Outcome:
    """``threshold``: None for images without captions, which have no similarity."""
    if threshold is None:
        return outcome("above_threshold", None, threshold="none: no captions")
    lowest = 1.0
    for part in paths:
        similarity = read_parquet(part, ["similarity"])["similarity"].to_numpy()
        if len(similarity):
            lowest = min(lowest, float(similarity.min()))
    problem = None if lowest >= threshold else f"similarity {lowest} is below {threshold}"
    return outcome("above_threshold", problem, lowest=lowest, threshold=threshold)


def tags_plausible(tags: Mapping[str, int], nearest: Mapping[str, int], most: float) -> Outcome:
    """``tags``, ``nearest``: numbers of pairs by tag, and by nearest category."""
    problem = tags_problem(tags, nearest, most)
    return outcome("tags_plausible", problem, share=tagged_share(tags), plausible=most)


def threshold_fits(found: Similarities, threshold: float | None) -> Outcome:
    if threshold is None:
        return outcome("threshold_fits", None, threshold="none: no captions")
    kept = found.at(threshold)
    problem = threshold_problem(found, threshold)
    return outcome("threshold_fits", problem, shuffled_kept=kept.shuffled, kept=kept.real)


def size_equal(index: Path, rows: int) -> Outcome:
    from laion_assets.knn.recall import size_problem

    return outcome("size_equal", size_problem(index, rows), rows=rows)


def recall(measured: Mapping[str, Mapping[str, float]], options: IndexOptions) -> Outcome:
    """``measured``: by modality, the recall at 1, 10 and 100 neighbours."""
    shares = {
        f"{over}@{k}": share for over, found in measured.items() for k, share in found.items()
    }
    low = [f"{name} {share:.4f}" for name, share in shares.items() if share < options.min_recall]
    problem = f"recall {', '.join(low)} is below {options.min_recall}" if low else None
    return outcome("recall", problem, **shares)


def codec_fits(index: Path, options: IndexOptions) -> Outcome:
    """Asks for a codec, or for a new one, where it is time."""
    from laion_assets.knn.codec import advice
    from laion_assets.knn.files import IndexSummary

    summary = IndexSummary.read(index)
    advised = advice(summary, options)
    codecs = {"drift": dict(summary.drift), "imbalance": dict(summary.imbalance)}
    return outcome("codec_fits", "; ".join(advised) or None, n=summary.n, **codecs)
