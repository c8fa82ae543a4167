"""The lists in force: what the text files say, and the URLs that are known to lead to it.

An entry may name an image (by its hash) or a step on the way to it (a redirect). Once such an
image has been met at a URL, that URL is as good as listed: by it the pair is taken out of the
tables that know no hash, without asking the web again. So the URL's SHA-256 is noted with the
entry that led to it, and counts for as long as that entry is on the list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.files import atomic_path, locked
from laion_assets.removals.lists import WIDTHS, Entries, Key, load, load_version, of_keys

REASONS: Final[Mapping[str, str]] = {"removals": "removed", "blocklists": "blocked"}
"""List -> the funnel's reason for what it takes out."""

LEDGER: Final = "removal_ledger"
"""The lake's folder of what was met and what was taken out."""

FOLDERS: Final = (*REASONS, LEDGER)
"""The lake's folders that the lists in force are in."""

_CACHE: Final = ".lists"
_MET: Final = pa.schema(
    [
        ("kind", pa.string()),
        ("entry", pa.binary()),
        ("url_sha256", pa.binary(WIDTHS["url-sha256"])),
    ]
)


@dataclass(frozen=True)
class Lists:
    removals: Entries = field(default_factory=Entries)
    blocklists: Entries = field(default_factory=Entries)

    def __bool__(self) -> bool:
        return bool(len(self.removals) or len(self.blocklists))

    def __getitem__(self, name: str) -> Entries:
        return {"removals": self.removals, "blocklists": self.blocklists}[name]

    def each(self) -> list[tuple[str, Entries]]:
        """The lists that have entries, with their names."""
        return [(name, self[name]) for name in REASONS if len(self[name])]

    @property
    def digests(self) -> dict[str, str]:
        return {name: self[name].digest for name in REASONS}

    def without(self, other: Lists) -> Lists:
        """The entries that ``other`` has not."""
        return Lists(*(self[name].without(other[name]) for name in REASONS))


def read_lists(lake: Path) -> Lists:
    """The lists of a lake. Raises ``ListError`` naming file and line."""
    return Lists(*(_in_force(lake, name) for name in REASONS))


def new_since(lake: Path, name: str, before: str) -> Entries:
    """The entries that came to the list since its text had the digest ``before``, and the URLs met.

    All of them, if that text is not known any more.
    """
    cache = lake / _CACHE / name
    listed = load(lake / name, cache)
    known = load_version(cache, before)
    new = listed if known is None else listed.without(known)
    return new.and_also(_still_met(_met(lake, name), listed))


def text_digests(lake: Path) -> dict[str, str]:
    """Of the lists' own entries, the URLs met apart."""
    return {name: load(lake / name, lake / _CACHE / name).digest for name in REASONS}


def _in_force(lake: Path, name: str) -> Entries:
    listed = load(lake / name, lake / _CACHE / name)
    return listed.and_also(_still_met(_met(lake, name), listed))


def met_file(name: str) -> str:
    """Of the URLs met of a list: its path in the lake."""
    return f"{LEDGER}/met_{name}.parquet"


def _met(lake: Path, name: str) -> Path:
    return lake / met_file(name)


def _read(path: Path) -> set[tuple[Key, bytes]]:
    if not path.exists():
        return set()
    # Not `read_table`: it would take the lake's hive folders for columns.
    rows = pq.ParquetFile(path).read().to_pylist()
    return {(Key(row["kind"], row["entry"]), row["url_sha256"]) for row in rows}


def _still_met(path: Path, listed: Entries) -> Entries:
    """The URLs of the entries that are still on the list."""
    by_kind: dict[str, list[tuple[bytes, bytes]]] = {}
    for key, url in _read(path):
        by_kind.setdefault(key.kind, []).append((key.value, url))
    return of_keys(
        Key("url-sha256", url)
        for kind, rows in by_kind.items()
        for (_, url), counts in zip(
            rows, listed.have(kind, [value for value, _ in rows]).tolist(), strict=True
        )
        if counts
    )


def note_met(lake: Path, name: str, met: Collection[tuple[Key, bytes]]) -> int:
    """Note that entries of the list ``name`` were met at URLs, given by their SHA-256.

    Returns how many were not known; noting the same again changes nothing.
    """
    if not met:
        return 0
    path = _met(lake, name)
    with locked(path.with_name(f".{path.name}.lock"), lambda: None):
        known = _read(path)
        new = set(met) - known
        if new:
            rows = [
                {"kind": key.kind, "entry": key.value, "url_sha256": url}
                for key, url in sorted(known | new)
            ]
            with atomic_path(path) as beside:
                pq.write_table(pa.Table.from_pylist(rows, _MET), beside, compression="zstd")
    return len(new)
