"""Questions to `laion-assets why`, and the SQL conditions by which tables are searched for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from laion_assets.layout import Table
from laion_assets.removals.entry import ListError, parse_entry
from laion_assets.schemas import UID_BYTES

_HEX: Final = "uid in hex digits"


class NotAskableError(ValueError):
    """The text is neither a URL, nor a SAMPLE_ID, nor an image's hash."""


@dataclass(frozen=True)
class Question:
    """One pair, image or URL to look for: one of ``urls``, ``sample_id`` and ``hashes`` is set."""

    text: str
    """The question as it was asked."""
    urls: tuple[str, ...] = ()
    """The URL as written and as normalised."""
    sample_id: int | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    """``sha256`` or ``md5`` of an image."""

    def where(self, columns: Mapping[str, str]) -> tuple[str, list[Any]] | None:
        """SQL condition on a table's columns and its values; None if they cannot answer."""
        if self.urls:
            return f"{columns['url']} in ({', '.join('?' * len(self.urls))})", list(self.urls)
        if self.sample_id is not None:
            if "uid" not in columns:
                return f"{columns['SAMPLE_ID']} = ?", [self.sample_id]
            # SAMPLE_ID is the first half of the uid.
            first = self.sample_id.to_bytes(UID_BYTES // 2, "big", signed=True)
            rest = UID_BYTES - len(first)
            uids = [first + b"\0" * rest, first + b"\xff" * rest]
            return "uid between ? and ?", [
                uid.hex() if columns["uid"] == _HEX else uid for uid in uids
            ]
        name, value = next(iter(self.hashes.items()))
        return (f"{name} = ?", [value]) if name in columns else None


def ask(text: str) -> Question:
    """Parse a URL as people write it, a SAMPLE_ID, or an image's SHA-256 or MD5.

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
