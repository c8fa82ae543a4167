"""Read shards: rows from parquet, to be joined with the tar by key."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from laion_assets import schemas
from laion_assets.download.shard_files import read_shard, tars_in

IMAGE_FORMATS: Final = ("JPEG", "PNG", "WEBP")
"""Pillow's names of the formats that are read.

Pillow reads many more, some through programs such as Ghostscript, whatever the suffix.
"""


NOT_AN_IMAGE: Final = (
    OSError,
    ValueError,
    SyntaxError,
    AssertionError,  # as of a palette that is not there
    EOFError,
    ArithmeticError,
    LookupError,
    struct.error,
    Image.DecompressionBombError,
)
"""Exceptions that Pillow's readers raise on bytes that are not the image they claim to be."""


_NEEDED: Final = ("key", "url", "caption", "status")


class ShardError(ValueError):
    """A shard cannot be read at all; the message says which and why."""


def find_shards(folder: Path) -> list[Path]:
    """Tars of a folder of shards, or of a partition of `image_shards`, in order."""
    return tars_in(folder)


def shard_number(tar: Path) -> int:
    """Number in the shard's name. Raises :class:`ShardError` if the name is not a number."""
    if not (tar.stem.isascii() and tar.stem.isdigit()):
        raise ShardError(f"{tar}: a shard's name must be a number, such as 00000.tar")
    return int(tar.stem)


def count_rows(tar: Path) -> int:
    """Number of the shard's downloaded samples. Raises :class:`ShardError`."""
    status = _read(tar, ["status"])["status"]
    return int(pc.sum(pc.equal(status, "success")).as_py() or 0)


def have_captions(tars: Iterable[Path]) -> bool:
    """Whether any downloaded sample of the shards has a caption; True without samples.

    Raises :class:`ShardError`.
    """
    samples = 0
    for tar in tars:
        table = _read(tar, ["status", "caption"])
        captions = table["caption"].filter(pc.equal(table["status"], "success"))
        if captions.null_count < len(captions):
            return True
        samples += len(captions)
    return not samples


def read_rows(tar: Path, *, captions: bool = True) -> pa.Table:
    """Downloaded samples of the shard, with the columns of ``schemas.EMBEDDED``, in its order.

    Columns that a plain img2dataset run does not have are null (the licence "?"). Width and
    height are the original image's. A sample that lacks a caption among others with captions has
    an empty text; without ``captions``, all texts are null. Raises :class:`ShardError`.
    """
    number = shard_number(tar)
    table = _read(tar)
    table = table.filter(pc.equal(table["status"], "success"))
    texts = pc.fill_null(table["caption"].cast(pa.string()), "")
    made = {
        "SAMPLE_ID": pa.array(_sample_ids(table, texts), pa.int64()),
        "text": texts if captions else pa.nulls(len(table)),
        "height": _column(table, "original_height"),
        "width": _column(table, "original_width"),
        "license": pc.fill_null(_column(table, "license").cast(pa.string()), "?"),
        "shard": pa.array([number] * len(table), pa.int32()),
    }
    columns = [
        made.get(field.name, _column(table, field.name)).cast(field.type)
        for field in schemas.EMBEDDED
    ]
    return pa.table(columns, schema=schemas.EMBEDDED)


def digest_of_rows(tar: Path) -> str:
    """SHA-256 of what :func:`read_rows` returns."""
    stream = pa.BufferOutputStream()
    rows = read_rows(tar).combine_chunks()
    with pa.ipc.new_stream(stream, rows.schema) as writer:
        writer.write_table(rows)
    return hashlib.sha256(stream.getvalue()).hexdigest()


def _read(tar: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        table = read_shard(tar, columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise ShardError(f"the rows of {tar} cannot be read: {error}") from error
    missing = set(columns or _NEEDED) - set(table.column_names)
    if missing:
        raise ShardError(f"the rows of {tar} have no column {', '.join(sorted(missing))}")
    return table


def _column(table: pa.Table, name: str) -> Any:
    return table[name] if name in table.column_names else pa.nulls(len(table))


def _sample_ids(table: pa.Table, texts: Any) -> list[int]:
    if "uid" in table.column_names:
        uids = table["uid"].to_pylist()
        return [
            schemas.sample_id_of(bytes.fromhex(uid) if isinstance(uid, str) else uid)
            for uid in uids
        ]
    pairs = zip(table["url"].to_pylist(), texts.to_pylist(), strict=True)
    return [schemas.sample_id_of(schemas.uid_of(url, text)) for url, text in pairs]
