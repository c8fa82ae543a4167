"""The lake's layout: the key of a partition, the assets' names, and which files each asset's
partition holds.

:data:`PARTITIONS` is the one table of that: survey, `why`, catalog, statistics, checks and the docs
are views of it. What does not belong here: how a file is written, or how a partition is published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pyarrow as pa

from laion_assets import schemas

CRAWL_NAME: Final = re.compile(r"CC-MAIN-\d{4}(?:-\d{2}){1,2}")
"""Pattern of the names that Common Crawl gives its crawls."""
LIST_PREFIX: Final = "LIST-"
"""Beginning of the name of a crawl that is a URL list."""
LIST_CRAWL_NAME: Final = re.compile(rf"{LIST_PREFIX}[a-z0-9]+(?:-[a-z0-9]+)*")
"""Pattern of the names of such crawls."""
_SEGMENT: Final = re.compile(r"\d{2}")

EVERY_HIVE: Final = "crawl=*/segment=*"
"""Pattern of paths that matches :attr:`SegmentKey.hive` of every segment."""


@dataclass(frozen=True, order=True)
class SegmentKey:
    """One segment of one crawl.

    ``crawl``: the name that Common Crawl gives it, or ``LIST-`` and a URL list's name.
    ``segment``: two digits, the segment's position among the crawl's sorted segment ids, or among
    the list's ranges of rows. Raises ``ValueError`` for anything else.
    """

    crawl: str
    segment: str

    def __post_init__(self) -> None:
        if not (CRAWL_NAME.fullmatch(self.crawl) or self.is_of_list):
            raise ValueError(f"{self.crawl!r} is not a crawl name like CC-MAIN-2021-04")
        if not _SEGMENT.fullmatch(self.segment):
            raise ValueError(f"{self.segment!r} is not a segment number like 07")

    def __str__(self) -> str:
        return f"{self.crawl}|{self.segment}"

    @property
    def is_of_list(self) -> bool:
        """Whether the crawl is a URL list."""
        return LIST_CRAWL_NAME.fullmatch(self.crawl) is not None

    @property
    def hive(self) -> str:
        """The path of the segment's folder under an asset's, in Hive's notation."""
        return f"crawl={self.crawl}/segment={self.segment}"

    @classmethod
    def of_folder(cls, folder: Path) -> SegmentKey:
        """Return the key of a folder whose path ends with the key's :attr:`hive`."""
        return cls(folder.parent.name.removeprefix("crawl="), folder.name.removeprefix("segment="))

    @classmethod
    def parse(cls, key: str) -> SegmentKey:
        """Return the key whose ``str`` this is. Raises ``ValueError`` for any other text."""
        crawl, _, segment = key.partition("|")
        return cls(crawl, segment)


def place_of(asset: str, key: SegmentKey | None) -> str:
    """Return the path, below the lake's root, of an asset's partition, or of one without."""
    return f"{asset}/{key.hive}" if key else asset


def unqueryable(root: Path | str) -> list[str]:
    """Return those characters of a lake's root that DuckDB takes for a pattern or for keys."""
    return sorted(set("*?[=").intersection(str(root)))


def segment_names(count: int) -> list[str]:
    """Return ``["00", "01", ...]``, the segment numbers of a crawl with ``count`` segments."""
    return [f"{number:02d}" for number in range(count)]


WAT_MANIFEST: Final = "wat_manifest"
PAIR_PARQUET: Final = "pair_parquet"
UNIQUE_PAIRS: Final = "unique_pairs"
IMAGE_SHARDS: Final = "image_shards"
EMBEDDINGS: Final = "embeddings"
SCORED_PAIRS: Final = "scored_pairs"
NEAR_DUPLICATES: Final = "near_duplicates"
FILTERED_SUBSET: Final = "filtered_subset"
KNN_INDEX: Final = "knn_index"
SEGMENT_STATS: Final = "segment_stats"
INDEX_CODEC: Final = "index_codec"
SEARCH_INDEX: Final = "search_index"
CATALOG: Final = "catalog"
DATASET_REPORT: Final = "dataset_report"
DALLE_SAMPLES: Final = "dalle_samples"
RECIPE_COMPARISON: Final = "recipe_comparison"

REMOVALS: Final = "removals"
BLOCKLISTS: Final = "blocklists"
LISTS: Final = (REMOVALS, BLOCKLISTS)
"""Folders of list files that people write; the graph's assets without a stage."""

PICTURES: Final = "_pictures"
"""Folder, within a partition's, of pictures for people."""
PICTURE_FILES: Final = f"{PICTURES}/*"

