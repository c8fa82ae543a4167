"""Digests of what decides a shard, its rows and the options, and of what it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from laion_assets.download import sample_json


def rows_digest(table: pa.Table, rows: Sequence[int], options_digest: str) -> str:
    """Digest of what decides a shard, apart from the lists: its pairs, their numbers, the options.

    ``table``: (n,) the pairs. ``rows``: (n,) their numbers in the shard.
    """
    gaps = [] if list(rows) == list(range(len(rows))) else [list(rows)]
    return digest_of([sample_json.VERSION, options_digest, table.to_pylist(), *gaps])


def stored_digest(captions: Mapping[str, str | None]) -> str:
    """Digest of which samples a tar holds, by their keys, and of whether each has a caption."""
    return digest_of(sorted((key, caption is not None) for key, caption in captions.items()))


def digest_of(value: object) -> str:
    """SHA-256 of a value as JSON, in hexadecimal; bytes in it become hexadecimal, too."""
    text = json.dumps(value, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
