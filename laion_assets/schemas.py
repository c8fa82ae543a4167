"""Arrow schemas of what the stages hand to one another, and what each column means.

Names and order are contracts. Which files have which schema is in :mod:`laion_assets.layout`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
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
        ("shard", pa.int32()),
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
"""`scored_pairs`: every embedded pair with everything a recipe may decide on. A column for each of
the settings' heads follows (:func:`with_scores`)."""

NEAR_DUPLICATES: Final = pa.schema(
    [
        ("SAMPLE_ID", pa.int64()),
        ("image_hash", pa.int64()),
        ("cluster", pa.int64()),
        ("likeness", pa.float32()),
        ("first", pa.bool_()),
    ]
)
"""`near_duplicates`: one row for each row of `embeddings`, in the same order."""

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
"""`filtered_subset`: the eight columns of the LAION-400M release first, then ours. The heads'
columns of the scored pairs follow (:func:`with_scores`)."""

SCORE_PREFIX: Final = "score_"
"""Beginning of the name of a head's column: `score_watermark` is that of the head `watermark`."""
SCORE_COLUMNS: Final = f"{SCORE_PREFIX}*"
"""All heads' columns, as documents name them."""

SHOWN: Final = pa.schema(
    [SUBSET.field(name) for name in ("SAMPLE_ID", "URL", "sha256", "md5", "crawl", "segment")]
)
"""`dalle_samples`: the samples whose real pictures its pages show."""

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

STATISTICS: Final = pa.schema(
    [
        ("kind", pa.string()),
        ("stage", pa.string()),
        ("metric", pa.string()),
        ("bin_low", pa.float64()),
        ("bin_high", pa.float64()),
        ("value", pa.string()),
        ("n", pa.int64()),
    ]
)
"""`segment_stats`, by kind. `histogram`: the bins that hold something, ``bin_low <= value <
bin_high``, on one grid for all segments. `top`: the most frequent values; a sum over segments
misses what is in no segment's top. `rows`: how many rows of the subset were counted, and the data
version that they are of. `nearest`: a pair near the threshold, its similarity in ``bin_low``."""

_MEANING: Final[Mapping[str, str]] = {
    "uid": "dedup key: 16 bytes of URL and text",
    "sample_id": "the sample's number, made from its URL and text alone",
    "url": "link to the image",
    "text": "the alt text, cleaned; null where a list has no captions",
    "caption": "the alt text, cleaned; null where a list has no captions",
    "language": "language of the text, ISO 639-1",
    "language_score": "the detector's confidence, 0 to 1",
    "license": "the Creative Commons URL that the page names, or ?",
    "page_url": "the page on which the image link was found; null where a list names none",
    "crawl": "Common Crawl's name of the crawl, or LIST- and a URL list's name",
    "segment": "number of the segment among the crawl's",
    "wat_file": "the WAT file in which the link was found, or the list's file#rows",
    "height": "height of the original image, in pixels",
    "width": "width of the original image, in pixels",
    "sha256": "SHA-256 of the image's bytes as downloaded",
    "md5": "MD5 of the image's bytes as downloaded",
    "key": "the image's place in the segment's shards",
    "shard": "number of the shard that holds the image",
    "similarity": "cosine of the CLIP embeddings of image and text; null without a text",
    "nsfw": "UNLIKELY, UNSURE or NSFW: a model's guess",
    "nsfw_category_1": "the category prompt nearest to the image",
    "nsfw_category_2": "the second nearest category prompt",
    "text_names_minors": "whether the text has a word for minors",
    "underage_ranked": "whether an under-age category ranks first or second",
    "animal_ranked": "whether an animal category ranks first",
    "image_hash": "signs of 40 low frequencies of the stored image, 0 for a plain one",
    "cluster": "number of the images that are copies of one picture, in all segments",
    "likeness": "cosine of the perceptual hashes of the image and its cluster's first one",
    "first": "whether the image is its cluster's first one, in all segments",
    "taken": "whether this deployment takes the file",
    "segment_id": "Common Crawl's id of the segment, or digest of a list's files",
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
    "kind": "histogram, top, rows or nearest",
    "metric": "what is measured",
    "bin_low": "lower edge of the bin, included; a nearest pair's similarity",
    "bin_high": "upper edge of the bin, excluded",
    "value": "one of the most frequent values; a data version",
}


def with_scores(schema: pa.Schema, columns: Iterable[str]) -> pa.Schema:
    """The schema with heads' columns, float32, behind its own."""
    return pa.schema([*schema, *((name, pa.float32()) for name in columns)])


def score_columns(names: Iterable[str]) -> list[str]:
    """Those of the names that are heads' columns, sorted."""
    return sorted(name for name in names if name.startswith(SCORE_PREFIX))


def meaning(column: str, images: bool = False) -> str:
    """What a column holds, in a few words; ``images``: as the shards' parquet has it."""
    if column.startswith(SCORE_PREFIX):
        return "score of the image by the head of that name; null if it is no number"
    if images and column in ("width", "height"):
        return f"{column} of the stored image, in pixels"
    return _MEANING[column.lower()]


def uid_of(url: str, text: str | None) -> bytes:
    """The dedup key of a pair: 16 bytes that depend on URL and TEXT alone.

    An image without a caption, whose text is None, has that of an empty one.
    """
    return uids_of([url], [text or ""])[0]


# A copy of a hasher costs two thirds of a new one with its parameters.
_HASHER: Final = hashlib.blake2b(digest_size=UID_BYTES)


def uids_of(urls: Sequence[str], texts: Sequence[str]) -> list[bytes]:
    """The :func:`uid_of` of many pairs."""
    uids = []
    for url, text in zip(urls, texts, strict=True):
        hasher = _HASHER.copy()
        hasher.update(f"{url}\0{text}".encode("utf-8", "surrogatepass"))
        uids.append(hasher.digest())
    return uids


def sample_id_of(uid: bytes) -> int:
    """``SAMPLE_ID`` of a pair: its uid's first 8 bytes as a signed big-endian int64."""
    return int.from_bytes(uid[:8], "big", signed=True)