OWN_COLUMNS: Final = "_source"
"""Folder, within a partition of pairs, of a URL list's own columns: a file for each part, with the
SAMPLE_ID of each of its rows."""
OWN_COLUMNS_FILES: Final = f"{OWN_COLUMNS}/*.pq"

LOOKUP: Final = "_lookup"
"""Folder, within a partition's, of the files by which its rows are found (:mod:`.lookup`)."""
LOOKUP_FILES: Final = f"{LOOKUP}/*"

SIMILARITY_FILES: Final = "_similarities_*.json"
"""Counts of real and shuffled pairs by similarity, beside the parts of scored pairs."""

DEDUP_LEDGER: Final = "dedup_ledger"
"""Folder that all partitions of `unique_pairs` share."""
CLUSTER_LEDGER: Final = "cluster_ledger"
"""Folder that all partitions of `near_duplicates` share."""


@dataclass(frozen=True)
class Table:
    """The parquet files of one schema in a partition's folder, and the columns by which a URL, a
    uid, a SAMPLE_ID or an image's hash names a row of theirs."""

    files: str
    """Pattern of file names, relative to the partition's folder."""
    schema: pa.Schema
    view: str | None = None
    """The catalog's view of it."""
    url: str | None = None
    text: str | None = None
    uid: str | None = None
    sample_id: str | None = None
    hashes: bool = False
    """Whether ``sha256`` and ``md5`` of the image are columns."""
    scores: bool = False
    """Whether each head has a column in it, too (:func:`schemas.with_scores`)."""
    aligned: bool = False
    """Row for row beside the partition's first table: whatever finds or drops a row there finds or
    drops it here."""

    @property
    def names_samples(self) -> bool:
        """Whether a list's entry may name rows of this table."""
        return bool(self.url or self.uid or self.sample_id or self.hashes)

    def paths(self, folder: Path) -> list[Path]:
        """The table's files in a partition's folder, sorted."""
        return sorted(folder.glob(self.files))

    def columns(self) -> list[tuple[str, str, str]]:
        """``(name, type, meaning)`` of each column."""
        images = self.schema.equals(schemas.IMAGES)
        return [
            (field.name, str(field.type), schemas.meaning(field.name, images))
            for field in self.shown
        ]

    @property
    def shown(self) -> pa.Schema:
        """The schema as documents show it: all heads' columns by one name."""
        columns = [schemas.SCORE_COLUMNS] if self.scores else []
        return schemas.with_scores(self.schema, columns)


@dataclass(frozen=True)
class Partition:
    """What one asset publishes, for a segment or, of an aggregate, as a whole."""

    asset: str
    stage: str | None = None
    """The funnel's stage that it counts, if it counts one."""
    tables: tuple[Table, ...] = ()
    """The first has a row for each subject that the stage kept or refused."""
    files: tuple[str, ...] = ()
    """Patterns of all other files."""

    @property
    def rows(self) -> Table:
        """The first table."""
        return self.tables[0]

    def names(self, file: str) -> bool:
        """Whether a file, by its path in the partition's folder, is one of these."""
        return any(
            fnmatchcase(file, pattern)
            for pattern in (*(table.files for table in self.tables), *self.files)
        )


_PAIR_ROWS: Final = Table("part-*.parquet", schemas.PAIRS, url="url", text="text", uid="uid")
_VECTORS: Final = ("_img_emb/img_emb_*.npy", "_text_emb/text_emb_*.npy")
_SAMPLE_ROWS: Final = Table(
    "part-*.parquet", schemas.SCORED, url="url", text="text", sample_id="SAMPLE_ID", hashes=True
)
_SUBSET_ROWS: Final = Table(
    "part-*.parquet", schemas.SUBSET, url="URL", text="TEXT", sample_id="SAMPLE_ID", hashes=True
)

