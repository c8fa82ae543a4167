"""What the stages hand to one another: Arrow schemas, what a column means, and which files each
asset's partition holds. Names and order are contracts.

:data:`PARTITIONS` is the one table of that: survey, `why`, catalog, statistics and checks are views
of it. What does not belong here: how a file is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pyarrow as pa

UID_BYTES: Final = 16

WAT_MANIFEST: Final = pa.schema(
    [("wat_file", pa.string()), ("taken", pa.bool_()), ("segment_id", pa.string())]
)
"""`wat_manifest`: one row a WAT file of the segment."""

PAIRS: Final = pa.schema(
    [
        ("uid", pa.binary(UID_BYTES)),
        ("url", pa.string()),
        ("text", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float32()),
        ("license", pa.string()),
        ("page_url", pa.string()),
        ("crawl", pa.string()),
        ("segment", pa.string()),
        ("wat_file", pa.string()),
    ]
)
"""`pair_parquet` and `unique_pairs`: one row a pair. `segment` is the partition's "00".."99"."""

OUTCOME: Final = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
        ("md5", pa.string()),
        ("reason", pa.string()),
        ("redirects", pa.list_(pa.string())),
    ]
)
"""What became of one row of a shard."""

IMAGES: Final = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        *OUTCOME,
        ("uid", pa.string()),
        *(field for field in PAIRS if field.name not in ("uid", "url", "text")),
    ]
)
"""`image_shards`: one row a pair; ``uid`` is in hex digits. Options decide which of img2dataset's
columns a shard has."""

_TIME: Final = pa.timestamp("ms", tz="UTC")

FETCHES: Final = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("attempts", pa.int32()),
        ("failures", pa.int32()),
        ("first_tried", _TIME),
        ("last_tried", _TIME),
        ("sha256", pa.string()),
        ("first_seen", _TIME),
        ("last_seen", _TIME),
        ("changed", _TIME),
        ("changed_sha256", pa.string()),
    ]
)
"""`image_shards`, below `_ledger/`: a row for each row of the shard, in the same order."""

EMBEDDED: Final = pa.schema(
    [
        ("SAMPLE_ID", pa.int64()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("license", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float32()),
        ("page_url", pa.string()),
        ("sha256", pa.string()),
        ("md5", pa.string()),
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("crawl", pa.string()),
        ("segment", pa.string()),
        ("wat_file", pa.string()),
    ]
)
"""`embeddings` metadata, row-aligned with the vectors; width and height are the original's."""

SCORED: Final = pa.schema(
    [
        *EMBEDDED,
        ("similarity", pa.float64()),
        ("nsfw", pa.string()),
        ("nsfw_category_1", pa.string()),
        ("nsfw_category_2", pa.string()),
        ("text_names_minors", pa.bool_()),
        ("underage_ranked", pa.bool_()),
        ("animal_ranked", pa.bool_()),
    ]
)
"""`scored_pairs`: every embedded pair with everything a recipe may decide on."""

SUBSET: Final = pa.schema(
    [
        ("SAMPLE_ID", pa.int64()),
        ("URL", pa.string()),
        ("TEXT", pa.string()),
        ("HEIGHT", pa.int32()),
        ("WIDTH", pa.int32()),
        ("LICENSE", pa.string()),
        ("NSFW", pa.string()),
        ("similarity", pa.float64()),
        ("LANGUAGE", pa.string()),
        ("page_url", pa.string()),
        ("sha256", pa.string()),
        ("md5", pa.string()),
        ("key", pa.string()),
        ("crawl", pa.string()),
        ("segment", pa.string()),
        ("wat_file", pa.string()),
    ]
)
"""`filtered_subset`: the eight columns of the LAION-400M release first, then ours."""

INDEX_IDS: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("SAMPLE_ID", pa.int64()),
        ("crawl", pa.string()),
        ("segment", pa.string()),
        ("part", pa.int32()),
        ("part_row", pa.int64()),
    ]
)
"""`knn_index`: row number in the index -> sample, and its place in the segment's subset."""

FUNNEL: Final = pa.schema([("stage", pa.string()), ("reason", pa.string()), ("n", pa.int64())])
"""`in` and `kept` are reasons too: they come first of each stage, the rejects after them."""

HISTOGRAMS: Final = pa.schema(
    [
        ("stage", pa.string()),
        ("metric", pa.string()),
        ("bin_low", pa.float64()),
        ("bin_high", pa.float64()),
        ("n", pa.int64()),
    ]
)
"""Bins that hold something, ``bin_low <= value < bin_high``. All segments use the same grid."""

