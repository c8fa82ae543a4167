"""Numbers a segment's pairs: the shard that each belongs to, and its row there.

A pair keeps both for as long as it is in the segment, whatever comes or goes: what leaves leaves a
gap, and what is new comes last. So a change costs the shards that it concerns, and no key is given
to another pair, as long as each version is made from the one before: for one that was set aside,
numbers begin again. What does not belong here: the shards' files, and when one is current
(:mod:`.segment`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.download.previous import UNREADABLE
from laion_assets.download.shard_files import (
    SHARD_DIGITS,
    begun_in,
    rows_in_turn,
    shard_of,
    shards_of,
)
from laion_assets.download.shards import recorded_next_rows
from laion_assets.schemas import OUTCOME, UID_BYTES, uid_of
from laion_assets.tables import batches, rows_in

_OWN_COLUMNS: Final = {"caption", *OUTCOME.names}
_READ_AT_ONCE: Final = 10_000

Rows = NDArray[np.int32]


@dataclass(frozen=True)
class KeysGiven:
    """How many keys all versions of a segment have given to pairs, those that left included.

    They are those of the first ``keys_given`` rows of shards of ``samples_per_shard`` rows.
    """

    keys_given: int
    samples_per_shard: int

    @classmethod
    def recorded(cls, metadata: Mapping[str, Any]) -> Self | None:
        """What :meth:`to_json` put among a manifest's metadata; None in older ones."""
        try:
            return cls(metadata["keys_given"], metadata["samples_per_shard"])
        except KeyError:
            return None

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    def are_of(self, size: int) -> bool:
        """Whether shards of ``size`` rows give the same keys."""
        return size == self.samples_per_shard or self.keys_given <= min(
            size, self.samples_per_shard
        )

    def end(self, size: int) -> int:
        """The first row that may get a key, counted through all shards of ``size`` rows."""
        if self.are_of(size):
            return self.keys_given
        return -(-self.keys_given // self.samples_per_shard) * size


@dataclass(frozen=True)
class ShardRows:
    """The pairs of one shard, in the order of its rows.

    ``rows``: (n,) their numbers in the shard, ascending. ``next_row``: the number that a row
    to come gets. ``table``: (n,) the pairs.
    """

    shard: int
    rows: Rows
    next_row: int
    table: pa.Table


@dataclass(frozen=True)
class Numbering:
    """The place of each pair of some files, in their order.

    ``shards``, ``rows``: (n,) int32 each. ``next_row``: shard -> the number of its next row.
    ``new``: how many pairs the shards before did not have. ``left``: how many of theirs are gone.
    ``given``: the keys that they and all versions before have given.
    """

    files: Sequence[Path]
    shards: Rows
    rows: Rows
    next_row: dict[int, int]
    new: int
    left: int
    given: KeysGiven

    def __iter__(self) -> Iterator[ShardRows]:
        """Yield each shard once all its pairs have been read. Needs memory for the few shards that
        the pairs of one place in the files belong to."""
        sizes = np.bincount(self.shards) if len(self.shards) else np.zeros(0, np.int64)
        waiting: dict[int, list[tuple[Rows, pa.Table]]] = {}
        start = 0
        for batch in (batch for file in self.files for batch in batches(file, rows=_READ_AT_ONCE)):
            table = pa.Table.from_batches([batch])
            of_batch = slice(start, start + len(batch))
            shards, rows = self.shards[of_batch], self.rows[of_batch]
            start = of_batch.stop
            for shard in np.unique(shards).tolist():
                of_shard = shards == shard
                held = waiting.setdefault(shard, [])
                held.append((rows[of_shard], table.filter(pa.array(of_shard))))
                if sum(len(numbers) for numbers, _ in held) == sizes[shard]:
                    yield self._joined(shard, waiting.pop(shard))

    def _joined(self, shard: int, held: Sequence[tuple[Rows, pa.Table]]) -> ShardRows:
        rows = np.concatenate([numbers for numbers, _ in held])
        table = pa.concat_tables([some for _, some in held])
        if (order := np.argsort(rows)).tolist() != list(range(len(rows))):
            rows, table = rows[order], table.take(pa.array(order))
        return ShardRows(shard, rows, self.next_row[shard], table.combine_chunks())


def number_pairs(
    files: Sequence[Path], size: int, before: Path | None, given: KeysGiven | None = None
) -> Numbering:
    """Number the pairs of ``files`` for shards of ``size`` rows.

    ``before``: a folder of shards, or a partition. Its pairs keep their numbers if it has shards of
    that size, and its rows can be read; otherwise all pairs get new ones. New numbers follow behind
    its last row, and behind those that were ``given``, as its version recorded them. Raises
    ``ValueError`` for pairs without the columns ``url`` and ``text``.
    """
    for file in files:
        _refuse_columns(file)
    n = rows_in(*files)
    known = _known(before, size, given) if before else None
    if given:
        end = given.end(size)
    elif known:
        end = known.end
    else:
        end = _behind(before) * size if before else 0
    if known is None:
        places = end + np.arange(n, dtype=np.int64)
        next_rows = _next_rows(places, size, {})
        return Numbering(files, *_split(places, size), next_rows, n, 0, KeysGiven(end + n, size))
    wanted = pa.chunked_array(
        [
            pa.array(map(uid_of, *_texts(batch, "url", "text")), _UID)
            for file in files
            for batch in batches(file, ["url", "text"])
        ],
        _UID,
    )
    found = pc.index_in(wanted, known.uids)
    at = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    # A pair that comes a second time is new: the first has the place.
    is_new = np.ones(n, dtype=np.bool_)
    first = np.unique(at, return_index=True)[1]
    is_new[first[at[first] >= 0]] = False
    places = np.empty(n, dtype=np.int64)
    places[~is_new] = known.places[at[~is_new]]
    new = int(is_new.sum())
    places[is_new] = np.arange(end, end + new)
    left = len(known.places) - (n - new)
    next_rows = _next_rows(places, size, known.next_row)
    return Numbering(files, *_split(places, size), next_rows, new, left, KeysGiven(end + new, size))


_UID: Final = pa.binary(UID_BYTES)


@dataclass(frozen=True)
class _Known:
    """The pairs of the shards before: (n,) uids, and (n,) places, which count through all shards.

    ``end``: the place behind all that there ever were, as far as the shards know it.
    """

    uids: pa.Array
    places: NDArray[np.int64]
    next_row: dict[int, int]
    end: int


def _behind(before: Path) -> int:
    """Number of the shard behind all those that a folder or a partition has anything of."""
    return max(begun_in(shards_of(before)), default=-1) + 1


def _known(before: Path, size: int, given: KeysGiven | None) -> _Known | None:
    """None if there are no shards of that size, or their rows cannot be read."""
    if given and not given.are_of(size):
        return None
    uids: list[bytes] = []
    keys: list[str] = []
    try:
        for table in rows_in_turn(before, ["key", "url", "caption"]):
            uids += map(uid_of, *_texts(table, "url", "caption"))
            keys += table["key"].to_pylist()
        places = np.array(
            [shard_of(key) * size + int(key[SHARD_DIGITS:]) for key in keys], np.int64
        )
        recorded = recorded_next_rows(shards_of(before))
        next_row = _next_rows(places, size, recorded)
    except UNREADABLE:
        return None
    *full, last = sorted(next_row) or [-1]
    if last < 0:
        return None
    # Where it is not recorded, full shards tell of which size they are.
    other = any(next_row[shard] != size for shard in full) or next_row[last] > size
    if given is None and other:
        return None
    end = max(shard * size + row for shard, row in (recorded | next_row).items())
    return _Known(pa.array(uids, _UID), places, next_row, end)


def _texts(table: Any, *columns: str) -> list[list[str]]:
    return [[value or "" for value in table[column].to_pylist()] for column in columns]


def _split(places: NDArray[np.int64], size: int) -> tuple[Rows, Rows]:
    return (places // size).astype(np.int32), (places % size).astype(np.int32)


def _next_rows(places: NDArray[np.int64], size: int, known: dict[int, int]) -> dict[int, int]:
    """Shard -> the number of its next row, for each shard that has rows."""
    if not len(places):
        return {}
    ordered = np.sort(places)
    shards, first = np.unique(ordered // size, return_index=True)
    last = ordered[np.append(first[1:], len(ordered)) - 1] % size
    return {
        shard: max(row + 1, known.get(shard, 0))
        for shard, row in zip(shards.tolist(), last.tolist(), strict=True)
    }


def _refuse_columns(file: Path) -> None:
    names = set(pq.read_schema(file).names)
    missing = {"url", "text"} - names
    if missing:
        raise ValueError(f"{file} has no column {', '.join(sorted(missing))}")
    taken = names & _OWN_COLUMNS
    if taken:
        raise ValueError(
            f"{file} has columns that a shard has of its own: {', '.join(sorted(taken))}; "
            "rename them or leave them out"
        )
