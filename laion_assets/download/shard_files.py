"""Where the files of shards lie, and how a shard's rows are read.

A folder of shards is as img2dataset writes it: each tar has a parquet file beside it, and a part of
the ledger. In a partition of the lake it is the subfolder :data:`SHARDS`, and the rows of all its
shards are joined in few large files outside of it (:mod:`.joined`). A shard is named by its tar.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.files import Identity, identity
from laion_assets.schemas import FETCHES
from laion_assets.tables import PARTS, batches, read_parquet

SHARDS: Final = "_shards"
LEDGER: Final = "_ledger"
STATS: Final = "_stats.json"
SHARD_DIGITS: Final = 5
NUMBER: Final = "shard"
"""Column of the number of the shard, which joined rows have."""


def name_of(shard: int) -> str:
    """The name of a shard's files, without suffixes: ``00012``."""
    return f"{shard:0{SHARD_DIGITS}d}"


def shard_of(key: str) -> int:
    """Number of the shard that holds the image of a key."""
    return int(key[:SHARD_DIGITS])


def files_of(folder: Path, shard: int) -> tuple[Path, Path, Path, Path]:
    """Paths of its tar, parquet, ledger and statistics; the last makes it done."""
    name = name_of(shard)
    return (
        folder / f"{name}.tar",
        folder / f"{name}.parquet",
        folder / LEDGER / f"{name}.parquet",
        folder / f"{name}{STATS}",
    )


def shards_in(folder: Path) -> list[int]:
    """Numbers of the finished shards of a folder, sorted."""
    return sorted(int(path.name.removesuffix(STATS)) for path in folder.glob(f"[0-9]*{STATS}"))


def begun_in(folder: Path) -> list[int]:
    """Numbers of the shards of which the folder holds any file, sorted."""
    names = (path.name[:SHARD_DIGITS] for path in folder.glob("[0-9]*"))
    return sorted({int(name) for name in names if name.isdigit()})


def shards_of(folder: Path) -> Path:
    """The folder of shards in a partition; any other folder is one itself."""
    inside = folder / SHARDS
    return inside if inside.is_dir() else folder


def tar_path(folder: Path, shard: int) -> Path:
    """Path of a shard's tar in a folder of shards or a partition."""
    return files_of(shards_of(folder), shard)[0]


def tars_in(folder: Path) -> list[Path]:
    """Tars of a folder of shards or a partition, in order. A shard exists once its rows do."""
    shards = shards_of(folder)
    found = [path.with_suffix(".tar") for path in shards.glob("[0-9]*.parquet")]
    return sorted(found or (shards.glob("[0-9]*.tar") if shards.name == SHARDS else ()))


def ledger_of(part: Path) -> Path:
    """The ledger's file for a part of joined rows, row for row; not named as those of a table."""
    return part.parent / LEDGER / f"{part.stem}.pq"


def read_shard(tar: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one shard: all columns, or those of ``columns`` that it has.

    Raises ``FileNotFoundError`` for a shard without rows.
    """
    rows = _rows_of(tar)
    return read_parquet(rows.table, columns and _present(columns, rows.table), rows.groups)


def read_ledger(tar: Path) -> pa.Table:
    """The ledger's rows of one shard, aligned with :func:`read_shard`. Raises the same."""
    rows = _rows_of(tar)
    return read_parquet(rows.ledger, FETCHES.names, rows.groups)


def has_rows(tar: Path) -> bool:
    """Whether both the rows of a shard and those of its ledger are present."""
    try:
        rows = _rows_of(tar)
    except FileNotFoundError:
        return False
    return rows.table.exists() and rows.ledger.exists()


def rows_in_turn(folder: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of all shards of a folder or a partition, some at a time: of ``columns``, those
    that the shards have. Needs none of the tars."""
    shards = shards_of(folder)
    joined = shards.parent if shards.name == SHARDS else folder
    for path in sorted(shards.glob("[0-9]*.parquet")) or sorted(joined.glob(PARTS)):
        for batch in batches(path, _present(columns, path)):
            yield pa.Table.from_batches([batch])


def _present(columns: Sequence[str], path: Path) -> list[str]:
    present = set(pq.read_schema(path).names)
    return [name for name in columns if name in present]


class _Rows(NamedTuple):
    """A shard's part of a table and of the ledger: row groups, or all of them."""

    table: Path
    ledger: Path
    groups: Sequence[int] | None


def _rows_of(tar: Path) -> _Rows:
    parquet = tar.with_suffix(".parquet")
    if tar.parent.name != SHARDS or parquet.exists():
        return _Rows(parquet, tar.parent / LEDGER / parquet.name, None)
    folder, number = tar.parent.parent, int(tar.stem)
    for part in sorted(folder.glob(PARTS)):
        groups = _groups(part, identity(part)).get(number)
        if groups:
            return _Rows(part, ledger_of(part), groups)
    raise FileNotFoundError(f"{folder} has no rows of shard {tar.stem}")


@lru_cache(maxsize=256)
def _groups(part: Path, _version: Identity) -> dict[int, list[int]]:
    """Shard -> its row groups in this version of a part.

    Raises ``ValueError`` for a part that others have written again with other row groups.
    """
    metadata = pq.read_metadata(part)
    columns = [metadata.schema.column(at).path for at in range(metadata.num_columns)]
    found: dict[int, list[int]] = {}
    for group in range(metadata.num_row_groups):
        values = metadata.row_group(group).column(columns.index(NUMBER)).statistics
        if values is None or values.min != values.max:
            raise ValueError(f"{part} has a row group of several shards")
        found.setdefault(values.min, []).append(group)
    return found