TOP: Final = pa.schema(
    [("stage", pa.string()), ("metric", pa.string()), ("value", pa.string()), ("n", pa.int64())]
)
"""The most frequent values of a segment. A sum over segments misses what is in no segment's top."""

RUNS: Final = pa.schema(
    [
        ("asset", pa.string()),
        ("run_id", pa.string()),
        ("code_version", pa.string()),
        ("started", pa.timestamp("us")),
        ("seconds", pa.float64()),
        ("bytes", pa.int64()),
        ("n_in", pa.int64()),
        ("kept", pa.int64()),
        ("metadata", pa.string()),
    ]
)
"""One row a partition, from its manifest. `started` is UTC, `metadata` is JSON."""

_MEANING: Final[Mapping[str, str]] = {
    "uid": "dedup key: 16 bytes of URL and text",
    "sample_id": "the sample's number, made from its URL and text alone",
    "url": "link to the image",
    "text": "the alt text, cleaned",
    "caption": "the alt text, cleaned",
    "language": "language of the text, ISO 639-1",
    "language_score": "the detector's confidence, 0 to 1",
    "license": "the Creative Commons URL that the page names, or ?",
    "page_url": "the page on which the image link was found",
    "crawl": "Common Crawl's name of the crawl",
    "segment": "number of the segment among the crawl's",
    "wat_file": "the WAT file in which the link was found",
    "height": "height of the original image, in pixels",
    "width": "width of the original image, in pixels",
    "sha256": "SHA-256 of the image's bytes as downloaded",
    "md5": "MD5 of the image's bytes as downloaded",
    "key": "the image's place in the segment's shards",
    "shard": "number of the shard that holds the image",
    "similarity": "cosine of the CLIP embeddings of image and text",
    "nsfw": "UNLIKELY, UNSURE or NSFW: a model's guess",
    "nsfw_category_1": "the category prompt nearest to the image",
    "nsfw_category_2": "the second nearest category prompt",
    "text_names_minors": "whether the text has a word for minors",
    "underage_ranked": "whether an under-age category ranks first or second",
    "animal_ranked": "whether an animal category ranks first",
    "taken": "whether this deployment takes the file",
    "segment_id": "Common Crawl's id of the segment",
    "status": "success, failed_to_download or failed_to_resize",
    "error_message": "the reason and its details; null on success",
    "original_width": "width of the original image, in pixels",
    "original_height": "height of the original image, in pixels",
    "exif": "EXIF tags as JSON",
    "reason": "name of the reject reason; null on success",
    "redirects": "the URLs that led to the image, in order",
    "attempts": "runs that asked for the URL",
    "failures": "runs in a row, up to the last, that got no answer to keep",
    "first_tried": "when a run first asked for the URL",
    "last_tried": "when a run last asked for the URL",
    "first_seen": "when these bytes first came",
    "last_seen": "when these bytes last came",
    "changed": "when other bytes came than those recorded",
    "changed_sha256": "SHA-256 of those other bytes",
    "row": "row number in the index",
    "part": "number of the subset's part that holds the row",
    "part_row": "row number within that part",
    "stage": "stage of the funnel",
    "n": "how many",
    "metric": "what is measured",
    "bin_low": "lower edge of the bin, included",
    "bin_high": "upper edge of the bin, excluded",
    "value": "one of the most frequent values",
    "asset": "name of the asset",
    "run_id": "Dagster's run that made the partition",
    "code_version": "revision of the code and digest of its options",
    "started": "when the run began, UTC",
    "seconds": "how long the run took",
    "bytes": "size of the partition's files",
    "n_in": "subjects that went into the stage",
    "kept": "subjects that the stage kept",
    "metadata": "what else the manifest records, as JSON",
}


def meaning(column: str, images: bool = False) -> str:
    """What a column holds, in a few words; ``images``: as the shards' parquet has it."""
    if images and column in ("width", "height"):
        return f"{column} of the stored image, in pixels"
    return _MEANING[column.lower()]


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
        images = self.schema.equals(IMAGES)
        return [(field.name, str(field.type), meaning(field.name, images)) for field in self.schema]


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


_PAIR_ROWS: Final = Table("part-*.parquet", PAIRS, url="url", text="text", uid="uid")
_VECTORS: Final = ("img_emb/img_emb_*.npy", "text_emb/text_emb_*.npy")
_SAMPLE_ROWS: Final = Table(
    "part-*.parquet", SCORED, url="url", text="text", sample_id="SAMPLE_ID", hashes=True
)
_SUBSET_ROWS: Final = Table(
    "part-*.parquet", SUBSET, url="URL", text="TEXT", sample_id="SAMPLE_ID", hashes=True
)

