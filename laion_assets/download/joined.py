"""The rows of a folder of shards, joined into few large files outside of it, and taken apart again.

In staging each shard has rows of its own, so that a killed download resumes by the shard. Once all
are finished, their rows are joined; tars and statistics stay where they are. At every moment the
rows of a shard are in its own parquet, or all parts are whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.download.shard_files import (
    LEDGER,
    NUMBER,
    files_of,
    ledger_of,
    read_ledger,
    read_shard,
    shards_in,
)
from laion_assets.download.shards import write_rows
from laion_assets.schemas import FETCHES, IMAGES
from laion_assets.tables import PARTS, ROWS_PER_PART, TableWriter, part_path, rows_in, spans

# The other columns hardly repeat.
_DICTIONARY: Final = [
    *("status", "error_message", "width", "height", "original_width", "original_height"),
    *("reason", "language", "license", "page_url", "crawl", "segment", "wat_file", NUMBER),
]


def join(shards: Path) -> None:
    """Join the rows of a folder's finished shards into ``part-*.parquet`` of its parent folder.

    They have the columns of :data:`~laion_assets.schemas.IMAGES`, then those that any shard has
    besides. A part has the rows of whole shards, and ends with the one that makes it
    :data:`~laion_assets.tables.ROWS_PER_PART` rows; a row group has rows of one shard alone. The
    ledger's parts are aligned with them, row for row.
    """
    folder, numbers = shards.parent, shards_in(shards)
    own = [files_of(shards, number) for number in numbers]
    schema = pa.unify_schemas([IMAGES, *(pq.read_schema(parquet) for _, parquet, *_ in own)])
    written: list[Path] = []
    for begin, end in spans([rows_in(parquet) for _, parquet, *_ in own], ROWS_PER_PART):
        part = part_path(folder, len(written))
        with (
            TableWriter(part, schema, use_dictionary=_DICTIONARY) as rows,
            TableWriter(ledger_of(part), FETCHES) as ledger,
        ):
            for number, (tar, *_) in zip(numbers[begin:end], own[begin:end], strict=True):
                rows.write(_numbered(read_shard(tar), number, schema))
                ledger.write(read_ledger(tar))
        written.append(part)
    _delete_parts(folder, but=len(written))
    for _, parquet, of_shard, _ in own:
        parquet.unlink()
        of_shard.unlink()
    if (shards / LEDGER).exists():
        (shards / LEDGER).rmdir()


def take_apart(shards: Path) -> None:
    """Undo :func:`join`, as far as it got, for a download that goes on in the folder.

    What an earlier version has left unfinished, in the folder above, goes on here, too.
    """
    for old, new in ((shards.parent, shards), (shards.parent / LEDGER, shards / LEDGER)):
        for path in old.glob("[0-9]*"):
            new.mkdir(parents=True, exist_ok=True)
            path.replace(new / path.name)
    for number in shards_in(shards):
        tar, parquet, *_ = files_of(shards, number)
        if tar.exists() and not parquet.exists():
            write_rows(shards, number, read_shard(tar), read_ledger(tar))
    _delete_parts(shards.parent)


def _delete_parts(folder: Path, but: int = 0) -> None:
    """Delete the parts from a number on, and the ledger's."""
    for part in sorted(folder.glob(PARTS))[but:]:
        ledger_of(part).unlink(missing_ok=True)
        part.unlink()


def _numbered(table: pa.Table, shard: int, schema: pa.Schema) -> pa.Table:
    numbers = pa.repeat(pa.scalar(shard, pa.int32()), table.num_rows)
    table = table.append_column(NUMBER, numbers)
    return pa.concat_tables([schema.empty_table(), table], promote_options="default")