PARTITIONS: Final[Mapping[str, Partition]] = {
    partition.asset: partition
    for partition in (
        Partition(WAT_MANIFEST, None, (Table("manifest.parquet", schemas.WAT_MANIFEST),)),
        Partition(
            PAIR_PARQUET,
            "pairs",
            (replace(_PAIR_ROWS, view="pairs"),),
            (OWN_COLUMNS_FILES, LOOKUP_FILES),
        ),
        Partition(
            UNIQUE_PAIRS,
            "unique_pairs",
            (replace(_PAIR_ROWS, view="unique_pairs"),),
            ("_claims.json",),
        ),
        Partition(
            IMAGE_SHARDS,
            "images",
            (
                Table(
                    "part-*.parquet",
                    schemas.IMAGES,
                    view="images",
                    url="url",
                    text="caption",
                    uid="uid",
                    hashes=True,
                ),
                Table(
                    "_ledger/part-*.pq",
                    schemas.FETCHES,
                    view="fetches",
                    url="url",
                    aligned=True,
                ),
            ),
            ("_shards/*.tar", "_shards/*_stats.json", LOOKUP_FILES, PICTURE_FILES),
        ),
        Partition(
            EMBEDDINGS,
            "embeddings",
            (replace(_SAMPLE_ROWS, schema=schemas.EMBEDDED),),
            (*_VECTORS, "_image_digests.npy"),
        ),
        Partition(
            SCORED_PAIRS,
            None,
            (replace(_SAMPLE_ROWS, view="scored", scores=True),),
            ("_categories.npy", SIMILARITY_FILES, PICTURE_FILES),
        ),
        Partition(
            NEAR_DUPLICATES,
            None,
            (
                Table(
                    "part-*.parquet",
                    schemas.NEAR_DUPLICATES,
                    view="near_duplicates",
                    sample_id="SAMPLE_ID",
                ),
            ),
            ("_signatures.npy", "_by_sample.npy", "_claims.json", PICTURE_FILES),
        ),
        Partition(
            FILTERED_SUBSET,
            "subset",
            (replace(_SUBSET_ROWS, view="subset", scores=True),),
            (*_VECTORS, "_clusters.npy", "_claims.json", PICTURE_FILES),
        ),
        Partition(
            KNN_INDEX,
            None,
            (Table("ids.parquet", schemas.INDEX_IDS, sample_id="SAMPLE_ID"),),
            ("ids.npy", "index.json", "*.index", "*.lists", "*_truth.npz", "codec/*"),
        ),
        Partition(
            SEGMENT_STATS,
            None,
            (Table("statistics.parquet", schemas.STATISTICS, view="statistics"),),
        ),
    )
}
"""Asset with a partition for each segment -> what that holds, in the order of the data's way."""

OVER_ALL: Final[Mapping[str, Partition]] = {
    partition.asset: partition
    for partition in (
        Partition(INDEX_CODEC, files=("codec.json", "*.index", "*_queries.npy")),
        Partition(SEARCH_INDEX, files=("index.json", "runs/*", "codec/*")),
        Partition(CATALOG, files=("catalog.duckdb",)),
        Partition(DATASET_REPORT, files=("report.html", "dataset_card.md", "figures/*")),
        Partition(
            DALLE_SAMPLES,
            None,
            (
                Table(
                    "shown.parquet",
                    schemas.SHOWN,
                    url="URL",
                    sample_id="SAMPLE_ID",
                    hashes=True,
                ),
            ),
            (
                "autoencoder/*",
                "transformer/*",
                "captions/*",
                "*.png",
                "evaluation.json",
                "options.json",
                "report.html",
                "segments.json",
                "vocabulary.json",
            ),
        ),
        # Figures over all pairs: it names no sample.
        Partition(RECIPE_COMPARISON, files=("comparison.json", "comparison.csv", "comparison.png")),
    )
}
"""Assets over all segments -> what they hold."""

SEGMENT_ASSETS: Final = tuple(PARTITIONS)
SUBSET_PREFIX: Final = "subset_"
"""Beginning of the name of a further subset's asset, and of its folder in the lake."""


def subset_ledger(asset: str) -> str:
    """Return the folder that all partitions of a subset share, if it takes one of each cluster."""
    return f"ledger_of_{asset}"


def subset_asset(name: str) -> str:
    """Return the asset, and the catalog's view, of a further subset: `laion5b-en` ->
    `subset_laion5b_en`, since Dagster's names have no hyphens."""
    return f"{SUBSET_PREFIX}{name.replace('-', '_')}"


def with_subsets(further: Iterable[str]) -> list[str]:
    """Return :data:`SEGMENT_ASSETS` and the assets of further subsets, each behind all it is made
    of."""
    assets = list(PARTITIONS)
    statistics = assets.index(SEGMENT_STATS)
    return [*assets[:statistics], *further, *assets[statistics:]]


def segment_assets(subsets: Iterable[str] = ()) -> list[str]:
    """Return :func:`with_subsets` for the further subsets of these names."""
    return with_subsets(map(subset_asset, subsets))


def is_by_segment(asset: str) -> bool:
    """Whether the asset has a partition for each segment, and not one for all."""
    return asset in PARTITIONS or asset.startswith(SUBSET_PREFIX)


def partition_of(asset: str) -> Partition:
    """Return what an asset's partition holds. Raises ``KeyError`` for an unknown asset."""
    if asset.startswith(SUBSET_PREFIX):
        return replace(
            PARTITIONS[FILTERED_SUBSET],
            asset=asset,
            tables=tuple(
                replace(t, view=t.view and asset) for t in PARTITIONS[FILTERED_SUBSET].tables
            ),
        )
    return PARTITIONS[asset] if asset in PARTITIONS else OVER_ALL[asset]