PARTITIONS: Final[Mapping[str, Partition]] = {
    partition.asset: partition
    for partition in (
        Partition("wat_manifest", None, (Table("manifest.parquet", WAT_MANIFEST),)),
        Partition("pair_parquet", "pairs", (replace(_PAIR_ROWS, view="pairs"),)),
        Partition(
            "unique_pairs",
            "unique_pairs",
            (replace(_PAIR_ROWS, view="unique_pairs"),),
            ("claims.json",),
        ),
        Partition(
            "image_shards",
            "images",
            (
                Table(
                    "[0-9]*.parquet",
                    IMAGES,
                    view="images",
                    url="url",
                    text="caption",
                    uid="uid",
                    hashes=True,
                ),
                Table(
                    "_ledger/*.parquet",
                    FETCHES,
                    view="fetches",
                    url="url",
                    hashes=True,
                    aligned=True,
                ),
            ),
            ("*.tar", "*_stats.json"),
        ),
        Partition(
            "embeddings",
            "embeddings",
            (replace(_SAMPLE_ROWS, files="metadata/metadata_*.parquet", schema=EMBEDDED),),
            _VECTORS,
        ),
        Partition("scored_pairs", None, (replace(_SAMPLE_ROWS, view="scored"),)),
        Partition(
            "filtered_subset",
            "subset",
            (
                replace(_SUBSET_ROWS, view="subset"),
                replace(_SUBSET_ROWS, files="metadata/metadata_*.parquet", aligned=True),
            ),
            _VECTORS,
        ),
        Partition(
            "knn_index",
            None,
            (Table("ids.parquet", INDEX_IDS, sample_id="SAMPLE_ID"),),
            ("ids.npy", "index.json", "*.index", "*.npy", "codec/*"),
        ),
        Partition(
            "segment_stats",
            None,
            (
                Table("funnel.parquet", FUNNEL, view="funnel_by_segment"),
                Table("histograms.parquet", HISTOGRAMS, view="stats"),
                Table("top.parquet", TOP, view="top"),
                Table("runs.parquet", RUNS, view="runs"),
            ),
        ),
    )
}
"""Asset with a partition for each segment -> what that holds, in the order of the data's way."""

AGGREGATES: Final[Mapping[str, Partition]] = {
    partition.asset: partition
    for partition in (
        Partition("index_codec", files=("codec.json", "*.index", "codec/*")),
        Partition("search_index", files=("index.json", "runs/*", "codec/*")),
        Partition("catalog", files=("catalog.duckdb",)),
        Partition("dataset_report", files=("report.html", "dataset_card.md", "figures/*")),
        Partition("dalle_samples", files=("*",)),
    )
}
"""Assets over all segments -> what they hold."""

SEGMENT_ASSETS: Final = tuple(PARTITIONS)
SUBSET_PREFIX: Final = "subset_"
"""Beginning of the name of a further subset's asset, and of its folder in the lake."""


def subset_asset(name: str) -> str:
    """Return the asset, and the catalog's view, of a further subset: `laion5b-en` ->
    `subset_laion5b_en`, since Dagster's names have no hyphens."""
    return f"{SUBSET_PREFIX}{name.replace('-', '_')}"


def segment_assets(subsets: Iterable[str] = ()) -> list[str]:
    """Return :data:`SEGMENT_ASSETS` and the further subsets, each behind all it is made of."""
    further = [subset_asset(name) for name in subsets]
    return [*SEGMENT_ASSETS[:-1], *further, SEGMENT_ASSETS[-1]]


def partition_of(asset: str) -> Partition:
    """Return what an asset's partition holds. Raises ``KeyError`` for an unknown asset."""
    if asset.startswith(SUBSET_PREFIX):
        return replace(
            PARTITIONS["filtered_subset"],
            asset=asset,
            tables=tuple(
                replace(t, view=t.view and asset) for t in PARTITIONS["filtered_subset"].tables
            ),
        )
    return PARTITIONS[asset] if asset in PARTITIONS else AGGREGATES[asset]


def uid_of(url: str, text: str) -> bytes:
    """The dedup key of a pair: 16 bytes that depend on URL and TEXT alone."""
    payload = f"{url}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(payload, digest_size=UID_BYTES).digest()


def sample_id_of(uid: bytes) -> int:
    """``SAMPLE_ID`` of a pair: its uid's first 8 bytes as a signed big-endian int64."""
    return int.from_bytes(uid[:8], "big", signed=True)
