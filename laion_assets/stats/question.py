"""Questions to `laion-assets why`, and the SQL conditions by which tables are searched for them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from laion_assets.layout import IMAGE_SHARDS, Table
from laion_assets.lookup.files import Hashes, heads_of
from laion_assets.removals.entry import WIDTHS, ListError, parse_entry
from laion_assets.schemas import UID_BYTES

_HEX: Final = "uid in hex digits"


class NotAskableError(ValueError):
    """The text is neither a URL, nor a SAMPLE_ID, nor an image's hash."""


@dataclass(frozen=True)
class Question:
    """One pair, image or URL to look for, by whichever of these is set; one of several will do."""

    text: str
    """The question as it was asked."""
    urls: tuple[str, ...] = ()
    """The URL as written and as normalised."""
    sample_id: int | None = None
    uid: bytes | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    """``sha256`` or ``md5`` of an image."""

    def sought(self, asset: str) -> dict[str, Hashes]:
        """What to look up in an asset's partitions: kind of key -> the first 8 bytes of keys."""
        if asset == IMAGE_SHARDS:
            digests = {kind: [bytes.fromhex(value)] for kind, value in self.hashes.items()}
        else:
            digests = {"url-sha256": [hashlib.sha256(url.encode()).digest() for url in self.urls]}
            if self.sample_id is not None:
                digests["sample-id"] = [_first_half(self.sample_id)]
            if self.uid is not None:
                digests["sample-id"] = [self.uid[: UID_BYTES // 2]]
        return {
            kind: np.unique(heads_of(b"".join(values), WIDTHS[kind]))
            for kind, values in digests.items()
        }

    def where(self, columns: Mapping[str, str]) -> tuple[str, list[Any]] | None:
        """SQL condition on a table's columns and its values; None if they cannot answer."""
        if self.urls:
            return f"{columns['url']} in ({', '.join('?' * len(self.urls))})", list(self.urls)
        conditions, values = [], list[Any]()
        uids = [self.uid, self.uid] if self.uid else []
        if self.sample_id is not None and "uid" not in columns:
            conditions, values = [f"{columns['SAMPLE_ID']} = ?"], [self.sample_id]
        elif self.sample_id is not None:
            first = _first_half(self.sample_id)
            uids = [first.ljust(UID_BYTES, byte) for byte in (b"\0", b"\xff")]
        if uids and "uid" in columns:
            conditions.append("uid between ? and ?")
            values += [uid.hex() if columns["uid"] == _HEX else uid for uid in uids]
        for name, value in self.hashes.items():
            if name in columns:
                conditions.append(f"{name} = ?")
                values.append(value)
        return (" or ".join(conditions), values) if conditions else None


def _first_half(sample_id: int) -> bytes:
    """The first half of the uids that have a SAMPLE_ID."""
    return sample_id.to_bytes(UID_BYTES // 2, "big", signed=True)


def ask(text: str) -> Question:
    """Parse a URL as people write it, a SAMPLE_ID, or an image's SHA-256 or MD5.

    32 hexadecimal digits are the MD5 of an image or the uid of a pair.

    Raises :class:`NotAskableError`.
    """
    text = text.strip()
    if re.fullmatch(r"-?\d{1,19}", text) and -(1 << 63) <= int(text) < 1 << 63:
        return Question(text, sample_id=int(text))
    try:
        kind, value = parse_entry(text)
    except ListError as error:
        raise NotAskableError(
            f"{text!r} is neither a URL, nor a SAMPLE_ID, nor an image's SHA-256 or MD5"
        ) from error
    if kind == "url":
        return Question(text, urls=tuple(dict.fromkeys([text.removeprefix("url:"), value])))
    if kind == "md5" and kind not in text:
        return Question(text, uid=bytes.fromhex(value), hashes={kind: value})
    if kind in ("sha256", "md5"):
        return Question(text, hashes={kind: value})
    raise NotAskableError(f"{text!r} is a {kind} entry: ask for one URL, SAMPLE_ID or image hash")


def columns_of(table: Table) -> dict[str, str]:
    """Names, as SQL, of the table's columns that a question may be about."""
    names = {"url": table.url, "text": table.text, "SAMPLE_ID": table.sample_id}
    columns = {name: f'"{column}"' for name, column in names.items() if column}
    if table.uid:
        columns["uid"] = _HEX if table.schema.field(table.uid).type == pa.string() else table.uid
    return columns | ({"sha256": "sha256", "md5": "md5"} if table.hashes else {})
