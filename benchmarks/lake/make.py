"""Synthetic lakes: two segments made in full, and hard links to the first in all others.

The second, the *needle*, is what look-ups must find among partitions that do not hold it. Files are
what the stages write: same writers, same schemas, same look-up indexes. Sampled down: a segment has
a tenth of the pairs of LAION-400M's size, and a fifth of its samples; there are no images' tars.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.lake import rows as made_up
from laion_assets import schemas
from laion_assets.clip.embed import EmbeddedWith
from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.filtering.score import ScoredWith
from laion_assets.filtering.subset import TakenWith
from laion_assets.funnel import StageCounts
from laion_assets.lake import MANIFEST, LocalLake, Staging
from laion_assets.layout import (
    EMBEDDINGS,
    FILTERED_SUBSET,
    IMAGE_SHARDS,
    PAIR_PARQUET,
    PARTITIONS,
    SCORED_PAIRS,
    SEGMENT_STATS,
    UNIQUE_PAIRS,
    WAT_MANIFEST,
    SegmentKey,
    segment_names,
)
from laion_assets.lookup.write import write_lookups
from laion_assets.stats.segment import segment_stats
from laion_assets.tables import PartsWriter, TableWriter, VectorsWriter, part_path, write_table

SEGMENTS: Final = 100
MODEL: Final = ModelIdentity(model="synthetic/none", model_version="0" * 16)
"""Segments of a crawl."""


@dataclass(frozen=True)
class Sizes:
    """Rows of one segment."""

    pairs: int = 500_000
    unique: int = 150_000
    images: int = 50_000
    kept: int = 8_000
    dim: int = 512


def keys(partitions: int) -> list[SegmentKey]:
    """The first ``partitions`` segments of as many crawls as they need."""
    crawls = [
        f"CC-MAIN-{2013 + n // 50}-{n % 50 + 1:02d}" for n in range(-(-partitions // SEGMENTS))
    ]
    of_all = (SegmentKey(crawl, name) for crawl in crawls for name in segment_names(SEGMENTS))
    return list(islice(of_all, partitions))


def build(root: Path, partitions: int, sizes: Sizes) -> SegmentKey:
    """Make a lake of so many partitions of each asset with a segment; return the needle's key."""
    *many, needle = keys(partitions)
    lake = LocalLake.at(root)
    _segment(lake, many[0], sizes, seed=0)
    _segment(lake, needle, sizes, seed=1)
    for asset in _assets(root):
        template = Template(asset, many[0])
        for key in many[1:]:
            template.link(key)
    return needle


def add_segment(root: Path) -> None:
    """Publish one segment more, of a crawl of its own; do nothing if there is one."""
    key = SegmentKey("CC-MAIN-2099-01", "00")
    (first,) = keys(1)
    for asset in _assets(root):
        if not (asset / key.hive).exists():
            Template(asset, first).link(key)


def _assets(root: Path) -> list[Path]:
    return [asset for name in PARTITIONS if (asset := root / name).is_dir()]


