"""Arrow schemas of what the stages hand to one another; names and order are contracts."""

from __future__ import annotations

import hashlib
from typing import Final

import pyarrow as pa

UID_BYTES: Final = 16

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

SUBSET_MEANING: Final = {
    "SAMPLE_ID": "the sample's number, by its URL and text alone",
    "URL": "link to the image",
    "TEXT": "the alt text, cleaned",
    "HEIGHT": "of the original image, in pixels",
    "WIDTH": "of the original image, in pixels",
    "LICENSE": "the Creative Commons URL that the page names, or ?",
    "NSFW": "UNLIKELY, UNSURE or NSFW: a model's guess",
    "similarity": "cosine of the CLIP embeddings of image and text",
    "LANGUAGE": "of the text, ISO 639-1",
    "page_url": "the page on which the image link was found",
    "sha256": "of the image's bytes as downloaded",
    "md5": "of the image's bytes as downloaded",
    "key": "the image's place in the segment's shards",
    "crawl": "Common Crawl's name of the crawl",
    "segment": "number of the segment among the crawl's",
    "wat_file": "the WAT file in which the link was found",
}


def uid_of(url: str, text: str) -> bytes:
    """The dedup key of a pair: 16 bytes that depend on URL and TEXT alone."""
    payload = f"{url}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(payload, digest_size=UID_BYTES).digest()


def sample_id_of(uid: bytes) -> int:
    """``SAMPLE_ID`` of a pair: its uid's first 8 bytes as a signed big-endian int64."""
    return int.from_bytes(uid[:8], "big", signed=True)
