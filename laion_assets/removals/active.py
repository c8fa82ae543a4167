"""The lists in force: the entries of the text files, and the URLs known to lead to them.

An entry may name an image (by its hash) or a step on the way to it (a redirect). A URL that led
to such an image is *resolved*: it is as good as listed. By it the pair is taken out of the tables
that hold no hash, without another request to the web. So the URL's SHA-256 is noted with the
entry that it led to, and counts as long as that entry is on the list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.files import atomic_path, locked
from laion_assets.layout import BLOCKLISTS, REMOVALS
from laion_assets.removals.compiled import load, load_version
from laion_assets.removals.entries import Entries, of_keys
from laion_assets.removals.entry import WIDTHS, Key
from laion_assets.tables import read_parquet

REASON_OF_LIST: Final[Mapping[str, str]] = {REMOVALS: "removed", BLOCKLISTS: "blocked"}
"""List -> the funnel's reason for the rows that it takes out."""

LEDGER: Final = "removal_ledger"
"""The lake's folder of resolved URLs and of events: what was taken out, and what came back."""

FOLDERS: Final = (*REASON_OF_LIST, LEDGER)
"""The lake's folders that hold the lists in force."""

_CACHE: Final = ".lists"
_RESOLVED: Final = pa.schema(
    [
        ("kind", pa.string()),
        ("entry", pa.binary()),
        ("url_sha256", pa.binary(WIDTHS["url-sha256"])),
    ]
)


@dataclass(frozen=True)
class Lists:
    """The entries of the removal lists and of the blocklists."""

    removals: Entries = field(default_factory=Entries)
    blocklists: Entries = field(default_factory=Entries)

    def __bool__(self) -> bool:
        return bool(len(self.removals) or len(self.blocklists))

    def __getitem__(self, name: str) -> Entries:
        return {REMOVALS: self.removals, BLOCKLISTS: self.blocklists}[name]

    def each(self) -> list[tuple[str, Entries]]:
        """The lists that have entries, with their names."""
        return [(name, self[name]) for name in REASON_OF_LIST if len(self[name])]

    @property
    def digests(self) -> dict[str, str]:
        """List -> the digest of its entries."""
        return {name: self[name].digest for name in REASON_OF_LIST}

    def without(self, other: Lists) -> Lists:
        """The entries that ``other`` does not have."""
        return Lists(*(self[name].without(other[name]) for name in REASON_OF_LIST))


def read_lists(lake: Path) -> Lists:
    """The lists of a lake, with resolved URLs. Raises ``ListError`` naming file and line."""
    return Lists(*(_in_force(lake, name) for name in REASON_OF_LIST))


def new_since(lake: Path, name: str, before: str) -> Entries:
    """The entries that the list's text gained since its digest was ``before``, and resolved URLs.

    All entries, if that text is no longer known.
    """
    cache = lake / _CACHE / name
    listed = load(lake / name, cache)
    known = load_version(cache, before)
    new = listed if known is None else listed.without(known)
    return new.and_also(_resolved_urls(_path(lake, name), listed))


def text_digests(lake: Path) -> dict[str, str]:
    """List -> the digest of its own entries, without the resolved URLs."""
    return {name: load(lake / name, lake / _CACHE / name).digest for name in REASON_OF_LIST}


def _in_force(lake: Path, name: str) -> Entries:
    listed = load(lake / name, lake / _CACHE / name)
    return listed.and_also(_resolved_urls(_path(lake, name), listed))


def resolved_file(name: str) -> str:
    """Path, within the lake, of the file of URLs known to lead to this list's entries."""
    return f"{LEDGER}/met_{name}.parquet"


def _path(lake: Path, name: str) -> Path:
    return lake / resolved_file(name)


def _read(path: Path) -> set[tuple[Key, bytes]]:
    if not path.exists():
        return set()
    rows = read_parquet(path).to_pylist()
    return {(Key(row["kind"], row["entry"]), row["url_sha256"]) for row in rows}


def _resolved_urls(path: Path, listed: Entries) -> Entries:
    """Resolved URLs whose entries are still on the list."""
    by_kind: dict[str, list[tuple[bytes, bytes]]] = {}
    for key, url in _read(path):
        by_kind.setdefault(key.kind, []).append((key.value, url))
    return of_keys(
        Key("url-sha256", url)
        for kind, rows in by_kind.items()
        for (_, url), counts in zip(
            rows, listed.which_keys(kind, [value for value, _ in rows]).tolist(), strict=True
        )
        if counts
    )


def note_resolved(lake: Path, name: str, resolved: Collection[tuple[Key, bytes]]) -> int:
    """Note URLs, given by their SHA-256, with the entries of the list ``name`` that they lead to.

    Returns how many were not known; noting the same URLs again changes nothing.
    """
    if not resolved:
        return 0
    path = _path(lake, name)
    with locked(path.with_name(f".{path.name}.lock"), lambda: None):
        known = _read(path)
        new = set(resolved) - known
        if new:
            rows = [
                {"kind": key.kind, "entry": key.value, "url_sha256": url}
                for key, url in sorted(known | new)
            ]
            with atomic_path(path) as beside:
                pq.write_table(pa.Table.from_pylist(rows, _RESOLVED), beside, compression="zstd")
    return len(new)