@dataclass
class Template:
    """A published partition, and what its copies need."""

    asset: Path
    key: SegmentKey

    def __post_init__(self) -> None:
        folder = self.asset / self.key.hive
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = [(path, path.relative_to(folder)) for path in files if path.name != MANIFEST]
        self.folders = sorted({relative.parent for _, relative in self.files} - {Path()})
        self.manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))

    def link(self, key: SegmentKey) -> None:
        """Publish the same files for another segment, by hard links and a manifest of its own."""
        folder = self.asset / key.hive
        for inside in (Path(), *self.folders):
            (folder / inside).mkdir(parents=True, exist_ok=True)
        for path, relative in self.files:
            os.link(path, folder / relative)
        manifest = self.manifest | {"crawl": key.crawl, "segment": key.segment}
        (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _segment(lake: LocalLake, key: SegmentKey, sizes: Sizes, seed: int) -> None:
    """Publish every asset of one segment but its index."""
    found = made_up.pairs(sizes.pairs, seed)
    unique = found.slice(0, sizes.unique)
    of_images = made_up.images(unique, sizes.images)
    embedded = of_images.slice(0, sizes.images)
    scored = made_up.scored(embedded, unique["uid"].to_pylist()[: sizes.images], seed)
    kept = made_up.subset(scored.slice(0, sizes.kept))
    images = made_up.vectors(sizes.images, sizes.dim, seed)
    texts = made_up.vectors(sizes.images, sizes.dim, seed + 100)

    with _publish(lake, WAT_MANIFEST, key) as staging:
        wat = {"wat_file": ["0.warc.wat.gz"], "taken": [True], "segment_id": ["1"]}
        write_table(staging.path / "manifest.parquet", pa.table(wat, schema=schemas.WAT_MANIFEST))
    with _publish(lake, PAIR_PARQUET, key) as staging:
        _rows(staging, found, schemas.PAIRS, key)
        write_lookups(PAIR_PARQUET, staging.path)
        staging.counts = [
            _counts("wat", sizes.pairs // 20, sizes.pairs // 20),
            _counts("pairs", 2 * sizes.pairs, sizes.pairs, "alt_too_short"),
        ]
    with _publish(lake, UNIQUE_PAIRS, key) as staging:
        _rows(staging, unique, schemas.PAIRS, key)
        staging.counts = [_counts("unique_pairs", sizes.pairs, sizes.unique, "duplicate")]
    with _publish(lake, IMAGE_SHARDS, key) as staging:
        of_key = made_up.with_key(of_images, schemas.IMAGES, key.crawl, key.segment)
        with TableWriter(part_path(staging.path, 0), schemas.IMAGES) as writer:
            for start in range(0, of_key.num_rows, made_up.SHARD):
                writer.write(of_key.slice(start, made_up.SHARD))  # a shard's own row group
        write_lookups(IMAGE_SHARDS, staging.path)
        staging.counts = [_counts("images", sizes.unique, sizes.images, "http_4xx")]
    with _publish(lake, EMBEDDINGS, key) as staging:
        _rows(staging, scored, schemas.EMBEDDED, key)
        _vectors(staging, images, texts)
        staging.counts = [_counts("embeddings", sizes.images, sizes.images)]
        staging.metadata = EmbeddedWith(**MODEL.model_dump(), dimensions=sizes.dim).model_dump()
    with _publish(lake, SCORED_PAIRS, key) as staging:
        _rows(staging, scored, schemas.SCORED, key)
        staging.metadata = ScoredWith(
            rows=sizes.images,
            prompts="none v1",
            prompts_digest="0" * 32,
            words="none v1",
            **MODEL.model_dump(),
        ).model_dump()
    with _publish(lake, FILTERED_SUBSET, key) as staging:
        _rows(staging, kept, schemas.SUBSET, key)
        _vectors(staging, images[: sizes.kept], texts[: sizes.kept])
        staging.counts = [_counts("subset", sizes.images, sizes.kept, "below_threshold")]
        staging.metadata = TakenWith(
            recipe="laion400m v1", threshold=0.3, **MODEL.model_dump()
        ).model_dump()
    with _publish(lake, SEGMENT_STATS, key) as staging:
        made = (asset for asset in PARTITIONS if lake.has(asset, key))
        segment_stats({asset: lake.folder(asset, key) for asset in made}, staging.path)


def _publish(lake: LocalLake, asset: str, key: SegmentKey) -> AbstractContextManager[Staging]:
    return lake.publish(asset, key, inputs={}, code_version="1", run_id=str(key))


def _rows(staging: Staging, table: pa.Table, schema: pa.Schema, key: SegmentKey) -> None:
    with PartsWriter(staging.path, schema) as writer:
        writer.write(made_up.with_key(table, schema, key.crawl, key.segment))


def _vectors(staging: Staging, images: NDArray[Any], texts: NDArray[Any]) -> None:
    for path, vectors in (
        (image_path(staging.path, 0), images),
        (text_path(staging.path, 0), texts),
    ):
        with VectorsWriter(path, vectors.shape[1]) as writer:
            writer.write(vectors)


def _counts(stage: str, n_in: int, kept: int, reason: str = "") -> StageCounts:
    counts = StageCounts(stage)
    counts.keep(kept)
    if n_in > kept:
        counts.reject(reason, n=n_in - kept)
    return counts
