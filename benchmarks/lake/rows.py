"""Seeded rows in the shape of the stages' tables, made a column at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.schemas import uid_of

HOSTS: Final = 20_000
SHARD: Final = 10_000
"""Rows of a shard, as `[download] samples_per_shard` has it by default."""
_WORDS: Final = (
    *("red", "blue", "old", "new", "small", "large", "wooden", "photo", "portrait", "garden"),
    *("city", "river", "mountain", "kitchen", "chair", "table", "lamp", "dress", "shirt", "shoes"),
    *("phone", "camera", "bread", "coffee", "flower", "horse", "bird", "bridge", "street"),
)


def pairs(n: int, seed: int) -> pa.Table:
    """``schemas.PAIRS`` without the segment's own columns: (n, 8)."""
    rng = np.random.default_rng(seed)
    # A few hosts have most of the images, as on the web.
    host = np.minimum(rng.zipf(1.3, n), HOSTS)
    number = pa.array(np.arange(n)).cast(pa.string())
    url = pc.binary_join_element_wise(
        pa.scalar("https://img."), pa.array(host).cast(pa.string()), pa.scalar(f".example/{seed}/"),
        number, pa.scalar(".jpg"), "",
    )  # fmt: skip
    words = pa.array(_WORDS)
    text = pc.binary_join_element_wise(
        *(words.take(pa.array(rng.integers(0, len(_WORDS), n))) for _ in range(5)), number, " "
    )
    uids = [uid_of(u, t) for u, t in zip(url.to_pylist(), text.to_pylist(), strict=True)]
    columns = {
        "uid": pa.array(uids, pa.binary(schemas.UID_BYTES)),
        "url": url,
        "text": text,
        "language": pa.repeat("en", n),
        "language_score": pa.array(rng.random(n, dtype=np.float32)),
        "license": pa.repeat("?", n),
        "page_url": pc.binary_join_element_wise(
            pa.scalar("https://page."), pa.array(host).cast(pa.string()), pa.scalar(".example/"), ""
        ),
        "wat_file": pa.repeat("segments/1/wat/0.warc.wat.gz", n),
    }
    return pa.table(columns)


def with_key(table: pa.Table, schema: pa.Schema, crawl: str, segment: str) -> pa.Table:
    """The columns of ``schema``, in its order and types, with the segment's two among them."""
    n = table.num_rows
    columns = {"crawl": pa.repeat(crawl, n), "segment": pa.repeat(segment, n)}
    return pa.table(
        [columns[f.name] if f.name in columns else table[f.name].cast(f.type) for f in schema],
        schema=schema,
    )


def images(unique: pa.Table, successes: int) -> pa.Table:
    """``schemas.IMAGES`` of the pairs, of which the first ``successes`` have an image."""
    n = unique.num_rows
    got = np.arange(n) < successes
    digests = [hashlib.sha256(uid).hexdigest() for uid in unique["uid"].to_pylist()]
    width = 200 + np.arange(n) % 1800
    names = {"url": unique["url"], "caption": unique["text"]}
    some: dict[str, Any] = {
        "key": pc.utf8_lpad(pa.array(np.arange(n)).cast(pa.string()), 9, "0"),
        "status": _where(got, "success", "failed_to_download"),
        "error_message": _where(got, None, "http_4xx"),
        "width": _where(got, 256, None),
        "height": _where(got, 256, None),
        "original_width": pc.if_else(pa.array(got), pa.array(width), None),
        "original_height": pc.if_else(pa.array(got), pa.array(width), None),
        "exif": _where(got, "{}", None),
        "sha256": pc.if_else(pa.array(got), pa.array(digests), None),
        "md5": pc.if_else(pa.array(got), pc.utf8_slice_codeunits(pa.array(digests), 0, 32), None),
        "reason": _where(got, None, "http_4xx"),
        "redirects": pa.nulls(n, pa.list_(pa.string())),
        "shard": pa.array(np.arange(n) // SHARD),
        "uid": pa.array([uid.hex() for uid in unique["uid"].to_pylist()]),
    }
    rest = {
        name: unique[name] for name in unique.column_names if name not in ("uid", "url", "text")
    }
    return pa.table({**names, **some, **rest})


def _where(mask: NDArray[np.bool_], yes: object, no: object) -> pa.Array:
    kind = pa.scalar(no if yes is None else yes).type
    return pc.if_else(pa.array(mask), pa.scalar(yes, kind), pa.scalar(no, kind))


def scored(made: pa.Table, uids: Sequence[bytes], seed: int) -> pa.Table:
    """``schemas.SCORED`` of the rows of :func:`images` that have an image."""
    n = made.num_rows
    rng = np.random.default_rng(seed)
    taken = {name: made[name] for name in ("url", "license", "language", "language_score")}
    more = {name: made[name] for name in ("page_url", "sha256", "md5", "key", "shard", "wat_file")}
    no = pa.repeat(False, n)
    return pa.table(
        {
            "SAMPLE_ID": pa.array([schemas.sample_id_of(uid) for uid in uids], pa.int64()),
            "text": made["caption"],
            "height": made["original_height"],
            "width": made["original_width"],
            **taken,
            **more,
            "similarity": pa.array(np.sort(rng.normal(0.25, 0.06, n))[::-1]),
            "nsfw": pa.repeat("UNLIKELY", n),
            "nsfw_category_1": pa.repeat("neutral", n),
            "nsfw_category_2": pa.repeat("neutral", n),
            "text_names_minors": no,
            "underage_ranked": no,
            "animal_ranked": no,
        }
    )


def subset(of: pa.Table) -> pa.Table:
    """``schemas.SUBSET`` of rows of :func:`scored`."""
    names = {
        "URL": "url", "TEXT": "text", "HEIGHT": "height", "WIDTH": "width", "LICENSE": "license",
        "NSFW": "nsfw", "LANGUAGE": "language",
    }  # fmt: skip
    return pa.table(
        {
            field.name: of[names.get(field.name, field.name)]
            for field in schemas.SUBSET
            if field.name not in ("crawl", "segment")
        }
    )


def vectors(n: int, dim: int, seed: int) -> NDArray[np.float16]:
    """Random unit vectors, (n, dim) float16."""
    made = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    unit: NDArray[np.float16] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype("<f2")
    return unit
