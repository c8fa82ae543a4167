"""URLs that come with many different texts: logos, icons and placeholders rather than pictures.

One picture has few descriptions, while a file that stands for whatever a page lacks (a default
avatar, a button, a grey box) is described anew on each page. Only all pairs together tell which
URLs these are, so this rule comes after all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.pairs.uids import UidBuckets
from laion_assets.schemas import UID_BYTES

REASON: Final = "url_many_texts"


def rows_of_many_texts(
    parts: Sequence[Path], first: NDArray[np.bool_], most: int, scratch: Path
) -> NDArray[np.bool_]:
    """(n,) bool: the rows whose URL has more than ``most`` different texts.

    ``parts`` have n rows, ``first`` (n,) bool marks the first of each (URL, TEXT), and no other row
    is counted or marked. ``most`` of 0 marks none. ``scratch``: a folder for 24 bytes a row, which
    is removed again.
    """
    marked = np.zeros(len(first), dtype=np.bool_)
    if not most:
        return marked
    rows = np.flatnonzero(first)
    buckets = UidBuckets(scratch, len(rows))
    at = 0
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=["url"]):
                urls = batch.column(0).filter(pa.array(first[at : at + batch.num_rows]))
                buckets.add(pa.array(map(_key, urls.to_pylist()), pa.binary(UID_BYTES)))
                at += batch.num_rows
    for bucket in buckets:
        marked[rows[bucket.rows_in_groups(most + 1).astype(np.int64)]] = True
    buckets.remove()
    return marked


def _key(url: str) -> bytes:
    return hashlib.blake2b(url.encode(), digest_size=UID_BYTES).digest()
